//! The proposer of a later generation: settles what an older generation left undecided.
//!
//! Design section 2, "After a generation change"; TLA+ `Respond`, `ResolveCommit`,
//! `ResolveAbort`, `ResAccept`, `ResolveAbortDone`. Nothing here needs to survive a restart: a
//! member that is ONLINE in the generation never takes a transaction it lacked and never loses
//! one it held without a decision, so a second attempt can only repeat the first one's outcome.

use super::Decree;
use mtm_core::{GenNum, NodeId, NodeSet};

/// What a member, ONLINE in the settling generation, has of the transaction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Report {
    /// It can still commit it, also after a crash.
    Holds,
    /// It cannot, and never will in this generation.
    Lacks,
    /// It has accepted abort.
    AcceptedAbort,
    /// It knows that commit is decided.
    Committed,
    /// It knows that abort is decided.
    Aborted,
    /// It has forgotten: everyone had finished the transaction. Not the same as `Lacks`.
    Forgotten,
}

/// What the driver must do after an input.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SettlementStep {
    /// Nothing.
    Nothing,
    /// Ask these members to accept abort in this generation.
    AskAbort(NodeSet),
    /// It is decided; tell everyone who asked.
    Decided(Decree),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Phase {
    Collecting,
    Aborting,
    Done(Decree),
}

/// One transaction being settled by the proposer of a generation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Settlement {
    generation: GenNum,
    members: NodeSet,
    holds: NodeSet,
    accepted_abort: NodeSet,
    phase: Phase,
}

impl Settlement {
    /// Starts asking the members of `generation`, of which the driver is the proposer.
    pub const fn new(generation: GenNum, members: NodeSet) -> Self {
        Self {
            generation,
            members,
            holds: NodeSet::EMPTY,
            accepted_abort: NodeSet::EMPTY,
            phase: Phase::Collecting,
        }
    }

    /// The settling generation.
    pub const fn generation(&self) -> GenNum {
        self.generation
    }

    /// The outcome, once decided.
    pub const fn decree(&self) -> Option<Decree> {
        match self.phase {
            Phase::Done(decree) => Some(decree),
            Phase::Collecting | Phase::Aborting => None,
        }
    }

    /// Members that still have to report.
    pub const fn missing_reports(&self) -> NodeSet {
        match self.phase {
            Phase::Collecting => self.members.difference(self.holds),
            Phase::Aborting | Phase::Done(_) => NodeSet::EMPTY,
        }
    }

    /// Members that still have to accept abort.
    pub const fn missing_acceptances(&self) -> NodeSet {
        match self.phase {
            Phase::Aborting => self.members.difference(self.accepted_abort),
            Phase::Collecting | Phase::Done(_) => NodeSet::EMPTY,
        }
    }

    /// A member's report, made while it was ONLINE in this generation.
    pub fn report(&mut self, from: NodeId, report: Report) -> SettlementStep {
        if !self.members.contains(from) || self.decree().is_some() {
            return SettlementStep::Nothing;
        }
        match report {
            Report::Committed => self.done(Decree::Commit),
            Report::Aborted => self.done(Decree::Abort),
            Report::Forgotten => SettlementStep::Nothing,
            Report::Lacks | Report::AcceptedAbort if self.phase == Phase::Collecting => {
                self.phase = Phase::Aborting;
                SettlementStep::AskAbort(self.members)
            }
            Report::Lacks | Report::AcceptedAbort => SettlementStep::Nothing,
            Report::Holds => {
                self.holds.insert(from);
                // Once abort is proposed in this ballot, no other value may be.
                if self.phase == Phase::Collecting && self.holds == self.members {
                    return self.done(Decree::Commit);
                }
                SettlementStep::Nothing
            }
        }
    }

    /// A member, ONLINE in this generation, has durably accepted abort.
    pub fn abort_accepted(&mut self, from: NodeId) -> SettlementStep {
        if self.phase != Phase::Aborting || !self.members.contains(from) {
            return SettlementStep::Nothing;
        }
        self.accepted_abort.insert(from);
        if self.accepted_abort == self.members {
            return self.done(Decree::Abort);
        }
        SettlementStep::Nothing
    }

    const fn done(&mut self, decree: Decree) -> SettlementStep {
        self.phase = Phase::Done(decree);
        SettlementStep::Decided(decree)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId::new(n).expect("small")
    }

    fn settlement() -> Settlement {
        Settlement::new(GenNum(5), NodeSet::first(2))
    }

    #[test]
    fn what_all_members_hold_commits() {
        let mut s = settlement();
        assert_eq!(s.report(node(1), Report::Holds), SettlementStep::Nothing);
        assert_eq!(s.report(node(3), Report::Lacks), SettlementStep::Nothing);
        assert_eq!(s.report(node(2), Report::Holds), SettlementStep::Decided(Decree::Commit));
    }

    #[test]
    fn what_one_member_lacks_aborts_once_all_have_accepted_it() {
        let mut s = settlement();
        s.report(node(1), Report::Holds);
        assert_eq!(s.report(node(2), Report::Lacks), SettlementStep::AskAbort(NodeSet::first(2)));
        assert_eq!(s.report(node(2), Report::Holds), SettlementStep::Nothing);
        assert_eq!(s.abort_accepted(node(1)), SettlementStep::Nothing);
        assert_eq!(s.abort_accepted(node(2)), SettlementStep::Decided(Decree::Abort));
    }

    #[test]
    fn who_has_forgotten_has_said_nothing() {
        let mut s = settlement();
        s.report(node(1), Report::Holds);
        assert_eq!(s.report(node(2), Report::Forgotten), SettlementStep::Nothing);
        assert_eq!(s.decree(), None);
    }
}
