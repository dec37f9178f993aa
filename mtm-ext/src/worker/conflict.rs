//! Distributed deadlocks, found by the fact: the apply of another node's transaction waits for a
//! transaction of this node that has been announced and so waits for its votes.
//!
//! Both hold what the other needs: the announced one has the row here, so the other one cannot
//! have voted yes here; and the same holds the other way round at the other's origin. Both origins
//! apply the same rule to the same two names, so that exactly one of the two survives.

use crate::pg::lockwait;
use crate::pg::proc;
use crate::pg::shmem;
use crate::{guc, machine};
use mtm_core::{Gid, Instant};
use mtm_node::{Input, Verdict, judge};

/// How long after the previous look to look again, by the age of the youngest work.
pub const fn next_look_us(age_us: u64) -> u64 {
    match age_us {
        0..5_000 => 3_000,
        5_000..50_000 => 5_000,
        50_000..1_000_000 => 20_000,
        _ => 200_000,
    }
}

/// Work younger than this is under way, not waiting.
const YOUNG_US: u64 = 700;

/// Looks at what blocks these transactions of another node.
pub fn look(busy: impl Iterator<Item = (Gid, Instant)>) {
    let now = proc::now();
    for (gid, since) in busy {
        if now.since(since) < YOUNG_US {
            continue;
        }
        let worker = shmem::node(|state| state.notes.get_mut(&gid).map(|note| note.worker));
        let Some(worker) = worker.filter(|procno| *procno != proc::NO_PROC) else { continue };
        if lockwait::is_waiting(worker) {
            settle(&gid, worker);
        }
    }
}

/// The announced transaction of this process, if it has one.
fn announced(blocker: proc::ProcNo) -> Option<Gid> {
    let at = usize::try_from(blocker).ok()?;
    shmem::node(|state| state.backends.get(at).and_then(|backend| backend.gid))
}

/// Decides between a waiting transaction and the announced ones it waits for.
fn settle(theirs: &Gid, worker: proc::ProcNo) {
    for blocker in lockwait::blockers(worker) {
        let Some(ours) = announced(blocker) else { continue };
        let theirs_wins = judge(*theirs, ours) == Verdict::AbortHolder;
        let none_wins = guc::DEADLOCK_PREVENTION.get() == guc::Prevention::Simple;
        if theirs_wins || none_wins {
            abort_ours(ours, *theirs, theirs_wins, false);
        }
        if !theirs_wins {
            // Its own origin finds the same, and its abort round cancels the worker; refusing at
            // once saves that round trip.
            refuse_theirs(theirs, ours);
            proc::cancel(worker);
        }
        return;
    }
}

fn refuse_theirs(theirs: &Gid, ours: Gid) {
    shmem::node(|state| {
        if let Some(note) = state.notes.get_mut(theirs) {
            note.lost_to = Some(ours);
        }
    });
}

/// For a transaction of another node that needs the name of a user's transaction, which `holder`
/// holds: whether it is refused for that. Otherwise the holder goes, or is waited for.
pub fn loses_name(theirs: &Gid, holder: Gid) -> bool {
    if shmem::node(|state| state.backend_of(&holder).is_none()) {
        return false; // decided elsewhere, or just being carried out
    }
    let theirs_wins = judge(*theirs, holder) == Verdict::AbortHolder;
    let none_wins = guc::DEADLOCK_PREVENTION.get() == guc::Prevention::Simple;
    if theirs_wins || none_wins {
        abort_ours(holder, *theirs, theirs_wins, true);
    }
    !theirs_wins
}

fn abort_ours(ours: Gid, theirs: Gid, judged: bool, of_name: bool) {
    let input =
        if judged { Input::Conflict { waiter: theirs, holder: ours } } else { Input::Cancel(ours) };
    machine::feed_after(input, |state| {
        if let Some((_, backend)) = state.backend_of(&ours) {
            backend.lost_name |= of_name && backend.lost_to.is_none();
            backend.lost_to.get_or_insert(theirs);
        }
    });
}
