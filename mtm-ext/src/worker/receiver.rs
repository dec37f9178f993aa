//! mtm-logrep-receiver: reads one peer's stream and hands its transactions to apply workers.

use super::applier::{self, InPlace};
use super::conflict;
use super::spill::{self, EarlyIncoming, Incoming, Task};
use crate::pg::bgworker::{self, Caught, Handle, Kind};
use crate::pg::conn::{Conn, ConnError, CopyIn};
use crate::pg::proc::{self, ProcNo};
use crate::pg::shmem::{self, Part};
use crate::pg::waitset::{WaitSet, Watch};
use crate::pg::{segment, xact};
use crate::{dmq, guc};
use core::sync::atomic::Ordering;
use mtm_core::{Gid, Instant, Lsn, NodeId};
use mtm_dmq::ring::Ring;
use mtm_logrep::stream::StreamMessage;
use mtm_node::message::Message;
use mtm_paxos::commit::{Delivery, Participant, ParticipantState};
use std::collections::{BTreeMap, VecDeque};
use std::io;

const RETRY_US: u64 = 300_000;
const FEEDBACK_US: u64 = 1_000_000;
/// How long a peer that is shutting down is kept waiting for what it could still settle.
const FAREWELL_US: u64 = 500_000;
/// Transactions that wait for a worker before the stream is read on.
const MAX_WAITING: usize = 256;

/// One apply worker of this receiver.
struct Worker {
    ring: Ring<'static>,
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
    received: Lsn,
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
    peer.streaming.store(0, Ordering::Release);
    peer.receiver.store(proc::my_procno(), Ordering::Release);
    peer.receiver_pid.store(proc::my_pid(), Ordering::Release);
    take_over(origin);
    if let Err(error) = spill::clean(origin) {
        pgrx::error!("could not clean the spill directory: {error}");
    }
    let mut receiver = Receiver {
        origin,
        workers: BTreeMap::new(),
        waiting: VecDeque::new(),
        incoming: None,
        early: BTreeMap::new(),
        received: Lsn(peer.finished_lsn.load(Ordering::Acquire)),
        next_feedback: Instant(0),
        asked: None,
        wait_set: WaitSet::default(),
        in_place: InPlace::new(),
    };
    let mut complained = String::new();
    loop {
        let error = receiver.stream();
        peer.streaming.store(0, Ordering::Release);
        receiver.incoming = None;
        receiver.early.clear(); // the peer begins them again
        let text = error.to_string();
        if text != complained {
            pgrx::log!("multimaster: the stream from node {origin} broke: {text}");
            complained = text;
        }
        receiver.pause(RETRY_US);
    }
}

/// Ends workers that an earlier receiver of this origin has left.
fn take_over(origin: NodeId) {
    let left: Vec<ProcNo> = shmem::workers(|workers| {
        let of_origin = workers.iter().filter(|w| w.used && w.origin == origin);
        of_origin.map(|w| w.procno).collect()
    });
    for procno in left {
        proc::terminate(procno);
    }
}

impl Receiver {
    /// Connects and streams until something breaks.
    fn stream(&mut self) -> ConnError {
        self.asked = None;
        match self.connect() {
            Ok(mut conn) => loop {
                bgworker::handle_signals();
                if let Err(error) = self.turn(&mut conn) {
                    return error;
                }
            },
            Err(error) => error,
        }
    }

    fn connect(&self) -> Result<Conn, ConnError> {
        let extra = [("replication", "database"), ("application_name", "mtm_receiver")];
        let conninfo = shmem::conninfo(self.origin);
        let mut conn = Conn::connect(&conninfo, &extra, guc::CONNECT_TIMEOUT.get())?;
        let me = shmem::header().me().map_or(0, NodeId::get);
        let slot = conn.identifier(&format!("mtm_slot_{me}"))?;
        let from = Lsn(shmem::peer(self.origin).finished_lsn.load(Ordering::Acquire));
        conn.start_copy(&format!("START_REPLICATION SLOT {slot} LOGICAL {from}"))?;
        shmem::peer(self.origin).streaming.store(1, Ordering::Release);
        proc::wake(shmem::header().sender.load(Ordering::Acquire));
        Ok(conn)
    }

    /// One round: take what has come, hand it out, wait.
    fn turn(&mut self, conn: &mut Conn) -> Result<(), ConnError> {
        conn.consume()?;
        while self.waiting.len() < MAX_WAITING {
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
        let read = self.waiting.len() < MAX_WAITING;
        let watch = (read || !sent).then(|| Watch::new(conn, read, !sent));
        let patience = self.patience_us();
        self.wait_set.wait(watch.as_slice(), Some(patience));
        Ok(())
    }

    /// Applies the only transaction there is, if that is all that is to be done.
    fn apply_in_place(&mut self) {
        if self.waiting.len() != 1 || self.workers.values().any(|w| w.busy.is_some()) {
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
        let feedback = self.next_feedback.since(now).max(1000);
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
                let message = StreamMessage::decode(&data[25..]);
                self.take_message(message.map_err(|_| broken())?)
            }
            Some(b'k') if data.len() >= 18 => {
                let mut end = [0; 8];
                end.copy_from_slice(&data[1..9]);
                if self.incoming.is_none() {
                    self.received = self.received.max(Lsn(u64::from_be_bytes(end)));
                }
                if data[17] == 1 {
                    self.next_feedback = Instant(0);
                    self.asked.get_or_insert(proc::now());
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
                    self.deliver_or_refuse(gid, lsn, incoming.finish());
                }
            }
            StreamMessage::Unavailable { gid, lsn } => {
                self.incoming = None;
                self.early.remove(&early_number(&gid));
                self.received = self.received.max(lsn);
            }
            StreamMessage::Unshippable { gid, lsn, why } => {
                self.incoming = None;
                self.early.remove(&early_number(&gid));
                self.refuse(gid, lsn, *b"55000", why);
            }
            StreamMessage::Early { xid, payload } => {
                let origin = self.origin;
                let early = self.early.entry(xid).or_insert_with(|| EarlyIncoming::new(origin));
                early.push(payload);
            }
            StreamMessage::EarlyAbort { xid } => drop(self.early.remove(&xid)),
            StreamMessage::EarlyDone { gid, lsn, pieces, children } => {
                let early = self.early.remove(&early_number(&gid));
                if early.as_ref().map_or(0, EarlyIncoming::pieces) != pieces {
                    return Err(ConnError::Connection(format!("pieces of {gid} are missing")));
                }
                let task = match early {
                    Some(early) => early.finish(gid, children),
                    None => Ok(Task::inline(gid, &[])),
                };
                self.deliver_or_refuse(gid, lsn, task);
            }
        }
        Ok(())
    }

