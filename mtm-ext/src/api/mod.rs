//! SQL functions. Declared in `sql/multimaster--1.0.sql`.

pub mod history;
mod init;
mod node;
mod progress;
pub mod requirements;
mod sequences;
mod view;

use crate::pg::{ddl, pipe, shmem, sqlrun};
use crate::{report, worker};
use core::sync::atomic::Ordering;
use mtm_core::NodeId;
use pgrx::prelude::*;

/// Refuses CREATE EXTENSION, and every function, where the library is not preloaded.
#[pg_extern]
fn require_preload() {
    if !shmem::is_there() {
        report::error(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "multimaster must be loaded via \"shared_preload_libraries\"",
            "",
            "Add multimaster to \"shared_preload_libraries\" (first, if there are others) and \
             restart the server.",
        );
    }
}

fn require_superuser(to: &str) {
    if !sqlrun::is_superuser() {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("must be superuser to {to}")
        );
    }
}

/// Turns the connection of a peer's sender into a message pipe.
#[pg_extern]
fn dmq_receive(from_node: i32, cluster_id: &str) {
    let from = require_peer(from_node, cluster_id);
    pipe::outside_transaction(|| worker::accept_pipe(from));
}

/// Turns the connection of a peer's receiver into its line to this node.
#[pg_extern]
fn line_serve(from_node: i32, cluster_id: &str) {
    let from = require_peer(from_node, cluster_id);
    pipe::outside_transaction(|| worker::serve_line(from));
}

/// Refuses who is not a node of this cluster.
fn require_peer(node: i32, cluster_id: &str) -> NodeId {
    require_preload();
    require_superuser("connect nodes of a multimaster cluster");
    let header = shmem::header();
    let from = u8::try_from(node).ok().and_then(NodeId::new);
    let Some(from) = from.filter(|node| header.peers_set().contains(*node)) else {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("node {node} is not a peer of this node")
        );
    };
    if cluster_id.parse() != Ok(header.cluster_id.load(Ordering::Relaxed)) {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("node {node} belongs to another cluster")
        );
    }
    from
}

/// Keeps the rows of a table on each node from now on.
#[pg_extern]
fn make_table_local(relation: pg_sys::Oid) {
    require_preload();
    ddl::make_local(relation);
}

/// What old rows have in a new column. For statements from other nodes.
#[pg_extern]
fn set_missing_value(relation: pg_sys::Oid, name: &str, value: &str) {
    require_preload();
    require_superuser("set the values of a new column");
    ddl::set_missing_value(relation, name, value);
}
