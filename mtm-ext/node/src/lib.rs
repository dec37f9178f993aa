//! What one node does with its machines, without PostgreSQL.
//!
//! [`Node`] is a view of a fixed-size [`Core`] and of borrowed table slots, so that production
//! keeps both in shared memory under one lock and the simulator keeps them on the heap: what is
//! simulated is what runs.
#![forbid(unsafe_code)]

mod checkpoint;
mod conflict;
mod entry;
pub mod message;
mod node;
mod peer_message;
pub mod restart;
pub mod table;
pub mod user;
pub mod wire;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

pub use checkpoint::{Checkpoint, CheckpointError, SavedUser};
pub use conflict::{Verdict, judge, wins};
pub use entry::{Entry, Role, Waits};
pub use node::{Below, Bug, Core, Effect, Found, Input, Misuse, Node, Outcome, Rejection};
pub use peer_message::PeerMessage;
