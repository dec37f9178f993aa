//! From decoded changes to bytes, in a walsender.

use std::collections::HashMap;

use mtm_logrep::row::{RowWriter, TupleWriter};
use pgrx::{pg_sys, varlena};

use super::plan::{How, Identity, SendColumn, SendPlan, memory_context};
use crate::pg::compat;

/// Whether a change has become bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoded {
    /// Yes.
    Appended,
    /// No peer wants it.
    Skipped,
}

/// A row was changed or removed in a table where nothing identifies rows: the log does not say
/// which one it was, so the transaction cannot be shipped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {action} of a row in a table without replica identity cannot be replicated")]
pub struct Unidentified {
    /// OID of the table.
    pub table: u32,
    /// The statement.
    pub action: &'static str,
}

/// Turns the changes of one transaction after the other into row messages.
///
/// Duties of the caller: [`Self::begin_transaction`] before each blob's first change; every call in
/// an output plugin's callback; `parent` is deleted no earlier than this is dropped, and what this
/// has allocated is freed with `parent`, not on drop.
pub struct RowEncoder {
    binary: bool,
    is_local: fn(pg_sys::Oid) -> bool,
    plans: HashMap<pg_sys::Oid, SendPlan>,
    /// `ignore_tables_without_pk` when the plans were made.
    ignoring: bool,
    parent: pg_sys::MemoryContext,
    /// Reset after each change.
    scratch: pg_sys::MemoryContext,
    transaction: u64,
    described: u32,
    new: Deformed,
    old: Deformed,
}

#[derive(Default)]
struct Deformed {
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
}

impl Deformed {
    /// # Safety
    /// `tuple` has the relation's descriptor.
    unsafe fn take(&mut self, tuple: pg_sys::HeapTuple, relation: pg_sys::Relation) {
        // SAFETY: there is room for the descriptor's natts.
        unsafe {
            let desc = (*relation).rd_att;
            let natts = (*desc).natts as usize;
            self.values.resize(natts, pg_sys::Datum::from(0));
            self.nulls.resize(natts, true);
            let (values, nulls) = (self.values.as_mut_ptr(), self.nulls.as_mut_ptr());
            pg_sys::heap_deform_tuple(tuple, desc, values, nulls);
        }
    }
}

impl core::fmt::Debug for RowEncoder {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("RowEncoder").field("plans", &self.plans.len()).finish_non_exhaustive()
    }
}

impl RowEncoder {
    /// An encoder whose memory belongs to `parent`. `binary` is the setting `binary_basetypes`;
    /// `is_local` tells tables whose rows stay here (ask for it again by invalidating the
    /// table's relcache entry).
    ///
    /// Sets the session so that text output reads back on any peer.
    ///
    /// # Safety
    /// `parent` is live.
    pub unsafe fn new(
        parent: pg_sys::MemoryContext,
        binary: bool,
        is_local: fn(pg_sys::Oid) -> bool,
    ) -> Self {
        // SAFETY: the caller's promise.
        let scratch = unsafe {
            portable_text();
            memory_context(parent, c"mtm encode")
        };
        Self {
            binary,
            is_local,
            plans: HashMap::new(),
            ignoring: false,
            parent,
            scratch,
            transaction: 0,
            described: 0,
            new: Deformed::default(),
            old: Deformed::default(),
        }
    }

    /// A new blob begins, in which no table is described yet.
    pub fn begin_transaction(&mut self) {
        let ignoring = crate::guc::IGNORE_TABLES_WITHOUT_PK.get();
        if core::mem::replace(&mut self.ignoring, ignoring) != ignoring {
            for (_, plan) in self.plans.drain() {
                // SAFETY: no change is being encoded between transactions.
                unsafe { plan.free() };
            }
        }
        self.transaction += 1;
        self.described = 0;
    }

