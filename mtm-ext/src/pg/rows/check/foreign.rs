//! Foreign keys between what is applied and what this node has.
//!
//! As in PostgreSQL itself the parent's row lock decides between an inserted child and a deleted
//! parent: who stores a child takes KEY SHARE on its parent, and that waits for whoever deletes it,
//! or lets the deletion wait. So one of the two transactions sees what the other did.

use std::ffi::{CStr, CString};

use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::{self, Oid};

use super::exists::{Column, Condition, Plans, Question, table_name};
use super::parent::Parents;
use crate::pg::compat::{self, ForeignKeyRow};
use crate::pg::rows::error;
use crate::pg::rows::stamp::Stamp;

/// A foreign key, valid while its stamp holds.
pub(super) struct Constraint {
    pub(super) stamp: Stamp,
    pub(super) key: ForeignKeyRow,
    /// The foreign key as it was declared, of which `key` may be a partition's.
    declared: ForeignKeyRow,
    /// Types of the parent's and the child's columns.
    parent_types: Vec<Oid>,
    child_types: Vec<Oid>,
    children: Question,
}

/// Reads a foreign key; None if it is gone.
///
/// # Safety
/// Inside a transaction; the tables are locked.
pub(super) unsafe fn load(constraint: Oid) -> Option<Constraint> {
    // SAFETY: catalog lookups.
    unsafe {
        let key = compat::foreign_key(constraint)?;
        let mut stamp = Stamp::begin(key.child);
        stamp.depends_on(key.parent);
        let mut declared = key.clone();
        while declared.of != pg_sys::InvalidOid {
            match compat::foreign_key(declared.of) {
                Some(of) if of.child == key.child => declared = of,
                _ => break,
            }
        }
        stamp.depends_on(declared.parent);
        let types = |relid: Oid, columns: &[i16]| -> Vec<Oid> {
            columns.iter().map(|at| pg_sys::get_atttype(relid, *at)).collect()
        };
        let parent_types = types(key.parent, &key.parent_columns);
        let child_types = types(key.child, &key.child_columns);
        let children = children(&key, &parent_types, &child_types);
        stamp.seal();
        Some(Constraint { stamp, key, declared, parent_types, child_types, children })
    }
}

/// The question whether a key of the parent has children. It locks them, so that it waits for who
/// is about to take them away, even without changing a key of theirs.
///
/// # Safety
/// Inside a transaction.
unsafe fn children(key: &ForeignKeyRow, parent_types: &[Oid], child_types: &[Oid]) -> Question {
    let condition = |i: usize| Condition {
        left: Column { text: parameter(i), typid: parent_types[i] },
        operator: key.parent_child[i],
        right: Column { text: column(key.child, key.child_columns[i]), typid: child_types[i] },
        collation: named_collation(key, i),
    };
    let conditions: Vec<Condition> = (0..key.child_columns.len()).map(condition).collect();
    // SAFETY: the caller's promise.
    unsafe { Question::new(key.child, &conditions, parent_types.to_vec(), "SHARE") }
}

/// The question for a parent, where its index is no help.
///
/// # Safety
/// Inside a transaction.
pub(super) unsafe fn parent_question(
    key: &ForeignKeyRow,
    operators: &[Oid],
    types: &[Oid],
) -> Question {
    let condition = |i: usize| {
        let at = key.parent_columns[i];
        // SAFETY: a catalog lookup.
        let typid = unsafe { pg_sys::get_atttype(key.parent, at) };
        Condition {
            left: Column { text: column(key.parent, at), typid },
            operator: operators[i],
            right: Column { text: parameter(i), typid: types[i] },
            collation: named_collation(key, i),
        }
    };
    let conditions: Vec<Condition> = (0..types.len()).map(condition).collect();
    // SAFETY: the caller's promise.
    unsafe { Question::new(key.parent, &conditions, types.to_vec(), "KEY SHARE") }
}

fn parameter(i: usize) -> CString {
    CString::new(format!("${}", i + 1)).expect("no zero byte")
}

