//! What this node knows of the cluster.

use crate::guc;
use crate::pg::{proc, shmem, xact};
use core::sync::atomic::Ordering;
use mtm_core::{NodeId, NodeSet};

/// Application name of sessions that are not supervised.
pub const ADMIN: &str = "mtm_admin";

/// Whether what this session writes is replicated.
pub fn replicates() -> bool {
    let header = shmem::header();
    header.configured.load(Ordering::Acquire) != 0
        && xact::is_ordinary_process()
        && xact::my_database() == header.database.load(Ordering::Relaxed)
        && xact::application_name() != ADMIN
}

/// Whether messages flow both ways between this node and `peer`, and it takes transactions.
pub fn is_connected(peer: NodeId) -> bool {
    let state = shmem::peer(peer);
    is_linked(peer) && state.ready.load(Ordering::Acquire) != 0
}

/// Whether messages flow both ways between this node and `peer`.
pub fn is_linked(peer: NodeId) -> bool {
    let state = shmem::peer(peer);
    let timeout_us = u64::from(guc::HEARTBEAT_RECV_TIMEOUT.get().unsigned_abs()) * 1000;
    let heard = state.last_heard_us.load(Ordering::Acquire);
    state.link_up.load(Ordering::Acquire) != 0
        && state.inbox_pid.load(Ordering::Acquire) != 0
        && heard != 0
        && proc::now().0.saturating_sub(heard) <= timeout_us
}

/// Peers that [`is_connected`], and this node.
pub fn connected() -> NodeSet {
    let header = shmem::header();
    let peers = header.peers_set().iter().filter(|peer| is_connected(*peer)).collect::<NodeSet>();
    header.me().map_or(peers, |me| peers.with(me))
}

/// State of this node in words of the manual.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// All members are connected; writes are possible.
    Online,
    /// Some members are not connected; writes are not possible.
    Isolated,
    /// Not ready: what was unfinished before the start is not known yet, or no cluster.
    Disabled,
}

impl Status {
    /// The manual's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Isolated => "isolated",
            Self::Disabled => "disabled",
        }
    }
}

/// State of this node.
pub fn status() -> Status {
    let header = shmem::header();
    if header.me().is_none() || header.recovered.load(Ordering::Acquire) == 0 {
        Status::Disabled
    } else if header.configured_nodes().is_subset(connected()) {
        Status::Online
    } else {
        Status::Isolated
    }
}

/// Why the node is in this state and what would change it.
pub fn status_reason() -> String {
    let header = shmem::header();
    match status() {
        Status::Online => String::new(),
        Status::Disabled if header.me().is_none() => {
            "no cluster is configured; run mtm.init_cluster() on one node".to_owned()
        }
        Status::Disabled => "transactions from before the start are being collected".to_owned(),
        Status::Isolated => {
            let missing = header.configured_nodes().difference(connected());
            let each = missing.iter().map(why_not_connected).collect::<Vec<_>>();
            each.join("; ")
        }
    }
}

fn why_not_connected(peer: NodeId) -> String {
    let state = shmem::peer(peer);
    let heard = state.last_heard_us.load(Ordering::Acquire);
    let silent_ms = proc::now().0.saturating_sub(heard) / 1000;
    if state.link_up.load(Ordering::Acquire) == 0 {
        format!("no connection to node {peer}")
    } else if state.inbox_pid.load(Ordering::Acquire) == 0 || heard == 0 {
        format!("node {peer} has not connected to this node")
    } else if !is_linked(peer) {
        format!("nothing heard from node {peer} for {silent_ms} ms")
    } else {
        format!("node {peer} does not receive this node's changes yet")
    }
}
