//! mtm-resolver: ends prepared transactions that no apply worker has, makes way for what recovery
//! replays, and ends circles of waiting that lead through clients of several nodes.

use super::{conflict, crew, finish, open, recovery};
use crate::pg::shmem;
use crate::pg::{bgworker, lockwait, pipe, proc, sqlrun, xact};
use crate::{machine, users};
use core::sync::atomic::Ordering;
use mtm_core::{Gid, Instant};
use mtm_node::{Effect, Input};
use mtm_paxos::commit::Decree;
use pgrx::spi::Spi;
use std::collections::BTreeMap;

/// How often to look whether recovery waits for a lock, while there is recovery.
const LOOK_US: u64 = 10_000;
/// How often to look for what nobody has, if nobody says so.
const IDLE_US: u64 = 1_200_000;
/// Who is in the way of recovery for longer than this, and does not heed a cancel, is ended.
const PATIENCE_US: u64 = 200_000;
/// Recovery that waits for so long is worth a line in the log.
const COMPLAIN_US: u64 = 5_000_000;

/// Runs until the server stops.
pub fn run() {
    let header = shmem::header();
    bgworker::connect_to_database(header.database.load(Ordering::Relaxed));
    xact::set_applying();
    header.resolver.store(proc::my_procno(), Ordering::Release);
    pipe::with_exit_hook(serve, || drop(finish::release()));
}

fn serve() {
    let mut waiting = BTreeMap::new();
    let mut circles = conflict::Circles::default();
    bgworker::finish_before_end();
    loop {
        // A replay that brings to its end what it has begun may need this process.
        if bgworker::is_asked_to_end() && recovery::replayer().is_none() {
            bgworker::end_at_once();
        }
        bgworker::handle_signals();
        finish::orphans();
        make_way(&mut waiting);
        circles.untangle();
        open::note_left();
        let replays = recovery::replayer().is_some();
        proc::wait(None, Some(if replays { LOOK_US } else { IDLE_US }));
    }
}

/// Undecided transactions of the cluster that are prepared here and hold what the process with this
/// pid waits for.
pub fn in_the_way_of(pid: i32) -> Vec<Gid> {
    let found: Vec<(Option<Gid>, u32)> = sqlrun::in_transaction(|| {
        Spi::connect(|client| {
            let rows = client.select(IN_THE_WAY, None, &[pid.to_string().as_str().into()]);
            rows.expect("a plain query")
                .filter_map(|row| {
                    let gid = row.get::<String>(1).ok()?.and_then(|text| text.parse().ok());
                    Some((gid, u32::try_from(row.get::<i64>(2).ok()??).ok()?))
                })
                .collect()
        })
    });
    let named = |(gid, local): (Option<Gid>, u32)| {
        gid.or_else(|| shmem::node(|state| users::undecided_as(state, local)))
    };
    found.into_iter().filter_map(named).collect()
}

/// Prepared transactions that hold what the process with this pid waits for.
const IN_THE_WAY: &str = "SELECT DISTINCT CASE WHEN pg_catalog.starts_with(p.gid, 'MTM-') THEN p.gid END, \
     p.transaction::pg_catalog.text::pg_catalog.int8 FROM pg_catalog.pg_locks w \
     JOIN pg_catalog.pg_locks h ON h.granted AND h.pid IS NULL AND h.locktype = w.locktype \
     AND ROW(h.database, h.relation, h.page, h.tuple, h.transactionid, h.classid, h.objid, \
             h.objsubid) \
     IS NOT DISTINCT FROM ROW(w.database, w.relation, w.page, w.tuple, w.transactionid, \
             w.classid, w.objid, w.objsubid) \
     JOIN pg_catalog.pg_locks x ON x.granted AND x.pid IS NULL \
     AND x.locktype = 'transactionid' AND x.mode = 'ExclusiveLock' \
     AND x.virtualtransaction = h.virtualtransaction \
     JOIN pg_catalog.pg_prepared_xacts p ON p.transaction = x.transactionid \
     WHERE NOT w.granted AND w.pid = $1::text::int4";

/// What recovery replays is committed: whatever is undecided or local and stands in its way goes.
/// `waiting` has who waits, since when.
fn make_way(waiting: &mut BTreeMap<proc::ProcNo, Instant>) {
    let replayers = crew::replayers();
    waiting.retain(|replayer, _| replayers.contains(replayer));
    for replayer in &replayers {
        if lockwait::is_waiting(*replayer) {
            let since = *waiting.entry(*replayer).or_insert_with(proc::now);
            if make_way_for(*replayer, since, &replayers) {
                waiting.remove(replayer);
            }
        } else {
            waiting.remove(replayer);
        }
    }
}

/// Whether it has waited for so long that it was worth a line in the log.
fn make_way_for(replayer: proc::ProcNo, since: Instant, replayers: &[proc::ProcNo]) -> bool {
    let pid = proc::pid_of(replayer);
    for gid in in_the_way_of(pid) {
        for effect in machine::feed(Input::Drop(gid)) {
            if let Effect::DropPrepared(gid) = effect {
                drop_prepared(&gid);
            }
        }
    }
    // Sessions of users cannot write now; what they still hold would be refused anyway. One that
    // waits for its client does not heed a cancel.
    let waited = proc::now().since(since);
    // Those who replay beside it have their own way made.
    let blockers = lockwait::blockers(replayer);
    for blocker in blockers.into_iter().filter(|blocker| !replayers.contains(blocker)) {
        if waited < PATIENCE_US {
            proc::cancel(blocker);
        } else {
            proc::terminate(blocker);
        }
    }
    if waited > COMPLAIN_US {
        let blockers = lockwait::blockers(replayer);
        pgrx::log!("multimaster: recovery waits for a lock, held by processes {blockers:?}");
    }
    waited > COMPLAIN_US
}

/// Rolls back a prepared transaction without any outcome: this node lacks it from now on.
pub fn drop_prepared(gid: &Gid) {
    users::carry_out(gid, false);
    let mut waits = proc::NO_PROC;
    machine::feed_after(Input::RecoveryDone(*gid), |state| {
        waits = state.notes.get_mut(gid).map_or(proc::NO_PROC, |note| note.worker);
        state.notes.remove(gid);
        state.end_operation(gid, Decree::Abort);
    });
    // A worker that waits for the outcome has nothing to wait for any more.
    proc::wake(waits);
}
