//! Flushing the log without waking walsenders for records that they have nothing to send of.
//!
//! PostgreSQL wakes every walsender after every flush. A commit here writes, on every node,
//! records that no peer wants: PREPARE and COMMIT PREPARED of other nodes' transactions, and the
//! commit record of an announced one. With two streams per node that is ten processes woken for
//! nothing per commit. While all walsenders are our own streams, such flushes do not wake them;
//! they skip those records with the next announcement, or at the latest [`WAKE_EVERY_US`] later as
//! long as the load goes on, so that little is left to skip when an announcement is waited for.

use super::{proc, shmem};
use core::cell::Cell;
use core::ffi::c_int;
use core::sync::atomic::Ordering;
use pgrx::pg_sys;

/// How far our streams may fall behind in records that they skip.
const WAKE_EVERY_US: u64 = 20_000;

thread_local! {
    /// This process' number of walsenders to wake while they are not to be woken.
    static SAVED: Cell<Option<c_int>> = const { Cell::new(None) };
}

/// From here to [`restore`], flushes of this process wake no walsender, if all are our streams.
pub fn suppress() {
    if SAVED.get().is_some() || !only_our_streams() {
        return;
    }
    // SAFETY: this process' copy of a setting. Between suppress and restore only the end of a
    // transaction runs, which reads it to decide whether walsenders are to be woken, and whether
    // to wait for synchronous standbys, of which there are none.
    unsafe {
        SAVED.set(Some(pg_sys::max_wal_senders));
        pg_sys::max_wal_senders = 0;
    }
}

/// Ends what [`suppress`] began; nothing if it did not.
pub fn restore() {
    let Some(saved) = SAVED.take() else { return };
    // SAFETY: as in `suppress`.
    unsafe { pg_sys::max_wal_senders = saved };
}

/// Wakes walsenders if that is due. To be called where nobody waits for this process.
pub fn catch_up() {
    let now = proc::now().0;
    let last = &shmem::header().streams_woken_us;
    let before = last.load(Ordering::Relaxed);
    if now.saturating_sub(before) >= WAKE_EVERY_US
        && last.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    {
        // SAFETY: sets latches of walsenders' slots in shared memory; anyone may.
        unsafe { pg_sys::WalSndWakeup() };
    }
}

/// Tells this walsender that its peer has what is flushed by now. It sends a position after every
/// record otherwise, one more packet and one more wakeup of the receiver for each transaction.
/// The position comes with the transaction itself; when nothing is announced, it is sent as usual.
pub fn position_is_known() {
    // SAFETY: a walsender's own slot in shared memory; an aligned word is written at once. What
    // the peer really reported overwrites it with the next report.
    unsafe {
        let mine = pg_sys::MyWalSnd;
        if pg_sys::am_walsender && !mine.is_null() {
            (&raw mut (*mine).write).write_volatile(pg_sys::GetFlushRecPtr(core::ptr::null_mut()));
        }
    }
}

/// Notes that this process is the walsender of a peer's stream: the plugin has started in it.
pub fn register_stream() {
    // SAFETY: a walsender has the slot that it streams from; the name ends with a zero byte.
    let name = unsafe {
        let slot = pg_sys::MyReplicationSlot;
        if slot.is_null() || !pg_sys::am_walsender {
            return;
        }
        core::ffi::CStr::from_ptr((*slot).data.name.data.as_ptr()).to_string_lossy().into_owned()
    };
    let node = name.strip_prefix("mtm_slot_").and_then(|n| n.parse().ok());
    if let Some(node) = node.and_then(mtm_core::NodeId::new) {
        shmem::peer(node).walsender_pid.store(proc::my_pid(), Ordering::Release);
        // SAFETY: runs once at this process' exit, in whatever order with others.
        unsafe {
            let node = pg_sys::Datum::from(usize::from(node.get()));
            pg_sys::before_shmem_exit(Some(forget_stream), node);
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn forget_stream(_code: c_int, node: pg_sys::Datum) {
    if let Some(node) = u8::try_from(node.value()).ok().and_then(mtm_core::NodeId::new) {
        let pid = &shmem::peer(node).walsender_pid;
        // A newer walsender of the same peer may have taken over.
        let _ = pid.compare_exchange(proc::my_pid(), 0, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// Whether nobody but our peers streams from this server, and no synchronous standby is expected.
fn only_our_streams() -> bool {
    let ours = |pid: c_int| {
        shmem::header().peers.iter().any(|p| p.walsender_pid.load(Ordering::Relaxed) == pid)
    };
    // SAFETY: the control block has max_wal_senders slots for the life of the server; an int and a
    // flag are read at once. A walsender that starts meanwhile is woken by the next flush.
    unsafe {
        let control = pg_sys::WalSndCtl;
        if control.is_null() || super::compat::sync_standbys_defined(control) {
            return false;
        }
        let first = (&raw const (*control).walsnds).cast::<pg_sys::WalSnd>();
        (0..pg_sys::max_wal_senders as usize).all(|i| {
            let pid = (&raw const (*first.add(i)).pid).read_volatile();
            pid == 0 || ours(pid)
        })
    }
}
