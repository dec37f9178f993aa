//! mtm-logrep-receiver-dynworker: applies one transaction at a time, prepares it, votes, and does
//! what is decided.

use super::spill::{self, Part, Rows};
use super::{crew, divergence, finish, open, users};
use crate::pg::bgworker::{self, Caught};
use crate::pg::rows::{self, Applier};
use crate::pg::shmem::{self, NodeState, WorkerSlot};
use crate::pg::{pipe, proc, segment, twophase, wal, walwake, xact};
use crate::{dmq, health, machine};
use core::panic::AssertUnwindSafe;
use core::sync::atomic::Ordering;
use mtm_core::{Gid, NodeId};
use mtm_node::{Effect, Input, Role};
use mtm_paxos::commit::{Decree, ParticipantState};

thread_local! {
    static SLOT: core::cell::Cell<usize> = const { core::cell::Cell::new(0) };
}

/// Runs until the server or the receiver ends it.
pub fn run(slot: u16) {
    let database = shmem::header().database.load(Ordering::Relaxed);
    bgworker::connect_to_database(database);
    prepare_session();
    SLOT.set(usize::from(slot));
    pipe::with_exit_hook(|| serve(usize::from(slot)), release);
}

/// Settings under which other nodes' transactions are applied.
fn prepare_session() {
    xact::set_applying();
    bgworker::set_config(c"session_replication_role", c"replica");
    bgworker::set_config(c"statement_timeout", c"0");
    bgworker::set_config(c"lock_timeout", c"0");
    bgworker::set_config(c"synchronous_commit", c"local");
    // Whatever users get by default: what is checked here must see what others have committed.
    bgworker::set_config(c"default_transaction_isolation", c"read committed");
    bgworker::set_config(c"default_transaction_read_only", c"off");
}

fn serve(slot: usize) {
    let mine = shmem::workers(|workers| {
        workers[slot].procno = proc::my_procno();
        workers[slot].pid = proc::my_pid();
        workers[slot]
    });
    let Some(ring) = segment::attach(mine.segment) else { return };
    proc::wake(mine.receiver);
    if mine.replays {
        return crew::serve(slot, mine.origin, &ring);
    }
    let mut applier = Applier::new();
    let mut task = Vec::new();
    // A cancel is meant for an apply; one that comes too late must not end the worker.
    proc::hold_cancel();
    bgworker::report_idle();
    loop {
        bgworker::handle_signals();
        match ring.pop(&mut task) {
            Ok(true) => {
                perform(&mine, &mut applier, &task);
                let receiver = shmem::workers(|workers| {
                    workers[slot].gid = None;
                    workers[slot].done += 1;
                    workers[slot].receiver
                });
                if shmem::peer(mine.origin).wants_worker.load(Ordering::SeqCst) != 0 {
                    proc::wake(receiver);
                }
                walwake::catch_up();
                bgworker::report_statistics();
                bgworker::report_idle();
            }
            Ok(false) => {
                let unreported = bgworker::report_statistics();
                open::turn();
                let patience = [unreported, open::patience_us()].into_iter().flatten().min();
                proc::wait(None, patience);
            }
            Err(corrupt) => pgrx::error!("an apply worker's ring is corrupt: {corrupt}"),
        }
    }
}

/// At the worker's end: its slot and its transaction are free for others.
fn release() {
    open::at_exit();
    refuse_mine("an apply worker ended");
    let slot = SLOT.get();
    let receiver = shmem::workers(|workers| {
        let mine = &mut workers[slot];
        if mine.replays {
            (mine.procno, mine.ended) = (proc::NO_PROC, true);
            mine.receiver
        } else {
            core::mem::replace(mine, shmem::free_worker()).receiver
        }
    });
    proc::wake(receiver);
    proc::wake(shmem::header().resolver.load(Ordering::Acquire));
}

/// At a process' end: what it was applying is refused, what it has not finished is for others.
pub fn refuse_mine(why: &str) {
    for gid in finish::release() {
        dmq::give_reason(gid, ended(why));
        machine::feed_after(Input::ApplyFailed(gid), |state| {
            if !is_prepared(state, &gid) {
                forget(state, &gid);
            }
        });
    }
}

