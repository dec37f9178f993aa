//! Messages of the replication stream, from an output plugin to a receiver.
//!
//! Layout: one tag byte, fields in the order below, big-endian; a payload fills the rest.

use mtm_core::wire::{DecodeError, DecodeErrorKind, Reader, Writer};
use mtm_core::{Gid, Lsn};

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
    /// A transaction whose changes were sent early will never be announced.
    EarlyAbort {
        /// The transaction's number as in [`StreamMessage::Early`].
        xid: u32,
    },
    /// A transaction whose changes were sent early is announced; nothing more follows. The low
    /// half of its name's number is the one of its pieces.
    EarlyDone {
        /// The transaction's name.
        gid: Gid,
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
const FIRST: u8 = 1;
const LAST: u8 = 2;

impl<'a> StreamMessage<'a> {
    /// Appends the message's bytes; a payload comes last and may be appended piecemeal after.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer::new(out);
        match self {
            Self::Piece { gid, lsn, first, last, payload } => {
                w.u8(PIECE);
                gid.encode(&mut w);
                w.u64(lsn.0);
                w.u8(u8::from(*first) * FIRST | u8::from(*last) * LAST);
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
            Self::EarlyDone { gid, lsn, pieces, children } => {
                w.u8(EARLY_DONE);
                gid.encode(&mut w);
                w.u64(lsn.0);
                w.u32(*pieces);
                w.raw(children.bytes());
            }
            Self::Unavailable { gid, lsn } => {
                w.u8(UNAVAILABLE);
                gid.encode(&mut w);
                w.u64(lsn.0);
            }
            Self::Unshippable { gid, lsn, why } => {
                w.u8(UNSHIPPABLE);
                gid.encode(&mut w);
                w.u64(lsn.0);
                w.str(why);
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
        let message = match r.u8()? {
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
                let gid = Gid::decode(&mut r)?;
                let (lsn, pieces) = (Lsn(r.u64()?), r.u32()?);
                let children = Children::parse(r.take(r.remaining())?)?;
                Self::EarlyDone { gid, lsn, pieces, children }
            }
            UNAVAILABLE => Self::Unavailable { gid: Gid::decode(&mut r)?, lsn: Lsn(r.u64()?) },
            UNSHIPPABLE => {
                let gid = Gid::decode(&mut r)?;
                Self::Unshippable { gid, lsn: Lsn(r.u64()?), why: r.str()? }
            }
            _ => return Err(unknown),
        };
        r.finish()?;
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mtm_core::{GenNum, NodeId, Xid};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trips(
            xid: u64, at: u64, which in 0u8..6, flags in 0u8..4, payload: Vec<u8>, subs: Vec<u32>,
        ) {
            let gid = Gid { origin: NodeId::new(3).unwrap(), xid: Xid(xid), generation: GenNum(2) };
            let (lsn, payload) = (Lsn(at), payload.as_slice());
            let mut children = Vec::new();
            Children::encode(subs, &mut children);
            let m = match which {
                0 => StreamMessage::Piece { gid, lsn, first: flags & 1 != 0, last: flags & 2 != 0, payload },
                1 => StreamMessage::Early { xid: xid as u32, payload },
                2 => StreamMessage::EarlyAbort { xid: xid as u32 },
                3 => StreamMessage::EarlyDone {
                    gid, lsn, pieces: xid as u32, children: Children::parse(&children).unwrap(),
                },
                4 => StreamMessage::Unavailable { gid, lsn },
                _ => StreamMessage::Unshippable { gid, lsn, why: "no identity" },
            };
            let mut bytes = Vec::new();
            m.encode(&mut bytes);
            prop_assert_eq!(StreamMessage::decode(&bytes), Ok(m));
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
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = StreamMessage::decode(&bytes);
            let _ = Children::parse(&bytes);
        }
    }
}
