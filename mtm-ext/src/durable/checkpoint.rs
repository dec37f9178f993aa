//! The file of what the log does not say. It may be written by one process at a time.

use super::file::{self, Error};
use mtm_core::NodeId;
use mtm_node::Checkpoint;

pub(super) const FILE: &str = "transactions";

/// Reads it.
///
/// # Errors
/// When it is missing, torn, foreign or of another version.
pub(super) fn read(me: NodeId, cluster: u64) -> Result<Checkpoint, Error> {
    let bytes = file::read(FILE)?.ok_or_else(|| Error::missing(FILE))?;
    Checkpoint::from_bytes(&bytes, me, cluster).map_err(|error| Error::unusable(FILE, error))
}

/// Replaces it, durably.
pub(super) fn write(checkpoint: &Checkpoint) -> Result<(), Error> {
    file::write(FILE, &checkpoint.to_bytes())
}
