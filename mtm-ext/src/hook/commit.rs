//! The commit of a transaction that began on this node: announce, wait for the decision, obey.
//!
//! The rules are [`mtm_node::Node`]'s; this module tells it what happens and does what it says.
//! Users' own two-phase transactions are in [`super::twophase`].

use crate::pg::shmem::{self, Backend, RefusalCopy};
use crate::pg::{message, proc, walwake, xact};
use crate::users::{self, Work};
use crate::{cluster, guc, machine};
use core::cell::Cell;
use mtm_core::{Gid, LocalXid, Lsn, NodeSet};
use mtm_generations::NodeStatus;
use mtm_logrep::announcement::{self, Announcement};
use mtm_node::user::{Obstacle, Operation};
use mtm_node::{Effect, Input, Outcome, Rejection, Role};
use mtm_paxos::commit::{CoordinatorState, Decree};
use pgrx::{PgSqlErrorCode, ereport};

thread_local! {
    /// The transaction that this process has announced, until it ends.
    static ANNOUNCED: Cell<Option<Gid>> = const { Cell::new(None) };
    /// It is in the barrier: stamped, and not written to the log yet.
    static IN_BARRIER: Cell<bool> = const { Cell::new(false) };
    /// Its commit is decided.
    static DECIDED: Cell<Option<Gid>> = const { Cell::new(None) };
    /// The committed transaction whose peers are still to be waited for.
    static AWAITED: Cell<Option<Gid>> = const { Cell::new(None) };
}

/// How long to wait for the end of an abort round, and for others' decision of what was given up.
const SETTLE_US: u64 = 3_000_000;
/// How long to wait for room in the table of transactions, holding locks as long, and how often to
/// ask for it.
const ROOM_US: u64 = 5_000_000;
const ROOM_AGAIN_US: u64 = 10_000;
/// How often to look at the members while waiting for votes.
const LOOK_US: u64 = 500_000;

/// Why a transaction is aborted.
#[expect(clippy::large_enum_variant, reason = "one for a transaction that fails, raised at once")]
enum Cause {
    Refused(RefusalCopy),
    LostConflict(Gid),
    LostName(Gid),
    LostPeers(NodeSet),
    Interrupted,
}

/// XACT_EVENT_PRE_COMMIT: returns when commit is decided or nothing needs deciding.
pub fn pre_commit() {
    announce_used_sequences();
    let Some(xid) = xid_to_announce() else { return };
    let announced = decide(xid, super::twophase::work().as_ref());
    xact::mark_commit_record(announced);
    walwake::suppress();
}

/// With `monotonic_sequences`, peers must know which values this transaction took.
pub(super) fn announce_used_sequences() {
    let wanted = guc::MONOTONIC_SEQUENCES.get() && cluster::replicates();
    if wanted && crate::pg::sequences::announce_used() {
        xact::mark_replicable();
    }
}

/// XACT_EVENT_PREPARE: the record is durable. The statement does the rest.
pub fn prepared() {
    walwake::restore();
    if let Some(gid) = DECIDED.take() {
        super::twophase::durable(gid);
    }
}

/// XACT_EVENT_COMMIT: the commit record is durable, so the decision may leave.
pub fn committed() {
    walwake::restore();
    let Some(gid) = DECIDED.take() else { return };
    if super::twophase::durable(gid) {
        return;
    }
    machine::feed(Input::CommitDurable(gid));
    if guc::WAIT_PEER_COMMITS.get() {
        AWAITED.set(Some(gid));
    }
}

/// XACT_EVENT_ABORT.
pub fn ended() {
    walwake::restore();
    super::twophase::forget();
    AWAITED.set(None);
    if let Some(gid) = DECIDED.take().or_else(super::twophase::is_durable) {
        // The others may have been told by nobody but this process, which did not: after the
        // restart this node refuses it, and so do all.
        ereport!(
            PANIC,
            PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            format!("transaction {gid} could not be committed here after commit was decided"),
            "This server restarts and recovers from the other nodes."
        );
    }
    let Some(gid) = ANNOUNCED.take() else { return };
    let input = match IN_BARRIER.replace(false) {
        true => Input::AnnouncementFailed(gid),
        false => Input::Cancel(gid),
    };
    machine::feed_after(input, |state| state.end_operation(&gid, Decree::Abort));
    free_mine();
}

