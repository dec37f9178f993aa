//! When the nodes' classes of values change, the past of one node could be the future of another:
//! all nodes must continue behind the last value of any.

use super::{
    Superuser, alter_classes, definition, emit, ereport_spi, is_permanent_sequence, lock, names,
    place, qualified_name, recorded, set, share,
};
use crate::pg::conn::{Conn, ConnError};
use crate::pg::ddl::parse;
use crate::pg::shmem;
use crate::report;
use crate::{cluster, guc};
use mtm_core::sequence::{Definition, Position};
use mtm_logrep::ddl::Message;
use pgrx::spi::Spi;
use pgrx::{PgSqlErrorCode, ereport, pg_sys};
use std::collections::BTreeMap;

/// How many values of the old definition peers may hand out while the change is on its way.
const SLACK: u32 = 100;

/// Before ALTER SEQUENCE, or ALTER of an identity column, with these options: if it changes the
/// classes, all nodes go behind the last value of any.
///
/// # Safety
/// `options` is a list of DefElem nodes as the parser makes them.
pub(crate) unsafe fn before_alter(relid: pg_sys::Oid, options: *mut pg_sys::List) {
    let Some(share) = share() else { return };
    if !super::is_alterable(relid) {
        return;
    }
    let _superuser = Superuser::begin();
    let old = recorded(relid).map_or_else(|| definition(relid), |record| record.user);
    // SAFETY: as the caller promises.
    let Some(new) = (unsafe { alter_classes(&old, options) }) else {
        return;
    };
    if new.same_classes(&old, share) {
        return;
    }
    lock(relid);
    let Some(used) = farthest(relid, &old) else {
        return;
    };
    let roomy = i128::from(old.max) - i128::from(old.min) > 1 << 20;
    let last = old.advanced(used, if roomy { SLACK } else { 0 });
    set(relid, Position { last, called: true });
    let (schema, name) = names(relid);
    emit(&Message::Floor { schema, name, last, strict: true });
}

/// The last value of any node; `None` if no value was ever used.
fn farthest(relid: pg_sys::Oid, user: &Definition) -> Option<i64> {
    let mut used = user.used_up_to(place::read(relid));
    let name = String::from_utf8_lossy(&qualified_name(relid)).into_owned();
    for node in shmem::header().peers_set() {
        let theirs = match ask(node, &name) {
            Ok(position) => position.and_then(|at| user.used_up_to(at)),
            Err(error) => report::error(
                PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE,
                format!("could not ask node {node} how far sequence {name} is: {error}"),
                "",
                "The nodes share the values of a sequence in another way when its step changes. \
                 Try again when all nodes are online.",
            ),
        };
        used = match (used, theirs) {
            (Some(a), Some(b)) => Some(user.later(a, b)),
            (a, b) => a.or(b),
        };
    }
    used
}

