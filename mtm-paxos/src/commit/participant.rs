//! A peer of the transaction: prepares it, promises, obeys.

use super::{Decree, Report};

/// Where a peer stands with a transaction. Only the transitions in [`Participant`]'s methods
/// exist.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ParticipantState {
    /// Heard of, rows not here yet.
    Unknown,
    /// Rows are being applied.
    Applying,
    /// PREPARE is being written; `true` if abort was asked for meanwhile.
    Preparing(bool),
    /// Durably prepared: commit is accepted.
    Prepared,
    /// Refused; nothing is held, and it is never prepared any more.
    Refused,
    /// Abort is accepted, not durably yet; `true` if the transaction is prepared.
    AbortPending(bool),
    /// Abort is durably accepted; `true` if the transaction is still prepared.
    AbortAccepted(bool),
    /// Commit is decided, COMMIT PREPARED is not durable yet; `true` if it is done and seen.
    Committing(bool),
    /// Committed here.
    Committed,
    /// Abort is decided and the transaction is still prepared.
    RollingBack,
    /// Rolled back, or never prepared and decided.
    Aborted,
}

/// What to do with a transaction that arrived in the origin's stream.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Delivery {
    /// Apply it and ask [`Participant::try_prepare`].
    Apply,
    /// Delivered before; the work is done or under way.
    Duplicate,
    /// It must never be prepared here: abort has been promised.
    Never,
}

/// What the driver must do after an input.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ParticipantStep {
    /// Nothing.
    Nothing,
    /// Send a yes vote to the origin.
    VoteYes,
    /// Send a no vote to the origin.
    VoteNo,
    /// Make the acceptance of abort durable, then call [`Participant::abort_durable`].
    PersistAbort,
    /// Tell whoever asked that abort is accepted.
    TellAbortAccepted,
    /// COMMIT PREPARED, then call [`Participant::visible`] or [`Participant::finished`].
    Commit,
    /// ROLLBACK PREPARED, then call [`Participant::finished`].
    Rollback,
    /// Tell the origin that whoever asks here sees the transaction committed.
    TellCommitted,
}

/// One transaction of another node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Participant {
    state: ParticipantState,
}

impl Default for Participant {
    fn default() -> Self {
        Self::new()
    }
}

impl Participant {
    /// A transaction nothing is known of.
    pub const fn new() -> Self {
        Self { state: ParticipantState::Unknown }
    }

    /// A prepared transaction found after a restart.
    pub const fn found_prepared() -> Self {
        Self { state: ParticipantState::Prepared }
    }

    /// An acceptance of abort found after a restart; `prepared` if the transaction is there too.
    pub const fn found_abort_accepted(prepared: bool) -> Self {
        Self { state: ParticipantState::AbortAccepted(prepared) }
    }

    /// A transaction that recovery is about to prepare with a donor's rows.
    pub const fn installing() -> Self {
        Self { state: ParticipantState::Preparing(false) }
    }

    /// A transaction that was finished before a restart.
    pub const fn found_finished(decree: Decree) -> Self {
        match decree {
            Decree::Commit => Self { state: ParticipantState::Committed },
            Decree::Abort => Self { state: ParticipantState::Aborted },
        }
    }

    /// Where the peer stands.
    pub const fn state(&self) -> ParticipantState {
        self.state
    }

    /// Whether a prepared transaction waits for its outcome.
    pub const fn is_undecided(&self) -> bool {
        matches!(
            self.state,
            ParticipantState::Prepared
                | ParticipantState::AbortPending(true)
                | ParticipantState::AbortAccepted(true)
        )
    }

    /// Whether nothing more will happen to it here.
    pub const fn is_finished(&self) -> bool {
        matches!(self.state, ParticipantState::Committed | ParticipantState::Aborted)
    }

    /// The rows have arrived.
    pub fn delivered(&mut self) -> Delivery {
        match self.state {
            ParticipantState::Unknown => {
                self.state = ParticipantState::Applying;
                Delivery::Apply
            }
            ParticipantState::AbortPending(false)
            | ParticipantState::AbortAccepted(false)
            | ParticipantState::Refused
            | ParticipantState::Aborted => Delivery::Never,
            ParticipantState::Applying
            | ParticipantState::Preparing(_)
            | ParticipantState::Prepared
            | ParticipantState::AbortPending(true)
            | ParticipantState::AbortAccepted(true)
            | ParticipantState::Committing(_)
            | ParticipantState::Committed
            | ParticipantState::RollingBack => Delivery::Duplicate,
        }
    }

