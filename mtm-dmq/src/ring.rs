//! A ring of byte messages in borrowed shared words: one producer, one consumer, no lock.
//!
//! The ring holds offsets and no pointers, so processes may map its words at different
//! addresses. It owns the words it is given and nothing else, and it never waits: whoever waits
//! for messages or for room uses a latch of its own.
//!
//! ```text
//! word  0  magic and version       written by `init`, last
//! word  1  capacity in words       written by `init`
//! word  8  tail cursor             written by the producer only
//! word 16  head cursor             written by the consumer only
//! word 24  data: per message one header word, then the bytes padded to a word
//!
//! cursor   40 bits message count | 24 bits position in 0..2 * capacity
//! header   32 bits low half of the message's number | 32 bits length in bytes
//! ```
//!
//! A position counts to twice the capacity before it wraps, so a full ring differs from an
//! empty one and any capacity is allowed.
//!
//! **Publication.** `push` writes header and bytes into free words and then publishes them with
//! one release store of the tail cursor, which carries the position and the count together. A
//! producer that dies before that store has done nothing: its successor writes over the same
//! words. `pop` copies the message out and then frees it with one release compare-and-swap of the
//! head cursor. A consumer that dies before it has taken nothing. A count never repeats (for
//! 2^40 messages), so a compare-and-swap that succeeds also proves that nobody wrote over the
//! bytes meanwhile: a second consumer, which the contract forbids, takes another message, never
//! half of one.
//!
//! | words | written by | read by | guarded by |
//! |---|---|---|---|
//! | magic, capacity | whoever formats | all | formatting ends before others attach |
//! | tail | producer | both | producers are serialised by the caller's lock |
//! | head | consumer | both | compare-and-swap |
//! | data | producer | consumer | free to the producer outside head..tail, else to the consumer |

use crate::sync::{AtomicU64, Ordering};
use core::fmt;

mod error;
#[cfg(all(test, not(loom)))]
mod tests;
mod words;

pub use error::{Corrupt, PushError, RingError};
use words::WordWriter;

/// "mtmring" and the version of the layout.
const MAGIC: u64 = u64::from_be_bytes(*b"mtmring\x01");
const VERSION_MASK: u64 = 0xff;

const WORD: usize = size_of::<u64>();
const AT_MAGIC: usize = 0;
const AT_CAPACITY: usize = 1;
// Cursors keep 64 bytes apart, so that the two sides do not fight for a cache line.
const AT_TAIL: usize = 8;
const AT_HEAD: usize = 16;
const AT_DATA: usize = 24;

const POSITION_BITS: u32 = 24;
const COUNT_MASK: u64 = (1 << (u64::BITS - POSITION_BITS)) - 1;
/// One header word and eight bytes.
const MIN_CAPACITY: usize = 2;
const MAX_CAPACITY: usize = 1 << (POSITION_BITS - 1);

/// How an attempt to take a message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Popped {
    Taken,
    Unwanted,
    Empty,
}

/// Position and number of a message; one word, so that both change at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor {
    position: usize,
    count: u64,
}

impl Cursor {
    const fn unpack(word: u64) -> Self {
        let position = word & ((1 << POSITION_BITS) - 1);
        Self { position: position as usize, count: word >> POSITION_BITS }
    }

    const fn pack(self) -> u64 {
        self.count << POSITION_BITS | self.position as u64
    }

    /// This cursor after one more message of `words` words.
    const fn after(self, words: usize, capacity: usize) -> Self {
        let position = self.position + words;
        let position = if position >= 2 * capacity { position - 2 * capacity } else { position };
        Self { position, count: (self.count + 1) & COUNT_MASK }
    }
}

/// A single-producer single-consumer ring of byte messages over borrowed shared words.
///
/// Any number of handles may exist. Producers must be serialised by a lock of the caller's; the
/// consumer is one process.
#[derive(Clone, Copy)]
pub struct Ring<'a> {
    tail: &'a AtomicU64,
    head: &'a AtomicU64,
    data: &'a [AtomicU64],
}

impl<'a> Ring<'a> {
    /// Largest capacity of a ring in bytes.
    pub const MAX_CAPACITY: usize = MAX_CAPACITY * WORD;

    /// What a message takes in the ring besides its bytes padded to eight.
    pub const OVERHEAD: usize = WORD;

    /// How many words a ring of this capacity takes. Each message needs
    /// [`OVERHEAD`](Self::OVERHEAD) bytes of it and its own bytes padded to eight. The capacity
    /// is rounded up to words and cut at [`MAX_CAPACITY`](Self::MAX_CAPACITY).
    pub fn words_for(capacity_bytes: usize) -> usize {
        AT_DATA + capacity_bytes.div_ceil(WORD).clamp(MIN_CAPACITY, MAX_CAPACITY)
    }

