//! Rules that can be broken on purpose, each with the name it has in the specification.

impl Bug {
    /// All of them.
    pub const ALL: [Self; 22] = [
        Self::NoBarrier,
        Self::DecideRace,
        Self::SwitchKeep,
        Self::NoFence,
        Self::EarlyAbort,
        Self::NoFlush,
        Self::StaleAbort,
        Self::CommitMissing,
        Self::ForgetAbort,
        Self::AbortUnaccepted,
        Self::ReportEarly,
        Self::RefusedIsFinal,
        Self::OwnWordStays,
        Self::ForgetEarly,
        Self::ForgottenLacks,
        Self::OldProgress,
        Self::GiveUpAborts,
        Self::DropEarly,
        Self::DroppedRemembered,
        Self::ReadRecovered,
        Self::ReadFound,
        Self::AcknowledgeEarly,
    ];
}

/// A broken rule. Without the feature `planted-bugs` none can be switched on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Bug {
    /// A switch does not wait for those between "checked the generation" and the WAL.
    NoBarrier,
    /// A switch does not wait for commit records of decided transactions.
    DecideRace,
    /// A switch keeps the own undecided transactions, whose rows a crash loses.
    SwitchKeep,
    /// A restarting node answers before it knows what it lost.
    NoFence,
    /// The client hears "aborted" before all members have accepted it.
    EarlyAbort,
    /// The decision leaves the origin before its commit record is durable.
    NoFlush,
    /// A node in a later generation still accepts abort in the old one.
    StaleAbort,
    /// The proposer commits although a member lacks the transaction.
    CommitMissing,
    /// Recovery takes over transactions, but not the donor's accepted aborts.
    ForgetAbort,
    /// The proposer decides abort before all members have accepted it.
    AbortUnaccepted,
    /// A member reports what it has before it is ONLINE in the generation that asks.
    ReportEarly,
    /// What a node has refused recovery does not give it either.
    RefusedIsFinal,
    /// A recovering node keeps its own accepted aborts (specs/adr/0100).
    OwnWordStays,
    /// Each node forgets what it has finished itself, whatever the others have.
    ForgetEarly,
    /// What a node said of its progress in an earlier generation still counts (specs/adr/0106).
    OldProgress,
    /// A forgotten transaction is taken for one that is lacking.
    ForgottenLacks,
    /// The client of a transaction that was given up hears "aborted".
    GiveUpAborts,
    /// Recovery drops what is undecided when it begins, not when it conflicts.
    DropEarly,
    /// What a dropped node has begun waits for that node's word about its progress.
    DroppedRemembered,
    /// Readers are answered although what recovery has brought is not settled.
    ReadRecovered,
    /// Readers are answered although what a restart has found is not settled.
    ReadFound,
    /// A client is told of a commit that somebody lacks who was left out, before all members of the
    /// new generation are in it.
    AcknowledgeEarly,
}
