//! Words, sets and bytes shared by multimaster's crates.
//!
//! A thing is admitted here when at least two crates use it and it contains no policy. There is
//! no I/O, no clock and no randomness anywhere below this module.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod gid;
mod lsn;
mod machine;
mod node;
mod number;
mod rng;
pub mod sequence;
pub mod storage;
pub mod wire;

pub use gid::{Gid, ParseGidError};
pub use lsn::Lsn;
pub use machine::{Instant, Machine, Outbox, Token};
pub use node::{MAX_NODES, NodeId, NodeSet, NodeSetIter};
pub use number::{Ballot, GenNum, Xid};
pub use rng::Rng;
