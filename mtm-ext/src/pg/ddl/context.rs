//! The context of a statement: who, when and under which settings.

use super::parse::{bytes, c_text};
use crate::hook::ddl::{Setting, travels};
use mtm_logrep::ddl::Statement;
use pgrx::pg_sys;
use std::ffi::CStr;

/// Roles and their restrictions.
pub(crate) struct Identity {
    pub(crate) session_user: Vec<u8>,
    pub(crate) current_user: Vec<u8>,
    pub(crate) security_context: u32,
}

/// Who executes at this moment, also inside a SECURITY DEFINER function.
pub(crate) fn identity() -> Identity {
    let (mut user, mut security) = (pg_sys::InvalidOid, 0);
    // SAFETY: both pointers are to our variables.
    unsafe { pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut security) };
    // SAFETY: reads a variable of the session.
    let session = unsafe { pg_sys::GetSessionUserId() };
    Identity {
        session_user: role_name(session),
        current_user: role_name(user),
        security_context: security.cast_unsigned(),
    }
}

/// Who may do everything.
pub(crate) fn bootstrap_superuser() -> Vec<u8> {
    role_name(pg_sys::Oid::from(10u32))
}

fn role_name(role: pg_sys::Oid) -> Vec<u8> {
    // SAFETY: raises an error for a role that is gone; otherwise returns a copy.
    unsafe { bytes(pg_sys::GetUserNameFromId(role, false)) }
}

/// The settings that a statement takes along.
pub(crate) fn settings() -> Vec<(Vec<u8>, Vec<u8>)> {
    // SAFETY: the server's array of settings has that many elements and stays where it is while
    // no setting is defined, which nothing here does.
    let all = unsafe {
        let n = usize::try_from(pg_sys::GetNumConfigOptions()).unwrap_or(0);
        core::slice::from_raw_parts(pg_sys::get_guc_variables(), n)
    };
    let mut taken = Vec::new();
    for &one in all {
        // SAFETY: elements point to valid settings.
        let (name, source, context) = unsafe { ((*one).name, (*one).source, (*one).context) };
        // SAFETY: names end with a zero byte.
        let name_text = unsafe { CStr::from_ptr(name) };
        let Ok(text) = name_text.to_str() else { continue };
        let setting = Setting {
            name: text,
            personal: source >= pg_sys::GucSource::PGC_S_DATABASE,
            settable: context >= pg_sys::GucContext::PGC_SUSET,
        };
        if travels(&setting) {
            // SAFETY: the setting exists; the result is valid until the next call.
            let value = unsafe { bytes(pg_sys::GetConfigOption(name, true, false)) };
            taken.push((name_text.to_bytes().to_vec(), value));
        }
    }
    taken
}

/// A role's number by its name.
fn role(name: &[u8]) -> pg_sys::Oid {
    let name = c_text(name);
    // SAFETY: raises an error when there is no such role.
    unsafe { pg_sys::get_role_oid(name.as_ptr(), false) }
}

/// Sets one setting until the nest level ends.
fn set(name: &[u8], value: &[u8]) {
    let (name, value) = (c_text(name), c_text(value));
    // SAFETY: inside a GUC nest level; the server copies the value. An error is raised as such.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        )
    };
}

/// Runs `work` as the statement's origin would: its roles, settings and times. Everything is as
/// before afterwards; after an error the transaction's abort restores it.
pub(crate) fn within<R>(s: &Statement, fire_triggers: bool, work: impl FnOnce() -> R) -> R {
    let (mut user, mut security) = (pg_sys::InvalidOid, 0);
    // SAFETY: both pointers are to our variables.
    unsafe { pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut security) };
    let before = Times::now();
    // SAFETY: the level is ended below, or by the transaction's abort.
    let level = unsafe { pg_sys::NewGUCNestLevel() };

    set(b"session_authorization", &s.session_user);
    let current = role(&s.current_user);
    for (name, value) in &s.settings {
        set(name, value);
    }
    set(b"check_function_bodies", b"off");
    set(b"session_replication_role", if fire_triggers { b"origin" } else { b"replica" });
    Times { transaction: s.transaction_time, statement: s.statement_time }.set();
    // SAFETY: the role exists; restored below or by the abort.
    unsafe { pg_sys::SetUserIdAndSecContext(current, s.security_context.cast_signed()) };

    let result = work();

    // SAFETY: ends our nest level: every setting gets its former value, the session's user too.
    unsafe { pg_sys::AtEOXact_GUC(false, level) };
    // SAFETY: the values from above.
    unsafe { pg_sys::SetUserIdAndSecContext(user, security) };
    before.set();
    result
}

/// What `now()` and `statement_timestamp()` return.
struct Times {
    transaction: i64,
    statement: i64,
}

impl Times {
    fn now() -> Self {
        // SAFETY: reads variables of the transaction.
        let transaction = unsafe { pg_sys::GetCurrentTransactionStartTimestamp() };
        // SAFETY: likewise.
        let statement = unsafe { pg_sys::GetCurrentStatementStartTimestamp() };
        Self { transaction, statement }
    }

    fn set(&self) {
        // SAFETY: stores both times, which is what a parallel worker does with its leader's;
        // builds with assertions allow it to parallel workers only.
        unsafe { pg_sys::SetParallelStartTimestamps(self.transaction, self.statement) };
    }
}

/// The times of the current transaction and statement.
pub(crate) fn times() -> (i64, i64) {
    let Times { transaction, statement } = Times::now();
    (transaction, statement)
}