    /// Formats the words as an empty ring. Nobody else may use them meanwhile.
    ///
    /// # Panics
    /// When there are fewer words than [`words_for`](Self::words_for) asks for the smallest ring,
    /// or more than it asks for the largest.
    pub fn init(words: &'a [AtomicU64]) -> Self {
        let capacity = words.len().saturating_sub(AT_DATA);
        assert!(
            (MIN_CAPACITY..=MAX_CAPACITY).contains(&capacity),
            "a message ring has {} to {} words, not {}",
            AT_DATA + MIN_CAPACITY,
            AT_DATA + MAX_CAPACITY,
            words.len()
        );
        // Whoever attaches too early finds no magic, rather than half a ring.
        words[AT_MAGIC].store(0, Ordering::Relaxed);
        words[AT_CAPACITY].store(capacity as u64, Ordering::Relaxed);
        words[AT_TAIL].store(0, Ordering::Relaxed);
        words[AT_HEAD].store(0, Ordering::Relaxed);
        words[AT_MAGIC].store(MAGIC, Ordering::Release);
        Self::over(words)
    }

    /// A handle to a ring that was formatted in these words.
    ///
    /// # Errors
    /// When they are no ring of this layout and size.
    pub fn attach(words: &'a [AtomicU64]) -> Result<Self, RingError> {
        if words.len() < AT_DATA + MIN_CAPACITY {
            return Err(RingError::NotARing);
        }
        let magic = words[AT_MAGIC].load(Ordering::Acquire);
        if magic & !VERSION_MASK != MAGIC & !VERSION_MASK {
            return Err(RingError::NotARing);
        }
        if magic != MAGIC {
            return Err(RingError::Version { found: magic as u8, known: MAGIC as u8 });
        }
        let capacity = words[AT_CAPACITY].load(Ordering::Relaxed);
        if capacity != (words.len() - AT_DATA) as u64 {
            let formatted = capacity.saturating_add(AT_DATA as u64);
            return Err(RingError::Size { words: words.len(), formatted });
        }
        Ok(Self::over(words))
    }

    /// A handle to words that are known to be a ring.
    pub(crate) fn over(words: &'a [AtomicU64]) -> Self {
        Self { tail: &words[AT_TAIL], head: &words[AT_HEAD], data: &words[AT_DATA..] }
    }

    /// Appends a message. The caller holds the producers' lock.
    ///
    /// # Errors
    /// When there is no room now, when there can never be, or when the ring is damaged.
    pub fn push(&self, message: &[u8]) -> Result<(), PushError> {
        self.push_parts(&[message])
    }

