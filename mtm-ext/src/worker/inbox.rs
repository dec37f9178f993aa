//! Incoming messages: what a peer's sender delivers, in the backend that serves its connection.

use super::resolver;
use super::wire::{Incoming, Outgoing};
use crate::dmq;
use crate::hook::commit::log_abort_accepted;
use crate::pg::shmem::{self, Part, RefusalCopy, Text};
use crate::pg::xact::{self, XidStatus};
use crate::pg::{bgworker, pipe, proc, walwake};
use core::cell::RefCell;
use core::sync::atomic::Ordering;
use mtm_core::{Gid, NodeId};
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

/// Turns this backend into the receiving end of `from`'s messages, until the peer goes. Answers
/// that arise here travel back on the same connection.
pub fn accept_pipe(from: NodeId) {
    let peer = shmem::peer(from);
    peer.inbox_pid.store(proc::my_pid(), Ordering::Release);
    PIPE.set(Some(Pipe { from, replies: Outgoing::default(), decided: Vec::new() }));
    pipe::with_exit_hook(
        || {
            pipe::begin();
            let mut bytes = Vec::new();
            let mut incoming = Incoming::default();
            while pipe::receive(&mut bytes) {
                peer.last_heard_us.store(proc::now().0, Ordering::Release);
                // Reading from a client handles no barriers; with heartbeats this comes often
                // enough for DROP DATABASE and the like, which wait for every process.
                proc::check_interrupts();
                incoming.feed(&bytes);
                if let Err(error) = take_all(from, &mut incoming) {
                    pgrx::error!("malformed message from node {from}: {error}");
                }
                carry_out();
                send_replies();
            }
        },
        closed,
    );
}

/// What the receiving end of a peer's messages keeps.
struct Pipe {
    from: NodeId,
    replies: Outgoing,
    /// Transactions decided by the messages just read, and the workers that wait with them.
    decided: Vec<(Gid, proc::ProcNo)>,
}

thread_local! {
    static PIPE: RefCell<Option<Pipe>> = const { RefCell::new(None) };
}

/// Handles every message that is there.
///
/// # Errors
/// With the reason when they are not what a peer sends.
pub fn take_all(from: NodeId, incoming: &mut Incoming) -> Result<(), String> {
    while let Some(bytes) = incoming.next().map_err(|error| error.to_string())? {
        let message = Message::decode(bytes).map_err(|error| error.to_string())?;
        take(from, &message);
    }
    Ok(())
}

/// Puts a message on this process' own connection to `node`, if it has one.
pub fn reply(node: NodeId, message: &[u8]) -> bool {
    PIPE.with_borrow_mut(|pipe| match pipe {
        Some(pipe) if pipe.from == node => {
            pipe.replies.push(message);
            true
        }
        _ => false,
    })
}

fn send_replies() {
    PIPE.with_borrow_mut(|pipe| {
        if let Some(pipe) = pipe {
            pipe.replies.drain(pipe::send);
        }
    });
}

/// Has decided transactions committed: a single one at once and here, which saves waking its
/// worker; several, or when more messages wait, by their workers, which share flushes.
fn carry_out() {
    let decided = PIPE.with_borrow_mut(|pipe| {
        pipe.as_mut().map(|pipe| core::mem::take(&mut pipe.decided)).unwrap_or_default()
    });
    let quiet = decided.len() == 1 && !pipe::more_waiting();
    for (gid, worker) in decided {
        if !quiet && worker != proc::NO_PROC {
            proc::wake(worker);
        } else if claim(&gid, worker) {
            resolver::finish(&gid, true);
            send_replies();
            proc::wake(worker);
        }
    }
    walwake::catch_up();
    bgworker::report_statistics();
}

/// Wakes who finishes what this worker has: the resolver if nobody has it.
fn wake_finisher(worker: proc::ProcNo) {
    match worker {
        proc::NO_PROC => proc::wake(shmem::header().resolver.load(Ordering::Acquire)),
        worker => proc::wake(worker),
    }
}

/// Takes a decided transaction from the worker that waits with it.
fn claim(gid: &Gid, worker: proc::ProcNo) -> bool {
    let me = proc::my_procno();
    shmem::participants(|table| match table.get_mut(gid) {
        Some(part)
            if part.worker == worker
                && !part.taken
                && part.participant.state() == ParticipantState::Committing =>
        {
            part.worker = me;
            part.taken = true;
            true
        }
        _ => false,
    })
}

fn closed() {
    let Some(pipe) = PIPE.take() else { return };
    let me = proc::my_procno();
    shmem::participants(|table| {
        let claimed: Vec<Gid> =
            table.iter().filter(|(_, part)| part.worker == me).map(|(gid, _)| *gid).collect();
        for gid in claimed {
            if let Some(part) = table.get_mut(&gid) {
                part.worker = proc::NO_PROC;
                part.taken = false;
            }
        }
    });
    for (_, worker) in pipe.decided {
        wake_finisher(worker);
    }
    proc::wake(shmem::header().resolver.load(Ordering::Acquire));
    let peer = shmem::peer(pipe.from);
    let mine = proc::my_pid();
    // A newer connection of the same peer may have taken over.
    if peer.inbox_pid.compare_exchange(mine, 0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
        peer.ready.store(0, Ordering::Release);
        peer.last_heard_us.store(0, Ordering::Release);
        peer.epoch.fetch_add(1, Ordering::AcqRel);
        wake_waiters();
    }
}

/// Handles one message.
pub fn take(from: NodeId, message: &Message<'_>) {
    match message {
        Message::Heartbeat { connected, ready } => {
            let peer = shmem::peer(from);
            peer.connected.store(connected.bits(), Ordering::Release);
            peer.ready.store(u32::from(*ready), Ordering::Release);
        }
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
    let copy = RefusalCopy {
        from,
        sqlstate: refusal.sqlstate,
        message: Text::new(refusal.message),
        detail: Text::new(refusal.detail),
    };
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
        Some((ParticipantStep::Commit, worker)) => {
            let here = PIPE.with_borrow_mut(|pipe| {
                pipe.as_mut().map(|pipe| pipe.decided.push((*gid, worker))).is_some()
            });
            if !here {
                wake_finisher(worker);
            }
        }
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
        let fresh = || Part {
            participant: Participant::new(),
            lsn: mtm_core::Lsn(0),
            worker: proc::NO_PROC,
            taken: false,
            asked_us: proc::now().0,
            lost_to: None,
        };
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
        None => match xact::status_of(gid.xid) {
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
