//! Logical messages in the write-ahead log.

use super::sys;
use core::ffi::CStr;
use mtm_core::Lsn;
use pgrx::pg_sys;

/// Writes a logical message and returns the end of its record. A transactional one belongs to the
/// current (sub)transaction and assigns its number; another one needs no transaction.
pub fn log(prefix: &CStr, content: &[u8], transactional: bool) -> Lsn {
    // SAFETY: LogLogicalMessage copies `content.len()` bytes and the C string into WAL and keeps
    // neither.
    Lsn(unsafe {
        sys::LogLogicalMessage(
            prefix.as_ptr(),
            content.as_ptr().cast(),
            content.len(),
            transactional,
        )
    })
}

/// Makes the log durable up to `lsn`, which also lets walsenders read it.
pub fn flush(lsn: Lsn) {
    // SAFETY: XLogFlush may be called by any process that may write WAL.
    unsafe { pg_sys::XLogFlush(lsn.0) }
}
