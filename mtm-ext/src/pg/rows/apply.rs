//! From bytes to rows, in an apply worker.

use std::collections::HashMap;

use mtm_logrep::row::{Old, Relation, RowMessage, RowReader, Tables, Tuple, Value};
use mtm_logrep::stream::Children;
use pgrx::pg_sys;

use super::change;
use super::check::Pending;
use super::error;
use super::find::Finder;
use super::open::Open;
use super::plan::memory_context;
use super::target::Target;
use super::wait::wait_for_row;
use crate::users::Work;

/// How many tables are kept open at a time.
const OPEN_MAX: usize = 32;

/// Applies blobs of row messages, one transaction after the other.
///
/// Duties of the caller: a transaction is open, with `session_replication_role` = replica;
/// [`Self::begin`] after it has begun (also after one that ended by an ERROR), [`Self::apply`] for
/// each part of the blob, cut between messages, and [`Self::finish`] before PREPARE.
pub struct Applier {
    /// What each description, byte for byte, has been found to mean here.
    targets: HashMap<Box<[u8]>, Target>,
    /// Descriptions of this blob by number.
    described: Vec<Box<[u8]>>,
    open: Vec<(u32, Box<Open>)>,
    /// The transaction's number on its origin and its subtransactions that count; `None` when all
    /// that comes counts.
    only: Option<(u32, Vec<u32>)>,
    /// What comes now was rolled back on its origin.
    skip: bool,
    snapshot: bool,
    pending: Pending,
    /// What the transaction does to a user's.
    work: Option<Work>,
    parent: pg_sys::MemoryContext,
    scratch: pg_sys::StringInfoData,
}

impl core::fmt::Debug for Applier {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Applier").field("targets", &self.targets.len()).finish_non_exhaustive()
    }
}

impl Applier {
    /// An applier that lives as long as the process.
    pub fn new() -> Self {
        let mut scratch = pg_sys::StringInfoData::default();
        // SAFETY: the buffer and the context belong to the process.
        let parent = unsafe {
            let parent = memory_context(pg_sys::TopMemoryContext, c"mtm applier");
            let before = pg_sys::MemoryContextSwitchTo(parent);
            pg_sys::initStringInfo(&mut scratch);
            pg_sys::MemoryContextSwitchTo(before);
            parent
        };
        Self {
            targets: HashMap::new(),
            described: Vec::new(),
            open: Vec::new(),
            only: None,
            skip: false,
            snapshot: false,
            pending: Pending::default(),
            work: None,
            parent,
            scratch,
        }
    }

    /// A transaction has begun. What an earlier one that failed had open is forgotten.
    pub fn begin(&mut self) {
        // The abort has freed what these point to.
        self.open.clear();
        self.snapshot = false;
        self.pending.begin();
        self.only = None;
        self.skip = false;
        self.work = None;
        self.begin_piece();
    }

    /// Nothing is checked in this transaction: it is committed elsewhere.
    pub fn unchecked(&mut self) {
        self.pending.switch_off();
    }

    /// What follows says which subtransaction it belongs to. Only what belongs to the transaction
    /// itself and to these ([`Children`]) counts.
    pub fn only(&mut self, xid: u32, children: &[u8]) {
        let children = Children::parse(children).unwrap_or_else(|e| error::malformed(&e));
        self.only = Some((xid, children.iter().collect()));
    }

    fn counts(&self, subxid: u32) -> bool {
        self.only
            .as_ref()
            .is_none_or(|(xid, children)| *xid == subxid || children.binary_search(&subxid).is_ok())
    }

    /// A blob of its own begins within the transaction: table numbers start again at 0.
    pub fn begin_piece(&mut self) {
        self.close_tables();
        self.described.clear();
    }

