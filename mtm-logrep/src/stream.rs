//! Messages of the replication stream, from an output plugin to a receiver.
//!
//! Layout: one tag byte, fields in the order below, big-endian; a payload fills the rest. A packet
//! is one message, with any number of marks before it: see [`Packet`].

use mtm_core::wire::{DecodeError, DecodeErrorKind, Reader, Writer};
use mtm_core::{GenNum, Gid, Lsn, MAX_NODES, Xid};

/// A message of the replication stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamMessage<'a> {
    /// Part of an announced transaction's changes; pieces of one transaction are adjacent.
    Piece {
        /// The transaction.
        gid: Gid,
        /// End of its announcement in the origin's log.
        lsn: Lsn,
        /// No piece came before this one.
        first: bool,
        /// No piece follows; the transaction may be prepared.
        last: bool,
        /// Row messages, cut anywhere between two messages.
        payload: &'a [u8],
    },
    /// Part of a large transaction's changes, sent before it is announced; pieces of different
    /// transactions interleave. Each piece describes the tables it names.
    Early {
        /// The transaction's number, 32-bit as in the log.
        xid: u32,
        /// Row messages, preceded by the subtransaction they belong to.
        payload: &'a [u8],
    },
    /// Nothing becomes of the changes of a transaction that were sent early.
    EarlyAbort {
        /// The transaction's number as in [`StreamMessage::Early`].
        xid: u32,
    },
    /// A transaction whose changes were sent early is announced; nothing more follows.
    EarlyDone {
        /// The transaction's name.
        gid: Gid,
        /// Its number as in [`StreamMessage::Early`].
        xid: u32,
        /// End of its announcement in the origin's log.
        lsn: Lsn,
        /// How many pieces were sent.
        pieces: u32,
        /// Whose changes count beside its own.
        children: Children<'a>,
    },
    /// The rows of this announced transaction are not available here: it is over on its origin.
    /// Never a reason to change a transaction that is prepared already.
    Unavailable {
        /// The transaction.
        gid: Gid,
        /// End of its announcement in the origin's log.
        lsn: Lsn,
    },
    /// This announced transaction has a change that cannot be shipped: peers must refuse it.
    Unshippable {
        /// The transaction.
        gid: Gid,
        /// End of its announcement in the origin's log.
        lsn: Lsn,
        /// What cannot be shipped, for people.
        why: &'a str,
    },
    /// A transaction of the cluster, of whatever origin, is committed in the sender's log. Sent in
    /// the order of commit records, one for each, before any other message or position behind it:
    /// see [`Packet`] and [`Keepalive::marked`].
    CommitMark {
        /// The transaction.
        gid: Gid,
        /// End of its commit record in the sender's log.
        lsn: Lsn,
    },
    /// Everything in the sender's log up to here was looked at and what is to be said of it was
    /// said. For a server that shuts down, which tells its place in no other way.
    Place {
        /// End of the last record.
        lsn: Lsn,
    },
    /// Recovery: part of the changes of the transaction whose [`StreamMessage::Replay`],
    /// [`StreamMessage::ReplayDiscard`] or [`StreamMessage::Held`] comes next. Nothing else comes
    /// between pieces.
    ReplayPiece {
        /// Row messages, cut anywhere between two messages.
        payload: &'a [u8],
    },
    /// Recovery: this transaction is committed. The pieces since the last other message are its
    /// changes.
    Replay {
        /// The transaction.
        gid: Gid,
        /// End of its commit record in the sender's log.
        lsn: Lsn,
    },
    /// Recovery: this transaction is committed. Its changes were sent before, with
    /// [`StreamMessage::Held`] in this stream.
    ReplayPrepared {
        /// The transaction.
        gid: Gid,
        /// End of its commit record in the sender's log.
        lsn: Lsn,
    },
    /// Recovery: the pieces since the last other message are nobody else's business.
    ReplayDiscard,
    /// Recovery: the sender held this transaction prepared when it wrote the ParallelSafe record
    /// that follows. The pieces since the last other message are its changes.
    Held {
        /// The transaction.
        gid: Gid,
        /// The sender had accepted abort.
        accepted_abort: bool,
    },
    /// Recovery: as [`StreamMessage::Held`], but this is not news: it was replayed in this stream,
    /// or sent as held with an earlier ParallelSafe, or committed before this stream's beginning.
    HeldElsewhere {
        /// The transaction.
        gid: Gid,
        /// The sender had accepted abort.
        accepted_abort: bool,
    },
    /// Recovery: as [`StreamMessage::Held`], but its changes cannot be read any more: it changed
    /// the schema, and the sender has rolled it back since.
    HeldGone {
        /// The transaction.
        gid: Gid,
        /// The sender had accepted abort.
        accepted_abort: bool,
    },
    /// Recovery: the sender's ParallelSafe record; what it held came right before.
    ParallelSafe {
        /// The generation it speaks of.
        num: GenNum,
        /// End of the record in the sender's log.
        lsn: Lsn,
    },
    /// Recovery: the sender has announced this transaction of its own. Who will have to vote on it
    /// must not confirm the sender's log beyond this place.
    Announced {
        /// The transaction.
        gid: Gid,
        /// End of the announcement in the sender's log.
        lsn: Lsn,
    },
    /// Recovery: a syncpoint of the sender.
    Syncpoint {
        /// End of its record in the sender's log.
        lsn: Lsn,
        /// By origin, below which number the sender has finished everything.
        below: [Xid; MAX_NODES as usize],
    },
}

