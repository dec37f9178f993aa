//! The steps of `mtm.init_cluster` on each node.

use super::{require_preload, require_superuser};
use crate::health::{self, Cause};
use crate::pg::{ddl, proc, sequences, shmem};
use crate::report;
use crate::{cluster, config};
use core::sync::atomic::Ordering;
use mtm_core::NodeId;
use mtm_core::sequence::Share;
use mtm_generations::{NodeStatus, Record};
use pgrx::prelude::*;
use std::io;

const TO: &str = "make a node part of a multimaster cluster";

/// Gives the node its share of every sequence and every table an identity of rows, and writes the
/// configuration without using it yet. Returns the tables that have no primary key.
#[pg_extern]
fn prepare_node(cluster_id: &str, node_id: i32, conninfos: Vec<String>) -> Vec<String> {
    require_preload();
    require_superuser(TO);
    let numbered = conninfos.into_iter().enumerate();
    let nodes: Vec<_> = numbered
        .filter_map(|(i, conninfo)| Some((NodeId::new(u8::try_from(i + 1).ok()?)?, conninfo)))
        .collect();
    let me = u8::try_from(node_id).ok().and_then(NodeId::new);
    let stride = u8::try_from(nodes.len()).unwrap_or(u8::MAX);
    let Some((me, share)) = me.and_then(|me| Some((me, Share::new(me, stride)?))) else {
        report::error(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("node number {node_id} is out of range"),
            "",
            &format!("Numbers are 1 to {}, the number of nodes.", nodes.len()),
        );
    };
    let Ok(cluster_id) = cluster_id.parse() else {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("\"{cluster_id}\" is not the number of a cluster")
        );
    };
    refuse_member();
    sequences::adjust_all(Some(share));
    let without_key = ddl::identify_all_rows();
    let database = crate::pg::xact::my_database();
    let config = config::Config { cluster_id, me, database, nodes };
    check_io(config.save_pending());
    without_key
}

fn refuse_member() {
    if config::exists() {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "the node belongs to a cluster already"
        );
    }
}

/// Lets the node take part in the cluster it was prepared for.
#[pg_extern]
fn activate_node() {
    require_preload();
    require_superuser(TO);
    refuse_member();
    let Some(config) = check_io(config::pending()) else {
        report::error(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "this node was not prepared for a cluster".to_owned(),
            "",
            "Run mtm.init_cluster() on one node.",
        );
    };
    let nodes = config.nodes.iter().map(|(node, _)| *node).collect();
    crate::durable::begin(&Record::initial(config.me, config.cluster_id, nodes));
    check_io(config::activate());
    wake_monitor();
}

/// Takes this node out of a cluster that could not be completed.
#[pg_extern]
fn unconfigure_node() {
    require_preload();
    require_superuser("take a node out of a multimaster cluster");
    if cluster::status() == NodeStatus::Online {
        report::error(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "this node works in a complete cluster",
            "",
            "Use mtm.drop_node() on another node to take it out.",
        );
    }
    check_io(config::remove());
    crate::durable::remove();
    sequences::restore_all();
    wake_monitor();
}

/// Lets a node come back whose data differed and were repaired.
#[pg_extern]
fn return_to_cluster() {
    require_preload();
    require_superuser("let a node come back to its cluster");
    if health::standing(Cause::LogLost).is_some() {
        report::error(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "this node lacks transactions that no other node has in its log any more".to_owned(),
            "",
            "Make it anew from another node; see \"The way back\" in the manual.",
        );
    }
    crate::durable::return_to_cluster();
    health::clear(Cause::Differs);
}

fn wake_monitor() {
    proc::wake(shmem::header().monitor.load(Ordering::Acquire));
}

fn check_io<T>(result: io::Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => {
            ereport!(
                ERROR,
                PgSqlErrorCode::ERRCODE_IO_ERROR,
                format!("could not write the cluster's configuration: {error}")
            );
        }
    }
}
