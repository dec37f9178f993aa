//! Tables without primary key.
//!
//! For such a table PostgreSQL logs neither the old key nor the old row of an UPDATE or DELETE:
//! checks for that exist only for tables in publications. Nobody could tell which row was meant. So
//! each table that nothing else identifies gets REPLICA IDENTITY FULL, on every node by itself,
//! right after the statement that made it so, which is the same statement on every node.

use pgrx::pg_sys;

use super::types;

/// Gives a permanent table without usable identity REPLICA IDENTITY FULL. True when that was
/// needed: the user is to be warned then. A table with identity NOTHING is left as it is, because
/// that was asked for.
///
/// # Safety
/// Inside a transaction; no statement of this session is using the table.
pub unsafe fn ensure_replica_identity(relid: pg_sys::Oid) -> bool {
    // SAFETY: a lock that stops writers, as long as they could still log without the old row.
    unsafe {
        let rel = pg_sys::try_table_open(relid, pg_sys::AccessShareLock as i32);
        if rel.is_null() {
            return false;
        }
        let needed = lacks_identity(rel);
        pg_sys::table_close(rel, pg_sys::AccessShareLock as i32);
        if !needed {
            return false;
        }
        pg_sys::LockRelationOid(relid, pg_sys::ShareRowExclusiveLock as i32);
        mark_full(relid);
        pg_sys::CommandCounterIncrement();
        true
    }
}

/// # Safety
/// `rel` is open.
unsafe fn lacks_identity(rel: pg_sys::Relation) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let class = &*(*rel).rd_rel;
        (class.relkind as u8 == pg_sys::RELKIND_RELATION
            || class.relkind as u8 == pg_sys::RELKIND_MATVIEW)
            && class.relpersistence as u8 == pg_sys::RELPERSISTENCE_PERMANENT
            && !types::is_built_in((*rel).rd_id)
            && matches!(
                class.relreplident as u8,
                pg_sys::REPLICA_IDENTITY_DEFAULT | pg_sys::REPLICA_IDENTITY_INDEX
            )
            && pg_sys::RelationGetReplicaIndex(rel) == pg_sys::InvalidOid
    }
}

/// # Safety
/// The table exists and is locked.
unsafe fn mark_full(relid: pg_sys::Oid) {
    // SAFETY: a catalog update as ALTER TABLE does it; it invalidates the table's cache entry.
    unsafe {
        let lock = pg_sys::RowExclusiveLock as i32;
        let catalog = pg_sys::table_open(pg_sys::RelationRelationId, lock);
        let cache = pg_sys::SysCacheIdentifier::RELOID as i32;
        let tuple = pg_sys::SearchSysCacheCopy(
            cache,
            pg_sys::Datum::from(relid),
            pg_sys::Datum::from(0),
            pg_sys::Datum::from(0),
            pg_sys::Datum::from(0),
        );
        if !tuple.is_null() {
            let class = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>();
            (*class).relreplident = pg_sys::REPLICA_IDENTITY_FULL as core::ffi::c_char;
            let mut tid = (*tuple).t_self;
            pg_sys::CatalogTupleUpdate(catalog, &mut tid, tuple);
            pg_sys::heap_freetuple(tuple);
        }
        pg_sys::table_close(catalog, lock);
    }
}
