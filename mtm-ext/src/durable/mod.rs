//! What a node keeps on disk beside PostgreSQL's own files, and how it is found again.
//!
//! | what | where | says |
//! |---|---|---|
//! | [`record`] | file `multimaster/generation` | generations and votes |
//! | [`checkpoint`] | file `multimaster/transactions` | what the log before its start said |
//! | stays-out | file `multimaster/stays-out` | that this node must not take part, and why |
//! | the journal | the write-ahead log, see `mtm_logrep::journal` | everything since |
//! | [`slot`] | replication slot `mtm_self` | keeps the log from the checkpoint's start |
//!
//! Files are replaced atomically and checksummed. A missing, torn or foreign one is an error that
//! names the file and what to do, never a guess.

mod checkpoint;
mod file;
mod record;
mod slot;
mod start;

pub use start::Start;

use crate::pg::{proc, shmem, wal, walscan};
use crate::report;
use core::sync::atomic::Ordering;
use file::Error;
use mtm_core::{Gid, Lsn, NodeId, Xid};
use mtm_generations::Record;
use mtm_node::{Below, Checkpoint, Found, SavedUser};

/// Reads the generation record. A configured node must have one: an ERROR otherwise.
pub fn read_record(me: NodeId, cluster: u64) -> Record {
    done(record::read(me, cluster))
}

/// Replaces the generation record; when this returns it survives every crash. An ERROR if the data
/// directory cannot be written: then the old one or the new one is there, and nobody may be told.
pub fn write_record(record: &Record) {
    done(record::write(record));
}

/// What a restarting node must tell its machine; an ERROR if that cannot be known. For a worker
/// that is connected to the replicated database and in no transaction.
pub fn found_at_start(me: NodeId) -> Start {
    let cluster = shmem::header().cluster_id.load(Ordering::Relaxed);
    let began = proc::now();
    let start = done(start::found_at_start(me, cluster));
    pgrx::log!(
        "multimaster: read {} records of this node's log from {} to {} in {} ms",
        start.records,
        start.from,
        start.to,
        proc::now().since(began) / 1000
    );
    for (gid, found) in &start.found {
        pgrx::debug1!("multimaster: found {gid}: {found:?}");
    }
    slot::ensure();
    start
}

/// Saves what a restart must know, and lets go of the log before `start`, a position that was read
/// before the rest. If the file cannot be written, the checkpoint before it
/// still stands.
pub fn take_checkpoint(
    remembered: Vec<(Gid, Found)>,
    users: Vec<SavedUser>,
    forgotten: Below,
    next: Xid,
    start: Lsn,
) {
    let header = shmem::header();
    let Some(node) = header.me() else { return };
    let cluster = header.cluster_id.load(Ordering::Relaxed);
    let saved = Checkpoint { node, cluster, start, forgotten, next, remembered, users };
    if let Err(error) = save(&saved) {
        report::warning(error.to_string(), "", error.hint);
    }
}

fn save(saved: &Checkpoint) -> Result<(), Error> {
    // After a crash the log must not end before the start: another record would begin there.
    walscan::flush_before(saved.start);
    checkpoint::write(saved)?;
    slot::advance(saved.start);
    Ok(())
}

/// Makes the durable state of a node that has seen no transaction yet. The generation record comes
/// last: where it is, everything is.
pub fn begin(record: &Record) {
    slot::ensure();
    let start = wal::inserted();
    done(save(&Checkpoint::first(record.node, record.cluster, start)));
    done(record::write(record));
}

/// Notes durably that this node must stay out of its cluster, and why. If that cannot be written,
/// it stays out until its next start.
pub fn stay_out(kind: &str, why: &str) {
    if let Err(error) = file::write(STAYS_OUT, format!("{kind}\n{why}\n").as_bytes()) {
        report::warning(error.to_string(), "", error.hint);
    }
}

/// What [`stay_out`] has noted: its kind and why.
pub fn stays_out() -> Option<(String, String)> {
    let bytes = done(file::read(STAYS_OUT))?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (kind, why) = text.split_once('\n')?;
    Some((kind.to_owned(), why.trim().to_owned()))
}

/// Takes back [`stay_out`].
pub fn return_to_cluster() {
    done(file::remove(STAYS_OUT));
}

/// Removes everything, when the node leaves its cluster.
pub fn remove() {
    done(file::remove(record::FILE));
    done(file::remove(checkpoint::FILE));
    done(file::remove(STAYS_OUT));
    slot::drop_if_exists();
}

/// Says that this node must not take part; absent in all ordinary cases.
const STAYS_OUT: &str = "stays-out";

fn done<T>(result: Result<T, Error>) -> T {
    result.unwrap_or_else(|error| error.raise())
}
