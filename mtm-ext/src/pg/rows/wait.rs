//! Where applying waits for another transaction's row lock.

use pgrx::pg_sys;

use super::open::Open;

/// Waits until `xid` is finished. Every wait for a row that applying begins by itself is here;
/// unique indexes wait inside PostgreSQL.
///
/// # Safety
/// Inside a transaction, with no buffer locked.
pub(super) unsafe fn wait_for(xid: pg_sys::TransactionId, queue: impl FnOnce()) {
    queue();
    let none = core::ptr::null_mut();
    // SAFETY: the caller's promise; an interrupt leaves by an ERROR.
    unsafe {
        pg_sys::XactLockTableWait(xid, none, none.cast(), pg_sys::XLTW_Oper::XLTW_None);
    }
}

/// Waits until `xid`, which has the row at `tid`, is finished. As PostgreSQL's own sessions do, we
/// stand in the row's queue while we wait, and until our row is written: nobody who came later is
/// served first.
///
/// # Safety
/// As [`wait_for`]; the row is of the open table.
pub(super) unsafe fn wait_for_row(
    open: &mut Open,
    mut tid: pg_sys::ItemPointerData,
    mode: pg_sys::LockTupleMode::Type,
    xid: Option<pg_sys::TransactionId>,
) {
    // The heavyweight locks that stand for row locks in PostgreSQL's heap.
    let queue = match mode {
        pg_sys::LockTupleMode::LockTupleKeyShare => pg_sys::AccessShareLock,
        pg_sys::LockTupleMode::LockTupleNoKeyExclusive => pg_sys::ExclusiveLock,
        _ => pg_sys::AccessExclusiveLock,
    } as pg_sys::LOCKMODE;
    let rel = open.rel;
    let queued = &mut open.queued;
    // SAFETY: the caller's promise; the lock is given back at the row's end.
    let mut enqueue = || unsafe {
        pg_sys::LockTuple(rel, &mut tid, queue);
        queued.push((tid, queue));
    };
    match xid {
        // SAFETY: the caller's promise.
        Some(xid) => unsafe { wait_for(xid, enqueue) },
        // The holder is gone; whoever stood in the queue is served first.
        None => enqueue(),
    }
}
