//! Membership epochs ("generations") of a small cluster, as pure machines.
//!
//! A generation names the members whose acceptance a commit needs. [`Membership`] elects them:
//! one vote per number, donors fixed once by the one proposer, a switch under the driver's
//! barrier. There is no I/O, clock or randomness here; see the README for the driver's duties.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod clique;
mod generation;
mod membership;
mod message;
mod record;
pub mod referee;
mod status;

pub use generation::{Configuration, Elected, Generation, elect};
pub use membership::{Effect, Input, Membership, Misuse, Timing};
pub use message::Message;
pub use record::{Record, RecordError};
pub use status::{NodeStatus, Reason, StatusInGeneration};
