//! `mtm.alter_sequences`: every node gets its share of every sequence, behind what any has used.

use super::{require_preload, require_superuser};
use crate::guc;
use crate::pg::conn::{Conn, ConnError};
use crate::pg::{sequences, shmem};
use crate::report;
use mtm_core::NodeId;
use pgrx::prelude::*;
use std::collections::BTreeMap;

const TO: &str = "share the values of sequences between nodes";

/// How far each sequence has been used on this node. Nobody takes values until the end of the
/// transaction. For `mtm.alter_sequences` only.
#[pg_extern]
fn sequence_floors() -> TableIterator<'static, (name!(name, String), name!(used, i64))> {
    require_preload();
    require_superuser(TO);
    TableIterator::new(sequences::floors())
}

/// Gives this node its share of every sequence; those named continue behind the farther of two
/// values, which is the greater one if they ascend. For `mtm.alter_sequences` only.
#[pg_extern]
fn adjust_sequences(names: Vec<String>, least: Vec<i64>, most: Vec<i64>) {
    require_preload();
    require_superuser(TO);
    let floors = names.into_iter().zip(least.into_iter().zip(most)).collect();
    sequences::continue_behind(&floors);
}

/// Gives every node its share of every sequence.
#[pg_extern]
fn alter_sequences() -> bool {
    require_preload();
    require_superuser(TO);
    if let Err((node, error)) = alter_all() {
        report::error(
            PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE,
            format!("could not adjust the sequences of node {node}: {error}"),
            "",
            "Run mtm.alter_sequences() again when all nodes are online.",
        );
    }
    true
}

type Failure = (NodeId, ConnError);

/// All sequences of all nodes stand still from the first to the last of these steps.
fn alter_all() -> Result<(), Failure> {
    let mut conns = Vec::new();
    // Everybody goes in the order of numbers, so that two of these do not wait for each other.
    for node in shmem::header().configured_nodes() {
        let name = [("application_name", crate::cluster::ADMIN)];
        let conn = Conn::connect(&shmem::conninfo(node), &name, guc::CONNECT_TIMEOUT.get().max(10));
        conns.push((node, conn.map_err(|error| (node, error))?));
    }
    let mut floors: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for (node, conn) in &mut conns {
        let at = |error| (*node, error);
        conn.query("SET client_min_messages = error; SET lock_timeout = '60s'", &[]).map_err(at)?;
        conn.query("BEGIN", &[]).map_err(at)?;
        let rows = conn.query("SELECT name, used FROM mtm.sequence_floors()", &[]).map_err(at)?;
        for row in rows {
            let mut columns = row.into_iter().flatten();
            let (Some(name), Some(used)) = (columns.next(), columns.next()) else {
                continue;
            };
            let Ok(used) = used.parse::<i64>() else {
                continue;
            };
            let floor = floors.entry(name).or_insert((used, used));
            *floor = (floor.0.min(used), floor.1.max(used));
        }
    }
    let names = array(floors.keys().map(|name| quoted(name)));
    let least = array(floors.values().map(|floor| floor.0.to_string()));
    let most = array(floors.values().map(|floor| floor.1.to_string()));
    for (node, conn) in &mut conns {
        let call = "SELECT mtm.adjust_sequences($1, $2, $3)";
        conn.query(call, &[&names, &least, &most]).map_err(|error| (*node, error))?;
    }
    for (node, conn) in &mut conns {
        conn.query("COMMIT", &[]).map_err(|error| (*node, error))?;
    }
    Ok(())
}

/// The text of an array.
fn array(elements: impl Iterator<Item = String>) -> String {
    format!("{{{}}}", elements.collect::<Vec<_>>().join(","))
}

/// An element of an array.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
