//! A table opened for applying: what PostgreSQL's executor wants around the writing of rows.

use pgrx::pg_sys;

use super::check::{Rule, rules};
use super::find::Finder;
use super::plan::memory_context;
use super::target::Target;
use crate::pg::compat;

/// An open table. It stays open over consecutive rows of a blob; it never outlives the call that
/// opened it. After an ERROR it is forgotten: the transaction's abort frees what it holds.
pub(super) struct Open {
    pub(super) rel: pg_sys::Relation,
    pub(super) estate: *mut pg_sys::EState,
    pub(super) relinfo: *mut pg_sys::ResultRelInfo,
    /// The row as it came.
    pub(super) remote: *mut pg_sys::TupleTableSlot,
    /// What is looked for.
    pub(super) wanted: *mut pg_sys::TupleTableSlot,
    /// What was found.
    pub(super) local: *mut pg_sys::TupleTableSlot,
    pub(super) epq: Box<pg_sys::EPQState>,
    pub(super) finder: Option<Finder>,
    /// What is to be checked at the end.
    pub(super) rules: Vec<Rule>,
    /// Rows in whose queues we stand, and how.
    pub(super) queued: Vec<(pg_sys::ItemPointerData, pg_sys::LOCKMODE)>,
    /// The memory context to return to after the row.
    pub(super) before: pg_sys::MemoryContext,
    context: pg_sys::MemoryContext,
}

impl Open {
    /// # Safety
    /// Inside a transaction; `rel` is open and locked, and is closed by [`Self::close`].
    pub(super) unsafe fn new(rel: pg_sys::Relation, target: &Target) -> Box<Self> {
        // SAFETY: as PostgreSQL's own apply worker does; all memory is the transaction's.
        unsafe {
            let context = memory_context(pg_sys::TopTransactionContext, c"mtm apply table");
            let before = pg_sys::MemoryContextSwitchTo(context);
            let estate = pg_sys::CreateExecutorState();
            let entry = node::<pg_sys::RangeTblEntry>(pg_sys::NodeTag::T_RangeTblEntry);
            (*entry).rtekind = pg_sys::RTEKind::RTE_RELATION;
            (*entry).relid = (*rel).rd_id;
            (*entry).relkind = (*(*rel).rd_rel).relkind;
            (*entry).rellockmode = pg_sys::AccessShareLock as i32;
            compat::init_range_table(estate, entry);
            let relinfo = node::<pg_sys::ResultRelInfo>(pg_sys::NodeTag::T_ResultRelInfo);
            pg_sys::InitResultRelInfo(relinfo, rel, 1, core::ptr::null_mut(), 0);
            (*estate).es_opened_result_relations =
                pg_sys::lappend((*estate).es_opened_result_relations, relinfo.cast());
            pg_sys::ExecOpenIndices(relinfo, false);
            compat::set_updated_columns(estate, sent_columns(target));
            let desc = (*rel).rd_att;
            let ops = &raw const pg_sys::TTSOpsVirtual;
            let remote = pg_sys::ExecInitExtraTupleSlot(estate, desc, ops);
            let wanted = pg_sys::ExecInitExtraTupleSlot(estate, desc, ops);
            let local = pg_sys::table_slot_create(rel, &raw mut (*estate).es_tupleTable);
            let mut epq = Box::new(pg_sys::EPQState::default());
            let (plan, marks) = (core::ptr::null_mut(), core::ptr::null_mut());
            pg_sys::EvalPlanQualInit(&mut *epq, estate, plan, marks, -1);
            pg_sys::MemoryContextSwitchTo(before);
            Box::new(Self {
                rel,
                estate,
                relinfo,
                remote,
                wanted,
                local,
                epq,
                finder: None,
                rules: rules((*relinfo).ri_TrigDesc.as_ref()),
                queued: Vec::new(),
                before,
                context,
            })
        }
    }

    /// Memory that is reset after each row.
    pub(super) fn row_context(&self) -> pg_sys::MemoryContext {
        // SAFETY: the executor state is live; its expression context is made on first use.
        unsafe {
            let estate = self.estate;
            if (*estate).es_per_tuple_exprcontext.is_null() {
                pg_sys::MakePerTupleExprContext(estate);
            }
            (*(*estate).es_per_tuple_exprcontext).ecxt_per_tuple_memory
        }
    }

    /// Memory that lives as long as the table is open.
    pub(super) const fn context(&self) -> pg_sys::MemoryContext {
        self.context
    }

    /// Forgets the last row.
    pub(super) fn end_row(&mut self) {
        // SAFETY: the slots are ours, nothing points into the row's memory any more.
        unsafe {
            for (mut tid, mode) in self.queued.drain(..) {
                pg_sys::UnlockTuple(self.rel, &mut tid, mode);
            }
            pg_sys::ExecClearTuple(self.remote);
            pg_sys::ExecClearTuple(self.wanted);
            pg_sys::ExecClearTuple(self.local);
            pg_sys::MemoryContextReset(self.row_context());
        }
    }

    /// Closes it; the lock stays until the end of the transaction.
    pub(super) fn close(mut self) {
        // SAFETY: everything here was opened by `new` and is closed once.
        unsafe {
            if let Some(finder) = self.finder.take() {
                finder.close();
            }
            pg_sys::ExecCloseIndices(self.relinfo);
            pg_sys::EvalPlanQualEnd(&mut *self.epq);
            pg_sys::ExecResetTupleTable((*self.estate).es_tupleTable, false);
            pg_sys::FreeExecutorState(self.estate);
            pg_sys::table_close(self.rel, pg_sys::NoLock as i32);
            pg_sys::MemoryContextDelete(self.context);
        }
    }

    /// Whether the table has triggers of any kind.
    pub(super) const fn triggers(&self) -> Option<&pg_sys::TriggerDesc> {
        // SAFETY: the result relation's own copy, null or live.
        unsafe { (*self.relinfo).ri_TrigDesc.as_ref() }
    }
}

/// A zeroed node.
///
/// # Safety
/// `tag` is the tag of `T`, which begins with it.
unsafe fn node<T>(tag: pg_sys::NodeTag) -> *mut T {
    // SAFETY: palloc0 gives zeroed memory of the node's size.
    unsafe {
        let node = pg_sys::palloc0(size_of::<T>()).cast::<T>();
        (*node.cast::<pg_sys::Node>()).type_ = tag;
        node
    }
}

/// The columns an UPDATE may set, as PostgreSQL counts them in bitmaps.
///
/// # Safety
/// The current memory context is live.
unsafe fn sent_columns(target: &Target) -> *mut pg_sys::Bitmapset {
    let mut set = core::ptr::null_mut();
    for column in &target.columns {
        let member = i32::from(column.attnum) - pg_sys::FirstLowInvalidHeapAttributeNumber;
        // SAFETY: the set grows in the current memory context.
        set = unsafe { pg_sys::bms_add_member(set, member) };
    }
    set
}
