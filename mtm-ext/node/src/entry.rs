//! One transaction in a node's table.

use core::fmt;
use mtm_core::{GenNum, Instant, LocalXid};
use mtm_paxos::commit::{
    Coordinator, CoordinatorState, Decree, Participant, ParticipantState, Report, Settlement,
};

/// Which part this node plays.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// The transaction runs here as an ordinary transaction.
    Own(Coordinator),
    /// The transaction is, was or may be prepared here.
    Peer(Participant),
}

/// One transaction: the single place where its outcome is decided on this node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Entry {
    /// Origin or peer.
    pub role: Role,
    /// An own transaction's number in this server.
    pub local: LocalXid,
    /// This node settles it as the proposer of its generation.
    pub settlement: Option<Settlement>,
    /// When to ask again.
    pub retry_at: Instant,
    /// What the donor of the last recovery said of it.
    pub(crate) donors_word: Option<DonorsWord>,
}

/// The donor held the transaction undecided at its ParallelSafe.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct DonorsWord {
    /// In this generation.
    pub(crate) num: GenNum,
    /// It had accepted abort.
    pub(crate) accepted: bool,
}

/// What an unfinished transaction waits for on one node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Waits {
    /// Own: for the members' votes.
    Votes,
    /// Own: for the members' acceptances of abort.
    AbortAcceptances,
    /// Own, decided: for its commit record.
    CommitRecord,
    /// For the generation's proposer, to whom the outcome was left, or for its members.
    Settlement,
    /// Another node's: for its rows to be applied.
    Rows,
    /// Another node's: for its PREPARE record.
    PrepareRecord,
    /// For the record that says that abort is accepted.
    AbortRecord,
    /// Another node's, prepared: for the outcome.
    Outcome,
    /// Another node's, decided: for COMMIT PREPARED or ROLLBACK PREPARED.
    Finish,
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Votes => "votes of the members",
            Self::AbortAcceptances => "members to accept abort",
            Self::CommitRecord => "its commit record",
            Self::Settlement => "settlement in a later generation",
            Self::Rows => "its rows to be applied",
            Self::PrepareRecord => "its prepare record",
            Self::AbortRecord => "the record of its accepted abort",
            Self::Outcome => "the outcome",
            Self::Finish => "being finished here",
        })
    }
}

impl Entry {
    pub(crate) const fn new(role: Role) -> Self {
        Self { role, local: LocalXid(0), settlement: None, retry_at: Instant(0), donors_word: None }
    }

    /// What this node reports when it is asked in a later generation.
    pub const fn report(&self) -> Report {
        match &self.role {
            Role::Own(c) => c.report(),
            Role::Peer(p) => p.report(),
        }
    }

    /// The outcome as it may be told to others: an own commit only once its record is durable.
    pub fn decree(&self) -> Option<Decree> {
        // The proposer may have settled what it does not hold itself.
        if let Some(decree) = self.settlement.and_then(|s| s.decree()) {
            return Some(decree);
        }
        match &self.role {
            Role::Own(c) if c.state() == CoordinatorState::CommitDecided => None,
            Role::Own(c) => c.decree(),
            Role::Peer(p) => match p.state() {
                ParticipantState::Committing(_) | ParticipantState::Committed => {
                    Some(Decree::Commit)
                }
                ParticipantState::RollingBack | ParticipantState::Aborted => Some(Decree::Abort),
                ParticipantState::Unknown
                | ParticipantState::Applying
                | ParticipantState::Preparing(_)
                | ParticipantState::Prepared
                | ParticipantState::Refused
                | ParticipantState::AbortPending(_)
                | ParticipantState::AbortAccepted(_) => None,
            },
        }
    }

    /// Whether nothing but a refusal or some applied rows would be lost by forgetting it.
    pub(crate) const fn is_only_applying(&self) -> bool {
        match &self.role {
            Role::Own(_) => false,
            Role::Peer(p) => matches!(
                p.state(),
                ParticipantState::Unknown | ParticipantState::Applying | ParticipantState::Refused
            ),
        }
    }

    /// Whether somebody here waits for the outcome or for answers of others.
    pub(crate) fn is_open(&self) -> bool {
        let settling = self.settlement.is_some_and(|s| s.decree().is_none());
        settling
            || match &self.role {
                Role::Own(c) => c.state() == CoordinatorState::GivenUp || !c.missing().is_empty(),
                Role::Peer(p) => {
                    p.is_undecided() || p.state() == ParticipantState::AbortAccepted(false)
                }
            }
    }

    /// What the transaction waits for, if it is not finished on this node.
    pub fn waits(&self) -> Option<Waits> {
        if let Role::Own(c) = &self.role {
            return match c.state() {
                CoordinatorState::Voting => Some(Waits::Votes),
                CoordinatorState::AbortPending => Some(Waits::AbortRecord),
                CoordinatorState::Aborting => Some(Waits::AbortAcceptances),
                CoordinatorState::CommitDecided => Some(Waits::CommitRecord),
                CoordinatorState::GivenUp => Some(Waits::Settlement),
                CoordinatorState::Committed | CoordinatorState::Aborted => None,
            };
        }
        let Role::Peer(p) = &self.role else { return None };
        match p.state() {
            ParticipantState::Applying => Some(Waits::Rows),
            ParticipantState::Preparing(_) => Some(Waits::PrepareRecord),
            ParticipantState::Prepared | ParticipantState::AbortAccepted(true) => {
                Some(Waits::Outcome)
            }
            ParticipantState::AbortPending(_) => Some(Waits::AbortRecord),
            ParticipantState::Committing(_) | ParticipantState::RollingBack => Some(Waits::Finish),
            ParticipantState::Unknown
            | ParticipantState::Refused
            | ParticipantState::AbortAccepted(false)
            | ParticipantState::Committed
            | ParticipantState::Aborted => {
                let settling = self.settlement.is_some_and(|s| s.decree().is_none());
                settling.then_some(Waits::Settlement)
            }
        }
    }

    /// Whether the transaction may still be committed here, and keeps its rows locked.
    pub fn holds(&self) -> bool {
        match &self.role {
            Role::Own(c) => matches!(
                c.state(),
                CoordinatorState::Voting
                    | CoordinatorState::AbortPending
                    | CoordinatorState::Aborting
                    | CoordinatorState::CommitDecided
            ),
            Role::Peer(p) => {
                p.is_undecided()
                    || matches!(
                        p.state(),
                        ParticipantState::Committing(_) | ParticipantState::RollingBack
                    )
            }
        }
    }
}