    /// Appends an INSERT, UPDATE or DELETE, and the table's description on its first use.
    ///
    /// # Errors
    /// When nothing says which row it was; nothing has been appended for it.
    ///
    /// # Safety
    /// In the change callback, with its arguments.
    pub unsafe fn encode_change(
        &mut self,
        relation: pg_sys::Relation,
        change: *mut pg_sys::ReorderBufferChange,
        out: &mut Vec<u8>,
    ) -> Result<Encoded, Unidentified> {
        // SAFETY: the caller's promise; the context switched to is ours and switched back from.
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.scratch);
            let encoded = self.encode_in_scratch(relation, change, out);
            pg_sys::MemoryContextSwitchTo(before);
            pg_sys::MemoryContextReset(self.scratch);
            encoded
        }
    }

    /// # Safety
    /// As [`Self::encode_change`].
    unsafe fn encode_in_scratch(
        &mut self,
        relation: pg_sys::Relation,
        change: *mut pg_sys::ReorderBufferChange,
        out: &mut Vec<u8>,
    ) -> Result<Encoded, Unidentified> {
        use pg_sys::ReorderBufferChangeType as Type;
        // SAFETY: the caller's promise; tuples live as long as the change.
        unsafe {
            let (old, new) = compat::change_tuples(change);
            let action = match (*change).action {
                Type::REORDER_BUFFER_CHANGE_INSERT => "INSERT",
                Type::REORDER_BUFFER_CHANGE_UPDATE => "UPDATE",
                Type::REORDER_BUFFER_CHANGE_DELETE => "DELETE",
                _ => return Ok(Encoded::Skipped),
            };
            let (transaction, described) = (self.transaction, self.described);
            let plan =
                fresh_plan(&mut self.plans, relation, self.binary, self.is_local, self.parent);
            if plan.skip || (action == "INSERT" && new.is_null()) {
                return Ok(Encoded::Skipped);
            }
            let table = (*relation).rd_id.to_u32();
            let lost = Unidentified { table, action };
            let nothing = plan.identity == Identity::Nothing;
            if action != "INSERT" && nothing || action == "DELETE" && old.is_null() {
                return Err(lost);
            }
            if !new.is_null() {
                self.new.take(new, relation);
            }
            if !old.is_null() {
                self.old.take(old, relation);
            }
            let mut w = RowWriter::new(out);
            if plan.described.0 != transaction {
                w.described(&plan.description);
                plan.described = (transaction, described);
                self.described += 1;
            }
            let number = plan.described.1;
            match action {
                "INSERT" => put_row(w.insert(number, plan.columns.len()), plan, &self.new),
                "UPDATE" => {
                    w.update(number);
                    if old.is_null() || key_is_same(plan, &self.old, &self.new) {
                        w.no_old();
                    } else {
                        put_old(&mut w, plan, &self.old);
                    }
                    put_row(w.tuple(plan.columns.len()), plan, &self.new);
                }
                _ => {
                    w.delete(number);
                    put_old(&mut w, plan, &self.old);
                }
            }
            Ok(Encoded::Appended)
        }
    }

    /// Appends a TRUNCATE of those of the tables that travel.
    ///
    /// # Safety
    /// In the truncate callback, with its arguments.
    pub unsafe fn encode_truncate(
        &mut self,
        relations: &[pg_sys::Relation],
        change: *mut pg_sys::ReorderBufferChange,
        out: &mut Vec<u8>,
    ) -> Encoded {
        // SAFETY: the caller's promise: `truncate` is the union's live member.
        unsafe {
            let before = pg_sys::MemoryContextSwitchTo(self.scratch);
            let truncate = (*change).data.truncate;
            let mut numbers = Vec::with_capacity(relations.len());
            for relation in relations {
                let (transaction, number) = (self.transaction, self.described);
                let plan =
                    fresh_plan(&mut self.plans, *relation, self.binary, self.is_local, self.parent);
                if plan.skip {
                    continue;
                }
                if plan.described.0 != transaction {
                    RowWriter::new(out).described(&plan.description);
                    plan.described = (transaction, number);
                    self.described += 1;
                }
                numbers.push(plan.described.1);
            }
            pg_sys::MemoryContextSwitchTo(before);
            pg_sys::MemoryContextReset(self.scratch);
            if numbers.is_empty() {
                return Encoded::Skipped;
            }
            RowWriter::new(out).truncate(&numbers, truncate.cascade, truncate.restart_seqs);
            Encoded::Appended
        }
    }
}

/// The plan of a table, made anew when what it was made from has changed.
///
/// # Safety
/// As [`SendPlan::build`].
unsafe fn fresh_plan(
    plans: &mut HashMap<pg_sys::Oid, SendPlan>,
    relation: pg_sys::Relation,
    binary: bool,
    is_local: fn(pg_sys::Oid) -> bool,
    parent: pg_sys::MemoryContext,
) -> &mut SendPlan {
    // SAFETY: the caller's promise.
    unsafe {
        let relid = (*relation).rd_id;
        if !plans.get(&relid).is_some_and(|plan| plan.stamp.holds()) {
            if let Some(old) = plans.remove(&relid) {
                old.free();
            }
            let plan = SendPlan::build(relation, binary, is_local(relid), parent);
            plans.insert(relid, plan);
        }
        plans.get_mut(&relid).expect("it holds or was just inserted")
    }
}

