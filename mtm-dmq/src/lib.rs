//! Messages between the nodes of a cluster, without I/O, clocks or threads.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod frame;
pub mod ring;
pub mod session;
pub mod sync;

pub use frame::{Frame, FrameError, FrameReader, Kind, decode_frame, encode_frame};
pub use ring::{Corrupt, PushError, Ring, RingError};
pub use session::{
    Accept, Fault, Heartbeat, HeartbeatMonitor, Hello, Inbound, InboundConfig, InboundEvent,
    Reject, Sequence, SessionError, SessionId,
};