fn column(relid: Oid, attnum: i16) -> CString {
    // SAFETY: the column exists; both strings are palloc'd.
    unsafe {
        let name = pg_sys::get_attname(relid, attnum, false);
        CStr::from_ptr(pg_sys::quote_identifier(name)).to_owned()
    }
}

/// The parent's collation, where the child's would take its place and answer differently.
fn named_collation(key: &ForeignKeyRow, i: usize) -> Option<Oid> {
    let collation = |relid, attnum| {
        let (mut typid, mut typmod) = (pg_sys::InvalidOid, 0);
        let mut collation = pg_sys::InvalidOid;
        // SAFETY: a catalog lookup.
        unsafe {
            pg_sys::get_atttypetypmodcoll(relid, attnum, &mut typid, &mut typmod, &mut collation);
        }
        collation
    };
    let parent = collation(key.parent, key.parent_columns[i]);
    let child = collation(key.child, key.child_columns[i]);
    // SAFETY: a catalog lookup of an existing collation.
    let named = parent != child
        && parent != pg_sys::InvalidOid
        && unsafe { !pg_sys::get_collation_isdeterministic(parent) };
    named.then_some(parent)
}

/// A slot for rows of a table, and memory that is given back after each.
struct Reader {
    rel: pg_sys::Relation,
    slot: *mut pg_sys::TupleTableSlot,
    row: pg_sys::MemoryContext,
    before: pg_sys::MemoryContext,
}

impl Reader {
    /// # Safety
    /// `rel` is open until [`Self::close`].
    unsafe fn open(rel: pg_sys::Relation) -> Self {
        // SAFETY: memory and slot are the transaction's.
        unsafe {
            let parent = pg_sys::CurrentMemoryContext;
            let row = super::super::plan::memory_context(parent, c"mtm check row");
            let slot = pg_sys::table_slot_create(rel, core::ptr::null_mut());
            let before = pg_sys::MemoryContextSwitchTo(row);
            Self { rel, slot, row, before }
        }
    }

    /// The values of these columns of a row, unless the row is not seen or one of them is null.
    ///
    /// # Safety
    /// The snapshot is a static one.
    unsafe fn read(
        &mut self,
        mut row: pg_sys::ItemPointerData,
        snapshot: *mut pg_sys::SnapshotData,
        columns: &[i16],
    ) -> Option<Vec<pg_sys::Datum>> {
        pgrx::check_for_interrupts!();
        // SAFETY: the row is on a page that exists: nobody cuts the table while we hold its lock.
        unsafe {
            pg_sys::MemoryContextReset(self.row);
            if !pg_sys::table_tuple_fetch_row_version(self.rel, &mut row, snapshot, self.slot) {
                return None;
            }
            let value = |at: &i16| {
                let mut null = false;
                let value = pg_sys::slot_getattr(self.slot, i32::from(*at), &mut null);
                (!null).then_some(value)
            };
            columns.iter().map(value).collect()
        }
    }

    /// # Safety
    /// Once.
    unsafe fn close(self) {
        // SAFETY: made by `open`.
        unsafe {
            pg_sys::MemoryContextSwitchTo(self.before);
            pg_sys::ExecDropSingleTupleTableSlot(self.slot);
            pg_sys::MemoryContextDelete(self.row);
        }
    }
}

/// Each of these rows that is still there must have its parent, which is locked.
///
/// # Safety
/// Inside a transaction with an active snapshot; `rel` is open.
pub(super) unsafe fn check_parents(
    rel: pg_sys::Relation,
    constraint: &Constraint,
    plans: &mut Plans,
    rows: &[pg_sys::ItemPointerData],
) {
    let key = &constraint.key;
    // SAFETY: the caller's promise.
    unsafe {
        let mut parents =
            Parents::open(key, &key.parent_child, &constraint.child_types, rows.len());
        let mut reader = Reader::open(rel);
        for row in rows {
            let itself = &raw mut pg_sys::SnapshotSelfData;
            // A null frees from the constraint; MATCH FULL has seen to it that all are null.
            let Some(values) = reader.read(*row, itself, &key.child_columns) else { continue };
            if !parents.hold(&values, plans) {
                orphan(key, reader.slot);
            }
        }
        reader.close();
        parents.close();
    }
}

