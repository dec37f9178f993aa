//! What may happen to a node and what it asks its driver to do.

use super::retention::Below;
use crate::peer_message::PeerMessage;
use crate::table::TableFull;
use mtm_core::{GenNum, Gid, Instant, LocalXid, NodeId, NodeSet, Token, Xid};
use mtm_generations as generations;

/// What a restarting node finds about a transaction in its own WAL.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Found {
    /// A prepared transaction without an outcome.
    Prepared,
    /// An acceptance of abort without an outcome; whether the transaction is still prepared.
    AbortAccepted {
        /// It still is.
        prepared: bool,
    },
    /// Its commit record.
    Committed,
    /// Its abort was decided; only from what the node itself remembered, never from a rollback.
    Aborted,
    /// An announcement of this node without a commit record: its rows are lost.
    AnnouncedOnly {
        /// Its number in this server, for the commit log.
        local: LocalXid,
    },
}

/// What may happen to a node. "Durable" means: survives a crash of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Input {
    /// Something for the membership; `Switch` and `Fenced` are the node's own business.
    Generation(generations::Input),
    /// The local transaction that this server knows by this number wants to commit. Its gid gets
    /// the next number of this node's announcements.
    Announce(LocalXid),
    /// The announcement is in the WAL, not necessarily durable.
    AnnouncementWritten(Gid),
    /// The announcement could not be written; nothing of it is in the WAL.
    AnnouncementFailed(Gid),
    /// The announcement is durable.
    AnnouncementDurable(Gid),
    /// The client, a timeout or a lost member wants the own transaction aborted.
    Cancel(Gid),
    /// The own commit record is durable.
    CommitDurable(Gid),
    /// A transaction arrived in its origin's stream.
    Delivered(Gid),
    /// Its rows are applied.
    TryPrepare(Gid),
    /// It is prepared, durably.
    PrepareDurable(Gid),
    /// Applying or preparing it failed.
    ApplyFailed(Gid),
    /// The acceptance of abort is durable.
    AbortDurable(Gid),
    /// COMMIT PREPARED is done and every new snapshot here sees it, but a crash may still undo it: the
    /// transaction would be prepared again then. `Finished` follows.
    Visible(Gid),
    /// COMMIT PREPARED or ROLLBACK PREPARED is done, durably.
    Finished(Gid),
    /// One announced transaction waits here for a row that another one holds.
    Conflict {
        /// Who waits.
        waiter: Gid,
        /// Who holds.
        holder: Gid,
    },
    /// While recovering: the donor committed this transaction, next in its commit order.
    Replay {
        /// For this generation; what belongs to another one is not heeded.
        num: GenNum,
        /// The transaction.
        gid: Gid,
    },
    /// While recovering: this undecided transaction conflicts with a replayed one.
    Drop(Gid),
    /// While recovering: as of its ParallelSafe the donor held this transaction undecided.
    DonorHolds {
        /// For this generation.
        num: GenNum,
        /// The transaction.
        gid: Gid,
        /// The donor had accepted abort.
        accepted_abort: bool,
    },
    /// While recovering for this generation: that was the donor's whole undecided set.
    DonorHoldsNoMore(GenNum),
    /// What `ApplyCommitted`, `Install` or `DropPrepared` asked for is durable.
    RecoveryDone(Gid),
    /// While recovering: the donor wrote this syncpoint here, after everything replayed so far.
    Syncpoint {
        /// For this generation.
        num: GenNum,
        /// The donor's [`super::Node::forgotten`].
        below: Below,
    },
    /// While fenced: what [`super::Node::forgotten`] was when it was last saved.
    Forgotten(Below),
    /// A checkpoint with this [`super::Node::forgotten`] is durable, and so is a syncpoint with it
    /// that lies before.
    Saved(Below),
    /// While fenced: something the WAL says.
    Found {
        /// The transaction.
        gid: Gid,
        /// What the WAL says of it.
        found: Found,
    },
    /// While fenced: that was everything; the node may take part again.
    ScanComplete {
        /// Own announcements go on with this number: it is above every one that was found.
        next: Xid,
    },
    /// A message about a transaction arrived.
    Message {
        /// From this node.
        from: NodeId,
        /// This message.
        message: PeerMessage,
    },
}

/// Why a transaction is not announced.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Rejection {
    /// The node is not ONLINE.
    NotOnline,
    /// A switch is about to happen: try again at once.
    SwitchWaits,
    /// There is no room: wait until earlier ones are forgotten and that is saved.
    TableFull,
}

