//! Distributed deadlocks, found by the fact: the apply of another node's transaction waits for a
//! transaction of this node that has been announced and so waits for its votes.
//!
//! Both hold what the other needs: the announced one has the row here, so the other one cannot
//! have voted yes here; and the same holds the other way round at the other's origin. Both origins
//! apply the same rule to the same two names, so that exactly one of the two survives.

use crate::guc;
use crate::pg::lockwait;
use crate::pg::proc;
use crate::pg::shmem;
use mtm_core::{Gid, Instant};

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
        let worker = shmem::participants(|table| table.get_mut(&gid).map(|part| part.worker));
        let Some(worker) = worker.filter(|procno| *procno != proc::NO_PROC) else { continue };
        if lockwait::is_waiting(worker) {
            settle(&gid, worker);
        }
    }
}

/// Decides between a waiting transaction and the announced ones it waits for.
fn settle(theirs: &Gid, worker: proc::ProcNo) {
    for blocker in lockwait::blockers(worker) {
        let ours = shmem::coordinators(|c| {
            c.of(blocker).and_then(|slot| slot.coordinator.map(|machine| machine.gid()))
        });
        let Some(ours) = ours else { continue };
        let theirs_wins = wins(theirs, &ours);
        let none_wins = guc::DEADLOCK_PREVENTION.get() == guc::Prevention::Simple;
        if theirs_wins || none_wins {
            let lost = shmem::coordinators(|c| {
                let Some((procno, slot)) = c.find(&ours) else { return false };
                slot.lost_to.get_or_insert(*theirs);
                procno == blocker
            });
            if lost {
                proc::wake(blocker);
            }
        }
        if !theirs_wins {
            // Its own origin finds the same, and its abort round cancels the worker; refusing at
            // once saves that round trip.
            shmem::participants(|table| {
                if let Some(part) = table.get_mut(theirs) {
                    part.lost_to = Some(ours);
                }
            });
            proc::cancel(worker);
        }
        return;
    }
}

/// Whether `a` survives against `b`: the older generation, then a mixed number that favours no
/// node for long.
fn wins(a: &Gid, b: &Gid) -> bool {
    let key = |gid: &Gid| {
        let mixed = (gid.xid.0 ^ u64::from(gid.origin.get()) << 48)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .rotate_left(29);
        (gid.generation, mixed, gid.origin, gid.xid)
    };
    key(a) < key(b)
}
