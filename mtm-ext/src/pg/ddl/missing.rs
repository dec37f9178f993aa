//! ADD COLUMN with a default that is computed once and kept beside the table, without touching any
//! row: every node would compute its own. So the peers get the origin's value afterwards.

use super::parse::{bytes, c_text, elements, literal, tag};
use super::{capture, context, emit};
use crate::report;
use mtm_logrep::ddl::{Flags, Message, Rows, Statement};
use pgrx::pg_sys::{self, AlterTableType, NodeTag};
use pgrx::spi::Spi;
use pgrx::{PgSqlErrorCode, ereport};

/// The columns that an ALTER TABLE adds, before it runs: the server changes the tree.
///
/// # Safety
/// `stmt` is a utility statement.
pub(super) unsafe fn added_columns(stmt: *const pg_sys::Node) -> Vec<Vec<u8>> {
    // SAFETY: the parser made the commands; a new column comes as a ColumnDef.
    unsafe {
        if tag(stmt) != NodeTag::T_AlterTableStmt {
            return Vec::new();
        }
        let commands = (*stmt.cast::<pg_sys::AlterTableStmt>()).cmds;
        elements::<pg_sys::AlterTableCmd>(commands)
            .into_iter()
            .filter(|command| (**command).subtype == AlterTableType::AT_AddColumn)
            .map(|command| bytes((*(*command).def.cast::<pg_sys::ColumnDef>()).colname))
            .collect()
    }
}

/// After that ALTER TABLE: sends what was computed for these columns, where another node could
/// have computed something else.
///
/// # Safety
/// `stmt` has just run, unless there are no columns.
pub(super) unsafe fn announce(columns: &[Vec<u8>], stmt: *const pg_sys::Node) {
    if columns.is_empty() {
        return;
    }
    // SAFETY: as the caller promises; the name stays in the tree.
    let table =
        unsafe { crate::pg::sequences::look_up((*stmt.cast::<pg_sys::AlterTableStmt>()).relation) };
    if table == pg_sys::InvalidOid {
        return;
    }
    for member in super::local::family(table) {
        for column in columns {
            if computed_on_each_node(member, column) {
                send(member, column);
            }
        }
    }
}

fn computed_on_each_node(table: pg_sys::Oid, column: &[u8]) -> bool {
    let name = c_text(column);
    // SAFETY: the table is locked by the statement; the default is an expression or NULL.
    unsafe {
        let number = pg_sys::get_attnum(table, name.as_ptr());
        let relation = pg_sys::relation_open(table, pg_sys::NoLock as i32);
        let attributes = (*relation).rd_att;
        let index = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
        let all = (*attributes).attrs.as_slice((*attributes).natts as usize);
        let found = index.and_then(|index| all.get(index)).is_some_and(|a| a.atthasmissing)
            && pg_sys::contain_mutable_functions(
                pg_sys::build_column_default(relation, i32::from(number)).cast(),
            );
        pg_sys::relation_close(relation, pg_sys::NoLock as i32);
        found
    }
}

fn send(table: pg_sys::Oid, column: &[u8]) {
    let name = String::from_utf8_lossy(column).into_owned();
    let query = "SELECT a.attmissingval::text, EXISTS (SELECT FROM pg_catalog.pg_index i \
                 WHERE i.indrelid = a.attrelid AND a.attnum = ANY (i.indkey::int2[])) \
                 FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attname = $2";
    let found = Spi::connect_mut(|client| {
        let rows = client.update(query, Some(1), &[table.into(), name.as_str().into()])?;
        let row = rows.first();
        Ok::<_, pgrx::spi::Error>((row.get::<String>(1)?, row.get::<bool>(2)?))
    });
    let (value, indexed) = found.unwrap_or_else(|e| {
        ereport!(ERROR, PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, format!("new column: {e}"));
    });
    if indexed == Some(true) {
        report::error(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            format!("cannot replicate column \"{name}\": each node would compute its own default"),
            "",
            "Add the column first, and the index or constraint in a second statement.",
        );
    }
    let Some(value) = value else { return };
    let table = crate::pg::sequences::qualified_name(table);
    let body = [
        b"BEGIN PERFORM mtm.set_missing_value(",
        &literal(&table)[..],
        b"::pg_catalog.regclass, ",
        &literal(column),
        b", ",
        &literal(value.as_bytes()),
        b"); END",
    ]
    .concat();
    let (transaction_time, statement_time) = context::times();
    let superuser = context::bootstrap_superuser();
    emit(&Message::Statement(Statement {
        rows: Rows::None,
        flags: Flags::NONE,
        transaction_time,
        statement_time,
        session_user: superuser.clone(),
        current_user: superuser,
        security_context: 0,
        text: [b"DO LANGUAGE plpgsql ", &literal(&body)[..]].concat(),
        settings: context::settings(),
    }));
    capture::after(capture::Captured::End);
}

/// What a peer does with it.
pub(crate) fn set(table: pg_sys::Oid, column: &str, value: &str) {
    let (column, value) = (c_text(column.as_bytes()), c_text(value.as_bytes()));
    // SAFETY: as ALTER TABLE does it, under its lock; an error is raised for a missing column.
    unsafe {
        pg_sys::LockRelationOid(table, pg_sys::AccessExclusiveLock as i32);
        pg_sys::SetAttrMissing(table, column.as_ptr().cast_mut(), value.as_ptr().cast_mut());
        pg_sys::CommandCounterIncrement();
    }
}
