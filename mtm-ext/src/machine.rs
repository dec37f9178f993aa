//! The driver of [`Node`](mtm_node::Node): steps it in shared memory and carries out what it asks
//! for, or hands that to the process whose business it is.
//!
//! | effect | carried out by |
//! |---|---|
//! | `Send`, `WriteAbort`, `WriteParallelSafe` | whoever stepped |
//! | `WriteCommit`, `Answer`, `GiveUp` | the transaction's backend, told through its place |
//! | `CommitPrepared`, `RollbackPrepared` | the worker that has it, else the resolver; see [`feed_here`] |
//! | `Discard` | the worker that has it: it is cancelled |
//! | `Persist`, `SendGeneration`, `AskReferee`, `CleanReferee`, `StartRecovery`, `Online` | `mtm-campaigner` |
//! | all others, also `Lend` and `Recall` | whoever stepped: they answer its own input |

use crate::pg::shmem::{self, Backend, NodeState};
use crate::pg::{message, proc};
use crate::{cluster, dmq};
use core::sync::atomic::Ordering;
use mtm_core::{Gid, LocalXid, Machine, Outbox};
use mtm_generations::Input as Generation;
use mtm_logrep::journal;
use mtm_node::user::{Obstacle, Operation};
use mtm_node::{Effect, Input, Node, PeerMessage, Role};
use std::collections::VecDeque;

/// Who ends prepared transactions whose outcome a step decided.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Finisher {
    Workers,
    Caller,
}

/// Steps the machine. Returns the effects that are for the caller.
pub fn feed(input: Input) -> Vec<Effect> {
    run(input, Finisher::Workers, |_| true)
}

/// The same; `CommitPrepared` and `RollbackPrepared` are for the caller, too.
pub fn feed_here(input: Input) -> Vec<Effect> {
    run(input, Finisher::Caller, |_| true)
}

/// Steps the machine with an input about generations.
pub fn generation(input: Generation) -> Vec<Effect> {
    feed(Input::Generation(input))
}

/// Announces this process' transaction; its place is taken, and the name that its operation on a
/// user's transaction needs, in the same step in which it is stamped and numbered. `None`, and
/// nothing happened, if this node does not serve or members are missing.
///
/// # Errors
/// When the name is not free for it: nothing is announced.
pub fn announce(xid: LocalXid, operation: Option<Operation>) -> Result<Option<Effect>, Obstacle> {
    let answers = |e: &Effect| matches!(e, Effect::WriteAnnouncement(_) | Effect::Rejected(..));
    let may = |state: &mut NodeState| {
        let may = state.node().is_some_and(|node| cluster::may_announce(&node));
        state.mine().operation = operation.filter(|_| may);
        may
    };
    let effect = run(Input::Announce(xid), Finisher::Workers, may).into_iter().find(answers);
    if operation.is_some()
        && let Some(Effect::WriteAnnouncement(gid)) = effect
        && let Some(obstacle) = shmem::node(|state| state.mine().obstacle)
    {
        feed_after(Input::AnnouncementFailed(gid), |state| state.occupy(None));
        return Err(obstacle);
    }
    Ok(effect)
}

/// Steps the machine after `note`, in one locked section with it.
pub fn feed_after(input: Input, note: impl FnOnce(&mut NodeState)) -> Vec<Effect> {
    feed_if(input, |state| {
        note(state);
        true
    })
}

/// Steps the machine if `note` says so, in one locked section with it.
pub fn feed_if(input: Input, note: impl FnOnce(&mut NodeState) -> bool) -> Vec<Effect> {
    run(input, Finisher::Workers, note)
}