/// Why a process' end refuses a transaction: another try may well succeed.
pub fn ended(why: &str) -> Caught {
    Caught { sqlstate: *b"40001", message: why.to_owned(), detail: String::new() }
}

/// Whether it is prepared here, or was. While PREPARE is being written it is not: who gives up then
/// has failed in it.
fn is_prepared(state: &mut NodeState, gid: &Gid) -> bool {
    match state.node().and_then(|node| node.transaction(gid)).map(|entry| entry.role) {
        Some(Role::Peer(peer)) => !matches!(
            peer.state(),
            ParticipantState::Unknown
                | ParticipantState::Applying
                | ParticipantState::Preparing(_)
                | ParticipantState::Refused
                | ParticipantState::AbortPending(false)
                | ParticipantState::AbortAccepted(false)
                | ParticipantState::Aborted
        ),
        Some(Role::Own(_)) => true,
        None => false,
    }
}

/// Applies small transactions in the receiver's own process while there is no other work: that
/// saves waking a worker, twice. What would make the receiver wait goes to a worker after all.
pub struct InPlace {
    applier: Applier,
    /// Until when to leave it to workers: a transaction took too long.
    not_before: mtm_core::Instant,
}

/// How long the receiver waits for a lock before it leaves the transaction to a worker.
const PATIENCE: &core::ffi::CStr = c"2ms";
/// A transaction that keeps the receiver for longer sends the next ones to workers ...
const SLOW_US: u64 = 5_000;
/// ... for so long.
const PAUSE_US: u64 = 1_000_000;
/// Larger transactions are left to workers.
const SMALL: usize = 8 * 1024;

impl InPlace {
    /// Makes the calling process one that can apply.
    pub fn new() -> Self {
        prepare_session();
        bgworker::set_config(c"lock_timeout", PATIENCE);
        Self { applier: Applier::new(), not_before: mtm_core::Instant(0) }
    }

    /// Applies, prepares and votes; `false` when a worker must do it.
    pub fn try_apply(&mut self, origin: NodeId, task: &[u8]) -> bool {
        let start = proc::now();
        if task.len() > SMALL || start < self.not_before {
            return false;
        }
        let Ok((gid, rows @ Rows::Memory(_))) = spill::decode(task) else { return false };
        // What comes from here on is meant for this transaction.
        proc::allow_cancel();
        if !take_note(&gid) {
            proc::hold_cancel();
            return true;
        }
        let applier = &mut self.applier;
        let apply = AssertUnwindSafe(|| apply(origin, applier, &gid, rows, None));
        let outcome = bgworker::catching(apply);
        proc::hold_cancel();
        xact::unmark_commit_record();
        let done = match outcome {
            Ok(true) => {
                let worker = if open::is_keeping() { proc::my_procno() } else { proc::NO_PROC };
                prepared(&gid, worker);
                true
            }
            Ok(false) => {
                twophase::abort();
                let_go(&gid);
                true
            }
            Err(caught) if caught.sqlstate == LOCKED => {
                twophase::abort();
                let_go(&gid);
                false
            }
            Err(caught) => {
                twophase::abort();
                failed(&gid, &caught);
                true
            }
        };
        let end = proc::now();
        if end.since(start) > SLOW_US {
            self.not_before = end.plus_us(PAUSE_US);
        }
        bgworker::report_statistics();
        bgworker::report_idle();
        done
    }
}

/// `lock_not_available`
const LOCKED: [u8; 5] = *b"55P03";

/// From here on this process has the transaction; `false` if it is not to be applied any more.
fn take_note(gid: &Gid) -> bool {
    let me = proc::my_procno();
    shmem::node(|state| {
        let applies = state.participant(gid) == Some(ParticipantState::Applying);
        if applies && let Ok(note) = state.notes.entry(*gid, || finish::free(me)) {
            note.worker = me;
        }
        applies
    })
}

