//! SQL functions. Declared in `sql/multimaster--1.0.sql`.

mod init;
mod view;

use crate::pg::{pipe, shmem, sqlrun};
use crate::{config, worker};
use core::sync::atomic::Ordering;
use mtm_core::NodeId;
use pgrx::prelude::*;

/// Refuses CREATE EXTENSION where the library is not preloaded.
#[pg_extern]
fn require_preload() {
    if !shmem::is_there() {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "multimaster must be loaded via \"shared_preload_libraries\"",
            "Add multimaster to \"shared_preload_libraries\" (first, if there are others) and restart the server."
        );
    }
}

/// Turns the connection of a peer's sender into a message pipe.
#[pg_extern]
fn dmq_receive(from_node: i32, cluster_id: &str) {
    require_superuser();
    let header = shmem::header();
    let from = u8::try_from(from_node).ok().and_then(NodeId::new);
    let Some(from) = from.filter(|node| header.peers_set().contains(*node)) else {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("node {from_node} is not a peer of this node")
        );
        return;
    };
    if cluster_id.parse() != Ok(header.cluster_id.load(Ordering::Relaxed)) {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("node {from_node} belongs to another cluster")
        );
    }
    pipe::leave_snapshot();
    worker::accept_pipe(from);
}

fn require_superuser() {
    if !sqlrun::is_superuser() {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "must be superuser to connect nodes of a multimaster cluster"
        );
    }
}

/// Makes this node part of a cluster. For `mtm.init_cluster` only.
#[pg_extern]
fn configure_node(cluster_id: &str, node_id: i32, conninfos: Vec<String>) {
    require_superuser();
    let Some(me) = u8::try_from(node_id).ok().and_then(NodeId::new) else {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("node number {node_id} is out of range"),
            "Numbers are 1 to 16."
        );
        return;
    };
    let nodes = conninfos
        .into_iter()
        .enumerate()
        .filter_map(|(i, conninfo)| Some((NodeId::new(u8::try_from(i + 1).ok()?)?, conninfo)))
        .collect();
    let config = config::Config {
        cluster_id: cluster_id.parse().unwrap_or(0),
        me,
        database: crate::pg::xact::my_database(),
        nodes,
    };
    if let Err(error) = config.save() {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_IO_ERROR,
            format!("could not write the cluster's configuration: {error}")
        );
    }
    config.publish();
    crate::pg::proc::wake(shmem::header().monitor.load(Ordering::Acquire));
}
