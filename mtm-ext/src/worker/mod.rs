//! Background workers, one file each.

mod applier;
mod campaigner;
mod conflict;
mod crew;
mod divergence;
mod finish;
mod health;
mod inbox;
mod line;
mod lineup;
mod monitor;
mod open;
mod receiver;
mod recovery;
mod resolver;
mod retention;
mod sender;
mod spill;
mod users;
mod wire;

pub use applier::apply_again;
pub use health::FEW_REFUSALS;
pub use inbox::accept_pipe;
pub use line::{offer, serve as serve_line};
pub use open::leave_nothing as leave_nothing_open;

use crate::pg::bgworker::{self, Kind};

/// Puts a message on this process' own connection to `node`, if it has one.
pub fn reply(node: mtm_core::NodeId, message: &[u8]) -> bool {
    inbox::reply(node, message) || line::put(node, message)
}

/// Registers the worker that starts the others.
pub fn init() {
    bgworker::register_static(Kind::Monitor);
}

/// Runs a worker to its end.
pub fn run(kind: Kind) {
    match kind {
        Kind::Monitor => monitor::run(),
        Kind::Campaigner => campaigner::run(),
        Kind::Sender => sender::run(),
        Kind::Resolver => resolver::run(),
        Kind::Health => health::run(),
        Kind::Receiver(node) => receiver::run(node),
        Kind::Applier(slot) => applier::run(slot),
    }
}
