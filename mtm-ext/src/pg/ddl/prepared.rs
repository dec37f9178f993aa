//! Users' COMMIT PREPARED and ROLLBACK PREPARED: done here first, then told to the peers, which
//! hold the transaction prepared under its name in the cluster.

use super::parse::tag;
use crate::hook::twophase;
use crate::pg::{shmem, sqlrun};
use mtm_core::{Gid, Xid};
use mtm_paxos::commit::Decree;
use pgrx::pg_sys::{self, NodeTag};
use pgrx::prelude::*;
use std::ffi::CStr;

/// Looks at the statement before it is executed: what peers must be told afterwards.
///
/// # Safety
/// `pstmt` is the statement given to the utility hook.
pub(super) unsafe fn before(pstmt: *mut pg_sys::PlannedStmt) -> Option<(Gid, Decree)> {
    use pg_sys::TransactionStmtKind::{
        TRANS_STMT_COMMIT_PREPARED, TRANS_STMT_PREPARE, TRANS_STMT_ROLLBACK_PREPARED,
    };
    // SAFETY: the caller's promise; a transaction statement's gid is null or a C string.
    let (kind, text) = unsafe {
        let stmt = (*pstmt).utilityStmt;
        if tag(stmt) != NodeTag::T_TransactionStmt {
            return None;
        }
        let stmt = &*stmt.cast::<pg_sys::TransactionStmt>();
        if stmt.gid.is_null() {
            return None;
        }
        (stmt.kind, CStr::from_ptr(stmt.gid).to_string_lossy().into_owned())
    };
    if text.starts_with(Gid::PREFIX) {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_RESERVED_NAME,
            format!("transaction identifier \"{text}\" is reserved for multimaster"),
            "Identifiers of prepared transactions must not begin with \"MTM-\"."
        );
    }
    let decree = match kind {
        TRANS_STMT_COMMIT_PREPARED => Decree::Commit,
        TRANS_STMT_ROLLBACK_PREPARED => Decree::Abort,
        TRANS_STMT_PREPARE => return None,
        _ => return None,
    };
    let gid = gid_of(&text)?;
    if decree == Decree::Commit {
        twophase::check_held(&gid);
    }
    Some((gid, decree))
}

/// Tells the peers once the statement is durable here.
pub(super) fn after((gid, decree): (Gid, Decree)) {
    match decree {
        Decree::Commit => twophase::user_prepared_committed(gid),
        Decree::Abort => twophase::user_prepared_rolled_back(gid),
    }
}

/// The cluster's name of a transaction that a user has prepared on this node.
fn gid_of(text: &str) -> Option<Gid> {
    let mut xid = None;
    sqlrun::with_snapshot(|| {
        let found: Result<Option<i64>, spi::Error> = Spi::connect(|client| {
            let rows = client.select(
                "SELECT transaction::text::int8 FROM pg_catalog.pg_prepared_xacts \
                 WHERE gid = $1 AND database = pg_catalog.current_database()",
                Some(1),
                &[text.into()],
            )?;
            if rows.is_empty() { Ok(None) } else { rows.first().get_one::<i64>() }
        });
        xid = found.ok().flatten();
    });
    let header = shmem::header();
    Some(Gid {
        origin: header.me()?,
        xid: widen(u32::try_from(xid?).ok()?),
        generation: crate::cluster::USERS,
    })
}

/// The 64-bit number of a recent transaction.
fn widen(xid: u32) -> Xid {
    // SAFETY: reads shared memory under its lock.
    let next = unsafe { pg_sys::ReadNextFullTransactionId() }.value;
    let full = next >> 32 << 32 | u64::from(xid);
    Xid(if full > next { full - (1 << 32) } else { full })
}
