//! One node's simulated database: rows with locks over a WAL of which a crash loses the tail.

use mtm_core::{GenNum, Gid, LocalXid, NodeId, Xid};
use mtm_node::restart::{Prepared, Restart, Word};
use mtm_node::user::{Name, Operation};
use mtm_node::{Below, Found};
use mtm_paxos::commit::Decree;
use std::collections::{BTreeMap, BTreeSet};

/// A row.
pub(crate) type Key = u8;
/// What a transaction does.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Body {
    /// The rows it writes, ascending.
    pub(crate) keys: Vec<Key>,
    /// It is one of the two operations of a user's two-phase transaction.
    pub(crate) user: Option<Operation>,
}

/// A user's transaction that is prepared, with its rows locked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct UserPrepared {
    pub(crate) name: Name,
    pub(crate) keys: Vec<Key>,
    /// The second operation is committed: it ends as soon as possible.
    pub(crate) ending: Option<(Gid, Decree)>,
}

/// A WAL record.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Record {
    /// The origin announces its transaction, with its number there.
    Announce(Gid, Body, LocalXid),
    /// A commit record: the origin's own, or one written by recovery.
    Commit(Gid, Body),
    Prepare(Gid, Body),
    CommitPrepared(Gid, Body),
    RollbackPrepared(Gid),
    AcceptAbort(Gid),
    /// Recovery: prepared from now on, and abort accepted or not, whatever was before.
    Install(Gid, Body, bool),
    /// COMMIT PREPARED or ROLLBACK PREPARED of a user's transaction, and the rows it wrote. Its
    /// second operation was committed before.
    UserEnd(Gid, Decree, Vec<Key>),
    /// With what this node held then, and whether abort was accepted.
    ParallelSafe(GenNum, Vec<(Gid, bool)>),
    /// What this node had finished and forgotten.
    Syncpoint(Below),
    /// What a restart must know; what it does not say is in the WAL from `start` on.
    Checkpoint {
        start: usize,
        forgotten: Below,
        next: Xid,
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
    pub(crate) prepared: BTreeMap<Gid, Body>,
    pub(crate) accepted: BTreeSet<Gid>,
    pub(crate) announced: BTreeMap<Gid, Body>,
    /// Users' prepared transactions, by their first operations.
    pub(crate) users: BTreeMap<Gid, UserPrepared>,
    /// How those that are no longer there ended.
    pub(crate) users_ended: BTreeMap<Gid, Decree>,
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
    /// A user's transaction ended.
    UserEnded(Gid),
    /// It cannot be done: in a real server this fails.
    Impossible(Gid),
}

impl Database {
    /// Carries a record out, once it is durable or in redo.
    pub(crate) fn apply(&mut self, record: &Record) -> Change {
        match record {
            Record::Announce(gid, body, _) => {
                self.announced.insert(*gid, body.clone());
            }
            Record::Commit(gid, body) | Record::CommitPrepared(gid, body) => {
                self.prepared.remove(gid);
                self.announced.remove(gid);
                if !self.committed.insert(*gid) {
                    return Change::CommittedTwice(*gid);
                }
                return self.commit(*gid, body);
            }
            Record::Prepare(gid, body) => {
                self.prepared.insert(*gid, body.clone());
            }
            Record::RollbackPrepared(gid) => {
                self.prepared.remove(gid);
            }
            Record::AcceptAbort(gid) => {
                self.accepted.insert(*gid);
            }
            Record::Install(gid, body, accepted) => {
                self.prepared.insert(*gid, body.clone());
                if *accepted {
                    self.accepted.insert(*gid);
                } else {
                    self.accepted.remove(gid);
                }
            }
            Record::UserEnd(first, decree, keys) => {
                if self.users.remove(first).is_none() {
                    return Change::Impossible(*first);
                }
                self.users_ended.insert(*first, *decree);
                if *decree == Decree::Commit {
                    self.write(*first, keys);
                }
                return Change::UserEnded(*first);
            }
            Record::ParallelSafe(..) | Record::Syncpoint(_) | Record::Checkpoint { .. } => {}
        }
        Change::Nothing
    }

