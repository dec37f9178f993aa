//! mtm-logrep-receiver: reads one peer's stream and hands its transactions to apply workers, or
//! replays everything that peer has committed while this node recovers.

use super::applier::{self, InPlace};
use super::recovery::Replay;
use super::spill::{self, EarlyIncoming, Incoming, Task};
use super::{conflict, crew, line, open, recovery};
use crate::health::{self, Cause};
use crate::pg::bgworker::{self, Caught, Handle, Kind};
use crate::pg::conn::{Conn, ConnError, CopyIn};
use crate::pg::proc::{self, ProcNo};
use crate::pg::shmem::{self, NodeState, WorkerSlot};
use crate::pg::waitset::{WaitSet, Watch};
use crate::pg::{pipe, segment, xact};
use crate::{cluster, dmq, durable, guc, machine};
use core::sync::atomic::Ordering;
use mtm_core::{Gid, Instant, Lsn, NodeId};
use mtm_dmq::ring::Ring;
use mtm_generations::StatusInGeneration;
use mtm_logrep::position::Position;
use mtm_logrep::stream::{Keepalive, Packet, StreamMessage};
use mtm_node::{Effect, Input, Role};
use mtm_paxos::commit::{Decree, ParticipantState};
use smallvec::SmallVec;
use std::collections::{BTreeMap, VecDeque};
use std::io;

const RETRY_US: u64 = 300_000;
/// The same where nothing can be hoped for.
const LOST_US: u64 = 10_000_000;
/// How long a peer may take to answer when nothing is set, in seconds.
const CONNECT_S: u32 = 10;
const FEEDBACK_US: u64 = 1_000_000;
/// How often to look whether an earlier receiver of the same stream has ended.
const EARLIER_US: u64 = 10_000;
/// How often what is held is delivered again, at least.
const HELD_US: u64 = 10_000;
/// How long a peer that is shutting down is kept waiting for what it could still settle.
const FAREWELL_US: u64 = 500_000;
/// Transactions that wait for a worker before the stream is read on.
const MAX_WAITING: usize = 256;
/// Messages of the stream after which the line is looked at, too.
const LINE_EVERY: u32 = 32;

/// One apply worker of this receiver.
struct Worker {
    ring: Ring<'static>,
    /// Tells its slot from that of another receiver's worker that has got the same one since.
    segment: u32,
    handle: Handle,
    ready: bool,
    busy: Option<(Gid, Instant)>,
    /// Where what it applies is.
    file: Option<spill::Name>,
    handed: u64,
}

struct Receiver {
    origin: NodeId,
    workers: BTreeMap<usize, Worker>,
    waiting: VecDeque<Task>,
    incoming: Option<Incoming>,
    /// Transactions in progress on the origin, by their number in its log.
    early: BTreeMap<u32, EarlyIncoming>,
    position: Position,
    /// Delivered too early: the generation it belongs to has not begun here.
    held: Option<Task>,
    next_feedback: Instant,
    /// Since when the peer wants everything it sent confirmed.
    asked: Option<Instant>,
    wait_set: WaitSet,
    in_place: InPlace,
}

/// Runs until the server stops.
pub fn run(node: u8) {
    let origin = NodeId::new(node).expect("the monitor starts only known nodes");
    let header = shmem::header();
    bgworker::connect_to_database(header.database.load(Ordering::Relaxed));
    xact::set_applying();
    let peer = shmem::peer(origin);
    // An earlier one that was told to end may be bringing its replay to its end. Until then its
    // workers and its files are its own.
    let earlier = peer.receiver.load(Ordering::Acquire);
    while earlier != proc::my_procno() && recovery::replayer() == Some(earlier) {
        proc::wait(None, Some(EARLIER_US));
        bgworker::handle_signals();
    }
    peer.streaming.store(0, Ordering::Release);
    peer.receiver.store(proc::my_procno(), Ordering::Release);
    peer.receiver_pid.store(proc::my_pid(), Ordering::Release);
    take_over(origin);
    if let Err(error) = spill::clean(origin) {
        pgrx::error!("could not clean the spill directory: {error}");
    }
    let in_place = InPlace::new();
    pipe::with_exit_hook(
        || serve(origin, in_place),
        || {
            open::at_exit();
            recovery::at_exit();
            applier::refuse_mine("the receiver of this transaction ended");
        },
    );
}