/// After the transaction's locks are released: waits for the members' commits if so set.
pub fn locks_released() {
    if super::twophase::is_durable().is_some() {
        return;
    }
    if let Some(gid) = AWAITED.take() {
        await_peers(gid);
    }
    if ANNOUNCED.take().is_some() {
        free_mine();
    }
}

/// An operation on a user's transaction is done here: waits for the members' commits if so set.
pub(super) fn done(gid: Gid) {
    if guc::WAIT_PEER_COMMITS.get() {
        await_peers(gid);
    }
    if ANNOUNCED.take().is_some() {
        free_mine();
    }
}

fn free_mine() {
    shmem::node(|state| state.occupy(None));
}

/// The number of the running transaction, if members must agree to it.
pub(super) fn xid_to_announce() -> Option<LocalXid> {
    let xid = xact::full_xid()?;
    (cluster::replicates() && wrote_something_replicated()).then_some(xid)
}

fn wrote_something_replicated() -> bool {
    xact::is_marked_replicable()
        || xact::row_locked_relations()
            .into_iter()
            .any(|relation| xact::is_logged_table(relation) && !crate::hook::is_local(relation))
}

/// Announces the transaction, with what it does to a user's if anything, and waits for the outcome;
/// returns the announcement's end if that is commit and raises an ERROR otherwise.
pub(super) fn decide(xid: LocalXid, work: Option<&Work>) -> Lsn {
    xact::check_serializable();
    crate::pg::ddl::note_unchecked();
    let children = xact::committed_children();
    let gid = stamp(xid, work.map(|work| work.operation));
    ANNOUNCED.set(Some(gid));
    IN_BARRIER.set(true);
    let announced = write_announcement(&gid, xid, &children, work);
    machine::feed(Input::AnnouncementWritten(gid));
    IN_BARRIER.set(false);
    message::flush(announced);
    machine::feed(Input::AnnouncementDurable(gid));
    await_outcome(gid);
    DECIDED.set(Some(gid));
    announced
}

/// Enters the barrier of the node's generation. While too much is unfinished, it waits: this
/// node's share of the members' tables becomes free as transactions are forgotten.
fn stamp(xid: LocalXid, operation: Option<Operation>) -> Gid {
    let start = proc::now();
    loop {
        match machine::announce(xid, operation) {
            Err(obstacle) => super::twophase::raise_taken(obstacle),
            Ok(None) => refuse_unless_online(),
            Ok(Some(Effect::WriteAnnouncement(gid))) => return gid,
            Ok(Some(Effect::Rejected(_, Rejection::TableFull)))
                if proc::now().since(start) < ROOM_US =>
            {
                proc::wait(None, Some(ROOM_AGAIN_US));
            }
            Ok(Some(Effect::Rejected(_, Rejection::TableFull))) => {
                ereport!(
                    ERROR,
                    PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                    "too many transactions of the cluster are unfinished or not forgotten yet",
                    "A member that does not get on with its part keeps what came after it from being \
                     forgotten. The number of places is multimaster.max_transactions."
                );
            }
            // The generation changes just now.
            Ok(Some(_)) => {
                proc::wait(None, Some(5_000));
            }
        }
        proc::check_interrupts();
    }
}

pub(super) fn refuse_unless_online() {
    if let Err(state) = cluster::await_online() {
        let status = state.map_or(NodeStatus::Disabled, |state| state.status);
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_CANNOT_CONNECT_NOW,
            format!("[multimaster] node is not online: current status \"{status}\""),
            format!("The transaction was rolled back: {}.", cluster::status_reason())
        );
    }
}

/// Inserts the marker and the announcement, which becomes this node's own vote once it is durable.
fn write_announcement(gid: &Gid, xid: LocalXid, children: &[u32], work: Option<&Work>) -> Lsn {
    let mut content = Vec::with_capacity(40 + 4 * children.len());
    // The marker belongs to the transaction: it gives it a base snapshot in every decoder, and
    // tells its name wherever it is replayed.
    write_marker(gid);
    if let Some(work) = work {
        // Prepared here only once it is decided.
        users::write(gid, work, true);
    }
    Announcement::encode(gid, xid, children.iter().copied(), &mut content);
    debug_assert_eq!(announcement::PREFIX, "mtm");
    message::log(c"mtm", &content, false)
}

