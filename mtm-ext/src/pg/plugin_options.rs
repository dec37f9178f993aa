//! What a peer asks of the output plugin when it begins to read.

use core::ffi::CStr;
use mtm_core::GenNum;
use pgrx::{PgSqlErrorCode, ereport, pg_sys};

/// The options of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// `mode`: all committed transactions of all nodes, instead of this node's announced ones.
    pub(super) recovery: bool,
    /// `hold`: only the ParallelSafe record of this generation is to say what was held, with
    /// changes; others are passed over. Without the option all of them say it.
    pub(super) hold: Option<GenNum>,
}

/// Reads the options; an ERROR if there is one that is not understood.
///
/// # Safety
/// A list of `DefElem` that the server made of the client's options, or null.
pub(super) unsafe fn read(list: *mut pg_sys::List) -> Options {
    let mut options = Options::default();
    // SAFETY: the caller's promise; both strings live as long as the list.
    let given = unsafe { pgrx::PgList::<pg_sys::DefElem>::from_pg(list) };
    for option in given.iter_ptr() {
        // SAFETY: as above. `defGetString` raises an ERROR without a value.
        let (name, value) = unsafe {
            let name = CStr::from_ptr((*option).defname);
            let value = CStr::from_ptr(pg_sys::defGetString(option));
            (name.to_string_lossy(), value.to_string_lossy())
        };
        match (&*name, &*value) {
            ("mode", "normal") => options.recovery = false,
            ("mode", "recovery") => options.recovery = true,
            ("hold", number) if number.parse::<u64>().is_ok() => {
                options.hold = number.parse().ok().map(GenNum);
            }
            _ => refuse(&name, &value),
        }
    }
    options
}

fn refuse(name: &str, value: &str) {
    ereport!(
        ERROR,
        PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
        format!(
            "multimaster's output plugin does not know option \"{name}\" with value \"{value}\""
        ),
        "Options are mode, which is normal or recovery, and hold, which is a generation's number."
    );
}