/// Where a sequence stands on a peer; `None` if it does not exist there yet.
fn ask(node: mtm_core::NodeId, name: &str) -> Result<Option<Position>, ConnError> {
    let keywords = [("application_name", cluster::ADMIN)];
    let timeout = guc::CONNECT_TIMEOUT.get().max(10);
    let mut conn = Conn::connect(&shmem::conninfo(node), &keywords, timeout)?;
    conn.query("SET lock_timeout = '10s'", &[])?;
    match conn.query(&format!("SELECT last_value, is_called FROM {name}"), &[]) {
        Ok(rows) => Ok(rows.first().and_then(|row| {
            let last = row.first()?.as_ref()?.parse().ok()?;
            Some(Position { last, called: row.get(1)?.as_deref() == Some("t") })
        })),
        // Created by this very transaction: undefined table, invalid schema.
        Err(ConnError::Server { sqlstate, .. }) if sqlstate == "42P01" || sqlstate == "3F000" => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// A peer's word that no value up to `last` is handed out any more.
pub(crate) fn apply_floor(schema: &[u8], name: &[u8], last: i64, strict: bool) {
    let relid = super::find(schema, name);
    let _superuser = Superuser::begin();
    let user = recorded(relid).map_or_else(|| definition(relid), |record| record.user);
    if strict {
        // The statement that follows takes this lock as well.
        lock(relid);
        let used = user.used_up_to(place::read(relid));
        if used.is_some_and(|used| user.later(used, last) != last) {
            let name = String::from_utf8_lossy(name);
            report::error(
                PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
                format!("sequence \"{name}\" has moved on meanwhile"),
                "It is used faster than its definition can be changed.",
                "Try again.",
            );
        }
    }
    raise(relid, &user, last);
}

fn raise(relid: pg_sys::Oid, user: &Definition, last: i64) {
    let Some(share) = share() else { return };
    if super::on_node(user, share) != Ok(*user) {
        place::advance(relid, |at| user.beyond(share, at, last));
    }
}

/// With `monotonic_sequences`: the peers leave out what is below the values this transaction took.
/// Returns whether there was anything to say.
pub(crate) fn announce_used() -> bool {
    let mut said = false;
    for relid in crate::pg::xact::row_locked_relations() {
        if share().is_none() || !is_permanent_sequence(relid) {
            continue;
        }
        let at = place::read(relid);
        if definition(relid).cycle || !at.called {
            continue;
        }
        let (schema, name) = names(relid);
        emit(&Message::Floor { schema, name, last: at.last, strict: false });
        said = true;
    }
    said
}

/// Locks every sequence until the end of the transaction; how far each has been used.
pub(crate) fn floors() -> Vec<(String, i64)> {
    let _superuser = Superuser::begin();
    let mut floors = Vec::new();
    for relid in all_sequences() {
        lock(relid);
        let user = recorded(relid).map_or_else(|| definition(relid), |record| record.user);
        if let Some(used) = user.used_up_to(place::read(relid)) {
            floors.push((String::from_utf8_lossy(&qualified_name(relid)).into_owned(), used));
        }
    }
    floors
}

/// Gives this node its share of every sequence, behind these values.
pub(crate) fn continue_behind(floors: &BTreeMap<String, (i64, i64)>) {
    super::adjust_all(None);
    let _superuser = Superuser::begin();
    for relid in all_sequences() {
        let name = String::from_utf8_lossy(&qualified_name(relid)).into_owned();
        let Some((least, most)) = floors.get(&name) else {
            continue;
        };
        let user = recorded(relid).map_or_else(|| definition(relid), |record| record.user);
        raise(relid, &user, user.later(*least, *most));
    }
}

fn all_sequences() -> Vec<pg_sys::Oid> {
    let found = Spi::connect(|client| {
        let query = "SELECT seqrelid FROM pg_catalog.pg_sequence ORDER BY 1";
        let rows = client.select(query, None, &[])?;
        rows.map(|row| row.get::<pg_sys::Oid>(1)).collect::<Result<Vec<_>, _>>()
    });
    let found = found.unwrap_or_else(|e| ereport_spi(&e));
    found.into_iter().flatten().filter(|relid| is_permanent_sequence(*relid)).collect()
}

/// The relation of an identity column that ALTER TABLE is about, with the options for it.
///
/// # Safety
/// `stmt` is an ALTER TABLE of the parser.
pub(crate) unsafe fn identity_changes(
    stmt: *const pg_sys::AlterTableStmt,
) -> Vec<(pg_sys::Oid, *mut pg_sys::List)> {
    // SAFETY: as the caller promises; a look-up without lock.
    let (table, commands) = unsafe {
        let table = pg_sys::RangeVarGetRelidExtended(
            (*stmt).relation,
            pg_sys::NoLock as i32,
            pg_sys::RVROption::RVR_MISSING_OK,
            None,
            core::ptr::null_mut(),
        );
        (table, parse::elements::<pg_sys::AlterTableCmd>((*stmt).cmds))
    };
    let mut changes = Vec::new();
    for command in commands {
        // SAFETY: the parser made the command; its definition is a list of options.
        unsafe {
            if table == pg_sys::InvalidOid
                || (*command).subtype != pg_sys::AlterTableType::AT_SetIdentity
            {
                continue;
            }
            let column = pg_sys::get_attnum(table, (*command).name);
            let sequence = pg_sys::getIdentitySequence(table, column, true);
            if sequence != pg_sys::InvalidOid {
                changes.push((sequence, (*command).def.cast()));
            }
        }
    }
    changes
}

/// The tables whose identity columns a CREATE TABLE copies, before it runs: the server changes the
/// tree.
///
/// # Safety
/// `stmt` is a utility statement.
pub(crate) unsafe fn identity_sources(stmt: *const pg_sys::Node) -> Vec<pg_sys::Oid> {
    // SAFETY: as the caller promises.
    if unsafe { parse::tag(stmt) } != pg_sys::NodeTag::T_CreateStmt || share().is_none() {
        return Vec::new();
    }
    // SAFETY: as above.
    let elements =
        unsafe { parse::elements::<pg_sys::Node>((*stmt.cast::<pg_sys::CreateStmt>()).tableElts) };
    let source = |element: *mut pg_sys::Node| {
        // SAFETY: an element of a table is a node, a LIKE clause has this layout.
        unsafe {
            if parse::tag(element) != pg_sys::NodeTag::T_TableLikeClause {
                return None;
            }
            let like = element.cast::<pg_sys::TableLikeClause>();
            let identity = pg_sys::TableLikeOption::CREATE_TABLE_LIKE_IDENTITY;
            let copied = (*like).options & identity != 0;
            copied.then(|| super::look_up((*like).relation)).filter(|o| *o != pg_sys::InvalidOid)
        }
    };
    elements.into_iter().filter_map(source).collect()
}

/// After that CREATE TABLE: the server has copied this node's share of the values, not what their
/// user said.
///
/// # Safety
/// `stmt` is a CREATE TABLE that has just run, unless there are no sources.
pub(crate) unsafe fn like_identity(sources: &[pg_sys::Oid], stmt: *const pg_sys::Node) {
    if sources.is_empty() {
        return;
    }
    // SAFETY: as the caller promises.
    let table = unsafe { super::look_up((*stmt.cast::<pg_sys::CreateStmt>()).relation) };
    let _superuser = Superuser::begin();
    for source in sources {
        for (from, to) in identities(*source, table) {
            let Some(record) = recorded(from) else {
                continue;
            };
            let first = Position { last: record.user.start, called: false };
            super::alter(to, &record.user, Some(first));
        }
    }
}

/// Sequences of identity columns of the same name.
fn identities(source: pg_sys::Oid, table: pg_sys::Oid) -> Vec<(pg_sys::Oid, pg_sys::Oid)> {
    let query = "SELECT f.attnum, t.attnum FROM pg_catalog.pg_attribute f \
                 JOIN pg_catalog.pg_attribute t USING (attname) \
                 WHERE f.attrelid = $1 AND t.attrelid = $2 AND f.attidentity <> '' \
                 AND t.attidentity <> '' AND NOT f.attisdropped";
    let columns = Spi::connect_mut(|client| {
        let rows = client.update(query, None, &[source.into(), table.into()])?;
        rows.map(|row| Ok((row.get::<i16>(1)?, row.get::<i16>(2)?)))
            .collect::<Result<Vec<_>, pgrx::spi::Error>>()
    });
    let columns = columns.unwrap_or_else(|e| ereport_spi(&e));
    columns
        .into_iter()
        .filter_map(|(from, to)| {
            let (from, to) = (from?, to?);
            // SAFETY: both columns are identity columns.
            let pair = unsafe {
                (
                    pg_sys::getIdentitySequence(source, from, true),
                    pg_sys::getIdentitySequence(table, to, true),
                )
            };
            (pair.0 != pg_sys::InvalidOid && pair.1 != pg_sys::InvalidOid).then_some(pair)
        })
        .collect()
}

/// Refuses a call of `setval()` that no planner has seen.
pub(crate) fn refuse_native_setval() -> ! {
    ereport!(
        ERROR,
        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        "setval() cannot be replicated from here",
        "Call it in a SELECT."
    );
}
