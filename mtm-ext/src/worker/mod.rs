//! Background workers, one file each.

mod applier;
mod conflict;
mod inbox;
mod monitor;
mod receiver;
mod resolver;
mod sender;
mod spill;
mod wire;

pub use inbox::{accept_pipe, reply};

use crate::pg::bgworker::{self, Kind};

/// Registers the worker that starts the others.
pub fn init() {
    bgworker::register_static(Kind::Monitor);
}

/// Runs a worker to its end.
pub fn run(kind: Kind) {
    match kind {
        Kind::Monitor => monitor::run(),
        Kind::Sender => sender::run(),
        Kind::Resolver => resolver::run(),
        Kind::Receiver(node) => receiver::run(node),
        Kind::Applier(slot) => applier::run(slot),
    }
}
