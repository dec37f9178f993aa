#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod acceptor;
pub mod commit;
pub mod conformance;
mod learner;
mod message;
mod paxos;
mod proposer;
mod record;
mod value;

pub use acceptor::{Acceptor, Answer};
pub use learner::Learner;
pub use message::{Message, Outgoing};
pub use paxos::{Effect, Input, Misuse, Paxos, Timing};
pub use proposer::Proposer;
pub use record::{AcceptorRecord, Flush, RecordError};
pub use value::{Value, WireValue};
