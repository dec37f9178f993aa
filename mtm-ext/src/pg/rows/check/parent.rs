//! Finding and locking parents.
//!
//! A parent may be one that a transaction in progress has stored: one that its own node, and so
//! the child's origin, already knows to be committed. It is waited for. It may also be one that a
//! transaction in progress deletes: KEY SHARE waits for that one. Updates of other columns, the
//! usual load of a parent table, are not waited for.

use pgrx::pg_sys::{self, Oid};

use super::exists::{Plans, Question, relkind};
use super::foreign::parent_question;
use crate::pg::compat::{self, ForeignKeyRow};
use crate::pg::rows::find::holder;
use crate::pg::rows::wait::wait_for;

const KEY_SHARE: pg_sys::LockTupleMode::Type = pg_sys::LockTupleMode::LockTupleKeyShare;
const LOCK: i32 = pg_sys::RowShareLock as i32;

/// How parents of one foreign key are found.
pub(super) enum Parents {
    /// By the unique index, or those of all partitions, looked into directly.
    Indexes(Vec<Probe>),
    /// By a query; when it finds nothing, in each partition's index.
    Query { question: Question, shape: Option<Shape>, parent: Oid, index: Oid },
}

/// From so many rows on the indexes of partitions are opened, if there are not too many: each is
/// looked into faster than a query finds the right one.
const MANY_ROWS: usize = 64;
const FEW_PARTITIONS: usize = 16;

/// How values of a key become scan keys of an index.
#[derive(Clone)]
pub(super) struct Shape {
    /// For each column of the index.
    columns: Vec<ShapeColumn>,
}

#[derive(Clone)]
struct ShapeColumn {
    /// Which of the key's values.
    value: usize,
    operator: Oid,
    /// What the operator wants on its right, if the index must be told.
    subtype: Oid,
    cast: Option<Oid>,
}

/// An open index of one table.
pub(super) struct Probe {
    rel: pg_sys::Relation,
    index: pg_sys::Relation,
    scan: pg_sys::IndexScanDesc,
    slot: *mut pg_sys::TupleTableSlot,
    /// PostgreSQL keeps a pointer to it, and tells in it which transactions it has met.
    dirty: Box<pg_sys::SnapshotData>,
    keys: Vec<pg_sys::ScanKeyData>,
    shape: Shape,
}

impl Parents {
    /// Prepares to find, for so many rows, parents by values of these types, which `operators`
    /// compare with the parent's columns.
    ///
    /// # Safety
    /// Inside a transaction; closed by [`Self::close`] unless an ERROR ends the transaction.
    pub(super) unsafe fn open(
        key: &ForeignKeyRow,
        operators: &[Oid],
        types: &[Oid],
        rows: usize,
    ) -> Self {
        let (parent, index) = (key.parent, key.index);
        // SAFETY: the caller's promise.
        unsafe {
            pg_sys::LockRelationOid(parent, LOCK);
            let shape = Shape::new(key, operators, types);
            if let Some(shape) = &shape {
                if relkind(parent) == pg_sys::RELKIND_RELATION {
                    return Self::Indexes(vec![Probe::open(parent, index, shape.clone())]);
                }
                if rows >= MANY_ROWS {
                    let partitions = partitions(parent, index);
                    if partitions.len() <= FEW_PARTITIONS {
                        let open = |(table, its)| Probe::open(table, its, shape.clone());
                        return Self::Indexes(partitions.into_iter().map(open).collect());
                    }
                }
            }
            let question = parent_question(key, operators, types);
            Self::Query { question, shape, parent, index }
        }
    }

    /// Locks the row with these values so that it stays; false if there is none.
    ///
    /// # Safety
    /// Inside a transaction with an active snapshot.
    pub(super) unsafe fn hold(&mut self, values: &[pg_sys::Datum], plans: &mut Plans) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::Indexes(probes) => probes.iter_mut().any(|probe| probe.hold(values)),
                Self::Query { question, shape, parent, index } => {
                    plans.ask(question, values)
                        || shape
                            .as_ref()
                            .is_some_and(|shape| hold_in_partitions(*parent, *index, shape, values))
                }
            }
        }
    }

    /// # Safety
    /// In the transaction in which it was opened.
    pub(super) unsafe fn close(self) {
        if let Self::Indexes(probes) = self {
            // SAFETY: the caller's promise.
            probes.into_iter().for_each(|probe| unsafe { probe.close() });
        }
    }
}

/// Looks into the partitions one by one. Only for what a query has not seen: a row that a
/// transaction in progress has stored, or none at all.
///
/// # Safety
/// As [`Parents::hold`].
unsafe fn hold_in_partitions(
    parent: Oid,
    index: Oid,
    shape: &Shape,
    values: &[pg_sys::Datum],
) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        partitions(parent, index).into_iter().any(|(table, its)| {
            let mut probe = Probe::open(table, its, shape.clone());
            let held = probe.hold(values);
            probe.close();
            held
        })
    }
}

