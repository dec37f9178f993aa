//! Logical messages.

use mtm_logrep::ddl::{Message, PREFIX};
use pgrx::pg_sys;
use std::ffi::{CString, c_char, c_int};

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
    if matches!(message, Message::Statement(_)) {
        note_unchecked();
    }
    log(message);
}

/// Tells the peers if this session has switched off the checks that they would make, too.
pub(crate) fn note_unchecked() {
    // SAFETY: a setting of this session.
    let role = unsafe { pg_sys::SessionReplicationRole };
    let off = role == pg_sys::SESSION_REPLICATION_ROLE_REPLICA as c_int;
    // Who applies works in that role and passes on what it was told.
    if off && crate::pg::xact::is_ordinary_process() {
        log(&Message::Unchecked);
    }
}

fn log(message: &Message) {
    let bytes = message.encode();
    let prefix = CString::new(PREFIX).expect("the prefix has no zero byte");
    // SAFETY: the server copies prefix and message into its log before it returns; a transaction
    // is in progress wherever utility statements run.
    unsafe { LogLogicalMessage(prefix.as_ptr(), bytes.as_ptr().cast(), bytes.len(), true) };
}