fn serve(origin: NodeId, in_place: InPlace) {
    let peer = shmem::peer(origin);
    let mut receiver = Receiver {
        origin,
        workers: BTreeMap::new(),
        waiting: VecDeque::new(),
        incoming: None,
        early: BTreeMap::new(),
        position: Position::new(Lsn(peer.finished_lsn.load(Ordering::Acquire))),
        held: None,
        next_feedback: Instant(0),
        asked: None,
        wait_set: WaitSet::default(),
        in_place,
    };
    refuse_left(origin);
    let mut complained = String::new();
    loop {
        let error = receiver.stream();
        line::close();
        open::leave_nothing();
        peer.streaming.store(0, Ordering::Release);
        peer.replaying.store(0, Ordering::Release);
        receiver.incoming = None;
        receiver.early.clear(); // the peer begins them again
        receiver.position.broke();
        let Some(error) = error else { continue };
        note_lost_log(origin, &error);
        let text = error.to_string();
        if text != complained {
            pgrx::log!("multimaster: the stream from node {origin} broke: {text}");
            complained = text;
        }
        let lost = health::standing(Cause::LogLost).is_some();
        receiver.pause(if lost { LOST_US } else { RETRY_US });
    }
}

/// A node that is no member and whose slot is gone lacks what it can get nowhere: it must not take
/// part, not even when somebody makes the slot anew.
fn note_lost_log(origin: NodeId, error: &ConnError) {
    let ConnError::Server { sqlstate, message, .. } = error else { return };
    // Undefined, or perhaps invalidated by max_slot_wal_keep_size.
    if sqlstate != "42704" && sqlstate != "55000" {
        return;
    }
    let dead = machine::look(|node| {
        let membership = node.membership();
        membership.status_in_generation() == StatusInGeneration::Dead && !membership.is_fenced()
    });
    if dead != Some(true) || health::standing(Cause::LogLost).is_some() || !is_slot_lost(origin) {
        return;
    }
    let why = format!(
        "node {origin} no longer has the log that this node needs ({message}); make this node anew \
         from another one"
    );
    durable::stay_out("log-lost", &why);
    health::set(Cause::LogLost, &why);
}

/// Whether `origin` says that this node's slot on it is gone, or of no use any more.
fn is_slot_lost(origin: NodeId) -> bool {
    let me = shmem::header().me().map_or(0, NodeId::get);
    let ask = || -> Result<bool, ConnError> {
        let extra = [("application_name", cluster::ADMIN), ("options", "-c statement_timeout=5s")];
        let mut conn = Conn::connect(&shmem::conninfo(origin), &extra, 5)?;
        conn.limit_waits(Some(10_000_000)); // the network may swallow what the server says
        let usable = "SELECT 1 FROM pg_catalog.pg_replication_slots \
            WHERE slot_name = $1::text AND wal_status IS DISTINCT FROM 'lost'";
        Ok(conn.query(usable, &[&format!("mtm_slot_{me}")])?.is_empty())
    };
    ask().unwrap_or(false)
}

/// Whether this node recovers from `origin`.
fn recovers_from(origin: NodeId) -> bool {
    shmem::header().replay_from.load(Ordering::Acquire) == u32::from(origin.get())
}

/// What an earlier receiver had, but no worker, will never be applied: votes "no".
fn refuse_left(origin: NodeId) {
    let left: Vec<Gid> = shmem::node(|state| {
        let Some(node) = state.node() else { return Vec::new() };
        let of_origin = node.transactions().map(|(gid, _)| *gid).filter(|g| g.origin == origin);
        let all: Vec<Gid> = of_origin.collect();
        all.into_iter().filter(|gid| is_with_nobody(state, gid)).collect()
    });
    for gid in left {
        refuse_ended(gid, "the receiver of this transaction ended");
    }
}