    /// Applies a part of the blob. Schema changes are handed to `ddl`, in their place, with all
    /// tables closed and no snapshot of ours active.
    ///
    /// Raises an ERROR when it cannot: 40001 when a row is not there, 23505 and so on as
    /// PostgreSQL does. Foreign keys and deferrable constraints are for [`Self::finish`].
    pub fn apply(&mut self, part: &[u8], ddl: &mut dyn FnMut(&[u8])) {
        for message in RowReader::resume(part, self.described.len() as u32) {
            let message = message.unwrap_or_else(|e| error::malformed(&e));
            match message {
                RowMessage::Relation(relation) => self.described.push(relation.bytes().into()),
                RowMessage::Subxact(subxid) => self.skip = !self.counts(subxid),
                _ if self.skip => {}
                RowMessage::Insert { table, new } => self.insert(table, &new),
                RowMessage::Update { table, old, new } => self.update(table, old, &new),
                RowMessage::Delete { table, old } => self.delete(table, old),
                RowMessage::Truncate { tables, cascade: _, restart } => {
                    self.settle();
                    self.truncate(tables, restart);
                }
                RowMessage::User(bytes) => {
                    self.work = Some(Work::decode(bytes).unwrap_or_else(|e| error::malformed(&e)));
                }
                RowMessage::Ddl(bytes) => {
                    self.settle();
                    if mtm_logrep::ddl::is_unchecked(bytes) {
                        self.pending.switch_off();
                    }
                    // SAFETY: inside the transaction; all tables are closed.
                    unsafe { self.pending.check_undeferrable(&[]) }
                    ddl(bytes);
                }
            }
        }
        self.settle();
    }

    /// Checks what had to wait for the end of the transaction. The caller PREPAREs next.
    pub fn finish(&mut self) {
        self.settle();
        // SAFETY: inside the transaction; all tables are closed.
        unsafe { self.pending.check_all() }
    }

    /// What the transaction does to a user's two-phase transaction, if it came with the rows.
    pub fn work(&mut self) -> Option<Work> {
        self.work.take()
    }

    /// Closes all tables and gives the snapshot back.
    fn settle(&mut self) {
        self.close_tables();
        if core::mem::take(&mut self.snapshot) {
            // SAFETY: pushed by `row_begins` in this call.
            unsafe { pg_sys::PopActiveSnapshot() }
        }
    }

    fn close_tables(&mut self) {
        for (_, open) in self.open.drain(..) {
            open.close();
        }
    }

    fn insert(&mut self, table: u32, new: &Tuple<'_>) {
        let open = self.row_begins(table);
        // SAFETY: as PostgreSQL's own apply worker does, on an open table of this transaction.
        unsafe {
            self.store(&open, table, new, None, open.remote);
            change::insert(&open, &mut self.pending);
        }
        self.row_ends(table, open);
    }

    fn update(&mut self, table: u32, old: Option<Old<'_>>, new: &Tuple<'_>) {
        let mut open = self.row_begins(table);
        // SAFETY: as `insert`.
        unsafe {
            self.store_wanted(&mut open, table, old, Some(new));
            loop {
                self.find(&mut open, table, "UPDATE", old.is_some());
                self.store(&open, table, new, Some(open.local), open.remote);
                if change::replace(&mut open, &mut self.pending) {
                    break;
                }
            }
        }
        self.row_ends(table, open);
    }

    fn delete(&mut self, table: u32, old: Old<'_>) {
        let mut open = self.row_begins(table);
        // SAFETY: as `insert`.
        unsafe {
            self.store_wanted(&mut open, table, Some(old), None);
            loop {
                self.find(&mut open, table, "DELETE", true);
                if change::remove(&mut open, &mut self.pending) {
                    break;
                }
            }
        }
        self.row_ends(table, open);
    }

    /// Puts the row to be changed into `open.local`.
    ///
    /// # Safety
    /// `open.wanted` is filled.
    unsafe fn find(&self, open: &mut Open, table: u32, action: &str, strong: bool) {
        let target = &self.targets[&self.described[table as usize]];
        let finder = open.finder.as_ref().expect("opened by store_wanted");
        let compared: Vec<usize> = if finder.wants_key_only() {
            Vec::new()
        } else {
            target.columns.iter().map(|c| c.at).collect()
        };
        let mode = match strong {
            true => pg_sys::LockTupleMode::LockTupleExclusive,
            false => pg_sys::LockTupleMode::LockTupleNoKeyExclusive,
        };
        // SAFETY: the caller's promise. What the scan remembers lives as long as the table is open.
        unsafe {
            loop {
                let before = pg_sys::MemoryContextSwitchTo(open.context());
                let finder = open.finder.as_mut().expect("opened by store_wanted");
                let found = finder.next(open.rel, open.wanted, open.local, &compared);
                pg_sys::MemoryContextSwitchTo(before);
                match found {
                    Some(None) => return,
                    Some(Some(xid)) => {
                        wait_for_row(open, (*open.local).tts_tid, mode, Some(xid));
                    }
                    None => break,
                }
            }
            let relation = Relation::parse(&self.described[table as usize])
                .unwrap_or_else(|e| error::malformed(&e));
            let places: Vec<usize> = match compared.is_empty() {
                true => target.keys.iter().map(|k| target.columns[*k].at).collect(),
                false => compared,
            };
            let name = error::qualified(relation.schema(), relation.name());
            error::note_missing(open.rel, open.wanted, &places);
            error::missing(action, &name, &error::show(open.wanted, &places));
        }
    }

