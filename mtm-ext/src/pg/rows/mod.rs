//! Rows on their way between nodes: encoded where logical decoding gives them, applied where they
//! arrive. The bytes between the two are `mtm_logrep::row`.
//!
//! Origin: one [`RowEncoder`] per walsender. Peer: one [`Applier`] per apply worker.

mod apply;
mod change;
mod check;
mod conflicts;
mod encode;
mod error;
mod find;
mod identity;
mod open;
mod plan;
mod stamp;
mod target;
mod types;
mod wait;

pub use apply::Applier;
pub use conflicts::Catalog;
pub use encode::{Encoded, RowEncoder, Unidentified};
pub use error::failed_row;
pub use identity::ensure_replica_identity;