/// Whether it is to be applied, and no process has it.
fn is_with_nobody(state: &mut NodeState, gid: &Gid) -> bool {
    state.participant(gid) == Some(ParticipantState::Applying)
        && state.notes.get_mut(gid).is_none_or(|note| note.worker == proc::NO_PROC)
}

/// Votes "no", if no process has it.
fn refuse_ended(gid: Gid, why: &str) {
    dmq::give_reason(gid, applier::ended(why));
    machine::feed_if(Input::ApplyFailed(gid), |state| {
        let left = is_with_nobody(state, &gid);
        if left {
            applier::forget(state, &gid);
        }
        left
    });
}

/// Ends workers that an earlier receiver of this origin has left.
fn take_over(origin: NodeId) {
    let left: Vec<ProcNo> = shmem::workers(|workers| {
        let of_origin = |w: &&mut WorkerSlot| w.used && w.origin == origin;
        let mut left = Vec::new();
        for worker in workers.iter_mut().filter(of_origin) {
            left.push(worker.procno);
            crew::let_go(worker);
        }
        left
    });
    for procno in left {
        proc::terminate(procno);
    }
}

impl Worker {
    /// Whether it works, by what is in its slot.
    fn is_running(&self, slot: &WorkerSlot) -> bool {
        slot.used && slot.segment == self.segment && slot.procno != proc::NO_PROC
    }
}

impl Receiver {
    /// Connects and streams until something breaks; `None` when the mode changes.
    fn stream(&mut self) -> Option<ConnError> {
        self.asked = None;
        if recovers_from(self.origin) {
            return self.recover();
        }
        match self.connect(false) {
            Ok(mut conn) => loop {
                bgworker::handle_signals();
                if recovers_from(self.origin) {
                    return None;
                }
                if let Err(error) = self.turn(&mut conn) {
                    return Some(error);
                }
            },
            Err(error) => Some(error),
        }
    }

    /// Replays everything the peer has committed, as long as this node recovers from it.
    fn recover(&mut self) -> Option<ConnError> {
        // What waits belongs to a generation that is over.
        for task in self.held.take().into_iter().chain(self.waiting.drain(..)) {
            refuse_ended(task.gid, "the receiver of this transaction ended");
            task.discard();
        }
        // Nobody else may wait for one that waits for its peer.
        let mut conn = match self.connect(true) {
            Ok(conn) => conn,
            Err(error) => return Some(error),
        };
        let wanted = || recovers_from(self.origin);
        let mut replay = Replay::begin(self.origin, self.position.confirmed(), wanted)?;
        let result = self.replay(&mut conn, &mut replay);
        replay.complete();
        self.position = Position::new(replay.done());
        drop(replay);
        self.in_place = InPlace::new();
        result.err()
    }

    fn replay(&mut self, conn: &mut Conn, replay: &mut Replay) -> Result<(), ConnError> {
        shmem::peer(self.origin).replaying.store(1, Ordering::Release);
        while recovers_from(self.origin) && !bgworker::is_asked_to_end() {
            bgworker::handle_signals();
            conn.consume()?;
            while replay.has_room() {
                match conn.copy_data()? {
                    CopyIn::Data(data) => self.take_for(replay, &data)?,
                    CopyIn::WouldBlock => break,
                    CopyIn::End => {
                        return Err(ConnError::Connection("the peer ended the stream".to_owned()));
                    }
                }
            }
            replay.work(self.workers.len());
            self.position = Position::new(replay.done());
            self.collect_workers();
            self.is_streaming();
            self.feed_back(conn)?;
            let sent = conn.flush()?;
            let room = replay.has_room();
            let watch = (room || !sent).then(|| Watch::new(conn, room, !sent));
            if replay.may_wait() {
                self.wait_set.wait(watch.as_slice(), Some(20_000));
            }
        }
        Ok(())
    }

