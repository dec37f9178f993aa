//! Mailboxes for replies: a fixed number of slots, each with a small ring, in borrowed shared
//! words.
//!
//! Whoever asks opens a slot and gets a correlation id, which travels with the request and comes
//! back with every reply. Whoever receives replies posts them under that id and wakes the owner.
//! A reply that comes when nobody waits for it any more is refused by name, never delivered to
//! the slot's next owner.
//!
//! ```text
//! word 0  magic and version
//! word 1  slots | words of each slot's ring      32 bits each
//! word 2  where to look for a free slot first
//! word 8  slots, each:
//!         word 0  key: 52 bits number of use | 2 bits state
//!         word 1  deadline
//!         word 2  owner
//!         word 8  ring; each message begins with its correlation id
//! correlation id: 52 bits number of use | 12 bits slot
//! ```
//!
//! Numbers of use begin with the server's incarnation and only grow, so an id is never given
//! twice, not even across restarts, as long as incarnations grow faster than slots are used
//! (microseconds of the start do).
//!
//! | words | written by | guarded by |
//! |---|---|---|
//! | key | owner, `expire` | compare-and-swap; `claimed` keeps all others out |
//! | deadline, owner | whoever has claimed the slot | published by the key |
//! | ring's tail and data | posters | the posters' lock, which is the caller's |
//! | ring's head | owner | compare-and-swap; a message of a later use is never taken |
//!
//! A process may die anywhere: what it had opened expires. Only one that dies inside of
//! [`Mailboxes::open`] keeps its slot from being used again until the words are formatted anew.

use crate::ring::{Corrupt, Popped, PushError, Ring, RingError};
use crate::sync::{AtomicU64, Ordering};
use core::fmt;
use mtm_core::Instant;

#[cfg(all(test, not(loom)))]
mod tests;

/// "mtmmbox" and the version of the layout.
const MAGIC: u64 = u64::from_be_bytes(*b"mtmmbox\x01");

const AT_MAGIC: usize = 0;
const AT_SHAPE: usize = 1;
const AT_HINT: usize = 2;
const AT_SLOTS: usize = 8;

const SLOT_KEY: usize = 0;
const SLOT_DEADLINE: usize = 1;
const SLOT_OWNER: usize = 2;
const SLOT_RING: usize = 8;

const SLOT_BITS: u32 = 12;
const STATE_BITS: u32 = 2;
const USE_MASK: u64 = (1 << (u64::BITS - SLOT_BITS)) - 1;
const PREFIX: usize = size_of::<u64>();

const FREE: u64 = 0;
const CLAIMED: u64 = 1;
const OPEN: u64 = 2;

const fn key(number: u64, state: u64) -> u64 {
    number << STATE_BITS | state
}

/// Why no mailbox was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Every slot is in use.
    #[error("all {slots} mailboxes are in use")]
    AllInUse {
        /// How many there are.
        slots: usize,
    },
    /// The slot's ring is damaged.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
}

/// Why a reply was not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PostError {
    /// Nobody waits for it: the mailbox was closed or has expired, or there was never one.
    #[error("no mailbox {correlation:#x} is open")]
    NotOpen {
        /// The id.
        correlation: u64,
    },
    /// The owner has not taken earlier replies.
    #[error("mailbox {correlation:#x} overflows: {needed} bytes needed, {free} free")]
    Overflow {
        /// The id.
        correlation: u64,
        /// Bytes that the reply takes.
        needed: usize,
        /// Bytes free now.
        free: usize,
    },
    /// A mailbox is too small for the reply.
    #[error("reply takes {needed} bytes, a mailbox has {capacity}")]
    TooLarge {
        /// Bytes that the reply takes.
        needed: usize,
        /// Bytes of a mailbox.
        capacity: usize,
    },
    /// The slot's ring is damaged.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
}

/// Why no reply can be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TakeError {
    /// The mailbox was closed or has expired.
    #[error("mailbox {correlation:#x} has expired")]
    Expired {
        /// The id.
        correlation: u64,
    },
    /// The slot's ring is damaged.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
}

/// A fixed number of mailboxes in borrowed shared words.
#[derive(Clone, Copy)]
pub struct Mailboxes<'a> {
    hint: &'a AtomicU64,
    slots: &'a [AtomicU64],
    slot_words: usize,
}

impl<'a> Mailboxes<'a> {
    /// Most slots there can be.
    pub const MAX_SLOTS: usize = 1 << SLOT_BITS;

    /// How many words so many mailboxes take, each with a ring of this capacity. A reply takes
    /// its own bytes padded to eight and [`OVERHEAD`](Self::OVERHEAD).
    pub fn words_for(slots: usize, capacity_bytes: usize) -> usize {
        AT_SLOTS + slots * (SLOT_RING + Ring::words_for(capacity_bytes))
    }

