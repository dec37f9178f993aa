//! Distributed deadlocks, found by the fact: the apply of another node's transaction waits for a
//! transaction of this node that has been announced and so waits for its votes.
//!
//! Both hold what the other needs: the announced one has the row here, so the other one cannot
//! have voted yes here; and the same holds the other way round at the other's origin. Both origins
//! apply the same rule to the same two names, so that exactly one of the two survives.
//!
//! A circle can also lead through transactions that are not announced: the apply waits for a client
//! which itself waits for what another transaction has prepared here. See [`Circles`].

use super::{finish, resolver};
use crate::pg::lockwait;
use crate::pg::proc;
use crate::pg::shmem;
use crate::{guc, machine};
use core::sync::atomic::Ordering;
use mtm_core::{Gid, Instant};
use mtm_node::{Input, Verdict, judge};
use mtm_paxos::commit::ParticipantState;
use std::collections::BTreeMap;

/// How long after the previous look to look again, by the age of the youngest work.
pub const fn next_look_us(age_us: u64) -> u64 {
    match age_us {
        0..5_000 => 3_000,
        5_000..50_000 => 5_000,
        50_000..1_000_000 => 20_000,
        _ => 200_000,
    }
}

/// Work younger than this is under way, not waiting.
const YOUNG_US: u64 = 700;

/// An apply that waits for longer may be part of a circle that no server sees whole.
const LONG_US: u64 = 20_000;

/// Looks at what blocks these transactions of another node.
pub fn look(busy: impl Iterator<Item = (Gid, Instant)>) {
    let now = proc::now();
    for (gid, since) in busy {
        if now.since(since) < YOUNG_US {
            continue;
        }
        let worker = shmem::node(|state| state.notes.get_mut(&gid).map(|note| note.worker));
        let Some(worker) = worker.filter(|procno| *procno != proc::NO_PROC) else { continue };
        if !lockwait::is_waiting(worker) {
            continue;
        }
        let blockers = lockwait::blockers(worker);
        let settled = settle(&gid, worker, &blockers);
        let long = now.since(since) >= LONG_US;
        if !settled && long && blockers.iter().any(|blocker| lockwait::is_waiting(*blocker)) {
            proc::wake(shmem::header().resolver.load(Ordering::Acquire));
        }
    }
}

/// Ends circles through clients of several nodes: here the apply of one transaction waits for a
/// client which waits for another transaction, prepared here and undecided; elsewhere it may be the
/// other way round, and neither is ever decided. The apply is refused if it is the later of the two.
/// In a circle at least one is, whatever its length, for the order is total; where there is none,
/// some are refused for nothing, but only what has waited for [`LONG_US`]. For the resolver, which
/// can ask who holds a prepared transaction's locks.
#[derive(Default)]
pub struct Circles {
    /// Which apply waits, in which process, since when it was seen to.
    waiting: BTreeMap<(Gid, proc::ProcNo), Instant>,
    /// The next look.
    next: Instant,
}

impl Circles {
    /// Looks, if it is time for that.
    pub fn untangle(&mut self) {
        let now = proc::now();
        if now < self.next {
            return;
        }
        let applying = applying();
        self.waiting.retain(|key, _| applying.contains(key));
        let mut holders = BTreeMap::new();
        for (theirs, worker) in &applying {
            if !lockwait::is_waiting(*worker) {
                self.waiting.remove(&(*theirs, *worker));
                continue;
            }
            let since = *self.waiting.entry((*theirs, *worker)).or_insert(now);
            if now.since(since) >= LONG_US {
                judge_apply(theirs, *worker, &applying, &mut holders);
            }
        }
        self.next = proc::now().plus_us(LONG_US);
    }
}

/// Refuses an apply that waits for a client which waits for somebody earlier. `holders` has for whom
/// clients wait.
fn judge_apply(
    theirs: &Gid,
    worker: proc::ProcNo,
    applying: &[(Gid, proc::ProcNo)],
    holders: &mut BTreeMap<proc::ProcNo, Vec<Gid>>,
) {
    let blockers = lockwait::blockers(worker);
    if blockers.iter().any(|blocker| announced(*blocker).is_some()) {
        return; // a case for `look`
    }
    let is_client = |blocker: &&proc::ProcNo| applying.iter().all(|(_, worker)| worker != *blocker);
    let clients = blockers.iter().filter(is_client).filter(|client| lockwait::is_waiting(**client));
    let winner = clients
        .flat_map(|client| holders.entry(*client).or_insert_with(|| waited_for(*client)).clone())
        .find(|other| other != theirs && judge(*theirs, *other) == Verdict::Wait);
    if let Some(winner) = winner {
        refuse_apply(theirs, worker, winner);
    }
}