    fn take_for(&mut self, replay: &mut Replay, data: &[u8]) -> Result<(), ConnError> {
        let broken = || ConnError::Connection("malformed replication message".to_owned());
        match data.first() {
            Some(b'w') if data.len() >= 25 => {
                let message = StreamMessage::decode(&data[25..]).map_err(|_| broken())?;
                replay.take(message).map_err(|error| ConnError::Connection(error.to_string()))
            }
            Some(b'k') => {
                let keepalive = Keepalive::decode(&data[1..]).map_err(|_| broken())?;
                replay.reached(keepalive.end);
                if keepalive.wants_answer {
                    self.next_feedback = Instant(0);
                    self.asked.get_or_insert_with(proc::now);
                }
                Ok(())
            }
            _ => Err(broken()),
        }
    }

    /// Notes that the peer's changes are being received.
    fn is_streaming(&self) {
        let last = &shmem::peer(self.origin).last_streamed_us;
        last.store(proc::now().0, Ordering::Release);
    }

    fn connect(&self, recovery: bool) -> Result<Conn, ConnError> {
        let extra = [("replication", "database"), ("application_name", "mtm_receiver")];
        let conninfo = shmem::conninfo(self.origin);
        let limit_s = guc::connect_timeout_s(CONNECT_S);
        let mut conn = Conn::connect(&conninfo, &extra, limit_s.cast_signed())?;
        conn.limit_waits(Some(u64::from(limit_s) * 1_000_000));
        let me = shmem::header().me().map_or(0, NodeId::get);
        let slot = conn.identifier(&format!("mtm_slot_{me}"))?;
        let mode = if recovery { "recovery" } else { "normal" };
        let from = self.position.confirmed();
        let start = format!("START_REPLICATION SLOT {slot} LOGICAL {from} (\"mode\" '{mode}')");
        conn.start_copy(&start)?;
        let peer = shmem::peer(self.origin);
        self.is_streaming();
        peer.streaming.store(1, Ordering::Release);
        proc::wake(shmem::header().campaigner.load(Ordering::Acquire));
        Ok(conn)
    }

    /// One round: take what has come, hand it out, wait.
    fn turn(&mut self, conn: &mut Conn) -> Result<(), ConnError> {
        line::open(self.origin);
        line::turn(Some(&self.wait_set));
        open::turn();
        self.deliver_held();
        if self.wait_set.may_read(conn) {
            conn.consume()?;
        }
        let mut read = 0_u32;
        while self.may_read() {
            read += 1;
            if read.is_multiple_of(LINE_EVERY) {
                line::turn(None);
                open::turn();
            }
            match conn.copy_data()? {
                CopyIn::Data(data) => self.take(&data)?,
                CopyIn::WouldBlock => break,
                CopyIn::End => {
                    return Err(ConnError::Connection("the peer ended the stream".to_owned()));
                }
            }
        }
        self.collect_workers();
        self.apply_in_place();
        self.hand_out();
        if !self.waiting.is_empty() {
            // A worker that ends before it can see this is found by looking once more.
            shmem::peer(self.origin).wants_worker.store(1, Ordering::SeqCst);
            self.collect_workers();
            self.hand_out();
        }
        let wants = u32::from(!self.waiting.is_empty());
        shmem::peer(self.origin).wants_worker.store(wants, Ordering::SeqCst);
        self.feed_back(conn)?;
        let sent = conn.flush()?;
        let read = self.may_read();
        shmem::peer(self.origin).received_lsn.store(self.position.received().0, Ordering::Release);
        let watch = (read || !sent).then(|| Watch::new(conn, read, !sent));
        let watches: SmallVec<[Watch; 2]> = watch.into_iter().chain(line::watch()).collect();
        let patience = self.patience_us();
        self.wait_set.wait(&watches, Some(patience));
        Ok(())
    }

    fn may_read(&self) -> bool {
        self.waiting.len() < MAX_WAITING && self.held.is_none()
    }

    /// Applies the only transaction there is, if that is all that is to be done.
    fn apply_in_place(&mut self) {
        let keeping = open::is_keeping();
        if keeping || self.waiting.len() != 1 || self.workers.values().any(|w| w.busy.is_some()) {
            return;
        }
        if let Some(task) = self.waiting.pop_front()
            && !self.in_place.try_apply(self.origin, &task.bytes)
        {
            self.waiting.push_front(task);
        }
    }

