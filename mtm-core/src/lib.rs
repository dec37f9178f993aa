#![doc = include_str!("../README.md")]
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
pub use number::{Ballot, GenNum, LocalXid, Xid};
pub use rng::Rng;
