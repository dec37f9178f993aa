//! mtm-logrep-receiver-dynworker: applies one transaction at a time, prepares it, votes, and does
//! what is decided.

use super::spill::{self, Part, Rows};
use super::{inbox, resolver};
use crate::dmq;
use crate::pg::bgworker::{self, Caught};
use crate::pg::rows::Applier;
use crate::pg::shmem::{self, WorkerSlot};
use crate::pg::{pipe, proc, segment, twophase, walwake, xact};
use core::panic::AssertUnwindSafe;
use core::sync::atomic::Ordering;
use mtm_core::{Gid, NodeId};
use mtm_node::message::{Message, Refusal};
use mtm_paxos::commit::{ParticipantState, ParticipantStep};

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
                proc::wait(None, unreported);
            }
            Err(corrupt) => pgrx::error!("an apply worker's ring is corrupt: {corrupt}"),
        }
    }
}

/// At the worker's end: its slot and its transaction are free for others.
fn release() {
    let me = proc::my_procno();
    let orphans: Vec<(Gid, Option<ParticipantStep>)> = shmem::participants(|table| {
        let mine: Vec<Gid> =
            table.iter().filter(|(_, part)| part.worker == me).map(|(gid, _)| *gid).collect();
        mine.into_iter()
            .map(|gid| {
                let step = table.get_mut(&gid).map(|part| {
                    part.worker = proc::NO_PROC;
                    part.taken = false;
                    part.participant.failed()
                });
                (gid, step)
            })
            .collect()
    });
    for (gid, step) in orphans {
        if step == Some(ParticipantStep::VoteNo) {
            let caught = Caught {
                sqlstate: *b"40001",
                message: "an apply worker ended".to_owned(),
                detail: String::new(),
            };
            vote_no(&gid, &caught);
        }
    }
    let slot = SLOT.get();
    let receiver = shmem::workers(|workers| {
        core::mem::replace(&mut workers[slot], shmem::free_worker()).receiver
    });
    proc::wake(receiver);
    proc::wake(shmem::header().resolver.load(Ordering::Acquire));
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
        take_note(&gid);
        let applier = &mut self.applier;
        let apply = AssertUnwindSafe(|| apply(origin, applier, &gid, rows, leave_to_worker));
        let outcome = bgworker::catching(apply);
        proc::hold_cancel();
        xact::unmark_commit_record();
        let done = match outcome {
            Ok(true) => {
                prepared(&gid, proc::NO_PROC);
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

/// DDL may take long.
fn leave_to_worker(_ddl: &[u8]) {
    bgworker::raise("55P03", "left to an apply worker", "");
}

fn take_note(gid: &Gid) {
    let me = proc::my_procno();
    shmem::participants(|table| {
        if let Some(part) = table.get_mut(gid) {
            part.worker = me;
        }
    });
}

fn perform(mine: &WorkerSlot, applier: &mut Applier, task: &[u8]) {
    let (gid, rows) = match spill::decode(task) {
        Ok(decoded) => decoded,
        Err(error) => pgrx::error!("malformed task for an apply worker: {error}"),
    };
    let me = proc::my_procno();
    // What comes from here on is meant for this transaction.
    proc::allow_cancel();
    take_note(&gid);
    let outcome = bgworker::catching(AssertUnwindSafe(|| {
        apply(mine.origin, applier, &gid, rows, crate::hook::apply_ddl)
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

/// Applies and prepares; `false` if abort was promised meanwhile.
fn apply(
    origin: NodeId,
    applier: &mut Applier,
    gid: &Gid,
    rows: Rows<'_>,
    mut ddl: impl FnMut(&[u8]),
) -> bool {
    twophase::begin();
    xact::mark_rows_of(origin);
    applier.begin();
    let mut schema_changed = false;
    let mut ddl = |payload: &[u8]| {
        schema_changed = true;
        ddl(payload);
    };
    let read = match rows {
        Rows::Memory(bytes) => {
            applier.apply(bytes, &mut ddl);
            Ok(())
        }
        Rows::File(name) => spill::replay(name, |piece| {
            proc::check_interrupts();
            applier.apply(piece, &mut ddl);
        }),
        Rows::Early(name) => spill::replay_early(name, |part| match part {
            Part::Children(children) => applier.only(gid.xid, children),
            Part::Piece(piece) => {
                proc::check_interrupts();
                applier.begin_piece();
                applier.apply(piece, &mut ddl);
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
    applier.finish();
    let may = shmem::participants(|table| {
        table.get_mut(gid).is_some_and(|part| part.participant.try_prepare())
    });
    if may {
        xact::mark_origin(mtm_core::Lsn(0));
        if !schema_changed {
            twophase::count_rows();
        }
        twophase::prepare(&gid.to_string());
    }
    may
}

fn step(gid: &Gid, input: impl FnOnce(&mut shmem::Part) -> ParticipantStep) -> ParticipantStep {
    shmem::participants(|table| table.get_mut(gid).map_or(ParticipantStep::Nothing, input))
}

/// Votes; from here on `worker` has the transaction.
fn prepared(gid: &Gid, worker: proc::ProcNo) {
    let now = proc::now().0;
    let next = step(gid, |part| {
        part.asked_us = now;
        part.worker = worker;
        part.participant.prepared()
    });
    match next {
        ParticipantStep::VoteYes => dmq::send(gid.origin, &Message::Prepared(*gid)),
        ParticipantStep::PersistAbort => inbox::accept_abort(gid.origin, gid),
        _ => {}
    }
}

/// Waits for the outcome of the prepared transaction and carries it out.
fn await_decision(gid: &Gid) {
    let me = proc::my_procno();
    loop {
        let state = shmem::participants(|table| {
            // Whoever heard the decision may have taken the transaction.
            let part = table.get_mut(gid).filter(|part| part.worker == me)?;
            let state = part.participant.state();
            part.taken =
                matches!(state, ParticipantState::Committing | ParticipantState::RollingBack);
            Some(state)
        });
        match state {
            Some(ParticipantState::Committing) => return resolver::finish(gid, true),
            Some(ParticipantState::RollingBack) => return resolver::finish(gid, false),
            Some(
                ParticipantState::Prepared
                | ParticipantState::AbortPending(_)
                | ParticipantState::AbortAccepted(true),
            ) => {}
            _ => return,
        }
        proc::wait(None, None);
        bgworker::handle_signals();
    }
}

fn failed(gid: &Gid, caught: &Caught) {
    let next = step(gid, |part| {
        part.worker = proc::NO_PROC;
        part.participant.failed()
    });
    match next {
        ParticipantStep::VoteNo if caught.sqlstate == CANCELED => vote_no(gid, &lost_conflict(gid)),
        ParticipantStep::VoteNo => vote_no(gid, caught),
        ParticipantStep::PersistAbort => inbox::accept_abort(gid.origin, gid),
        _ => {}
    }
}

/// `query_canceled`: nobody cancels an apply worker but who found that it lost a conflict.
const CANCELED: [u8; 5] = *b"57014";

fn lost_conflict(gid: &Gid) -> Caught {
    let winner = shmem::participants(|table| table.get_mut(gid).and_then(|part| part.lost_to));
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

fn let_go(gid: &Gid) {
    step(gid, |part| {
        part.worker = proc::NO_PROC;
        ParticipantStep::Nothing
    });
}

/// Tells the origin why its transaction cannot be prepared here.
pub fn vote_no(gid: &Gid, caught: &Caught) {
    let refusal =
        Refusal { sqlstate: caught.sqlstate, message: &caught.message, detail: &caught.detail };
    dmq::send(gid.origin, &Message::Refused(*gid, refusal));
}
