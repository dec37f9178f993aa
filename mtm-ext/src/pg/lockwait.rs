//! Who waits for whom on heavyweight locks.

use super::proc::{self, ProcNo};
use pgrx::pg_sys;

/// Whether the process in this slot waits for a lock. Read without a lock: a hint.
pub fn is_waiting(procno: ProcNo) -> bool {
    // SAFETY: the process array lives as long as the server; one pointer is read at once.
    unsafe {
        let header = pg_sys::ProcGlobal;
        if procno < 0 || procno as u32 >= (*header).allProcCount {
            return false;
        }
        let at = (*header).allProcs.add(procno as usize);
        !(&raw const (*at).waitLock).read_volatile().is_null()
    }
}

/// Slots of processes that the process in this slot waits for, directly or through others that
/// wait themselves; nearest first.
pub fn blockers(procno: ProcNo) -> Vec<ProcNo> {
    let mut found = Vec::new();
    let mut queue = vec![proc::pid_of(procno)];
    let mut seen = queue.clone();
    while let Some(pid) = queue.pop() {
        for blocker in direct_blockers(pid) {
            if blocker > 0 && !seen.contains(&blocker) {
                seen.push(blocker);
                queue.insert(0, blocker);
                found.extend(slot_of(blocker));
            }
        }
    }
    found
}

fn slot_of(pid: i32) -> Option<ProcNo> {
    // SAFETY: returns null or a PGPROC in shared memory.
    unsafe { pg_sys::BackendPidGetProc(pid).as_ref().map(|proc| proc.pgprocno) }
}

/// Pids that hold, or are queued before it for, the lock that `pid` waits for; 0 stands for
/// prepared transactions.
fn direct_blockers(pid: i32) -> Vec<i32> {
    let mut pids = Vec::new();
    if pid <= 0 {
        return pids;
    }
    // SAFETY: GetBlockerStatusData returns palloc'd arrays whose lengths it states; they are
    // freed here. `lockMethodTable` conflicts are those of the default method.
    unsafe {
        let data = pg_sys::GetBlockerStatusData(pid);
        for i in 0..(*data).nprocs as usize {
            let blocked = &*(*data).procs.add(i);
            let first = blocked.first_lock as usize;
            let locks =
                core::slice::from_raw_parts((*data).locks.add(first), blocked.num_locks as usize);
            let waiters = core::slice::from_raw_parts(
                (*data).waiter_pids.add(blocked.first_waiter as usize),
                blocked.num_waiters as usize,
            );
            let Some(mine) = locks.iter().find(|lock| lock.pid == blocked.pid) else { continue };
            let wanted = conflicts_of(mine.waitLockMode);
            for lock in locks.iter().filter(|lock| lock.pid != blocked.pid) {
                let holds = lock.holdMask & wanted != 0;
                let queued = waiters.contains(&lock.pid)
                    && lock.waitLockMode > 0
                    && wanted & (1 << lock.waitLockMode) != 0;
                if holds || queued {
                    pids.push(lock.pid);
                }
            }
        }
        pg_sys::pfree((*data).procs.cast());
        pg_sys::pfree((*data).locks.cast());
        pg_sys::pfree((*data).waiter_pids.cast());
        pg_sys::pfree(data.cast());
    }
    pids
}

/// PostgreSQL's table of conflicting lock modes, as a mask (`LockConflicts` in lock.c).
const fn conflicts_of(mode: i32) -> i32 {
    match mode {
        1 => 1 << 8,
        2 => 1 << 7 | 1 << 8,
        3 => 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8,
        4 => 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8,
        5 => 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 8,
        6 => 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8,
        7 => 0b1_1111_1100,
        8 => 0b1_1111_1110,
        _ => 0,
    }
}
