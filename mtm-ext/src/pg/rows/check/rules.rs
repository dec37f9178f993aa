//! Which checks a table's rows need, read off its internal triggers.

use pgrx::pg_sys::{self, Oid};

use super::Want;

/// A check that some changes of a table's rows need.
pub(in crate::pg::rows) struct Rule {
    pub(super) want: Want,
    /// The foreign key or the index.
    pub(super) number: Oid,
    pub(super) on_insert: bool,
    pub(super) on_update: bool,
    pub(super) on_delete: bool,
    pub(super) deferrable: bool,
    /// The result relation's own copy.
    pub(super) trigger: *mut pg_sys::Trigger,
}

impl Rule {
    /// Whether the rule's index is in a list of indexes.
    ///
    /// # Safety
    /// A list of OIDs, or null.
    pub(super) unsafe fn is_in(&self, indexes: *mut pg_sys::List) -> bool {
        // SAFETY: the caller's promise.
        unsafe { pg_sys::list_member_oid(indexes, self.number) }
    }
}

/// What the rows of a table with these triggers need. Most tables: nothing.
///
/// # Safety
/// The triggers live as long as the rules.
pub(in crate::pg::rows) unsafe fn rules(triggers: Option<&pg_sys::TriggerDesc>) -> Vec<Rule> {
    let Some(triggers) = triggers else { return Vec::new() };
    let count = triggers.numtriggers as usize;
    // SAFETY: a descriptor has so many triggers.
    let rule = |i| unsafe { rule(triggers.triggers.add(i)) };
    (0..count).filter_map(rule).collect()
}

/// # Safety
/// A live trigger.
unsafe fn rule(trigger: *mut pg_sys::Trigger) -> Option<Rule> {
    // SAFETY: the caller's promise.
    let t = unsafe { &*trigger };
    // What was switched off by ALTER TABLE was not checked on the origin either.
    let enabled = t.tgenabled as u8;
    if !t.tgisinternal
        || [pg_sys::TRIGGER_DISABLED, pg_sys::TRIGGER_FIRES_ON_REPLICA].contains(&enabled)
    {
        return None;
    }
    let parent = (Want::Parent, t.tgconstraint);
    let no_child = (Want::NoChild, t.tgconstraint);
    let ((want, number), [on_insert, on_update, on_delete]) = match t.tgfoid.to_u32() {
        pg_sys::F_RI_FKEY_CHECK_INS => (parent, [true, false, false]),
        pg_sys::F_RI_FKEY_CHECK_UPD => (parent, [false, true, false]),
        function if is_of_parents_delete(function) => (no_child, [false, false, true]),
        function if is_of_parents_update(function) => (no_child, [false, true, false]),
        pg_sys::F_UNIQUE_KEY_RECHECK => ((Want::Unique, t.tgconstrindid), [true, true, false]),
        _ => return None,
    };
    Some(Rule {
        want,
        number,
        on_insert,
        on_update,
        on_delete,
        deferrable: t.tgdeferrable,
        trigger,
    })
}

/// Whether a parent's rows have this trigger function for their deletion. Whatever else it does on
/// the origin travels as changes of its own.
const fn is_of_parents_delete(function: u32) -> bool {
    matches!(
        function,
        pg_sys::F_RI_FKEY_CASCADE_DEL
            | pg_sys::F_RI_FKEY_RESTRICT_DEL
            | pg_sys::F_RI_FKEY_SETNULL_DEL
            | pg_sys::F_RI_FKEY_SETDEFAULT_DEL
            | pg_sys::F_RI_FKEY_NOACTION_DEL
    )
}

/// The same for a change of the parent's key.
const fn is_of_parents_update(function: u32) -> bool {
    matches!(
        function,
        pg_sys::F_RI_FKEY_CASCADE_UPD
            | pg_sys::F_RI_FKEY_RESTRICT_UPD
            | pg_sys::F_RI_FKEY_SETNULL_UPD
            | pg_sys::F_RI_FKEY_SETDEFAULT_UPD
            | pg_sys::F_RI_FKEY_NOACTION_UPD
    )
}

/// Whether a table with this trigger function has rows that others refer to.
pub(in crate::pg::rows) const fn is_of_parent(function: u32) -> bool {
    is_of_parents_delete(function) || is_of_parents_update(function)
}

/// Looks again for other rows with the keys of these, waiting for transactions in progress.
///
/// # Safety
/// Inside a transaction with an active snapshot; `rel` is open, `index` is one of its deferrable
/// unique or exclusion constraints' and the rows were stored in it.
pub(super) unsafe fn recheck_unique(
    rel: pg_sys::Relation,
    index: Oid,
    rows: &[pg_sys::ItemPointerData],
) {
    // SAFETY: called as an AFTER ROW INSERT trigger; of its arguments PostgreSQL's function reads
    // the index, the table and the row's place.
    unsafe {
        let slot = pg_sys::table_slot_create(rel, core::ptr::null_mut());
        let mut trigger = pg_sys::Trigger { tgconstrindid: index, ..Default::default() };
        let mut data = pg_sys::TriggerData {
            type_: pg_sys::NodeTag::T_TriggerData,
            tg_event: pg_sys::TRIGGER_EVENT_INSERT
                | pg_sys::TRIGGER_EVENT_ROW
                | pg_sys::TRIGGER_EVENT_AFTER,
            tg_relation: rel,
            tg_trigger: &mut trigger,
            tg_trigslot: slot,
            ..Default::default()
        };
        let mut call = pg_sys::FunctionCallInfoBaseData {
            context: (&raw mut data).cast(),
            ..Default::default()
        };
        for row in rows {
            pgrx::check_for_interrupts!();
            (*slot).tts_tid = *row;
            pg_sys::unique_key_recheck(&mut call);
        }
        pg_sys::ExecDropSingleTupleTableSlot(slot);
    }
}
