//! `multimaster.remote_functions`: a query that calls one of them is executed on every node, and
//! what it does to rows here is not sent.
//!
//! A query that is nothing but the call travels as the call with the values of its arguments; any
//! other one as its text. What a function assigns from an expression, without a query, is not
//! seen: then its effects travel as those of any function.

use super::parse::{bytes, elements, literal, qualified, tag};
use super::{capture, context, emit, mark_replicable};
use crate::guc;
use crate::pg::chain;
use crate::report;
use mtm_logrep::ddl::{Flags, Message, Rows, Statement};
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::{self, NodeTag};
use std::cell::Cell;
use std::ffi::{CStr, c_void};

thread_local! {
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

/// Whether a query is being executed that every node executes by itself.
pub(super) fn running() -> bool {
    RUNNING.get()
}

struct Running;

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.set(false);
    }
}

static mut PREVIOUS: pg_sys::ExecutorRun_hook_type = None;

type Walker = unsafe extern "C-unwind" fn(*mut pg_sys::Node, *mut c_void) -> bool;

#[pgrx::pg_guard]
unsafe extern "C-unwind" {
    fn expression_tree_walker(
        node: *mut pg_sys::Node,
        walker: Walker,
        context: *mut c_void,
    ) -> bool;
}

/// Installs the hook.
pub(super) fn init() {
    // SAFETY: at library load nothing runs beside us.
    unsafe {
        PREVIOUS = pg_sys::ExecutorRun_hook;
        pg_sys::ExecutorRun_hook = Some(run);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn run(
    desc: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
    once: bool,
) {
    let listed = !names().is_empty() && super::replicates();
    // SAFETY: the server's argument.
    if !listed || !unsafe { calls_listed(desc) } {
        // SAFETY: the server's arguments.
        return unsafe { next(desc, direction, count, once) };
    }
    // SAFETY: the server's argument.
    if unsafe { (*desc).already_executed } {
        refuse("A query that calls it cannot be fetched in parts.");
    }
    // SAFETY: as above.
    let text = unsafe { text(desc) };
    let body = [b"BEGIN EXECUTE ", &literal(&text)[..], b"; END"].concat();
    let text = [b"DO LANGUAGE plpgsql ", &literal(&body)[..]].concat();
    let identity = context::identity();
    let (transaction_time, statement_time) = context::times();
    mark_replicable();
    emit(&Message::Statement(Statement {
        rows: Rows::None,
        flags: Flags::FIRE_TRIGGERS,
        transaction_time,
        statement_time,
        session_user: identity.session_user,
        current_user: identity.current_user,
        security_context: identity.security_context,
        text,
        settings: context::settings(),
    }));
    RUNNING.set(true);
    let running = Running;
    // SAFETY: the server's arguments.
    unsafe { next(desc, direction, count, once) };
    drop(running);
    capture::after(capture::Captured::End);
}

unsafe fn next(
    desc: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
    once: bool,
) {
    // SAFETY: the server's arguments.
    unsafe { chain::run(PREVIOUS, desc, direction, count, once) }
}

fn refuse(why: &str) -> ! {
    report::error(
        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        "cannot execute a function of \"multimaster.remote_functions\" on all nodes from here",
        why,
        "Call it as SELECT function(arguments).",
    )
}

/// The setting's names.
fn names() -> Vec<String> {
    let list = guc::REMOTE_FUNCTIONS.get();
    let list = list.as_ref().map(|list| list.to_string_lossy()).unwrap_or_default();
    let names = list.split(',').map(|name| name.trim().trim_matches('"').to_owned());
    names.filter(|name| !name.is_empty()).collect()
}

/// Whether this function is in the list, by its name alone or with its schema.
pub(super) fn is_listed(function: pg_sys::Oid) -> bool {
    let names = names();
    if names.is_empty() {
        return false;
    }
    // SAFETY: cache look-ups that return copies or NULL.
    let (schema, name) = unsafe {
        let schema = pg_sys::get_namespace_name(pg_sys::get_func_namespace(function));
        (bytes(schema), bytes(pg_sys::get_func_name(function)))
    };
    let name = String::from_utf8_lossy(&name).into_owned();
    let full = format!("{}.{name}", String::from_utf8_lossy(&schema));
    names.iter().any(|listed| *listed == name || *listed == full)
}

unsafe fn calls_listed(desc: *const pg_sys::QueryDesc) -> bool {
    // SAFETY: a query that is being executed has a plan.
    unsafe {
        (*desc).operation == pg_sys::CmdType::CMD_SELECT
            && plan_calls((*(*desc).plannedstmt).planTree)
    }
}

/// Whether a part of the plan computes such a call as a column, or reads from it.
unsafe fn plan_calls(plan: *mut pg_sys::Plan) -> bool {
    if plan.is_null() {
        return false;
    }
    let none = core::ptr::null_mut();
    // SAFETY: a plan of the planner; its parts are plans or NULL.
    unsafe {
        let columns = (*plan).targetlist.cast::<pg_sys::Node>();
        if !columns.is_null() && is_call(columns, none) {
            return true;
        }
        if tag(plan) == NodeTag::T_FunctionScan {
            let functions = (*plan.cast::<pg_sys::FunctionScan>()).functions;
            let functions = elements::<pg_sys::RangeTblFunction>(functions);
            if functions.into_iter().any(|function| is_call((*function).funcexpr, none)) {
                return true;
            }
        }
        plan_calls((*plan).lefttree) || plan_calls((*plan).righttree)
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn is_call(node: *mut pg_sys::Node, context: *mut c_void) -> bool {
    // SAFETY: NULL or a node of the plan.
    unsafe {
        match tag(node) {
            NodeTag::T_Invalid => return false,
            NodeTag::T_FuncExpr if is_listed((*node.cast::<pg_sys::FuncExpr>()).funcid) => {
                return true;
            }
            _ => {}
        }
        expression_tree_walker(node, is_call, context)
    }
}

/// What the other nodes are to execute.
unsafe fn text(desc: *mut pg_sys::QueryDesc) -> Vec<u8> {
    // SAFETY: as `calls_listed`.
    unsafe {
        if let Some(call) = only_call((*(*desc).plannedstmt).planTree) {
            return call_text(call, desc);
        }
        if !(*desc).params.is_null() && (*(*desc).params).numParams > 0 {
            refuse("The query has parameters or variables.");
        }
        let all = CStr::from_ptr((*desc).sourceText).to_bytes();
        let stmt = (*desc).plannedstmt;
        let start = usize::try_from((*stmt).stmt_location).unwrap_or(0).min(all.len());
        let rest = &all[start..];
        match usize::try_from((*stmt).stmt_len) {
            Ok(len) if len > 0 && len <= rest.len() => rest[..len].to_vec(),
            _ => rest.to_vec(),
        }
    }
}

/// The call, if the query is nothing else and its arguments can be computed beforehand.
unsafe fn only_call(plan: *mut pg_sys::Plan) -> Option<*mut pg_sys::FuncExpr> {
    // SAFETY: a plan of the planner.
    unsafe {
        if !(*plan).lefttree.is_null()
            || !matches!(tag(plan), NodeTag::T_Result | NodeTag::T_ProjectSet)
        {
            return None;
        }
        let [column] = elements::<pg_sys::TargetEntry>((*plan).targetlist)[..] else {
            return None;
        };
        let call = (*column).expr.cast::<pg_sys::FuncExpr>();
        let plain = tag(call) == NodeTag::T_FuncExpr
            && (*call).funcformat == pg_sys::CoercionForm::COERCE_EXPLICIT_CALL
            && !(*call).funcvariadic
            && !pg_sys::contain_volatile_functions((*call).args.cast());
        plain.then_some(call)
    }
}

/// `SELECT schema.function('value'::type, ...)`.
unsafe fn call_text(call: *mut pg_sys::FuncExpr, desc: *mut pg_sys::QueryDesc) -> Vec<u8> {
    // SAFETY: the function exists; its arguments are expressions without columns.
    unsafe {
        let function = (*call).funcid;
        let schema = bytes(pg_sys::get_namespace_name(pg_sys::get_func_namespace(function)));
        let name = qualified(&[schema, bytes(pg_sys::get_func_name(function))]);
        let estate = (*desc).estate;
        let context = pg_sys::CreateExprContext(estate);
        let mut arguments = Vec::new();
        for argument in elements::<pg_sys::Expr>((*call).args) {
            let of = pg_sys::exprType(argument.cast());
            let state = pg_sys::ExecInitExprWithParams(argument, (*desc).params);
            let mut null = false;
            let evaluate = (*state).evalfunc.expect("an initialised expression has a function");
            let value =
                crate::ffi::pg_guard_ffi_boundary(|| evaluate(state, context, &raw mut null));
            arguments.push(typed(value, null, of));
        }
        [b"SELECT ", &name[..], b"(", &arguments.join(&b", "[..]), b")"].concat()
    }
}

/// A value as a literal of its type.
unsafe fn typed(value: pg_sys::Datum, null: bool, of: pg_sys::Oid) -> Vec<u8> {
    let flags = pg_sys::FORMAT_TYPE_FORCE_QUALIFY as u16;
    // SAFETY: the type of an expression exists and has an output function.
    unsafe {
        let name = bytes(pg_sys::format_type_extended(of, -1, flags));
        if null {
            return [b"NULL::", &name[..]].concat();
        }
        let (mut output, mut varlena) = (pg_sys::InvalidOid, false);
        pg_sys::getTypeOutputInfo(of, &raw mut output, &raw mut varlena);
        let text = bytes(pg_sys::OidOutputFunctionCall(output, value));
        [&literal(&text)[..], b"::", &name[..]].concat()
    }
}
