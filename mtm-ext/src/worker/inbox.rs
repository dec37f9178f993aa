//! Incoming messages: what a peer's sender delivers, in the backend that serves its connection.

use super::finish;
use super::wire::{Incoming, Outgoing};
use crate::machine;
use crate::pg::shmem::{self, RefusalCopy};
use crate::pg::{bgworker, pipe, proc, walwake};
use core::cell::RefCell;
use core::sync::atomic::Ordering;
use mtm_core::{Gid, NodeId};
use mtm_generations::{Input as Generation, Message};
use mtm_node::message::Refusal;
use mtm_node::wire::Wire;
use mtm_node::{Effect, Input, PeerMessage};

/// Turns this backend into the receiving end of `from`'s messages, until the peer goes. Answers
/// that arise here travel back on the same connection.
pub fn accept_pipe(from: NodeId) {
    let peer = shmem::peer(from);
    peer.inbox_pid.store(proc::my_pid(), Ordering::Release);
    begin(from);
    pipe::with_exit_hook(
        || {
            pipe::begin();
            let mut bytes = Vec::new();
            let mut incoming = Incoming::default();
            while pipe::receive(&mut bytes) {
                if peer.inbox_pid.load(Ordering::Acquire) != proc::my_pid() {
                    return; // what the peer said on a connection before its newest one
                }
                heard(from);
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

/// From here on this process has a connection of its own to `from`.
pub fn begin(from: NodeId) {
    PIPE.set(Some(Pipe { from, replies: Outgoing::default(), decided: Vec::new() }));
}

/// Notes a sign of life; whether a peer is heard again is the campaigner's business.
pub fn heard(from: NodeId) {
    let last = &shmem::peer(from).last_heard_us;
    let now = proc::now().0;
    if now.saturating_sub(last.swap(now, Ordering::AcqRel)) > crate::cluster::recv_timeout_us() {
        proc::wake(shmem::header().campaigner.load(Ordering::Acquire));
    }
}

/// What the receiving end of a peer's messages keeps.
struct Pipe {
    from: NodeId,
    replies: Outgoing,
    /// Prepared transactions whose outcome was decided by the messages just read.
    decided: Vec<Gid>,
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
        let message = Wire::decode(bytes).map_err(|error| error.to_string())?;
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

/// Sends what was put on this process' own connection.
pub fn send_replies() {
    PIPE.with_borrow_mut(|pipe| {
        if let Some(pipe) = pipe {
            pipe.replies.drain(pipe::send);
        }
    });
}

/// Has decided transactions ended: a single one at once and here, which saves waking its worker;
/// several, or when more messages wait, by their workers, which share flushes.
pub fn carry_out() {
    let decided = PIPE.with_borrow_mut(|pipe| {
        pipe.as_mut().map(|pipe| core::mem::take(&mut pipe.decided)).unwrap_or_default()
    });
    let quiet = decided.len() == 1 && !pipe::more_waiting();
    for gid in decided {
        if quiet {
            finish::unless_taken(&gid);
            send_replies();
        } else {
            finish::wake(&gid);
        }
    }
    walwake::catch_up();
    bgworker::report_statistics();
}

/// The connection has ended: what it was to do is left to others. Tells whose it was.
pub fn end_pipe() -> Option<NodeId> {
    let pipe = PIPE.take()?;
    finish::release();
    for gid in pipe.decided {
        finish::wake(&gid);
    }
    Some(pipe.from)
}

fn closed() {
    let Some(from) = end_pipe() else { return };
    let peer = shmem::peer(from);
    let mine = proc::my_pid();
    // A newer connection of the same peer may have taken over.
    if peer.inbox_pid.compare_exchange(mine, 0, Ordering::AcqRel, Ordering::Acquire).is_ok() {
        proc::wake(shmem::header().campaigner.load(Ordering::Acquire));
    }
}

/// Handles one message.
pub fn take(from: NodeId, message: &Wire<'_>) {
    match message {
        Wire::Generation(message) => {
            machine::generation(Generation::Message { from, message: *message });
        }
        Wire::Peer(message) => peer_message(from, *message),
        Wire::Refused(gid, refusal) => refused(from, gid, refusal),
        Wire::Alive(lsn, at) => {
            shmem::peer(from).log_end.store(lsn.0, Ordering::Release);
            for effect in machine::generation(Generation::SignOfLife { from, sent: *at }) {
                let (to, answer) = match effect {
                    Effect::Lend { to, sent, for_us, num } => (to, Wire::Heard(sent, for_us, num)),
                    Effect::Recall { to, elected } => {
                        (to, Wire::Generation(Message::Elected(elected)))
                    }
                    _ => continue,
                };
                let mut bytes = Vec::new();
                answer.encode(&mut bytes);
                reply(to, &bytes);
            }
        }
        Wire::Heard(_, 0, _) => {}
        Wire::Heard(at, for_us, num) => {
            let (sent, for_us, num) = (*at, *for_us, *num);
            machine::generation(Generation::Lent { from, sent, for_us, num });
        }
    }
}

fn peer_message(from: NodeId, message: PeerMessage) {
    let input = Input::Message { from, message };
    if PIPE.with_borrow(Option::is_none) {
        machine::feed(input);
        return;
    }
    for effect in machine::feed_here(input) {
        let (Effect::CommitPrepared(gid) | Effect::RollbackPrepared(gid)) = effect else {
            continue;
        };
        PIPE.with_borrow_mut(|pipe| pipe.iter_mut().for_each(|pipe| pipe.decided.push(gid)));
    }
}

/// A vote "no" and why: the reason is kept for the client.
fn refused(from: NodeId, gid: &Gid, refusal: &Refusal<'_>) {
    let copy = RefusalCopy::new(from, refusal);
    machine::feed_after(Input::Message { from, message: PeerMessage::Refused(*gid) }, |state| {
        state.refuse(gid, &copy);
    });
}
