//! What must hold at the end of a transaction that is applied: foreign keys and deferrable unique
//! and exclusion constraints.
//!
//! On its origin the transaction has passed these checks, against what its origin knew. Here other
//! rows may have come or gone meanwhile, so they are made again. The order of a statement's rows
//! and which checks were deferred is not known here: all checks wait for the end. Only a schema
//! change or TRUNCATE in between, before which the origin had made the undeferrable ones, lets
//! these come earlier.
//!
//! A check is remembered by the row's place on disk, as PostgreSQL does it for deferred triggers: a
//! row that is gone at the end needs no parent.

mod exists;
mod foreign;
mod parent;
mod rules;

use std::collections::{BTreeMap, HashMap};

use pgrx::pg_sys::{self, Oid};

pub(super) use rules::{Rule, is_of_parent, rules};

use super::open::Open;
use exists::Plans;
use foreign::Constraint;

/// What a constraint wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Want {
    /// A row must have its parent. The number is the foreign key's.
    Parent,
    /// A row that is gone must have left no child. The number is the foreign key's.
    NoChild,
    /// No other row may have the same key. The number is the index's.
    Unique,
}

/// Checks of one constraint on rows of one table.
struct Group {
    /// Where the table's rows were.
    storage: Oid,
    /// The origin may have put the check off beyond a schema change.
    deferrable: bool,
    rows: Vec<pg_sys::ItemPointerData>,
}

/// The checks that wait.
#[derive(Default)]
pub(super) struct Pending {
    groups: BTreeMap<(u32, Want, u32), Group>,
    plans: Plans,
    /// Foreign keys as they were found, with the invalidations seen then.
    constraints: HashMap<u32, Constraint>,
    /// The origin's session had these checks switched off.
    unchecked: bool,
}

impl Pending {
    /// A transaction begins: what an earlier one left is forgotten.
    pub(super) fn begin(&mut self) {
        self.groups.clear();
        self.unchecked = false;
    }

    /// The origin's session made no such checks: none are made here.
    pub(super) fn switch_off(&mut self) {
        self.groups.clear();
        self.unchecked = true;
    }

    /// A row has been stored. `recheck` lists indexes that may have another row with its key.
    ///
    /// # Safety
    /// As the caller has just done; `new` holds the row with its place.
    pub(super) unsafe fn inserted(
        &mut self,
        open: &Open,
        new: *mut pg_sys::TupleTableSlot,
        recheck: *mut pg_sys::List,
    ) {
        for rule in open.rules.iter().filter(|rule| rule.on_insert) {
            // SAFETY: the caller's promise.
            unsafe {
                if rule.want != Want::Unique || rule.is_in(recheck) {
                    self.add(open, rule, (*new).tts_tid);
                }
            }
        }
    }

    /// The row in `open.local` has been replaced.
    ///
    /// # Safety
    /// As [`Self::inserted`]; the old row is still in its slot.
    pub(super) unsafe fn updated(
        &mut self,
        open: &Open,
        new: *mut pg_sys::TupleTableSlot,
        recheck: *mut pg_sys::List,
    ) {
        for rule in open.rules.iter().filter(|rule| rule.on_update) {
            // SAFETY: the caller's promise; PostgreSQL decides as it does for its own triggers.
            unsafe {
                let (old, trigger) = (open.local, rule.trigger);
                let row = match rule.want {
                    Want::Unique => rule.is_in(recheck).then(|| (*new).tts_tid),
                    Want::Parent => {
                        pg_sys::RI_FKey_fk_upd_check_required(trigger, open.rel, old, new)
                            .then(|| (*new).tts_tid)
                    }
                    Want::NoChild => {
                        pg_sys::RI_FKey_pk_upd_check_required(trigger, open.rel, old, new)
                            .then(|| (*old).tts_tid)
                    }
                };
                if let Some(row) = row {
                    self.add(open, rule, row);
                }
            }
        }
    }

