//! Tables whose rows stay on their node: those with the security label `local` of this extension,
//! and their partitions.
//!
//! A label is a catalog row, so a decoder sees it as it was when the rows were written; it is
//! dumped and restored with the table, and replicated as the statement it is.

use super::parse::bytes;
use crate::guc;
use crate::report;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};

const PROVIDER: &CStr = c"multimaster";
const LOCAL: &CStr = c"local";

thread_local! {
    /// What was found out, until the relation's cache entry becomes invalid.
    static KNOWN: RefCell<BTreeMap<u32, bool>> = const { RefCell::new(BTreeMap::new()) };
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" {
    fn get_partition_ancestors(relid: pg_sys::Oid) -> *mut pg_sys::List;
    fn find_all_inheritors(
        parent: pg_sys::Oid,
        lockmode: pg_sys::LOCKMODE,
        numparents: *mut *mut pg_sys::List,
    ) -> *mut pg_sys::List;
}

/// Registers the labels, at library load.
pub(crate) fn init() {
    // SAFETY: at library load; provider and callback live for ever.
    unsafe { pg_sys::register_label_provider(PROVIDER.as_ptr(), Some(relabel)) };
}

/// In each process before its first question.
fn watch() {
    thread_local! {
        static WATCHING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    }
    if !WATCHING.replace(true) {
        // SAFETY: once per process; the callback lives for ever.
        unsafe {
            pg_sys::CacheRegisterRelcacheCallback(Some(invalidate), pg_sys::Datum::from(0));
        }
    }
}

#[pgrx::pg_guard]
extern "C-unwind" fn invalidate(_arg: pg_sys::Datum, relation: pg_sys::Oid) {
    KNOWN.with_borrow_mut(|known| {
        if relation == pg_sys::InvalidOid {
            known.clear();
        } else {
            known.remove(&relation.to_u32());
        }
    });
}

/// Checks a label that is about to be set or removed.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn relabel(object: *const pg_sys::ObjectAddress, label: *const c_char) {
    // SAFETY: the server's arguments.
    let (class, relation, column) =
        unsafe { ((*object).classId, (*object).objectId, (*object).objectSubId) };
    // SAFETY: a cache look-up.
    let kind = unsafe { pg_sys::get_rel_relkind(relation) } as u8;
    let is_table = class == pg_sys::RelationRelationId
        && column == 0
        && (kind == pg_sys::RELKIND_RELATION || kind == pg_sys::RELKIND_PARTITIONED_TABLE);
    if is_table && relation.to_u32() < pg_sys::FirstNormalObjectId {
        pgrx::ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "permission denied: this is a system catalog"
        );
    }
    // SAFETY: NULL or a C string.
    let known = label.is_null() || unsafe { CStr::from_ptr(label) } == LOCAL;
    if !is_table || !known {
        report::error(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "multimaster has no such security label",
            "",
            "A table can have the label \"local\", which keeps its rows on each node.",
        );
    }
    for member in family(relation) {
        // Who has written must commit before: the commit asks where the rows go.
        let lock = pg_sys::ShareRowExclusiveLock as i32;
        // SAFETY: waits for the lock; an error is raised on a deadlock.
        unsafe { pg_sys::LockRelationOid(member, lock) };
        // SAFETY: the relation exists and is locked; sent when the statement ends.
        unsafe { pg_sys::CacheInvalidateRelcacheByRelid(member) };
    }
}

/// The table and its partitions.
pub(super) fn family(relation: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    let lock = pg_sys::AccessShareLock as i32;
    // SAFETY: inside a transaction; the result is a list of OIDs.
    let list = unsafe { find_all_inheritors(relation, lock, core::ptr::null_mut()) };
    // SAFETY: as above.
    unsafe { oids(list) }
}

/// # Safety
/// `list` is NULL or a list of OIDs.
unsafe fn oids(list: *mut pg_sys::List) -> Vec<pg_sys::Oid> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: a list's elements array holds `length` cells.
    unsafe {
        let (cells, n) = ((*list).elements, (*list).length as usize);
        (0..n).map(|i| (*cells.add(i)).oid_value).collect()
    }
}

/// Whether rows of this table stay on this node. Inside a transaction, or while decoding one.
pub(crate) fn is_local(relation: pg_sys::Oid) -> bool {
    watch();
    let key = relation.to_u32();
    let known = KNOWN.with_borrow(|known| known.get(&key).copied());
    let labelled = known.unwrap_or_else(|| {
        let found = has_label(relation) || ancestors(relation).into_iter().any(has_label);
        KNOWN.with_borrow_mut(|known| known.insert(key, found));
        found
    });
    labelled || guc::IGNORE_TABLES_WITHOUT_PK.get() && lacks_primary_key(relation)
}

fn ancestors(relation: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    // SAFETY: a cache look-up; false when there is no such relation.
    if !unsafe { pg_sys::get_rel_relispartition(relation) } {
        return Vec::new();
    }
    // SAFETY: a partition has at least one ancestor.
    unsafe { oids(get_partition_ancestors(relation)) }
}

fn has_label(relation: pg_sys::Oid) -> bool {
    let object = pg_sys::ObjectAddress {
        classId: pg_sys::RelationRelationId,
        objectId: relation,
        objectSubId: 0,
    };
    // SAFETY: a catalog look-up; returns NULL or a copy.
    let label = unsafe { bytes(pg_sys::GetSecurityLabel(&raw const object, PROVIDER.as_ptr())) };
    label == LOCAL.to_bytes()
}

/// Whether a table has no primary key.
pub(crate) fn lacks_primary_key(relation: pg_sys::Oid) -> bool {
    // SAFETY: the caller has used the relation in this transaction or has it open; NULL if it is
    // gone. The list of indexes is read from the catalog, no index is opened or locked.
    unsafe {
        let rel = pg_sys::RelationIdGetRelation(relation);
        if rel.is_null() {
            return false;
        }
        pg_sys::list_free(pg_sys::RelationGetIndexList(rel));
        let kind = (*(*rel).rd_rel).relkind as u8;
        let lacks = (kind == pg_sys::RELKIND_RELATION || kind == pg_sys::RELKIND_PARTITIONED_TABLE)
            && (*rel).rd_pkindex == pg_sys::InvalidOid;
        pg_sys::RelationClose(rel);
        lacks
    }
}

/// Keeps the rows of a table on each node, on all nodes.
pub(crate) fn make_local(relation: pg_sys::Oid) {
    let name = crate::pg::sequences::qualified_name(relation);
    let name = String::from_utf8_lossy(&name);
    let sql = format!("SECURITY LABEL FOR multimaster ON TABLE {name} IS 'local'");
    if let Err(error) = pgrx::Spi::run(&sql) {
        pgrx::error!("could not make table {name} local: {error}");
    }
}