    /// Until when to wait for events: conflicts are looked for while work is outstanding.
    fn patience_us(&self) -> u64 {
        let now = proc::now();
        let feedback = self.next_feedback.since(now).min(line::patience_us()).max(1000);
        // What is held may wait for room, of which nobody tells.
        let feedback = if self.held.is_some() { feedback.min(HELD_US) } else { feedback };
        let feedback = open::patience_us().map_or(feedback, |us| us.min(feedback));
        // The youngest work decides: others must not wait longer beside a large transaction.
        let youngest = self.workers.values().filter_map(|w| w.busy.map(|(_, since)| since)).max();
        match youngest {
            Some(since) => conflict::next_look_us(now.since(since)).min(feedback),
            None => feedback,
        }
    }

    fn pause(&mut self, us: u64) {
        let until = proc::now().plus_us(us);
        while proc::now() < until {
            proc::wait(None, Some(until.since(proc::now())));
            bgworker::handle_signals();
            self.collect_workers();
            self.hand_out();
        }
    }

    fn take(&mut self, data: &[u8]) -> Result<(), ConnError> {
        let broken = || ConnError::Connection("malformed replication message".to_owned());
        match data.first() {
            Some(b'w') if data.len() >= 25 => {
                self.asked = None;
                for message in Packet::new(&data[25..]) {
                    self.take_message(message.map_err(|_| broken())?)?;
                }
                Ok(())
            }
            Some(b'k') => {
                let keepalive = Keepalive::decode(&data[1..]).map_err(|_| broken())?;
                if self.incoming.is_none()
                    && let Some(marked) = keepalive.marked()
                {
                    self.position.reached(marked);
                }
                if keepalive.wants_answer {
                    self.next_feedback = Instant(0);
                    self.asked.get_or_insert_with(proc::now);
                }
                Ok(())
            }
            _ => Err(broken()),
        }
    }

    fn take_message(&mut self, message: StreamMessage<'_>) -> Result<(), ConnError> {
        match message {
            StreamMessage::Piece { gid, lsn, first, last, payload } => {
                if first {
                    self.incoming = Some(Incoming::new(gid));
                }
                let Some(incoming) = self.incoming.as_mut().filter(|i| i.gid == gid) else {
                    return Ok(());
                };
                incoming.push(payload);
                if last && let Some(incoming) = self.incoming.take() {
                    self.deliver_or_refuse(gid, lsn, incoming.finish())?;
                }
            }
            StreamMessage::Unavailable { lsn, .. } => {
                self.incoming = None;
                self.position.reached(lsn);
            }
            StreamMessage::Unshippable { gid, lsn, why } => {
                self.incoming = None;
                self.refuse(gid, lsn, *b"55000", why)?;
            }
            StreamMessage::CommitMark { gid, lsn } => {
                self.position.committed(lsn, gid);
            }
            StreamMessage::Place { lsn } => self.position.reached(lsn),
            StreamMessage::Early { xid, payload } => {
                let origin = self.origin;
                let early = self.early.entry(xid).or_insert_with(|| EarlyIncoming::new(origin));
                early.push(payload);
            }
            StreamMessage::EarlyAbort { xid } => drop(self.early.remove(&xid)),
            StreamMessage::EarlyDone { gid, xid, lsn, pieces, children } => {
                let early = self.early.remove(&xid);
                if early.as_ref().map_or(0, EarlyIncoming::pieces) != pieces {
                    return Err(ConnError::Connection(format!("pieces of {gid} are missing")));
                }
                let task = match early {
                    Some(early) => early.finish(gid, xid, children),
                    None => Ok(Task::inline(gid, &[])),
                };
                self.deliver_or_refuse(gid, lsn, task)?;
            }
            _ => return Err(ConnError::Connection("an unexpected message came".to_owned())),
        }
        Ok(())
    }

    fn deliver_or_refuse(
        &mut self,
        gid: Gid,
        lsn: Lsn,
        task: io::Result<Task>,
    ) -> Result<(), ConnError> {
        match task {
            Ok(task) => {
                self.deliver(task, lsn);
                Ok(())
            }
            Err(error) => {
                let full = matches!(
                    error.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                );
                let why =
                    format!("could not keep a large transaction in a temporary file: {error}");
                pgrx::log!("multimaster: refusing transaction {gid}: {why}");
                self.refuse(gid, lsn, if full { *b"53100" } else { *b"58030" }, &why)
            }
        }
    }

