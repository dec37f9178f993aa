//! Logical messages.
#![allow(non_snake_case, reason = "the server's own names")]

use mtm_logrep::ddl::{Message, PREFIX};
use pgrx::pg_sys;
use std::ffi::{CString, c_char};

#[pgrx::pg_guard]
unsafe extern "C-unwind" {
    fn LogLogicalMessage(
        prefix: *const c_char,
        message: *const c_char,
        size: pg_sys::Size,
        transactional: bool,
    ) -> pg_sys::XLogRecPtr;
}

/// Writes a message into the log as part of the current (sub)transaction.
pub(crate) fn emit(message: &Message) {
    let bytes = message.encode();
    let prefix = CString::new(PREFIX).expect("the prefix has no zero byte");
    // SAFETY: the server copies prefix and message into its log before it returns; a transaction
    // is in progress wherever utility statements run.
    unsafe { LogLogicalMessage(prefix.as_ptr(), bytes.as_ptr().cast(), bytes.len(), true) };
}
