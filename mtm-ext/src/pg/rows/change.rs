//! Writing one row, as PostgreSQL's own apply worker does, but never waiting out of sight.
//!
//! The first attempt does not wait. When somebody holds the row, or a BEFORE trigger is going to
//! lock it, it is locked first, and whoever holds it is waited for where waits begin. Then the row
//! is looked up again.

use pgrx::{PgSqlErrorCode, pg_sys};

use super::check::Pending;
use super::error;
use super::find::holder;
use super::open::Open;
use super::wait::wait_for_row;
use crate::pg::compat;

/// What became of one attempt to change a row.
enum Attempt {
    Done,
    /// Somebody holds the row.
    Held,
    /// The row has changed under us.
    Gone,
}

/// Inserts the row in `open.remote`.
///
/// # Safety
/// Inside a transaction with an active snapshot; the row is complete.
pub(super) unsafe fn insert(open: &Open, pending: &mut Pending) {
    // SAFETY: the caller's promise.
    unsafe {
        let Open { rel, estate, relinfo, remote: slot, .. } = *open;
        let before = open.triggers().is_some_and(|t| t.trig_insert_before_row);
        if before && !pg_sys::ExecBRInsertTriggers(estate, relinfo, slot) {
            return;
        }
        check_row(open, slot, pg_sys::CmdType::CMD_INSERT);
        pg_sys::simple_table_tuple_insert(rel, slot);
        let recheck = index_entries(open, slot, None);
        pending.inserted(open, slot, recheck);
        if open.triggers().is_some() {
            let none = core::ptr::null_mut();
            pg_sys::ExecARInsertTriggers(estate, relinfo, slot, recheck, none);
        }
    }
}

/// Replaces the row in `open.local` by that in `open.remote`; false when it must be found again.
///
/// # Safety
/// As [`insert`]; the row was found in this transaction.
pub(super) unsafe fn replace(open: &mut Open, pending: &mut Pending) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let slot = open.remote;
        let mut wait = false;
        if open.triggers().is_some_and(|t| t.trig_update_before_row) {
            if !lock_row(open, update_mode(open)) {
                return false;
            }
            wait = true;
            open.epq.origslot = slot;
            let tid = &raw mut (*open.local).tts_tid;
            if !compat::before_update(open.estate, &mut *open.epq, open.relinfo, tid, slot) {
                return true;
            }
        }
        check_row(open, slot, pg_sys::CmdType::CMD_UPDATE);
        loop {
            match try_update(open, slot, wait, pending) {
                Attempt::Done => return true,
                Attempt::Gone => return false,
                Attempt::Held if !lock_row(open, update_mode(open)) => return false,
                Attempt::Held => wait = true,
            }
        }
    }
}

/// Removes the row in `open.local`; false when it must be found again.
///
/// # Safety
/// As [`replace`].
pub(super) unsafe fn remove(open: &mut Open, pending: &mut Pending) -> bool {
    const MODE: pg_sys::LockTupleMode::Type = pg_sys::LockTupleMode::LockTupleExclusive;
    // SAFETY: the caller's promise.
    unsafe {
        let mut wait = false;
        if open.triggers().is_some_and(|t| t.trig_delete_before_row) {
            if !lock_row(open, MODE) {
                return false;
            }
            wait = true;
            open.epq.origslot = open.local;
            let tid = &raw mut (*open.local).tts_tid;
            if !compat::before_delete(open.estate, &mut *open.epq, open.relinfo, tid) {
                return true;
            }
        }
        loop {
            match try_delete(open, wait, pending) {
                Attempt::Done => return true,
                Attempt::Gone => return false,
                Attempt::Held if !lock_row(open, MODE) => return false,
                Attempt::Held => wait = true,
            }
        }
    }
}

/// Computes generated columns and checks the row.
///
/// # Safety
/// The slot is of the open table.
unsafe fn check_row(
    open: &Open,
    slot: *mut pg_sys::TupleTableSlot,
    command: pg_sys::CmdType::Type,
) {
    // SAFETY: as ExecSimpleRelationInsert and ExecSimpleRelationUpdate do.
    unsafe {
        let Open { rel, estate, relinfo, .. } = *open;
        let constraints = (*(*rel).rd_att).constr;
        if !constraints.is_null() {
            if (*constraints).has_generated_stored {
                compat::ExecComputeStoredGenerated(relinfo, estate, slot, command);
            }
            pg_sys::ExecConstraints(relinfo, slot, estate);
        }
        if (*(*rel).rd_rel).relispartition {
            pg_sys::ExecPartitionCheck(relinfo, slot, estate, true);
        }
    }
}

/// # Safety
/// The slot's row has just been stored.
unsafe fn index_entries(
    open: &Open,
    slot: *mut pg_sys::TupleTableSlot,
    update: Option<compat::IndexUpdate>,
) -> *mut pg_sys::List {
    // SAFETY: the indexes are open.
    unsafe {
        if (*open.relinfo).ri_NumIndices == 0 {
            return core::ptr::null_mut();
        }
        compat::insert_index_entries(open.relinfo, slot, open.estate, update)
    }
}