fn perform(mine: &WorkerSlot, applier: &mut Applier, task: &[u8]) {
    let (gid, rows) = match spill::decode(task) {
        Ok(decoded) => decoded,
        Err(error) => pgrx::error!("malformed task for an apply worker: {error}"),
    };
    let me = proc::my_procno();
    // What comes from here on is meant for this transaction.
    proc::allow_cancel();
    if !take_note(&gid) {
        proc::hold_cancel();
        return rows.remove();
    }
    let outcome = bgworker::catching(AssertUnwindSafe(|| {
        apply(mine.origin, applier, &gid, rows, Some(crate::hook::apply_ddl))
    }));
    proc::hold_cancel();
    xact::unmark_commit_record();
    rows.remove();
    match outcome {
        Ok(true) => {
            prepared(&gid, me);
            await_decision(&gid);
        }
        Ok(false) => {
            twophase::abort();
            let_go(&gid);
        }
        Err(caught) => {
            twophase::abort();
            failed(&gid, &caught);
        }
    }
}

/// Applies and prepares; `false` if abort was promised meanwhile. Without `ddl`, what may take long
/// is left to a worker.
fn apply(
    origin: NodeId,
    applier: &mut Applier,
    gid: &Gid,
    rows: Rows<'_>,
    ddl: Option<fn(&[u8])>,
) -> bool {
    twophase::begin();
    // The marker, too, is no change of this node, and yet no filter may hide it.
    xact::mark_origin(mtm_core::Lsn(0));
    crate::hook::commit::write_marker(gid);
    xact::mark_rows_of(origin);
    applier.begin();
    let mut schema_changed = false;
    let mut execute = |payload: &[u8]| {
        schema_changed = true;
        match ddl {
            Some(ddl) => ddl(payload),
            None => bgworker::raise("55P03", "left to an apply worker", ""),
        }
    };
    apply_all(applier, gid, rows, &mut execute);
    applier.finish();
    let work = applier.work();
    if let Some(work) = &work {
        users::hold(gid, work, ddl.is_some());
        crate::users::write(gid, work, false);
    }
    let keep = match rows {
        Rows::Memory(rows) if rows.len() <= SMALL && !schema_changed && work.is_none() => {
            open::check(gid);
            Some(rows)
        }
        _ => None,
    };
    let may = may_prepare(gid, keep.is_some());
    match (keep, work) {
        _ if !may => {}
        (Some(rows), _) => open::promise(gid, rows),
        (None, work) => {
            if !schema_changed {
                twophase::count_rows();
            }
            match work {
                Some(work) => work.prepare(gid),
                None => {
                    xact::mark_origin(mtm_core::Lsn(0));
                    twophase::prepare(gid.to_string());
                }
            }
        }
    }
    may
}

/// Applies what this node had promised to commit when it stopped, and prepares it. For a process
/// that does nothing else yet.
pub fn apply_again(gid: &Gid, rows: &[u8]) {
    prepare_session();
    let mut applier = Applier::new();
    twophase::begin();
    xact::mark_origin(mtm_core::Lsn(0));
    crate::hook::commit::write_marker(gid);
    xact::mark_rows_of(gid.origin);
    applier.begin();
    // It was checked before the promise.
    applier.unchecked();
    applier.apply(rows, &mut |_| pgrx::error!("the promise to commit {gid} has DDL"));
    applier.finish();
    xact::mark_origin(mtm_core::Lsn(0));
    twophase::prepare(gid.to_string());
    xact::unmark_commit_record();
}

/// Applies all rows of a transaction, wherever they are.
pub fn apply_all(applier: &mut Applier, gid: &Gid, rows: Rows<'_>, ddl: &mut dyn FnMut(&[u8])) {
    let read = match rows {
        Rows::Memory(bytes) => {
            applier.apply(bytes, ddl);
            Ok(())
        }
        Rows::File(name) => spill::replay(name, |piece| {
            proc::check_interrupts();
            applier.apply(piece, ddl);
        }),
        Rows::Early(name, xid) => spill::replay_early(name, |part| match part {
            Part::Children(children) => applier.only(xid, children),
            Part::Piece(piece) => {
                proc::check_interrupts();
                applier.begin_piece();
                applier.apply(piece, ddl);
            }
        }),
    };
    if let Err(error) = read {
        pgrx::ereport!(
            ERROR,
            pgrx::PgSqlErrorCode::ERRCODE_IO_ERROR,
            format!("could not read the spill file of transaction {gid}: {error}")
        );
    }
}

