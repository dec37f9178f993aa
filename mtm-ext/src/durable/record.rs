//! The file of generations and votes. It may be written by one process at a time.

use super::file::{self, Error};
use mtm_core::NodeId;
use mtm_generations::Record;

pub(super) const FILE: &str = "generation";

/// Reads it.
///
/// # Errors
/// When it is missing, torn, foreign or of another version: do not start.
pub(super) fn read(me: NodeId, cluster: u64) -> Result<Record, Error> {
    let bytes = file::read(FILE)?.ok_or_else(|| Error::missing(FILE))?;
    Record::from_bytes(&bytes, me, cluster).map_err(|error| Error::unusable(FILE, error))
}

/// Replaces it, durably.
///
/// # Errors
/// When the data directory cannot be written; the old one or the new one is there then.
pub(super) fn write(record: &Record) -> Result<(), Error> {
    file::write(FILE, &record.to_bytes())
}