/// What the client of an own transaction is told.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// It is committed.
    Committed,
    /// It is aborted, on all nodes, for ever.
    Aborted,
}

/// What the driver must do, in order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Make the generation record durable, then `generations::Input::Persisted(token)`.
    Persist {
        /// Answer with this.
        token: Token,
        /// What must be durable.
        record: generations::Record,
    },
    /// Send a message about generations.
    SendGeneration {
        /// To each of these.
        to: NodeSet,
        /// This message.
        message: generations::Message,
        /// Not before this is durable.
        after: Option<Token>,
    },
    /// Answer a sign of life, on the connection it came on ([`generations::Effect::Lend`]).
    Lend {
        /// Its sender.
        to: NodeId,
        /// When it was sent, by its sender's clock.
        sent: Instant,
        /// For how long from then on the sender may rely on this node.
        for_us: u64,
        /// The generation this node is in.
        num: GenNum,
    },
    /// Answer a sign of life, on the connection it came on, with `generations::Message::Elected`.
    Recall {
        /// Its sender.
        to: NodeId,
        /// The generation without it.
        elected: generations::Elected,
    },
    /// Send a message about a transaction; what it says is durable already.
    Send {
        /// To each of these.
        to: NodeSet,
        /// This message.
        message: PeerMessage,
    },
    /// The transaction may not be announced.
    Rejected(LocalXid, Rejection),
    /// Write the announcement to the WAL, `AnnouncementWritten`, flush, `AnnouncementDurable`.
    WriteAnnouncement(Gid),
    /// Write the own commit record, flush it, `CommitDurable`. It must not fail any more; if it
    /// does, the node must stop serving and restart.
    WriteCommit(Gid),
    /// Tell the client.
    Answer(Gid, Outcome),
    /// Roll the own transaction back; its outcome is others' business and the client's answer
    /// 08007 unless it becomes known in time.
    GiveUp(Gid),
    /// Apply the delivered transaction, then `TryPrepare` or `ApplyFailed`.
    Apply(Gid),
    /// Nothing is to be done for the delivered or replayed transaction.
    Skip(Gid),
    /// The delivered transaction belongs to a later generation, or this node is not ONLINE yet:
    /// deliver it again after `Online`. Or there is no room for it, or for what a donor committed
    /// or held ([`super::Node::has_room_for`]): again after the next `Saved`.
    Hold(Gid),
    /// Write PREPARE and flush it, then `PrepareDurable` or `ApplyFailed`.
    WritePrepare(Gid),
    /// Stop applying and roll back what was applied. May come while the worker still applies or
    /// waits for a row; if it asks `TryPrepare` nevertheless, it gets this answer again.
    Discard(Gid),
    /// Write the acceptance of abort and flush it, then `AbortDurable`.
    WriteAbort(Gid),
    /// COMMIT PREPARED, then `Finished`; before that `Visible`, if it is seen before it is durable.
    CommitPrepared(Gid),
    /// ROLLBACK PREPARED, then `Finished`.
    RollbackPrepared(Gid),
    /// Recovery: apply the transaction's rows and commit them, then `RecoveryDone`; `Drop` whoever
    /// is prepared and stands in the way.
    ApplyCommitted(Gid),
    /// Recovery: roll back a prepared transaction without any outcome, then `RecoveryDone`.
    DropPrepared(Gid),
    /// Recovery: prepare the transaction with the donor's rows unless it is prepared already, and
    /// journal whether abort is accepted, replacing what the journal said (specs/adr/0100); then
    /// `RecoveryDone`.
    Install(Gid, bool),
    /// Write ParallelSafe with [`super::Node::held`], taken in this very step, and flush it, then
    /// `generations::Input::ParallelSafe`.
    WriteParallelSafe(GenNum),
    /// Recover from one of the donors.
    StartRecovery {
        /// In this generation.
        num: GenNum,
        /// From one of these.
        donors: NodeSet,
    },
    /// The node is ONLINE in this generation.
    Online(GenNum),
    /// Ask the referee.
    AskReferee(GenNum),
    /// Clean the referee.
    CleanReferee(GenNum),
}

/// A mistake of the driver.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Misuse {
    /// From the membership.
    #[error(transparent)]
    Generation(#[from] generations::Misuse),
    /// More was found at a restart than there are places: the driver is to count first.
    #[error(transparent)]
    TableFull(#[from] TableFull),
    /// The input speaks of a transaction that is not in the table.
    #[error("transaction {0} is not in the table")]
    UnknownTransaction(Gid),
    /// Restart inputs on a node that is not fenced.
    #[error("the node is not fenced")]
    NotFenced,
}
