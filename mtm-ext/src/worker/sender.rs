//! mtm-dmq-sender: one connection to each peer, all outgoing messages.

use super::inbox;
use super::wire::{Incoming, Outgoing};
use crate::guc;
use crate::pg::bgworker;
use crate::pg::conn::{Conn, ConnError, CopyIn};
use crate::pg::proc;
use crate::pg::waitset::{WaitSet, Watch};
use crate::pg::{shmem, wal};
use core::sync::atomic::Ordering;
use mtm_core::{Instant, NodeId};
use mtm_node::wire::Wire;
use std::collections::BTreeMap;

/// Pause between attempts to connect.
const RETRY_US: u64 = 200_000;
/// Bytes taken from one ring before the others are looked at.
const BATCH_BYTES: usize = 32 * 1024;

#[derive(Default)]
struct Link {
    conn: Option<Conn>,
    outgoing: Outgoing,
    incoming: Incoming,
    not_before: Instant,
    next_heartbeat: Instant,
    unsent: bool,
    complained: bool,
}

/// Runs until the server stops.
pub fn run() {
    let header = shmem::header();
    bgworker::connect_to_database(header.database.load(Ordering::Relaxed));
    header.sender.store(proc::my_procno(), Ordering::Release);
    let mut links: BTreeMap<NodeId, Link> =
        header.peers_set().iter().map(|node| (node, Link::default())).collect();
    for node in links.keys() {
        shmem::peer(*node).link_up.store(0, Ordering::Release);
    }
    let mut set = WaitSet::default();
    loop {
        bgworker::handle_signals();
        for (node, link) in &mut links {
            serve(*node, link, &set);
        }
        wait(&mut set, &links);
    }
}

fn serve(node: NodeId, link: &mut Link, set: &WaitSet) {
    if link.conn.is_none() {
        reconnect(node, link);
    }
    if let Err(error) = pump(node, link, set) {
        pgrx::log!("multimaster: lost the connection to node {node}: {error}");
        down(node, link);
    }
}

fn down(node: NodeId, link: &mut Link) {
    link.conn = None;
    link.not_before = proc::now().plus_us(RETRY_US);
    let peer = shmem::peer(node);
    peer.link_up.store(0, Ordering::Release);
    proc::wake(shmem::header().campaigner.load(Ordering::Acquire));
}

fn reconnect(node: NodeId, link: &mut Link) {
    if proc::now() < link.not_before {
        return;
    }
    match connect(node) {
        Ok(conn) => {
            // What is in the ring was meant for the broken link.
            let _ = shmem::produce(node, |ring| ring.discard());
            link.conn = Some(conn);
            link.outgoing = Outgoing::default();
            link.incoming = Incoming::default();
            link.next_heartbeat = Instant(0);
            link.complained = false;
            shmem::peer(node).link_up.store(1, Ordering::Release);
            pgrx::debug1!("multimaster: connected to node {node}");
        }
        Err(error) => {
            link.not_before = proc::now().plus_us(RETRY_US);
            if !core::mem::replace(&mut link.complained, true) {
                pgrx::log!("multimaster: could not connect to node {node}: {error}");
            }
        }
    }
}

fn connect(node: NodeId) -> Result<Conn, ConnError> {
    let timeout = match guc::CONNECT_TIMEOUT.get() {
        // One peer that does not answer must not keep messages from the others.
        0 => 2,
        s => s,
    };
    connect_pipe(node, timeout, "mtm.dmq_receive")
}

/// Connects to `node` and turns the backend there into a message pipe that `procedure` serves.
///
/// # Errors
/// When there is no connection within `timeout_s` seconds, or the other node refuses.
pub fn connect_pipe(node: NodeId, timeout_s: i32, procedure: &str) -> Result<Conn, ConnError> {
    let header = shmem::header();
    let name = [("application_name", "mtm_dmq"), ("fallback_application_name", "mtm_dmq")];
    let mut conn = Conn::connect(&shmem::conninfo(node), &name, timeout_s)?;
    conn.query(
        "SELECT pg_catalog.set_config(name, '0', false) FROM (VALUES ('statement_timeout'), \
         ('lock_timeout'), ('idle_in_transaction_session_timeout'), ('idle_session_timeout')) \
         AS t(name)",
        &[],
    )?;
    let me = header.me().map_or(0, NodeId::get);
    let cluster = header.cluster_id.load(Ordering::Relaxed);
    conn.start_copy(&format!("CALL {procedure}({me}, '{cluster}')"))?;
    Ok(conn)
}

/// Reads the peer's answers and moves messages from the ring to the connection.
fn pump(node: NodeId, link: &mut Link, set: &WaitSet) -> Result<(), ConnError> {
    let Some(conn) = &mut link.conn else { return Ok(()) };
    let reads = set.may_read(conn);
    if reads {
        conn.consume()?;
    }
    while reads {
        match conn.copy_data()? {
            CopyIn::Data(bytes) => {
                inbox::heard(node);
                link.incoming.feed(&bytes);
            }
            CopyIn::WouldBlock => break,
            CopyIn::End => {
                return Err(ConnError::Connection("the peer ended the connection".to_owned()));
            }
        }
        inbox::take_all(node, &mut link.incoming)
            .map_err(|error| ConnError::Connection(format!("malformed answer: {error}")))?;
    }
    let now = proc::now();
    let mut message = Vec::new();
    if now >= link.next_heartbeat {
        // From here, where no disk is waited for: a slow one must not look like a dead node.
        let interval = u64::from(guc::HEARTBEAT_SEND_TIMEOUT.get().unsigned_abs()) * 1000;
        link.next_heartbeat = now.plus_us(interval);
        Wire::Alive(wal::flushed(), now).encode(&mut message);
        link.outgoing.push(&message);
    }
    let ring = shmem::ring(node);
    // What the connection does not take stays in the ring, which is bounded.
    while !link.unsent && link.outgoing.len() < BATCH_BYTES {
        match ring.pop(&mut message) {
            Ok(true) => link.outgoing.push(&message),
            Ok(false) => break,
            Err(corrupt) => pgrx::error!("the ring to node {node} is corrupt: {corrupt}"),
        }
    }
    link.outgoing.drain(|bytes| conn.put_copy_data(bytes)).transpose()?;
    link.unsent = !conn.flush()?;
    Ok(())
}

/// Waits for work: messages to be sent, answers, the next heartbeat.
fn wait(set: &mut WaitSet, links: &BTreeMap<NodeId, Link>) {
    let ready = |(node, link): (&NodeId, &Link)| {
        link.conn.is_some() && !link.unsent && !shmem::ring(*node).is_empty()
    };
    if links.iter().any(ready) {
        return set.pass();
    }
    let now = proc::now();
    let due = |link: &Link| match &link.conn {
        Some(_) => link.next_heartbeat.since(now),
        None => link.not_before.since(now),
    };
    let timeout = links.values().map(due).min().unwrap_or(RETRY_US).max(1000);
    let watches: Vec<Watch> = links
        .values()
        .filter_map(|link| link.conn.as_ref().map(|conn| Watch::new(conn, true, link.unsent)))
        .collect();
    set.wait(&watches, Some(timeout));
}
