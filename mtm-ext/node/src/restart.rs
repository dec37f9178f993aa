//! What a restarting node finds: the last word about every transaction.
//!
//! [`Restart`] is given what the node had saved (the last checkpoint), then the node's own log
//! from the checkpoint's start on, record by record, then what the server itself knows; it answers
//! with the list for [`Input::Found`](crate::Input::Found). A rollback in the log is evidence of
//! nothing, so there is no word for it.

use crate::checkpoint::SavedUser;
use crate::user::{Name, Operation, Stage};
use crate::{Below, Checkpoint, Found};
use mtm_core::{Gid, LocalXid, NodeId, Xid};
use mtm_paxos::commit::Decree;
use std::collections::{BTreeMap, BTreeSet};

/// What one record of the log says.
#[expect(clippy::large_enum_variant, reason = "it is copied, and there is one at a time")]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Word {
    /// This node announced its transaction.
    Announced {
        /// Its name.
        gid: Gid,
        /// Its number in this server.
        local: LocalXid,
    },
    /// The local transaction with this (32-bit) number bears this name.
    Marked {
        /// Number in this server.
        xid: u32,
        /// Its name.
        gid: Gid,
    },
    /// A local transaction was committed, by COMMIT or COMMIT PREPARED.
    Committed {
        /// Number in this server.
        xid: u32,
        /// The prepared transaction's name, if it is one of the cluster.
        gid: Option<Gid>,
    },
    /// Abort was accepted.
    AbortAccepted(Gid),
    /// This node keeps another one's transaction open in a local one, promised as if prepared.
    Opened {
        /// Number of the local transaction.
        xid: u32,
        /// Its name.
        gid: Gid,
    },
    /// It does not any more: rolled back, or prepared in earnest.
    Closed(Gid),
    /// Recovery installed it, as the donor had it.
    Installed {
        /// The transaction.
        gid: Gid,
        /// The donor had accepted abort.
        accepted_abort: bool,
    },
    /// A transaction that is about to be announced, prepared or committed is an operation on a
    /// user's two-phase transaction.
    User {
        /// Its number in this server.
        xid: u32,
        /// Its name.
        gid: Gid,
        /// What it does.
        operation: Operation,
        /// It is decided: what is prepared here with this is user-prepared.
        decided: bool,
    },
    /// What this first operation did is committed: a user's transaction is user-prepared.
    UserPrepared(Gid),
}

impl Word {
    /// The transaction of the cluster of which it speaks.
    const fn gid(&self) -> Option<Gid> {
        match *self {
            Self::Committed { gid, .. } => gid,
            Self::Announced { gid, .. }
            | Self::Marked { gid, .. }
            | Self::Opened { gid, .. }
            | Self::Closed(gid)
            | Self::AbortAccepted(gid)
            | Self::Installed { gid, .. }
            | Self::User { gid, .. }
            | Self::UserPrepared(gid) => Some(gid),
        }
    }
}

/// What the log says of a user's transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct User {
    name: Name,
    local: u32,
    /// If it is prepared, it is user-prepared.
    decided: bool,
    /// The log says that it is user-prepared.
    noted: bool,
}

/// A user's transaction that is prepared now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FoundUser {
    /// Its first operation.
    pub first: Gid,
    /// The user's name for it.
    pub name: Name,
    /// Its number in this server.
    pub local: u32,
    /// Where it stands.
    pub stage: Stage,
    /// It is user-prepared, and the log does not say so yet.
    pub unnoted: bool,
    /// Its second operation is committed: what that says is to be done now.
    pub ended: bool,
}

/// All that is found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Findings {
    /// For `Found`, each once, in the order of gids.
    pub found: Vec<(Gid, Found)>,
    /// For [`Users`](crate::user::Users).
    pub users: Vec<FoundUser>,
}

/// What is prepared now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Prepared {
    /// What bears a gid as its name.
    pub gids: BTreeSet<Gid>,
    /// Numbers in this server of all that is prepared, whatever its name.
    pub local: BTreeSet<u32>,
}

/// Collects what is found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Restart {
    me: NodeId,
    forgotten: Below,
    /// Above every own number that was read.
    next: Xid,
    found: BTreeMap<Gid, Found>,
    /// Local transactions that are not committed yet, as far as the log was read.
    marked: BTreeMap<u32, Gid>,
    /// Promised in an open local transaction.
    open: BTreeSet<Gid>,
    /// Users' transactions, by first operation.
    users: BTreeMap<Gid, User>,
    /// What second operations make of which transaction.
    seconds: BTreeMap<Gid, (Gid, Decree)>,
}

impl Restart {
    /// Begins with what was saved.
    pub fn new(checkpoint: &Checkpoint) -> Self {
        let user = |saved: &SavedUser| {
            let noted = saved.stage != Stage::Preparing;
            let user = User { name: saved.name, local: saved.local, decided: noted, noted };
            (saved.first, user)
        };
        let second = |saved: &SavedUser| match saved.stage {
            Stage::Finishing { second, decree } => Some((second, (saved.first, decree))),
            Stage::Preparing | Stage::Prepared => None,
        };
        Self {
            me: checkpoint.node,
            forgotten: checkpoint.forgotten,
            next: checkpoint.next.max(checkpoint.forgotten[checkpoint.node.index()]),
            found: checkpoint.remembered.iter().copied().collect(),
            marked: BTreeMap::new(),
            open: BTreeSet::new(),
            users: checkpoint.users.iter().map(user).collect(),
            seconds: checkpoint.users.iter().filter_map(second).collect(),
        }
    }