    /// Fills `open.wanted` with what identifies the row.
    ///
    /// # Safety
    /// As [`Self::store`].
    unsafe fn store_wanted(
        &mut self,
        open: &mut Open,
        table: u32,
        old: Option<Old<'_>>,
        new: Option<&Tuple<'_>>,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            if open.finder.is_none() {
                let target = &self.targets[&self.described[table as usize]];
                let before = pg_sys::MemoryContextSwitchTo(open.context());
                open.finder = Some(Finder::open(open.rel, target));
                pg_sys::MemoryContextSwitchTo(before);
            }
            match (old, new) {
                (Some(Old::Row(row)), _) => self.store(open, table, &row, None, open.wanted),
                (Some(Old::Key(key)), _) => self.store_key(open, table, &key),
                (None, Some(new)) => self.store(open, table, new, None, open.wanted),
                (None, None) => unreachable!("a DELETE has an old row"),
            }
            let finder = open.finder.as_ref().expect("just opened");
            if !finder.wants_key_only() && !matches!(old, Some(Old::Row(_))) {
                error::malformed(&"a change of a table without key lacks the old row");
            }
        }
    }

    /// Puts a row's values into a slot. Unchanged ones come from `base`.
    ///
    /// # Safety
    /// The slots are of the open table.
    unsafe fn store(
        &mut self,
        open: &Open,
        table: u32,
        row: &Tuple<'_>,
        base: Option<*mut pg_sys::TupleTableSlot>,
        into: *mut pg_sys::TupleTableSlot,
    ) {
        let target = target_mut(&mut self.targets, &self.described[table as usize]);
        if row.len() != target.columns.len() {
            error::malformed(&"a row has another number of columns than its table");
        }
        let context = target.context();
        let scratch = &raw mut self.scratch;
        // SAFETY: the caller's promise; values live in the row's memory context.
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(open.row_context());
            clear(into);
            if let Some(base) = base {
                pg_sys::slot_getallattrs(base);
            }
            let attributes = super::types::attributes((*into).tts_tupleDescriptor);
            for (column, value) in target.columns.iter_mut().zip(row.values()) {
                let (at, typid) = (column.at, attributes[column.at].atttypid);
                match (value, base) {
                    (Value::Unchanged, Some(base)) => {
                        *(*into).tts_values.add(at) = *(*base).tts_values.add(at);
                        *(*into).tts_isnull.add(at) = *(*base).tts_isnull.add(at);
                    }
                    _ => {
                        if let Some(datum) = column.take(typid, value, scratch, context) {
                            *(*into).tts_values.add(at) = datum;
                            *(*into).tts_isnull.add(at) = false;
                        }
                    }
                }
            }
            pg_sys::ExecStoreVirtualTuple(into);
            pg_sys::MemoryContextSwitchTo(before);
        }
    }

    /// Puts a key's values into `open.wanted`.
    ///
    /// # Safety
    /// As [`Self::store`].
    unsafe fn store_key(&mut self, open: &Open, table: u32, key: &Tuple<'_>) {
        let target = target_mut(&mut self.targets, &self.described[table as usize]);
        if key.len() != target.keys.len() {
            error::malformed(&"a key has another number of columns than its table");
        }
        let context = target.context();
        let scratch = &raw mut self.scratch;
        // SAFETY: the caller's promise; values live in the row's memory context.
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(open.row_context());
            clear(open.wanted);
            let attributes = super::types::attributes((*open.wanted).tts_tupleDescriptor);
            for (place, value) in target.keys.iter().zip(key.values()) {
                let column = &mut target.columns[*place];
                let (at, typid) = (column.at, attributes[column.at].atttypid);
                if let Some(datum) = column.take(typid, value, scratch, context) {
                    *(*open.wanted).tts_values.add(at) = datum;
                    *(*open.wanted).tts_isnull.add(at) = false;
                }
            }
            pg_sys::ExecStoreVirtualTuple(open.wanted);
            pg_sys::MemoryContextSwitchTo(before);
        }
    }

    /// Opens the table of the next row, or takes it as it is open.
    fn row_begins(&mut self, table: u32) -> Box<Open> {
        // SAFETY: inside a transaction, as the caller of `apply` promises.
        unsafe {
            if !core::mem::replace(&mut self.snapshot, true) {
                pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            }
            let at = self.open.iter().position(|(number, _)| *number == table);
            let mut open = match at {
                Some(at) => self.open.swap_remove(at).1,
                None => {
                    if self.open.len() >= OPEN_MAX {
                        self.close_tables();
                    }
                    let lock = pg_sys::RowExclusiveLock as i32;
                    let rel = self.open_relation(table, lock);
                    Open::new(rel, &self.targets[&self.described[table as usize]])
                }
            };
            error::begin_row((*open.rel).rd_id);
            open.before = pg_sys::MemoryContextSwitchTo(open.row_context());
            (*open.estate).es_output_cid = pg_sys::GetCurrentCommandId(true);
            if open.triggers().is_some() {
                pg_sys::AfterTriggerBeginQuery();
            }
            open
        }
    }

    /// Lets triggers run and the next row see this one.
    fn row_ends(&mut self, table: u32, mut open: Box<Open>) {
        // SAFETY: pairs with `row_begins`.
        unsafe {
            if open.triggers().is_some() {
                pg_sys::AfterTriggerEndQuery(open.estate);
            }
            pg_sys::MemoryContextSwitchTo(open.before);
            open.end_row();
            pg_sys::CommandCounterIncrement();
            pg_sys::UpdateActiveSnapshotCommandId();
        }
        self.open.push((table, open));
    }

    /// The local table of a description, opened under `lock`.
    ///
    /// # Safety
    /// Inside a transaction.
    unsafe fn open_relation(&mut self, table: u32, lock: pg_sys::LOCKMODE) -> pg_sys::Relation {
        let Some(description) = self.described.get(table as usize) else {
            error::malformed(&"a table that was not described");
        };
        // SAFETY: taking the lock lets PostgreSQL tell us of changes before the stamp is read.
        unsafe {
            if let Some(target) = self.targets.get(description) {
                let rel = pg_sys::try_table_open(target.relid, lock);
                if !rel.is_null() {
                    if target.stamp.holds() {
                        return rel;
                    }
                    pg_sys::table_close(rel, lock);
                }
            }
            let remote = Relation::parse(description).unwrap_or_else(|e| error::malformed(&e));
            let target = Target::resolve(&remote, lock, self.parent);
            let relid = target.relid;
            if let Some(stale) = self.targets.insert(description.clone(), target) {
                stale.free();
            }
            pg_sys::table_open(relid, pg_sys::NoLock as i32)
        }
    }

    fn truncate(&mut self, tables: Tables<'_>, restart: bool) {
        let none = core::ptr::null_mut::<pg_sys::List>();
        let (mut rels, mut relids, mut logged) = (none, none, none);
        // SAFETY: all tables are open and locked as ExecuteTruncateGuts wants them. Tables that
        // CASCADE reached on the origin are in the message themselves.
        unsafe {
            let mut emptied = Vec::new();
            for table in tables.iter() {
                let rel = self.open_relation(table, pg_sys::AccessExclusiveLock as i32);
                emptied.push((*rel).rd_id);
                rels = pg_sys::lappend(rels, rel.cast());
                relids = pg_sys::lappend_oid(relids, (*rel).rd_id);
                logged = pg_sys::lappend_oid(logged, (*rel).rd_id);
            }
            self.pending.check_undeferrable(&emptied);
            let restrict = pg_sys::DropBehavior::DROP_RESTRICT;
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
            pg_sys::ExecuteTruncateGuts(rels, relids, logged, restrict, restart);
            pg_sys::PopActiveSnapshot();
            for i in 0..pg_sys::list_length(rels) as usize {
                let rel = (*(*rels).elements.add(i)).ptr_value.cast();
                pg_sys::table_close(rel, pg_sys::NoLock as i32);
            }
            pg_sys::CommandCounterIncrement();
        }
    }
}

impl Default for Applier {
    fn default() -> Self {
        Self::new()
    }
}

fn target_mut<'t>(targets: &'t mut HashMap<Box<[u8]>, Target>, key: &[u8]) -> &'t mut Target {
    targets.get_mut(key).expect("the table is open")
}

/// All columns null, as dropped and generated ones stay.
///
/// # Safety
/// The slot is virtual.
unsafe fn clear(slot: *mut pg_sys::TupleTableSlot) {
    // SAFETY: a slot has room for its descriptor's columns.
    unsafe {
        pg_sys::ExecClearTuple(slot);
        let natts = (*(*slot).tts_tupleDescriptor).natts as usize;
        core::ptr::write_bytes((*slot).tts_values, 0, natts);
        core::ptr::write_bytes((*slot).tts_isnull, 1, natts);
    }
}
