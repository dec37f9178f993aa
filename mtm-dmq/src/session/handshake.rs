//! How a session begins: `Hello`, then `Accept` or `Reject`.
//!
//! ```text
//! Hello   u16 protocol | u64 cluster | u8 from | u8 to | u64 incarnation | u64 session
//! Accept  u64 incarnation
//! Reject  u8 reason | u64 | u64    what the numbers mean depends on the reason
//! ```
//!
//! The protocol version comes first and its place never changes, so that programs of different
//! versions can at least say so. Nothing else is compatible between versions.

use core::fmt;
use mtm_core::NodeId;
use mtm_core::wire::{DecodeError, DecodeErrorKind, Reader, Writer};

/// Version of what is spoken inside of frames.
pub const PROTOCOL_VERSION: u16 = 1;

/// Orders the sessions that one node opens to another: the newest wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SessionId {
    /// Start of the server; a later start has a higher number.
    pub incarnation: u64,
    /// Connection within that start; a later one has a higher number.
    pub session: u64,
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.incarnation, self.session)
    }
}

/// Who connects, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hello {
    /// The cluster that the node belongs to.
    pub cluster: u64,
    /// The node that connects.
    pub from: NodeId,
    /// The node that it wants.
    pub to: NodeId,
    /// Which start of its server, and which connection.
    pub session: SessionId,
}

/// Why bytes are no `Hello`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// The peer runs another version.
    #[error("peer speaks protocol {found}, this node {PROTOCOL_VERSION}")]
    Protocol {
        /// Its version.
        found: u16,
    },
    /// The bytes are wrong.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl Hello {
    /// Appends the wire form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer::new(out);
        w.u16(PROTOCOL_VERSION);
        w.u64(self.cluster);
        w.u8(self.from.get());
        w.u8(self.to.get());
        w.u64(self.session.incarnation);
        w.u64(self.session.session);
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// When the peer speaks another version or the bytes are wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, HelloError> {
        let mut r = Reader::new(bytes);
        let found = r.u16()?;
        if found != PROTOCOL_VERSION {
            return Err(HelloError::Protocol { found });
        }
        let (cluster, from, to) = (r.u64()?, r.node()?, r.node()?);
        let session = SessionId { incarnation: r.u64()?, session: r.u64()? };
        r.finish()?;
        Ok(Self { cluster, from, to, session })
    }
}

/// The session is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Accept {
    /// Start of the accepting server.
    pub incarnation: u64,
}

impl Accept {
    /// Appends the wire form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        Writer::new(out).u64(self.incarnation);
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// When bytes are missing or too many.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let incarnation = r.u64()?;
        r.finish()?;
        Ok(Self { incarnation })
    }
}

/// Why a session is refused or ended by the accepting side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Reject {
    /// Another protocol version.
    #[error("the peer speaks protocol {known}")]
    Protocol {
        /// The version of whoever rejects.
        known: u16,
    },
    /// Another cluster.
    #[error("the peer belongs to cluster {cluster}")]
    Cluster {
        /// The cluster of whoever rejects.
        cluster: u64,
    },
    /// Another node was wanted: the address leads to the wrong place.
    #[error("the peer is node {this}")]
    NotThisNode {
        /// Number of whoever rejects.
        this: NodeId,
    },
    /// The node that connects is not configured at the other (not yet, or no longer).
    #[error("the peer has not configured this node")]
    NotConfigured,
    /// A newer session of the same node is known: this one is a straggler.
    #[error("the peer knows the newer session {newest} of this node")]
    Superseded {
        /// The newest session known.
        newest: SessionId,
    },
    /// The server is starting or stopping.
    #[error("the peer is not ready")]
    NotReady,
    /// The session broke.
    #[error("the peer ended the session: {0}")]
    Fault(Fault),
}

/// What broke a session, as its other end is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
#[repr(u8)]
pub enum Fault {
    /// Bytes that are no frame.
    #[error("bad frame")]
    Frame = 1,
    /// A payload that is not what its frame promises.
    #[error("bad payload")]
    Payload = 2,
    /// Frames are missing.
    #[error("missing frames")]
    Gap = 3,
    /// A frame came again.
    #[error("repeated frame")]
    Duplicate = 4,
    /// A kind of frame that has no place there.
    #[error("unexpected frame")]
    Unexpected = 5,
    /// A rejection.
    #[error("rejection")]
    Rejected = 6,
    /// No handshake in time.
    #[error("no handshake in time")]
    HandshakeTimeout = 7,
    /// Nothing was heard for too long.
    #[error("silence")]
    Silent = 8,
}

impl Fault {
    const fn from_wire(code: u64) -> Option<Self> {
        Some(match code {
            1 => Self::Frame,
            2 => Self::Payload,
            3 => Self::Gap,
            4 => Self::Duplicate,
            5 => Self::Unexpected,
            6 => Self::Rejected,
            7 => Self::HandshakeTimeout,
            8 => Self::Silent,
            _ => return None,
        })
    }
}

