//! The server's utility hook.

use super::parse::tag;
use super::{apply, capture, relations, session, setval};
use crate::pg::sequences;
use pgrx::pg_sys::{self, NodeTag};
use std::ffi::c_char;

static mut PREVIOUS: pg_sys::ProcessUtility_hook_type = None;

/// Installs all hooks of this module, at library load.
pub(crate) fn init() {
    // SAFETY: at library load nothing runs beside us.
    unsafe {
        PREVIOUS = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
    }
    relations::init();
    super::local::init();
    setval::init();
}

#[allow(clippy::too_many_arguments, reason = "the server's signature")]
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn process_utility(
    pstmt: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    query_env: *mut pg_sys::QueryEnvironment,
    dest: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    let applying = apply::running();
    let origin = !applying && session::replicates();
    // SAFETY: reads a variable of the session.
    let in_script = unsafe { pg_sys::creating_extension };
    let derived =
        in_script || context == pg_sys::ProcessUtilityContext::PROCESS_UTILITY_SUBCOMMAND;

    // SAFETY: the server's arguments.
    let hashed = if origin { unsafe { super::role::with_verifier(pstmt) } } else { None };
    let pstmt = hashed.unwrap_or(pstmt);
    let mut captured = None;
    if origin || applying {
        // SAFETY: the server's arguments.
        unsafe { open_sequence((*pstmt).utilityStmt) };
    }
    if origin && !derived {
        // SAFETY: the server's arguments.
        captured = unsafe { capture::before(pstmt, query) };
    }
    // SAFETY: the server's arguments.
    let prepared = if origin { unsafe { super::prepared::before(pstmt) } } else { None };
    // SAFETY: the server's arguments; the boundary turns its errors into panics.
    unsafe {
        match PREVIOUS {
            Some(next) => crate::ffi::pg_guard_ffi_boundary(|| {
                next(pstmt, query, read_only_tree, context, params, query_env, dest, completion);
            }),
            None => pg_sys::standard_ProcessUtility(
                pstmt,
                query,
                read_only_tree,
                context,
                params,
                query_env,
                dest,
                completion,
            ),
        }
    }
    if let Some(outcome) = prepared {
        super::prepared::after(outcome);
    }
    if origin && !derived {
        if let Some(captured) = captured {
            capture::after(captured);
        }
        let touched = relations::take();
        super::identify_rows(&touched, true);
        sequences::adjust_touched(&touched, true);
    }
}

/// Before ALTER SEQUENCE, the sequence gets back the definition its user knows.
unsafe fn open_sequence(stmt: *const pg_sys::Node) {
    // SAFETY: a utility statement.
    if unsafe { tag(stmt) } != NodeTag::T_AlterSeqStmt {
        return;
    }
    let flags = pg_sys::RVROption::RVR_MISSING_OK;
    // SAFETY: ALTER SEQUENCE takes the same lock itself in a moment.
    let relid = unsafe {
        pg_sys::RangeVarGetRelidExtended(
            (*stmt.cast::<pg_sys::AlterSeqStmt>()).sequence,
            pg_sys::NoLock as i32,
            flags,
            None,
            core::ptr::null_mut(),
        )
    };
    if relid != pg_sys::InvalidOid {
        sequences::open(relid);
    }
}
