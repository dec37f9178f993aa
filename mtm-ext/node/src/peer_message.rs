//! Messages about transactions between the nodes' machines, and their bytes.
//!
//! A message may be lost, doubled, delayed and reordered; whoever waits asks again.

use mtm_core::wire::{DecodeError, DecodeErrorKind, Reader, Writer};
use mtm_core::{GenNum, Gid, MAX_NODES, Xid};
use mtm_paxos::commit::{Decree, Report};

/// A message from one node's machine to another's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PeerMessage {
    /// The sender has durably prepared the transaction.
    Prepared(Gid),
    /// The sender will not prepare the transaction in its generation.
    Refused(Gid),
    /// The origin misses the receiver's vote.
    AskVote(Gid),
    /// The outcome is decided.
    Decided(Gid, Decree),
    /// The sender has committed the transaction.
    Committed(Gid),
    /// Accept abort in the transaction's own generation.
    AskAbort(Gid),
    /// The sender has durably accepted abort in the transaction's own generation.
    AbortAccepted(Gid),
    /// What is the outcome of the transaction?
    Query(Gid),
    /// Answer to `Query` that is no decision.
    Undecided(Gid),
    /// The proposer of this generation asks what the receiver has of the transaction.
    AskReport(Gid, GenNum),
    /// Answer of a member that is ONLINE in this generation.
    Report(Gid, GenNum, Report),
    /// The proposer of this generation asks to accept abort in it.
    AskAbortIn(Gid, GenNum),
    /// The sender, ONLINE in this generation, has durably accepted abort.
    AbortAcceptedIn(Gid, GenNum),
    /// The sender, ONLINE in this generation, has finished everything of each origin below these
    /// numbers.
    Progress {
        /// The generation.
        num: GenNum,
        /// The sender has transactions to forget and wants to know the receiver's progress.
        busy: bool,
        /// By origin.
        below: [Xid; MAX_NODES as usize],
    },
}

const REPORTS: [(u8, Report); 6] = [
    (b'h', Report::Holds),
    (b'l', Report::Lacks),
    (b'a', Report::AcceptedAbort),
    (b'C', Report::Committed),
    (b'A', Report::Aborted),
    (b'f', Report::Forgotten),
];

