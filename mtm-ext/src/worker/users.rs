//! Other nodes' words about users' own two-phase transactions, on both sides.
//!
//! These are not the machine's (see [`crate::hook::twophase`]): nobody but the origin decides.

use crate::dmq;
use crate::machine::log_abort_accepted;
use crate::pg::bgworker::Caught;
use crate::pg::shmem::{self, Part, RefusalCopy};
use crate::pg::xact::{self, XidStatus};
use crate::pg::{proc, twophase};
use core::sync::atomic::Ordering;
use mtm_core::{Gid, LocalXid, Lsn, NodeId};
use mtm_node::message::{Message, Refusal};
use mtm_paxos::commit::{
    Coordinator, CoordinatorState, CoordinatorStep, Decree, Participant, ParticipantState,
    ParticipantStep,
};

/// Wakes every process that waits for a decision, so that it looks at its peers again.
pub fn wake_waiters() {
    for procno in shmem::coordinators(|c| c.processes()) {
        proc::wake(procno);
    }
}

/// Handles one message.
pub fn take(from: NodeId, message: &Message<'_>) {
    match message {
        Message::Heartbeat { .. } => {}
        Message::Prepared(gid) => step_coordinator(gid, |c| c.vote(from, true)),
        Message::Refused(gid, refusal) => refused(from, gid, refusal),
        Message::AbortAccepted(gid) => abort_accepted(from, gid),
        Message::Committed(gid) => step_coordinator(gid, |c| c.peer_committed(from)),
        Message::Decided(gid, decree) => decided(from, gid, *decree),
        Message::AskAbort(gid) => ask_abort(from, gid),
        Message::Query(gid) => answer(from, gid),
        Message::Undecided(gid) => postpone(gid),
    }
}

/// Gives the coordinator an input and wakes its process if something changed.
fn step_coordinator(gid: &Gid, step: impl FnOnce(&mut Coordinator) -> CoordinatorStep) {
    let woken = shmem::coordinators(|c| {
        let (procno, slot) = c.find(gid)?;
        let step = slot.coordinator.as_mut().map(step)?;
        (step != CoordinatorStep::Nothing).then_some(procno)
    });
    if let Some(procno) = woken {
        proc::wake(procno);
    }
}

fn refused(from: NodeId, gid: &Gid, refusal: &Refusal<'_>) {
    let copy = RefusalCopy::new(from, refusal);
    let woken = shmem::coordinators(|c| {
        let (procno, slot) = c.find(gid)?;
        let step = slot.coordinator.as_mut().map(|c| c.vote(from, false))?;
        if step == CoordinatorStep::Refused {
            slot.refusal.get_or_insert(copy);
            return Some(procno);
        }
        None
    });
    if let Some(procno) = woken {
        proc::wake(procno);
    }
}

fn abort_accepted(from: NodeId, gid: &Gid) {
    let step = shmem::coordinators(|c| {
        let (procno, slot) = c.find(gid)?;
        Some((procno, slot.coordinator.as_mut().map(|c| c.abort_accepted(from))?))
    });
    if let Some((procno, CoordinatorStep::TellAbort(members))) = step {
        dmq::send_all(members, &Message::Decided(*gid, Decree::Abort));
        proc::wake(procno);
    }
}

fn decided(from: NodeId, gid: &Gid, decree: Decree) {
    let found = shmem::participants(|table| {
        let part = table.get_mut(gid)?;
        Some((part.participant.decided(decree), part.worker))
    });
    match found {
        Some((ParticipantStep::Commit, worker)) => wake_finisher(worker),
        Some((ParticipantStep::Rollback, worker)) => wake_finisher(worker),
        // A decided commit that is not in the table was finished and forgotten: nothing commits
        // without this node's PREPARE.
        Some((ParticipantStep::TellCommitted, _)) => dmq::send(from, &Message::Committed(*gid)),
        None if decree == Decree::Commit => dmq::send(from, &Message::Committed(*gid)),
        _ => {}
    }
}

/// The origin asks this node to accept abort.
fn ask_abort(from: NodeId, gid: &Gid) {
    let step = shmem::participants(|table| {
        let fresh = || Part::new(Participant::new(), Lsn(0), proc::now().0);
        let part = table.entry(*gid, fresh).ok()?;
        let step = part.participant.abort_asked();
        if step == ParticipantStep::PersistAbort {
            // Under the table's lock, so that the worker cannot have gone on to other work.
            proc::cancel(part.worker);
        }
        Some(step)
    });
    match step {
        Some(ParticipantStep::PersistAbort) => accept_abort(from, gid),
        Some(ParticipantStep::TellAbortAccepted) => {
            dmq::send(from, &Message::AbortAccepted(*gid));
        }
        _ => {}
    }
}

