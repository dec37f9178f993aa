//! Flags and names of the reorder buffer's transactions; what differs between versions stays here.

use core::ffi::CStr;
use mtm_core::Gid;
use mtm_logrep::announcement::MARKER_PREFIX;
use mtm_logrep::journal::gid_from_bytes;
use pgrx::pg_sys;
use std::ffi::CString;

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

/// Marks the transaction itself as a prepared one, which core keeps after its replay.
///
/// # Safety
/// As [`was_aborted_concurrently`].
pub unsafe fn mark_prepared(txn: *mut pg_sys::ReorderBufferTXN) {
    // SAFETY: the caller's promise.
    unsafe { (*txn).txn_flags |= PREPARED }
}

/// Whether the transaction changed the schema.
///
/// # Safety
/// As [`was_aborted_concurrently`].
pub unsafe fn has_catalog_changes(txn: *mut pg_sys::ReorderBufferTXN) -> bool {
    // SAFETY: the caller's promise.
    unsafe { (*txn).txn_flags & pg_sys::RBTXN_HAS_CATALOG_CHANGES != 0 }
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

/// Names the transaction, as core names a prepared one: core frees the name together with the
/// transaction, however that ends.
///
/// # Safety
/// `txn` is a live transaction of `reorder`.
pub unsafe fn set_name(
    reorder: *mut pg_sys::ReorderBuffer,
    txn: *mut pg_sys::ReorderBufferTXN,
    gid: &Gid,
) {
    let text = CString::new(gid.to_string()).expect("a gid has no zero byte");
    // SAFETY: the caller's promise; the copy lives as long as the reorder buffer.
    unsafe {
        forget_name(txn);
        (*txn).gid = pg_sys::MemoryContextStrdup((*reorder).context, text.as_ptr());
    }
}

/// Takes the name away.
///
/// # Safety
/// As [`was_aborted_concurrently`].
pub unsafe fn forget_name(txn: *mut pg_sys::ReorderBufferTXN) {
    // SAFETY: the caller's promise; the name was allocated by `set_name` or by core.
    unsafe {
        if !(*txn).gid.is_null() {
            pg_sys::pfree((*txn).gid.cast());
            (*txn).gid = core::ptr::null_mut();
        }
    }
}

/// The transaction's name, if it is one of the cluster's.
///
/// # Safety
/// As [`was_aborted_concurrently`].
pub unsafe fn name(txn: *mut pg_sys::ReorderBufferTXN) -> Option<Gid> {
    // SAFETY: the caller's promise; a name is a C string.
    unsafe {
        let text = (*txn).gid;
        if text.is_null() { None } else { CStr::from_ptr(text).to_str().ok()?.parse().ok() }
    }
}

/// How many changes of a transaction may come before its marker.
const BEFORE_MARKER: usize = 8;

/// The name in the marker of a transaction in progress, whose changes are in memory.
///
/// # Safety
/// As [`was_aborted_concurrently`].
pub unsafe fn marker(txn: *mut pg_sys::ReorderBufferTXN) -> Option<Gid> {
    let kind = pg_sys::ReorderBufferChangeType::REORDER_BUFFER_CHANGE_MESSAGE;
    // SAFETY: the caller's promise; `changes` is a circular list whose links are the `node` fields of
    // changes, and a change of this kind has a C string and so many bytes.
    unsafe {
        let head = &raw mut (*txn).changes.head;
        let mut node = (*head).next;
        for _ in 0..BEFORE_MARKER {
            if node.is_null() || node == head {
                return None;
            }
            let offset = core::mem::offset_of!(pg_sys::ReorderBufferChange, node);
            let change = node.byte_sub(offset).cast::<pg_sys::ReorderBufferChange>();
            if (*change).action == kind {
                let message = (*change).data.msg;
                let content =
                    core::slice::from_raw_parts(message.message.cast::<u8>(), message.message_size);
                if CStr::from_ptr(message.prefix).to_bytes() == MARKER_PREFIX.as_bytes() {
                    return gid_from_bytes(content).ok();
                }
            }
            node = (*node).next;
        }
    }
    None
}

/// The first transaction in progress for which `is_it` holds.
///
/// # Safety
/// Within an output plugin's callback; `is_it` must not change the list.
pub unsafe fn find(
    reorder: *mut pg_sys::ReorderBuffer,
    is_it: impl Fn(*mut pg_sys::ReorderBufferTXN) -> bool,
) -> Option<*mut pg_sys::ReorderBufferTXN> {
    // SAFETY: `toplevel_by_lsn` is a circular list whose links are the `node` fields of
    // transactions.
    unsafe {
        let head = &raw mut (*reorder).toplevel_by_lsn.head;
        let mut node = (*head).next;
        while !node.is_null() && node != head {
            let offset = core::mem::offset_of!(pg_sys::ReorderBufferTXN, node);
            let txn = node.byte_sub(offset).cast();
            if is_it(txn) {
                return Some(txn);
            }
            node = (*node).next;
        }
    }
    None
}

/// What the plugin's own pointer in a transaction points to, if anything.
static SENT: u8 = 0;

/// Notes that the transaction's changes were sent.
///
/// # Safety
/// As [`was_aborted_concurrently`].
pub unsafe fn note_sent(txn: *mut pg_sys::ReorderBufferTXN) {
    // SAFETY: the caller's promise; core leaves this pointer to the plugin.
    unsafe { (*txn).output_plugin_private = (&raw const SENT).cast_mut().cast() }
}

/// Whether [`note_sent`] was called.
///
/// # Safety
/// As [`was_aborted_concurrently`].
pub unsafe fn was_sent(txn: *mut pg_sys::ReorderBufferTXN) -> bool {
    // SAFETY: the caller's promise; null in a fresh transaction.
    unsafe { !(*txn).output_plugin_private.is_null() }
}
