//! Finding the row that a change is about.
//!
//! The search sees what no snapshot would: rows being inserted, changed or deleted by transactions
//! in progress. The answer depends on how these end, so each is waited for and the search repeated.

use core::ptr;

use pgrx::pg_sys;

use super::target::Target;
use crate::pg::compat;

/// How rows of an open table are found.
pub(super) enum Finder {
    /// By the index of the replica identity or the primary key.
    Index(Box<IndexFinder>),
    /// Among the rows that another index finds by some of the columns.
    Among(Box<IndexFinder>),
    /// By looking at every row.
    Scan,
}

pub(super) struct IndexFinder {
    index: pg_sys::Relation,
    scan: pg_sys::IndexScanDesc,
    /// PostgreSQL keeps a pointer to it, and tells in it which transactions it has met.
    dirty: Box<pg_sys::SnapshotData>,
    keys: Vec<pg_sys::ScanKeyData>,
    /// Places in the row of the columns looked for.
    columns: Vec<usize>,
}

impl Finder {
    /// # Safety
    /// `rel` is open and stays so; the current memory context lives as long as the finder.
    pub(super) unsafe fn open(rel: pg_sys::Relation, target: &Target) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let mut index = pg_sys::RelationGetReplicaIndex(rel);
            if index == pg_sys::InvalidOid {
                index = pg_sys::RelationGetPrimaryKeyIndex(rel);
            }
            if index == pg_sys::InvalidOid || target.keys.is_empty() {
                let found = useful_index(rel, target);
                return found.map_or(Self::Scan, |index| Self::Among(Box::new(index)));
            }
            let index = pg_sys::index_open(index, pg_sys::RowExclusiveLock as i32);
            Self::Index(Box::new(IndexFinder::open(rel, index, |_| true)))
        }
    }

    /// Whether the columns of a key are enough to find a row.
    pub(super) const fn wants_key_only(&self) -> bool {
        matches!(self, Self::Index(_))
    }

    /// Closes what is open; locks stay.
    ///
    /// # Safety
    /// Opened in this transaction.
    pub(super) unsafe fn close(self) {
        if let Self::Index(finder) | Self::Among(finder) = self {
            // SAFETY: opened by `open`.
            unsafe {
                pg_sys::index_endscan(finder.scan);
                pg_sys::index_close(finder.index, pg_sys::NoLock as i32);
            }
        }
    }

    /// The first row that equals `wanted`, put into `found`, and the transaction in progress that
    /// must end before it is known to count.
    ///
    /// # Safety
    /// Both slots are of the table.
    pub(super) unsafe fn next(
        &mut self,
        rel: pg_sys::Relation,
        wanted: *mut pg_sys::TupleTableSlot,
        found: *mut pg_sys::TupleTableSlot,
        compared: &[usize],
    ) -> Option<Option<pg_sys::TransactionId>> {
        // SAFETY: the caller's promise.
        let (hit, busy) = unsafe {
            match self {
                Self::Index(finder) => finder.next(wanted, found, None),
                Self::Among(finder) => finder.next(wanted, found, Some(compared)),
                Self::Scan => scan(rel, wanted, found, compared),
            }
        };
        hit.then_some(busy)
    }
}

impl IndexFinder {
    /// Looks for those of the index's columns that are columns of the table and wanted.
    ///
    /// # Safety
    /// As [`Finder::open`]; `index` is open, a B-tree whose first column is one of these.
    unsafe fn open(
        rel: pg_sys::Relation,
        index: pg_sys::Relation,
        wanted: impl Fn(usize) -> bool,
    ) -> Self {
        // SAFETY: an open index has rd_index, and one operator class and family for each column.
        unsafe {
            let form = (*index).rd_index;
            let count = usize::from((*form).indnkeyatts as u16);
            let mut dirty = Box::new(pg_sys::SnapshotData::default());
            dirty.snapshot_type = pg_sys::SnapshotType::SNAPSHOT_DIRTY;
            let attnums = (*form).indkey.values.as_slice(count);
            let (mut keys, mut columns) = (Vec::with_capacity(count), Vec::with_capacity(count));
            for (i, attnum) in attnums.iter().enumerate() {
                if *attnum <= 0 || !wanted((*attnum - 1) as usize) {
                    continue;
                }
                let mut key = pg_sys::ScanKeyData::default();
                let (family, class) = (*(*index).rd_opfamily.add(i), *(*index).rd_opcintype.add(i));
                let equal = pg_sys::BTEqualStrategyNumber as i16;
                let operator = pg_sys::get_opfamily_member(family, class, class, equal);
                let function = pg_sys::get_opcode(operator);
                let none = pg_sys::Datum::from(0);
                let number = (i + 1) as i16;
                pg_sys::ScanKeyInit(&mut key, number, equal as u16, function, none);
                key.sk_collation = *(*index).rd_indcollation.add(i);
                keys.push(key);
                columns.push((*attnum - 1) as usize);
            }
            let scan = pg_sys::index_beginscan(rel, index, &mut *dirty, keys.len() as i32, 0);
            Self { index, scan, dirty, keys, columns }
        }
    }