    fn deliver(&mut self, task: Task, lsn: Lsn) {
        self.position.reached(lsn);
        self.deliver_to_machine(task);
    }

    fn deliver_to_machine(&mut self, task: Task) {
        match machine::feed(Input::Delivered(task.gid)).first() {
            Some(Effect::Apply(_)) => self.waiting.push_back(task),
            Some(Effect::Hold(_)) => self.held = Some(task),
            _ => task.discard(),
        }
    }

    /// What came too early is delivered again, before anything else is read.
    fn deliver_held(&mut self) {
        if let Some(task) = self.held.take() {
            self.deliver_to_machine(task);
        }
    }

    fn refuse(
        &mut self,
        gid: Gid,
        lsn: Lsn,
        sqlstate: [u8; 5],
        why: &str,
    ) -> Result<(), ConnError> {
        let effects = machine::feed(Input::Delivered(gid));
        if effects.contains(&Effect::Hold(gid)) {
            // Its generation has not begun here: it is to come again.
            return Err(ConnError::Connection(format!("{gid} came too early to be refused")));
        }
        self.position.reached(lsn);
        let caught = Caught { sqlstate, message: why.to_owned(), detail: String::new() };
        health::refused(&caught);
        if effects.contains(&Effect::Apply(gid)) {
            dmq::give_reason(gid, caught);
            machine::feed(Input::ApplyFailed(gid));
        }
        Ok(())
    }

    /// Notices workers that are done, ready or gone.
    fn collect_workers(&mut self) {
        if self.workers.is_empty() {
            return;
        }
        let slots: BTreeMap<usize, (bool, u64)> = shmem::workers(|all| {
            let of = |(i, w): (&usize, &Worker)| (*i, (w.is_running(&all[*i]), all[*i].done));
            self.workers.iter().map(of).collect()
        });
        let mut gone = Vec::new();
        for (slot, worker) in &mut self.workers {
            let (running, done) = slots[slot];
            if worker.ready && !running || worker.handle.has_ended() {
                gone.push(*slot);
                continue;
            }
            worker.ready = running;
            if done == worker.handed {
                worker.busy = None;
                worker.file = None;
            }
        }
        for slot in gone {
            let Some(worker) = self.workers.remove(&slot) else { continue };
            // One that never came to its work has left its slot.
            if worker.handle.has_ended() {
                shmem::workers(|all| {
                    if all[slot].used && all[slot].segment == worker.segment {
                        all[slot] = shmem::free_worker();
                    }
                });
            }
            // It may have ended before it saw what it was given. What it had begun it has answered.
            if let Some((gid, _)) = worker.busy {
                refuse_ended(gid, "an apply worker ended");
            }
            if let Some(file) = worker.file {
                file.remove();
            }
        }
    }

    /// Gives waiting transactions to idle workers, oldest first; starts workers if none is idle.
    fn hand_out(&mut self) {
        while let Some(task) = self.waiting.front() {
            let idle = |w: &(&usize, &mut Worker)| w.1.ready && w.1.busy.is_none();
            let Some((slot, worker)) = self.workers.iter_mut().find(idle) else {
                self.start_worker();
                return;
            };
            if worker.ring.push(&task.bytes).is_err() {
                pgrx::error!("no place in an idle apply worker's ring");
            }
            let gid = task.gid;
            worker.handed += 1;
            worker.busy = Some((gid, proc::now()));
            worker.file = task.file;
            let procno = shmem::workers(|all| {
                let seen = &mut all[*slot];
                if !worker.is_running(seen) {
                    return proc::NO_PROC; // `collect_workers` finds that out, too
                }
                (seen.gid, seen.handed) = (Some(gid), worker.handed);
                seen.procno
            });
            proc::wake(procno);
            self.waiting.pop_front();
        }
        conflict::look(self.workers.values().filter_map(|w| w.busy));
    }