/// Whether the old key says nothing that the new row does not.
///
/// # Safety
/// Both rows are of this plan's table.
unsafe fn key_is_same(plan: &SendPlan, old: &Deformed, new: &Deformed) -> bool {
    if plan.identity != Identity::KeyOfFullRow {
        return false;
    }
    plan.columns.iter().filter(|c| c.key).all(|c| {
        // SAFETY: both values are of the column's type, key columns are not null.
        unsafe {
            !is_unchanged(c, new.values[c.at])
                && compat::datum_image_eq(
                    old.values[c.at],
                    new.values[c.at],
                    c.by_value,
                    i32::from(c.len),
                )
        }
    })
}

/// # Safety
/// The row is of this plan's table.
unsafe fn put_row(mut to: TupleWriter<'_>, plan: &mut SendPlan, row: &Deformed) {
    for column in &mut plan.columns {
        // SAFETY: the caller's promise.
        unsafe { put_value(&mut to, column, row) }
    }
}

/// # Safety
/// The row is of this plan's table.
unsafe fn put_old(w: &mut RowWriter<'_>, plan: &mut SendPlan, row: &Deformed) {
    if plan.identity == Identity::Row {
        // SAFETY: the caller's promise.
        return unsafe { put_row(w.row(plan.columns.len()), plan, row) };
    }
    let mut to = w.key(plan.keys);
    for column in plan.columns.iter_mut().filter(|c| c.key) {
        // SAFETY: the caller's promise.
        unsafe { put_value(&mut to, column, row) }
    }
}

/// # Safety
/// The row is of this column's table; the current memory context is reset soon.
unsafe fn put_value(to: &mut TupleWriter<'_>, column: &mut SendColumn, row: &Deformed) {
    if row.nulls[column.at] {
        return to.null();
    }
    let datum = row.values[column.at];
    // SAFETY: the value is of the column's type, as the caller promises.
    unsafe {
        if is_unchanged(column, datum) {
            return to.unchanged();
        }
        match &mut column.how {
            How::Fixed(1) => to.binary(&[datum.value() as u8]),
            How::Fixed(2) => to.binary(&(datum.value() as u16).to_be_bytes()),
            How::Fixed(4) => to.binary(&(datum.value() as u32).to_be_bytes()),
            How::Fixed(_) => to.binary(&(datum.value() as u64).to_be_bytes()),
            How::Bytes => {
                let plain = pg_sys::pg_detoast_datum_packed(datum.cast_mut_ptr());
                to.binary(varlena::varlena_to_byte_slice(plain));
            }
            How::Send(function) => {
                let sent = pg_sys::SendFunctionCall(function, datum);
                to.binary(varlena::varlena_to_byte_slice(sent));
            }
            How::Output(function) => {
                let text = pg_sys::OutputFunctionCall(function, datum);
                to.text(core::ffi::CStr::from_ptr(text).to_bytes());
            }
        }
    }
}

/// Whether it is stored out of line and, since its new contents are not in the log, not changed.
///
/// # Safety
/// The value is of this column and not null.
unsafe fn is_unchanged(column: &SendColumn, datum: pg_sys::Datum) -> bool {
    if column.len != -1 {
        return false;
    }
    let value = datum.cast_mut_ptr::<pg_sys::varlena>();
    // SAFETY: a column of length -1 holds a varlena.
    unsafe {
        varlena::varatt_is_1b_e(value)
            && u32::from(varlena::vartag_1b_e(value)) == pg_sys::vartag_external::VARTAG_ONDISK
    }
}

/// Text must mean the same to whoever reads it: names with their schema, full precision, ISO dates,
/// no conversion to a client's encoding.
///
/// # Safety
/// In a process with a database.
unsafe fn portable_text() {
    // SAFETY: string settings that any session may change.
    unsafe {
        let encoding = pg_sys::GetDatabaseEncodingName();
        let settings = [
            (c"client_encoding", encoding),
            (c"DateStyle", c"ISO, YMD".as_ptr()),
            (c"IntervalStyle", c"postgres".as_ptr()),
            (c"extra_float_digits", c"3".as_ptr()),
            (c"bytea_output", c"hex".as_ptr()),
            (c"lc_monetary", c"C".as_ptr()),
            (c"search_path", c"".as_ptr()),
        ];
        for (name, value) in settings {
            let context = pg_sys::GucContext::PGC_SUSET;
            let source = pg_sys::GucSource::PGC_S_OVERRIDE;
            pg_sys::SetConfigOption(name.as_ptr(), value, context, source);
        }
    }
}