    /// The first match, and who must end before it is known to count. If there are columns to be
    /// compared, a match has the same in all of them.
    ///
    /// # Safety
    /// As [`Finder::next`].
    unsafe fn next(
        &mut self,
        wanted: *mut pg_sys::TupleTableSlot,
        found: *mut pg_sys::TupleTableSlot,
        compared: Option<&[usize]>,
    ) -> (bool, Option<pg_sys::TransactionId>) {
        // SAFETY: values of the key columns are in the slot; the keys are copied by the rescan.
        unsafe {
            for (key, at) in self.keys.iter_mut().zip(&self.columns) {
                key.sk_argument = *(*wanted).tts_values.add(*at);
                let null = *(*wanted).tts_isnull.add(*at);
                key.sk_flags = if null { IS_NULL } else { 0 };
            }
            let count = self.keys.len() as i32;
            pg_sys::index_rescan(self.scan, self.keys.as_mut_ptr(), count, ptr::null_mut(), 0);
            let forward = pg_sys::ScanDirection::ForwardScanDirection;
            let mut hit = false;
            while !hit && pg_sys::index_getnext_slot(self.scan, forward, found) {
                hit = compared.is_none_or(|columns| same(wanted, found, columns));
            }
            (hit, busy(&self.dirty))
        }
    }
}

/// A scan key that finds nulls.
const IS_NULL: i32 = (pg_sys::SK_ISNULL | pg_sys::SK_SEARCHNULL) as i32;

/// An index that leads to few rows with the same values: it has all rows, and begins with a column
/// that is sent. A unique one is the best, then the one with the most columns.
///
/// # Safety
/// As [`Finder::open`].
unsafe fn useful_index(rel: pg_sys::Relation, target: &Target) -> Option<IndexFinder> {
    let sent = |at: usize| target.columns.iter().any(|column| column.at == at);
    let mut best: Option<((bool, usize), pg_sys::Oid)> = None;
    // SAFETY: a list of OIDs of indexes of an open table; an index has indnkeyatts key columns.
    unsafe {
        let indexes = pg_sys::RelationGetIndexList(rel);
        let lock = pg_sys::RowExclusiveLock as i32;
        for i in 0..pg_sys::list_length(indexes) as usize {
            let oid = (*(*indexes).elements.add(i)).oid_value;
            let index = pg_sys::index_open(oid, lock);
            let form = (*index).rd_index;
            let count = usize::from((*form).indnkeyatts as u16);
            let columns = (*form).indkey.values.as_slice(count);
            let usable = |attnum: &&i16| **attnum > 0 && sent((**attnum - 1) as usize);
            let value = ((*form).indisunique, columns.iter().filter(usable).count());
            if (*form).indisvalid
                && (*(*index).rd_rel).relam == pg_sys::BTREE_AM_OID
                && pg_sys::RelationGetIndexPredicate(index).is_null()
                && columns.first().is_some_and(|first| usable(&first))
                && best.is_none_or(|(found, _)| value > found)
            {
                best = Some((value, oid));
            }
            pg_sys::index_close(index, pg_sys::NoLock as i32);
        }
        pg_sys::list_free(indexes);
        best.map(|(_, oid)| IndexFinder::open(rel, pg_sys::index_open(oid, lock), sent))
    }
}

/// The transaction in progress that the last row looked at belongs to.
fn busy(dirty: &pg_sys::SnapshotData) -> Option<pg_sys::TransactionId> {
    let invalid = pg_sys::InvalidTransactionId;
    [dirty.xmin, dirty.xmax].into_iter().find(|xid| *xid != invalid)
}

