//! Flags of the reorder buffer's transactions; what differs between versions stays here.

use pgrx::pg_sys;

const PREPARED: u32 = pg_sys::RBTXN_PREPARE;
const CLEARED: u32 = pg_sys::RBTXN_PREPARE | pg_sys::RBTXN_SKIPPED_PREPARE;

/// Whether the transaction was rolled back while it was being decoded; rows may be missing.
///
/// # Safety
/// `txn` is a live transaction of a reorder buffer.
pub unsafe fn was_aborted_concurrently(txn: *mut pg_sys::ReorderBufferTXN) -> bool {
    // SAFETY: the caller's promise.
    unsafe { (*txn).concurrent_abort }
}

/// Runs `body` for each subtransaction.
///
/// # Safety
/// As above; `body` must not change the list.
unsafe fn each_subtransaction(
    txn: *mut pg_sys::ReorderBufferTXN,
    body: impl Fn(*mut pg_sys::ReorderBufferTXN),
) {
    // SAFETY: `subtxns` is a circular list whose links are the `node` fields of transactions.
    unsafe {
        let head = &raw mut (*txn).subtxns.head;
        let mut node = (*head).next;
        while !node.is_null() && node != head {
            let offset = core::mem::offset_of!(pg_sys::ReorderBufferTXN, node);
            body(node.byte_sub(offset).cast());
            node = (*node).next;
        }
    }
}

/// Whether the transaction, or one of its subtransactions that are not known to be rolled back,
/// was rolled back while it was being decoded.
///
/// # Safety
/// As above.
pub unsafe fn was_any_aborted_concurrently(txn: *mut pg_sys::ReorderBufferTXN) -> bool {
    let found = core::cell::Cell::new(false);
    // SAFETY: the caller's promise.
    unsafe {
        each_subtransaction(txn, |sub| {
            if (*sub).concurrent_abort {
                found.set(true);
            }
        });
        found.get() || was_aborted_concurrently(txn)
    }
}

/// Numbers of the subtransactions that are not known to be rolled back.
///
/// # Safety
/// As above.
pub unsafe fn subtransactions(txn: *mut pg_sys::ReorderBufferTXN) -> Vec<u32> {
    let found = core::cell::RefCell::new(Vec::new());
    // SAFETY: the caller's promise.
    unsafe {
        each_subtransaction(txn, |sub| found.borrow_mut().push((*sub).xid.into_inner()));
    }
    found.into_inner()
}

/// Whether this is a subtransaction.
///
/// # Safety
/// As above.
pub unsafe fn is_subtransaction(txn: *mut pg_sys::ReorderBufferTXN) -> bool {
    // SAFETY: the caller's promise.
    unsafe { (*txn).txn_flags & pg_sys::RBTXN_IS_SUBXACT != 0 }
}

/// Marks subtransactions so that a rollback during decoding is noticed.
///
/// # Safety
/// As [`was_aborted_concurrently`].
pub unsafe fn mark_subtransactions_prepared(txn: *mut pg_sys::ReorderBufferTXN) {
    // SAFETY: the caller's promise.
    unsafe { each_subtransaction(txn, |sub| (*sub).txn_flags |= PREPARED) }
}

/// Makes the transaction an ordinary one again, whose COMMIT record core will handle.
///
/// # Safety
/// As [`was_aborted_concurrently`].
pub unsafe fn clear_prepared(txn: *mut pg_sys::ReorderBufferTXN) {
    // SAFETY: the caller's promise.
    unsafe {
        (*txn).txn_flags &= !CLEARED;
        each_subtransaction(txn, |sub| {
            (*sub).txn_flags &= !(CLEARED | pg_sys::RBTXN_IS_STREAMED);
        });
    }
}