    /// Asks whether PREPARE may be written. After `true` call [`Self::prepared`] or
    /// [`Self::failed`]; after `false` roll back.
    pub fn try_prepare(&mut self) -> bool {
        let may = self.state == ParticipantState::Applying;
        if may {
            self.state = ParticipantState::Preparing(false);
        }
        may
    }

    /// PREPARE is durable.
    pub fn prepared(&mut self) -> ParticipantStep {
        match self.state {
            ParticipantState::Preparing(false) => {
                self.state = ParticipantState::Prepared;
                ParticipantStep::VoteYes
            }
            ParticipantState::Preparing(true) => {
                self.state = ParticipantState::AbortPending(true);
                ParticipantStep::PersistAbort
            }
            _ => ParticipantStep::Nothing,
        }
    }

    /// Applying or PREPARE failed and was rolled back.
    pub fn failed(&mut self) -> ParticipantStep {
        match self.state {
            ParticipantState::Applying | ParticipantState::Preparing(false) => {
                self.state = ParticipantState::Refused;
                ParticipantStep::VoteNo
            }
            ParticipantState::Preparing(true) => {
                self.state = ParticipantState::AbortPending(false);
                ParticipantStep::PersistAbort
            }
            _ => ParticipantStep::Nothing,
        }
    }

    /// The origin, or the generation's proposer, asks to accept abort.
    pub fn abort_asked(&mut self) -> ParticipantStep {
        match self.state {
            ParticipantState::Unknown | ParticipantState::Applying | ParticipantState::Refused => {
                self.state = ParticipantState::AbortPending(false);
                ParticipantStep::PersistAbort
            }
            ParticipantState::Preparing(_) => {
                self.state = ParticipantState::Preparing(true);
                ParticipantStep::Nothing
            }
            ParticipantState::Prepared => {
                self.state = ParticipantState::AbortPending(true);
                ParticipantStep::PersistAbort
            }
            ParticipantState::AbortAccepted(_)
            | ParticipantState::RollingBack
            | ParticipantState::Aborted => ParticipantStep::TellAbortAccepted,
            ParticipantState::AbortPending(_)
            | ParticipantState::Committing(_)
            | ParticipantState::Committed => ParticipantStep::Nothing,
        }
    }

    /// The acceptance of abort is durable here.
    pub fn abort_durable(&mut self) -> ParticipantStep {
        let ParticipantState::AbortPending(prepared) = self.state else {
            return ParticipantStep::Nothing;
        };
        self.state = ParticipantState::AbortAccepted(prepared);
        ParticipantStep::TellAbortAccepted
    }

    /// The outcome is decided.
    pub fn decided(&mut self, decree: Decree) -> ParticipantStep {
        match (decree, self.state) {
            // An accepted abort binds in its own ballot only: a later generation may commit, and so
            // may the origin when its abort round never finished (TLA+ `Learn`).
            (
                Decree::Commit,
                ParticipantState::Prepared
                | ParticipantState::AbortPending(true)
                | ParticipantState::AbortAccepted(true),
            ) => {
                self.state = ParticipantState::Committing(false);
                ParticipantStep::Commit
            }
            (Decree::Commit, ParticipantState::Committing(true) | ParticipantState::Committed) => {
                ParticipantStep::TellCommitted
            }
            (
                Decree::Abort,
                ParticipantState::Prepared
                | ParticipantState::AbortPending(true)
                | ParticipantState::AbortAccepted(true),
            ) => {
                self.state = ParticipantState::RollingBack;
                ParticipantStep::Rollback
            }
            (
                Decree::Abort,
                ParticipantState::Unknown
                | ParticipantState::Applying
                | ParticipantState::Refused
                | ParticipantState::AbortPending(false)
                | ParticipantState::AbortAccepted(false),
            ) => {
                self.state = ParticipantState::Aborted;
                ParticipantStep::Nothing
            }
            (Decree::Abort, ParticipantState::Preparing(_)) => {
                self.state = ParticipantState::Preparing(true);
                ParticipantStep::Nothing
            }
            _ => ParticipantStep::Nothing,
        }
    }

    /// What this node, ONLINE in a later generation, reports of the transaction.
    pub const fn report(&self) -> Report {
        match self.state {
            ParticipantState::Unknown
            | ParticipantState::Applying
            | ParticipantState::Preparing(_)
            | ParticipantState::Refused => Report::Lacks,
            ParticipantState::Prepared => Report::Holds,
            ParticipantState::AbortPending(_) | ParticipantState::AbortAccepted(_) => {
                Report::AcceptedAbort
            }
            ParticipantState::Committing(_) | ParticipantState::Committed => Report::Committed,
            ParticipantState::RollingBack | ParticipantState::Aborted => Report::Aborted,
        }
    }