/// The first row that equals `wanted` in the compared columns.
///
/// # Safety
/// As [`Finder::find`].
unsafe fn scan(
    rel: pg_sys::Relation,
    wanted: *mut pg_sys::TupleTableSlot,
    found: *mut pg_sys::TupleTableSlot,
    compared: &[usize],
) -> (bool, Option<pg_sys::TransactionId>) {
    // SAFETY: the scan ends here; the slot keeps its own pin on the page.
    unsafe {
        let mut dirty = pg_sys::SnapshotData {
            snapshot_type: pg_sys::SnapshotType::SNAPSHOT_DIRTY,
            ..pg_sys::SnapshotData::default()
        };
        let scan = pg_sys::table_beginscan(rel, &mut dirty, 0, ptr::null_mut());
        let forward = pg_sys::ScanDirection::ForwardScanDirection;
        let mut hit = false;
        while !hit && pg_sys::table_scan_getnextslot(scan, forward, found) {
            hit = same(wanted, found, compared);
        }
        pg_sys::table_endscan(scan);
        (hit, busy(&dirty))
    }
}

/// Whether two rows look the same in these columns.
///
/// # Safety
/// Both slots are of one table; `a` is virtual.
unsafe fn same(
    a: *mut pg_sys::TupleTableSlot,
    b: *mut pg_sys::TupleTableSlot,
    columns: &[usize],
) -> bool {
    // SAFETY: all values of `b` are fetched first.
    unsafe {
        pg_sys::slot_getallattrs(b);
        let attributes = super::types::attributes((*a).tts_tupleDescriptor);
        columns.iter().all(|&at| {
            let nulls = (*(*a).tts_isnull.add(at), *(*b).tts_isnull.add(at));
            let att = &attributes[at];
            match nulls {
                (true, true) => true,
                (false, false) => compat::datum_image_eq(
                    *(*a).tts_values.add(at),
                    *(*b).tts_values.add(at),
                    att.attbyval,
                    i32::from(att.attlen),
                ),
                _ => false,
            }
        })
    }
}

/// A transaction in progress whose lock on the row in `slot` conflicts with `mode`.
///
/// # Safety
/// The slot holds a row on a page it has pinned.
pub(super) unsafe fn holder(
    slot: *mut pg_sys::TupleTableSlot,
    mode: pg_sys::LockTupleMode::Type,
) -> Option<pg_sys::TransactionId> {
    // SAFETY: a table's slot is a buffer slot. Its header may change while we read it: the answer
    // is advice only, whoever waits looks again.
    unsafe {
        let tuple = (*slot.cast::<pg_sys::BufferHeapTupleTableSlot>()).base.tuple;
        let header = (*tuple).t_data;
        let mask = u32::from((*header).t_infomask);
        let xmax = (*header).t_choice.t_heap.t_xmax;
        if mask & pg_sys::HEAP_XMAX_INVALID != 0 {
            return None;
        }
        if mask & pg_sys::HEAP_XMAX_IS_MULTI == 0 {
            return in_progress(xmax).then_some(xmax);
        }
        let mut members: *mut pg_sys::MultiXactMember = ptr::null_mut();
        let only = mask & pg_sys::HEAP_XMAX_LOCK_ONLY != 0;
        let count = pg_sys::GetMultiXactIdMembers(xmax, &mut members, false, only);
        (0..count.max(0) as usize)
            .map(|i| *members.add(i))
            .find(|m| excludes(m.status, mode) && in_progress(m.xid))
            .map(|m| m.xid)
    }
}

/// Whether a member's lock does not go together with ours.
const fn excludes(
    status: pg_sys::MultiXactStatus::Type,
    ours: pg_sys::LockTupleMode::Type,
) -> bool {
    use pg_sys::LockTupleMode::{LockTupleExclusive, LockTupleKeyShare};
    use pg_sys::MultiXactStatus::{
        MultiXactStatusForKeyShare, MultiXactStatusForUpdate, MultiXactStatusUpdate,
    };
    #[allow(non_upper_case_globals, reason = "PostgreSQL's names")]
    match ours {
        LockTupleExclusive => true,
        LockTupleKeyShare => {
            matches!(status, MultiXactStatusForUpdate | MultiXactStatusUpdate)
        }
        _ => status != MultiXactStatusForKeyShare,
    }
}

fn in_progress(xid: pg_sys::TransactionId) -> bool {
    // SAFETY: both only look at shared memory.
    unsafe {
        !pg_sys::TransactionIdIsCurrentTransactionId(xid) && pg_sys::TransactionIdIsInProgress(xid)
    }
}