/// The committed subtransactions of a transaction, as they travel: sorted, 4 bytes each.
///
/// Changes of those that are not here were rolled back, whatever was sent of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Children<'a>(&'a [u8]);

impl<'a> Children<'a> {
    /// Takes bytes that [`Self::encode`] made.
    ///
    /// # Errors
    /// When they are not whole numbers in growing order.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let (numbers, rest) = bytes.as_chunks::<4>();
        let error = Reader::new(bytes).error(DecodeErrorKind::Range("subtransactions"));
        if rest.is_empty() && numbers.is_sorted_by(|a, b| a < b) {
            Ok(Self(bytes))
        } else {
            Err(error)
        }
    }

    /// Appends the numbers, sorting them.
    pub fn encode(mut numbers: Vec<u32>, out: &mut Vec<u8>) {
        numbers.sort_unstable();
        numbers.dedup();
        out.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
    }

    /// The bytes.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.0
    }

    /// The numbers, in growing order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.0.as_chunks::<4>().0.iter().map(|number| u32::from_be_bytes(*number))
    }
}

const PIECE: u8 = b'T';
const EARLY: u8 = b'E';
const EARLY_ABORT: u8 = b'e';
const EARLY_DONE: u8 = b'P';
const UNAVAILABLE: u8 = b'X';
const UNSHIPPABLE: u8 = b'U';
const COMMIT_MARK: u8 = b'C';
const PLACE: u8 = b'L';
const REPLAY_PIECE: u8 = b'r';
const REPLAY: u8 = b'R';
const REPLAY_PREPARED: u8 = b'Q';
const REPLAY_DISCARD: u8 = b'D';
const HELD: u8 = b'H';
const HELD_ELSEWHERE: u8 = b'h';
const HELD_GONE: u8 = b'G';
const PARALLEL_SAFE: u8 = b'S';
const ANNOUNCED: u8 = b'A';
const SYNCPOINT: u8 = b'Y';
const FIRST: u8 = 1;
const LAST: u8 = 2;

/// Length of a [`StreamMessage::CommitMark`].
pub const MARK_BYTES: usize = 1 + 17 + 8;

/// The messages of one packet: marks, and at most one other message behind them.
#[derive(Clone, Debug)]
pub struct Packet<'a>(Option<&'a [u8]>);

impl<'a> Packet<'a> {
    /// What came in one packet.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(Some(bytes))
    }
}

impl<'a> Iterator for Packet<'a> {
    type Item = Result<StreamMessage<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.0.take()?;
        let end = if bytes.first() == Some(&COMMIT_MARK) { MARK_BYTES } else { bytes.len() };
        let (message, rest) = bytes.split_at_checked(end).unwrap_or((bytes, &[]));
        let message = StreamMessage::decode(message);
        self.0 = (message.is_ok() && !rest.is_empty()).then_some(rest);
        Some(message)
    }
}

/// A walsender's message about its place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Up to where it has read.
    pub end: Lsn,
    /// It wants an answer at once.
    pub wants_answer: bool,
}

impl Keepalive {
    /// Reads what follows the letter that says what it is.
    ///
    /// # Errors
    /// When that is too short.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let end = Lsn(r.u64()?);
        let _sent_at = r.u64()?;
        Ok(Self { end, wants_answer: r.u8()? != 0 })
    }

    /// Up to where the marks of all commits have come before this message. A walsender asks for an
    /// answer wherever it is, also right behind a commit whose mark still waits for others to
    /// travel with; it tells its place unasked only when it has nothing left to read, and then no
    /// mark waits. While its server shuts down it does not: see [`StreamMessage::Place`].
    #[must_use]
    pub fn marked(&self) -> Option<Lsn> {
        (!self.wants_answer).then_some(self.end)
    }
}

