#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod clique;
pub mod conformance;
mod generation;
mod membership;
mod message;
mod record;
pub mod referee;
mod status;

pub use generation::{Configuration, Elected, Generation, elect};
pub use membership::{Bug, Effect, Input, Membership, Misuse, Timing};
pub use message::Message;
pub use record::{Record, RecordError};
pub use status::{NodeStatus, Reason, StatusInGeneration};
