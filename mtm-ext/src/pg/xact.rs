//! Transactions: callbacks, what a transaction has done, and its commit record.

use super::sys;
use core::cell::Cell;
use core::ffi::c_void;
use core::sync::atomic::{AtomicBool, Ordering};
use mtm_core::{LocalXid, Lsn};
use pgrx::pg_sys;

use crate::hook::{commit, twophase};

// Processes of PostgreSQL have one thread; thread-locals are process state without unsafe.
thread_local! {
    static REPLICABLE: Cell<bool> = const { Cell::new(false) };
    static SAVED_SYNCHRONOUS_COMMIT: Cell<Option<i32>> = const { Cell::new(None) };
    static MARKED: Cell<bool> = const { Cell::new(false) };
    static HELD: Cell<bool> = const { Cell::new(false) };
}

static APPLYING: AtomicBool = AtomicBool::new(false);

/// Installs the callbacks. Only in `_PG_init` under `shared_preload_libraries`: callbacks run
/// last-registered-first, so ours runs after those of libraries that are loaded later.
pub fn init() {
    // SAFETY: _PG_init runs in the single-threaded postmaster; the callbacks live for ever.
    unsafe {
        pg_sys::RegisterXactCallback(Some(xact_event), core::ptr::null_mut());
        pg_sys::RegisterResourceReleaseCallback(Some(resources_released), core::ptr::null_mut());
    }
}

#[pgrx::pg_guard]
extern "C-unwind" fn xact_event(event: pg_sys::XactEvent::Type, _arg: *mut c_void) {
    match event {
        pg_sys::XactEvent::XACT_EVENT_PRE_COMMIT => commit::pre_commit(),
        pg_sys::XactEvent::XACT_EVENT_PRE_PREPARE => twophase::pre_prepare(),
        pg_sys::XactEvent::XACT_EVENT_COMMIT => {
            unmark_commit_record();
            commit::committed();
            REPLICABLE.set(false);
        }
        pg_sys::XactEvent::XACT_EVENT_PREPARE => {
            unmark_commit_record();
            commit::prepared();
            REPLICABLE.set(false);
        }
        pg_sys::XactEvent::XACT_EVENT_ABORT => {
            unmark_commit_record();
            commit::ended();
            REPLICABLE.set(false);
        }
        _ => {}
    }
}

#[pgrx::pg_guard]
extern "C-unwind" fn resources_released(
    phase: pg_sys::ResourceReleasePhase::Type,
    is_commit: bool,
    is_top_level: bool,
    _arg: *mut c_void,
) {
    let last = phase == pg_sys::ResourceReleasePhase::RESOURCE_RELEASE_AFTER_LOCKS;
    if last && is_commit && is_top_level {
        commit::locks_released();
    }
}

/// Marks this process as one that applies other nodes' transactions: it announces nothing.
pub fn set_applying() {
    APPLYING.store(true, Ordering::Relaxed);
}

/// Whether this process is one whose transactions may be announced at all.
pub fn is_ordinary_process() -> bool {
    // SAFETY: plain variables of this process.
    unsafe {
        !APPLYING.load(Ordering::Relaxed)
            && !pg_sys::am_walsender
            && pg_sys::ParallelWorkerNumber < 0
            && pg_sys::MyBackendType != pg_sys::BackendType::B_AUTOVAC_WORKER
            && !pg_sys::MyProc.is_null()
    }
}

/// The database of this session, `0` if none.
pub fn my_database() -> u32 {
    // SAFETY: a plain variable of this process.
    unsafe { pg_sys::MyDatabaseId.to_u32() }
}

/// The session's `application_name`.
pub fn application_name() -> String {
    // SAFETY: a GUC string variable: null or a C string that lives until the next assignment.
    unsafe {
        let name = pg_sys::application_name;
        if name.is_null() {
            return String::new();
        }
        core::ffi::CStr::from_ptr(name).to_string_lossy().into_owned()
    }
}

