//! What differs between PostgreSQL versions, under one name and signature each.

#[cfg(feature = "pg15")]
mod pg15;
#[cfg(feature = "pg15")]
pub use pg15::*;

use pgrx::{pg_guard, pg_sys};

#[pg_guard]
unsafe extern "C-unwind" {
    /// `executor/nodeModifyTable.h`: computes stored generated columns.
    pub fn ExecComputeStoredGenerated(
        relinfo: *mut pg_sys::ResultRelInfo,
        estate: *mut pg_sys::EState,
        slot: *mut pg_sys::TupleTableSlot,
        command: pg_sys::CmdType::Type,
    );
    /// `utils/datum.h`: whether two values look the same, whatever their compression or storage.
    pub fn datum_image_eq(
        a: pg_sys::Datum,
        b: pg_sys::Datum,
        by_value: bool,
        len: core::ffi::c_int,
    ) -> bool;
    /// `catalog/partition.h`: a list of all that a partition belongs to, nearest first.
    pub fn get_partition_ancestors(relid: pg_sys::Oid) -> *mut pg_sys::List;
    /// `catalog/pg_inherits.h`: a list of a table and all that inherit from it, locked.
    pub fn find_all_inheritors(
        parent: pg_sys::Oid,
        lock: pg_sys::LOCKMODE,
        parents: *mut *mut pg_sys::List,
    ) -> *mut pg_sys::List;
}