/// Looks at the machine; `None` while there is none.
pub fn look<R>(body: impl FnOnce(&mut Node<'_>) -> R) -> Option<R> {
    shmem::node(|state| state.node().map(|mut node| body(&mut node)))
}

/// Steps the machine with `input`, if `before` says so in the same locked section, and with what
/// follows from it at once.
fn run(
    input: Input,
    finisher: Finisher,
    before: impl FnOnce(&mut NodeState) -> bool,
) -> Vec<Effect> {
    let mut before = Some(before);
    let mut mine = Vec::new();
    let mut inputs = VecDeque::from([input]);
    while let Some(input) = inputs.pop_front() {
        let mut out = Outbox::new();
        let mut wakes = Wakes::default();
        let step = shmem::node(|state| {
            if let Some(before) = before.take()
                && !before(state)
            {
                return Ok(Default::default());
            }
            let now = proc::now();
            let Some(mut node) = state.node() else { return Ok(Default::default()) };
            let elects = matches!(input, Input::Generation(_));
            let were_online = elects && are_all_online(&node);
            let step = node.step(now, input, &mut out);
            let now_online = elects && !were_online && are_all_online(&node);
            let safe = |e: &Effect| matches!(e, Effect::WriteParallelSafe(_));
            let held: Vec<(Gid, bool)> =
                if out.as_slice().iter().any(safe) { node.held().collect() } else { Vec::new() };
            // Only elections and time end what was lent.
            let leased = !elects || node.membership().leased_until(now).is_some();
            if !node.serves() || !leased {
                // Clients look for themselves from here on: see `hook::access`.
                shmem::header().serving_until_us.store(0, Ordering::Release);
            }
            route(state, input, out.as_slice(), finisher, &mut wakes);
            if now_online {
                // Who waits for that may acknowledge its commit now.
                wake_waiting(state, &mut wakes);
            }
            let table = state.users();
            let local = |(gid, _): &(Gid, bool)| Some((*gid, table.get(gid)?.local));
            let users: Vec<_> = held.iter().filter_map(local).collect();
            step.map(|()| (held, users))
        });
        wakes.wake();
        let (held, users) = match step {
            Ok(held) => held,
            Err(misuse) => {
                pgrx::ereport!(
                    PANIC,
                    pgrx::PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
                    format!("multimaster's driver made a mistake: {misuse} ({input:?})")
                );
            }
        };
        for effect in out.drain() {
            match effect {
                Effect::Send { to, message } => dmq::send_peer(to, &message),
                Effect::WriteAbort(gid) => {
                    log_abort_accepted(&gid);
                    inputs.push_back(Input::AbortDurable(gid));
                }
                Effect::WriteParallelSafe(num) => {
                    let mut content = Vec::new();
                    let (held, users) = (held.clone(), users.clone());
                    journal::ParallelSafe { num, held, users }.encode(&mut content);
                    message::flush(message::log(c"mtm-parallel-safe", &content, false));
                    inputs.push_back(Input::Generation(Generation::ParallelSafe(num)));
                }
                Effect::CommitPrepared(_) | Effect::RollbackPrepared(_)
                    if finisher == Finisher::Workers => {}
                Effect::Persist { .. }
                | Effect::SendGeneration { .. }
                | Effect::WriteCommit(_)
                | Effect::Answer(..)
                | Effect::GiveUp(_)
                | Effect::Discard(_)
                | Effect::StartRecovery { .. }
                | Effect::Online(_)
                | Effect::AskReferee(_)
                | Effect::CleanReferee(_) => {}
                other => mine.push(other),
            }
        }
    }
    mine
}

/// Whether all members are ONLINE in this node's generation.
fn are_all_online(node: &Node<'_>) -> bool {
    let membership = node.membership();
    membership.members_online() == membership.current().generation.members
}

/// Processes to be woken once the lock is released.
#[derive(Default)]
struct Wakes {
    procs: Vec<proc::ProcNo>,
    campaigner: bool,
    receivers: bool,
}

impl Wakes {
    fn wake(&self) {
        for procno in &self.procs {
            proc::wake(*procno);
        }
        let header = shmem::header();
        if self.campaigner {
            proc::wake(header.campaigner.load(Ordering::Acquire));
        }
        if self.receivers {
            wake_receivers();
        }
    }
}

/// Wakes the receivers of all peers' streams: what they may do has changed.
pub fn wake_receivers() {
    for node in shmem::header().peers_set() {
        proc::wake(shmem::peer(node).receiver.load(Ordering::Acquire));
    }
}

/// What others must know of a step, written down under the lock.
fn route(
    state: &mut NodeState,
    input: Input,
    effects: &[Effect],
    finisher: Finisher,
    wakes: &mut Wakes,
) {
    for effect in effects {
        match effect {
            // It answers the input of the process whose transaction it is.
            Effect::WriteAnnouncement(gid) => {
                let (operation, input) = (state.mine().operation, input);
                state.occupy(Some(*gid));
                if let (Some(operation), Input::Announce(xid)) = (operation, input) {
                    let mut users = state.users();
                    let held = users.hold(*gid, &operation);
                    users.known_as(gid, xid.short());
                    state.mine().obstacle = held.err();
                }
            }
            Effect::WriteCommit(gid) => tell_backend(state, gid, wakes, |b| b.commit = true),
            Effect::Answer(gid, outcome) => {
                tell_backend(state, gid, wakes, |b| b.outcome = Some(*outcome));
            }
            Effect::GiveUp(gid) => tell_backend(state, gid, wakes, |b| b.gave_up = true),
            Effect::CommitPrepared(gid) | Effect::RollbackPrepared(gid)
                if finisher == Finisher::Workers =>
            {
                wakes.procs.push(worker_of(state, gid));
            }
            Effect::Discard(gid) => {
                if let Some(note) = state.notes.get_mut(gid)
                    && note.worker != proc::my_procno()
                {
                    // Under the lock, so that the worker cannot have gone on to other work.
                    proc::cancel(note.worker);
                }
            }
            // What it says in the table is not done yet, and nobody else's business.
            Effect::ApplyCommitted(gid) | Effect::Install(gid, _) => {
                let me = proc::my_procno();
                let fresh =
                    || shmem::Note { worker: me, taken: true, lost_to: None, open: 0, seen: 0 };
                if let Ok(note) = state.notes.entry(*gid, fresh) {
                    // A worker that waits for its outcome has it no more.
                    if note.worker != me {
                        wakes.procs.push(note.worker);
                    }
                    note.worker = me;
                    note.taken = true;
                }
            }
            Effect::Persist { token, record } => {
                state.deferred.persist = Some((*token, *record));
                wakes.campaigner = true;
            }
            Effect::SendGeneration { to, message, after } => {
                state.deferred.push(*to, *message, *after);
                wakes.campaigner = true;
            }
            Effect::StartRecovery { num, donors } => {
                state.deferred.recovery = Some((*num, *donors));
                wakes.campaigner = true;
            }
            Effect::Online(_) => {
                state.deferred.recovery = None;
                wakes.campaigner = true;
                wakes.receivers = true;
                wake_waiting(state, wakes);
            }
            Effect::AskReferee(num) => {
                state.deferred.ask_referee = Some(*num);
                wakes.campaigner = true;
            }
            Effect::CleanReferee(num) => {
                state.deferred.clean_referee = Some(*num);
                wakes.campaigner = true;
            }
            _ => {}
        }
    }
    if let Input::RecoveryDone(gid) = input {
        state.notes.remove(&gid);
    }
    if let Input::Message { message: PeerMessage::Committed(gid), .. } = input {
        // Whoever waits for all members' commits.
        let members = state.node().map(|n| n.membership().current().generation.members);
        let entry = state.node().and_then(|node| node.transaction(&gid));
        let all = match (entry.map(|e| e.role), members) {
            (Some(Role::Own(own)), Some(members)) => own.missing().intersection(members).is_empty(),
            _ => true,
        };
        if all && let Some((procno, _)) = state.backend_of(&gid) {
            wakes.procs.push(procno);
        }
    }
}

fn tell_backend(
    state: &mut NodeState,
    gid: &Gid,
    wakes: &mut Wakes,
    tell: impl FnOnce(&mut Backend),
) {
    if let Some((procno, backend)) = state.backend_of(gid) {
        tell(backend);
        // Who steps looks afterwards anyway.
        if procno != proc::my_procno() {
            wakes.procs.push(procno);
        }
    }
}

/// All processes whose transactions are announced or want to be.
fn wake_waiting(state: &NodeState, wakes: &mut Wakes) {
    let waits = |(i, b): (usize, &Backend)| (b.gid.is_some() || b.waits).then_some(i as i32);
    wakes.procs.extend(state.backends.iter().enumerate().filter_map(waits));
}

/// Who ends this prepared transaction: the process that has it, else the resolver.
fn worker_of(state: &mut NodeState, gid: &Gid) -> proc::ProcNo {
    match state.notes.get_mut(gid).map(|note| note.worker) {
        Some(worker) if worker != proc::NO_PROC => worker,
        _ => shmem::header().resolver.load(Ordering::Acquire),
    }
}

/// Makes an acceptance of abort durable.
pub fn log_abort_accepted(gid: &Gid) {
    let mut content = Vec::with_capacity(Gid::PREFIX.len() + 20);
    gid.encode(&mut mtm_core::wire::Writer::new(&mut content));
    message::flush(message::log(c"mtm-abort", &content, false));
}
