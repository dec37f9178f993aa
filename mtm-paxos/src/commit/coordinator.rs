//! The transaction's own node: collects votes and decides.

use super::{Decree, Report};
use mtm_core::{Gid, NodeId, NodeSet};

/// Where the coordinator stands. Only the transitions in [`Coordinator`]'s methods exist.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum CoordinatorState {
    /// Votes are being collected.
    Voting,
    /// Votes are no longer accepted; the acceptance of abort is not durable yet.
    AbortPending,
    /// Abort is durably accepted here and the members are being asked for the same.
    Aborting,
    /// Every member has durably accepted abort.
    Aborted,
    /// Every member has voted yes; the commit record is not durable yet.
    CommitDecided,
    /// The commit record is durable; members are told.
    Committed,
    /// The outcome is left to others: the client is told that it is unknown.
    GivenUp,
}

/// What the driver must do after an input.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CoordinatorStep {
    /// Nothing.
    Nothing,
    /// A member refused: call [`Coordinator::start_abort`].
    Refused,
    /// Make the acceptance of abort durable, then call [`Coordinator::abort_durable`].
    PersistAbort,
    /// Ask these members to accept abort.
    AskAbort(NodeSet),
    /// Tell these members that abort is decided; roll back; tell the client.
    TellAbort(NodeSet),
    /// Commit locally, make that durable, then call [`Coordinator::commit_durable`].
    Commit,
    /// Tell these members that commit is decided.
    TellCommit(NodeSet),
    /// Every member has committed.
    AllCommitted,
}

/// One transaction on its origin.
///
/// The origin is a member too: its vote is the durable announcement.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Coordinator {
    gid: Gid,
    members: NodeSet,
    state: CoordinatorState,
    accepted_commit: NodeSet,
    accepted_abort: NodeSet,
    committed: NodeSet,
}

impl Coordinator {
    /// A transaction that is about to be announced to `members`, which include the origin.
    pub const fn new(gid: Gid, members: NodeSet) -> Self {
        Self {
            gid,
            members: members.with(gid.origin),
            state: CoordinatorState::Voting,
            accepted_commit: NodeSet::EMPTY,
            accepted_abort: NodeSet::EMPTY,
            committed: NodeSet::EMPTY,
        }
    }

    /// The transaction's name.
    pub const fn gid(&self) -> Gid {
        self.gid
    }

    /// Where the coordinator stands.
    pub const fn state(&self) -> CoordinatorState {
        self.state
    }

    /// Members whose vote or answer is still missing in this state.
    pub const fn missing(&self) -> NodeSet {
        let have = match self.state {
            CoordinatorState::Voting => self.accepted_commit,
            CoordinatorState::AbortPending | CoordinatorState::Aborting => self.accepted_abort,
            CoordinatorState::Committed => self.committed,
            CoordinatorState::Aborted
            | CoordinatorState::CommitDecided
            | CoordinatorState::GivenUp => self.members,
        };
        self.members.difference(have)
    }

    /// The decided outcome, if there is one.
    pub const fn decree(&self) -> Option<Decree> {
        match self.state {
            CoordinatorState::CommitDecided | CoordinatorState::Committed => Some(Decree::Commit),
            CoordinatorState::Aborted => Some(Decree::Abort),
            CoordinatorState::Voting
            | CoordinatorState::AbortPending
            | CoordinatorState::Aborting
            | CoordinatorState::GivenUp => None,
        }
    }

    /// Whether the decided outcome survives a crash.
    pub const fn is_durable(&self) -> bool {
        matches!(self.state, CoordinatorState::Committed | CoordinatorState::Aborted)
    }

    /// A transaction found announced after a restart without a commit record: its rows are lost
    /// and it is refused for good (design section 2, "Not restorable").
    pub const fn found_refused(gid: Gid, members: NodeSet) -> Self {
        let mut refused = Self::new(gid, members);
        refused.state = CoordinatorState::GivenUp;
        refused
    }

    /// What the origin, ONLINE in a later generation, reports of the transaction.
    pub const fn report(&self) -> Report {
        match self.state {
            CoordinatorState::Voting => Report::Holds,
            CoordinatorState::AbortPending | CoordinatorState::Aborting => Report::AcceptedAbort,
            CoordinatorState::Aborted => Report::Aborted,
            CoordinatorState::CommitDecided | CoordinatorState::Committed => Report::Committed,
            CoordinatorState::GivenUp => Report::Lacks,
        }
    }

    /// Others have settled what was left to them. True if that is news.
    pub fn settled_abort(&mut self) -> bool {
        let news = self.state == CoordinatorState::GivenUp;
        if news {
            self.state = CoordinatorState::Aborted;
        }
        news
    }

    /// The announcement is durable: the origin's own vote.
    pub fn announced(&mut self) -> CoordinatorStep {
        self.vote(self.gid.origin, true)
    }

    /// A member's vote; `yes` means it has durably prepared the transaction.
    pub fn vote(&mut self, from: NodeId, yes: bool) -> CoordinatorStep {
        if self.state != CoordinatorState::Voting || !self.members.contains(from) {
            return CoordinatorStep::Nothing;
        }
        if !yes {
            return CoordinatorStep::Refused;
        }
        self.accepted_commit.insert(from);
        if self.accepted_commit == self.members {
            self.state = CoordinatorState::CommitDecided;
            return CoordinatorStep::Commit;
        }
        CoordinatorStep::Nothing
    }