impl<'a> StreamMessage<'a> {
    /// Appends the message's bytes; a payload comes last and may be appended piecemeal after.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer::new(out);
        match self {
            Self::Piece { gid, lsn, first, last, payload } => {
                w.u8(PIECE);
                gid.encode(&mut w);
                w.u64(lsn.0);
                w.u8((u8::from(*first) * FIRST) | (u8::from(*last) * LAST));
                w.raw(payload);
            }
            Self::Early { xid, payload } => {
                w.u8(EARLY);
                w.u32(*xid);
                w.raw(payload);
            }
            Self::EarlyAbort { xid } => {
                w.u8(EARLY_ABORT);
                w.u32(*xid);
            }
            Self::EarlyDone { gid, xid, lsn, pieces, children } => {
                w.u8(EARLY_DONE);
                gid.encode(&mut w);
                w.u32(*xid);
                w.u64(lsn.0);
                w.u32(*pieces);
                w.raw(children.bytes());
            }
            Self::Unavailable { gid, lsn } => at(&mut w, UNAVAILABLE, gid, *lsn),
            Self::Unshippable { gid, lsn, why } => {
                at(&mut w, UNSHIPPABLE, gid, *lsn);
                w.str(why);
            }
            Self::CommitMark { gid, lsn } => at(&mut w, COMMIT_MARK, gid, *lsn),
            Self::Place { lsn } => {
                w.u8(PLACE);
                w.u64(lsn.0);
            }
            Self::ReplayPiece { payload } => {
                w.u8(REPLAY_PIECE);
                w.raw(payload);
            }
            Self::Replay { gid, lsn } => at(&mut w, REPLAY, gid, *lsn),
            Self::ReplayPrepared { gid, lsn } => at(&mut w, REPLAY_PREPARED, gid, *lsn),
            Self::ReplayDiscard => w.u8(REPLAY_DISCARD),
            Self::Held { gid, accepted_abort } => held(&mut w, HELD, gid, *accepted_abort),
            Self::HeldElsewhere { gid, accepted_abort } => {
                held(&mut w, HELD_ELSEWHERE, gid, *accepted_abort);
            }
            Self::HeldGone { gid, accepted_abort } => held(&mut w, HELD_GONE, gid, *accepted_abort),
            Self::Announced { gid, lsn } => {
                w.u8(ANNOUNCED);
                gid.encode(&mut w);
                w.u64(lsn.0);
            }
            Self::ParallelSafe { num, lsn } => {
                w.u8(PARALLEL_SAFE);
                w.u64(num.0);
                w.u64(lsn.0);
            }
            Self::Syncpoint { lsn, below } => {
                w.u8(SYNCPOINT);
                w.u64(lsn.0);
                below.iter().for_each(|xid| w.u64(xid.0));
            }
        }
    }

    /// Reads one message that fills `bytes`.
    ///
    /// # Errors
    /// When the bytes are not exactly one message.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let unknown = r.error(DecodeErrorKind::Unknown("stream message tag"));
        let tag = r.u8()?;
        let message = match tag {
            PIECE => {
                let gid = Gid::decode(&mut r)?;
                let lsn = Lsn(r.u64()?);
                let range = r.error(DecodeErrorKind::Range("piece flags"));
                let flags = r.u8()?;
                if flags & !(FIRST | LAST) != 0 {
                    return Err(range);
                }
                let payload = r.take(r.remaining())?;
                let (first, last) = (flags & FIRST != 0, flags & LAST != 0);
                Self::Piece { gid, lsn, first, last, payload }
            }
            EARLY => Self::Early { xid: r.u32()?, payload: r.take(r.remaining())? },
            EARLY_ABORT => Self::EarlyAbort { xid: r.u32()? },
            EARLY_DONE => {
                let (gid, xid) = (Gid::decode(&mut r)?, r.u32()?);
                let (lsn, pieces) = (Lsn(r.u64()?), r.u32()?);
                let children = Children::parse(r.take(r.remaining())?)?;
                Self::EarlyDone { gid, xid, lsn, pieces, children }
            }
            UNAVAILABLE => Self::Unavailable { gid: Gid::decode(&mut r)?, lsn: Lsn(r.u64()?) },
            UNSHIPPABLE => {
                let gid = Gid::decode(&mut r)?;
                Self::Unshippable { gid, lsn: Lsn(r.u64()?), why: r.str()? }
            }
            COMMIT_MARK => Self::CommitMark { gid: Gid::decode(&mut r)?, lsn: Lsn(r.u64()?) },
            PLACE => Self::Place { lsn: Lsn(r.u64()?) },
            _ => Self::decode_recovery(tag, &mut r)?.ok_or(unknown)?,
        };
        r.finish()?;
        Ok(message)
    }

    /// The messages that recovery alone gets; `None` if it is none of them.
    fn decode_recovery(tag: u8, r: &mut Reader<'a>) -> Result<Option<Self>, DecodeError> {
        let gid = |r: &mut Reader<'a>| Gid::decode(r);
        Ok(Some(match tag {
            REPLAY_PIECE => Self::ReplayPiece { payload: r.take(r.remaining())? },
            REPLAY => Self::Replay { gid: gid(r)?, lsn: Lsn(r.u64()?) },
            REPLAY_PREPARED => Self::ReplayPrepared { gid: gid(r)?, lsn: Lsn(r.u64()?) },
            REPLAY_DISCARD => Self::ReplayDiscard,
            HELD => Self::Held { gid: gid(r)?, accepted_abort: flag(r)? },
            HELD_ELSEWHERE => Self::HeldElsewhere { gid: gid(r)?, accepted_abort: flag(r)? },
            HELD_GONE => Self::HeldGone { gid: gid(r)?, accepted_abort: flag(r)? },
            ANNOUNCED => Self::Announced { gid: gid(r)?, lsn: Lsn(r.u64()?) },
            PARALLEL_SAFE => Self::ParallelSafe { num: GenNum(r.u64()?), lsn: Lsn(r.u64()?) },
            SYNCPOINT => {
                let lsn = Lsn(r.u64()?);
                let mut below = [Xid(0); MAX_NODES as usize];
                for xid in &mut below {
                    *xid = Xid(r.u64()?);
                }
                Self::Syncpoint { lsn, below }
            }
            _ => return Ok(None),
        }))
    }
}

