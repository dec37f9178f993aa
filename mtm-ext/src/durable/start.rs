//! What a restarting node finds.

use super::{Error, checkpoint};
use crate::pg::walscan::{self, Item};
use crate::pg::xact::{self, XidStatus};
use crate::pg::{message, sqlrun};
use crate::users;
use mtm_core::wire::DecodeError;
use mtm_core::{Gid, LocalXid, Lsn, NodeId, Xid};
use mtm_logrep::journal::{self, Entry};
use mtm_node::restart::{Findings, FoundUser, Prepared, Restart, Word};
use mtm_node::{Below, Found};
use pgrx::spi::Spi;
use std::collections::BTreeMap;

/// What to feed to the machine before `ScanComplete`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// For `Forgotten`.
    pub forgotten: Below,
    /// For `ScanComplete`.
    pub next: Xid,
    /// For `Found`, each once, in the order of gids.
    pub found: Vec<(Gid, Found)>,
    /// Users' two-phase transactions.
    pub users: Vec<FoundUser>,
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
        if prepared.gids.insert(*gid) {
            let rows = rows.get(gid).map(Vec::as_slice).unwrap_or_default();
            crate::worker::apply_again(gid, rows);
            pgrx::log!("multimaster: transaction {gid}, promised before the start, is prepared");
        }
        // From here on PREPARE is what says that it is there.
        message::flush(message::log(c"mtm-closed", &journal::gid_bytes(gid), false));
    }
    let Findings { found, users } = restart.finish(&prepared, is_committed);
    let (forgotten, from) = (saved.forgotten, saved.start);
    Ok(Start { forgotten, next, found, users, from, to: scanned.to, records: scanned.records })
}

/// What a record says about a transaction's fate, if anything.
fn word_of(item: Item<'_>, rows: &mut BTreeMap<Gid, Vec<u8>>) -> Result<Option<Word>, DecodeError> {
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
            Some(Entry::User(work)) => {
                let (gid, operation) = (work.gid, users::operation(&work.operation)?);
                Some(Word::User { xid, gid, operation, decided: work.decided })
            }
            Some(Entry::UserPrepared(prepared)) => Some(Word::UserPrepared(prepared.gid)),
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

/// What is prepared now.
fn prepared() -> Prepared {
    let all: Vec<(Option<String>, i64)> = sqlrun::in_transaction(|| {
        Spi::connect(|client| {
            let sql = "SELECT CASE WHEN pg_catalog.starts_with(gid, 'MTM-') THEN gid END, \
                       transaction::pg_catalog.text::pg_catalog.int8 \
                       FROM pg_catalog.pg_prepared_xacts \
                       WHERE database = pg_catalog.current_database()";
            let rows = client.select(sql, None, &[]).expect("a plain query");
            rows.filter_map(|row| Some((row.get(1).ok()?, row.get(2).ok()??))).collect()
        })
    });
    let gids = all.iter().filter_map(|(text, _)| text.as_ref()?.parse().ok()).collect();
    let local = all.iter().filter_map(|(_, local)| u32::try_from(*local).ok()).collect();
    Prepared { gids, local }
}

/// Whether the commit log shows this node's own transaction committed. What it has dropped was
/// over before the last checkpoint, whose list would say so.
fn is_committed(xid: LocalXid) -> bool {
    walscan::is_recent(xid) && xact::status_of(xid) == XidStatus::Committed
}
