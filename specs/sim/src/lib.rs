//! Deterministic simulator: whole clusters of [`mtm_node::Node`] over simulated databases,
//! disks and networks. One seed is one history.
//!
//! What is simulated is what runs: the simulator plays the driver (PostgreSQL in production) and
//! nothing else. After every step the invariants of `specs/tla/Multimaster.tla` are checked from
//! outside, by somebody who sees everything.
#![forbid(unsafe_code)]

mod database;
mod oracle;
mod plan;
mod planted;
mod rng;
mod shrink;
mod svg;
mod sweep;
mod trace;
mod world;

pub use oracle::Violation;
pub use plan::{Change, Fault, Flavour, Plan, Shape, Slowness, Transaction, UserWord};
pub use planted::{CASES, Case, Driver, Planted};
pub use shrink::{Shrunk, shrink};
pub use svg::draw;
pub use sweep::{Failure, Sweep};
pub use trace::{Moment, What};
pub use world::{Coverage, Packet, Verdict, run};