    /// The next record of the log. The transaction that was open and is not any more, if any.
    pub fn read(&mut self, word: Word) -> Option<Gid> {
        let mut closed = None;
        word.gid().into_iter().for_each(|gid| self.number(gid));
        match word {
            Word::Announced { gid, local } => {
                self.found.insert(gid, Found::AnnouncedOnly { local });
            }
            Word::Marked { xid, gid } => {
                self.marked.insert(xid, gid);
            }
            Word::Opened { xid, gid } => {
                // Its marker may lie before what is read.
                self.marked.insert(xid, gid);
                self.open.insert(gid);
            }
            Word::Closed(gid) => closed = self.open.take(&gid),
            Word::Committed { xid, gid } => {
                for gid in [self.marked.remove(&xid), gid].into_iter().flatten() {
                    // Both are closed, though only the first is told.
                    let open = self.open.take(&gid);
                    closed = closed.or(open);
                    self.found.insert(gid, Found::Committed);
                }
            }
            // An own announced one stays announced: nobody but this node can refuse it, and it
            // does so as soon as it is found.
            Word::AbortAccepted(gid) if gid.origin != self.me || !self.found.contains_key(&gid) => {
                self.found.insert(gid, Found::AbortAccepted { prepared: false });
            }
            Word::AbortAccepted(_) => {}
            // It replaces what the journal said before (specs/adr/0100).
            Word::Installed { gid, accepted_abort: true } => {
                self.found.insert(gid, Found::AbortAccepted { prepared: true });
            }
            Word::Installed { gid, accepted_abort: false } => {
                self.found.remove(&gid);
            }
            Word::User { xid, gid, operation: Operation::Prepare(name), decided } => {
                self.users.insert(gid, User { name, local: xid, decided, noted: false });
            }
            Word::User { gid, operation: Operation::Finish { first, decree }, .. } => {
                self.seconds.insert(gid, (first, decree));
            }
            Word::UserPrepared(gid) => {
                if let Some(user) = self.users.get_mut(&gid) {
                    (user.decided, user.noted) = (true, true);
                }
                self.found.insert(gid, Found::Committed);
            }
        }
        closed
    }

    /// Every name in the log counts, whatever became of it: abort may have been accepted for one
    /// whose announcement never got there, and then others have heard of it.
    fn number(&mut self, gid: Gid) {
        if gid.origin == self.me {
            self.next = self.next.max(Xid(gid.xid.0.saturating_add(1)));
        }
    }

    /// What was open when the log ended, as far as it was read: before [`Self::finish`] each must be
    /// prepared with the rows that the log has, unless it is prepared already, and the log must
    /// say that it is closed.
    pub const fn open(&self) -> &BTreeSet<Gid> {
        &self.open
    }

    /// The number with which own announcements go on, once everything is read.
    pub const fn next(&self) -> Xid {
        self.next
    }

    /// The list, given what is prepared now and which of this node's own transactions the commit
    /// log shows committed. What is finished and forgotten is left out.
    pub fn finish(
        mut self,
        prepared: &Prepared,
        mut is_committed: impl FnMut(LocalXid) -> bool,
    ) -> Findings {
        let mut undecided = prepared.gids.clone();
        let is_there = |user: &User| prepared.local.contains(&user.local);
        for (first, user) in self.users.iter().filter(|(_, user)| is_there(user)) {
            if user.decided {
                self.found.insert(*first, Found::Committed);
            } else {
                undecided.insert(*first);
            }
        }
        for gid in &undecided {
            let last = self.found.entry(*gid).or_insert(Found::Prepared);
            if !matches!(last, Found::AbortAccepted { .. }) {
                *last = Found::Prepared;
            }
        }
        for (gid, last) in &mut self.found {
            match last {
                Found::AnnouncedOnly { local } if gid.origin == self.me && is_committed(*local) => {
                    *last = Found::Committed;
                }
                Found::AbortAccepted { prepared: still } => *still = undecided.contains(gid),
                Found::AnnouncedOnly { .. }
                | Found::Prepared
                | Found::Committed
                | Found::Aborted => {}
            }
        }
        let users = self.users.iter().filter(|(_, user)| is_there(user));
        let users = users.map(|(first, user)| self.found_user(*first, user, &undecided)).collect();
        let forgotten = self.forgotten;
        let matters = |(gid, last): &(Gid, Found)| {
            let finished = matches!(last, Found::Committed | Found::Aborted);
            !finished || gid.xid >= forgotten[gid.origin.index()]
        };
        Findings { found: self.found.into_iter().filter(matters).collect(), users }
    }

    /// Where it stands, once it is known what is prepared and what is committed. Of the second
    /// operations that were ever begun, one at most is committed; one that is not prepared has left
    /// nothing here.
    fn found_user(&self, first: Gid, user: &User, undecided: &BTreeSet<Gid>) -> FoundUser {
        let seconds = || self.seconds.iter().filter(|(_, (of, _))| *of == first);
        let is_committed = |gid: &Gid| self.found.get(gid) == Some(&Found::Committed);
        let ended = seconds().find(|(gid, _)| is_committed(gid));
        let open = || seconds().find(|(gid, _)| undecided.contains(gid));
        let stage = match ended.or_else(open) {
            Some((second, (_, decree))) => Stage::Finishing { second: *second, decree: *decree },
            None if user.decided => Stage::Prepared,
            None => Stage::Preparing,
        };
        FoundUser {
            first,
            name: user.name,
            local: user.local,
            stage,
            unnoted: user.decided && !user.noted,
            ended: ended.is_some(),
        }
    }
}

#[cfg(test)]
mod tests;
