//! Users' own two-phase transactions: PREPARE TRANSACTION is agreed by all members; COMMIT PREPARED
//! and ROLLBACK PREPARED at the origin decide.
//!
//! The rules are [`mtm_paxos::commit::Coordinator`]'s. These transactions are not in the node's
//! machine: no change of generation settles them, only their user does (design: "Edges that need
//! their own rule").

use super::commit::{
    Cause, announce_used_sequences, list, raise, refuse_unless_online, write_announcement,
    xid_to_announce,
};
use crate::machine::log_abort_accepted;
use crate::pg::conn::{Conn, ConnError};
use crate::pg::shmem::{self, RefusalCopy};
use crate::pg::{message, proc, xact};
use crate::report;
use crate::{cluster, dmq, guc, machine};
use core::cell::Cell;
use core::sync::atomic::Ordering;
use mtm_core::{Gid, LocalXid, NodeId, NodeSet, Xid};
use mtm_node::message::Message;
use mtm_paxos::commit::{Coordinator, CoordinatorState, CoordinatorStep, Decree};
use pgrx::PgSqlErrorCode;

thread_local! {
    /// The committed transaction whose peers are still to be waited for.
    static AWAITED: Cell<Option<Gid>> = const { Cell::new(None) };
    /// Whether this process' slot is in use.
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
}

/// XACT_EVENT_PRE_PREPARE of a user's PREPARE TRANSACTION: returns when all members have prepared
/// it. COMMIT PREPARED and ROLLBACK PREPARED decide its outcome later.
pub fn pre_prepare() {
    announce_used_sequences();
    let Some(xid) = xid_to_announce() else { return };
    xact::check_preparable();
    let Some(me) = shmem::header().me() else { return };
    refuse_unless_online();
    // Not the machine's: it bears the server's number.
    let gid = Gid { origin: me, xid: Xid(xid.0), generation: cluster::USERS };
    decide(gid, xid, machine::members());
}

/// XACT_EVENT_ABORT and XACT_EVENT_PREPARE.
pub fn ended() {
    AWAITED.set(None);
    free();
}

/// After the transaction's locks are released: waits for the members' commits if so set.
pub fn locks_released() {
    if let Some(gid) = AWAITED.take() {
        await_peers(gid);
    }
    free();
}

fn free() {
    if REGISTERED.replace(false) {
        shmem::coordinators(|c| c.free_mine());
    }
}

/// Before a user's COMMIT PREPARED: raises an ERROR when some members hold the transaction and some
/// do not. Who joined again while it was prepared does not, and would never get its rows
/// (specs/adr/0111 says how that is to be). When nobody else holds it, it concerns this node only.
pub fn check_held(gid: &Gid) {
    refuse_unless_online();
    let Some(me) = shmem::header().me() else { return };
    let members = machine::members().without(me);
    let mut holders = NodeSet::EMPTY;
    for node in members {
        match holds(node, gid) {
            Ok(true) => holders.insert(node),
            Ok(false) => false,
            Err(error) => report::error(
                PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE,
                format!("could not ask node {node} for the prepared transaction: {error}"),
                "",
                "The transaction is still prepared. Try again.",
            ),
        };
    }
    if !holders.is_empty() && holders != members {
        report::error(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!(
                "node {} does not hold the prepared transaction",
                list(members.difference(holders))
            ),
            "It came back into the cluster while the transaction was prepared.",
            "Roll it back with ROLLBACK PREPARED and do the work again.",
        );
    }
}

fn holds(node: NodeId, gid: &Gid) -> Result<bool, ConnError> {
    let keywords = [("application_name", cluster::ADMIN)];
    let timeout = guc::CONNECT_TIMEOUT.get().max(5);
    let mut conn = Conn::connect(&shmem::conninfo(node), &keywords, timeout)?;
    let query = "SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE gid = $1";
    Ok(!conn.query(query, &[&gid.to_string()])?.is_empty())
}

/// A user's COMMIT PREPARED is durable here: tells the members and waits for them if so set.
pub fn user_prepared_committed(gid: Gid) {
    let members = machine::members();
    register(gid, members);
    shmem::coordinators(|c| {
        if let Some(coordinator) = &mut c.mine().coordinator {
            for member in members {
                coordinator.vote(member, true);
            }
        }
    });
    tell_committed(gid);
    locks_released();
}

/// A user's ROLLBACK PREPARED is durable here.
pub fn user_prepared_rolled_back(gid: Gid) {
    dmq::send_all(shmem::header().peers_set(), &Message::Decided(gid, Decree::Abort));
}

fn tell_committed(gid: Gid) {
    let step = shmem::coordinators(|c| {
        let coordinator = c.mine().coordinator.as_mut();
        coordinator.map_or(CoordinatorStep::Nothing, Coordinator::commit_durable)
    });
    if let CoordinatorStep::TellCommit(members) = step {
        dmq::send_all(members, &Message::Decided(gid, Decree::Commit));
        if guc::WAIT_PEER_COMMITS.get() {
            AWAITED.set(Some(gid));
        }
    }
}