    /// Appends one message that consists of these parts. The caller holds the producers' lock.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn push_parts(&self, parts: &[&[u8]]) -> Result<(), PushError> {
        // Release: whoever sees the new cursor sees the message.
        self.push_publishing(parts, Ordering::Release)
    }

    /// A push whose bug the checker must find: it publishes without release.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    #[cfg(loom)]
    #[doc(hidden)]
    pub fn push_broken(&self, message: &[u8]) -> Result<(), PushError> {
        self.push_publishing(&[message], Ordering::Relaxed)
    }

    fn push_publishing(&self, parts: &[&[u8]], publish: Ordering) -> Result<(), PushError> {
        let length = parts.iter().fold(0usize, |sum, part| sum.saturating_add(part.len()));
        let words = 1 + length.div_ceil(WORD);
        if words > self.data.len() {
            let needed = words.saturating_mul(WORD);
            return Err(PushError::TooLarge { needed, capacity: self.capacity() });
        }
        let tail_word = self.tail.load(Ordering::Relaxed);
        // Acquire: the consumer has finished reading the words that it freed.
        let head_word = self.head.load(Ordering::Acquire);
        let used = self.used(head_word, tail_word)?;
        let free = self.data.len() - used;
        if words > free {
            return Err(PushError::Full { needed: words * WORD, free: free * WORD });
        }
        let tail = Cursor::unpack(tail_word);
        let mut writer = WordWriter::new(self.data, tail.position);
        writer.word((tail.count & u64::from(u32::MAX)) << 32 | length as u64);
        for part in parts {
            writer.bytes(part);
        }
        writer.flush();
        self.tail.store(tail.after(words, self.data.len()).pack(), publish);
        Ok(())
    }

    /// Takes the oldest message into `into`, whose old contents are dropped; false if there is
    /// none. The caller is the consumer.
    ///
    /// # Errors
    /// When the ring is damaged; it then stays as it is, and `into` is of no use.
    pub fn pop(&self, into: &mut Vec<u8>) -> Result<bool, Corrupt> {
        Ok(self.pop_if(into, |_| true)? == Popped::Taken)
    }

    /// Takes the oldest message if it is wanted.
    pub(crate) fn pop_if(
        &self,
        into: &mut Vec<u8>,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Popped, Corrupt> {
        loop {
            let head_word = self.head.load(Ordering::Acquire);
            let read = self.read(head_word, into);
            let (next, outcome) = match read {
                Ok(None) => return Ok(Popped::Empty),
                Ok(Some(next)) if wanted(into) => (next.pack(), Ok(Popped::Taken)),
                Ok(Some(_)) => (head_word, Ok(Popped::Unwanted)),
                Err(corrupt) => (head_word, Err(corrupt)),
            };
            // Release: the producer may write here only after the bytes were copied. A swap that
            // fails says that another consumer took this message, so what was read may be
            // anything. A load would not do for that: it may give an old head after the bytes
            // have been seen to be new.
            let (success, failure) = (Ordering::Release, Ordering::Relaxed);
            if self.head.compare_exchange(head_word, next, success, failure).is_ok() {
                return outcome;
            }
        }
    }

    /// Copies the message at the head; where the head is after it, or `None` if there is none.
    fn read(&self, head_word: u64, into: &mut Vec<u8>) -> Result<Option<Cursor>, Corrupt> {
        into.clear();
        // Acquire: pairs with the producer's publication.
        let tail_word = self.tail.load(Ordering::Acquire);
        let used = self.used(head_word, tail_word)?;
        if used == 0 {
            return Ok(None);
        }
        let capacity = self.data.len();
        let head = Cursor::unpack(head_word);
        let start = head.position % capacity;
        let header = self.data[start].load(Ordering::Relaxed);
        let (number, length) = ((header >> 32) as u32, header as u32);
        let words = 1 + (length as usize).div_ceil(WORD);
        if words > used {
            return Err(Corrupt::Length { length, used: used * WORD });
        }
        if number != head.count as u32 {
            return Err(Corrupt::Number { expected: head.count as u32, found: number });
        }
        self.copy_out(start + 1, length as usize, into);
        Ok(Some(head.after(words, capacity)))
    }

    /// Appends `length` bytes, starting with the word at `from`, to `into`.
    fn copy_out(&self, from: usize, length: usize, into: &mut Vec<u8>) {
        let words = length.div_ceil(WORD);
        into.reserve(words * WORD);
        let from = from % self.data.len();
        let first = words.min(self.data.len() - from);
        let (straight, wrapped) = (&self.data[from..from + first], &self.data[..words - first]);
        for word in straight.iter().chain(wrapped) {
            into.extend_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
        into.truncate(length);
    }

    /// Words between two cursors.
    fn used(&self, head_word: u64, tail_word: u64) -> Result<usize, Corrupt> {
        let capacity = self.data.len();
        let (head, tail) = (Cursor::unpack(head_word), Cursor::unpack(tail_word));
        let corrupt = Corrupt::Cursors { head: head_word, tail: tail_word };
        if head.position >= 2 * capacity || tail.position >= 2 * capacity {
            return Err(corrupt);
        }
        let used = if tail.position >= head.position {
            tail.position - head.position
        } else {
            tail.position + 2 * capacity - head.position
        };
        let messages = tail.count.wrapping_sub(head.count) & COUNT_MASK;
        let possible =
            used <= capacity && messages <= used as u64 && (messages == 0) == (used == 0);
        if possible { Ok(used) } else { Err(corrupt) }
    }

    /// Whether there is no message. Exact for the consumer; for others it may be outdated.
    pub fn is_empty(&self) -> bool {
        self.popped() == self.pushed()
    }

    /// Bytes in use, with headers and padding; approximate while both sides work.
    pub fn len_bytes(&self) -> usize {
        let head = self.head.load(Ordering::Acquire);
        let tail = self.tail.load(Ordering::Acquire);
        self.used(head, tail).map_or_else(|_| self.capacity(), |words| words * WORD)
    }

    /// Bytes that the ring has, for messages with their headers and padding.
    pub const fn capacity(&self) -> usize {
        self.data.len() * WORD
    }

    /// Messages ever pushed, modulo 2^40.
    pub fn pushed(&self) -> u64 {
        Cursor::unpack(self.tail.load(Ordering::Acquire)).count
    }

    /// Messages ever popped, modulo 2^40.
    pub fn popped(&self) -> u64 {
        Cursor::unpack(self.head.load(Ordering::Acquire)).count
    }

    /// Drops every message that is in the ring now and says how many; the caller is the consumer.
    ///
    /// # Errors
    /// When the ring is damaged; it then stays as it is.
    pub fn discard(&self) -> Result<u64, Corrupt> {
        loop {
            let head_word = self.head.load(Ordering::Acquire);
            let tail_word = self.tail.load(Ordering::Acquire);
            let used = self.used(head_word, tail_word);
            // Two cursors read one after the other need not belong together.
            let next = if used.is_ok() { tail_word } else { head_word };
            let (success, failure) = (Ordering::Release, Ordering::Relaxed);
            let swapped = self.head.compare_exchange(head_word, next, success, failure);
            if swapped.is_ok() {
                used?;
                let (head, tail) = (Cursor::unpack(head_word), Cursor::unpack(tail_word));
                return Ok(tail.count.wrapping_sub(head.count) & COUNT_MASK);
            }
        }
    }
}

impl fmt::Debug for Ring<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("capacity", &self.capacity())
            .field("pushed", &self.pushed())
            .field("popped", &self.popped())
            .finish_non_exhaustive()
    }
}
