//! A receiver's own line to the origin of its stream: votes and outcomes of that origin's
//! transactions pass from the process that has them to the other node's, without waking
//! `mtm-dmq-sender` and the receiving end of its connection on the way.
//!
//! The line is a short cut and nothing else. While there is none, or it does not take a message,
//! that goes the ordinary way; what was on a line that broke is asked for like any lost message.
//! Nothing on it counts as a sign that the other node is there: a node must be found silent when
//! the ordinary way is.

use super::wire::{Incoming, Outgoing};
use super::{finish, inbox, sender};
use crate::pg::conn::{Conn, ConnError, CopyIn};
use crate::pg::opening::{Opening, Progress};
use crate::pg::waitset::{WaitSet, Watch};
use crate::pg::{bgworker, pipe, proc, shmem, walwake};
use crate::{cluster, guc, machine};
use core::cell::RefCell;
use core::sync::atomic::Ordering;
use mtm_core::{GenNum, Instant, NodeId};
use mtm_node::wire::Wire;
use mtm_node::{Effect, Input, PeerMessage};

/// Pause between attempts to connect.
const RETRY_US: u64 = 1_000_000;
/// How long an attempt may take, in seconds.
const CONNECT_S: u32 = 1;

/// The receiver's end.
struct Line {
    node: NodeId,
    conn: Conn,
    outgoing: Outgoing,
    incoming: Incoming,
    unsent: bool,
    next_sign: Instant,
    heard: Instant,
}

/// What there is of the receiver's end.
#[derive(Default)]
enum State {
    #[default]
    Down,
    Opening(Opening),
    Open(Line),
}

thread_local! {
    static LINE: RefCell<State> = const { RefCell::new(State::Down) };
    static NOT_BEFORE: core::cell::Cell<Instant> = const { core::cell::Cell::new(Instant(0)) };
}

/// How often each end shows the other that the line works.
fn sign_us() -> u64 {
    cluster::recv_timeout_us() / 4
}

/// A message that means nothing: an answer that lends nothing.
fn sign() -> Vec<u8> {
    let mut bytes = Vec::new();
    Wire::Heard(Instant(0), 0, GenNum(0)).encode(&mut bytes);
    bytes
}

/// Ends the line.
pub fn close() {
    LINE.set(State::Down);
}

/// Opens the line to `node`, if its stream is to have one and has none; waits for nothing.
pub fn open(node: NodeId) {
    if !guc::RECEIVER_LINES.get() {
        return close();
    }
    let next = match LINE.take() {
        State::Open(line) => Ok(State::Open(line)),
        State::Opening(opening) => opening.poll().map(|progress| begun(node, progress)),
        State::Down if proc::now() < NOT_BEFORE.get() => Ok(State::Down),
        State::Down => sender::open_pipe(node, CONNECT_S, "mtm.line_serve").map(State::Opening),
    };
    match next {
        Ok(state) => LINE.set(state),
        Err(error) => {
            NOT_BEFORE.set(proc::now().plus_us(RETRY_US));
            pgrx::debug1!("multimaster: no line to node {node}: {error}");
        }
    }
}

fn begun(node: NodeId, progress: Progress) -> State {
    let now = proc::now();
    match progress {
        Progress::Waits(opening) => State::Opening(opening),
        Progress::Open(conn) => {
            NOT_BEFORE.set(now.plus_us(RETRY_US));
            State::Open(Line {
                node,
                conn,
                outgoing: Outgoing::default(),
                incoming: Incoming::default(),
                unsent: false,
                next_sign: now,
                heard: now,
            })
        }
    }
}

/// What to wait for on the line.
pub fn watch() -> Option<Watch> {
    LINE.with_borrow(|line| match line {
        State::Down => None,
        State::Opening(opening) => Some(opening.watch()),
        State::Open(line) => Some(Watch::new(&line.conn, true, line.unsent)),
    })
}

/// Microseconds after which [`open`] or [`turn`] has something to do at the latest.
pub fn patience_us() -> u64 {
    let now = proc::now();
    LINE.with_borrow(|line| match line {
        State::Down => RETRY_US,
        State::Opening(opening) => opening.deadline().since(now),
        State::Open(line) => line.next_sign.since(now),
    })
}

/// Puts a message for `node` on the line to it, if this process has one.
pub fn put(node: NodeId, message: &[u8]) -> bool {
    with_line(|line| {
        if line.node != node || line.unsent {
            return Ok(false);
        }
        line.outgoing.push(message);
        line.send()?;
        Ok(true)
    })
    .unwrap_or(false)
}

/// Runs `body` with the line; one that breaks is no more.
fn with_line<R>(body: impl FnOnce(&mut Line) -> Result<R, ConnError>) -> Option<R> {
    let result = LINE.with_borrow_mut(|line| match line {
        State::Open(line) => Some(body(line)),
        State::Down | State::Opening(_) => None,
    });
    match result? {
        Ok(result) => Some(result),
        Err(error) => {
            pgrx::debug1!("multimaster: the line broke: {error}");
            close();
            None
        }
    }
}