/// Tables that are partitions of this one, locked, and what is there of its index.
///
/// # Safety
/// Inside a transaction.
unsafe fn partitions(parent: Oid, index: Oid) -> Vec<(Oid, Oid)> {
    // SAFETY: lists of OIDs; tables stay locked.
    unsafe {
        let tables = oids(compat::find_all_inheritors(parent, LOCK, core::ptr::null_mut()));
        let its_index = |table: &Oid| {
            let rel = pg_sys::table_open(*table, pg_sys::NoLock as i32);
            let indexes = oids(pg_sys::RelationGetIndexList(rel));
            pg_sys::table_close(rel, pg_sys::NoLock as i32);
            let is_part = |its: &Oid| oids(compat::get_partition_ancestors(*its)).contains(&index);
            indexes.into_iter().find(is_part)
        };
        tables
            .into_iter()
            .filter(|table| relkind(*table) == pg_sys::RELKIND_RELATION)
            .filter_map(|table| its_index(&table).map(|its| (table, its)))
            .collect()
    }
}

/// The elements of a list of OIDs.
///
/// # Safety
/// The list is null or one of these.
unsafe fn oids(list: *mut pg_sys::List) -> Vec<Oid> {
    // SAFETY: a list has so many elements.
    unsafe {
        (0..pg_sys::list_length(list) as usize)
            .map(|i| (*(*list).elements.add(i)).oid_value)
            .collect()
    }
}

impl Shape {
    /// None if values would have to be converted in a way that only the planner knows.
    ///
    /// # Safety
    /// Inside a transaction.
    unsafe fn new(key: &ForeignKeyRow, operators: &[Oid], types: &[Oid]) -> Option<Self> {
        // SAFETY: the index of a foreign key is a unique one on exactly its columns.
        unsafe {
            let index = pg_sys::index_open(key.index, pg_sys::AccessShareLock as i32);
            let form = (*index).rd_index;
            let count = usize::from((*form).indnkeyatts as u16);
            let attnums = (*form).indkey.values.as_slice(count);
            let columns = attnums.iter().enumerate().map(|(i, attnum)| {
                let value = key.parent_columns.iter().position(|at| at == attnum)?;
                let class = *(*index).rd_opcintype.add(i);
                let attribute = pg_sys::get_atttype(key.parent, *attnum);
                ShapeColumn::new(value, operators[value], types[value], class, attribute)
            });
            let columns = columns.collect::<Option<Vec<_>>>();
            pg_sys::index_close(index, pg_sys::NoLock as i32);
            columns.map(|columns| Self { columns })
        }
    }
}

impl ShapeColumn {
    /// # Safety
    /// Inside a transaction.
    unsafe fn new(value: usize, operator: Oid, from: Oid, class: Oid, parent: Oid) -> Option<Self> {
        use pg_sys::CoercionPathType::{COERCION_PATH_FUNC, COERCION_PATH_RELABELTYPE};
        let (mut left, mut right) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
        let mut function = pg_sys::InvalidOid;
        let none = pg_sys::InvalidOid;
        // SAFETY: catalog lookups.
        unsafe {
            pg_sys::op_input_types(operator, &mut left, &mut right);
            let subtype = if right == class { none } else { right };
            // Operators of arrays, enums and such take any of them, but both of the same type.
            if right == from || from == parent {
                return Some(Self { value, operator, subtype, cast: None });
            }
            let implicit = pg_sys::CoercionContext::COERCION_IMPLICIT;
            let path = pg_sys::find_coercion_pathway(right, from, implicit, &mut function);
            #[allow(non_upper_case_globals, reason = "PostgreSQL's names")]
            let cast = match path {
                COERCION_PATH_RELABELTYPE => None,
                COERCION_PATH_FUNC => Some(function),
                _ => return None,
            };
            Some(Self { value, operator, subtype, cast })
        }
    }
}

/// What became of one attempt to lock a row.
enum Attempt {
    Held,
    /// This transaction must end first.
    Busy(pg_sys::TransactionId),
    /// The row has changed under us.
    Again,
}

