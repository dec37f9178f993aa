//! CREATE TABLE AS and SELECT INTO: the peers create the table, the rows follow.
//!
//! The query itself may depend on a prepared statement, on variables of a function or on chance,
//! so what travels is a CREATE TABLE with the columns of its result.

use super::parse::{bytes, elements, literal, qualified, quoted, strings, tag};
use super::temporary::written_name;
use pgrx::pg_sys::{self, NodeTag};
use pgrx::{PgSqlErrorCode, ereport};

/// CREATE TABLE for the result of a query.
///
/// # Safety
/// `stmt` is an analysed CREATE TABLE AS.
pub(crate) unsafe fn definition(stmt: *const pg_sys::CreateTableAsStmt) -> Vec<u8> {
    // SAFETY: analysed, so its query is a Query; the parser made the INTO clause.
    let (query, into) = unsafe { ((*stmt).query.cast::<pg_sys::Query>(), (*stmt).into) };
    // SAFETY: valid as above.
    let result = unsafe { result_columns(query) };
    // SAFETY: a list of String nodes.
    let names = unsafe { strings((*into).colNames) };
    let columns = result.into_iter().enumerate().map(|(i, column)| {
        let name = names.get(i).unwrap_or(&column.name);
        [quoted(name), b" ".to_vec(), column.declaration].concat()
    });
    let columns = columns.collect::<Vec<_>>().join(&b", "[..]);

    // SAFETY: the parser made the relation.
    let (name, persistence) = unsafe { (written_name((*into).rel), (*(*into).rel).relpersistence) };
    let unlogged = persistence == pg_sys::RELPERSISTENCE_UNLOGGED as i8;
    let mut text =
        if unlogged { b"CREATE UNLOGGED TABLE ".to_vec() } else { b"CREATE TABLE ".to_vec() };
    // SAFETY: a valid statement.
    if unsafe { (*stmt).if_not_exists } {
        text.extend_from_slice(b"IF NOT EXISTS ");
    }
    text.extend_from_slice(&[&name[..], b" (", &columns, b")"].concat());
    // SAFETY: names are NULL or zero-terminated.
    let (method, space) = unsafe { (bytes((*into).accessMethod), bytes((*into).tableSpaceName)) };
    if !method.is_empty() {
        text.extend_from_slice(&[b" USING ", &quoted(&method)[..]].concat());
    }
    // SAFETY: a list of DefElem nodes.
    let options = unsafe { elements::<pg_sys::DefElem>((*into).options) };
    if !options.is_empty() {
        // SAFETY: as above.
        let options = options.into_iter().map(|option| unsafe { storage_option(option) });
        let options = options.collect::<Vec<_>>().join(&b", "[..]);
        text.extend_from_slice(&[b" WITH (", &options[..], b")"].concat());
    }
    if !space.is_empty() {
        text.extend_from_slice(&[b" TABLESPACE ", &quoted(&space)[..]].concat());
    }
    text
}

struct Column {
    name: Vec<u8>,
    /// Type and collation.
    declaration: Vec<u8>,
}

/// The columns that a SELECT or an EXECUTE returns.
unsafe fn result_columns(query: *mut pg_sys::Query) -> Vec<Column> {
    // SAFETY: a valid query.
    let utility = unsafe { (*query).utilityStmt };
    // SAFETY: NULL or a node.
    if unsafe { tag(utility) } == NodeTag::T_ExecuteStmt {
        // SAFETY: raises an error when there is no such prepared statement.
        let prepared = unsafe {
            let name = (*utility.cast::<pg_sys::ExecuteStmt>()).name;
            pg_sys::FetchPreparedStatement(name, true)
        };
        // SAFETY: a prepared statement has a source of plans; NULL if it returns no rows.
        let shape = unsafe { (*(*prepared).plansource).resultDesc };
        if shape.is_null() {
            ereport!(
                ERROR,
                PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
                "prepared statement is not a SELECT"
            );
        }
        // SAFETY: a descriptor has that many attributes behind it.
        let attributes = unsafe { (*shape).attrs.as_slice((*shape).natts as usize) };
        return attributes.iter().map(attribute).collect();
    }
    // SAFETY: the target list holds TargetEntry nodes.
    let targets = unsafe { elements::<pg_sys::TargetEntry>((*query).targetList) };
    let visible = targets.into_iter().filter(|&target| {
        // SAFETY: as above.
        !unsafe { (*target).resjunk }
    });
    let column = |target: *mut pg_sys::TargetEntry| {
        // SAFETY: an analysed expression has a type, a modifier and a collation.
        unsafe {
            let expr = (*target).expr.cast::<pg_sys::Node>();
            let of =
                (pg_sys::exprType(expr), pg_sys::exprTypmod(expr), pg_sys::exprCollation(expr));
            Column { name: bytes((*target).resname), declaration: declaration(of.0, of.1, of.2) }
        }
    };
    visible.map(column).collect()
}

fn attribute(a: &pg_sys::FormData_pg_attribute) -> Column {
    // SAFETY: an attribute's name ends with a zero byte.
    let name = unsafe { bytes(a.attname.data.as_ptr()) };
    Column { name, declaration: declaration(a.atttypid, a.atttypmod, a.attcollation) }
}

/// `type [COLLATE collation]`, with schemas.
fn declaration(of: pg_sys::Oid, modifier: i32, collation: pg_sys::Oid) -> Vec<u8> {
    let flags = pg_sys::FORMAT_TYPE_TYPEMOD_GIVEN | pg_sys::FORMAT_TYPE_FORCE_QUALIFY;
    // SAFETY: the type exists, since an expression has it.
    let mut text = unsafe { bytes(pg_sys::format_type_extended(of, modifier, flags as u16)) };
    // SAFETY: a cache look-up.
    let usual = unsafe { pg_sys::get_typcollation(of) };
    if collation != pg_sys::InvalidOid && collation != usual {
        text.extend_from_slice(b" COLLATE ");
        text.extend_from_slice(&collation_name(collation));
    }
    text
}

fn collation_name(collation: pg_sys::Oid) -> Vec<u8> {
    let key = pg_sys::Datum::from(collation);
    // SAFETY: a cache look-up, released below.
    let row = unsafe { pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::COLLOID as i32, key) };
    if row.is_null() {
        ereport!(ERROR, PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT, "collation is gone");
    }
    // SAFETY: a row of pg_collation has this layout.
    let name = unsafe {
        let form = pg_sys::GETSTRUCT(row).cast::<pg_sys::FormData_pg_collation>();
        let schema = bytes(pg_sys::get_namespace_name((*form).collnamespace));
        qualified(&[schema, bytes((*form).collname.data.as_ptr())])
    };
    // SAFETY: taken above.
    unsafe { pg_sys::ReleaseSysCache(row) };
    name
}

/// `[namespace.]name = 'value'`.
unsafe fn storage_option(option: *mut pg_sys::DefElem) -> Vec<u8> {
    // SAFETY: a valid DefElem.
    let (space, name) = unsafe { (bytes((*option).defnamespace), bytes((*option).defname)) };
    let name = if space.is_empty() { qualified(&[name]) } else { qualified(&[space, name]) };
    // SAFETY: as above.
    if unsafe { (*option).arg.is_null() } {
        return name;
    }
    // SAFETY: as above; the value's text is a copy.
    let value = unsafe { bytes(pg_sys::defGetString(option)) };
    [&name[..], b" = ", &literal(&value)].concat()
}
