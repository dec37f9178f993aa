//! Sending messages to peers through shared memory.

use crate::pg::{proc, shmem};
use core::sync::atomic::Ordering;
use mtm_core::{NodeId, NodeSet};
use mtm_node::message::Message;

/// Hands a message to the sender. It travels at most once: while the link is down, or its ring is
/// full, it is dropped, and whoever waits for an answer asks again.
pub fn send(to: NodeId, message: &Message<'_>) {
    send_all(NodeSet::only(to), message);
}

/// Hands a message for each of `nodes` to the sender.
pub fn send_all(nodes: NodeSet, message: &Message<'_>) {
    if nodes.is_empty() {
        return;
    }
    let mut bytes = Vec::with_capacity(64);
    message.encode(&mut bytes);
    let mut woken = false;
    for node in nodes {
        if crate::worker::reply(node, &bytes) {
            continue;
        }
        woken = true;
        if shmem::peer(node).link_up.load(Ordering::Acquire) != 0 {
            // A full ring means a peer that does not read; it will be found disconnected.
            let _ = shmem::produce(node, |ring| ring.push(&bytes));
        }
    }
    if woken {
        proc::wake(shmem::header().sender.load(Ordering::Acquire));
    }
}