    /// What a reply takes in a mailbox besides its bytes padded to eight.
    pub const OVERHEAD: usize = Ring::OVERHEAD + PREFIX;

    /// Formats the words as closed mailboxes. Nobody else may use them meanwhile.
    ///
    /// # Panics
    /// When the words are not as many as [`words_for`](Self::words_for) asks for, or the slots
    /// are none or more than [`MAX_SLOTS`](Self::MAX_SLOTS).
    pub fn init(
        words: &'a [AtomicU64],
        slots: usize,
        capacity_bytes: usize,
        incarnation: u64,
    ) -> Self {
        assert!((1..=Self::MAX_SLOTS).contains(&slots), "{slots} mailboxes");
        assert_eq!(words.len(), Self::words_for(slots, capacity_bytes), "words of mailboxes");
        let ring_words = Ring::words_for(capacity_bytes);
        words[AT_MAGIC].store(0, Ordering::Relaxed);
        words[AT_SHAPE].store((slots as u64) << 32 | ring_words as u64, Ordering::Relaxed);
        words[AT_HINT].store(0, Ordering::Relaxed);
        let mailboxes = Self::over(words, ring_words);
        for slot in 0..slots {
            let words = mailboxes.slot(slot);
            words[SLOT_KEY].store(key(incarnation & USE_MASK, FREE), Ordering::Relaxed);
            words[SLOT_DEADLINE].store(0, Ordering::Relaxed);
            words[SLOT_OWNER].store(0, Ordering::Relaxed);
            Ring::init(&words[SLOT_RING..]);
        }
        words[AT_MAGIC].store(MAGIC, Ordering::Release);
        mailboxes
    }

    /// A handle to mailboxes that were formatted in these words.
    ///
    /// # Errors
    /// When they are no mailboxes of this layout and size.
    pub fn attach(words: &'a [AtomicU64]) -> Result<Self, RingError> {
        if words.len() < AT_SLOTS || words[AT_MAGIC].load(Ordering::Acquire) != MAGIC {
            return Err(RingError::NotARing);
        }
        let shape = words[AT_SHAPE].load(Ordering::Relaxed);
        let (slots, ring_words) = (shape >> 32, shape & u64::from(u32::MAX));
        let formatted = (SLOT_RING as u64 + ring_words).saturating_mul(slots);
        let formatted = formatted.saturating_add(AT_SLOTS as u64);
        if slots == 0 || formatted != words.len() as u64 {
            return Err(RingError::Size { words: words.len(), formatted });
        }
        let mailboxes = Self::over(words, ring_words as usize);
        for slot in 0..mailboxes.slots() {
            Ring::attach(&mailboxes.slot(slot)[SLOT_RING..])?;
        }
        Ok(mailboxes)
    }

    fn over(words: &'a [AtomicU64], ring_words: usize) -> Self {
        let slot_words = SLOT_RING + ring_words;
        Self { hint: &words[AT_HINT], slots: &words[AT_SLOTS..], slot_words }
    }

