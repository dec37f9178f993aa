//! Sessions: who speaks on a connection, and that nothing of it is missing or comes twice.
//!
//! A session is one connection's life. The connecting side says [`Hello`], the other answers
//! [`Accept`] or [`Reject`]; then messages and heartbeats flow from the connecting side, echoes
//! of heartbeats flow back. Each direction numbers its frames from 0; a number that is not the
//! next one ends the session, since a connection neither loses nor repeats bytes: something in
//! between is broken. What a session's end leaves undelivered is lost; see [`crate::link`].

mod handshake;
mod heartbeat;
mod inbound;

use crate::frame::{FrameError, Kind};
use mtm_core::wire::DecodeError;

pub use handshake::{Accept, Fault, Hello, HelloError, PROTOCOL_VERSION, Reject, SessionId};
pub use heartbeat::{Heartbeat, HeartbeatMonitor};
pub use inbound::{Inbound, InboundConfig, InboundEvent, InboundMisuse};

/// Why a session ended that the peer, the network or the clock ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The bytes are no frames.
    #[error("bad frame: {0}")]
    Frame(#[from] FrameError),
    /// A frame's payload is not what its kind promises.
    #[error("bad {kind:?} frame: {error}")]
    Payload {
        /// Kind of the frame.
        kind: Kind,
        /// What is wrong with its payload.
        error: DecodeError,
    },
    /// Frames are missing (or came in another order, which shows as a gap first).
    #[error("frame {found} arrived where {expected} should have")]
    Gap {
        /// Number that is next.
        expected: u64,
        /// Number of the frame.
        found: u64,
    },
    /// A frame came again.
    #[error("frame {found} arrived again, {expected} is next")]
    Duplicate {
        /// Number that is next.
        expected: u64,
        /// Number of the frame.
        found: u64,
    },
    /// A kind of frame that has no place here.
    #[error("unexpected {kind:?} frame")]
    Unexpected {
        /// The kind.
        kind: Kind,
    },
    /// One side refused the session or ended it, and said why.
    #[error("session rejected: {0}")]
    Rejected(#[from] Reject),
    /// The peer connected or accepted the connection and then did not introduce itself.
    #[error("no handshake within {after_us} us")]
    HandshakeTimeout {
        /// How long it had.
        after_us: u64,
    },
    /// Nothing was heard for too long.
    #[error("peer was silent for {after_us} us")]
    Silent {
        /// How long.
        after_us: u64,
    },
}

impl SessionError {
    /// The part of it that the peer is told.
    pub const fn fault(&self) -> Fault {
        match self {
            Self::Frame(_) => Fault::Frame,
            Self::Payload { .. } => Fault::Payload,
            Self::Gap { .. } => Fault::Gap,
            Self::Duplicate { .. } => Fault::Duplicate,
            Self::Unexpected { .. } => Fault::Unexpected,
            Self::Rejected(_) => Fault::Rejected,
            Self::HandshakeTimeout { .. } => Fault::HandshakeTimeout,
            Self::Silent { .. } => Fault::Silent,
        }
    }
}

/// Checks that frames of one direction arrive each once and in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Sequence {
    next: u64,
}

impl Sequence {
    /// At the start of a session.
    pub const fn new() -> Self {
        Self { next: 0 }
    }

    /// The number for the next frame to send.
    pub const fn assign(&mut self) -> u64 {
        let seq = self.next;
        self.next += 1;
        seq
    }

    /// Accepts a frame that has arrived.
    ///
    /// # Errors
    /// When it is not the next one. The session is over then.
    pub const fn check(&mut self, found: u64) -> Result<(), SessionError> {
        let expected = self.next;
        if found > expected {
            Err(SessionError::Gap { expected, found })
        } else if found < expected {
            Err(SessionError::Duplicate { expected, found })
        } else {
            self.next += 1;
            Ok(())
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn only_the_next_number_passes() {
        let mut seen = Sequence::new();
        assert_eq!(seen.check(0), Ok(()));
        assert_eq!(seen.check(1), Ok(()));
        assert_eq!(seen.check(1), Err(SessionError::Duplicate { expected: 2, found: 1 }));
        assert_eq!(seen.check(3), Err(SessionError::Gap { expected: 2, found: 3 }));
        assert_eq!(seen.check(2), Ok(()));
    }
}
