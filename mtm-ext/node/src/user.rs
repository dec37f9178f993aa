//! Users' own two-phase transactions: which names are in use on this node, and by what.
//!
//! PREPARE TRANSACTION and its end are two operations, each a transaction of the cluster like any
//! other, with a gid of its own, announced, voted on, decided and recovered by [`Node`](crate::Node)
//! (specs/adr/0111; TLA+ `UserTwoPhase`):
//!
//! * [`Operation::Prepare`] is *committed* when the user's transaction is user-prepared on all
//!   members: it is then part of what the nodes have in common, like a row, and no longer the
//!   machine's business. So nobody settles it, and whoever recovers gets it with the commits.
//! * [`Operation::Finish`] changes that, as a transaction changes a row.
//!
//! What the two do to a name is kept here, as rows are kept by the database: an operation holds
//! its name from before its announcement or PREPARE until it ends on this node. Must never: let
//! two operations hold one name, let go of a name because somebody waited for long.

use crate::table::{Slot, Table};
use core::fmt;
use mtm_core::Gid;
use mtm_core::wire::{DecodeError, DecodeErrorKind, Reader, Writer};
use mtm_paxos::commit::Decree;

/// Longest name, in bytes: PostgreSQL's own limit.
pub const MAX_NAME: usize = 199;

/// The name a user gave his transaction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    bytes: [u8; MAX_NAME],
    len: u8,
}

impl Name {
    /// A name of these bytes, or `None` if there are too many.
    pub fn new(name: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_NAME];
        bytes.get_mut(..name.len())?.copy_from_slice(name);
        Some(Self { bytes, len: u8::try_from(name.len()).ok()? })
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Appends its length and its bytes.
    pub fn encode(&self, w: &mut Writer<'_>) {
        w.u8(self.len);
        w.raw(self.as_bytes());
    }

    /// Reads one.
    ///
    /// # Errors
    /// When the bytes are none.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let long = r.error(DecodeErrorKind::Range("name"));
        let len = usize::from(r.u8()?);
        Self::new(r.take(len)?).ok_or(long)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(self.as_bytes()))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.as_bytes()))
    }
}

/// One of the two operations: goes with the announcement and with the rows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Operation {
    /// PREPARE TRANSACTION with this name.
    Prepare(Name),
    /// COMMIT PREPARED or ROLLBACK PREPARED. It says which transaction it ends by that one's first
    /// operation: the name may be in use again by the time it arrives.
    Finish {
        /// The first operation.
        first: Gid,
        /// What becomes of the user's transaction.
        decree: Decree,
    },
}

impl Operation {
    /// Appends its bytes: a tag, then the name with its length or the gid.
    pub fn encode(&self, w: &mut Writer<'_>) {
        match self {
            Self::Prepare(name) => {
                w.u8(b'p');
                name.encode(w);
            }
            Self::Finish { first, decree: Decree::Commit } => {
                w.u8(b'c');
                first.encode(w);
            }
            Self::Finish { first, decree: Decree::Abort } => {
                w.u8(b'r');
                first.encode(w);
            }
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// When the bytes are none.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let unknown = r.error(DecodeErrorKind::Unknown("user's operation"));
        match r.u8()? {
            b'p' => Ok(Self::Prepare(Name::decode(r)?)),
            b'c' => Ok(Self::Finish { first: Gid::decode(r)?, decree: Decree::Commit }),
            b'r' => Ok(Self::Finish { first: Gid::decode(r)?, decree: Decree::Abort }),
            _ => Err(unknown),
        }
    }
}

/// Where a user's transaction stands on this node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Stage {
    /// Its first operation is not decided here.
    Preparing,
    /// It waits for its user, for as long as he likes.
    Prepared,
    /// This second operation holds it and is not decided here, or not done.
    Finishing {
        /// The second operation.
        second: Gid,
        /// What it makes of the user's transaction.
        decree: Decree,
    },
}

/// A user's transaction on this node, kept under the gid of its first operation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct User {
    /// The user's name for it.
    pub name: Name,
    /// Its number in this server, 32 bits as in the log; 0 while it is not known.
    pub local: u32,
    /// Where it stands.
    pub stage: Stage,
}

/// Why an operation may not go on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum Obstacle {
    /// Another operation holds the name. Not announced yet: refuse, as the server does. Applying:
    /// wait until that one ends here, and say so (`Input::Conflict`). Recovering: `Input::Drop` it.
    #[error("transaction {0} holds the name")]
    Busy(Gid),
    /// The name is in use.
    #[error("the name is in use")]
    InUse,
    /// There is no such transaction, or no longer.
    #[error("there is no such prepared transaction")]
    NotPrepared,
    /// There is no place for one more.
    #[error("there are too many prepared transactions")]
    TableFull,
}

