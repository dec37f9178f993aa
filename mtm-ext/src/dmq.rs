//! Sending messages to peers through shared memory.

use crate::pg::bgworker::Caught;
use crate::pg::{proc, shmem};
use core::cell::RefCell;
use core::sync::atomic::Ordering;
use mtm_core::{Gid, NodeId, NodeSet};
use mtm_node::PeerMessage;
use mtm_node::message::Refusal;
use mtm_node::wire::Wire;

thread_local! {
    /// Why this process refuses a transaction: travels with the vote "no".
    static WHY: RefCell<Option<(Gid, Caught)>> = const { RefCell::new(None) };
}

/// What the next vote "no" of this process about this transaction says.
pub fn give_reason(gid: Gid, caught: Caught) {
    WHY.set(Some((gid, caught)));
}

/// Hands a message of the machine to the sender.
pub fn send_peer(nodes: NodeSet, message: &PeerMessage) {
    if let PeerMessage::Refused(gid) = message
        && let Some((_, why)) = WHY.take().filter(|(refused, _)| refused == gid)
    {
        let (message, detail) = (why.message.as_str(), why.detail.as_str());
        let refusal = Refusal { sqlstate: why.sqlstate, message, detail };
        return send_wire(nodes, &Wire::Refused(*gid, refusal));
    }
    let bytes = encoded(&Wire::Peer(*message));
    let by_line = |node: &NodeId| crate::worker::offer(*node, message, &bytes);
    let others = nodes.iter().filter(|node| !by_line(node)).collect();
    send_bytes(others, &bytes);
}

/// Hands a message to the sender. It travels at most once: while the link is down, or its ring is
/// full, it is dropped, and whoever waits for an answer asks again.
pub fn send_wire(nodes: NodeSet, message: &Wire<'_>) {
    send_bytes(nodes, &encoded(message));
}

fn encoded(message: &Wire<'_>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    message.encode(&mut bytes);
    bytes
}

fn send_bytes(nodes: NodeSet, bytes: &[u8]) {
    let mut woken = false;
    for node in nodes {
        if crate::worker::reply(node, bytes) {
            continue;
        }
        woken = true;
        if shmem::peer(node).link_up.load(Ordering::Acquire) != 0 {
            // A full ring means a peer that does not read; it will be found disconnected.
            let _ = shmem::produce(node, |ring| ring.push(bytes));
        }
    }
    if woken {
        proc::wake(shmem::header().sender.load(Ordering::Acquire));
    }
}
