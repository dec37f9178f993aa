//! Atomic commit in one round, scoped by generations.
//!
//! A generation is a ballot whose write quorum is all its members (Lamport, Malkhi and Zhou,
//! "Vertical Paxos", 2009). A member's durable PREPARE is its acceptance of commit; commit is
//! decided when *all* members have accepted it. To abort, every member must durably have accepted
//! abort. The machines are small `Copy` values, so that a driver can keep them in shared memory
//! under a lock of its own.
//!
//! How it relates to [`Paxos`](crate::Paxos), which decides one value among a fixed cohort:
//!
//! | single-decree Paxos | here |
//! |---|---|
//! | a ballot (round, node) | a generation; mtm-generations elects it, once for all transactions |
//! | its proposer | the origin in the transaction's own generation ([`Coordinator`]), the generation's lowest donor in a later one ([`Settlement`]) |
//! | write quorum: a majority | all members; so the next generation need only read a majority of voters |
//! | [`AcceptorRecord::promised`](crate::AcceptorRecord::promised) | the vote for a generation, and the switch: nothing older is prepared after it |
//! | [`AcceptorRecord::accepted`](crate::AcceptorRecord::accepted) | the prepared transaction (commit), the journalled acceptance (abort) |
//! | phase 1a and promises | the reports of all members, ONLINE in the later generation ([`Report`]) |
//! | initial ballot of one owner, no phase 1 | the common case: announce, all PREPARE, decided |
//! | [`Flush`](crate::Flush): the message behind its record | a `Persist…` step; the call that reports the write returns the step that sends |
//! | learners | everyone who asks the origin or the proposer |
//!
//! The price of the larger write quorum is that one dead member stops a ballot, which a new
//! generation without it repairs; what it buys is that every node ONLINE in a later generation
//! has everything that was decided, so reads need no quorum.

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