impl Reject {
    /// Appends the wire form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (reason, a, b) = match *self {
            Self::Protocol { known } => (1, u64::from(known), 0),
            Self::Cluster { cluster } => (2, cluster, 0),
            Self::NotThisNode { this } => (3, u64::from(this.get()), 0),
            Self::NotConfigured => (4, 0, 0),
            Self::Superseded { newest } => (5, newest.incarnation, newest.session),
            Self::NotReady => (6, 0, 0),
            Self::Fault(fault) => (7, u64::from(fault as u8), 0),
        };
        let mut w = Writer::new(out);
        w.u8(reason);
        w.u64(a);
        w.u64(b);
    }

    /// Reads the wire form.
    ///
    /// # Errors
    /// When bytes are missing or too many, or the reason is none that is known.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let unknown = r.error(DecodeErrorKind::Unknown("reason"));
        let range = |r: &Reader<'_>| r.error(DecodeErrorKind::Range("detail of a rejection"));
        let reason = r.u8()?;
        let out_of_range = range(&r);
        let (a, b) = (r.u64()?, r.u64()?);
        r.finish()?;
        let uses_b = reason == 5;
        let uses_a = !matches!(reason, 4 | 6);
        if (!uses_a && a != 0) || (!uses_b && b != 0) {
            return Err(out_of_range);
        }
        Ok(match reason {
            1 => Self::Protocol { known: u16::try_from(a).map_err(|_| out_of_range)? },
            2 => Self::Cluster { cluster: a },
            3 => {
                let number = u8::try_from(a).ok().and_then(NodeId::new);
                Self::NotThisNode { this: number.ok_or(out_of_range)? }
            }
            4 => Self::NotConfigured,
            5 => Self::Superseded { newest: SessionId { incarnation: a, session: b } },
            6 => Self::NotReady,
            7 => Self::Fault(Fault::from_wire(a).ok_or(out_of_range)?),
            _ => return Err(unknown),
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node() -> impl Strategy<Value = NodeId> {
        (1u8..=16).prop_map(|n| NodeId::new(n).unwrap())
    }

    fn session() -> impl Strategy<Value = SessionId> {
        (any::<u64>(), any::<u64>())
            .prop_map(|(incarnation, session)| SessionId { incarnation, session })
    }

    fn hello() -> impl Strategy<Value = Hello> {
        (any::<u64>(), node(), node(), session()).prop_map(|(cluster, from, to, session)| Hello {
            cluster,
            from,
            to,
            session,
        })
    }

    fn reject() -> impl Strategy<Value = Reject> {
        prop_oneof![
            any::<u16>().prop_map(|known| Reject::Protocol { known }),
            any::<u64>().prop_map(|cluster| Reject::Cluster { cluster }),
            node().prop_map(|this| Reject::NotThisNode { this }),
            Just(Reject::NotConfigured),
            session().prop_map(|newest| Reject::Superseded { newest }),
            Just(Reject::NotReady),
            (1u64..=8).prop_map(|code| Reject::Fault(Fault::from_wire(code).unwrap())),
        ]
    }

    #[test]
    fn another_version_is_named_whatever_follows() {
        let mut bytes = 7u16.to_be_bytes().to_vec();
        bytes.extend_from_slice(b"something new");
        assert_eq!(Hello::decode(&bytes), Err(HelloError::Protocol { found: 7 }));
    }

    #[test]
    fn sessions_of_a_later_start_are_newer() {
        let first = SessionId { incarnation: 1, session: 99 };
        assert!(first < SessionId { incarnation: 2, session: 1 });
        assert!(first < SessionId { incarnation: 1, session: 100 });
    }

    proptest! {
        #[test]
        fn handshakes_round_trip(hello in hello(), incarnation: u64, reject in reject()) {
            let mut out = Vec::new();
            hello.encode(&mut out);
            prop_assert_eq!(Hello::decode(&out), Ok(hello));
            out.clear();
            let accept = Accept { incarnation };
            accept.encode(&mut out);
            prop_assert_eq!(Accept::decode(&out), Ok(accept));
            out.clear();
            reject.encode(&mut out);
            prop_assert_eq!(Reject::decode(&out), Ok(reject));
        }

        #[test]
        fn cut_or_extended_handshakes_are_errors(hello in hello(), reject in reject()) {
            let (mut h, mut a, mut r) = (Vec::new(), Vec::new(), Vec::new());
            hello.encode(&mut h);
            Accept { incarnation: hello.cluster }.encode(&mut a);
            reject.encode(&mut r);
            for keep in 0..h.len() {
                prop_assert!(Hello::decode(&h[..keep]).is_err());
            }
            for keep in 0..a.len() {
                prop_assert!(Accept::decode(&a[..keep]).is_err());
            }
            for keep in 0..r.len() {
                prop_assert!(Reject::decode(&r[..keep]).is_err());
            }
            for bytes in [&mut h, &mut a, &mut r] {
                bytes.push(0);
            }
            prop_assert!(Hello::decode(&h).is_err());
            prop_assert!(Accept::decode(&a).is_err());
            prop_assert!(Reject::decode(&r).is_err());
        }

        #[test]
        fn what_decodes_is_what_was_encoded(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut out = Vec::new();
            if let Ok(hello) = Hello::decode(&bytes) {
                hello.encode(&mut out);
                prop_assert_eq!(&out, &bytes);
            }
            out.clear();
            if let Ok(accept) = Accept::decode(&bytes) {
                accept.encode(&mut out);
                prop_assert_eq!(&out, &bytes);
            }
            out.clear();
            if let Ok(reject) = Reject::decode(&bytes) {
                reject.encode(&mut out);
                prop_assert_eq!(&out, &bytes);
            }
        }
    }
}
