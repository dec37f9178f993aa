//! mtm-dmq-sender: one connection to each peer, all outgoing messages.
//!
//! It waits for all peers at once, also while it connects: what one of them, or the network to it,
//! swallows must not keep the others from hearing this node.

use super::inbox;
use super::wire::{Incoming, Outgoing};
use crate::guc;
use crate::pg::bgworker;
use crate::pg::conn::{Conn, ConnError, CopyIn};
use crate::pg::opening::{Opening, Progress};
use crate::pg::proc;
use crate::pg::waitset::{WaitSet, Watch};
use crate::pg::{shmem, wal};
use core::sync::atomic::Ordering;
use mtm_core::{Instant, NodeId};
use mtm_node::wire::Wire;
use std::collections::BTreeMap;

/// Pause between attempts to connect.
const RETRY_US: u64 = 200_000;
/// How long an attempt may take when nothing is set, in seconds.
const CONNECT_S: u32 = 2;
/// Bytes taken from one ring before the others are looked at.
const BATCH_BYTES: usize = 32 * 1024;

/// What there is of a connection.
enum State {
    Down {
        /// When the next attempt begins.
        until: Instant,
    },
    Opening(Opening),
    Up(Conn),
}

impl Default for State {
    fn default() -> Self {
        Self::Down { until: Instant(0) }
    }
}

#[derive(Default)]
struct Link {
    state: State,
    outgoing: Outgoing,
    incoming: Incoming,
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
        is_down(*node);
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
    if let Err(error) = connect(node, link) {
        pause(link);
        if !core::mem::replace(&mut link.complained, true) {
            pgrx::log!("multimaster: could not connect to node {node}: {error}");
        }
    }
    if let Err(error) = pump(node, link, set) {
        pgrx::log!("multimaster: lost the connection to node {node}: {error}");
        pause(link);
        is_down(node);
        proc::wake(shmem::header().campaigner.load(Ordering::Acquire));
    }
}

/// Ends what there is of a connection, until the next attempt.
fn pause(link: &mut Link) {
    link.state = State::Down { until: proc::now().plus_us(RETRY_US) };
}

/// Does what can be done for a connection at this moment.
fn connect(node: NodeId, link: &mut Link) -> Result<(), ConnError> {
    if let State::Down { until } = link.state
        && until <= proc::now()
    {
        let timeout_s = guc::connect_timeout_s(CONNECT_S);
        link.state = State::Opening(open_pipe(node, timeout_s, "mtm.dmq_receive")?);
    }
    link.state = match core::mem::take(&mut link.state) {
        State::Opening(opening) => match opening.poll()? {
            Progress::Waits(opening) => State::Opening(opening),
            Progress::Open(conn) => {
                is_up(node, link);
                State::Up(conn)
            }
        },
        other => other,
    };
    Ok(())
}

fn is_down(node: NodeId) {
    let peer = shmem::peer(node);
    if peer.link_up.load(Ordering::Acquire) != 0 {
        peer.last_linked_us.store(proc::now().0, Ordering::Release);
        peer.link_up.store(0, Ordering::Release);
    }
}

fn is_up(node: NodeId, link: &mut Link) {
    // What is in the ring was meant for the broken link.
    let _ = shmem::produce(node, |ring| ring.discard());
    *link = Link::default();
    shmem::peer(node).link_up.store(1, Ordering::Release);
    pgrx::debug1!("multimaster: connected to node {node}");
}

/// Begins to connect to `node`, where the backend is to become a message pipe that `procedure`
/// serves.
///
/// # Errors
/// When it is known at once that there will be no connection.
pub fn open_pipe(node: NodeId, timeout_s: u32, procedure: &str) -> Result<Opening, ConnError> {
    let header = shmem::header();
    let name = [("application_name", "mtm_dmq"), ("fallback_application_name", "mtm_dmq")];
    let no_timeouts = "SELECT pg_catalog.set_config(name, '0', false) FROM (VALUES \
         ('statement_timeout'), ('lock_timeout'), ('idle_in_transaction_session_timeout'), \
         ('idle_session_timeout')) AS t(name)";
    let me = header.me().map_or(0, NodeId::get);
    let cluster = header.cluster_id.load(Ordering::Relaxed);
    let call = format!("CALL {procedure}({me}, '{cluster}')");
    let deadline = proc::now().plus_us(u64::from(timeout_s) * 1_000_000);
    Opening::start(&shmem::conninfo(node), &name, deadline, no_timeouts, &call)
}

/// Reads the peer's answers and moves messages from the ring to the connection.
fn pump(node: NodeId, link: &mut Link, set: &WaitSet) -> Result<(), ConnError> {
    let State::Up(conn) = &mut link.state else { return Ok(()) };
    if set.may_read(conn) {
        conn.consume()?;
        loop {
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
        matches!(link.state, State::Up(_)) && !link.unsent && !shmem::ring(*node).is_empty()
    };
    if links.iter().any(ready) {
        return set.pass();
    }
    let now = proc::now();
    let due = |link: &Link| match &link.state {
        State::Down { until } => until.since(now),
        State::Opening(opening) => opening.deadline().since(now),
        State::Up(_) => link.next_heartbeat.since(now),
    };
    let timeout = links.values().map(due).min().unwrap_or(RETRY_US).max(1000);
    let watch = |link: &Link| match &link.state {
        State::Down { .. } => None,
        State::Opening(opening) => Some(opening.watch()),
        State::Up(conn) => Some(Watch::new(conn, true, link.unsent)),
    };
    let watches: Vec<Watch> = links.values().filter_map(watch).collect();
    set.wait(&watches, Some(timeout));
}
