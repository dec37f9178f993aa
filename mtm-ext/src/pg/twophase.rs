//! Prepared transactions.

use super::{sys, walwake, xact};
use pgrx::pg_sys;
use std::ffi::CString;

/// Begins a transaction block in a worker.
pub fn begin() {
    // SAFETY: as PostgreSQL's apply worker begins the transaction it will prepare: outside a
    // transaction, in a process with a database.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::BeginTransactionBlock();
        pg_sys::CommitTransactionCommand();
        pg_sys::StartTransactionCommand();
    }
}

/// Counts the transaction's rows in this process' statistics, as committed, instead of leaving that
/// to whoever ends the prepared transaction: this may be a process that never is outside of a
/// transaction, and so never reports what it counts; autovacuum would not hear of the rows. The
/// caller prepares next. Not after schema changes, which PostgreSQL has more to do about.
pub fn count_rows() {
    // SAFETY: it moves counts of this process, and what PREPARE would save of them is gone then.
    // "Parallel" leaves out the count of transactions, which is made at COMMIT PREPARED.
    unsafe { pg_sys::AtEOXact_PgStat(true, true) }
}

/// Ends the transaction that [`begin`] began with a durable PREPARE.
pub fn prepare(gid: &str) {
    let gid = CString::new(gid).expect("a gid has no zero byte");
    walwake::suppress();
    // SAFETY: inside the block; the string is copied by PrepareTransactionBlock.
    unsafe {
        let copy = pg_sys::MemoryContextStrdup(pg_sys::TopTransactionContext, gid.as_ptr());
        pg_sys::PrepareTransactionBlock(copy);
        pg_sys::CommitTransactionCommand();
    }
    walwake::restore();
}

/// Ends the transaction that [`begin`] began with a commit that everybody sees when this returns,
/// and that becomes durable with the next flush.
pub fn commit_unflushed() {
    // SAFETY: inside the block; a variable of this process.
    unsafe {
        let saved = pg_sys::synchronous_commit;
        pg_sys::synchronous_commit = pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF as i32;
        pg_sys::EndTransactionBlock(false);
        pg_sys::CommitTransactionCommand();
        pg_sys::synchronous_commit = saved;
    }
}

/// COMMIT PREPARED or ROLLBACK PREPARED in a transaction of its own, marked as the cluster's.
pub fn finish(gid: &str, commit: bool) {
    let gid = CString::new(gid).expect("a gid has no zero byte");
    xact::mark_origin(mtm_core::Lsn(0));
    // SAFETY: outside a transaction, in a process with a database, as superuser.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        walwake::suppress();
        sys::FinishPreparedTransaction(gid.as_ptr(), commit);
        walwake::restore();
        // The record is durable already: no reason to wake the WAL writer.
        pg_sys::XactLastRecEnd = 0;
        pg_sys::CommitTransactionCommand();
    }
    xact::unmark_commit_record();
}

/// Rolls back whatever is open.
pub fn abort() {
    walwake::restore();
    // SAFETY: the usual way out after an ERROR.
    unsafe { pg_sys::AbortOutOfAnyTransaction() }
}