/// No child may have one of these rows, which are gone, as its parent; unless another row has
/// taken the place.
///
/// # Safety
/// As [`check_parents`].
pub(super) unsafe fn check_children(
    rel: pg_sys::Relation,
    constraint: &Constraint,
    plans: &mut Plans,
    rows: &[pg_sys::ItemPointerData],
) {
    let (key, declared) = (&constraint.key, &constraint.declared);
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::LockRelationOid(key.child, pg_sys::RowShareLock as i32);
        let mut reader = Reader::open(rel);
        for row in rows {
            let any = &raw mut pg_sys::SnapshotAnyData;
            let Some(values) = reader.read(*row, any, &key.parent_columns) else { continue };
            if !plans.ask(&constraint.children, &values) {
                continue;
            }
            let (operators, types) = (&declared.parent_parent, &constraint.parent_types);
            let mut parents = Parents::open(declared, operators, types, 1);
            let replaced = parents.hold(&values, plans);
            parents.close();
            if !replaced {
                has_children(key, reader.slot);
            }
        }
        reader.close();
    }
}

/// Checks all rows of the referencing table: those to be checked have moved.
///
/// # Safety
/// As [`check_parents`].
pub(super) unsafe fn check_whole(constraint: Oid, key: &ForeignKeyRow) {
    let name = CString::new(key.name.as_str()).unwrap_or_default();
    // SAFETY: a trigger as ALTER TABLE makes it up for the same purpose.
    unsafe {
        let lock = pg_sys::RowShareLock as i32;
        let child = pg_sys::try_table_open(key.child, lock);
        let parent = pg_sys::try_table_open(key.parent, lock);
        if !child.is_null() && !parent.is_null() {
            let mut trigger = pg_sys::Trigger {
                tgname: name.as_ptr().cast_mut(),
                tgconstrrelid: key.parent,
                tgconstrindid: key.index,
                tgconstraint: constraint,
                ..Default::default()
            };
            pg_sys::RI_Initial_Check(&mut trigger, child, parent);
        }
        for rel in [child, parent] {
            if !rel.is_null() {
                pg_sys::table_close(rel, pg_sys::NoLock as i32);
            }
        }
    }
}

/// # Safety
/// The slot holds the child.
unsafe fn orphan(key: &ForeignKeyRow, slot: *mut pg_sys::TupleTableSlot) -> ! {
    // SAFETY: the caller's promise.
    let row = unsafe { shown(slot, &key.child_columns) };
    let detail = format!(
        "A row of table {} has {row}, which another transaction has removed from table {}.",
        table_name(key.child),
        table_name(key.parent)
    );
    conflict(key, detail)
}

/// # Safety
/// The slot holds the parent as it was.
unsafe fn has_children(key: &ForeignKeyRow, slot: *mut pg_sys::TupleTableSlot) -> ! {
    // SAFETY: the caller's promise.
    let row = unsafe { shown(slot, &key.parent_columns) };
    let detail = format!(
        "The row {row} of table {} is gone, but another transaction has made table {} refer to it.",
        table_name(key.parent),
        table_name(key.child)
    );
    conflict(key, detail)
}

unsafe fn shown(slot: *mut pg_sys::TupleTableSlot, columns: &[i16]) -> String {
    let places: Vec<usize> = columns.iter().map(|at| (*at - 1) as usize).collect();
    // SAFETY: the caller's promise; all values are fetched.
    unsafe {
        pg_sys::slot_getallattrs(slot);
        error::show(slot, &places)
    }
}

/// The origin did not know what happened on other nodes; whoever tries again will be told there.
fn conflict(key: &ForeignKeyRow, detail: String) -> ! {
    error::raise(
        PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
        format!(
            "could not serialize access: transactions of two nodes together violate foreign key \"{}\"",
            key.name
        ),
        Some(detail),
        "Retry the transaction.",
    )
}
