//! What a restarting node finds.

use super::{Error, checkpoint};
use crate::pg::{message, sqlrun};
use crate::pg::walscan::{self, Item};
use crate::pg::xact::{self, XidStatus};
use mtm_core::wire::DecodeError;
use mtm_core::{Gid, LocalXid, Lsn, NodeId, Xid};
use mtm_logrep::journal::{self, Entry};
use mtm_node::restart::{Restart, Word};
use mtm_node::{Below, Found};
use pgrx::spi::Spi;
use std::collections::{BTreeMap, BTreeSet};

/// What to feed to the machine before `ScanComplete`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// For `Forgotten`.
    pub forgotten: Below,
    /// For `ScanComplete`.
    pub next: Xid,
    /// For `Found`, each once, in the order of gids.
    pub found: Vec<(Gid, Found)>,
    /// Where the log was read from: the last checkpoint's start.
    pub from: Lsn,
    /// Where it was read to.
    pub to: Lsn,
    /// How many records were read.
    pub records: u64,
}

/// Reads the last checkpoint, the log since then and what the server itself knows. For a worker
/// that is connected to the replicated database and in no transaction.
///
/// # Errors
/// When the file or the log cannot be read, or says what it cannot say.
pub(super) fn found_at_start(me: NodeId, cluster: u64) -> Result<Start, Error> {
    let saved = checkpoint::read(me, cluster)?;
    let mut restart = Restart::new(&saved);
    let mut malformed = None;
    // What was kept open, and its rows.
    let mut rows: BTreeMap<Gid, Vec<u8>> = BTreeMap::new();
    let scanned = walscan::scan(saved.start, |item| match word_of(item, &mut rows) {
        Ok(Some(word)) => {
            if let Some(gid) = restart.read(word) {
                rows.remove(&gid);
            }
        }
        Ok(None) => {}
        Err(error) => {
            malformed.get_or_insert(error);
        }
    });
    let scanned = scanned.map_err(|error| Error::log(checkpoint::FILE, error))?;
    if let Some(error) = malformed {
        let why = format!("the log after {} has a malformed message: {error}", saved.start);
        return Err(Error::unusable(checkpoint::FILE, why));
    }
    let next = restart.next();
    let mut prepared = prepared();
    for gid in restart.open() {
        if prepared.insert(*gid) {
            let rows = rows.get(gid).map(Vec::as_slice).unwrap_or_default();
            crate::worker::apply_again(gid, rows);
            pgrx::log!("multimaster: transaction {gid}, promised before the start, is prepared");
        }
        // From here on PREPARE is what says that it is there.
        message::flush(message::log(c"mtm-closed", &journal::gid_bytes(gid), false));
    }
    let found = restart.finish(&prepared, is_committed);
    let (forgotten, from) = (saved.forgotten, saved.start);
    Ok(Start { forgotten, next, found, from, to: scanned.to, records: scanned.records })
}

/// What a record says about a transaction's fate, if anything.
fn word_of(
    item: Item<'_>,
    rows: &mut BTreeMap<Gid, Vec<u8>>,
) -> Result<Option<Word>, DecodeError> {
    let gid_of = |text: &str| text.parse::<Gid>().ok();
    Ok(match item {
        Item::Commit { xid, gid } => Some(Word::Committed { xid, gid: gid.and_then(gid_of) }),
        // What is prepared now, the server itself knows best.
        Item::Prepare { .. } => None,
        Item::Message { xid, prefix, content } => match Entry::decode(prefix, content)? {
            Some(Entry::Announced(announced)) => {
                Some(Word::Announced { gid: announced.gid, local: announced.xid })
            }
            Some(Entry::Marker(gid)) => Some(Word::Marked { xid, gid }),
            Some(Entry::AbortAccepted(gid)) => Some(Word::AbortAccepted(gid)),
            Some(Entry::Installed(installed)) => Some(Word::Installed {
                gid: installed.gid,
                accepted_abort: installed.accepted_abort,
            }),
            Some(Entry::Open(open)) => {
                rows.insert(open.gid, open.rows);
                Some(Word::Opened { xid: open.xid, gid: open.gid })
            }
            Some(Entry::Closed(gid)) => Some(Word::Closed(gid)),
            // For those who recover from this node.
            Some(Entry::ParallelSafe(_) | Entry::Syncpoint(_)) | None => None,
        },
    })
}

/// Transactions of the cluster that are prepared now.
fn prepared() -> BTreeSet<Gid> {
    let gids: Vec<String> = sqlrun::in_transaction(|| {
        Spi::connect(|client| {
            let sql = "SELECT gid FROM pg_catalog.pg_prepared_xacts \
                       WHERE database = pg_catalog.current_database()";
            let rows = client.select(sql, None, &[]).expect("a plain query");
            rows.filter_map(|row| row.get::<String>(1).ok().flatten()).collect()
        })
    });
    gids.iter().filter_map(|text| text.parse().ok()).collect()
}

/// Whether the commit log shows this node's own transaction committed. What it has dropped was
/// over before the last checkpoint, whose list would say so.
fn is_committed(xid: LocalXid) -> bool {
    walscan::is_recent(xid) && xact::status_of(xid) == XidStatus::Committed
}
