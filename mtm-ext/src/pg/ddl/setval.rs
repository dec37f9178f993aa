//! `setval()` acts on every node: calls are directed to our own function when they are planned.
//!
//! The planner puts the bodies of simple SQL functions into the query after that, so functions that
//! call `setval()` are kept whole: then their bodies are planned by themselves. Where an expression
//! is evaluated without the planner, the call is refused (`relations`).

use super::session;
use pgrx::pg_sys::{self, NodeTag};
use std::ffi::{c_char, c_int, c_void};

static mut PREVIOUS: pg_sys::planner_hook_type = None;

type Walker = unsafe extern "C-unwind" fn(*mut pg_sys::Node, *mut c_void) -> bool;

#[pgrx::pg_guard]
unsafe extern "C-unwind" {
    fn expression_tree_walker(
        node: *mut pg_sys::Node,
        walker: Walker,
        context: *mut c_void,
    ) -> bool;
    fn query_tree_walker(
        query: *mut pg_sys::Query,
        walker: Walker,
        context: *mut c_void,
        flags: c_int,
    ) -> bool;
}

/// Installs the hook.
pub(crate) fn init() {
    // SAFETY: at library load nothing runs beside us.
    unsafe {
        PREVIOUS = pg_sys::planner_hook;
        pg_sys::planner_hook = Some(planner);
        PREVIOUS_NEEDS = pg_sys::needs_fmgr_hook;
        pg_sys::needs_fmgr_hook = Some(keep_whole);
    }
}

/// OID of the language SQL, fixed for ever.
const SQL: u32 = 14;

static mut PREVIOUS_NEEDS: pg_sys::needs_fmgr_hook_type = None;

/// Whether a function must not be put into a query: it is in SQL and calls `setval()`, or it is to
/// be executed on every node. The server asks for every function that is not built in.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn keep_whole(function: pg_sys::Oid) -> bool {
    // SAFETY: set once at load.
    if let Some(previous) = unsafe { PREVIOUS_NEEDS } {
        // SAFETY: the server's argument; the boundary turns its errors into panics.
        if unsafe { crate::ffi::pg_guard_ffi_boundary(|| previous(function)) } {
            return true;
        }
    }
    if !session::replicates() {
        return false;
    }
    if super::remote::is_listed(function) {
        return true;
    }
    let key = pg_sys::Datum::from(function);
    // SAFETY: a cache look-up, released below.
    let row = unsafe { pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::PROCOID as i32, key) };
    if row.is_null() {
        return false;
    }
    // SAFETY: a row of pg_proc has this layout.
    let language = unsafe { (*pg_sys::GETSTRUCT(row).cast::<pg_sys::FormData_pg_proc>()).prolang };
    let calls = language == pg_sys::Oid::from(SQL)
        && (attribute(row, pg_sys::Anum_pg_proc_prosrc).to_ascii_lowercase().contains("setval")
            || {
                let body = attribute(row, pg_sys::Anum_pg_proc_prosqlbody);
                [pg_sys::F_SETVAL_REGCLASS_INT8, pg_sys::F_SETVAL_REGCLASS_INT8_BOOL]
                    .iter()
                    .any(|setval| body.contains(&format!(":funcid {setval} ")))
            });
    // SAFETY: taken above.
    unsafe { pg_sys::ReleaseSysCache(row) };
    calls
}

/// A text attribute of a row of `pg_proc`; empty for NULL.
fn attribute(row: pg_sys::HeapTuple, number: u32) -> String {
    let mut null = false;
    // SAFETY: an attribute of that catalog, of type text or pg_node_tree, which are the same
    // bytes; the copy is ours.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::PROCOID as i32;
        let value = pg_sys::SysCacheGetAttr(cache, row, number as i16, &raw mut null);
        if null {
            return String::new();
        }
        let text = pg_sys::text_to_cstring(value.cast_mut_ptr());
        std::ffi::CStr::from_ptr(text).to_string_lossy().into_owned()
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn planner(
    query: *mut pg_sys::Query,
    text: *const c_char,
    options: c_int,
    params: pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt {
    if session::replicates() {
        // SAFETY: planning may scribble on its query.
        unsafe { query_tree_walker(query, redirect, core::ptr::null_mut(), 0) };
    }
    // SAFETY: the server's arguments; the boundary turns its errors into panics.
    unsafe {
        match PREVIOUS {
            Some(next) => crate::ffi::pg_guard_ffi_boundary(|| next(query, text, options, params)),
            None => pg_sys::standard_planner(query, text, options, params),
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn redirect(node: *mut pg_sys::Node, context: *mut c_void) -> bool {
    // SAFETY: NULL or a node of the query.
    match unsafe { super::parse::tag(node) } {
        NodeTag::T_Invalid => return false,
        // SAFETY: a query inside the query.
        NodeTag::T_Query => return unsafe { query_tree_walker(node.cast(), redirect, context, 0) },
        NodeTag::T_FuncExpr => {
            let call = node.cast::<pg_sys::FuncExpr>();
            // SAFETY: a call.
            let function = unsafe { (*call).funcid.to_u32() };
            let ours = match function {
                pg_sys::F_SETVAL_REGCLASS_INT8 => look_up(2),
                pg_sys::F_SETVAL_REGCLASS_INT8_BOOL => look_up(3),
                _ => pg_sys::InvalidOid,
            };
            if ours != pg_sys::InvalidOid {
                // SAFETY: our function has the same arguments and result.
                unsafe { (*call).funcid = ours };
            }
        }
        _ => {}
    }
    // SAFETY: a node of the query.
    unsafe { expression_tree_walker(node, redirect, context) }
}

/// Our function with that many arguments, if the extension is there.
fn look_up(arguments: usize) -> pg_sys::Oid {
    let types = [pg_sys::REGCLASSOID, pg_sys::INT8OID, pg_sys::BOOLOID];
    // SAFETY: builds a list of two names; a missing function or schema gives no OID.
    unsafe {
        let names = [c"mtm", c"setval"].map(|name| pg_sys::makeString(name.as_ptr().cast_mut()));
        let list = pg_sys::lappend(core::ptr::null_mut(), names[0].cast());
        let list = pg_sys::lappend(list, names[1].cast());
        pg_sys::LookupFuncName(list, arguments as c_int, types.as_ptr(), true)
    }
}
