//! What a link says.

use crate::session::SessionError;
use mtm_core::Instant;

/// A message was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueueFull {
    /// No room now.
    #[error("queue to the peer is full: {needed} bytes needed, {free} free")]
    Full {
        /// Bytes that the message takes with its frame.
        needed: usize,
        /// Bytes free now.
        free: usize,
    },
    /// No room ever.
    #[error("message of {length} bytes, at most {max} are allowed")]
    TooLarge {
        /// Length of the message.
        length: usize,
        /// Longest allowed.
        max: usize,
    },
}

/// Why a link went down or did not come up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DownReason {
    /// The driver could not connect.
    #[error("could not connect")]
    ConnectFailed,
    /// Connecting took too long.
    #[error("connecting took longer than {after_us} us")]
    ConnectTimeout {
        /// The limit.
        after_us: u64,
    },
    /// The connection was closed.
    #[error("connection closed")]
    Closed,
    /// The session failed.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// What happened on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// Connect now; answer with [`Link::handle_connected`](super::Link::handle_connected) or [`Link::handle_closed`](super::Link::handle_closed).
    Connect,
    /// The session is open: what waits is sent now. Ask again whatever is unanswered.
    Up {
        /// Start of the peer's server.
        incarnation: u64,
    },
    /// The session is over, or an attempt has failed: close the connection if there is one.
    Down {
        /// Why.
        reason: DownReason,
        /// When the next attempt comes.
        retry_at: Instant,
        /// Attempts in a row that have come to nothing.
        failures: u32,
    },
    /// The queue was full and a message was refused, for the first time since it had room.
    Overflow {
        /// Bytes waiting.
        queued: usize,
    },
    /// The peer's server is another start than before; what waited for the old one is gone.
    PeerRestarted {
        /// The start now.
        incarnation: u64,
        /// Messages dropped.
        dropped: usize,
    },
    /// The peer has answered a heartbeat.
    Echo {
        /// Time from heartbeat to answer.
        round_trip_us: u64,
    },
}
