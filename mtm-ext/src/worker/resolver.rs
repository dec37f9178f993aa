//! mtm-resolver: ends prepared transactions that no apply worker has, makes way for what recovery
//! replays, and asks for outcomes of users' two-phase transactions.

use super::{crew, finish, users};
use crate::machine;
use crate::pg::shmem::{self, Part};
use crate::pg::{bgworker, lockwait, pipe, proc, sqlrun, twophase, xact};
use core::sync::atomic::Ordering;
use mtm_core::{Gid, Instant, Lsn};
use mtm_node::{Effect, Input};
use mtm_paxos::commit::Participant;
use pgrx::spi::Spi;
use std::collections::BTreeMap;

/// How often to look whether recovery waits for a lock, while there is recovery.
const LOOK_US: u64 = 10_000;
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
    collect_users();
    pipe::with_exit_hook(serve, || {
        finish::release();
        users::release();
    });
}

fn serve() {
    let header = shmem::header();
    let mut waiting = BTreeMap::new();
    loop {
        bgworker::handle_signals();
        finish::orphans();
        users::finish_orphans();
        let undecided = users::ask();
        make_way(&mut waiting);
        let replays = header.replayer.load(Ordering::Acquire) != proc::NO_PROC;
        let patience = match (replays, undecided) {
            (true, _) => LOOK_US,
            (false, true) => users::ASK_US,
            (false, false) => 4 * users::ASK_US,
        };
        proc::wait(None, Some(patience));
    }
}

/// Takes note of users' transactions of other nodes that were prepared before the server started.
fn collect_users() {
    let me = shmem::header().me();
    let theirs = |gid: &Gid| Some(gid.origin) != me && crate::cluster::is_users(gid);
    for gid in prepared_gids("").into_iter().filter(theirs) {
        shmem::participants(|table| {
            let fresh = || Part::new(Participant::found_prepared(), Lsn(0), 0);
            if table.entry(gid, fresh).is_err() {
                pgrx::warning!("no place for prepared transaction {gid}");
            }
        });
    }
}

/// Names of prepared transactions of this database.
fn prepared_gids(of_waiter: &str) -> Vec<Gid> {
    let texts: Vec<String> = sqlrun::in_transaction(|| {
        Spi::connect(|client| {
            let rows = if of_waiter.is_empty() {
                client.select(PREPARED, None, &[])
            } else {
                client.select(IN_THE_WAY, None, &[of_waiter.into()])
            };
            let rows = rows.expect("a plain query");
            rows.filter_map(|row| row.get::<String>(1).ok().flatten()).collect()
        })
    });
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

const PREPARED: &str = "SELECT gid FROM pg_catalog.pg_prepared_xacts \
     WHERE database = pg_catalog.current_database()";

/// Prepared transactions that hold what the process with this pid waits for.
const IN_THE_WAY: &str = "SELECT DISTINCT p.gid FROM pg_catalog.pg_locks w \
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
    for gid in prepared_gids(&pid.to_string()) {
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
    twophase::finish(&gid.to_string(), false);
    machine::feed_after(Input::RecoveryDone(*gid), |state| {
        state.notes.remove(gid);
    });
}