    fn deliver_or_refuse(&mut self, gid: Gid, lsn: Lsn, task: io::Result<Task>) {
        match task {
            Ok(task) => self.deliver(task, lsn),
            Err(error) => {
                let full = matches!(
                    error.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                );
                let why =
                    format!("could not keep a large transaction in a temporary file: {error}");
                pgrx::log!("multimaster: refusing transaction {gid}: {why}");
                self.refuse(gid, lsn, if full { *b"53100" } else { *b"58030" }, &why);
            }
        }
    }

    /// Takes note of a transaction; `None` when there is no place.
    fn note(&mut self, gid: Gid, lsn: Lsn) -> Option<Delivery> {
        self.received = self.received.max(lsn);
        let now = proc::now().0;
        shmem::participants(|table| {
            let fresh = || Part {
                participant: Participant::new(),
                lsn,
                worker: proc::NO_PROC,
                taken: false,
                asked_us: now,
                lost_to: None,
            };
            let part = table.entry(gid, fresh).ok()?;
            part.lsn = lsn;
            Some(part.participant.delivered())
        })
    }

    fn deliver(&mut self, task: Task, lsn: Lsn) {
        match self.note(task.gid, lsn) {
            Some(Delivery::Apply) => self.waiting.push_back(task),
            Some(Delivery::Duplicate) => {
                vote_again(&task.gid);
                task.discard();
            }
            Some(Delivery::Never) => task.discard(),
            None => pgrx::error!("no place for transaction {}: too many unfinished", task.gid),
        }
    }

    fn refuse(&mut self, gid: Gid, lsn: Lsn, sqlstate: [u8; 5], why: &str) {
        if self.note(gid, lsn) == Some(Delivery::Apply) {
            shmem::participants(|table| {
                table.get_mut(&gid).map(|part| part.participant.failed());
            });
            let caught = Caught { sqlstate, message: why.to_owned(), detail: String::new() };
            applier::vote_no(&gid, &caught);
        }
    }

    /// Notices workers that are done, ready or gone.
    fn collect_workers(&mut self) {
        let slots: BTreeMap<usize, (bool, u64)> = shmem::workers(|all| {
            let of = |i: &usize| (all[*i].used && all[*i].procno != proc::NO_PROC, all[*i].done);
            self.workers.keys().map(|i| (*i, of(i))).collect()
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
            if let Some(file) = self.workers.remove(&slot).and_then(|worker| worker.file) {
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
                all[*slot].gid = Some(gid);
                all[*slot].handed = worker.handed;
                all[*slot].procno
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
            let slot = all.iter().position(|w| !w.used)?;
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
                let worker =
                    Worker { ring, handle, ready: false, busy: None, file: None, handed: 0 };
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
        let finished = self.finished();
        let peer = shmem::peer(self.origin);
        peer.received_lsn.store(self.received.0, Ordering::Release);
        peer.finished_lsn.store(finished.0, Ordering::Release);
        // Everything finished was made durable by COMMIT PREPARED or needs no trace.
        let mut reply = Vec::with_capacity(34);
        reply.push(b'r');
        for lsn in [self.received, finished, finished] {
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
        if finished >= self.received {
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

    /// The low-watermark; entries below it are forgotten.
    fn finished(&self) -> Lsn {
        let origin = self.origin;
        let before = Lsn(shmem::peer(origin).finished_lsn.load(Ordering::Acquire));
        shmem::participants(|table| {
            let open = |(gid, part): &(&Gid, &Part)| {
                gid.origin == origin && part.lsn != Lsn(0) && !part.participant.is_finished()
            };
            let oldest = table.iter().filter(open).map(|(_, part)| part.lsn).min();
            let mark = oldest.map_or(self.received, |lsn| Lsn(lsn.0 - 1)).max(before);
            table.retain(|gid, part| {
                gid.origin != origin || !part.participant.is_finished() || part.lsn > mark
            });
            mark
        })
    }
}

/// The number under which a transaction's pieces come before its announcement.
const fn early_number(gid: &Gid) -> u32 {
    gid.xid.0 as u32
}

/// Repeats the vote for a transaction that was prepared before: the first one may be lost.
fn vote_again(gid: &Gid) {
    let prepared = shmem::participants(|table| {
        table
            .get_mut(gid)
            .is_some_and(|part| part.participant.state() == ParticipantState::Prepared)
    });
    if prepared {
        dmq::send(gid.origin, &Message::Prepared(*gid));
    }
}