/// Announces the transaction and waits for the outcome; raises an ERROR unless all members have
/// prepared it.
fn decide(gid: Gid, xid: LocalXid, members: NodeSet) {
    xact::check_serializable();
    crate::pg::ddl::note_unchecked();
    let children = xact::committed_children();
    register(gid, members);
    message::flush(write_announcement(&gid, xid, &children));
    step_mine(Coordinator::announced);
    await_outcome(gid);
}

fn register(gid: Gid, members: NodeSet) {
    REGISTERED.set(true);
    shmem::coordinators(|c| {
        c.free_mine();
        let slot = c.mine();
        slot.coordinator = Some(Coordinator::new(gid, members));
        for member in members {
            slot.epochs[member.index()] = shmem::peer(member).epoch.load(Ordering::Acquire);
        }
    });
}

fn step_mine(step: impl FnOnce(&mut Coordinator) -> CoordinatorStep) -> CoordinatorStep {
    shmem::coordinators(|c| c.mine().coordinator.as_mut().map_or(CoordinatorStep::Nothing, step))
}

/// What the wait looks at, copied out under the lock.
struct View {
    state: CoordinatorState,
    missing: NodeSet,
    refusal: Option<RefusalCopy>,
    lost_to: Option<Gid>,
    epochs: [u32; mtm_core::MAX_NODES as usize],
}

fn view_mine() -> Option<View> {
    shmem::coordinators(|c| {
        let slot = c.mine();
        slot.coordinator.map(|coordinator| View {
            state: coordinator.state(),
            missing: coordinator.missing(),
            refusal: slot.refusal,
            lost_to: slot.lost_to,
            epochs: slot.epochs,
        })
    })
}

impl View {
    /// Members without which nothing more will happen: their messages may be lost.
    fn lost_peers(&self) -> NodeSet {
        let me = shmem::header().me();
        let lost = |node: &NodeId| {
            let epoch = shmem::peer(*node).epoch.load(Ordering::Acquire);
            epoch != self.epochs[node.index()] || !cluster::is_linked(*node)
        };
        self.missing.iter().filter(|node| Some(*node) != me).filter(lost).collect()
    }
}

/// How long to wait until heartbeats must be looked at again.
fn patience_us() -> u64 {
    u64::from(guc::HEARTBEAT_RECV_TIMEOUT.get().unsigned_abs()) * 1000 / 4 + 1000
}

fn await_outcome(gid: Gid) {
    let mut cause = None;
    loop {
        let view = view_mine().expect("registered until the transaction ends");
        match view.state {
            CoordinatorState::CommitDecided => return,
            CoordinatorState::Aborted => break,
            CoordinatorState::Voting => {
                if let Some(found) = cause_to_abort(&view) {
                    cause = Some(found);
                    start_abort(gid);
                    continue;
                }
            }
            CoordinatorState::AbortPending | CoordinatorState::Aborting => {
                if !view.lost_peers().is_empty() {
                    give_up(gid, cause, view.lost_peers());
                }
            }
            CoordinatorState::Committed | CoordinatorState::GivenUp => break,
        }
        proc::wait(None, Some(patience_us()));
    }
    raise(gid, cause);
}

fn cause_to_abort(view: &View) -> Option<Cause> {
    if let Some(refusal) = view.refusal {
        return Some(Cause::Refused(refusal));
    }
    if let Some(winner) = view.lost_to {
        return Some(Cause::LostConflict(winner));
    }
    if proc::interrupted() {
        return Some(Cause::Interrupted);
    }
    let lost = view.lost_peers();
    (!lost.is_empty()).then_some(Cause::LostPeers(lost))
}

/// The abort round: no vote counts any more; abort is accepted durably here, then everywhere.
fn start_abort(gid: Gid) {
    if step_mine(Coordinator::start_abort) != CoordinatorStep::PersistAbort {
        return;
    }
    log_abort_accepted(&gid);
    match step_mine(Coordinator::abort_durable) {
        CoordinatorStep::AskAbort(members) => dmq::send_all(members, &Message::AskAbort(gid)),
        CoordinatorStep::TellAbort(members) => {
            dmq::send_all(members, &Message::Decided(gid, Decree::Abort));
        }
        _ => {}
    }
}

/// Members that cannot be reached keep the transaction prepared until they have asked. As long as
/// nobody but its origin may decide, its durable acceptance of abort is the outcome.
fn give_up(gid: Gid, cause: Option<Cause>, lost: NodeSet) -> ! {
    shmem::coordinators(|c| {
        if let Some(coordinator) = &mut c.mine().coordinator {
            coordinator.give_up();
        }
    });
    raise(gid, Some(cause.unwrap_or(Cause::LostPeers(lost))))
}

/// Waits until every member has committed, or cannot say so any more. The transaction is
/// committed: nothing here may fail.
fn await_peers(gid: Gid) {
    loop {
        let Some(view) = view_mine() else { return };
        if view.missing.is_empty() || view.missing == view.lost_peers() {
            return;
        }
        if proc::interrupted() {
            pgrx::warning!(
                "canceling the wait for other nodes to commit; transaction {gid} is committed"
            );
            return;
        }
        if !proc::wait_committed(patience_us()) {
            return;
        }
    }
}
