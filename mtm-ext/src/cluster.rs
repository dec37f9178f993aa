//! What this node knows of the cluster.

use crate::pg::{proc, shmem, xact};
use crate::{guc, health, machine};
use core::sync::atomic::Ordering;
use mtm_core::{NodeId, NodeSet};
use mtm_generations::{NodeStatus, Reason};
use mtm_node::Node;

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

/// Time without a sign of life after which a peer counts as disconnected, in microseconds.
pub fn recv_timeout_us() -> u64 {
    u64::from(guc::HEARTBEAT_RECV_TIMEOUT.get().unsigned_abs()) * 1000
}

/// Until when a peer counts as heard if nothing more comes; `None` if it is not heard.
///
/// Heard is who said something lately, over whichever connection, whose changes we receive and who
/// lets us connect: who cannot be received from or told anything would keep every commit waiting.
/// When both connections are closed, nothing is waited for.
pub fn heard_until(peer: NodeId) -> Option<mtm_core::Instant> {
    let state = shmem::peer(peer);
    let heard = state.last_heard_us.load(Ordering::Acquire);
    let streamed = if state.streaming.load(Ordering::Acquire) != 0 {
        heard
    } else {
        state.last_streamed_us.load(Ordering::Acquire)
    };
    let linked = if state.link_up.load(Ordering::Acquire) != 0 {
        heard
    } else {
        state.last_linked_us.load(Ordering::Acquire)
    };
    let last = heard.min(streamed).min(linked);
    let until = mtm_core::Instant(last).plus_us(recv_timeout_us());
    (is_open(peer) && last != 0 && proc::now() <= until).then_some(until)
}

/// Whether any connection with `peer` is open, in either direction.
pub fn is_open(peer: NodeId) -> bool {
    let state = shmem::peer(peer);
    state.link_up.load(Ordering::Acquire) != 0 || state.inbox_pid.load(Ordering::Acquire) != 0
}

/// Whether messages flow both ways between this node and `peer`.
pub fn is_linked(peer: NodeId) -> bool {
    let state = shmem::peer(peer);
    let heard = state.last_heard_us.load(Ordering::Acquire);
    state.link_up.load(Ordering::Acquire) != 0
        && state.inbox_pid.load(Ordering::Acquire) != 0
        && heard != 0
        && proc::now().0.saturating_sub(heard) <= recv_timeout_us()
}

/// Peers that are heard, and this node.
pub fn connected() -> NodeSet {
    let header = shmem::header();
    let heard = |peer: &NodeId| heard_until(*peer).is_some();
    let peers = header.peers_set().iter().filter(heard).collect::<NodeSet>();
    header.me().map_or(peers, |me| peers.with(me))
}

/// A node's status, why, and whether it is about to change by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct State {
    /// State of this node in words of the manual.
    pub status: NodeStatus,
    /// Why.
    pub reason: Reason,
    /// ONLINE in its generation: it announces and answers.
    pub serves: bool,
    /// Members of the current generation that are in no clique with this node.
    pub missing: NodeSet,
    /// The node moves between two generations, or waits for one: that takes a moment.
    pub moving: bool,
}

/// Members of the current generation that are in no clique with this node.
pub fn missing(node: &Node<'_>) -> NodeSet {
    let membership = node.membership();
    membership.current().generation.members.difference(membership.clique())
}

/// Whether transactions may be announced, as far as it is known without asking the machine.
pub fn may_announce(node: &Node<'_>) -> bool {
    node.serves() && missing(node).is_empty()
}

/// State of this node; `None` while there is no cluster or its unfinished work is not known.
pub fn state() -> Option<State> {
    machine::look(|node| {
        let membership = node.membership();
        let (status, reason) = membership.status();
        let current = membership.current().generation;
        let clique = membership.clique();
        let majority =
            clique.contains(membership.node()) && current.configured.has_majority(clique);
        let member = current.members.contains(membership.node());
        State {
            status,
            reason,
            serves: node.serves(),
            missing: missing(node),
            moving: majority && member && !membership.is_fenced(),
        }
    })
}

/// State of this node in words of the manual.
pub fn status() -> NodeStatus {
    state().map_or(NodeStatus::Disabled, |state| state.status)
}

/// Why the node is in this state and what would change it.
pub fn status_reason() -> String {
    match state() {
        None if shmem::header().me().is_none() => {
            "no cluster is configured; run mtm.init_cluster() on one node".to_owned()
        }
        None => "transactions from before the start are being collected".to_owned(),
        Some(state) if state.reason == Reason::Healthy => String::new(),
        Some(state) => {
            let header = shmem::header();
            let absent = header.configured_nodes().difference(connected());
            let mut text = state.reason.to_string();
            if state.reason == Reason::Withdrawn {
                text = format!("{text}: {}", health::text());
            }
            for why in absent.iter().map(why_not_connected) {
                text.push_str("; ");
                text.push_str(&why);
            }
            text
        }
    }
}

/// What is in the way between this node and `peer`, in words.
pub fn why_not_connected(peer: NodeId) -> String {
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
        format!("changes of node {peer} are not received")
    }
}

/// How often to look again while waiting for a moment's change, in microseconds.
const LOOK_US: u64 = 20_000;

/// How long a session waits for a new generation, in microseconds: until silent members are
/// noticed and left out.
pub fn patience_us() -> u64 {
    recv_timeout_us() + 1_500_000
}

/// Waits while the node moves between generations. `Err` with the state when it does not serve.
///
/// # Errors
/// With the node's state: it is not ONLINE and will not be in a moment.
pub fn await_online() -> Result<State, Option<State>> {
    let start = proc::now();
    let mut waited = false;
    let result = loop {
        let Some(state) = state() else { break Err(None) };
        if state.serves && state.missing.is_empty() {
            break Ok(state);
        }
        if !state.moving || proc::now().since(start) > patience_us() {
            break Err(Some(state));
        }
        if !waited {
            waited = true;
            shmem::node(|node| node.mine().waits = true);
        }
        proc::wait(None, Some(LOOK_US));
        if proc::interrupted() {
            shmem::node(|node| node.mine().waits = false);
            proc::check_interrupts();
        }
    };
    if waited {
        shmem::node(|node| node.mine().waits = false);
    }
    result
}
