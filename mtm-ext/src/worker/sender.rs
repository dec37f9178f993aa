//! mtm-dmq-sender: one connection to each peer, all outgoing messages, heartbeats.

use crate::cluster;
use crate::guc;
use crate::pg::bgworker;
use crate::pg::conn::Conn;
use crate::pg::proc::{self, Interest};
use crate::pg::shmem;
use core::sync::atomic::Ordering;
use mtm_core::{Instant, NodeId};
use mtm_node::message::Message;
use std::collections::BTreeMap;

/// Pause between attempts to connect.
const RETRY_US: u64 = 200_000;
/// Messages taken from one ring before the others are looked at.
const BATCH: usize = 256;

#[derive(Default)]
struct Link {
    conn: Option<Conn>,
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
    loop {
        bgworker::handle_signals();
        for (node, link) in &mut links {
            serve(*node, link);
        }
        wait(&links);
    }
}

fn serve(node: NodeId, link: &mut Link) {
    if link.conn.is_none() {
        reconnect(node, link);
    }
    let result = match &mut link.conn {
        None => return,
        Some(conn) => pump(node, conn, &mut link.next_heartbeat).map(|sent| link.unsent = !sent),
    };
    if let Err(error) = result {
        pgrx::log!("multimaster: lost the connection to node {node}: {error}");
        down(node, link);
    }
}

fn down(node: NodeId, link: &mut Link) {
    link.conn = None;
    link.not_before = proc::now().plus_us(RETRY_US);
    let peer = shmem::peer(node);
    peer.link_up.store(0, Ordering::Release);
    peer.epoch.fetch_add(1, Ordering::AcqRel);
    super::inbox::wake_waiters();
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

fn connect(node: NodeId) -> Result<Conn, crate::pg::conn::ConnError> {
    let header = shmem::header();
    let timeout = match guc::CONNECT_TIMEOUT.get() {
        // One peer that does not answer must not keep messages from the others.
        0 => 2,
        s => s,
    };
    let name = [("application_name", "mtm_dmq"), ("fallback_application_name", "mtm_dmq")];
    let mut conn = Conn::connect(&shmem::conninfo(node), &name, timeout)?;
    conn.query(
        "SELECT pg_catalog.set_config(name, '0', false) FROM (VALUES ('statement_timeout'), \
         ('lock_timeout'), ('idle_in_transaction_session_timeout'), ('idle_session_timeout')) \
         AS t(name)",
        &[],
    )?;
    let me = header.me().map_or(0, NodeId::get);
    let cluster = header.cluster_id.load(Ordering::Relaxed);
    conn.start_copy(&format!("CALL mtm.dmq_receive({me}, '{cluster}')"))?;
    Ok(conn)
}

/// Moves messages from the ring to the connection; `true` when everything is sent.
fn pump(
    node: NodeId,
    conn: &mut Conn,
    next_heartbeat: &mut Instant,
) -> Result<bool, crate::pg::conn::ConnError> {
    conn.consume()?;
    let now = proc::now();
    if now >= *next_heartbeat {
        let interval = u64::from(guc::HEARTBEAT_SEND_TIMEOUT.get().unsigned_abs()) * 1000;
        *next_heartbeat = now.plus_us(interval);
        let mut bytes = Vec::new();
        heartbeat(node).encode(&mut bytes);
        conn.put_copy_data(&bytes)?;
    }
    let ring = shmem::ring(node);
    let mut message = Vec::new();
    for _ in 0..BATCH {
        match ring.pop(&mut message) {
            Ok(true) => conn.put_copy_data(&message)?,
            Ok(false) => break,
            Err(corrupt) => pgrx::error!("the ring to node {node} is corrupt: {corrupt}"),
        }
    }
    conn.flush()
}

fn heartbeat(to: NodeId) -> Message<'static> {
    let peer = shmem::peer(to);
    let recovered = shmem::header().recovered.load(Ordering::Acquire) != 0;
    let ready = recovered && peer.streaming.load(Ordering::Acquire) != 0;
    Message::Heartbeat { connected: cluster::connected(), ready }
}

/// Waits for work. Peers only ever close their end, which the next heartbeat finds at the latest.
fn wait(links: &BTreeMap<NodeId, Link>) {
    if links.keys().any(|node| !shmem::ring(*node).is_empty() && links[node].conn.is_some()) {
        return;
    }
    let now = proc::now();
    let due = |link: &Link| match &link.conn {
        Some(_) => link.next_heartbeat.since(now),
        None => link.not_before.since(now),
    };
    let timeout = links.values().map(due).min().unwrap_or(RETRY_US).max(1000);
    let stuck = links.values().find(|link| link.unsent).and_then(|link| link.conn.as_ref());
    let interest = stuck.map(|conn| Interest { fd: conn.fd(), read: false, write: true });
    proc::wait(interest, Some(timeout));
}
