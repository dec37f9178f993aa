//! Users' PREPARE TRANSACTION, COMMIT PREPARED and ROLLBACK PREPARED.

use super::parse::tag;
use crate::hook::twophase;
use crate::pg::{sqlrun, xact};
use mtm_core::Gid;
use mtm_node::user::{Name, User};
use mtm_paxos::commit::Decree;
use pgrx::pg_sys::{self, NodeTag};
use pgrx::prelude::*;
use std::ffi::CStr;

/// What becomes of a statement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Course {
    /// The server executes it.
    Server,
    /// The server takes it, and [`after`] carries it out.
    Prepare,
    /// It is done.
    Done,
}

/// Looks at the statement before it is executed. The end of a user's transaction that the whole
/// cluster has is carried out here.
///
/// # Safety
/// `pstmt` is the statement given to the utility hook.
pub(super) unsafe fn before(pstmt: *mut pg_sys::PlannedStmt, top_level: bool) -> Course {
    use pg_sys::TransactionStmtKind::{
        TRANS_STMT_COMMIT_PREPARED, TRANS_STMT_PREPARE, TRANS_STMT_ROLLBACK_PREPARED,
    };
    // SAFETY: the caller's promise; a transaction statement's gid is null or a C string.
    let (kind, text) = unsafe {
        let stmt = (*pstmt).utilityStmt;
        if tag(stmt) != NodeTag::T_TransactionStmt {
            return Course::Server;
        }
        let stmt = &*stmt.cast::<pg_sys::TransactionStmt>();
        if stmt.gid.is_null() {
            return Course::Server;
        }
        (stmt.kind, CStr::from_ptr(stmt.gid).to_owned())
    };
    if text.to_bytes().starts_with(Gid::PREFIX.as_bytes()) {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_RESERVED_NAME,
            format!(
                "transaction identifier \"{}\" is reserved for multimaster",
                text.to_string_lossy()
            ),
            "Identifiers of prepared transactions must not begin with \"MTM-\"."
        );
    }
    let name = Name::new(text.to_bytes());
    let (decree, what) = match kind {
        TRANS_STMT_PREPARE if top_level && xact::in_sound_block() => {
            let Some(name) = name else { return Course::Server };
            twophase::before_prepare(name);
            return Course::Prepare;
        }
        TRANS_STMT_COMMIT_PREPARED => (Decree::Commit, c"COMMIT PREPARED"),
        TRANS_STMT_ROLLBACK_PREPARED => (Decree::Abort, c"ROLLBACK PREPARED"),
        _ => return Course::Server,
    };
    let Some(name) = name else { return Course::Server };
    // SAFETY: as the server does before both statements.
    unsafe { pg_sys::PreventInTransactionBlock(top_level, what.as_ptr()) };
    let Some((first, user)) = twophase::find(&name, decree) else { return Course::Server };
    if !may_end(&user) {
        return Course::Server; // which says why not
    }
    twophase::end(first, &name, decree);
    Course::Done
}

/// Carries out a PREPARE TRANSACTION that the server has taken.
pub(super) fn after() {
    twophase::after_prepare();
}

/// Whether the server lets this session end the transaction.
fn may_end(user: &User) -> bool {
    let mut may = false;
    let ask = || {
        let found: Result<bool, spi::Error> = Spi::connect(|client| {
            let query = "SELECT 1 FROM pg_catalog.pg_prepared_xacts \
                 WHERE transaction = $1::pg_catalog.text::pg_catalog.xid \
                 AND (owner = current_user OR (SELECT rolsuper FROM pg_catalog.pg_roles \
                      WHERE rolname = current_user))";
            let local = user.local.to_string();
            Ok(!client.select(query, Some(1), &[local.as_str().into()])?.is_empty())
        });
        may = found.unwrap_or(false);
    };
    sqlrun::with_own_names(|| sqlrun::with_snapshot(ask));
    may
}