/// The transaction's 64-bit number, if it has one.
pub fn full_xid() -> Option<LocalXid> {
    // SAFETY: reads the state of this process' transaction.
    let xid = unsafe { pg_sys::GetTopFullTransactionIdIfAny() }.value;
    (xid != 0).then_some(LocalXid(xid))
}

/// The same; it gets one if it has none.
pub fn assign_number() -> LocalXid {
    // SAFETY: inside a transaction that is not over.
    LocalXid(unsafe { pg_sys::GetTopFullTransactionId() }.value)
}

/// Whether this session is inside a transaction block that has not failed.
pub fn in_sound_block() -> bool {
    // SAFETY: reads the state of this process' transaction.
    unsafe { pg_sys::IsTransactionBlock() && !pg_sys::IsAbortedTransactionBlockState() }
}

/// From here on no interrupt is handled, until [`resume_interrupts`].
pub fn hold_interrupts() {
    // SAFETY: a counter of this process. An ERROR resets it.
    unsafe { pg_sys::InterruptHoldoffCount += 1 }
}

/// Ends what [`hold_interrupts`] began.
pub fn resume_interrupts() {
    // SAFETY: as above.
    unsafe { pg_sys::InterruptHoldoffCount = pg_sys::InterruptHoldoffCount.saturating_sub(1) }
}

/// Whether this process holds advisory locks.
pub fn holds_advisory_locks() -> bool {
    let mut found = false;
    each_held_lock(|tag, _| {
        found |= u32::from(tag.locktag_type) == pg_sys::LockTagType::LOCKTAG_ADVISORY;
    });
    found
}

/// The transaction's committed subtransactions.
pub fn committed_children() -> Vec<u32> {
    let mut children = core::ptr::null_mut();
    // SAFETY: returns a count and a pointer to so many elements that live until the transaction's
    // state changes; they are copied at once.
    unsafe {
        let n = pg_sys::xactGetCommittedChildren(&raw mut children);
        (0..n as usize).map(|i| (*children.add(i)).into_inner()).collect()
    }
}

/// Notes that the running transaction did something that peers must do too and that shows in no
/// row lock: DDL, TRUNCATE.
pub fn mark_replicable() {
    REPLICABLE.set(true);
}

/// Whether [`mark_replicable`] was called in this transaction.
pub fn is_marked_replicable() -> bool {
    REPLICABLE.get()
}

/// User relations of this database on which the transaction holds the lock that INSERT, UPDATE,
/// DELETE, MERGE and COPY FROM take and keep to the end, whoever issued them.
pub fn row_locked_relations() -> Vec<pg_sys::Oid> {
    let mut relations = Vec::new();
    // Others may move our fast-path locks to the main table, never back: look in that order.
    fast_path_row_locks(&mut relations);
    main_row_locks(&mut relations);
    relations.retain(|relation| relation.to_u32() >= pg_sys::FirstNormalObjectId);
    relations.sort_unstable_by_key(|relation| relation.to_u32());
    relations.dedup();
    relations
}

fn fast_path_row_locks(relations: &mut Vec<pg_sys::Oid>) {
    // SAFETY: our own PGPROC, whose fast-path fields are guarded by its fpInfoLock; each of the 16
    // entries has three bits, for lock modes 1 to 3, and belongs to our database.
    unsafe {
        let me = pg_sys::MyProc;
        pg_sys::LWLockAcquire(&raw mut (*me).fpInfoLock, pg_sys::LWLockMode::LW_SHARED);
        for (i, relation) in (*me).fpRelId.iter().enumerate() {
            let modes = (*me).fpLockBits >> (3 * i) & 7;
            if modes & 1 << (pg_sys::RowExclusiveLock - 1) != 0 {
                relations.push(*relation);
            }
        }
        pg_sys::LWLockRelease(&raw mut (*me).fpInfoLock);
    }
}

