//! Texts, parse trees and lists.

use pgrx::pg_sys;
use pgrx::{PgSqlErrorCode, ereport};
use std::ffi::{CStr, CString, c_char};

/// The statement's own part of a query string.
///
/// # Safety
/// `pstmt` and `query` are what the server handed to the utility hook.
pub(crate) unsafe fn own_text(pstmt: *const pg_sys::PlannedStmt, query: *const c_char) -> Vec<u8> {
    // SAFETY: the query string ends with a zero byte.
    let all = unsafe { CStr::from_ptr(query) }.to_bytes();
    // SAFETY: the statement is valid during the hook.
    let (location, len) = unsafe { ((*pstmt).stmt_location, (*pstmt).stmt_len) };
    let start = usize::try_from(location).unwrap_or(0).min(all.len());
    let rest = &all[start..];
    let text = match usize::try_from(len) {
        Ok(len) if len > 0 && len <= rest.len() => &rest[..len],
        _ => rest,
    };
    text.trim_ascii().to_vec()
}

/// Text for the server.
pub(crate) fn c_text(text: &[u8]) -> CString {
    CString::new(text).unwrap_or_else(|_| {
        ereport!(ERROR, PgSqlErrorCode::ERRCODE_DATA_CORRUPTED, "zero byte in a statement");
    })
}

/// Bytes of a server string; empty for NULL.
///
/// # Safety
/// `text` is NULL or ends with a zero byte.
pub(crate) unsafe fn bytes(text: *const c_char) -> Vec<u8> {
    if text.is_null() {
        return Vec::new();
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(text) }.to_bytes().to_vec()
}

/// Parses text that must hold exactly one statement.
///
/// # Safety
/// `text` must live as long as the result.
pub(crate) unsafe fn parse_one(text: &CStr) -> Option<*mut pg_sys::RawStmt> {
    // SAFETY: a transaction is in progress; the result lives in the current memory context.
    let list = unsafe { pg_sys::pg_parse_query(text.as_ptr()) };
    // SAFETY: the parser returns a list of RawStmt.
    let mut statements = unsafe { elements::<pg_sys::RawStmt>(list) }.into_iter();
    match (statements.next(), statements.next()) {
        (Some(one), None) => Some(one),
        _ => None,
    }
}

/// Pointers of a list.
///
/// # Safety
/// `list` is NULL or a pointer list of `T`.
pub(crate) unsafe fn elements<T>(list: *mut pg_sys::List) -> Vec<*mut T> {
    if list.is_null() {
        return Vec::new();
    }
    // SAFETY: a list's elements array holds `length` cells.
    unsafe {
        let (cells, n) = ((*list).elements, (*list).length as usize);
        (0..n).map(|i| (*cells.add(i)).ptr_value.cast()).collect()
    }
}

/// The tag of a node.
///
/// # Safety
/// `node` is NULL or a node.
pub(crate) unsafe fn tag<T>(node: *const T) -> pg_sys::NodeTag {
    if node.is_null() {
        return pg_sys::NodeTag::T_Invalid;
    }
    // SAFETY: every node begins with its tag.
    unsafe { (*node.cast::<pg_sys::Node>()).type_ }
}

/// The text of a list of String nodes, such as a qualified name.
///
/// # Safety
/// `list` is NULL or a list of nodes.
pub(crate) unsafe fn strings(list: *mut pg_sys::List) -> Vec<Vec<u8>> {
    // SAFETY: as the caller promises.
    let nodes = unsafe { elements::<pg_sys::Node>(list) };
    let strings = nodes.into_iter().filter(|node| {
        // SAFETY: elements are nodes.
        unsafe { tag(*node) == pg_sys::NodeTag::T_String }
    });
    // SAFETY: a String node holds a zero-terminated text.
    strings.map(|node| unsafe { bytes((*node.cast::<pg_sys::String>()).sval) }).collect()
}

/// A name, quoted when it must be.
pub(crate) fn quoted(name: &[u8]) -> Vec<u8> {
    let name = c_text(name);
    // SAFETY: the server returns the name itself or a copy in the current memory context.
    unsafe { bytes(pg_sys::quote_identifier(name.as_ptr())) }
}

/// Names with dots between them, quoted when they must be.
pub(crate) fn qualified(names: &[Vec<u8>]) -> Vec<u8> {
    names.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(&b'.')
}

/// A literal.
pub(crate) fn literal(text: &[u8]) -> Vec<u8> {
    let text = c_text(text);
    // SAFETY: the server returns a copy in the current memory context.
    unsafe { bytes(pg_sys::quote_literal_cstr(text.as_ptr())) }
}