/// Writes the name of the running transaction into it.
pub fn write_marker(gid: &Gid) {
    let mut content = Vec::with_capacity(20);
    gid.encode(&mut mtm_core::wire::Writer::new(&mut content));
    message::log(c"mtm-marker", &content, true);
}

/// What others have written down for this process, and what may be a reason to give up.
struct Look {
    place: Backend,
    refusal: Option<RefusalCopy>,
    /// Members in no clique with this node.
    missing: NodeSet,
}

fn look() -> Look {
    shmem::node(|state| Look {
        place: *state.mine(),
        refusal: state.refusals[proc::my_procno() as usize],
        missing: state.node().map_or(NodeSet::EMPTY, |node| cluster::missing(&node)),
    })
}

fn own_state(gid: Gid) -> Option<CoordinatorState> {
    machine::look(|node| match node.transaction(&gid).map(|entry| entry.role) {
        Some(Role::Own(own)) => Some(own.state()),
        _ => None,
    })
    .flatten()
}

/// Waits for the decision: returns if it is commit.
fn await_outcome(gid: Gid) {
    let mut cause = None;
    let mut asked_us = None;
    let mut lost_since = None;
    loop {
        let look = look();
        if look.place.commit {
            return;
        }
        match (look.place.outcome, look.place.gave_up) {
            (Some(Outcome::Committed), _) => return,
            (Some(Outcome::Aborted), _) => raise(gid, cause.or_else(|| cause_here(look))),
            (None, true) => await_settlement(gid, cause),
            (None, false) => {}
        }
        let now = proc::now().0;
        let missing = look.missing;
        if asked_us.is_none()
            && let Some(found) = cause_here(look).or_else(|| lost_peers(missing, &mut lost_since))
        {
            cause = Some(found);
            asked_us = Some(now);
            machine::feed(Input::Cancel(gid));
            continue;
        }
        if asked_us.is_some_and(|at| now > at + SETTLE_US) && abort_is_accepted(gid) {
            raise_unknown(gid, cause);
        }
        proc::wait(None, Some(LOOK_US));
    }
}

fn abort_is_accepted(gid: Gid) -> bool {
    matches!(own_state(gid), Some(CoordinatorState::Aborting) | None)
}

fn cause_here(look: Look) -> Option<Cause> {
    if let Some(refusal) = look.refusal {
        return Some(Cause::Refused(refusal));
    }
    if let Some(winner) = look.place.lost_to.filter(|_| look.place.lost_name) {
        return Some(Cause::LostName(winner));
    }
    if let Some(winner) = look.place.lost_to {
        return Some(Cause::LostConflict(winner));
    }
    proc::interrupted().then_some(Cause::Interrupted)
}

/// Members that have been out of reach for so long that a new generation should be there: it is
/// not, so this node is on the wrong side.
fn lost_peers(missing: NodeSet, since: &mut Option<u64>) -> Option<Cause> {
    let now = proc::now().0;
    if missing.is_empty() {
        *since = None;
        return None;
    }
    let start = *since.get_or_insert(now);
    (now - start > SETTLE_US / 2).then_some(Cause::LostPeers(missing))
}

/// The transaction was left to others by a change of generation. Its rows stay locked here for a
/// moment, so that the client can be told what became of it.
fn await_settlement(gid: Gid, cause: Option<Cause>) -> ! {
    let end = proc::now().0 + SETTLE_US;
    loop {
        match look().place.outcome {
            Some(Outcome::Aborted) => {
                // What made it fail is the change, unless there was a reason before.
                raise(gid, cause.or(Some(Cause::LostPeers(NodeSet::EMPTY))))
            }
            Some(Outcome::Committed) => break,
            None => {}
        }
        let serves = cluster::state().is_some_and(|s| s.serves || s.moving);
        if proc::now().0 >= end || !serves || proc::interrupted() {
            break;
        }
        proc::wait(None, Some(20_000));
    }
    raise_unknown(gid, cause)
}