fn main_row_locks(relations: &mut Vec<pg_sys::Oid>) {
    let database = my_database();
    each_held_lock(|tag, modes| {
        let is_relation = u32::from(tag.locktag_type) == pg_sys::LockTagType::LOCKTAG_RELATION;
        let is_row_lock = modes & 1 << pg_sys::RowExclusiveLock != 0;
        if is_relation && is_row_lock && tag.locktag_field1 == database {
            relations.push(pg_sys::Oid::from(tag.locktag_field2));
        }
    });
}

/// Runs `each` with the tag and the modes of every lock that this process holds in the main table.
fn each_held_lock(mut each: impl FnMut(&pg_sys::LOCKTAG, i32)) {
    let link = core::mem::offset_of!(pg_sys::PROCLOCK, procLink);
    // SAFETY: our own lists of held locks, one per partition of the lock table, each guarded by
    // its partition's LWLock; links are the `procLink` fields of PROCLOCKs.
    unsafe {
        let me = pg_sys::MyProc;
        for partition in 0..(*me).myProcLocks.len() {
            let lock = &raw mut (*pg_sys::MainLWLockArray
                .add(pg_sys::LOCK_MANAGER_LWLOCK_OFFSET as usize + partition))
            .lock;
            pg_sys::LWLockAcquire(lock, pg_sys::LWLockMode::LW_SHARED);
            let head = &raw mut (*me).myProcLocks[partition];
            let mut at = (*head).next;
            while !at.is_null() && at != head {
                let held = &*at.byte_sub(link).cast::<pg_sys::PROCLOCK>();
                each(&(*held.tag.myLock).tag, held.holdMask);
                at = (*at).next;
            }
            pg_sys::LWLockRelease(lock);
        }
    }
}

/// Whether rows of this relation live in the write-ahead log: permanent tables and their
/// partitions; not sequences, views, temporary or unlogged tables.
pub fn is_logged_table(relation: pg_sys::Oid) -> bool {
    // SAFETY: syscache lookups inside a transaction.
    unsafe {
        // 0 for a table that this transaction has dropped; if it was permanent, the DROP travels.
        let kind = pg_sys::get_rel_relkind(relation) as u8;
        (kind == pg_sys::RELKIND_RELATION
            || kind == pg_sys::RELKIND_PARTITIONED_TABLE
            || kind == pg_sys::RELKIND_MATVIEW)
            && pg_sys::get_rel_persistence(relation) as u8 == pg_sys::RELPERSISTENCE_PERMANENT
    }
}

/// `PreCommit_CheckForSerializationFailure`: after it, a serializable transaction is safe. Core
/// calls it again later, which does no harm.
pub fn check_serializable() {
    // SAFETY: core calls it at the same place of a commit.
    unsafe { sys::PreCommit_CheckForSerializationFailure() }
}

/// Fires deferred triggers and checks deferred constraints, as the commit would.
pub fn fire_deferred() {
    // SAFETY: core calls it at the beginning of a commit, in the same state.
    unsafe { pg_sys::AfterTriggerFireDeferred() }
}

/// Raises what PREPARE TRANSACTION refuses only after our callback.
pub fn check_preparable() {
    // SAFETY: reads the state of this process' transaction; AtPrepare_Notify only checks.
    let (temporary, exported) = unsafe {
        sys::AtPrepare_Notify();
        (
            pg_sys::MyXactFlags & pg_sys::XACT_FLAGS_ACCESSEDTEMPNAMESPACE as i32 != 0,
            pg_sys::XactHasExportedSnapshots(),
        )
    };
    let what = if temporary {
        "has operated on temporary objects"
    } else if exported {
        "has exported snapshots"
    } else {
        return;
    };
    pgrx::ereport!(
        ERROR,
        pgrx::PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        format!("cannot PREPARE a transaction that {what}")
    );
}