/// The users' transactions of one node, borrowed; the caller holds the lock that guards them.
#[derive(Debug)]
pub struct Users<'a> {
    table: Table<'a, User>,
}

impl<'a> Users<'a> {
    /// Views these slots.
    pub const fn new(slots: &'a mut [Slot<User>]) -> Self {
        Self { table: Table::new(slots) }
    }

    /// All of them, by first operation.
    pub fn iter(&self) -> impl Iterator<Item = (&Gid, &User)> {
        self.table.iter()
    }

    /// The one whose first operation is `first`.
    pub fn get(&self, first: &Gid) -> Option<&User> {
        self.table.get(first)
    }

    /// The one with this name, for COMMIT PREPARED.
    pub fn by_name(&self, name: &Name) -> Option<(Gid, User)> {
        self.iter().find(|(_, user)| user.name == *name).map(|(gid, user)| (*gid, *user))
    }

    /// Takes the name: before the announcement on the origin, before PREPARE on a peer, before
    /// recovery applies or installs it, after a restart for what is prepared. Again for the same
    /// operation is nothing.
    ///
    /// # Errors
    /// When the name is not free for it.
    pub fn hold(&mut self, gid: Gid, operation: &Operation) -> Result<(), Obstacle> {
        match operation {
            Operation::Prepare(name) => self.hold_name(gid, *name),
            Operation::Finish { first, decree } => {
                let user = self.table.get_mut(first).ok_or(Obstacle::NotPrepared)?;
                match user.stage {
                    Stage::Preparing => Err(Obstacle::Busy(*first)),
                    Stage::Finishing { second, .. } if second != gid => Err(Obstacle::Busy(second)),
                    Stage::Prepared | Stage::Finishing { .. } => {
                        user.stage = Stage::Finishing { second: gid, decree: *decree };
                        Ok(())
                    }
                }
            }
        }
    }

    fn hold_name(&mut self, gid: Gid, name: Name) -> Result<(), Obstacle> {
        if self.table.get(&gid).is_some() {
            return Ok(());
        }
        match self.by_name(&name) {
            None => {}
            Some((holder, User { stage: Stage::Preparing, .. }))
            | Some((_, User { stage: Stage::Finishing { second: holder, .. }, .. })) => {
                return Err(Obstacle::Busy(holder));
            }
            Some((_, User { stage: Stage::Prepared, .. })) => return Err(Obstacle::InUse),
        }
        let user = User { name, local: 0, stage: Stage::Preparing };
        self.table.entry(gid, || user).map(|_| ()).map_err(|_| Obstacle::TableFull)
    }

    /// Notes under which number this server knows the transaction of this first operation.
    pub fn known_as(&mut self, first: &Gid, local: u32) {
        if let Some(user) = self.table.get_mut(first) {
            user.local = local;
        }
    }

    /// The operation of this transaction, while it holds a name or has made a transaction
    /// user-prepared.
    pub fn operation_of(&self, gid: &Gid) -> Option<Operation> {
        if let Some(user) = self.table.get(gid) {
            return Some(Operation::Prepare(user.name));
        }
        self.iter().find_map(|(first, user)| match user.stage {
            Stage::Finishing { second, decree } if second == *gid => {
                Some(Operation::Finish { first: *first, decree })
            }
            _ => None,
        })
    }

    /// The operation ended on this node, durably: committed, or without any effect (aborted,
    /// dropped, given up, discarded). Whoever waits for the name tries again.
    pub fn end(&mut self, gid: Gid, operation: &Operation, outcome: Decree) {
        match (operation, outcome) {
            (Operation::Prepare(_), Decree::Commit) => {
                if let Some(user) = self.table.get_mut(&gid)
                    && user.stage == Stage::Preparing
                {
                    user.stage = Stage::Prepared;
                }
            }
            (Operation::Prepare(_), Decree::Abort) => {
                if self.table.get(&gid).is_some_and(|user| user.stage == Stage::Preparing) {
                    self.table.remove(&gid);
                }
            }
            (Operation::Finish { first, .. }, _) => {
                let Some(user) = self.table.get_mut(first) else { return };
                if matches!(user.stage, Stage::Finishing { second, .. } if second == gid) {
                    user.stage = Stage::Prepared;
                    if outcome == Decree::Commit {
                        self.table.remove(first);
                    }
                }
            }
        }
    }

    /// After a restart, before everything else is held again: this one is user-prepared.
    ///
    /// # Errors
    /// When there is no place for it.
    pub fn restore(&mut self, first: Gid, name: Name) -> Result<(), Obstacle> {
        let user = User { name, local: 0, stage: Stage::Prepared };
        self.table.entry(first, || user).map(|_| ()).map_err(|_| Obstacle::TableFull)
    }
}

#[cfg(test)]
mod tests;
