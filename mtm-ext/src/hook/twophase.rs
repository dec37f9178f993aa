//! Users' own two-phase transactions on the node where a user speaks: PREPARE TRANSACTION, COMMIT
//! PREPARED and ROLLBACK PREPARED are announced and decided like any commit (specs/adr/0111).
//!
//! Each of the statements ends a transaction of the cluster within itself, so that what must
//! follow the durable record can be done before the client hears of it: after PREPARE the note that
//! it is user-prepared; after the second operation's commit record the end of the user's
//! transaction. In this order a crash between the two is repaired at the restart.

use super::access;
use super::commit::{self, announce_used_sequences, refuse_unless_online, xid_to_announce};
use crate::pg::{proc, shmem, twophase, walwake, xact};
use crate::users::{self, Work};
use crate::{cluster, machine};
use core::cell::{Cell, RefCell};
use mtm_core::Gid;
use mtm_node::Input;
use mtm_node::user::{Name, Obstacle, Operation, Stage, User};
use mtm_paxos::commit::Decree;
use pgrx::{PgSqlErrorCode, ereport};

thread_local! {
    /// What this session's transaction does to a user's, and under which name: from the statement
    /// on, until that is done.
    static WORK: RefCell<Option<(Work, String)>> = const { RefCell::new(None) };
    /// The operation whose record is durable, and which is not done yet.
    static DURABLE: Cell<Option<Gid>> = const { Cell::new(None) };
}

/// How often to look whether somebody else's operation is over.
const LOOK_US: u64 = 5_000;

/// Before the server takes PREPARE TRANSACTION of a sound block.
pub fn before_prepare(name: Name) {
    let work = Work { operation: Operation::Prepare(name), owner: twophase::current_role() };
    WORK.set(Some((work, name.to_string())));
}

/// After it: prepares, here and everywhere.
pub fn after_prepare() {
    twophase::carry_out_prepare();
    if let Some(gid) = DURABLE.get() {
        if let Some(work) = work() {
            users::note_prepared(&gid, &work.operation, users::local(&gid));
        }
        done(gid);
    }
    WORK.take();
    xact::begin();
}

/// XACT_EVENT_PRE_PREPARE: returns when commit is decided or nothing needs deciding. After that
/// the server's own PREPARE must not fail.
pub fn pre_prepare() {
    announce_used_sequences();
    let Some(xid) = xid_to_announce() else { return };
    let Some(work) = work() else {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "transaction identifier is too long"
        );
    };
    xact::check_preparable();
    if let Operation::Prepare(name) = work.operation {
        twophase::rehearse(name.as_bytes());
    }
    let announced = commit::decide(xid, Some(&work));
    twophase::give_back_place();
    xact::mark_commit_record(announced);
    walwake::suppress();
}

/// What the running transaction does to a user's.
pub(super) fn work() -> Option<Work> {
    WORK.with_borrow(|work| work.as_ref().map(|(work, _)| work.clone()))
}

/// The transaction's record is durable: `true` if it is an operation, and so not done yet.
pub(super) fn durable(gid: Gid) -> bool {
    let is_operation = WORK.with_borrow(Option::is_some);
    if is_operation {
        DURABLE.set(Some(gid));
        xact::hold_interrupts();
    }
    is_operation
}

/// Whether an operation's record is durable and the rest not done.
pub(super) fn is_durable() -> Option<Gid> {
    DURABLE.get()
}

/// The transaction failed.
pub(super) fn forget() {
    WORK.take();
}

/// The operation is done here: others and the client may know.
fn done(gid: Gid) {
    machine::feed_after(Input::CommitDurable(gid), |state| {
        state.end_operation(&gid, Decree::Commit);
    });
    DURABLE.set(None);
    commit::done(gid);
    xact::resume_interrupts();
}

/// The first operation of the user's transaction with this name, if it is one of the cluster's.
/// What is being done to it is waited for: somebody may ask here for what another node has just
/// been told, or for the end of what another node began.
pub fn find(name: &Name, decree: Decree) -> Option<(Gid, User)> {
    refuse_unless_online();
    let start = proc::now();
    loop {
        let Some(found) = shmem::node(|state| state.users().by_name(name)) else {
            // Somebody else may have been told that it is there.
            if access::was_sure() {
                return None;
            }
            access::await_service();
            continue;
        };
        if found.1.stage == Stage::Prepared {
            return Some(found);
        }
        if proc::now().since(start) > cluster::patience_us() {
            let operation = Operation::Finish { first: found.0, decree };
            users::raise(&operation, name, Obstacle::Busy(found.0));
        }
        proc::wait(None, Some(LOOK_US));
        proc::check_interrupts();
    }
}

/// COMMIT PREPARED or ROLLBACK PREPARED. The statement's own transaction is the second operation.
pub fn end(first: Gid, name: &Name, decree: Decree) {
    let operation = Operation::Finish { first, decree };
    xact::assign_number();
    xact::mark_replicable();
    WORK.set(Some((Work { operation, owner: String::new() }, name.to_string())));
    xact::commit();
    if let Some(gid) = DURABLE.get() {
        users::end_users(&first, decree);
        done(gid);
        WORK.take();
        return xact::begin();
    }
    WORK.take();
    xact::begin();
    pgrx::error!("the end of a prepared transaction was not announced");
}

/// Raises why the name is not free for the running transaction's operation.
pub(super) fn raise_taken(obstacle: Obstacle) -> ! {
    let Some((work, name)) = WORK.with_borrow(Clone::clone) else {
        pgrx::error!("a name is missing that no operation needs: {obstacle}");
    };
    if !access::was_sure() {
        // What it knows of the name may be old.
        access::await_service();
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_T_R_SERIALIZATION_FAILURE,
            "could not serialize access: the members of the cluster changed during the statement"
        );
    }
    users::raise(&work.operation, name, obstacle)
}