/// Prepares this process for a commit that is decided: no interrupt may break it, its record is
/// flushed whatever `synchronous_commit` says, and carries our mark and the announcement's end.
pub fn mark_commit_record(announcement: Lsn) {
    // SAFETY: variables of this process; every change is undone by `unmark_commit_record` in the
    // transaction's end callbacks.
    unsafe {
        pg_sys::InterruptHoldoffCount += 1;
        HELD.set(true);
        let flush = pg_sys::SyncCommitLevel::SYNCHRONOUS_COMMIT_LOCAL_FLUSH as i32;
        if pg_sys::synchronous_commit < flush {
            SAVED_SYNCHRONOUS_COMMIT.set(Some(pg_sys::synchronous_commit));
            pg_sys::synchronous_commit = flush;
        }
    }
    mark_origin(announcement);
}

/// Marks the records that end transactions as ours, for the output plugin.
pub fn mark_origin(announcement: Lsn) {
    // SAFETY: variables of this process; with DoNotReplicateId core tracks no progress.
    unsafe {
        pg_sys::replorigin_session_origin = DO_NOT_REPLICATE;
        pg_sys::replorigin_session_origin_lsn = announcement.0;
        pg_sys::replorigin_session_origin_timestamp = 0;
    }
    MARKED.set(true);
}

/// Tags rows written by this process as `origin`'s, so that they are not sent on.
pub fn mark_rows_of(origin: mtm_core::NodeId) {
    // SAFETY: variables of this process; only the number gets into row records.
    unsafe {
        pg_sys::replorigin_session_origin = u16::from(origin.get());
        pg_sys::replorigin_session_origin_lsn = 0;
    }
    MARKED.set(true);
}

/// PostgreSQL's `DoNotReplicateId`.
pub const DO_NOT_REPLICATE: pg_sys::RepOriginId = pg_sys::RepOriginId::MAX;

/// Undoes the marks.
pub fn unmark_commit_record() {
    // SAFETY: variables of this process. An ERROR resets the holdoff count, hence the check;
    // CommitTransaction and AbortTransaction hold one themselves.
    unsafe {
        if HELD.replace(false) && pg_sys::InterruptHoldoffCount > 1 {
            pg_sys::InterruptHoldoffCount -= 1;
        }
        if let Some(level) = SAVED_SYNCHRONOUS_COMMIT.take() {
            pg_sys::synchronous_commit = level;
        }
        if MARKED.replace(false) {
            pg_sys::replorigin_session_origin = 0;
            pg_sys::replorigin_session_origin_lsn = 0;
            pg_sys::replorigin_session_origin_timestamp = 0;
        }
    }
}

/// What the commit log says of a transaction of this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum XidStatus {
    /// Running, or prepared by a user.
    InProgress,
    /// Committed.
    Committed,
    /// Rolled back, or lost in a crash.
    Aborted,
}

/// What became of a transaction of this node.
pub fn status_of(xid: LocalXid) -> XidStatus {
    let short = pg_sys::TransactionId::from(xid.short());
    // SAFETY: in this order, as everywhere in PostgreSQL: the commit log is written before a
    // transaction leaves the process array.
    unsafe {
        let next = pg_sys::ReadNextFullTransactionId().value;
        if xid.0 >= next {
            // Not assigned (yet): it was lost with the log's unflushed end.
            XidStatus::Aborted
        } else if pg_sys::TransactionIdIsInProgress(short) {
            XidStatus::InProgress
        } else if pg_sys::TransactionIdDidCommit(short) {
            XidStatus::Committed
        } else {
            XidStatus::Aborted
        }
    }
}

/// Begins an ordinary transaction in a worker.
pub fn begin() {
    // SAFETY: outside a transaction, in a process with a database.
    unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
    }
}

/// Commits what [`begin`] began and runs `done`; nothing can end the process in between, so what
/// `done` writes down is true.
pub fn commit_and(done: impl FnOnce()) {
    // SAFETY: a counter of this process; an ERROR resets it.
    unsafe { pg_sys::InterruptHoldoffCount += 1 };
    commit();
    done();
    // SAFETY: as above.
    unsafe { pg_sys::InterruptHoldoffCount -= 1 };
}

/// Commits what [`begin`] began; durably or not, as `synchronous_commit` says.
pub fn commit() {
    // SAFETY: inside the transaction that `begin` began.
    unsafe { pg_sys::CommitTransactionCommand() }
}
