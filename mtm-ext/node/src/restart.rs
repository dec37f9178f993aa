//! What a restarting node finds: the last word about every transaction.
//!
//! [`Restart`] is given what the node had saved (the last checkpoint), then the node's own log
//! from the checkpoint's start on, record by record, then what the server itself knows; it answers
//! with the list for [`Input::Found`](crate::Input::Found). A rollback in the log is evidence of
//! nothing, so there is no word for it.

use crate::{Below, Checkpoint, Found};
use mtm_core::{Gid, LocalXid, NodeId, Xid};
use std::collections::{BTreeMap, BTreeSet};

/// What one record of the log says.
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
            | Self::Installed { gid, .. } => Some(gid),
        }
    }
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
}

/// Users' own two-phase transactions have names that are not the machine's business.
const fn is_ours(gid: &Gid) -> bool {
    gid.generation.0 >> 63 == 0
}

impl Restart {
    /// Begins with what was saved.
    pub fn new(checkpoint: &Checkpoint) -> Self {
        let remembered = checkpoint.remembered.iter().copied();
        Self {
            me: checkpoint.node,
            forgotten: checkpoint.forgotten,
            next: checkpoint.next.max(checkpoint.forgotten[checkpoint.node.index()]),
            found: remembered.filter(|(gid, _)| is_ours(gid)).collect(),
            marked: BTreeMap::new(),
            open: BTreeSet::new(),
        }
    }

    /// The next record of the log. The transaction that was open and is not any more, if any.
    pub fn read(&mut self, word: Word) -> Option<Gid> {
        let mut closed = None;
        word.gid().into_iter().for_each(|gid| self.number(gid));
        match word {
            Word::Announced { gid, local } => {
                self.say(gid, Found::AnnouncedOnly { local });
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
                    closed = closed.or(self.open.take(&gid));
                    self.say(gid, Found::Committed);
                }
            }
            // An own announced one stays announced: nobody but this node can refuse it, and it
            // does so as soon as it is found.
            Word::AbortAccepted(gid) if gid.origin != self.me || !self.found.contains_key(&gid) => {
                self.say(gid, Found::AbortAccepted { prepared: false });
            }
            Word::AbortAccepted(_) => {}
            // It replaces what the journal said before (specs/adr/0100).
            Word::Installed { gid, accepted_abort: true } => {
                self.say(gid, Found::AbortAccepted { prepared: true });
            }
            Word::Installed { gid, accepted_abort: false } => {
                self.found.remove(&gid);
            }
        }
        closed
    }

    /// Every name in the log counts, whatever became of it: abort may have been accepted for one
    /// whose announcement never got there, and then others have heard of it.
    fn number(&mut self, gid: Gid) {
        if is_ours(&gid) && gid.origin == self.me {
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

    fn say(&mut self, gid: Gid, found: Found) {
        if is_ours(&gid) {
            self.found.insert(gid, found);
        }
    }

    /// The list, given what is prepared now and which of this node's own transactions the commit
    /// log shows committed. What is finished and forgotten is left out.
    pub fn finish(
        mut self,
        prepared: &BTreeSet<Gid>,
        mut is_committed: impl FnMut(LocalXid) -> bool,
    ) -> Vec<(Gid, Found)> {
        for gid in prepared.iter().filter(|gid| is_ours(gid)) {
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
                Found::AbortAccepted { prepared: still } => *still = prepared.contains(gid),
                Found::AnnouncedOnly { .. }
                | Found::Prepared
                | Found::Committed
                | Found::Aborted => {}
            }
        }
        let forgotten = self.forgotten;
        let matters = |(gid, last): &(Gid, Found)| {
            let finished = matches!(last, Found::Committed | Found::Aborted);
            !finished || gid.xid >= forgotten[gid.origin.index()]
        };
        self.found.into_iter().filter(matters).collect()
    }
}

#[cfg(test)]
mod tests;