    fn slot(&self, slot: usize) -> &'a [AtomicU64] {
        &self.slots[slot * self.slot_words..(slot + 1) * self.slot_words]
    }

    fn ring(words: &'a [AtomicU64]) -> Ring<'a> {
        Ring::over(&words[SLOT_RING..])
    }

    /// How many mailboxes there are.
    pub const fn slots(&self) -> usize {
        self.slots.len() / self.slot_words
    }

    /// The slot of a correlation id, below [`MAX_SLOTS`](Self::MAX_SLOTS): posters of different
    /// slots may use different locks.
    pub const fn slot_of(correlation: u64) -> usize {
        (correlation & ((1 << SLOT_BITS) - 1)) as usize
    }

    /// Opens a mailbox until `deadline` and gives its correlation id. `owner` is handed to
    /// whoever posts, which wakes the owner by it.
    ///
    /// # Errors
    /// When all are in use; [`expire`](Self::expire) may help.
    pub fn open(&self, owner: u64, deadline: Instant) -> Result<u64, OpenError> {
        let slots = self.slots();
        let first = self.hint.fetch_add(1, Ordering::Relaxed) % slots as u64;
        for i in 0..slots {
            let slot = (first as usize + i) % slots;
            let words = self.slot(slot);
            let found = words[SLOT_KEY].load(Ordering::Relaxed);
            let number = ((found >> STATE_BITS) + 1) & USE_MASK;
            if found & key(0, 3) != FREE {
                continue;
            }
            let (claimed, open) = (key(number, CLAIMED), key(number, OPEN));
            let (success, failure) = (Ordering::Acquire, Ordering::Relaxed);
            if words[SLOT_KEY].compare_exchange(found, claimed, success, failure).is_err() {
                continue;
            }
            words[SLOT_DEADLINE].store(deadline.0, Ordering::Relaxed);
            words[SLOT_OWNER].store(owner, Ordering::Relaxed);
            // Replies to earlier owners only make room scarce; nobody can have this id yet.
            let cleared = Self::ring(words).discard();
            let next = if cleared.is_ok() { open } else { key(number, FREE) };
            // Release: whoever finds it open finds deadline and owner of this use or a later one.
            words[SLOT_KEY].store(next, Ordering::Release);
            cleared?;
            return Ok(number << SLOT_BITS | slot as u64);
        }
        Err(OpenError::AllInUse { slots })
    }

    /// The words of a mailbox if it is open.
    fn find(&self, correlation: u64) -> Option<&'a [AtomicU64]> {
        let slot = Self::slot_of(correlation);
        if slot >= self.slots() {
            return None;
        }
        let words = self.slot(slot);
        let open = key(correlation >> SLOT_BITS, OPEN);
        // Acquire: pairs with the publication in `open`.
        (words[SLOT_KEY].load(Ordering::Acquire) == open).then_some(words)
    }

    /// Delivers a reply and gives the owner to wake. The caller holds the posters' lock (of this
    /// slot at least).
    ///
    /// # Errors
    /// When nobody waits for it or it does not fit.
    pub fn post(&self, correlation: u64, reply: &[u8]) -> Result<u64, PostError> {
        let words = self.find(correlation).ok_or(PostError::NotOpen { correlation })?;
        // If the mailbox changes hands right here, the prefix keeps the reply from its next owner.
        let pushed = Self::ring(words).push_parts(&[&correlation.to_ne_bytes(), reply]);
        pushed.map_err(|error| match error {
            PushError::Full { needed, free } => PostError::Overflow { correlation, needed, free },
            PushError::TooLarge { needed, capacity } => PostError::TooLarge { needed, capacity },
            PushError::Corrupt(corrupt) => PostError::Corrupt(corrupt),
        })?;
        Ok(words[SLOT_OWNER].load(Ordering::Relaxed))
    }

    /// Takes the oldest reply into `into`, whose old contents are dropped; false if there is
    /// none. Only the owner takes.
    ///
    /// # Errors
    /// When the mailbox is no longer open: no reply will ever come.
    pub fn take(&self, correlation: u64, into: &mut Vec<u8>) -> Result<bool, TakeError> {
        let expired = TakeError::Expired { correlation };
        let ring = Self::ring(self.find(correlation).ok_or(expired)?);
        let number_of = |id: u64| id >> SLOT_BITS;
        loop {
            // A reply to a later use belongs to the slot's next owner.
            let wanted = |message: &[u8]| {
                prefix(message).is_none_or(|id| number_of(id) <= number_of(correlation))
            };
            match ring.pop_if(into, wanted)? {
                Popped::Empty => return Ok(false),
                Popped::Unwanted => return Err(expired),
                Popped::Taken if prefix(into) == Some(correlation) => {
                    into.drain(..PREFIX);
                    return Ok(true);
                }
                Popped::Taken => {}
            }
        }
    }

    /// Closes a mailbox; false if it was not open. Replies in it are dropped.
    pub fn close(&self, correlation: u64) -> bool {
        self.find(correlation)
            .is_some_and(|words| Self::release(words, key(correlation >> SLOT_BITS, OPEN)))
    }

    /// Closes every mailbox whose deadline has come and says how many: those of owners that
    /// died, or that should have closed them.
    pub fn expire(&self, now: Instant) -> usize {
        let due = |&slot: &usize| {
            let words = self.slot(slot);
            let found = words[SLOT_KEY].load(Ordering::Acquire);
            // If the deadline is that of a later use, the key has changed and nothing happens.
            found & key(0, 3) == OPEN
                && words[SLOT_DEADLINE].load(Ordering::Relaxed) <= now.0
                && Self::release(words, found)
        };
        (0..self.slots()).filter(due).count()
    }

    fn release(words: &[AtomicU64], open: u64) -> bool {
        let free = key(open >> STATE_BITS, FREE);
        words[SLOT_KEY].compare_exchange(open, free, Ordering::Release, Ordering::Relaxed).is_ok()
    }

    /// How many mailboxes are open; approximate while others open and close.
    pub fn open_count(&self) -> usize {
        let open =
            |&slot: &usize| self.slot(slot)[SLOT_KEY].load(Ordering::Relaxed) & key(0, 3) == OPEN;
        (0..self.slots()).filter(open).count()
    }
}

impl fmt::Debug for Mailboxes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailboxes")
            .field("slots", &self.slots())
            .field("open", &self.open_count())
            .finish_non_exhaustive()
    }
}

/// The correlation id that a message in a ring begins with.
fn prefix(message: &[u8]) -> Option<u64> {
    message.first_chunk().map(|id| u64::from_ne_bytes(*id))
}
