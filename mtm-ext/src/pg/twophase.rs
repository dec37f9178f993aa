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
pub fn prepare(gid: impl Into<Vec<u8>>) {
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
    let off = pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_OFF as i32;
    // SAFETY: a variable of this process.
    let saved = unsafe { (&raw mut pg_sys::synchronous_commit).replace(off) };
    commit();
    // SAFETY: as above.
    unsafe { pg_sys::synchronous_commit = saved }
}

/// As [`prepare`], for a user's transaction: with this owner, a role of this server, or this
/// process' own.
pub fn prepare_for(gid: &[u8], owner: Option<pg_sys::Oid>) {
    let Some(owner) = owner else { return prepare(gid) };
    let (mut user, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: variables of this process; after an ERROR the abort sets them back.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut context);
        pg_sys::SetUserIdAndSecContext(owner, context);
    }
    prepare(gid);
    // SAFETY: as above.
    unsafe { pg_sys::SetUserIdAndSecContext(user, context) }
}

/// A role by its name; an ERROR if there is none.
pub fn role(name: &str) -> pg_sys::Oid {
    let name = CString::new(name).expect("a role's name has no zero byte");
    // SAFETY: a catalog lookup inside a transaction.
    unsafe { pg_sys::get_role_oid(name.as_ptr(), false) }
}

/// The role that this session acts as.
pub fn current_role() -> String {
    // SAFETY: inside a transaction; returns a palloc'd C string that is copied at once.
    unsafe {
        let name = pg_sys::GetUserNameFromId(pg_sys::GetUserId(), false);
        core::ffi::CStr::from_ptr(name).to_string_lossy().into_owned()
    }
}

/// Raises whatever PREPARE TRANSACTION would under this name, and keeps the name and its place for
/// this transaction until [`give_back_place`] or its abort.
pub fn rehearse(name: &[u8]) {
    let gid = CString::new(name).expect("the name came as a C string");
    // SAFETY: as PrepareTransaction does, in its order. What StartPrepare collects is overwritten
    // by its next call.
    unsafe {
        let place = reserve(&gid);
        sys::AtPrepare_RelationMap();
        // Only such locks can be the session's and the transaction's at once. Not always: it
        // leaves counts of strong locks behind if the transaction fails after all.
        if xact::holds_advisory_locks() {
            sys::StartPrepare(place);
            sys::AtPrepare_Locks();
        }
    }
}

/// Keeps a place among the prepared transactions for the running one, under this name, until
/// [`give_back_place`] or its abort; an ERROR if there is none.
pub fn take_place(name: &str) {
    // SAFETY: inside a transaction.
    unsafe { reserve(&CString::new(name).expect("a gid has no zero byte")) };
}

/// Reserves a place among the prepared transactions, as PrepareTransaction does: nobody else's
/// meanwhile and not valid, so that nobody sees it.
///
/// # Safety
/// Inside a transaction.
unsafe fn reserve(gid: &core::ffi::CStr) -> *mut core::ffi::c_void {
    // SAFETY: the name is copied.
    unsafe {
        let xid = pg_sys::GetTopTransactionId();
        let (now, owner) = (pg_sys::GetCurrentTimestamp(), pg_sys::GetUserId());
        sys::MarkAsPreparing(xid, gid.as_ptr(), now, owner, pg_sys::MyDatabaseId)
    }
}

/// The server's own PREPARE takes the place next, or it is not needed any more.
pub fn give_back_place() {
    // SAFETY: frees what this process has reserved, if anything.
    unsafe { sys::AtAbort_Twophase() }
}

/// Carries out a PREPARE TRANSACTION that was just accepted, instead of leaving that to the end of
/// the statement; no transaction is open afterwards.
pub fn carry_out_prepare() {
    // SAFETY: at the end of the statement's execution at top level, as statements do that consist
    // of several transactions.
    unsafe { pg_sys::CommitTransactionCommand() }
}

/// COMMIT PREPARED or ROLLBACK PREPARED in a transaction of its own, marked as the cluster's.
pub fn finish(gid: impl Into<Vec<u8>>, commit: bool) {
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

/// Whether a transaction of this name is prepared in this database.
pub fn is_there(gid: &str) -> bool {
    const QUERY: &str = "SELECT 1 FROM pg_catalog.pg_prepared_xacts \
         WHERE gid = $1 AND database = pg_catalog.current_database()";
    finds(QUERY, gid)
}

/// Whether the transaction with this number is prepared.
pub fn is_prepared(local: u32) -> bool {
    const QUERY: &str = "SELECT 1 FROM pg_catalog.pg_prepared_xacts \
         WHERE transaction = $1::pg_catalog.text::pg_catalog.xid";
    finds(QUERY, &local.to_string())
}

fn finds(query: &str, argument: &str) -> bool {
    super::sqlrun::in_transaction(|| {
        pgrx::spi::Spi::connect(|client| {
            !client.select(query, Some(1), &[argument.into()]).expect("a plain query").is_empty()
        })
    })
}

/// Commits the transaction that [`begin`] began; durably or not, as `synchronous_commit` says.
pub fn commit() {
    // SAFETY: inside the block.
    unsafe {
        pg_sys::EndTransactionBlock(false);
        pg_sys::CommitTransactionCommand();
    }
}

/// Rolls back whatever is open.
pub fn abort() {
    walwake::restore();
    // SAFETY: the usual way out after an ERROR.
    unsafe { pg_sys::AbortOutOfAnyTransaction() }
}
