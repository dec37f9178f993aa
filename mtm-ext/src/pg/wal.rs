//! Positions in the write-ahead log.

use mtm_core::Lsn;
use pgrx::pg_sys;

/// End of what is written.
pub fn inserted() -> Lsn {
    // SAFETY: reads shared memory under its lock.
    Lsn(unsafe { pg_sys::GetXLogInsertRecPtr() })
}

/// End of what is durable.
pub fn flushed() -> Lsn {
    // SAFETY: reads shared memory; a null time line is not wanted.
    Lsn(unsafe { pg_sys::GetFlushRecPtr(core::ptr::null_mut()) })
}

/// End of this process' last commit record, which need not be durable.
pub fn last_commit() -> Lsn {
    // SAFETY: a plain variable of this process.
    Lsn(unsafe { pg_sys::XactLastCommitEnd })
}