    fn start_worker(&mut self) {
        let starting = self.workers.values().any(|w| !w.ready);
        if starting || self.workers.len() >= guc::MAX_WORKERS.get().unsigned_abs() as usize {
            return;
        }
        let (segment, ring) = segment::create();
        let slot = shmem::workers(|all| {
            // One that a worker has left is its own until `collect_workers` has seen that.
            let free =
                |(slot, w): (usize, &WorkerSlot)| !w.used && !self.workers.contains_key(&slot);
            let slot = all.iter().enumerate().position(free)?;
            all[slot] = shmem::free_worker();
            all[slot].used = true;
            all[slot].origin = self.origin;
            all[slot].receiver = proc::my_procno();
            all[slot].segment = segment;
            Some(slot)
        });
        let Some(slot) = slot else { return };
        match bgworker::start(Kind::Applier(slot as u16)) {
            Some(handle) => {
                let (ready, busy, file, handed) = (false, None, None, 0);
                let worker = Worker { ring, segment, handle, ready, busy, file, handed };
                self.workers.insert(slot, worker);
                let n = self.workers.len();
                shmem::peer(self.origin).n_workers.store(n as i32, Ordering::Release);
            }
            None => {
                shmem::workers(|all| all[slot] = shmem::free_worker());
                if self.workers.is_empty() {
                    pgrx::error!(
                        "could not start an apply worker: max_worker_processes is too low"
                    );
                }
            }
        }
    }

    /// Tells the peer up to where everything it announced is finished here, so that it may
    /// discard its log.
    fn feed_back(&mut self, conn: &mut Conn) -> Result<(), ConnError> {
        let now = proc::now();
        if now < self.next_feedback {
            return Ok(());
        }
        self.next_feedback = now.plus_us(FEEDBACK_US);
        bgworker::report_statistics();
        self.is_streaming();
        self.confirm();
        let finished = self.position.confirmed();
        let peer = shmem::peer(self.origin);
        peer.received_lsn.store(self.position.received().0, Ordering::Release);
        peer.finished_lsn.store(finished.0, Ordering::Release);
        // Everything finished was made durable by COMMIT PREPARED or needs no trace.
        let mut reply = Vec::with_capacity(34);
        reply.push(b'r');
        for lsn in [self.position.received(), finished, finished] {
            reply.extend_from_slice(&lsn.0.to_be_bytes());
        }
        reply.extend_from_slice(&[0; 9]);
        conn.put_copy_data(&reply)?;
        self.farewell(now, finished)
    }

    /// A server that shuts down keeps its walsenders until everything they sent is confirmed. What
    /// is undecided here can be settled only by its origin, whose backends are gone by then: each
    /// would wait for the other for ever. Leaving the stream ends that; the rest is asked for when
    /// the origin is back.
    fn farewell(&mut self, now: Instant, finished: Lsn) -> Result<(), ConnError> {
        if finished >= self.position.received() {
            self.asked = None;
        }
        match self.asked {
            Some(since) if now.since(since) > FAREWELL_US => {
                let why = "it shuts down and leaves transactions undecided";
                Err(ConnError::Connection(why.to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Moves up to before the first commit in the peer's log, of whatever origin, that is not
    /// durably committed here (duty 29).
    fn confirm(&mut self) {
        let idle = self.incoming.is_none() && self.held.is_none();
        let position = &mut self.position;
        shmem::node(|state| {
            let Some(mut node) = state.node() else { return };
            position.confirm(idle, |gid| is_durable(&mut node, gid));
        });
    }
}

/// Whether a transaction that a peer has committed is durably committed here.
fn is_durable(node: &mut mtm_node::Node<'_>, gid: &Gid) -> bool {
    if gid.xid < node.forgotten()[gid.origin.index()] {
        return node.transaction(gid).is_none_or(|entry| is_committed(&entry.role));
    }
    node.transaction(gid).is_some_and(|entry| is_committed(&entry.role))
}

fn is_committed(role: &Role) -> bool {
    match role {
        Role::Own(own) => own.decree() == Some(Decree::Commit) && own.is_durable(),
        Role::Peer(peer) => peer.state() == ParticipantState::Committed,
    }
}
