#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod backoff;
pub mod frame;
pub mod holder;
pub mod link;
pub mod mailbox;
pub mod ring;
pub mod session;
pub mod sync;

pub use frame::{Frame, FrameError, FrameReader, Kind, decode_frame, encode_frame};
pub use link::{DownReason, Link, LinkConfig, LinkEvent, QueueFull};
pub use mailbox::{Mailboxes, OpenError, PostError, TakeError};
pub use ring::{Corrupt, PushError, Ring, RingError};
pub use session::{
    Accept, Fault, Heartbeat, HeartbeatMonitor, Hello, Inbound, InboundConfig, InboundEvent,
    Reject, Sequence, SessionError, SessionId,
};
