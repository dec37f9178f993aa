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

/// PostgreSQL's 64-bit transaction number (epoch and xid), unique on its node for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Xid(pub u64);

impl fmt::Display for Xid {
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
