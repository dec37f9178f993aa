//! Messages between nodes about transactions, and their bytes.
//!
//! A message travels at most once: whoever waits for an answer asks again. Layout: one tag byte,
//! then the fields in the order of the variants, big-endian, text with a 4-byte length.

use mtm_core::wire::{DecodeError, DecodeErrorKind, Reader, Writer};
use mtm_core::{Gid, NodeSet};
use mtm_paxos::commit::Decree;

/// Longest text of a refusal, in bytes; longer text is cut at a character.
pub const MAX_TEXT: usize = 480;

/// Why a member refused a transaction, in PostgreSQL's terms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal<'a> {
    /// Five characters, `40001` say.
    pub sqlstate: [u8; 5],
    /// Primary message.
    pub message: &'a str,
    /// Detail, may be empty.
    pub detail: &'a str,
}

/// What a node knows about a transaction it is asked about.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Knowledge {
    /// It is decided.
    Decided(Decree),
    /// It is not decided yet; ask again later.
    Undecided,
}

/// A message from one node to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message<'a> {
    /// The sender lives; peers it hears from.
    Heartbeat {
        /// Peers the sender is connected with, itself included.
        connected: NodeSet,
        /// Whether the sender takes transactions.
        ready: bool,
    },
    /// The sender has durably prepared the transaction.
    Prepared(Gid),
    /// The sender will not prepare the transaction.
    Refused(Gid, Refusal<'a>),
    /// The outcome is decided.
    Decided(Gid, Decree),
    /// The sender has committed the transaction.
    Committed(Gid),
    /// Accept abort of the transaction.
    AskAbort(Gid),
    /// The sender has durably accepted abort.
    AbortAccepted(Gid),
    /// What is the outcome of the transaction?
    Query(Gid),
    /// Answer to `Query` that is no decision.
    Undecided(Gid),
}

const HEARTBEAT: u8 = b'H';
const PREPARED: u8 = b'P';
const REFUSED: u8 = b'R';
const COMMIT: u8 = b'C';
const ABORT: u8 = b'A';
const COMMITTED: u8 = b'c';
const ASK_ABORT: u8 = b'x';
const ABORT_ACCEPTED: u8 = b'a';
const QUERY: u8 = b'?';
const UNDECIDED: u8 = b'u';

impl<'a> Message<'a> {
    /// Appends the message's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer::new(out);
        match self {
            Self::Heartbeat { connected, ready } => {
                w.u8(HEARTBEAT);
                w.u64(connected.bits());
                w.u8(u8::from(*ready));
            }
            Self::Refused(gid, refusal) => {
                w.u8(REFUSED);
                gid.encode(&mut w);
                refusal.encode(&mut w);
            }
            Self::Prepared(gid) => tagged(&mut w, PREPARED, gid),
            Self::Decided(gid, Decree::Commit) => tagged(&mut w, COMMIT, gid),
            Self::Decided(gid, Decree::Abort) => tagged(&mut w, ABORT, gid),
            Self::Committed(gid) => tagged(&mut w, COMMITTED, gid),
            Self::AskAbort(gid) => tagged(&mut w, ASK_ABORT, gid),
            Self::AbortAccepted(gid) => tagged(&mut w, ABORT_ACCEPTED, gid),
            Self::Query(gid) => tagged(&mut w, QUERY, gid),
            Self::Undecided(gid) => tagged(&mut w, UNDECIDED, gid),
        }
    }

    /// Reads one message that fills `bytes`.
    ///
    /// # Errors
    /// When the bytes are not exactly one message.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let unknown = r.error(DecodeErrorKind::Unknown("message tag"));
        let message = match r.u8()? {
            HEARTBEAT => {
                let range = r.error(DecodeErrorKind::Range("node set"));
                let connected = NodeSet::from_bits(r.u64()?).ok_or(range)?;
                let range = r.error(DecodeErrorKind::Range("flag"));
                let ready = match r.u8()? {
                    0 => false,
                    1 => true,
                    _ => return Err(range),
                };
                Self::Heartbeat { connected, ready }
            }
            REFUSED => {
                let gid = Gid::decode(&mut r)?;
                Self::Refused(gid, Refusal::decode(&mut r)?)
            }
            PREPARED => Self::Prepared(Gid::decode(&mut r)?),
            COMMIT => Self::Decided(Gid::decode(&mut r)?, Decree::Commit),
            ABORT => Self::Decided(Gid::decode(&mut r)?, Decree::Abort),
            COMMITTED => Self::Committed(Gid::decode(&mut r)?),
            ASK_ABORT => Self::AskAbort(Gid::decode(&mut r)?),
            ABORT_ACCEPTED => Self::AbortAccepted(Gid::decode(&mut r)?),
            QUERY => Self::Query(Gid::decode(&mut r)?),
            UNDECIDED => Self::Undecided(Gid::decode(&mut r)?),
            _ => return Err(unknown),
        };
        r.finish()?;
        Ok(message)
    }
}

fn tagged(w: &mut Writer<'_>, tag: u8, gid: &Gid) {
    w.u8(tag);
    gid.encode(w);
}

#[cfg(test)]
mod tests {
    use super::*;
    use mtm_core::{GenNum, NodeId, Xid};
    use proptest::prelude::*;

    fn any_gid() -> impl Strategy<Value = Gid> {
        (1u8..=16, any::<u64>(), any::<u64>()).prop_map(|(n, x, g)| Gid {
            origin: NodeId::new(n).unwrap(),
            xid: Xid(x),
            generation: GenNum(g),
        })
    }

    proptest! {
        #[test]
        fn messages_round_trip(gid in any_gid(), which in 0u8..10, text in ".{0,40}", nodes in 0u64..1 << 16) {
            let m = match which {
                0 => Message::Heartbeat { connected: NodeSet::from_bits(nodes).unwrap(), ready: nodes % 2 == 0 },
                1 => Message::Prepared(gid),
                2 => Message::Refused(gid, Refusal { sqlstate: *b"40001", message: &text, detail: "d" }),
                3 => Message::Decided(gid, Decree::Commit),
                4 => Message::Decided(gid, Decree::Abort),
                5 => Message::Committed(gid),
                6 => Message::AskAbort(gid),
                7 => Message::AbortAccepted(gid),
                8 => Message::Query(gid),
                _ => Message::Undecided(gid),
            };
            let mut bytes = Vec::new();
            m.encode(&mut bytes);
            prop_assert_eq!(Message::decode(&bytes), Ok(m));
            prop_assert!(Message::decode(&bytes[..bytes.len() - 1]).is_err());
            bytes.push(0);
            prop_assert!(Message::decode(&bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Message::decode(&bytes);
        }
    }
}