/// # Safety
/// `open.local` holds the row to replace.
unsafe fn try_update(
    open: &Open,
    slot: *mut pg_sys::TupleTableSlot,
    wait: bool,
    pending: &mut Pending,
) -> Attempt {
    let mut failure = pg_sys::TM_FailureData::default();
    let mut indexes = compat::IndexUpdate::default();
    // SAFETY: as simple_table_tuple_update, but the answer is ours to handle.
    unsafe {
        let Open { rel, estate, relinfo, local, .. } = *open;
        let tid = &raw mut (*local).tts_tid;
        let result = compat::update(rel, tid, slot, wait, &mut failure, &mut indexes);
        let attempt = attempt(result);
        if matches!(attempt, Attempt::Done) {
            let recheck = index_entries(open, slot, Some(indexes));
            pending.updated(open, slot, recheck);
            let none = core::ptr::null_mut();
            let (source, map) = (none, core::ptr::null_mut());
            pg_sys::ExecARUpdateTriggers(
                estate,
                relinfo,
                source,
                none,
                tid,
                core::ptr::null_mut(),
                slot,
                recheck,
                map,
                false,
            );
        }
        attempt
    }
}

/// # Safety
/// `open.local` holds the row to remove.
unsafe fn try_delete(open: &Open, wait: bool, pending: &mut Pending) -> Attempt {
    let mut failure = pg_sys::TM_FailureData::default();
    let none = core::ptr::null_mut();
    // SAFETY: as simple_table_tuple_delete, but the answer is ours to handle.
    unsafe {
        let Open { rel, estate, relinfo, local, .. } = *open;
        let tid = &raw mut (*local).tts_tid;
        let cid = pg_sys::GetCurrentCommandId(true);
        let result =
            pg_sys::table_tuple_delete(rel, tid, cid, none, none, wait, &mut failure, false);
        let attempt = attempt(result);
        if matches!(attempt, Attempt::Done) {
            pending.deleted(open);
            let map = core::ptr::null_mut();
            pg_sys::ExecARDeleteTriggers(estate, relinfo, tid, core::ptr::null_mut(), map, false);
        }
        attempt
    }
}

fn attempt(result: pg_sys::TM_Result::Type) -> Attempt {
    use pg_sys::TM_Result::{TM_BeingModified, TM_Deleted, TM_Ok, TM_Updated};
    #[allow(non_upper_case_globals, reason = "PostgreSQL's names")]
    match result {
        TM_Ok => Attempt::Done,
        TM_BeingModified => Attempt::Held,
        TM_Updated | TM_Deleted => Attempt::Gone,
        other => error::raise(
            PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            format!("unexpected state of a row to be changed: {other}"),
            None,
            "",
        ),
    }
}

/// The lock an UPDATE of the row found needs: the weaker one, which lets others hold it as the
/// parent of their rows, unless a key changes.
///
/// # Safety
/// Both rows are in their slots.
unsafe fn update_mode(open: &Open) -> pg_sys::LockTupleMode::Type {
    use pg_sys::IndexAttrBitmapKind::INDEX_ATTR_BITMAP_KEY as KEY;
    use pg_sys::LockTupleMode::{LockTupleExclusive, LockTupleNoKeyExclusive};
    // SAFETY: the relation is open, both slots are of it.
    unsafe {
        let mut mode = LockTupleNoKeyExclusive;
        let keys = pg_sys::RelationGetIndexAttrBitmap(open.rel, KEY);
        let attributes = super::types::attributes((*open.rel).rd_att);
        for (at, att) in attributes.iter().enumerate() {
            let member = i32::from(att.attnum) - pg_sys::FirstLowInvalidHeapAttributeNumber;
            if !pg_sys::bms_is_member(member, keys) {
                continue;
            }
            let (old, new) = (open.local, open.remote);
            let nulls = (*(*old).tts_isnull.add(at), *(*new).tts_isnull.add(at));
            let same = match nulls {
                (true, true) => true,
                (false, false) => {
                    let (a, b) = (*(*old).tts_values.add(at), *(*new).tts_values.add(at));
                    compat::datum_image_eq(a, b, att.attbyval, i32::from(att.attlen))
                }
                _ => false,
            };
            if !same {
                mode = LockTupleExclusive;
            }
        }
        pg_sys::bms_free(keys);
        mode
    }
}

/// Locks the row found; false when it must be found again, perhaps after a wait for whoever
/// holds it.
///
/// # Safety
/// `open.local` holds the row.
unsafe fn lock_row(open: &mut Open, mode: pg_sys::LockTupleMode::Type) -> bool {
    use pg_sys::TM_Result::{TM_Ok, TM_WouldBlock};
    let mut failure = pg_sys::TM_FailureData::default();
    // SAFETY: the caller's promise; after table_tuple_lock the slot still has the row, pinned.
    unsafe {
        let mut tid = (*open.local).tts_tid;
        let cid = pg_sys::GetCurrentCommandId(true);
        let snapshot = pg_sys::GetLatestSnapshot();
        let skip = pg_sys::LockWaitPolicy::LockWaitSkip;
        let result = pg_sys::table_tuple_lock(
            open.rel,
            &mut tid,
            snapshot,
            open.local,
            cid,
            mode,
            skip,
            0,
            &mut failure,
        );
        if result == TM_WouldBlock {
            let xid = holder(open.local, mode);
            wait_for_row(open, tid, mode, xid);
            return false;
        }
        result == TM_Ok
    }
}