/// Undecided transactions, prepared or kept open here, that a process waits for.
fn waited_for(client: proc::ProcNo) -> Vec<Gid> {
    let mut found = resolver::in_the_way_of(proc::pid_of(client));
    found.extend(kept_open(&lockwait::blockers(client)));
    shmem::node(|state| found.retain(|gid| finish::waits(state, gid)));
    found
}

/// What apply workers are busy with.
fn applying() -> Vec<(Gid, proc::ProcNo)> {
    shmem::node(|state| {
        let busy =
            |(gid, note): (&Gid, &shmem::Note)| is_with_worker(note).then_some((*gid, note.worker));
        let mut all: Vec<_> = state.notes.iter().filter_map(busy).collect();
        all.retain(|(gid, _)| state.participant(gid) == Some(ParticipantState::Applying));
        all
    })
}

const fn is_with_worker(note: &shmem::Note) -> bool {
    note.worker != proc::NO_PROC && note.open == 0 && !note.taken
}

/// Transactions that these processes keep open, as good as prepared.
fn kept_open(procs: &[proc::ProcNo]) -> Vec<Gid> {
    let kept = |(gid, note): (&Gid, &shmem::Note)| {
        (note.open != 0 && procs.contains(&note.worker)).then_some(*gid)
    };
    shmem::node(|state| state.notes.iter().filter_map(kept).collect())
}

fn refuse_apply(theirs: &Gid, worker: proc::ProcNo, winner: Gid) {
    shmem::node(|state| {
        if let Some(note) = state.notes.get_mut(theirs)
            && is_with_worker(note)
            && note.worker == worker
        {
            note.lost_to = Some(winner);
            // Under the lock, so that the worker cannot have gone on to other work.
            proc::cancel(worker);
        }
    });
}

/// The announced transaction of this process, if it has one.
fn announced(blocker: proc::ProcNo) -> Option<Gid> {
    let at = usize::try_from(blocker).ok()?;
    shmem::node(|state| state.backends.get(at).and_then(|backend| backend.gid))
}

/// Decides between a waiting transaction and the announced one it waits for; `false` if there is
/// none.
fn settle(theirs: &Gid, worker: proc::ProcNo, blockers: &[proc::ProcNo]) -> bool {
    for blocker in blockers {
        let Some(ours) = announced(*blocker) else { continue };
        let theirs_wins = judge(*theirs, ours) == Verdict::AbortHolder;
        let none_wins = guc::DEADLOCK_PREVENTION.get() == guc::Prevention::Simple;
        if theirs_wins || none_wins {
            abort_ours(ours, *theirs, theirs_wins, false);
        }
        if !theirs_wins {
            // Its own origin finds the same, and its abort round cancels the worker; refusing at
            // once saves that round trip.
            refuse_theirs(theirs, ours);
            proc::cancel(worker);
        }
        return true;
    }
    false
}

fn refuse_theirs(theirs: &Gid, ours: Gid) {
    shmem::node(|state| {
        if let Some(note) = state.notes.get_mut(theirs) {
            note.lost_to = Some(ours);
        }
    });
}

/// For a transaction of another node that needs the name of a user's transaction, which `holder`
/// holds: whether it is refused for that. Otherwise the holder goes, or is waited for.
pub fn loses_name(theirs: &Gid, holder: Gid) -> bool {
    if shmem::node(|state| state.backend_of(&holder).is_none()) {
        return false; // decided elsewhere, or just being carried out
    }
    let theirs_wins = judge(*theirs, holder) == Verdict::AbortHolder;
    let none_wins = guc::DEADLOCK_PREVENTION.get() == guc::Prevention::Simple;
    if theirs_wins || none_wins {
        abort_ours(holder, *theirs, theirs_wins, true);
    }
    !theirs_wins
}

fn abort_ours(ours: Gid, theirs: Gid, judged: bool, of_name: bool) {
    let input =
        if judged { Input::Conflict { waiter: theirs, holder: ours } } else { Input::Cancel(ours) };
    machine::feed_after(input, |state| {
        if let Some((_, backend)) = state.backend_of(&ours) {
            backend.lost_name |= of_name && backend.lost_to.is_none();
            backend.lost_to.get_or_insert(theirs);
        }
    });
}