impl Probe {
    /// # Safety
    /// Inside a transaction; the table is locked, `index` is its unique index of this shape.
    unsafe fn open(table: Oid, index: Oid, shape: Shape) -> Self {
        // SAFETY: an open index has one collation for each column.
        unsafe {
            let rel = pg_sys::table_open(table, LOCK);
            let index = pg_sys::index_open(index, LOCK);
            let slot = pg_sys::table_slot_create(rel, core::ptr::null_mut());
            let mut dirty = Box::new(pg_sys::SnapshotData::default());
            dirty.snapshot_type = pg_sys::SnapshotType::SNAPSHOT_DIRTY;
            let count = shape.columns.len() as i32;
            let scan = pg_sys::index_beginscan(rel, index, &mut *dirty, count, 0);
            let keys = shape.columns.iter().enumerate().map(|(i, column)| {
                let mut key = pg_sys::ScanKeyData::default();
                pg_sys::ScanKeyEntryInitialize(
                    &mut key,
                    0,
                    (i + 1) as i16,
                    pg_sys::BTEqualStrategyNumber as u16,
                    column.subtype,
                    *(*index).rd_indcollation.add(i),
                    pg_sys::get_opcode(column.operator),
                    pg_sys::Datum::from(0),
                );
                key
            });
            let keys = keys.collect();
            Self { rel, index, scan, slot, dirty, keys, shape }
        }
    }

    /// Locks the row with these values so that it stays; false if there is none.
    ///
    /// # Safety
    /// Inside a transaction; as many values as the foreign key has columns.
    unsafe fn hold(&mut self, values: &[pg_sys::Datum]) -> bool {
        // SAFETY: the caller's promise.
        unsafe {
            for (key, column) in self.keys.iter_mut().zip(&self.shape.columns) {
                let value = values[column.value];
                key.sk_argument = match column.cast {
                    None => value,
                    Some(function) => pg_sys::OidFunctionCall3Coll(
                        function,
                        pg_sys::InvalidOid,
                        value,
                        pg_sys::Datum::from(-1_i32),
                        pg_sys::Datum::from(false),
                    ),
                };
            }
            loop {
                pgrx::check_for_interrupts!();
                match self.look() {
                    None => return false,
                    Some(Attempt::Held) => return true,
                    Some(Attempt::Again) => {}
                    Some(Attempt::Busy(xid)) => wait_for(xid, || {}),
                }
            }
        }
    }

    /// Tries every version of the row that might count. Among several the one that is there
    /// already: a new version in progress has the same key.
    ///
    /// # Safety
    /// As [`Self::hold`]; the arguments are set.
    unsafe fn look(&mut self) -> Option<Attempt> {
        // SAFETY: the caller's promise.
        unsafe {
            let (count, none) = (self.keys.len() as i32, core::ptr::null_mut());
            pg_sys::index_rescan(self.scan, self.keys.as_mut_ptr(), count, none, 0);
            let forward = pg_sys::ScanDirection::ForwardScanDirection;
            let mut best = None;
            while pg_sys::index_getnext_slot(self.scan, forward, self.slot) {
                let inserter = self.dirty.xmin;
                let attempt = if inserter == pg_sys::InvalidTransactionId {
                    self.lock()
                } else {
                    Attempt::Busy(inserter)
                };
                match attempt {
                    Attempt::Held => return Some(Attempt::Held),
                    Attempt::Again => best = Some(Attempt::Again),
                    Attempt::Busy(_) => best = best.or(Some(attempt)),
                }
            }
            best
        }
    }

    /// # Safety
    /// The slot holds the row.
    unsafe fn lock(&mut self) -> Attempt {
        let mut failure = pg_sys::TM_FailureData::default();
        // SAFETY: after table_tuple_lock the slot still has the row, pinned.
        unsafe {
            let mut tid = (*self.slot).tts_tid;
            let result = pg_sys::table_tuple_lock(
                self.rel,
                &mut tid,
                pg_sys::GetLatestSnapshot(),
                self.slot,
                pg_sys::GetCurrentCommandId(true),
                KEY_SHARE,
                pg_sys::LockWaitPolicy::LockWaitSkip,
                // Versions that follow in progress keep the lock.
                pg_sys::TUPLE_LOCK_FLAG_LOCK_UPDATE_IN_PROGRESS as u8,
                &mut failure,
            );
            match result {
                pg_sys::TM_Result::TM_Ok => Attempt::Held,
                pg_sys::TM_Result::TM_WouldBlock => {
                    holder(self.slot, KEY_SHARE).map_or(Attempt::Again, Attempt::Busy)
                }
                _ => Attempt::Again,
            }
        }
    }

    /// # Safety
    /// In the transaction in which it was opened.
    unsafe fn close(self) {
        // SAFETY: opened by `open`; locks stay.
        unsafe {
            pg_sys::index_endscan(self.scan);
            pg_sys::ExecDropSingleTupleTableSlot(self.slot);
            pg_sys::index_close(self.index, pg_sys::NoLock as i32);
            pg_sys::table_close(self.rel, pg_sys::NoLock as i32);
        }
    }
}