    fn commit(&mut self, gid: Gid, body: &Body) -> Change {
        match body.user {
            None => self.write(gid, &body.keys),
            Some(Operation::Prepare(name)) => {
                let in_use = self.users.values().any(|user| user.name == name);
                let keys = body.keys.clone();
                self.users.insert(gid, UserPrepared { name, keys, ending: None });
                if in_use {
                    return Change::Impossible(gid);
                }
            }
            Some(Operation::Finish { first, decree }) => match self.users.get_mut(&first) {
                Some(user) if user.ending.is_none() => user.ending = Some((gid, decree)),
                // Only a planted bug ends it first.
                None if self.users_ended.get(&first) == Some(&decree) => {}
                _ => return Change::Impossible(gid),
            },
        }
        Change::Committed(gid)
    }

    fn write(&mut self, gid: Gid, keys: &[Key]) {
        for key in keys {
            self.rows.entry(*key).or_default().push(gid);
        }
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
        let prepared = self.prepared.iter().map(|(gid, body)| (gid, &body.keys));
        let users = self.users.iter().map(|(gid, user)| (gid, &user.keys));
        for (gid, keys) in prepared.chain(users) {
            for key in keys {
                self.locks.insert(*key, Owner::Gid(*gid));
            }
        }
    }

    /// Whether a crash of the machine leaves the transaction committed or prepared.
    pub(crate) fn holds(&self, gid: &Gid) -> bool {
        self.committed.contains(gid) || self.prepared.contains_key(gid)
    }

    /// What a transaction does, as far as this node's WAL knows it.
    pub(crate) fn body_of(&self, gid: &Gid) -> Option<Body> {
        self.wal.iter().rev().find_map(|record| match record {
            Record::Announce(g, body, _)
            | Record::Commit(g, body)
            | Record::Prepare(g, body)
            | Record::CommitPrepared(g, body)
            | Record::Install(g, body, _)
                if g == gid =>
            {
                Some(body.clone())
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
        users_are_undecided: bool,
    ) -> (Option<Below>, BTreeMap<Gid, Found>, Xid) {
        let last = self.wal.iter().rev().find_map(|record| match record {
            Record::Checkpoint { start, forgotten, next, remembered } => {
                Some((*start, *forgotten, *next, remembered))
            }
            _ => None,
        });
        let start = last.map_or(0, |(start, ..)| start);
        let mut saved = mtm_node::Checkpoint::first(me, 0, mtm_core::Lsn(0));
        if let Some((_, forgotten, next, remembered)) = last {
            saved.forgotten = forgotten;
            saved.next = next;
            saved.remembered = remembered.clone();
        }
        let mut restart = Restart::new(&saved);
        for record in &self.wal[start..] {
            let word = match record {
                Record::Announce(gid, _, local) => Word::Announced { gid: *gid, local: *local },
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
                | Record::UserEnd(..)
                | Record::ParallelSafe(..)
                | Record::Syncpoint(_)
                | Record::Checkpoint { .. } => continue,
            };
            restart.read(word);
        }
        let gids = self.prepared.keys().copied().collect();
        let prepared = Prepared { gids, ..Prepared::default() };
        let next = restart.next();
        let committed = |number| {
            self.wal.iter().any(|record| {
                matches!(record, Record::Announce(gid, _, local)
                    if *local == number && self.committed.contains(gid))
            })
        };
        let mut found: BTreeMap<Gid, Found> =
            restart.finish(&prepared, committed).found.into_iter().collect();
        if users_are_undecided {
            found.extend(self.users.keys().map(|gid| (*gid, Found::Prepared)));
        }
        if rollback_is_evidence {
            for found in found.values_mut() {
                if matches!(found, Found::AnnouncedOnly { .. }) {
                    *found = Found::Aborted;
                }
            }
        }
        (last.map(|(_, forgotten, ..)| forgotten), found, next)
    }
}
