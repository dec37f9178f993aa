//! What a link is told when it is made.

use mtm_core::NodeId;

/// What a link knows and its limits. Times of 0 mean "no limit" unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinkConfig {
    /// The cluster.
    pub cluster: u64,
    /// This node.
    pub from: NodeId,
    /// The peer.
    pub to: NodeId,
    /// Start of this server: unique, and higher for every later start.
    pub incarnation: u64,
    /// Seed of the jitter.
    pub seed: u64,
    /// Heartbeat interval.
    pub send_interval_us: u64,
    /// How long the peer may be silent; it echoes heartbeats, so not less than some of their
    /// intervals.
    pub recv_timeout_us: u64,
    /// How long connecting may take.
    pub connect_timeout_us: u64,
    /// How long the peer may take to accept.
    pub handshake_timeout_us: u64,
    /// Shortest delay before connecting again.
    pub backoff_min_us: u64,
    /// Longest delay before connecting again.
    pub backoff_max_us: u64,
    /// How many bytes of messages, framed, may wait.
    pub queue_bytes: usize,
    /// [`Link::poll_transmit`](super::Link::poll_transmit) adds no message when it has already given so many bytes.
    pub transmit_bytes: usize,
}

impl LinkConfig {
    /// A configuration with the usual times: heartbeats every 200 ms, two seconds of silence,
    /// delays of 50 ms to 2 s, and a queue of 4 MiB.
    pub const fn new(cluster: u64, from: NodeId, to: NodeId, incarnation: u64, seed: u64) -> Self {
        Self {
            cluster,
            from,
            to,
            incarnation,
            seed,
            send_interval_us: 200_000,
            recv_timeout_us: 2_000_000,
            connect_timeout_us: 10_000_000,
            handshake_timeout_us: 10_000_000,
            backoff_min_us: 50_000,
            backoff_max_us: 2_000_000,
            queue_bytes: 4 << 20,
            transmit_bytes: 64 << 10,
        }
    }
}