/// Makes the acceptance of abort durable and tells who asked.
pub fn accept_abort(to: NodeId, gid: &Gid) {
    log_abort_accepted(gid);
    let step = shmem::participants(|table| {
        table.get_mut(gid).map(|part| part.participant.abort_durable())
    });
    if step == Some(ParticipantStep::TellAbortAccepted) {
        dmq::send(to, &Message::AbortAccepted(*gid));
    }
}

/// A peer asks for the outcome of a transaction of this node. As long as there is one generation,
/// nobody but the origin decides: what is not committed and not running is aborted.
fn answer(from: NodeId, gid: &Gid) {
    if shmem::header().me() != Some(gid.origin) {
        return;
    }
    let running = shmem::coordinators(|c| {
        let (_, slot) = c.find(gid)?;
        slot.coordinator.map(|c| c.state())
    });
    let decree = match running {
        Some(CoordinatorState::Committed) => Some(Decree::Commit),
        Some(CoordinatorState::Aborted) => Some(Decree::Abort),
        Some(_) => None,
        None => match xact::status_of(LocalXid(gid.xid.0)) {
            XidStatus::Committed => Some(Decree::Commit),
            XidStatus::Aborted => Some(Decree::Abort),
            XidStatus::InProgress => None,
        },
    };
    let reply = decree.map_or(Message::Undecided(*gid), |decree| Message::Decided(*gid, decree));
    dmq::send(from, &reply);
}

fn postpone(gid: &Gid) {
    let now = proc::now().0;
    shmem::participants(|table| {
        if let Some(part) = table.get_mut(gid) {
            part.asked_us = now;
        }
    });
}

/// Wakes who finishes what this worker has: the resolver if nobody has it.
fn wake_finisher(worker: proc::ProcNo) {
    match worker {
        proc::NO_PROC => proc::wake(shmem::header().resolver.load(Ordering::Acquire)),
        worker => proc::wake(worker),
    }
}

/// Finishes decided transactions that no worker has.
pub fn finish_orphans() {
    let decided: Vec<Gid> = shmem::participants(|table| {
        let ours = |(_, part): &(&Gid, &Part)| orphans_decision(part).is_some();
        table.iter().filter(ours).map(|(gid, _)| *gid).collect()
    });
    let me = proc::my_procno();
    for gid in decided {
        // Somebody else may have taken it, and even finished it, meanwhile.
        let commit = shmem::participants(|table| {
            let part = table.get_mut(&gid)?;
            let commit = orphans_decision(part)?;
            part.worker = me;
            part.taken = true;
            Some(commit)
        });
        if let Some(commit) = commit {
            finish(&gid, commit);
        }
    }
}

/// Whether to commit what is decided and nobody carries out; `None` for all else.
fn orphans_decision(part: &Part) -> Option<bool> {
    match part.participant.state() {
        _ if part.worker != proc::NO_PROC || part.taken => None,
        ParticipantState::Committing(_) => Some(true),
        ParticipantState::RollingBack => Some(false),
        _ => None,
    }
}

/// At the end of a process: what it has not finished is for the resolver.
pub fn release() {
    let me = proc::my_procno();
    shmem::participants(|table| {
        let mine: Vec<Gid> =
            table.iter().filter(|(_, part)| part.worker == me).map(|(gid, _)| *gid).collect();
        for gid in mine {
            if let Some(part) = table.get_mut(&gid) {
                part.worker = proc::NO_PROC;
                part.taken = false;
            }
        }
    });
}

/// COMMIT PREPARED or ROLLBACK PREPARED, and what follows from it.
pub fn finish(gid: &Gid, commit: bool) {
    twophase::finish(&gid.to_string(), commit);
    let step = shmem::participants(|table| {
        table.get_mut(gid).map(|part| {
            part.worker = proc::NO_PROC;
            part.taken = false;
            part.participant.finished()
        })
    });
    if step == Some(ParticipantStep::TellCommitted) {
        dmq::send(gid.origin, &Message::Committed(*gid));
    }
}

/// An outcome that has not been heard of for so long is asked for.
pub const ASK_US: u64 = 300_000;

/// Asks origins for outcomes; `true` if something is undecided.
pub fn ask() -> bool {
    let now = proc::now().0;
    let mut undecided = false;
    let overdue: Vec<Gid> = shmem::participants(|table| {
        let gids: Vec<Gid> = table
            .iter()
            .filter(|(_, part)| {
                let waits = !part.participant.is_finished()
                    && !matches!(
                        part.participant.state(),
                        ParticipantState::Applying
                            | ParticipantState::Preparing(_)
                            | ParticipantState::Committing(_)
                            | ParticipantState::RollingBack
                    );
                undecided |= waits;
                waits && now.saturating_sub(part.asked_us) >= ASK_US
            })
            .map(|(gid, _)| *gid)
            .collect();
        for gid in &gids {
            if let Some(part) = table.get_mut(gid) {
                part.asked_us = now;
            }
        }
        gids
    });
    for gid in overdue {
        dmq::send(gid.origin, &Message::Query(gid));
    }
    undecided
}