impl Line {
    fn send(&mut self) -> Result<(), ConnError> {
        let conn = &mut self.conn;
        self.outgoing.drain(|bytes| conn.put_copy_data(bytes)).transpose()?;
        self.unsent = !self.conn.flush()?;
        Ok(())
    }

    /// Messages that have come.
    fn read(&mut self, set: Option<&WaitSet>) -> Result<Vec<Vec<u8>>, ConnError> {
        let now = proc::now();
        let mut messages = Vec::new();
        if set.is_none_or(|set| set.may_read(&self.conn)) {
            self.conn.consume()?;
            loop {
                match self.conn.copy_data()? {
                    CopyIn::Data(bytes) => self.incoming.feed(&bytes),
                    CopyIn::WouldBlock => break,
                    CopyIn::End => {
                        return Err(ConnError::Connection("the peer ended it".to_owned()));
                    }
                }
                self.heard = now;
            }
            let malformed = |error| ConnError::Connection(format!("malformed: {error}"));
            while let Some(message) = self.incoming.next().map_err(malformed)? {
                messages.push(message.to_vec());
            }
        }
        if now.since(self.heard) > cluster::recv_timeout_us() {
            return Err(ConnError::Connection("it is silent".to_owned()));
        }
        if now >= self.next_sign {
            self.next_sign = now.plus_us(sign_us());
            self.outgoing.push(&sign());
        }
        self.send()?;
        Ok(messages)
    }
}

/// Takes what has come, and shows that this end is there; reads only if `set`'s last wait says so.
/// Outcomes of transactions that this process has itself are left to it.
pub fn turn(set: Option<&WaitSet>) {
    let Some((from, messages)) = with_line(|line| Ok((line.node, line.read(set)?))) else { return };
    for bytes in messages {
        match Wire::decode(&bytes) {
            Ok(Wire::Peer(message)) => take(from, message),
            Ok(message) => inbox::take(from, &message),
            Err(error) => {
                pgrx::log!("multimaster: malformed message from node {from}: {error}");
                return close();
            }
        }
    }
}

fn take(from: NodeId, message: PeerMessage) {
    for effect in machine::feed_here(Input::Message { from, message }) {
        if let Effect::CommitPrepared(gid) | Effect::RollbackPrepared(gid) = effect {
            finish::wake_other(&gid);
        }
    }
}

/// Offers a message for `node` to its receiver's line to this node: outcomes of this node's own
/// transactions travel on it. `false` if it must go another way.
pub fn offer(node: NodeId, message: &PeerMessage, bytes: &[u8]) -> bool {
    let PeerMessage::Decided(gid, _) = message else { return false };
    if shmem::header().me() != Some(gid.origin) {
        return false;
    }
    let server = shmem::peer(node).line.load(Ordering::Acquire);
    if server == proc::NO_PROC || shmem::produce_line(node, |ring| ring.push(bytes)).is_err() {
        return false;
    }
    proc::wake(server);
    true
}

/// Turns this backend into this node's end of the line of `from`'s receiver, until that goes.
pub fn serve(from: NodeId) {
    pipe::with_exit_hook(
        || {
            inbox::begin(from);
            pipe::begin();
            // What is there was meant for another line.
            let _ = shmem::produce_line(from, |ring| ring.discard());
            shmem::peer(from).line.store(proc::my_procno(), Ordering::Release);
            serve_until_end(from);
        },
        ended,
    );
}

fn serve_until_end(from: NodeId) {
    let (ring, mine) = (shmem::line(from), proc::my_procno());
    let mut incoming = Incoming::default();
    let mut bytes = Vec::new();
    let mut heard = proc::now();
    loop {
        proc::check_interrupts();
        if shmem::peer(from).line.load(Ordering::Acquire) != mine {
            return; // there is a newer one
        }
        loop {
            match ring.pop(&mut bytes) {
                Ok(true) => drop(inbox::reply(from, &bytes)),
                Ok(false) => break,
                Err(corrupt) => pgrx::error!("the ring to node {from} is corrupt: {corrupt}"),
            }
        }
        inbox::send_replies();
        let mut came = false;
        loop {
            match pipe::receive_now(&mut bytes) {
                pipe::Received::Message => incoming.feed(&bytes),
                pipe::Received::Nothing => break,
                pipe::Received::End => return,
            }
            came = true;
        }
        let now = proc::now();
        if came {
            if now.since(heard) > sign_us() / 2 {
                inbox::reply(from, &sign());
            }
            heard = now;
            if let Err(error) = inbox::take_all(from, &mut incoming) {
                pgrx::error!("malformed message from node {from}: {error}");
            }
            inbox::carry_out();
            inbox::send_replies();
        } else if now.since(heard) > cluster::recv_timeout_us() {
            return;
        }
        if ring.is_empty() {
            walwake::catch_up();
            bgworker::report_statistics();
            pipe::wait(sign_us());
        }
    }
}

fn ended() {
    let Some(from) = inbox::end_pipe() else { return };
    let mine = proc::my_procno();
    let _ = shmem::peer(from).line.compare_exchange(
        mine,
        proc::NO_PROC,
        Ordering::AcqRel,
        Ordering::Acquire,
    );
}
