//! Heartbeats: that a node is alive and whom it hears, and when a peer counts as disconnected.
//!
//! ```text
//! Heartbeat  u64 generation | u64 connected | u64 clock
//! ```

use mtm_core::wire::{DecodeError, DecodeErrorKind, Reader, Writer};
use mtm_core::{GenNum, Instant, MAX_NODES, NodeId, NodeSet};

/// A sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Heartbeat {
    /// The sender's current generation.
    pub generation: GenNum,
    /// Whom the sender hears.
    pub connected: NodeSet,
    /// The sender's clock; only the sender can read anything from it, when it is echoed.
    pub clock: Instant,
}

impl Heartbeat {
    /// Appends the wire form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer::new(out);
        w.u64(self.generation.0);
        w.u64(self.connected.bits());
        w.u64(self.clock.0);
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// When bytes are missing or too many, or a bit stands for no node.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let generation = GenNum(r.u64()?);
        let no_node = r.error(DecodeErrorKind::Range("node set"));
        let connected = NodeSet::from_bits(r.u64()?).ok_or(no_node)?;
        let clock = Instant(r.u64()?);
        r.finish()?;
        Ok(Self { generation, connected, clock })
    }
}

/// Knows since when each peer has been silent.
///
/// A peer is connected while less than the receive timeout has passed since it was last heard
/// and its connection has not closed since. A peer that was never heard is disconnected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeartbeatMonitor {
    peers: NodeSet,
    heard: [Option<Instant>; MAX_NODES as usize],
}

impl HeartbeatMonitor {
    /// Watches these peers; none has been heard yet.
    pub const fn new(peers: NodeSet) -> Self {
        Self { peers, heard: [None; MAX_NODES as usize] }
    }

    /// Whom it watches.
    pub const fn peers(&self) -> NodeSet {
        self.peers
    }

    /// Watches these peers from now on. Those it already watched stay as they are.
    pub fn set_peers(&mut self, peers: NodeSet) {
        for gone in self.peers.difference(peers) {
            self.heard[gone.index()] = None;
        }
        self.peers = peers;
    }

    /// A heartbeat (or anything else) of this node has arrived. Others than peers are ignored.
    pub fn heard(&mut self, now: Instant, node: NodeId) {
        if self.peers.contains(node) {
            let heard = &mut self.heard[node.index()];
            *heard = (*heard).max(Some(now));
        }
    }

    /// The connection from this node has closed: it is disconnected until it is heard later.
    pub fn closed(&mut self, now: Instant, node: NodeId) {
        let heard = &mut self.heard[node.index()];
        // A straggler may report the end of an old connection after the new one was heard.
        if heard.is_some_and(|at| at <= now) {
            *heard = None;
        }
    }

    /// When this node was last heard on a connection that is still open.
    pub const fn last_heard(&self, node: NodeId) -> Option<Instant> {
        self.heard[node.index()]
    }

    /// Peers that have not been heard for `recv_timeout_us` or longer.
    pub fn disconnected(&self, now: Instant, recv_timeout_us: u64) -> NodeSet {
        let silent = |node: &NodeId| {
            self.last_heard(*node).is_none_or(|at| now.since(at) >= recv_timeout_us)
        };
        self.peers.iter().filter(silent).collect()
    }

    /// Peers that are not disconnected.
    pub fn connected(&self, now: Instant, recv_timeout_us: u64) -> NodeSet {
        self.peers.difference(self.disconnected(now, recv_timeout_us))
    }