impl PeerMessage {
    /// Appends the message's bytes: a tag, the gid, and what the variant adds.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer::new(out);
        if let Self::Progress { num, busy, below } = self {
            w.u8(b'w');
            w.u64(num.0);
            w.u8(u8::from(*busy));
            for xid in below {
                w.u64(xid.0);
            }
            return;
        }
        let mut tagged = |tag: u8, gid: &Gid, generation: Option<GenNum>| {
            w.u8(tag);
            gid.encode(&mut w);
            if let Some(generation) = generation {
                w.u64(generation.0);
            }
        };
        match self {
            Self::Prepared(gid) => tagged(b'P', gid, None),
            Self::Refused(gid) => tagged(b'r', gid, None),
            Self::AskVote(gid) => tagged(b'v', gid, None),
            Self::Decided(gid, Decree::Commit) => tagged(b'C', gid, None),
            Self::Decided(gid, Decree::Abort) => tagged(b'A', gid, None),
            Self::Committed(gid) => tagged(b'c', gid, None),
            Self::AskAbort(gid) => tagged(b'x', gid, None),
            Self::AbortAccepted(gid) => tagged(b'a', gid, None),
            Self::Query(gid) => tagged(b'?', gid, None),
            Self::Undecided(gid) => tagged(b'u', gid, None),
            Self::AskReport(gid, g) => tagged(b's', gid, Some(*g)),
            Self::AskAbortIn(gid, g) => tagged(b'X', gid, Some(*g)),
            Self::AbortAcceptedIn(gid, g) => tagged(b'Y', gid, Some(*g)),
            Self::Report(gid, g, report) => {
                tagged(b'S', gid, Some(*g));
                let tag = REPORTS.iter().find(|(_, r)| r == report).map_or(b'?', |(t, _)| *t);
                w.u8(tag);
            }
            Self::Progress { .. } => {}
        }
    }

    /// Reads one message that fills `bytes`.
    ///
    /// # Errors
    /// When the bytes are not exactly one message.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let unknown = r.error(DecodeErrorKind::Unknown("message tag"));
        let tag = r.u8()?;
        if tag == b'w' {
            let progress = Self::decode_progress(&mut r)?;
            r.finish()?;
            return Ok(progress);
        }
        let gid = Gid::decode(&mut r)?;
        let message = match tag {
            b'P' => Self::Prepared(gid),
            b'r' => Self::Refused(gid),
            b'v' => Self::AskVote(gid),
            b'C' => Self::Decided(gid, Decree::Commit),
            b'A' => Self::Decided(gid, Decree::Abort),
            b'c' => Self::Committed(gid),
            b'x' => Self::AskAbort(gid),
            b'a' => Self::AbortAccepted(gid),
            b'?' => Self::Query(gid),
            b'u' => Self::Undecided(gid),
            b's' => Self::AskReport(gid, GenNum(r.u64()?)),
            b'X' => Self::AskAbortIn(gid, GenNum(r.u64()?)),
            b'Y' => Self::AbortAcceptedIn(gid, GenNum(r.u64()?)),
            b'S' => {
                let generation = GenNum(r.u64()?);
                let range = r.error(DecodeErrorKind::Unknown("report"));
                let tag = r.u8()?;
                let report = REPORTS.iter().find(|(t, _)| *t == tag).ok_or(range)?.1;
                Self::Report(gid, generation, report)
            }
            _ => return Err(unknown),
        };
        r.finish()?;
        Ok(message)
    }

    fn decode_progress(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let num = GenNum(r.u64()?);
        let range = r.error(DecodeErrorKind::Range("flag"));
        let busy = match r.u8()? {
            0 => false,
            1 => true,
            _ => return Err(range),
        };
        let mut below = [Xid(0); MAX_NODES as usize];
        for xid in &mut below {
            *xid = Xid(r.u64()?);
        }
        Ok(Self::Progress { num, busy, below })
    }

    /// The transaction it is about, if it is about one.
    pub const fn gid(&self) -> Option<Gid> {
        match self {
            Self::Prepared(gid)
            | Self::Refused(gid)
            | Self::AskVote(gid)
            | Self::Decided(gid, _)
            | Self::Committed(gid)
            | Self::AskAbort(gid)
            | Self::AbortAccepted(gid)
            | Self::Query(gid)
            | Self::Undecided(gid)
            | Self::AskReport(gid, _)
            | Self::Report(gid, ..)
            | Self::AskAbortIn(gid, _)
            | Self::AbortAcceptedIn(gid, _) => Some(*gid),
            Self::Progress { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mtm_core::NodeId;
    use proptest::prelude::*;

    fn any_message() -> impl Strategy<Value = PeerMessage> {
        (1u8..=16, any::<u64>(), any::<u64>(), any::<u64>(), 0u8..15, 0usize..6).prop_map(
            |(n, x, g, in_g, which, report)| {
                let origin = NodeId::new(n).unwrap();
                let gid = Gid { origin, xid: Xid(x), generation: GenNum(g) };
                let g = GenNum(in_g);
                match which {
                    0 => PeerMessage::Prepared(gid),
                    1 => PeerMessage::Refused(gid),
                    2 => PeerMessage::AskVote(gid),
                    3 => PeerMessage::Decided(gid, Decree::Commit),
                    4 => PeerMessage::Decided(gid, Decree::Abort),
                    5 => PeerMessage::Committed(gid),
                    6 => PeerMessage::AskAbort(gid),
                    7 => PeerMessage::AbortAccepted(gid),
                    8 => PeerMessage::Query(gid),
                    9 => PeerMessage::Undecided(gid),
                    10 => PeerMessage::AskReport(gid, g),
                    11 => PeerMessage::AskAbortIn(gid, g),
                    12 => PeerMessage::AbortAcceptedIn(gid, g),
                    13 => {
                        let mut below = [Xid(0); MAX_NODES as usize];
                        below[report] = Xid(x);
                        PeerMessage::Progress { num: g, busy: n % 2 == 0, below }
                    }
                    _ => PeerMessage::Report(gid, g, REPORTS[report].1),
                }
            },
        )
    }

    proptest! {
        #[test]
        fn messages_round_trip_and_cut_ones_are_errors(m in any_message()) {
            let mut bytes = Vec::new();
            m.encode(&mut bytes);
            prop_assert_eq!(PeerMessage::decode(&bytes), Ok(m));
            prop_assert!(PeerMessage::decode(&bytes[..bytes.len() - 1]).is_err());
            bytes.push(0);
            prop_assert!(PeerMessage::decode(&bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = PeerMessage::decode(&bytes);
        }
    }
}
