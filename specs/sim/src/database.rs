//! One node's simulated database: rows with locks over a WAL of which a crash loses the tail.

use mtm_core::{GenNum, Gid, NodeId};
use mtm_node::restart::{Restart, Word};
use mtm_node::{Below, Found};
use std::collections::{BTreeMap, BTreeSet};

/// A row.
pub(crate) type Key = u8;
/// The rows a transaction writes, ascending.
pub(crate) type Keys = Vec<Key>;

/// A WAL record.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Record {
    /// The origin announces its transaction.
    Announce(Gid, Keys),
    /// A commit record: the origin's own, or one written by recovery.
    Commit(Gid, Keys),
    Prepare(Gid, Keys),
    CommitPrepared(Gid, Keys),
    RollbackPrepared(Gid),
    AcceptAbort(Gid),
    /// Recovery: prepared from now on, and abort accepted or not, whatever was before.
    Install(Gid, Keys, bool),
    /// With what this node held then, and whether abort was accepted.
    ParallelSafe(GenNum, Vec<(Gid, bool)>),
    /// What this node had finished and forgotten.
    Syncpoint(Below),
    /// What a restart must know; what it does not say is in the WAL from `start` on.
    Checkpoint {
        start: usize,
        forgotten: Below,
        remembered: Vec<(Gid, Found)>,
    },
}

/// Who has a row locked.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Owner {
    /// A backend, by its number.
    Backend(u64),
    /// A transaction of another node being applied, or prepared.
    Gid(Gid),
    /// Recovery's own transaction.
    Recovery,
}

#[derive(Clone, Default, Debug)]
pub(crate) struct Database {
    pub(crate) wal: Vec<Record>,
    /// So many records survive a crash.
    pub(crate) flushed: usize,
    /// What follows is what redo makes of the WAL, except locks.
    pub(crate) committed: BTreeSet<Gid>,
    pub(crate) prepared: BTreeMap<Gid, Keys>,
    pub(crate) accepted: BTreeSet<Gid>,
    pub(crate) announced: BTreeMap<Gid, Keys>,
    /// Every row lists who has written it, in order.
    pub(crate) rows: BTreeMap<Key, Vec<Gid>>,
    pub(crate) locks: BTreeMap<Key, Owner>,
}

/// What a record changed, for the checks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    Nothing,
    Committed(Gid),
    CommittedTwice(Gid),
}

impl Database {
    /// Carries a record out, once it is durable or in redo.
    pub(crate) fn apply(&mut self, record: &Record) -> Change {
        match record {
            Record::Announce(gid, keys) => {
                self.announced.insert(*gid, keys.clone());
            }
            Record::Commit(gid, keys) | Record::CommitPrepared(gid, keys) => {
                self.prepared.remove(gid);
                self.announced.remove(gid);
                if !self.committed.insert(*gid) {
                    return Change::CommittedTwice(*gid);
                }
                for key in keys {
                    self.rows.entry(*key).or_default().push(*gid);
                }
                return Change::Committed(*gid);
            }
            Record::Prepare(gid, keys) => {
                self.prepared.insert(*gid, keys.clone());
            }
            Record::RollbackPrepared(gid) => {
                self.prepared.remove(gid);
            }
            Record::AcceptAbort(gid) => {
                self.accepted.insert(*gid);
            }
            Record::Install(gid, keys, accepted) => {
                self.prepared.insert(*gid, keys.clone());
                if *accepted {
                    self.accepted.insert(*gid);
                } else {
                    self.accepted.remove(gid);
                }
            }
            Record::ParallelSafe(..) | Record::Syncpoint(_) | Record::Checkpoint { .. } => {}
        }
        Change::Nothing
    }

    /// Frees everything an owner has locked.
    pub(crate) fn unlock(&mut self, owner: Owner) {
        self.locks.retain(|_, held| *held != owner);
    }

    /// The machine stops with so many records on disk, and redo follows.
    pub(crate) fn crash(&mut self, survive: usize) {
        let mut wal = core::mem::take(&mut self.wal);
        wal.truncate(survive.max(self.flushed));
        *self = Self::default();
        for record in &wal {
            let _known = self.apply(record);
        }
        self.flushed = wal.len();
        self.wal = wal;
        for (gid, keys) in &self.prepared {
            for key in keys {
                self.locks.insert(*key, Owner::Gid(*gid));
            }
        }
    }

    /// Whether a crash of the machine leaves the transaction committed or prepared.
    pub(crate) fn holds(&self, gid: &Gid) -> bool {
        self.committed.contains(gid) || self.prepared.contains_key(gid)
    }

    /// The rows of a transaction, as far as this node's WAL knows them.
    pub(crate) fn keys_of(&self, gid: &Gid) -> Option<Keys> {
        self.wal.iter().rev().find_map(|record| match record {
            Record::Announce(g, keys)
            | Record::Commit(g, keys)
            | Record::Prepare(g, keys)
            | Record::CommitPrepared(g, keys)
            | Record::Install(g, keys, _)
                if g == gid =>
            {
                Some(keys.clone())
            }
            _ => None,
        })
    }

    /// What a restarting server can find out: the last checkpoint, the WAL since its start, the
    /// prepared transactions, and the commit log for its own.
    pub(crate) fn scan(
        &self,
        me: NodeId,
        rollback_is_evidence: bool,
    ) -> (Option<Below>, BTreeMap<Gid, Found>) {
        let last = self.wal.iter().rev().find_map(|record| match record {
            Record::Checkpoint { start, forgotten, remembered } => {
                Some((*start, *forgotten, remembered))
            }
            _ => None,
        });
        let start = last.map_or(0, |(start, ..)| start);
        let mut saved = mtm_node::Checkpoint::first(me, 0, mtm_core::Lsn(0));
        if let Some((_, forgotten, remembered)) = last {
            saved.forgotten = forgotten;
            saved.remembered = remembered.clone();
        }
        let mut restart = Restart::new(&saved);
        for record in &self.wal[start..] {
            let word = match record {
                Record::Announce(gid, _) => Word::Announced(*gid),
                Record::Commit(gid, _) => {
                    // A commit record bears its name in a record of its transaction.
                    restart.read(Word::Marked { xid: 1, gid: *gid });
                    Word::Committed { xid: 1, gid: None }
                }
                Record::CommitPrepared(gid, _) => Word::Committed { xid: 0, gid: Some(*gid) },
                Record::AcceptAbort(gid) => Word::AbortAccepted(*gid),
                Record::Install(gid, _, accepted_abort) => {
                    Word::Installed { gid: *gid, accepted_abort: *accepted_abort }
                }
                // A rollback is evidence of nothing.
                Record::Prepare(..)
                | Record::RollbackPrepared(_)
                | Record::ParallelSafe(..)
                | Record::Syncpoint(_)
                | Record::Checkpoint { .. } => continue,
            };
            restart.read(word);
        }
        let prepared = self.prepared.keys().copied().collect();
        let committed = |xid| self.committed.iter().any(|gid| gid.origin == me && gid.xid == xid);
        let mut found: BTreeMap<Gid, Found> =
            restart.finish(&prepared, committed).into_iter().collect();
        if rollback_is_evidence {
            for found in found.values_mut().filter(|found| **found == Found::AnnouncedOnly) {
                *found = Found::Aborted;
            }
        }
        (last.map(|(_, forgotten, _)| forgotten), found)
    }
}