    /// When the next peer that is connected now will be disconnected if it stays silent.
    pub fn deadline(&self, now: Instant, recv_timeout_us: u64) -> Option<Instant> {
        let connected = self.connected(now, recv_timeout_us);
        let silent_at = |node| Some(self.last_heard(node)?.plus_us(recv_timeout_us));
        connected.iter().filter_map(silent_at).min()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(n: u8) -> NodeId {
        NodeId::new(n).unwrap()
    }

    const TIMEOUT: u64 = 2_000;

    #[test]
    fn a_peer_is_disconnected_exactly_when_the_timeout_has_passed() {
        let mut monitor = HeartbeatMonitor::new(NodeSet::first(3).without(node(1)));
        let (two, three) = (NodeSet::only(node(2)), NodeSet::only(node(3)));
        assert_eq!(monitor.disconnected(Instant(0), TIMEOUT), two.union(three));
        assert_eq!(monitor.deadline(Instant(0), TIMEOUT), None);
        monitor.heard(Instant(100), node(2));
        monitor.heard(Instant(500), node(3));
        assert_eq!(monitor.disconnected(Instant(500), TIMEOUT), NodeSet::EMPTY);
        assert_eq!(monitor.deadline(Instant(500), TIMEOUT), Some(Instant(2_100)));
        assert_eq!(monitor.disconnected(Instant(2_099), TIMEOUT), NodeSet::EMPTY);
        assert_eq!(monitor.disconnected(Instant(2_100), TIMEOUT), two);
        assert_eq!(monitor.deadline(Instant(2_100), TIMEOUT), Some(Instant(2_500)));
    }

    #[test]
    fn a_closed_connection_disconnects_at_once_until_the_peer_is_heard_again() {
        let mut monitor = HeartbeatMonitor::new(NodeSet::first(2));
        monitor.heard(Instant(100), node(2));
        monitor.closed(Instant(150), node(2));
        assert!(monitor.disconnected(Instant(150), TIMEOUT).contains(node(2)));
        monitor.heard(Instant(200), node(2));
        // The end of the old connection, reported late.
        monitor.closed(Instant(150), node(2));
        assert!(!monitor.disconnected(Instant(200), TIMEOUT).contains(node(2)));
    }

    #[test]
    fn only_peers_are_watched() {
        let mut monitor = HeartbeatMonitor::new(NodeSet::only(node(2)));
        monitor.heard(Instant(1), node(3));
        assert_eq!(monitor.last_heard(node(3)), None);
        monitor.heard(Instant(1), node(2));
        monitor.set_peers(NodeSet::only(node(3)));
        monitor.set_peers(NodeSet::first(3));
        assert_eq!(monitor.connected(Instant(1), TIMEOUT), NodeSet::EMPTY);
    }

    proptest! {
        #[test]
        fn heartbeats_round_trip(generation: u64, connected in 0u64..1 << MAX_NODES, clock: u64) {
            let connected = NodeSet::from_bits(connected).unwrap();
            let heartbeat =
                Heartbeat { generation: GenNum(generation), connected, clock: Instant(clock) };
            let mut out = Vec::new();
            heartbeat.encode(&mut out);
            prop_assert_eq!(Heartbeat::decode(&out), Ok(heartbeat));
            for keep in 0..out.len() {
                prop_assert!(Heartbeat::decode(&out[..keep]).is_err());
            }
            out.push(0);
            prop_assert!(Heartbeat::decode(&out).is_err());
        }

        #[test]
        fn arbitrary_heartbeats_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..30)) {
            if let Ok(heartbeat) = Heartbeat::decode(&bytes) {
                let mut out = Vec::new();
                heartbeat.encode(&mut out);
                prop_assert_eq!(out, bytes);
            }
        }

        #[test]
        fn the_deadline_is_when_the_set_changes(
            heard in prop::collection::vec((0u64..5_000, 1u8..=4), 0..20),
            now in 0u64..9_000,
        ) {
            let mut monitor = HeartbeatMonitor::new(NodeSet::first(4));
            for (at, n) in heard {
                monitor.heard(Instant(at), node(n));
            }
            let before = monitor.disconnected(Instant(now), TIMEOUT);
            match monitor.deadline(Instant(now), TIMEOUT) {
                Some(at) => {
                    prop_assert!(at > Instant(now));
                    let just_before = Instant(at.0 - 1);
                    prop_assert_eq!(monitor.disconnected(just_before, TIMEOUT), before);
                    prop_assert_ne!(monitor.disconnected(at, TIMEOUT), before);
                }
                None => prop_assert_eq!(before, NodeSet::first(4)),
            }
        }
    }
}
