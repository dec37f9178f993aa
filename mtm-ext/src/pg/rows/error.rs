//! Errors of applying, as users see them.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode, pg_sys};

/// Raises an ERROR.
pub(super) fn raise(
    code: PgSqlErrorCode,
    message: String,
    detail: Option<String>,
    hint: &str,
) -> ! {
    let mut report = ErrorReport::new(code, message, "multimaster");
    if let Some(detail) = detail {
        report = report.set_detail(detail);
    }
    if !hint.is_empty() {
        report = report.set_hint(hint);
    }
    report.report(PgLogLevel::ERROR);
    unreachable!("an ERROR does not return")
}

/// The peer has sent what it must not.
pub(super) fn malformed(what: &dyn core::fmt::Display) -> ! {
    let code = PgSqlErrorCode::ERRCODE_PROTOCOL_VIOLATION;
    raise(code, format!("malformed replicated row: {what}"), None, "")
}

/// The table here is not the one described.
pub(super) fn differs(schema: &[u8], name: &[u8], how: &str) -> ! {
    raise(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("table {} differs between nodes: {how}", qualified(schema, name)),
        None,
        "",
    )
}

/// There is no such row.
pub(super) fn missing(action: &str, table: &str, key: &str) -> ! {
    raise(
        PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
        format!("could not apply {action}: table {table} has no row with {key}"),
        None,
        "Another transaction has changed or deleted the row. Retry the transaction.",
    )
}

thread_local! {
    /// The table of the row being applied, and how to look for one that is missing.
    static APPLYING: core::cell::RefCell<(u32, Option<String>)> =
        const { core::cell::RefCell::new((0, None)) };
}

/// Notes the table of the row that is applied next.
pub(super) fn begin_row(table: pg_sys::Oid) {
    APPLYING.set((table.to_u32(), None));
}

/// Table and, for a row that is missing, query of what could not be applied last.
pub fn failed_row() -> (u32, Option<String>) {
    APPLYING.take()
}

/// Notes how to look on other nodes for a row that is missing here.
///
/// # Safety
/// The slot is of the relation, and its columns at these places hold values.
pub(super) unsafe fn note_missing(
    rel: pg_sys::Relation,
    slot: *mut pg_sys::TupleTableSlot,
    places: &[usize],
) {
    let quote = |text: &str| format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"));
    // SAFETY: the caller's promise; catalog lookups inside a transaction.
    unsafe {
        let attributes = super::types::attributes((*slot).tts_tupleDescriptor);
        let mut key = Vec::new();
        for &at in places {
            let name = core::ffi::CStr::from_ptr(attributes[at].attname.data.as_ptr());
            let name = format!("x.\"{}\"", name.to_string_lossy().replace('"', "\"\""));
            if *(*slot).tts_isnull.add(at) {
                key.push(format!("{name} IS NULL"));
                continue;
            }
            let (mut output, mut varlena) = (pg_sys::InvalidOid, false);
            pg_sys::getTypeOutputInfo(attributes[at].atttypid, &mut output, &mut varlena);
            let text = pg_sys::OidOutputFunctionCall(output, *(*slot).tts_values.add(at));
            let text = core::ffi::CStr::from_ptr(text).to_string_lossy();
            key.push(format!("{name} = {}", quote(&text)));
        }
        let name = core::ffi::CStr::from_ptr((*(*rel).rd_rel).relname.data.as_ptr());
        let schema = pg_sys::get_namespace_name((*(*rel).rd_rel).relnamespace);
        if schema.is_null() {
            return;
        }
        let schema = core::ffi::CStr::from_ptr(schema);
        let identifier = |text: &core::ffi::CStr| text.to_string_lossy().replace('"', "\"\"");
        let query = format!(
            "SELECT pg_catalog.md5((x.*)::text) FROM \"{}\".\"{}\" x WHERE {} LIMIT 1",
            identifier(schema),
            identifier(name),
            key.join(" AND ")
        );
        APPLYING.set(((*rel).rd_id.to_u32(), Some(query)));
    }
}

/// A name for messages.
pub(super) fn qualified(schema: &[u8], name: &[u8]) -> String {
    format!("\"{}.{}\"", String::from_utf8_lossy(schema), String::from_utf8_lossy(name))
}

/// Columns and their values for a message.
///
/// # Safety
/// The slot's columns at these places hold values.
pub(super) unsafe fn show(slot: *mut pg_sys::TupleTableSlot, places: &[usize]) -> String {
    // SAFETY: output functions give C strings.
    unsafe {
        let attributes = super::types::attributes((*slot).tts_tupleDescriptor);
        let (mut names, mut values) = (Vec::new(), Vec::new());
        for &at in places {
            let name = core::ffi::CStr::from_ptr(attributes[at].attname.data.as_ptr());
            names.push(name.to_string_lossy().into_owned());
            if *(*slot).tts_isnull.add(at) {
                values.push("null".to_owned());
                continue;
            }
            let (mut output, mut varlena) = (pg_sys::InvalidOid, false);
            pg_sys::getTypeOutputInfo(attributes[at].atttypid, &mut output, &mut varlena);
            let text = pg_sys::OidOutputFunctionCall(output, *(*slot).tts_values.add(at));
            let text = core::ffi::CStr::from_ptr(text).to_string_lossy();
            values.push(text.chars().take(64).collect());
        }
        format!("({})=({})", names.join(", "), values.join(", "))
    }
}
