//! Going on to the hook that was there before ours, or to what the server does without hooks.

use core::ffi::c_char;
use pgrx::pg_sys;

/// Executes a utility statement.
///
/// # Safety
/// Within a utility hook of ours, with its arguments and the hook that it replaced.
#[allow(clippy::too_many_arguments, reason = "the server's signature")]
pub unsafe fn utility(
    previous: pg_sys::ProcessUtility_hook_type,
    pstmt: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    query_env: *mut pg_sys::QueryEnvironment,
    dest: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the caller's promise; the boundary turns the server's errors into panics.
    unsafe {
        match previous {
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
}

/// Runs a query.
///
/// # Safety
/// Within an ExecutorRun hook of ours, with its arguments and the hook that it replaced.
pub unsafe fn run(
    previous: pg_sys::ExecutorRun_hook_type,
    desc: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
    once: bool,
) {
    // SAFETY: the caller's promise; the boundary turns the server's errors into panics.
    unsafe {
        match previous {
            Some(next) => {
                crate::ffi::pg_guard_ffi_boundary(|| next(desc, direction, count, once));
            }
            None => pg_sys::standard_ExecutorRun(desc, direction, count, once),
        }
    }
}
