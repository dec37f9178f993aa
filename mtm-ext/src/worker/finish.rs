//! Ending prepared transactions whose outcome is decided.

use crate::machine;
use crate::pg::shmem::{self, NodeState};
use crate::pg::{bgworker, proc};
use crate::users;
use core::sync::atomic::Ordering;
use mtm_core::Gid;
use mtm_node::{Input, Role};
use mtm_paxos::commit::{Decree, ParticipantState};

/// Whether commit (true) or abort of this transaction, prepared here, is decided and not done.
fn decision(state: &mut NodeState, gid: &Gid) -> Option<bool> {
    match state.participant(gid)? {
        ParticipantState::Committing(_) => Some(true),
        ParticipantState::RollingBack => Some(false),
        _ => None,
    }
}

/// Takes a decided transaction, unless somebody else carries it out already.
fn take(gid: &Gid) -> Option<bool> {
    let me = proc::my_procno();
    shmem::node(|state| take_in(state, gid, me))
}

pub fn take_in(state: &mut NodeState, gid: &Gid, me: proc::ProcNo) -> Option<bool> {
    let commit = decision(state, gid)?;
    let note = state.notes.entry(*gid, || free(me)).ok()?;
    // What is kept open only that process can end.
    if note.taken || (note.open != 0 && note.worker != me) {
        return None;
    }
    note.taken = true;
    note.worker = me;
    Some(commit)
}

/// Nobody has it but this process.
pub const fn free(worker: proc::ProcNo) -> shmem::Note {
    shmem::Note { worker, taken: false, lost_to: None, open: 0, seen: 0 }
}

/// Ends it here, unless somebody else does; wakes the worker that waits with it.
pub fn unless_taken(gid: &Gid) {
    let me = proc::my_procno();
    let (worker, decided) = shmem::node(|state| {
        (state.notes.get_mut(gid).map(|note| note.worker), take_in(state, gid, me))
    });
    // First: whatever becomes of this process, the worker has nothing to wait for.
    if let Some(worker) = worker {
        proc::wake(worker);
    }
    if let Some(commit) = decided {
        end(gid, commit);
    }
}

/// For a worker that waits with the transaction: ends it if that is decided and its business.
/// `false` as long as there is something to wait for.
pub fn my_own(gid: &Gid) -> bool {
    let me = proc::my_procno();
    // In one look: what is decided between two would be left to nobody.
    let decided = shmem::node(|state| {
        if state.notes.get_mut(gid).is_none_or(|note| note.worker != me) {
            // Whoever heard the decision has taken it.
            return Err(true);
        }
        take_in(state, gid, me).ok_or_else(|| !waits(state, gid))
    });
    match decided {
        Ok(commit) => {
            end(gid, commit);
            true
        }
        Err(is_over) => is_over,
    }
}

/// Waits until a commit that is decided, and another process' business, is durable here.
pub fn await_commit(gid: &Gid) {
    let me = proc::my_procno();
    let waits = |state: &mut NodeState| {
        decision(state, gid) == Some(true)
            && state.notes.get_mut(gid).is_none_or(|note| note.worker != me)
    };
    while shmem::node(waits) {
        wake(gid);
        proc::wait(None, Some(1_000));
        bgworker::handle_signals();
    }
}

/// Whether it is prepared here and undecided.
pub fn waits(state: &mut NodeState, gid: &Gid) -> bool {
    match state.node().and_then(|node| node.transaction(gid)).map(|entry| entry.role) {
        Some(Role::Peer(peer)) => {
            peer.is_undecided() || matches!(peer.state(), ParticipantState::Preparing(_))
        }
        Some(Role::Own(_)) | None => false,
    }
}

/// Wakes who ends it: the process that has it, else the resolver.
pub fn wake(gid: &Gid) {
    let worker = shmem::node(|state| state.notes.get_mut(gid).map(|note| note.worker));
    match worker {
        Some(worker) if worker != proc::NO_PROC => proc::wake(worker),
        _ => proc::wake(shmem::header().resolver.load(Ordering::Acquire)),
    }
}

/// The same, if that is another process.
pub fn wake_other(gid: &Gid) {
    let me = proc::my_procno();
    let mine = |state: &mut NodeState| state.notes.get_mut(gid).is_some_and(|n| n.worker == me);
    if !shmem::node(mine) {
        wake(gid);
    }
}

/// COMMIT PREPARED or ROLLBACK PREPARED, durably, and what follows from it.
pub fn end(gid: &Gid, commit: bool) {
    users::carry_out(gid, commit);
    machine::feed_after(Input::Finished(*gid), |state| {
        state.notes.remove(gid);
        state.end_operation(gid, if commit { Decree::Commit } else { Decree::Abort });
    });
}

/// Ends every decided transaction that no process has. For the resolver.
pub fn orphans() {
    let decided: Vec<Gid> = shmem::node(|state| {
        let Some(node) = state.node() else { return Vec::new() };
        let ends = |role: &Role| {
            matches!(role, Role::Peer(p) if matches!(
                p.state(),
                ParticipantState::Committing(_) | ParticipantState::RollingBack
            ))
        };
        let gids: Vec<Gid> =
            node.transactions().filter(|(_, e)| ends(&e.role)).map(|(gid, _)| *gid).collect();
        gids.into_iter()
            .filter(|gid| {
                let note = state.notes.get_mut(gid);
                note.is_none_or(|note| note.worker == proc::NO_PROC && !note.taken)
            })
            .collect()
    });
    for gid in decided {
        if let Some(commit) = take(&gid) {
            end(&gid, commit);
        }
    }
}

/// At a process' end: what it has not finished is for the resolver. Returns what it was applying.
pub fn release() -> Vec<Gid> {
    let me = proc::my_procno();
    let mine = shmem::node(|state| {
        let of_me = |(_, note): &(&Gid, &shmem::Note)| note.worker == me;
        let mine: Vec<Gid> = state.notes.iter().filter(of_me).map(|(gid, _)| *gid).collect();
        for gid in &mine {
            if let Some(note) = state.notes.get_mut(gid) {
                note.worker = proc::NO_PROC;
                note.taken = false;
            }
        }
        mine
    });
    proc::wake(shmem::header().resolver.load(Ordering::Acquire));
    mine
}
