//! What is done on this node to users' own two-phase transactions, whoever asks for it.
//!
//! Both operations are ordinary transactions of the cluster; what is said here comes on top
//! (specs/adr/0111, duties 32 to 35 of `mtm-node`'s driver). The durable note that a transaction is
//! user-prepared is a record in the log, `mtm-user-prepared`; that it is ended is seen by its not
//! being prepared any more.

use crate::pg::shmem::{self, NodeState};
use crate::pg::{bgworker, message, twophase, xact};
use core::fmt::Display;
use mtm_core::Gid;
use mtm_core::wire::{DecodeError, Reader, Writer};
use mtm_logrep::journal::{UserPrepared, UserWork};
use mtm_node::user::{Obstacle, Operation};
use mtm_paxos::commit::Decree;

/// What a transaction of the cluster does to a user's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Work {
    /// The operation.
    pub operation: Operation,
    /// Who owns what is prepared; empty if that does not matter.
    pub owner: String,
}

impl Work {
    /// Reads what [`write`] wrote.
    ///
    /// # Errors
    /// When it is something else.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let read = UserWork::decode(bytes)?;
        Ok(Self { operation: operation(&read.operation)?, owner: read.owner })
    }

    /// Prepares the running transaction of a worker: a first operation under the user's name, a
    /// second one under its own.
    pub fn prepare(&self, gid: &Gid) {
        match self.operation {
            Operation::Prepare(name) => {
                let owner = (!self.owner.is_empty()).then(|| twophase::role(&self.owner));
                xact::mark_origin(mtm_core::Lsn(0));
                twophase::prepare_for(name.as_bytes(), owner);
            }
            Operation::Finish { .. } => {
                xact::mark_origin(mtm_core::Lsn(0));
                twophase::prepare(gid.to_string());
            }
        }
    }
}

/// Reads an operation that fills the bytes.
///
/// # Errors
/// When it is none.
pub fn operation(bytes: &[u8]) -> Result<Operation, DecodeError> {
    let mut r = Reader::new(bytes);
    let operation = Operation::decode(&mut r)?;
    r.finish()?;
    Ok(operation)
}

fn bytes_of(operation: &Operation) -> Vec<u8> {
    let mut bytes = Vec::new();
    operation.encode(&mut Writer::new(&mut bytes));
    bytes
}

/// Writes into the running transaction what it does. Its name is held already, so that this comes
/// after the beginning of any checkpoint that does not know the name.
pub fn write(gid: &Gid, work: &Work, decided: bool) {
    let (owner, operation) = (work.owner.clone(), bytes_of(&work.operation));
    let mut content = Vec::new();
    UserWork { gid: *gid, decided, owner, operation }.encode(&mut content);
    message::log(c"mtm-user", &content, true);
}

/// Notes durably that a user's transaction is user-prepared, under this number in this server: the
/// commit of this first operation.
pub fn note_prepared(gid: &Gid, operation: &Operation, local: u32) {
    let mut content = Vec::new();
    UserPrepared { gid: *gid, local, operation: bytes_of(operation) }.encode(&mut content);
    message::flush(message::log(c"mtm-user-prepared", &content, false));
}

/// Takes the name for an operation; `local` is the number of its transaction in this server.
///
/// # Errors
/// When the name is not free for it.
pub fn hold(gid: &Gid, operation: &Operation, local: u32) -> Result<(), Obstacle> {
    shmem::node(|state| {
        let mut users = state.users();
        users.hold(*gid, operation)?;
        users.known_as(gid, local);
        Ok(())
    })
}

/// Ends a transaction that is prepared here as decided, whatever it is, durably. What was begun
/// before and not brought to its end is done again.
pub fn carry_out(gid: &Gid, commit: bool) {
    match shmem::node(|state| state.users().operation_of(gid)) {
        None => twophase::finish(gid.to_string(), commit),
        Some(operation @ Operation::Prepare(_)) if commit => {
            note_prepared(gid, &operation, local(gid));
        }
        Some(Operation::Prepare(_)) => end_users(gid, Decree::Abort),
        Some(Operation::Finish { first, decree }) => {
            let text = gid.to_string();
            if twophase::is_there(&text) {
                twophase::finish(text, commit);
            }
            if commit {
                end_users(&first, decree);
            }
        }
    }
}

/// The number in this server of what this first operation has prepared.
pub fn local(first: &Gid) -> u32 {
    shmem::node(|state| state.users().get(first).map(|user| user.local)).unwrap_or_default()
}

/// COMMIT PREPARED or ROLLBACK PREPARED of the user's transaction with this first operation.
/// Nothing if somebody has ended it by hand.
pub fn end_users(first: &Gid, decree: Decree) {
    let user = shmem::node(|state| state.users().get(first).copied());
    if let Some(user) = user.filter(|user| twophase::is_prepared(user.local)) {
        twophase::finish(user.name.as_bytes(), decree == Decree::Commit);
    }
}

/// Whether this transaction of the cluster is prepared here.
pub fn is_prepared(gid: &Gid) -> bool {
    let user = shmem::node(|state| state.users().get(gid).copied());
    user.map_or_else(|| twophase::is_there(&gid.to_string()), |u| twophase::is_prepared(u.local))
}

/// The first operation, not decided, that is prepared here under this number.
pub fn undecided_as(state: &mut NodeState, local: u32) -> Option<Gid> {
    use mtm_node::user::Stage;
    let users = state.users();
    let of = |user: &mtm_node::user::User| user.local == local && user.stage == Stage::Preparing;
    users.iter().find(|(_, user)| of(user)).map(|(first, _)| *first)
}

/// Raises what the server says when a name is not free for an operation.
pub fn raise(operation: &Operation, name: impl Display, obstacle: Obstacle) -> ! {
    match (operation, obstacle) {
        (_, Obstacle::TableFull) => {
            bgworker::raise("53200", "maximum number of prepared transactions reached", "")
        }
        (Operation::Prepare(_), _) => {
            let text = format!("transaction identifier \"{name}\" is already in use");
            bgworker::raise("42710", &text, "")
        }
        (Operation::Finish { .. }, Obstacle::Busy(_)) => {
            let text = format!("prepared transaction with identifier \"{name}\" is busy");
            bgworker::raise("55000", &text, "")
        }
        (Operation::Finish { .. }, Obstacle::InUse | Obstacle::NotPrepared) => {
            let text = format!("prepared transaction with identifier \"{name}\" does not exist");
            bgworker::raise("42704", &text, "")
        }
    }
}

/// The name that an operation is about, for people.
pub fn name_of(operation: &Operation) -> String {
    match operation {
        Operation::Prepare(name) => name.to_string(),
        Operation::Finish { first, .. } => {
            let user = shmem::node(|state| state.users().get(first).copied());
            user.map_or_else(|| first.to_string(), |user| user.name.to_string())
        }
    }
}
