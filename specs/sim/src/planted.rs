//! Rules broken on purpose: the simulator must notice every one of them.

use crate::plan::Shape;
use mtm_generations::Bug as Election;
use mtm_node::Bug as Commit;

/// A duty of the driver that it neglects.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Driver {
    /// ParallelSafe says what was held when the generation was elected, not at the switch.
    HeldEarly,
    /// Recovery replays one origin's commits after the other's, not in the donor's order.
    OriginByOrigin,
    /// The referee's `clean` frees the grant whatever its number.
    CleanAnyNumber,
    /// The referee forgets its grant when it crashes.
    GrantLost,
    /// "Durable" is said when a record is written, not when it is flushed.
    UnsyncedIsDurable,
    /// The state file is not synced: a crash brings back an older one.
    StateUnsynced,
    /// After a crash transaction numbers begin again.
    NumbersReused,
    /// A restart takes a rollback in the WAL for an abort.
    RollbackIsEvidence,
    /// A restart does not read accepted aborts.
    JournalIgnored,
    /// A slot moves to the end of a peer's WAL, whatever is not committed here yet.
    ConfirmedEarly,
    /// Recovery ends at ParallelSafe without the donor's undecided transactions.
    UndecidedIgnored,
}

/// One rule that is broken.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Planted {
    /// In what a node does with commits.
    Commit(Commit),
    /// In elections.
    Election(Election),
    /// In what the driver does.
    Driver(Driver),
}

/// A planted bug, where it shows, and within how many seeds it must be found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Case {
    /// The broken rule.
    pub planted: Planted,
    /// In this cluster.
    pub shape: Shape,
    /// Within so many seeds, from 0.
    pub seeds: u64,
}

impl Planted {
    /// The name of the rule.
    pub fn name(self) -> String {
        match self {
            Self::Commit(bug) => format!("{bug:?}"),
            Self::Election(bug) => format!("{bug:?}"),
            Self::Driver(bug) => format!("{bug:?}"),
        }
    }
}

const fn commit(bug: Commit, seeds: u64) -> Case {
    Case { planted: Planted::Commit(bug), shape: Shape::Nodes(3), seeds }
}

const fn election(bug: Election, shape: Shape, seeds: u64) -> Case {
    Case { planted: Planted::Election(bug), shape, seeds }
}

const fn driver(bug: Driver, shape: Shape, seeds: u64) -> Case {
    Case { planted: Planted::Driver(bug), shape, seeds }
}

const THREE: Shape = Shape::Nodes(3);

/// All planted bugs.
pub const CASES: &[Case] = &[
    commit(Commit::NoBarrier, 1_000),
    commit(Commit::DecideRace, 1_000),
    commit(Commit::SwitchKeep, 1_000),
    commit(Commit::NoFence, 1_000),
    commit(Commit::EarlyAbort, 1_000),
    commit(Commit::NoFlush, 1_000),
    commit(Commit::StaleAbort, 5_000),
    commit(Commit::CommitMissing, 1_000),
    commit(Commit::ForgetAbort, 5_000),
    commit(Commit::AbortUnaccepted, 5_000),
    commit(Commit::ReportEarly, 5_000),
    commit(Commit::RefusedIsFinal, 5_000),
    commit(Commit::OwnWordStays, 5_000),
    commit(Commit::ForgetEarly, 5_000),
    commit(Commit::ForgottenLacks, 5_000),
    commit(Commit::GiveUpAborts, 1_000),
    commit(Commit::DropEarly, 5_000),
    election(Election::VoteTwice, Shape::Nodes(5), 2_000),
    election(Election::AnyDonor, THREE, 1_000),
    election(Election::HighestOfMembers, Shape::Nodes(5), 2_000),
    election(Election::OnlineDespiteVote, Shape::Nodes(5), 2_000),
    driver(Driver::HeldEarly, THREE, 3_000),
    driver(Driver::OriginByOrigin, THREE, 1_000),
    driver(Driver::CleanAnyNumber, Shape::Referee, 5_000),
    driver(Driver::GrantLost, Shape::Referee, 3_000),
    driver(Driver::UnsyncedIsDurable, THREE, 1_000),
    driver(Driver::StateUnsynced, THREE, 2_000),
    driver(Driver::NumbersReused, THREE, 1_000),
    driver(Driver::RollbackIsEvidence, THREE, 5_000),
    driver(Driver::JournalIgnored, THREE, 5_000),
    driver(Driver::ConfirmedEarly, THREE, 1_000),
    driver(Driver::UndecidedIgnored, THREE, 1_000),
];