    /// The row in `open.local` has been removed.
    ///
    /// # Safety
    /// As [`Self::updated`].
    pub(super) unsafe fn deleted(&mut self, open: &Open) {
        for rule in open.rules.iter().filter(|rule| rule.on_delete) {
            // SAFETY: the caller's promise.
            unsafe {
                let (old, none) = (open.local, core::ptr::null_mut());
                if pg_sys::RI_FKey_pk_upd_check_required(rule.trigger, open.rel, old, none) {
                    self.add(open, rule, (*old).tts_tid);
                }
            }
        }
    }

    /// # Safety
    /// The table is open.
    unsafe fn add(&mut self, open: &Open, rule: &Rule, row: pg_sys::ItemPointerData) {
        if self.unchecked {
            return;
        }
        // SAFETY: the caller's promise.
        let (relid, storage) = unsafe { ((*open.rel).rd_id, (*(*open.rel).rd_rel).relfilenode) };
        let key = (relid.to_u32(), rule.want, rule.number.to_u32());
        let group = self.groups.entry(key).or_insert_with(|| Group {
            storage,
            deferrable: rule.deferrable,
            rows: Vec::new(),
        });
        group.rows.push(row);
    }

    /// Makes the checks that were due on the origin before a schema change: all but deferrable
    /// ones, and of the tables in `emptied` these too.
    ///
    /// # Safety
    /// Inside a transaction, with no table of the caller's open.
    pub(super) unsafe fn check_undeferrable(&mut self, emptied: &[Oid]) {
        // SAFETY: the caller's promise.
        unsafe {
            self.check(|relid, group| {
                !group.deferrable || emptied.iter().any(|oid| oid.to_u32() == relid)
            });
        }
    }

    /// Makes all checks.
    ///
    /// # Safety
    /// As [`Self::check_undeferrable`].
    pub(super) unsafe fn check_all(&mut self) {
        // SAFETY: the caller's promise.
        unsafe { self.check(|_, _| true) }
    }

    unsafe fn check(&mut self, due: impl Fn(u32, &Group) -> bool) {
        if self.groups.is_empty() {
            return;
        }
        let mut later = BTreeMap::new();
        // SAFETY: the snapshot is for functions of types; checks take their own.
        unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) }
        for (key, group) in core::mem::take(&mut self.groups) {
            if due(key.0, &group) {
                // SAFETY: the caller's promise.
                unsafe { self.check_group(key, &group) }
            } else {
                later.insert(key, group);
            }
        }
        // SAFETY: pushed above.
        unsafe { pg_sys::PopActiveSnapshot() }
        self.groups = later;
    }

    /// # Safety
    /// Inside a transaction with an active snapshot.
    unsafe fn check_group(&mut self, (relid, want, number): (u32, Want, u32), group: &Group) {
        let (relid, number) = (Oid::from(relid), Oid::from(number));
        // SAFETY: the table is locked since its rows were changed; it may have been dropped.
        unsafe {
            let rel = pg_sys::try_table_open(relid, pg_sys::AccessShareLock as i32);
            if rel.is_null() {
                return;
            }
            let rewritten = (*(*rel).rd_rel).relfilenode != group.storage;
            match want {
                // Rewriting has built the index anew and would have found the duplicate.
                Want::Unique if rewritten || exists::relkind(number) == 0 => {}
                Want::Unique => rules::recheck_unique(rel, number, &group.rows),
                Want::Parent | Want::NoChild => {
                    let known = self.constraints.get(&number.to_u32());
                    if known.is_none_or(|known| !known.stamp.holds()) {
                        self.constraints.remove(&number.to_u32());
                        if let Some(found) = foreign::load(number) {
                            self.constraints.insert(number.to_u32(), found);
                        }
                    }
                    if let Some(constraint) = self.constraints.get(&number.to_u32()) {
                        let plans = &mut self.plans;
                        match want {
                            _ if rewritten => foreign::check_whole(number, &constraint.key),
                            Want::Parent => {
                                foreign::check_parents(rel, constraint, plans, &group.rows);
                            }
                            _ => foreign::check_children(rel, constraint, plans, &group.rows),
                        }
                    }
                }
            }
            pg_sys::table_close(rel, pg_sys::NoLock as i32);
        }
    }
}
