//! Atomic commit in one round, scoped by generations.
//!
//! A generation is a ballot whose write quorum is all its members (Lamport, Malkhi and Zhou,
//! "Vertical Paxos", 2009). A member's durable PREPARE is its acceptance of commit; commit is
//! decided when *all* members have accepted it. To abort, every member must durably have accepted
//! abort. Both machines are small `Copy` values, so that a driver can keep them in shared memory
//! under a lock of its own.

mod coordinator;
mod participant;
mod settlement;

pub use coordinator::{Coordinator, CoordinatorState, CoordinatorStep};
pub use participant::{Delivery, Participant, ParticipantState, ParticipantStep};
pub use settlement::{Report, Settlement, SettlementStep};

/// Outcome of a transaction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Decree {
    /// The transaction commits on every member.
    Commit,
    /// The transaction commits nowhere.
    Abort,
}
