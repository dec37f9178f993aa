//! Executing what a peer captured.

use super::parse::{c_text, elements, parse_one, tag};
use super::rewrite::{Emptying, refill};
use super::{context, emit, relations};
use crate::pg::sequences;
use mtm_core::sequence::Position;
use mtm_logrep::ddl::{Flags, Message, Rows, Statement};
use pgrx::pg_sys::{self, NodeTag};
use pgrx::{PgSqlErrorCode, ereport};
use std::cell::Cell;
use std::ffi::CStr;

thread_local! {
    static RUNNING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this process is executing a peer's statement.
pub(crate) fn running() -> bool {
    RUNNING.get()
}

struct Running(bool);

impl Running {
    fn begin() -> Self {
        Self(RUNNING.replace(true))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.set(self.0);
    }
}

/// Executes a payload inside the current transaction, which must be an apply worker's.
///
/// The payload is written into this node's log too: a node that recovers from this one needs it.
/// Rows that executing makes here stay here.
pub(crate) fn apply(payload: &[u8]) {
    match Message::decode(payload) {
        Ok(Message::Statement(statement)) => apply_statement(statement),
        Ok(Message::Sequence { schema, name, last, called }) => {
            sequences::set_named(&schema, &name, Position { last, called });
            emit(&Message::Sequence { schema, name, last, called });
        }
        Ok(Message::Unchecked) => emit(&Message::Unchecked),
        Ok(Message::Floor { schema, name, last, strict }) => {
            sequences::apply_floor(&schema, &name, last, strict);
            emit(&Message::Floor { schema, name, last, strict });
        }
        Ok(Message::End) => {}
        Err(e) => {
            ereport!(
                ERROR,
                PgSqlErrorCode::ERRCODE_PROTOCOL_VIOLATION,
                format!("unreadable DDL message: {e}")
            );
        }
    }
}

fn apply_statement(mut s: Statement) {
    s.rows = Rows::None;
    let s = Message::Statement(s);
    emit(&s);
    let Message::Statement(s) = s else { unreachable!("made above") };
    let running = Running::begin();
    let emptying = Emptying::begin(s.flags.has(Flags::EMPTY_REWRITTEN));
    context::within(&s, s.flags.has(Flags::FIRE_TRIGGERS), || execute(&s));
    drop(emptying);
    emit(&Message::End);
    let touched = relations::take();
    super::identify_rows(&touched.all, false);
    sequences::adjust_touched(&touched, false);
    drop(running);
}

fn execute(s: &Statement) {
    let text = c_text(&s.text);
    // SAFETY: the text outlives the tree.
    let Some(raw) = (unsafe { parse_one(&text) }) else {
        ereport!(ERROR, PgSqlErrorCode::ERRCODE_PROTOCOL_VIOLATION, "not exactly one statement");
    };
    // SAFETY: inside a transaction; popped below.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
    // SAFETY: a fresh tree of the parser.
    let view = unsafe { bend(raw, s.flags) };
    if s.flags.has(Flags::REFILL) {
        // SAFETY: `bend` returns the view of a REFRESH.
        unsafe { refill(view, true) };
    } else {
        // SAFETY: a fresh tree and its text.
        unsafe { run(raw, &text) };
        if s.flags.has(Flags::POPULATED) {
            // SAFETY: `bend` returns the view that was created.
            unsafe { refill(view, false) };
        }
    }
    // SAFETY: pushed above.
    unsafe { pg_sys::PopActiveSnapshot() };
}

/// Analyses and executes one utility statement.
unsafe fn run(raw: *mut pg_sys::RawStmt, text: &CStr) {
    let none = core::ptr::null_mut();
    // SAFETY: a fresh tree without parameters; each step takes what the one before returns.
    let plans = unsafe {
        let queries = pg_sys::pg_analyze_and_rewrite_fixedparams(
            raw,
            text.as_ptr(),
            core::ptr::null(),
            0,
            none,
        );
        let plans = pg_sys::pg_plan_queries(queries, text.as_ptr(), 0, core::ptr::null_mut());
        elements::<pg_sys::PlannedStmt>(plans)
    };
    for plan in plans {
        // SAFETY: plans of the planner.
        if unsafe { (*plan).commandType } != pg_sys::CmdType::CMD_UTILITY {
            ereport!(ERROR, PgSqlErrorCode::ERRCODE_PROTOCOL_VIOLATION, "not a utility statement");
        }
        // SAFETY: a utility statement of the planner, its text and the receiver of nothing.
        unsafe {
            pg_sys::ProcessUtility(
                plan,
                text.as_ptr(),
                false,
                pg_sys::ProcessUtilityContext::PROCESS_UTILITY_TOPLEVEL,
                core::ptr::null_mut(),
                core::ptr::null_mut(),
                pg_sys::None_Receiver,
                core::ptr::null_mut(),
            );
        }
    }
    // SAFETY: inside a transaction.
    unsafe { pg_sys::CommandCounterIncrement() };
}

/// Changes the tree as the flags say. Returns the materialized view that it is about, if any.
unsafe fn bend(raw: *mut pg_sys::RawStmt, flags: Flags) -> *const pg_sys::RangeVar {
    // SAFETY: each arm reads the node as what its tag says.
    unsafe {
        let stmt = (*raw).stmt;
        match tag(stmt) {
            NodeTag::T_CreateTableAsStmt => {
                let into = (*stmt.cast::<pg_sys::CreateTableAsStmt>()).into;
                (*into).skipData |= flags.has(Flags::NO_DATA);
                return (*into).rel;
            }
            NodeTag::T_RefreshMatViewStmt => {
                return (*stmt.cast::<pg_sys::RefreshMatViewStmt>()).relation;
            }
            NodeTag::T_IndexStmt if flags.has(Flags::NOT_CONCURRENTLY) => {
                (*stmt.cast::<pg_sys::IndexStmt>()).concurrent = false;
            }
            NodeTag::T_DropStmt => {
                let drop = stmt.cast::<pg_sys::DropStmt>();
                (*drop).concurrent = false;
                (*drop).missing_ok |= flags.has(Flags::MISSING_OK);
            }
            _ => {}
        }
        core::ptr::null()
    }
}