    /// Recovery says that the transaction is committed, however it stands here. True if the
    /// prepared one is to be committed, false if its rows must be applied first (or nothing is to
    /// be done because it is finished). Then call [`Self::finished`].
    pub fn replayed(&mut self) -> bool {
        let prepared = self.is_undecided();
        if !matches!(self.state, ParticipantState::Committing(_) | ParticipantState::Committed) {
            self.state = ParticipantState::Committing(false);
        }
        prepared
    }

    /// COMMIT PREPARED is done and everybody here sees it, but a crash may still undo it: then the
    /// transaction is prepared again and asks for its outcome again. Whoever waits for readers on
    /// this node need not wait longer; [`Self::finished`] follows.
    pub fn visible(&mut self) -> ParticipantStep {
        match self.state {
            ParticipantState::Committing(false) => {
                self.state = ParticipantState::Committing(true);
                ParticipantStep::TellCommitted
            }
            _ => ParticipantStep::Nothing,
        }
    }

    /// COMMIT PREPARED or ROLLBACK PREPARED is done, durably.
    pub fn finished(&mut self) -> ParticipantStep {
        match self.state {
            ParticipantState::Committing(seen) => {
                self.state = ParticipantState::Committed;
                if seen { ParticipantStep::Nothing } else { ParticipantStep::TellCommitted }
            }
            ParticipantState::RollingBack => {
                self.state = ParticipantState::Aborted;
                ParticipantStep::Nothing
            }
            _ => ParticipantStep::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prepares_votes_and_commits() {
        let mut p = Participant::new();
        assert_eq!(p.delivered(), Delivery::Apply);
        assert_eq!(p.delivered(), Delivery::Duplicate);
        assert!(p.try_prepare());
        assert_eq!(p.prepared(), ParticipantStep::VoteYes);
        assert_eq!(p.decided(Decree::Commit), ParticipantStep::Commit);
        assert_eq!(p.decided(Decree::Commit), ParticipantStep::Nothing);
        assert_eq!(p.finished(), ParticipantStep::TellCommitted);
        assert_eq!(p.decided(Decree::Commit), ParticipantStep::TellCommitted);
    }

    #[test]
    fn a_commit_that_is_seen_is_told_at_once_and_once() {
        let mut p = Participant::found_prepared();
        assert_eq!(p.visible(), ParticipantStep::Nothing, "not before it is decided");
        assert_eq!(p.decided(Decree::Commit), ParticipantStep::Commit);
        assert_eq!(p.visible(), ParticipantStep::TellCommitted);
        assert!(!p.is_finished(), "a crash may still undo it");
        assert_eq!(p.decided(Decree::Commit), ParticipantStep::TellCommitted);
        assert_eq!(p.finished(), ParticipantStep::Nothing);
        assert!(p.is_finished());
    }

    #[test]
    fn a_promise_to_abort_keeps_it_from_being_prepared() {
        let mut p = Participant::new();
        assert_eq!(p.abort_asked(), ParticipantStep::PersistAbort);
        assert_eq!(p.delivered(), Delivery::Never);
        assert_eq!(p.abort_durable(), ParticipantStep::TellAbortAccepted);
        assert_eq!(p.abort_asked(), ParticipantStep::TellAbortAccepted);
        assert!(!p.try_prepare());
        assert_eq!(p.decided(Decree::Commit), ParticipantStep::Nothing);
    }

    #[test]
    fn abort_asked_while_preparing_waits_for_the_prepare() {
        let mut p = Participant::new();
        p.delivered();
        assert!(p.try_prepare());
        assert_eq!(p.abort_asked(), ParticipantStep::Nothing);
        assert_eq!(p.prepared(), ParticipantStep::PersistAbort);
        assert_eq!(p.abort_durable(), ParticipantStep::TellAbortAccepted);
        assert_eq!(p.decided(Decree::Abort), ParticipantStep::Rollback);
        assert_eq!(p.finished(), ParticipantStep::Nothing);
        assert!(p.is_finished());
    }

    #[test]
    fn abort_during_apply_stops_the_worker_at_prepare() {
        let mut p = Participant::new();
        p.delivered();
        assert_eq!(p.abort_asked(), ParticipantStep::PersistAbort);
        assert!(!p.try_prepare());
        assert_eq!(p.failed(), ParticipantStep::Nothing);
        assert_eq!(p.abort_durable(), ParticipantStep::TellAbortAccepted);
    }
}
