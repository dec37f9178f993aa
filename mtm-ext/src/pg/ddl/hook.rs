//! The server's utility hook.

use super::parse::tag;
use super::prepared::{self, Course};
use super::{apply, capture, relations, session, setval};
use crate::pg::chain;
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
    super::remote::init();
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
    let derived = in_script || context == pg_sys::ProcessUtilityContext::PROCESS_UTILITY_SUBCOMMAND;

    // SAFETY: the server's arguments.
    let hashed = if origin { unsafe { super::role::with_verifier(pstmt) } } else { None };
    let pstmt = hashed.unwrap_or(pstmt);
    let mut captured = None;
    // SAFETY: the server's arguments.
    let stmt = unsafe { (*pstmt).utilityStmt };
    if origin && !derived {
        // SAFETY: as above.
        unsafe { exchange_positions(stmt) };
    }
    if origin || applying {
        // SAFETY: as above.
        unsafe { open_sequence(stmt) };
    }
    if origin && !derived {
        // SAFETY: the server's arguments.
        captured = unsafe { capture::before(pstmt, query) };
    }
    let added = if captured.is_some() {
        // SAFETY: the statement that the server was given, which has not run yet.
        unsafe { super::missing::added_columns(stmt) }
    } else {
        Vec::new()
    };
    let copied = if origin || applying {
        // SAFETY: as above.
        unsafe { sequences::identity_sources(stmt) }
    } else {
        Vec::new()
    };
    let top_level = context == pg_sys::ProcessUtilityContext::PROCESS_UTILITY_TOPLEVEL;
    let course = match origin {
        // SAFETY: the server's arguments.
        true => unsafe { prepared::before(pstmt, top_level) },
        false => Course::Server,
    };
    if course == Course::Done {
        return;
    }
    // SAFETY: the server's arguments.
    unsafe {
        chain::utility(
            PREVIOUS,
            pstmt,
            query,
            read_only_tree,
            context,
            params,
            query_env,
            dest,
            completion,
        );
    }
    // SAFETY: as above; the server keeps the name of a new table in the tree.
    unsafe { sequences::like_identity(&copied, stmt) };
    if course == Course::Prepare {
        prepared::after();
    }
    if origin && !derived {
        if let Some(captured) = captured {
            capture::after(captured);
            // SAFETY: as above.
            unsafe { super::missing::announce(&added, stmt) };
        }
        let touched = relations::take();
        super::identify_rows(&touched.all, true);
        sequences::adjust_touched(&touched, true);
    }
}

/// Before a statement that changes which values of a sequence belong to which node.
unsafe fn exchange_positions(stmt: *const pg_sys::Node) {
    // SAFETY: each arm reads the node as what its tag says.
    unsafe {
        match tag(stmt) {
            NodeTag::T_AlterSeqStmt => {
                let alter = stmt.cast::<pg_sys::AlterSeqStmt>();
                sequences::before_alter(sequences::look_up((*alter).sequence), (*alter).options);
            }
            NodeTag::T_AlterTableStmt => {
                for (sequence, options) in sequences::identity_changes(stmt.cast()) {
                    sequences::before_alter(sequence, options);
                }
            }
            _ => {}
        }
    }
}

/// Before ALTER SEQUENCE, the sequence gets back the definition its user knows.
unsafe fn open_sequence(stmt: *const pg_sys::Node) {
    // SAFETY: a utility statement.
    if unsafe { tag(stmt) } != NodeTag::T_AlterSeqStmt {
        return;
    }
    // SAFETY: ALTER SEQUENCE locks and looks again itself in a moment.
    let relid = unsafe { sequences::look_up((*stmt.cast::<pg_sys::AlterSeqStmt>()).sequence) };
    if relid != pg_sys::InvalidOid {
        sequences::open(relid);
    }
}