    /// The origin wants to abort (refusal, conflict, cancel, lost member). Too late once commit
    /// is decided.
    pub fn start_abort(&mut self) -> CoordinatorStep {
        if self.state != CoordinatorState::Voting {
            return CoordinatorStep::Nothing;
        }
        self.state = CoordinatorState::AbortPending;
        CoordinatorStep::PersistAbort
    }

    /// The acceptance of abort is durable here.
    pub fn abort_durable(&mut self) -> CoordinatorStep {
        if self.state != CoordinatorState::AbortPending {
            return CoordinatorStep::Nothing;
        }
        self.state = CoordinatorState::Aborting;
        match self.abort_accepted(self.gid.origin) {
            CoordinatorStep::Nothing => CoordinatorStep::AskAbort(self.missing()),
            step => step,
        }
    }

    /// A member has durably accepted abort.
    pub fn abort_accepted(&mut self, from: NodeId) -> CoordinatorStep {
        if self.state != CoordinatorState::Aborting || !self.members.contains(from) {
            return CoordinatorStep::Nothing;
        }
        self.accepted_abort.insert(from);
        if self.accepted_abort == self.members {
            self.state = CoordinatorState::Aborted;
            return CoordinatorStep::TellAbort(self.members.without(self.gid.origin));
        }
        CoordinatorStep::Nothing
    }

    /// Leaves the outcome to others. Only before it is decided; true if it was.
    pub fn give_up(&mut self) -> bool {
        let may = matches!(
            self.state,
            CoordinatorState::Voting | CoordinatorState::AbortPending | CoordinatorState::Aborting
        );
        if may {
            self.state = CoordinatorState::GivenUp;
        }
        may
    }

    /// The origin's commit record is durable: only now may the decision leave the origin.
    pub fn commit_durable(&mut self) -> CoordinatorStep {
        if self.state != CoordinatorState::CommitDecided {
            return CoordinatorStep::Nothing;
        }
        self.state = CoordinatorState::Committed;
        match self.peer_committed(self.gid.origin) {
            CoordinatorStep::Nothing => CoordinatorStep::TellCommit(self.missing()),
            step => step,
        }
    }

    /// A member has committed.
    pub fn peer_committed(&mut self, from: NodeId) -> CoordinatorStep {
        if self.state != CoordinatorState::Committed || !self.members.contains(from) {
            return CoordinatorStep::Nothing;
        }
        self.committed.insert(from);
        if self.committed == self.members {
            return CoordinatorStep::AllCommitted;
        }
        CoordinatorStep::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mtm_core::{GenNum, Xid};

    fn node(n: u8) -> NodeId {
        NodeId::new(n).expect("small")
    }

    fn coordinator() -> Coordinator {
        let gid = Gid { origin: node(1), xid: Xid(7), generation: GenNum(1) };
        Coordinator::new(gid, NodeSet::first(3))
    }

    #[test]
    fn commit_needs_every_member() {
        let mut c = coordinator();
        assert_eq!(c.announced(), CoordinatorStep::Nothing);
        assert_eq!(c.vote(node(2), true), CoordinatorStep::Nothing);
        assert_eq!(c.vote(node(2), true), CoordinatorStep::Nothing);
        assert_eq!(c.decree(), None);
        assert_eq!(c.vote(node(3), true), CoordinatorStep::Commit);
        assert_eq!(c.decree(), Some(Decree::Commit));
    }

    #[test]
    fn the_decision_leaves_only_after_the_commit_record() {
        let mut c = coordinator();
        c.announced();
        c.vote(node(2), true);
        assert_eq!(c.commit_durable(), CoordinatorStep::Nothing);
        c.vote(node(3), true);
        let rest = NodeSet::first(3).without(node(1));
        assert_eq!(c.commit_durable(), CoordinatorStep::TellCommit(rest));
        assert_eq!(c.peer_committed(node(2)), CoordinatorStep::Nothing);
        assert_eq!(c.peer_committed(node(3)), CoordinatorStep::AllCommitted);
    }

    #[test]
    fn abort_needs_every_member_too() {
        let mut c = coordinator();
        c.announced();
        assert_eq!(c.vote(node(2), false), CoordinatorStep::Refused);
        assert_eq!(c.start_abort(), CoordinatorStep::PersistAbort);
        assert_eq!(c.vote(node(3), true), CoordinatorStep::Nothing);
        assert_eq!(c.abort_accepted(node(2)), CoordinatorStep::Nothing);
        let rest = NodeSet::first(3).without(node(1));
        assert_eq!(c.abort_durable(), CoordinatorStep::AskAbort(rest));
        assert_eq!(c.abort_accepted(node(2)), CoordinatorStep::Nothing);
        assert_eq!(c.decree(), None);
        assert_eq!(c.abort_accepted(node(3)), CoordinatorStep::TellAbort(rest));
        assert_eq!(c.decree(), Some(Decree::Abort));
    }

    #[test]
    fn what_is_decided_stays_decided() {
        let mut c = coordinator();
        c.announced();
        c.vote(node(2), true);
        c.vote(node(3), true);
        assert_eq!(c.start_abort(), CoordinatorStep::Nothing);
        assert!(!c.give_up());
        assert_eq!(c.decree(), Some(Decree::Commit));
    }

    #[test]
    fn a_single_member_decides_alone() {
        let gid = Gid { origin: node(1), xid: Xid(7), generation: GenNum(1) };
        let mut c = Coordinator::new(gid, NodeSet::only(node(1)));
        assert_eq!(c.announced(), CoordinatorStep::Commit);
        assert_eq!(c.commit_durable(), CoordinatorStep::AllCommitted);
    }
}