/// A transaction and a place in a log.
fn at(w: &mut Writer<'_>, tag: u8, gid: &Gid, lsn: Lsn) {
    w.u8(tag);
    gid.encode(w);
    w.u64(lsn.0);
}

/// A transaction and whether abort was accepted.
fn held(w: &mut Writer<'_>, tag: u8, gid: &Gid, accepted_abort: bool) {
    w.u8(tag);
    gid.encode(w);
    w.u8(u8::from(accepted_abort));
}

fn flag(r: &mut Reader<'_>) -> Result<bool, DecodeError> {
    let range = r.error(DecodeErrorKind::Range("flag"));
    match r.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mtm_core::NodeId;
    use proptest::prelude::*;

    /// How many kinds of messages there are, and one of each.
    const KINDS: u8 = 18;

    fn one<'a>(
        which: u8,
        n: u64,
        flags: u8,
        payload: &'a [u8],
        subs: &'a [u8],
    ) -> StreamMessage<'a> {
        let gid = Gid { origin: NodeId::new(3).unwrap(), xid: Xid(n), generation: GenNum(2) };
        let (lsn, yes, xid) = (Lsn(!n), flags & 1 != 0, n as u32);
        let children = Children::parse(subs).unwrap();
        match which {
            0 => StreamMessage::Piece { gid, lsn, first: yes, last: flags & 2 != 0, payload },
            1 => StreamMessage::Early { xid, payload },
            2 => StreamMessage::EarlyAbort { xid },
            3 => StreamMessage::EarlyDone { gid, xid, lsn, pieces: !xid, children },
            4 => StreamMessage::Unavailable { gid, lsn },
            5 => StreamMessage::Unshippable { gid, lsn, why: "no identity" },
            6 => StreamMessage::CommitMark { gid, lsn },
            7 => StreamMessage::ReplayPiece { payload },
            8 => StreamMessage::Replay { gid, lsn },
            9 => StreamMessage::ReplayPrepared { gid, lsn },
            10 => StreamMessage::ReplayDiscard,
            11 => StreamMessage::Held { gid, accepted_abort: yes },
            12 => StreamMessage::HeldElsewhere { gid, accepted_abort: yes },
            13 => StreamMessage::HeldGone { gid, accepted_abort: yes },
            14 => StreamMessage::ParallelSafe { num: GenNum(n), lsn },
            15 => StreamMessage::Announced { gid, lsn },
            16 => {
                StreamMessage::Syncpoint { lsn, below: core::array::from_fn(|i| Xid(n ^ i as u64)) }
            }
            _ => StreamMessage::Place { lsn },
        }
    }

    /// Whether the message's end is the end of its bytes, whatever they are.
    fn fills(message: &StreamMessage<'_>) -> bool {
        use StreamMessage as M;
        matches!(
            message,
            M::Piece { .. } | M::Early { .. } | M::EarlyDone { .. } | M::ReplayPiece { .. }
        )
    }

    proptest! {
        #[test]
        fn round_trips(n: u64, which in 0..KINDS, flags in 0u8..4, payload: Vec<u8>, subs: Vec<u32>) {
            let mut children = Vec::new();
            Children::encode(subs, &mut children);
            let m = one(which, n, flags, &payload, &children);
            let mut bytes = Vec::new();
            m.encode(&mut bytes);
            prop_assert_eq!(StreamMessage::decode(&bytes), Ok(m));
            if !fills(&m) {
                for cut in 0..bytes.len() {
                    prop_assert!(StreamMessage::decode(&bytes[..cut]).is_err());
                }
                bytes.push(0);
                prop_assert!(StreamMessage::decode(&bytes).is_err());
            }
        }

        #[test]
        fn kinds_have_tags_of_their_own(n: u64) {
            let mut tags: Vec<u8> = (0..KINDS)
                .map(|which| {
                    let mut bytes = Vec::new();
                    one(which, n, 0, &[], &[]).encode(&mut bytes);
                    bytes[0]
                })
                .collect();
            tags.sort_unstable();
            tags.dedup();
            prop_assert_eq!(tags.len(), usize::from(KINDS));
        }

        #[test]
        fn marks_are_small(n: u64) {
            let mut bytes = Vec::new();
            one(6, n, 0, &[], &[]).encode(&mut bytes);
            prop_assert_eq!(bytes.len(), MARK_BYTES);
        }

        #[test]
        fn marks_travel_with_others(
            marks: Vec<u64>, which in 0..KINDS, n: u64, payload: Vec<u8>, cut: usize,
        ) {
            let marks: Vec<_> = marks.iter().map(|n| one(6, *n, 0, &[], &[])).collect();
            let last = one(which, n, 0, &payload, &[]);
            let mut bytes = Vec::new();
            for message in marks.iter().chain([&last]) {
                message.encode(&mut bytes);
            }
            let all: Result<Vec<_>, _> = Packet::new(&bytes).collect();
            prop_assert_eq!(all, Ok([marks.clone(), vec![last]].concat()));
            // What is cut is marks that came whole, and then nothing or an error.
            let cut = cut % bytes.len();
            for (n, message) in Packet::new(&bytes[..cut]).enumerate() {
                match message {
                    Ok(message) if n < marks.len() => prop_assert_eq!(message, marks[n]),
                    _ => prop_assert!(n >= marks.len() || n >= cut / MARK_BYTES),
                }
            }
        }

        #[test]
        fn keepalives(end: u64, at: u64, answer: bool, more: Vec<u8>) {
            let mut bytes = [end.to_be_bytes(), at.to_be_bytes()].concat();
            prop_assert!(Keepalive::decode(&bytes).is_err());
            bytes.push(u8::from(answer));
            bytes.extend(more);
            let keepalive = Keepalive::decode(&bytes).unwrap();
            prop_assert_eq!(keepalive.end, Lsn(end));
            // One that asks may come between a commit and its mark.
            prop_assert_eq!(keepalive.marked(), if answer { None } else { Some(Lsn(end)) });
        }

        #[test]
        fn children_come_out_sorted(mut subs: Vec<u32>) {
            let mut bytes = Vec::new();
            Children::encode(subs.clone(), &mut bytes);
            subs.sort_unstable();
            subs.dedup();
            prop_assert!(Children::parse(&bytes).unwrap().iter().eq(subs));
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_have_one_form(which in 0..KINDS, tail: Vec<u8>) {
            let mut tag = Vec::new();
            one(which, 0, 0, &[], &[]).encode(&mut tag);
            for bytes in [tail.clone(), [&tag[..1], tail.as_slice()].concat()] {
                if let Ok(message) = StreamMessage::decode(&bytes) {
                    let mut again = Vec::new();
                    message.encode(&mut again);
                    prop_assert_eq!(again, bytes);
                }
            }
            let _ = Children::parse(&tail);
        }
    }
}
