//! SQL run by workers in transactions of their own.

use pgrx::pg_sys;

thread_local! {
    /// How many queries of our own are being run.
    static OWN: core::cell::Cell<u32> = const { core::cell::Cell::new(0) };
}

/// Whether a query of our own is being run, and not the client's.
pub fn is_own() -> bool {
    OWN.get() > 0
}

struct Own;

impl Own {
    fn new() -> Self {
        OWN.set(OWN.get() + 1);
        Self
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        OWN.set(OWN.get() - 1);
    }
}

/// Runs `body`, a query of our own, in a transaction with a snapshot. It is not refused as a
/// client's would be on a node that is not online: what is decided must be carried out.
pub fn in_transaction<R>(body: impl FnOnce() -> R) -> R {
    let _own = Own::new();
    // SAFETY: outside a transaction, in a process with a database; an ERROR in `body` leaves the
    // transaction to the caller's error handling.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let result = with_own_names(body);
        if pg_sys::ActiveSnapshotSet() {
            pg_sys::PopActiveSnapshot();
        }
        pg_sys::CommitTransactionCommand();
        result
    }
}

/// The data directory.
pub fn data_directory() -> std::path::PathBuf {
    // SAFETY: a C string set at server start.
    let path = unsafe { core::ffi::CStr::from_ptr(pg_sys::DataDir) };
    std::path::PathBuf::from(path.to_string_lossy().into_owned())
}

/// A setting's value as text, if there is such a setting.
pub fn setting_if_known(name: &core::ffi::CStr) -> Option<String> {
    // SAFETY: returns null or a C string that is copied at once.
    unsafe {
        let value = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        (!value.is_null()).then(|| core::ffi::CStr::from_ptr(value).to_string_lossy().into_owned())
    }
}

/// A setting's value as text; empty if there is no such setting.
pub fn setting(name: &core::ffi::CStr) -> String {
    setting_if_known(name).unwrap_or_default()
}

/// Whether this session is a superuser's.
pub fn is_superuser() -> bool {
    // SAFETY: a catalog lookup inside a transaction.
    unsafe { pg_sys::superuser() }
}

/// The time now, as PostgreSQL writes it.
pub fn time_of_day() -> String {
    // SAFETY: returns a static buffer with a C string that is copied at once.
    unsafe {
        let text = pg_sys::timestamptz_to_str(pg_sys::GetCurrentTimestamp());
        core::ffi::CStr::from_ptr(text).to_string_lossy().into_owned()
    }
}

/// A strong random number.
pub fn random_u64() -> u64 {
    let mut bytes = [0u8; 8];
    // SAFETY: writes eight bytes.
    let ok = unsafe { pg_sys::pg_strong_random(bytes.as_mut_ptr().cast(), bytes.len()) };
    if !ok {
        pgrx::error!("no source of randomness");
    }
    u64::from_be_bytes(bytes)
}

/// Runs `body`, in a transaction, so that names and operators in it are the server's own, whatever
/// the client's or the database's `search_path` is: nobody may slip an operator of his into a query
/// that decides what he may do, or that runs with other rights than his.
pub fn with_own_names<R>(body: impl FnOnce() -> R) -> R {
    // SAFETY: inside a transaction, whose end takes the setting back after an ERROR; both are C
    // strings.
    unsafe {
        let level = pg_sys::NewGUCNestLevel();
        pg_sys::set_config_option(
            c"search_path".as_ptr(),
            c"pg_catalog, pg_temp".as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        );
        let result = body();
        pg_sys::AtEOXact_GUC(false, level);
        result
    }
}

/// Runs `body` with an active snapshot, in the running transaction.
pub fn with_snapshot(body: impl FnOnce()) {
    // SAFETY: inside a transaction; an ERROR pops snapshots with the transaction.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        body();
        if pg_sys::ActiveSnapshotSet() {
            pg_sys::PopActiveSnapshot();
        }
    }
}

/// A relation's name, without its schema; empty if it is gone.
pub fn relation_name(relation: pg_sys::Oid) -> String {
    // SAFETY: a syscache lookup inside a transaction; the copy is palloc'd.
    unsafe {
        let name = pg_sys::get_rel_name(relation);
        if name.is_null() {
            return String::new();
        }
        core::ffi::CStr::from_ptr(name).to_string_lossy().into_owned()
    }
}