/// Whether the transaction may still be prepared.
fn may_prepare(gid: &Gid, keep: bool) -> bool {
    // The promise will be behind this.
    let from = if keep { wal::inserted().0 } else { 0 };
    let note = |state: &mut NodeState| {
        if let Some(note) = state.notes.get_mut(gid) {
            note.open = from;
        }
    };
    machine::feed_after(Input::TryPrepare(*gid), note).contains(&Effect::WritePrepare(*gid))
}

/// Votes; from here on `worker` has the transaction.
fn prepared(gid: &Gid, worker: proc::ProcNo) {
    health::prepared();
    machine::feed_after(Input::PrepareDurable(*gid), |state| {
        if let Some(note) = state.notes.get_mut(gid) {
            note.worker = worker;
        }
    });
}

/// Waits for the outcome of the prepared transaction and carries it out.
fn await_decision(gid: &Gid) {
    while open::is_keeping() {
        proc::wait(None, open::patience_us());
        bgworker::handle_signals();
        open::turn();
    }
    while !finish::my_own(gid) {
        proc::wait(None, None);
        bgworker::handle_signals();
    }
}

fn failed(gid: &Gid, caught: &Caught) {
    let lost = caught.sqlstate == CANCELED;
    let caught = if lost { lost_conflict(gid) } else { caught.clone() };
    health::refused(&caught);
    note_suspect(&caught);
    dmq::give_reason(*gid, caught);
    machine::feed_if(Input::ApplyFailed(*gid), |state| forget_mine(state, gid));
}

/// Nobody has it any more, unless another process has: recovery may have taken it over, with what
/// it has committed. Then `false`.
fn forget_mine(state: &mut NodeState, gid: &Gid) -> bool {
    let me = proc::my_procno();
    let mine = state.notes.get_mut(gid).is_none_or(|note| note.worker == me);
    if mine {
        forget(state, gid);
    }
    mine
}

/// Nobody has it any more.
pub fn forget(state: &mut NodeState, gid: &Gid) {
    state.notes.remove(gid);
    // Unless recovery has installed it, with its name.
    if !is_prepared(state, gid) {
        state.end_operation(gid, Decree::Abort);
    }
}

/// A row is missing, or in the way: if that happens again and again, `mtm-health` finds out why.
fn note_suspect(caught: &Caught) {
    let (table, missing) = rows::failed_row();
    match (&caught.sqlstate, missing) {
        (b"40001", Some(query)) => health::suspect(&caught.message, &query),
        (b"23505", _) if table != 0 => {
            if let Some(query) = divergence::query_of_duplicate(table, &caught.detail) {
                let text = format!("{}: {}", caught.message, caught.detail);
                health::suspect(&text, &query);
            }
        }
        _ => {}
    }
}

/// `query_canceled`: nobody cancels an apply worker but who found that it lost a conflict.
const CANCELED: [u8; 5] = *b"57014";

fn lost_conflict(gid: &Gid) -> Caught {
    let winner = shmem::node(|state| state.notes.get_mut(gid).and_then(|note| note.lost_to));
    let detail = winner.map_or_else(String::new, |winner| {
        format!("Transaction {gid} lost against transaction {winner} of node {}.", winner.origin)
    });
    Caught {
        sqlstate: *b"40001",
        message: "could not serialize access due to a concurrent transaction on another node"
            .to_owned(),
        detail,
    }
}

/// It was not, and will not be, prepared: nobody has it any more.
fn let_go(gid: &Gid) {
    shmem::node(|state| forget_mine(state, gid));
}
