//! Questions to tables that an index of ours cannot answer: PostgreSQL plans them.

use std::collections::HashMap;
use std::ffi::{CStr, CString};

use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::{self, Oid};

use crate::pg::rows::error;

/// How many plans are kept.
const PLANS_MAX: usize = 256;

/// Plans by their text.
#[derive(Default)]
pub(super) struct Plans {
    plans: HashMap<CString, pg_sys::SPIPlanPtr>,
}

/// One side of a comparison of rows.
pub(super) struct Column {
    /// As SQL writes it.
    pub(super) text: CString,
    pub(super) typid: Oid,
}

/// One condition: `left operator right`.
pub(super) struct Condition {
    pub(super) left: Column,
    pub(super) operator: Oid,
    pub(super) right: Column,
    /// A collation that must be named.
    pub(super) collation: Option<Oid>,
}

/// `SELECT 1 FROM table WHERE conditions`, locking what it finds. Parameters are `$1` and so on,
/// of these types.
pub(super) struct Question {
    text: CString,
    types: Vec<Oid>,
}

impl Question {
    /// # Safety
    /// Inside a transaction.
    pub(super) unsafe fn new(
        table: Oid,
        conditions: &[Condition],
        types: Vec<Oid>,
        lock: &str,
    ) -> Self {
        let only = match relkind(table) {
            pg_sys::RELKIND_PARTITIONED_TABLE => "",
            _ => "ONLY ",
        };
        let mut text = format!("SELECT 1 FROM {only}{} x", table_name(table)).into_bytes();
        for (i, condition) in conditions.iter().enumerate() {
            text.extend_from_slice(if i == 0 { b" WHERE " } else { b" AND " });
            text.extend_from_slice(&condition.text());
        }
        text.extend_from_slice(format!(" FOR {lock} OF x").as_bytes());
        let text = CString::new(text).expect("names have no zero byte");
        Self { text, types }
    }
}

impl Condition {
    fn text(&self) -> Vec<u8> {
        // SAFETY: PostgreSQL appends to the buffer, which it has made.
        unsafe {
            let buffer = pg_sys::makeStringInfo();
            let (left, right) = (&self.left, &self.right);
            pg_sys::generate_operator_clause(
                buffer,
                left.text.as_ptr(),
                left.typid,
                self.operator,
                right.text.as_ptr(),
                right.typid,
            );
            let mut text = CStr::from_ptr((*buffer).data).to_bytes().to_vec();
            pg_sys::pfree((*buffer).data.cast());
            pg_sys::pfree(buffer.cast());
            if let Some(collation) = self.collation {
                text.extend_from_slice(b" COLLATE ");
                text.extend_from_slice(CStr::from_ptr(collation_name(collation)).to_bytes());
            }
            text
        }
    }
}

/// The kind of a relation.
pub(super) fn relkind(relid: Oid) -> u8 {
    // SAFETY: a catalog lookup.
    unsafe { pg_sys::get_rel_relkind(relid) as u8 }
}

/// A table's qualified name, quoted.
pub(super) fn table_name(relid: Oid) -> String {
    // SAFETY: catalog lookups; null only for what does not exist.
    unsafe {
        let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(relid));
        let name = pg_sys::get_rel_name(relid);
        if schema.is_null() || name.is_null() {
            pgrx::error!("could not find relation with OID {}", relid.to_u32());
        }
        let name = pg_sys::quote_qualified_identifier(schema, name);
        CStr::from_ptr(name).to_string_lossy().into_owned()
    }
}

/// # Safety
/// Inside a transaction.
unsafe fn collation_name(collation: Oid) -> *const core::ffi::c_char {
    // SAFETY: the catalog row is copied before it is released.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::COLLOID as i32;
        let none = pg_sys::Datum::from(0);
        let tuple = pg_sys::SearchSysCache(cache, pg_sys::Datum::from(collation), none, none, none);
        if tuple.is_null() {
            pgrx::error!("cache lookup failed for collation {}", collation.to_u32());
        }
        let row = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_collation>();
        let schema = pg_sys::get_namespace_name((*row).collnamespace);
        let name = pg_sys::quote_qualified_identifier(schema, (*row).collname.data.as_ptr());
        pg_sys::ReleaseSysCache(tuple);
        name
    }
}

impl Plans {
    /// Whether a row is found, after everybody who has it locked is finished.
    ///
    /// # Safety
    /// Inside a transaction; one value of its type for each parameter.
    pub(super) unsafe fn ask(&mut self, question: &Question, values: &[pg_sys::Datum]) -> bool {
        // SAFETY: the caller's promise. A new snapshot is taken: what others have committed counts.
        unsafe {
            if pg_sys::SPI_connect() != pg_sys::SPI_OK_CONNECT as i32 {
                failed("connect");
            }
            let plan = self.plan(question);
            let mut values = values.to_vec();
            let none = core::ptr::null_mut();
            let result = pg_sys::SPI_execute_snapshot(
                plan,
                values.as_mut_ptr(),
                core::ptr::null(),
                none,
                none,
                false,
                false,
                1,
            );
            if result != pg_sys::SPI_OK_SELECT as i32 {
                failed("execute a check");
            }
            let found = pg_sys::SPI_processed > 0;
            pg_sys::SPI_finish();
            found
        }
    }

    /// # Safety
    /// Connected to SPI.
    unsafe fn plan(&mut self, question: &Question) -> pg_sys::SPIPlanPtr {
        // SAFETY: kept plans belong to the process until they are freed here.
        unsafe {
            if let Some(plan) = self.plans.get(&question.text) {
                if pg_sys::SPI_plan_is_valid(*plan) {
                    return *plan;
                }
                pg_sys::SPI_freeplan(*plan);
                self.plans.remove(&question.text);
            }
            if self.plans.len() >= PLANS_MAX {
                for (_, plan) in self.plans.drain() {
                    pg_sys::SPI_freeplan(plan);
                }
            }
            let mut types = question.types.clone();
            let plan =
                pg_sys::SPI_prepare(question.text.as_ptr(), types.len() as i32, types.as_mut_ptr());
            if plan.is_null() || pg_sys::SPI_keepplan(plan) != 0 {
                failed("prepare a check");
            }
            self.plans.insert(question.text.clone(), plan);
            plan
        }
    }
}

fn failed(what: &str) -> ! {
    let code = PgSqlErrorCode::ERRCODE_INTERNAL_ERROR;
    error::raise(code, format!("could not {what}"), None, "")
}