/// From here on this process has the transaction.
pub fn take_note(gid: &Gid, worker: proc::ProcNo) {
    shmem::participants(|table| {
        if let Some(part) = table.get_mut(gid) {
            part.worker = worker;
        }
    });
}

/// Whether the transaction may still be prepared.
pub fn may_prepare(gid: &Gid) -> bool {
    shmem::participants(|table| {
        table.get_mut(gid).is_some_and(|part| part.participant.try_prepare())
    })
}

/// Against whom it lost a conflict here.
pub fn lost_to(gid: &Gid) -> Option<Gid> {
    shmem::participants(|table| table.get_mut(gid).and_then(|part| part.lost_to))
}

fn step(gid: &Gid, input: impl FnOnce(&mut Part) -> ParticipantStep) -> ParticipantStep {
    shmem::participants(|table| table.get_mut(gid).map_or(ParticipantStep::Nothing, input))
}

/// Votes; from here on `worker` has the transaction.
pub fn prepared(gid: &Gid, worker: proc::ProcNo) {
    let now = proc::now().0;
    let next = step(gid, |part| {
        part.asked_us = now;
        part.worker = worker;
        part.participant.prepared()
    });
    match next {
        ParticipantStep::VoteYes => dmq::send(gid.origin, &Message::Prepared(*gid)),
        ParticipantStep::PersistAbort => accept_abort(gid.origin, gid),
        _ => {}
    }
}

/// Applying or preparing it failed.
pub fn failed(gid: &Gid, caught: &Caught) {
    let next = step(gid, |part| {
        part.worker = proc::NO_PROC;
        part.participant.failed()
    });
    match next {
        ParticipantStep::VoteNo => vote_no(gid, caught),
        ParticipantStep::PersistAbort => accept_abort(gid.origin, gid),
        _ => {}
    }
}

/// Tells the origin why its transaction cannot be prepared here.
pub fn vote_no(gid: &Gid, caught: &Caught) {
    let refusal =
        Refusal { sqlstate: caught.sqlstate, message: &caught.message, detail: &caught.detail };
    dmq::send(gid.origin, &Message::Refused(*gid, refusal));
}

/// For a worker that waits with the transaction: ends it if that is decided. `false` as long as
/// there is something to wait for.
pub fn my_own(gid: &Gid) -> bool {
    let me = proc::my_procno();
    let state = shmem::participants(|table| {
        let part = table.get_mut(gid).filter(|part| part.worker == me)?;
        let state = part.participant.state();
        part.taken = matches!(state, ParticipantState::Committing(_) | ParticipantState::RollingBack);
        Some(state)
    });
    match state {
        Some(ParticipantState::Committing(_)) => finish(gid, true),
        Some(ParticipantState::RollingBack) => finish(gid, false),
        Some(
            ParticipantState::Prepared
            | ParticipantState::AbortPending(_)
            | ParticipantState::AbortAccepted(true),
        ) => return false,
        _ => {}
    }
    true
}

/// At an apply worker's end: what it was applying is refused.
pub fn release_worker(ended: &Caught) {
    let me = proc::my_procno();
    let mine: Vec<Gid> = shmem::participants(|table| {
        table.iter().filter(|(_, part)| part.worker == me).map(|(gid, _)| *gid).collect()
    });
    for gid in mine {
        failed(&gid, ended);
    }
    release();
}

/// What to do with a transaction that arrived in its origin's stream.
pub fn delivered(gid: Gid, lsn: Lsn) -> Option<mtm_paxos::commit::Delivery> {
    let now = proc::now().0;
    let delivery = shmem::participants(|table| {
        let fresh = || Part::new(Participant::new(), lsn, now);
        let part = table.entry(gid, fresh).ok()?;
        part.lsn = lsn;
        Some(part.participant.delivered())
    });
    if delivery == Some(mtm_paxos::commit::Delivery::Duplicate) && is_prepared(&gid) {
        // The first vote may be lost.
        dmq::send(gid.origin, &Message::Prepared(gid));
    }
    delivery
}

fn is_prepared(gid: &Gid) -> bool {
    shmem::participants(|table| {
        table
            .get_mut(gid)
            .is_some_and(|part| part.participant.state() == ParticipantState::Prepared)
    })
}
