//! Rules broken on purpose: the simulator must notice every one of them.

use crate::plan::{Flavour, Plan, Shape};
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
    /// A peer's commit counts as finished when it is seen, not when it is durable.
    SeenIsFinished,
    /// The state file is not synced: a crash brings back an older one.
    StateUnsynced,
    /// After a crash transaction numbers begin again.
    NumbersReused,
    /// A restart takes the end of an own transaction without a commit record for an abort.
    RollbackIsEvidence,
    /// A restart does not read accepted aborts.
    JournalIgnored,
    /// A slot moves to the end of a peer's WAL, whatever is not committed here yet.
    ConfirmedEarly,
    /// Recovery ends at ParallelSafe without the donor's undecided transactions.
    UndecidedIgnored,
    /// A restart takes what a user has prepared for a transaction without an outcome.
    UsersUndecided,
    /// Recovery does not take over what users have prepared.
    UsersNotRecovered,
    /// COMMIT PREPARED and ROLLBACK PREPARED take effect at once where they are given.
    SecondAtOnce,
    /// A user's transaction ends before its second operation is durably committed.
    EndsFirst,
    /// Nobody looks whether the name of a user's transaction is in use.
    NameUnchecked,
    /// A clone brings the state file of the node it was made from.
    CloneVouches,
    /// Whoever recovers may read a clone's log, which begins at its birth.
    CloneServesAll,
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
    /// In histories of this kind only, where chance alone does it too rarely.
    pub flavour: Option<Flavour>,
    /// From this seed on: a rare one is looked for where it was found before.
    pub from: u64,
    /// Within so many seeds.
    pub seeds: u64,
}

impl Case {
    /// The plan of one seed with the broken rule.
    pub fn plan(&self, seed: u64) -> Plan {
        let plan = match self.flavour {
            Some(flavour) => Plan::flavoured(seed, self.shape, flavour),
            None => Plan::new(seed, self.shape),
        };
        Plan { planted: Some(self.planted), ..plan }
    }
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

const fn case(planted: Planted, shape: Shape, flavour: Option<Flavour>, seeds: u64) -> Case {
    Case { planted, shape, flavour, from: 0, seeds }
}

const fn from(seed: u64, case: Case) -> Case {
    Case { from: seed, ..case }
}

const fn commit(bug: Commit, seeds: u64) -> Case {
    case(Planted::Commit(bug), THREE, None, seeds)
}

const fn directed(bug: Commit, shape: Shape, flavour: Flavour, seeds: u64) -> Case {
    case(Planted::Commit(bug), shape, Some(flavour), seeds)
}

const fn election(bug: Election, shape: Shape, flavour: Option<Flavour>, seeds: u64) -> Case {
    case(Planted::Election(bug), shape, flavour, seeds)
}

const fn driver(bug: Driver, shape: Shape, seeds: u64) -> Case {
    case(Planted::Driver(bug), shape, None, seeds)
}

const fn users(bug: Driver, seeds: u64) -> Case {
    case(Planted::Driver(bug), THREE, Some(Flavour::Users), seeds)
}

const fn changes(planted: Planted, seeds: u64) -> Case {
    case(planted, FIVE, Some(Flavour::Changes), seeds)
}

const THREE: Shape = Shape::Nodes(3);
const FIVE: Shape = Shape::Nodes(5);

/// All planted bugs. Those that chance reaches too rarely are looked for in histories biased to
/// them.
pub const CASES: &[Case] = &[
    commit(Commit::NoBarrier, 1_000),
    commit(Commit::DecideRace, 500),
    commit(Commit::SwitchKeep, 50),
    commit(Commit::NoFence, 100),
    from(7, commit(Commit::EarlyAbort, 50)),
    commit(Commit::NoFlush, 20),
    from(14_000, directed(Commit::StaleAbort, THREE, Flavour::Deaf, 500)),
    commit(Commit::CommitMissing, 20),
    from(500, directed(Commit::ForgetAbort, FIVE, Flavour::Churn, 500)),
    directed(Commit::AbortUnaccepted, FIVE, Flavour::Churn, 200),
    commit(Commit::ReadRecovered, 500),
    commit(Commit::ReadFound, 2_000),
    commit(Commit::AcknowledgeEarly, 2_000),
    commit(Commit::ReportEarly, 1_000),
    directed(Commit::RefusedIsFinal, FIVE, Flavour::Churn, 2_000),
    directed(Commit::OwnWordStays, FIVE, Flavour::Churn, 9_000),
    commit(Commit::ForgetEarly, 100),
    commit(Commit::ForgottenLacks, 20),
    commit(Commit::GiveUpAborts, 100),
    from(1_000, commit(Commit::DropEarly, 500)),
    election(Election::VoteTwice, FIVE, Some(Flavour::Churn), 9_000),
    election(Election::AnyDonor, THREE, None, 50),
    from(3_400, election(Election::HighestOfMembers, FIVE, Some(Flavour::Churn), 500)),
    from(6_200, election(Election::OnlineDespiteVote, FIVE, None, 500)),
    election(Election::LeaseIgnored, THREE, None, 500),
    election(Election::LeaseKept, THREE, None, 500),
    from(8_800, election(Election::LeaseForgotten, THREE, Some(Flavour::Lender), 500)),
    from(2_400, driver(Driver::HeldEarly, THREE, 500)),
    driver(Driver::OriginByOrigin, THREE, 50),
    driver(Driver::CleanAnyNumber, Shape::Referee, 20),
    driver(Driver::GrantLost, Shape::Referee, 500),
    driver(Driver::UnsyncedIsDurable, THREE, 20),
    from(9_800, driver(Driver::SeenIsFinished, THREE, 500)),
    driver(Driver::StateUnsynced, THREE, 500),
    driver(Driver::NumbersReused, THREE, 50),
    driver(Driver::RollbackIsEvidence, THREE, 1_000),
    case(Planted::Driver(Driver::JournalIgnored), THREE, Some(Flavour::Churn), 2_000),
    driver(Driver::ConfirmedEarly, THREE, 50),
    driver(Driver::UndecidedIgnored, THREE, 50),
    changes(Planted::Commit(Commit::DroppedRemembered), 20),
    changes(Planted::Driver(Driver::CloneVouches), 50),
    changes(Planted::Driver(Driver::CloneServesAll), 2_000),
    users(Driver::UsersUndecided, 100),
    users(Driver::UsersNotRecovered, 100),
    users(Driver::SecondAtOnce, 20),
    users(Driver::EndsFirst, 3_000),
    users(Driver::NameUnchecked, 20),
];
