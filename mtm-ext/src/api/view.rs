//! What users see: `mtm.status()`, `mtm.nodes()` and `mtm.transaction_table()`.

use crate::pg::shmem;
use crate::{cluster, machine};
use core::sync::atomic::Ordering;
use mtm_core::{NodeId, NodeSet};
use pgrx::prelude::*;

/// Nodes as SQL has them.
pub fn numbers(nodes: NodeSet) -> Vec<i32> {
    nodes.iter().map(|node| i32::from(node.get())).collect()
}

/// State of this node.
#[pg_extern]
#[allow(clippy::type_complexity, reason = "pgrx wants the columns spelled out")]
fn status() -> TableIterator<
    'static,
    (
        name!(my_node_id, Option<i32>),
        name!(status, String),
        name!(connected, Vec<i32>),
        name!(gen_num, Option<i64>),
        name!(gen_members, Vec<i32>),
        name!(gen_members_online, Vec<i32>),
        name!(gen_configured, Vec<i32>),
        name!(reason, String),
    ),
> {
    super::require_preload();
    let header = shmem::header();
    let me = header.me();
    let configured = header.configured_nodes();
    let connected = cluster::connected();
    let peers = me.map_or(NodeSet::EMPTY, |me| connected.without(me));
    let generation = machine::look(|node| {
        let membership = node.membership();
        (membership.current().generation, membership.members_online())
    });
    TableIterator::once((
        me.map(|node| i32::from(node.get())),
        cluster::status().to_string(),
        numbers(peers),
        generation.map(|(generation, _)| generation.num.0 as i64),
        numbers(generation.map_or(NodeSet::EMPTY, |(generation, _)| generation.members)),
        numbers(generation.map_or(NodeSet::EMPTY, |(_, online)| online)),
        numbers(configured),
        cluster::status_reason(),
    ))
}

/// How full the table of transactions is. Nothing while this node is in no cluster.
#[pg_extern]
#[allow(clippy::type_complexity, reason = "pgrx wants the columns spelled out")]
fn transaction_table()
-> TableIterator<'static, (name!(used, i32), name!(places, i32), name!(next_number, i64))> {
    super::require_preload();
    let look = machine::look(|node| {
        // Both fit: multimaster.max_transactions is an int.
        (node.len() as i32, node.capacity() as i32, node.next_number().0 as i64)
    });
    TableIterator::new(look)
}

/// All nodes of the cluster as this one sees them.
#[pg_extern]
#[allow(clippy::type_complexity, reason = "pgrx wants the columns spelled out")]
fn nodes() -> TableIterator<
    'static,
    (
        name!(id, i32),
        name!(conninfo, String),
        name!(is_self, bool),
        name!(enabled, bool),
        name!(connected, bool),
        name!(sender_pid, Option<i32>),
        name!(receiver_pid, Option<i32>),
        name!(n_workers, Option<i32>),
        name!(receiver_mode, Option<String>),
    ),
> {
    super::require_preload();
    let header = shmem::header();
    let me = header.me();
    let online = machine::look(|node| node.membership().members_online()).unwrap_or_default();
    let row = move |node: NodeId| {
        let is_self = Some(node) == me;
        let peer = shmem::peer(node);
        let of_peer = |n: i32| (!is_self && n != 0).then_some(n);
        let streaming = peer.streaming.load(Ordering::Acquire) != 0;
        let mode = match (streaming, peer.replaying.load(Ordering::Acquire) != 0) {
            (false, _) => "disabled",
            (true, true) => "recovery",
            (true, false) => "normal",
        };
        (
            i32::from(node.get()),
            shmem::conninfo(node),
            is_self,
            online.contains(node),
            is_self || cluster::is_linked(node),
            of_peer(peer.walsender_pid.load(Ordering::Acquire)),
            of_peer(peer.receiver_pid.load(Ordering::Acquire)),
            (!is_self).then(|| peer.n_workers.load(Ordering::Acquire)),
            (!is_self).then(|| mode.to_owned()),
        )
    };
    TableIterator::new(header.configured_nodes().iter().map(row).collect::<Vec<_>>())
}
