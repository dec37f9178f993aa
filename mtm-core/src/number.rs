//! Numbers that order things: generations, transactions, ballots.

use crate::NodeId;
use core::fmt;

/// Number of a generation (membership epoch). 0 is "none yet".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct GenNum(pub u64);

impl fmt::Display for GenNum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a transaction among those of its origin, part of its [`crate::Gid`]: announcements are
/// numbered consecutively, in the order in which they are stamped (specs/adr/0004). Not
/// PostgreSQL's: that is [`LocalXid`]. Only users' own two-phase transactions bear PostgreSQL's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Xid(pub u64);

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// PostgreSQL's 64-bit transaction number (epoch and xid) on one server, which that server's
/// commit log knows. 0 is none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct LocalXid(pub u64);

impl LocalXid {
    /// The number as it is in the log and in rows: without its epoch.
    #[must_use]
    pub const fn short(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Display for LocalXid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A Paxos ballot: rounds first, then the proposer's number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ballot {
    /// Higher rounds win.
    pub round: u64,
    /// Proposer; makes ballots of one round different.
    pub node: NodeId,
}