/// Tells the client that its transaction is rolled back, and why.
fn raise(gid: Gid, cause: Option<Cause>) -> ! {
    match cause {
        Some(Cause::Refused(refusal)) => raise_refusal(gid, &refusal),
        Some(Cause::LostConflict(winner)) => raise_conflict(gid, winner),
        Some(Cause::LostName(winner)) => super::twophase::raise_taken(Obstacle::Busy(winner)),
        Some(Cause::LostPeers(lost)) => raise_lost(gid, lost),
        Some(Cause::Interrupted) | None => proc::check_interrupts(),
    }
    ereport!(
        ERROR,
        PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
        "could not commit: the transaction was aborted",
        format!("Transaction {gid} was rolled back on every node.")
    );
}

fn raise_lost(gid: Gid, lost: NodeSet) -> ! {
    let what = if lost.is_empty() {
        "the members of the cluster changed".to_owned()
    } else {
        format!("connection to node {} was lost", list(lost))
    };
    ereport!(
        ERROR,
        PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
        format!("could not commit: {what}"),
        format!("Transaction {gid} was rolled back because not every node could confirm it.")
    );
}

/// The client cannot be told: others decide, now or later.
fn raise_unknown(gid: Gid, cause: Option<Cause>) -> ! {
    let why = match cause {
        Some(Cause::LostPeers(lost)) if !lost.is_empty() => {
            format!("Connection to node {} was lost.", list(lost))
        }
        _ => "The members of the cluster changed while it waited.".to_owned(),
    };
    ereport!(
        ERROR,
        PgSqlErrorCode::ERRCODE_TRANSACTION_RESOLUTION_UNKNOWN,
        format!("the outcome of transaction {gid} is not known"),
        format!("{why} The members of the new generation decide whether it is committed.")
    );
}

/// Numbers of nodes, for a message.
fn list(nodes: NodeSet) -> String {
    nodes.iter().map(|node| node.to_string()).collect::<Vec<_>>().join(", ")
}

fn raise_conflict(gid: Gid, winner: Gid) -> ! {
    ereport!(
        ERROR,
        PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
        "could not serialize access due to a concurrent transaction on another node",
        format!("Transaction {gid} lost against transaction {winner} of node {}.", winner.origin)
    );
}

fn raise_refusal(gid: Gid, refusal: &RefusalCopy) -> ! {
    let state = core::str::from_utf8(&refusal.sqlstate).unwrap_or("XX000");
    let (message, detail) = (refusal.message.as_str(), refusal.detail.as_str());
    let space = if detail.is_empty() { "" } else { " " };
    crate::pg::bgworker::raise(
        state,
        message,
        &format!("{detail}{space}Node {} refused transaction {gid}.", refusal.from),
    )
}

/// Nodes whose readers may not see the transaction yet; and members in no clique with this node.
fn missing(gid: Gid) -> (NodeSet, NodeSet) {
    machine::look(|node| (node.unseen(&gid), cluster::missing(node))).unwrap_or_default()
}

/// Waits until every member has committed, or is left out by all others. The transaction is
/// committed: nothing here may fail. Who cannot know whether readers elsewhere see it says nothing:
/// its client loses the connection.
fn await_peers(gid: Gid) {
    let mut lost_since = None;
    loop {
        let (unseen, lost) = missing(gid);
        if unseen.is_empty() {
            return;
        }
        if lost_peers(lost, &mut lost_since).is_some() {
            pgrx::ereport!(
                WARNING,
                PgSqlErrorCode::ERRCODE_TRANSACTION_RESOLUTION_UNKNOWN,
                format!("terminating connection: no connection to node {}", list(lost)),
                format!("Transaction {gid} is committed here; not every node has confirmed it.")
            );
            return proc::withhold_answer();
        }
        if proc::interrupted() {
            pgrx::warning!(
                "canceling the wait for other nodes to commit; transaction {gid} is committed"
            );
            if proc::is_terminated() {
                proc::withhold_answer();
            }
            return;
        }
        if !proc::wait_committed(LOOK_US) {
            return;
        }
    }
}
