//! Messages between the nodes of a cluster, without I/O, clocks or threads.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod ring;
pub mod sync;

pub use ring::{Corrupt, PushError, Ring, RingError};
