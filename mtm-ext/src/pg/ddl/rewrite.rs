//! Tables that ALTER TABLE rewrites with values that only their origin knows, and materialized
//! views: emptied on a peer, since the rows follow.

use pgrx::pg_sys;
use std::cell::Cell;

thread_local! {
    /// Whether a table about to be rewritten must be emptied first.
    static EMPTYING: Cell<bool> = const { Cell::new(false) };
}

/// While this exists, tables are emptied just before they are rewritten.
pub(crate) struct Emptying(bool);

impl Emptying {
    /// Begins, if `wanted`.
    pub(crate) fn begin(wanted: bool) -> Self {
        Self(EMPTYING.replace(wanted))
    }
}

impl Drop for Emptying {
    fn drop(&mut self) {
        EMPTYING.set(self.0);
    }
}

/// A relation was created. If it is the new home of a table being rewritten, the rows of that
/// table go now: the server takes its snapshot for copying them only afterwards.
pub(crate) fn created(relation: pg_sys::Oid) {
    if !EMPTYING.get() {
        return;
    }
    if let Some(rewritten) = being_rewritten(relation) {
        delete_all(rewritten);
    }
}

/// Whose new home `relation` is. Its catalog row is too young for the caches.
fn being_rewritten(relation: pg_sys::Oid) -> Option<pg_sys::Oid> {
    let mut key = pg_sys::ScanKeyData::default();
    // SAFETY: the key is ours; the function is the server's equality of OIDs.
    unsafe {
        pg_sys::ScanKeyInit(
            &raw mut key,
            pg_sys::Anum_pg_class_oid as i16,
            pg_sys::BTEqualStrategyNumber as u16,
            pg_sys::F_OIDEQ.into(),
            relation.into(),
        );
    }
    // SAFETY: pg_class may be opened in any transaction; closed below.
    let classes =
        unsafe { pg_sys::table_open(pg_sys::RelationRelationId, pg_sys::AccessShareLock as i32) };
    // SAFETY: the self snapshot sees what this command wrote; the key is valid during the scan.
    let scan = unsafe {
        pg_sys::systable_beginscan(
            classes,
            pg_sys::ClassOidIndexId.into(),
            true,
            &raw mut pg_sys::SnapshotSelfData,
            1,
            &raw mut key,
        )
    };
    // SAFETY: the scan is open.
    let tuple = unsafe { pg_sys::systable_getnext(scan) };
    let rewritten = if tuple.is_null() {
        pg_sys::InvalidOid
    } else {
        // SAFETY: a row of pg_class has this layout.
        unsafe { (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>()).relrewrite }
    };
    // SAFETY: ends what was begun above.
    unsafe { pg_sys::systable_endscan(scan) };
    // SAFETY: likewise.
    unsafe { pg_sys::table_close(classes, pg_sys::AccessShareLock as i32) };
    (rewritten != pg_sys::InvalidOid).then_some(rewritten)
}

/// Deletes every visible row. The rewriting statement holds the table exclusively.
fn delete_all(table: pg_sys::Oid) {
    // SAFETY: the statement has locked the table; NoLock takes no other.
    let relation = unsafe { pg_sys::table_open(table, pg_sys::NoLock as i32) };
    // SAFETY: inside a transaction; unregistered below.
    let snapshot = unsafe { pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot()) };
    // SAFETY: relation and snapshot stay valid during the scan.
    let scan = unsafe {
        pg_sys::heap_beginscan(
            relation,
            snapshot,
            0,
            core::ptr::null_mut(),
            core::ptr::null_mut(),
            SCAN,
        )
    };
    loop {
        // SAFETY: the scan is open.
        let tuple =
            unsafe { pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection) };
        if tuple.is_null() {
            break;
        }
        // SAFETY: the row is visible and nobody else can touch it.
        unsafe { pg_sys::simple_heap_delete(relation, &raw mut (*tuple).t_self) };
    }
    // SAFETY: ends what was begun above.
    unsafe { pg_sys::heap_endscan(scan) };
    // SAFETY: likewise.
    unsafe { pg_sys::UnregisterSnapshot(snapshot) };
    // SAFETY: likewise.
    unsafe { pg_sys::table_close(relation, pg_sys::NoLock as i32) };
}

/// A sequential scan, page at a time.
const SCAN: u32 = pg_sys::ScanOptions::SO_TYPE_SEQSCAN
    | pg_sys::ScanOptions::SO_ALLOW_STRAT
    | pg_sys::ScanOptions::SO_ALLOW_PAGEMODE;

#[pgrx::pg_guard]
unsafe extern "C-unwind" {
    fn SetMatViewPopulatedState(relation: pg_sys::Relation, newstate: bool);
}

/// Marks a materialized view as populated, emptying it first if `empty`.
///
/// # Safety
/// `view` names a materialized view and lives during the call.
pub(crate) unsafe fn refill(view: *const pg_sys::RangeVar, empty: bool) {
    let lock = pg_sys::AccessExclusiveLock as i32;
    // SAFETY: as the caller promises; an error is raised for a missing relation.
    let relation = unsafe { pg_sys::table_openrv(view, lock) };
    if empty {
        give_new_files(relation);
    }
    // SAFETY: it is a materialized view, locked exclusively.
    unsafe { SetMatViewPopulatedState(relation, true) };
    // SAFETY: opened above; the lock stays until the end of the transaction.
    unsafe { pg_sys::table_close(relation, pg_sys::NoLock as i32) };
    // SAFETY: inside a transaction; makes the new state visible to what follows.
    unsafe { pg_sys::CommandCounterIncrement() };
}

/// Empties a relation that we hold exclusively; the old files come back if the transaction aborts.
fn give_new_files(relation: pg_sys::Relation) {
    // SAFETY: an open relation has a valid catalog row.
    let (id, class) = unsafe { ((*relation).rd_id, (*relation).rd_rel) };
    // SAFETY: as above.
    let (toast, persistence) = unsafe { ((*class).reltoastrelid, (*class).relpersistence) };
    // SAFETY: locked exclusively and used by nobody.
    unsafe { pg_sys::RelationSetNewRelfilenode(relation, persistence) };
    if toast != pg_sys::InvalidOid {
        // SAFETY: the relation owns its TOAST table.
        let toast = unsafe { pg_sys::table_open(toast, pg_sys::AccessExclusiveLock as i32) };
        // SAFETY: locked exclusively just now.
        unsafe { pg_sys::RelationSetNewRelfilenode(toast, persistence) };
        // SAFETY: opened above; the lock stays.
        unsafe { pg_sys::table_close(toast, pg_sys::NoLock as i32) };
    }
    let mut params = pg_sys::ReindexParams::default();
    let flags = pg_sys::REINDEX_REL_PROCESS_TOAST as i32;
    // SAFETY: rebuilds the indexes of an empty relation.
    unsafe { pg_sys::reindex_relation(id, flags, &raw mut params) };
}
