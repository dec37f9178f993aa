//! Apply workers that replay what a donor has committed, and the receiver's side of them.
//!
//! Each has a queue of transactions that wait for nobody. It tries each once and says how that
//! went; the receiver keeps the rows until then, and does itself what could not be done, be it that
//! a worker met an ERROR or that it ended. A worker says "committed" before anything can end it, so
//! that nothing is done twice.

use super::recovery;
use crate::pg::bgworker::{self, Handle, Kind};
use crate::pg::rows::Applier;
use crate::pg::shmem::{self, WorkerSlot};
use crate::pg::{proc, segment, twophase, wal, xact};
use core::panic::AssertUnwindSafe;
use core::sync::atomic::Ordering;
use mtm_core::wire::{Reader, Writer};
use mtm_core::{Gid, Instant, Lsn, NodeId};
use mtm_dmq::ring::Ring;
use mtm_logrep::plan::Place;
use std::collections::{BTreeMap, VecDeque};

/// Transactions that a worker may have before it; no more than [`WorkerSlot::failed`] has bits.
const QUEUE: usize = 32;
/// What a worker may have before it: nobody else takes it while the worker is busy with another.
const QUEUE_BYTES: usize = 32 * 1024;
/// When no worker can be started, it is tried again after so long.
const AGAIN_US: u64 = 5_000_000;

/// A worker, as its receiver sees it.
struct Member {
    ring: Ring<'static>,
    handle: Handle,
    segment: u32,
    ready: bool,
    /// What it was given and has not answered.
    queue: VecDeque<(Place, usize)>,
    bytes: usize,
    /// How many it was given, and of how many the outcome was read.
    handed: u64,
    read: u64,
}

/// How it went.
pub struct Outcome {
    /// Which.
    pub place: Place,
    /// Committed; otherwise nothing of it is left.
    pub done: bool,
}

/// The workers of one replay.
pub struct Crew {
    origin: NodeId,
    members: BTreeMap<usize, Member>,
    start_again: Instant,
    /// What goes through a ring: the name, then the task as a receiver's apply workers get it.
    message: Vec<u8>,
}

impl Crew {
    /// Nobody yet: workers are started when there is something for them.
    pub const fn new(origin: NodeId) -> Self {
        Self { origin, members: BTreeMap::new(), start_again: Instant(0), message: Vec::new() }
    }

    /// Whether workers have something to do.
    pub fn is_busy(&self) -> bool {
        self.members.values().any(|member| !member.queue.is_empty())
    }

    /// Gives a transaction to a worker; `false` if none can take it now. There may be `limit`
    /// workers.
    pub fn hand(&mut self, place: Place, gid: &Gid, task: &[u8], limit: usize) -> bool {
        let free = |(_, m): &(&usize, &mut Member)| {
            m.ready
                && m.queue.len() < QUEUE
                && (m.queue.is_empty() || m.bytes + task.len() <= QUEUE_BYTES)
        };
        let least = |(_, m): &(&usize, &mut Member)| (m.bytes, m.queue.len());
        let starting = self.members.values().any(|m| !m.ready);
        let room = self.members.len() < limit && !starting;
        let Some((slot, member)) = self.members.iter_mut().filter(free).min_by_key(least) else {
            if room {
                self.start();
            }
            return false;
        };
        self.message.clear();
        gid.encode(&mut Writer::new(&mut self.message));
        self.message.extend_from_slice(task);
        if member.ring.push(&self.message).is_err() {
            return false;
        }
        // One more, if all have something before them.
        let more = room && !member.queue.is_empty();
        member.queue.push_back((place, task.len()));
        member.bytes += task.len();
        member.handed += 1;
        let procno = shmem::workers(|all| {
            all[*slot].handed = member.handed;
            all[*slot].procno
        });
        proc::wake(procno);
        if more {
            self.start();
        }
        true
    }

    fn start(&mut self) {
        if proc::now() < self.start_again {
            return;
        }
        let (segment, ring) = segment::create();
        let slot = shmem::workers(|all| {
            let slot = all.iter().position(|w| !w.used)?;
            all[slot] = WorkerSlot {
                used: true,
                origin: self.origin,
                receiver: proc::my_procno(),
                segment,
                replays: true,
                ..shmem::free_worker()
            };
            Some(slot)
        });
        let Some(slot) = slot else { return };
        let Some(handle) = bgworker::start(Kind::Applier(slot as u16)) else {
            shmem::workers(|all| all[slot] = shmem::free_worker());
            self.start_again = proc::now().plus_us(AGAIN_US);
            return;
        };
        let (ready, queue) = (false, VecDeque::new());
        let (bytes, handed, read) = (0, 0, 0);
        let member = Member { ring, handle, segment, ready, queue, bytes, handed, read };
        self.members.insert(slot, member);
    }

    /// What workers have done since the last time, and up to where the log has to be flushed for
    /// that. What a worker that has ended had before it, it has not done.
    pub fn collect(&mut self) -> (Vec<Outcome>, Lsn) {
        let (mut outcomes, mut committed) = (Vec::new(), Lsn(0));
        if self.members.is_empty() {
            return (outcomes, committed);
        }
        let seen: Vec<WorkerSlot> =
            shmem::workers(|all| self.members.keys().map(|slot| all[*slot]).collect());
        let mut gone = Vec::new();
        for ((slot, member), seen) in self.members.iter_mut().zip(seen) {
            member.take_outcomes(&seen, &mut outcomes);
            committed = committed.max(seen.committed);
            member.ready = seen.procno != proc::NO_PROC && !seen.ended;
            if seen.ended || (!member.ready && member.handle.has_ended()) {
                gone.push(*slot);
            }
        }
        for slot in gone {
            // Once more: it may have done something between the two looks.
            let Some(mut member) = self.members.remove(&slot) else { continue };
            let last = shmem::workers(|all| core::mem::replace(&mut all[slot], FREE));
            member.take_outcomes(&last, &mut outcomes);
            committed = committed.max(last.committed);
            let left = member.queue.into_iter().map(|(place, _)| Outcome { place, done: false });
            outcomes.extend(left);
        }
        (outcomes, committed)
    }
}

const FREE: WorkerSlot = shmem::free_worker();

impl Member {
    fn take_outcomes(&mut self, seen: &WorkerSlot, outcomes: &mut Vec<Outcome>) {
        debug_assert_eq!(seen.segment, self.segment, "a slot is freed by its receiver only");
        while self.read < seen.done {
            let done = seen.failed & bit(self.read) == 0;
            self.read += 1;
            if let Some((place, bytes)) = self.queue.pop_front() {
                self.bytes -= bytes;
                outcomes.push(Outcome { place, done });
            }
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for (slot, member) in &self.members {
            let procno = shmem::workers(|all| {
                let_go(&mut all[*slot]);
                all[*slot].procno
            });
            if member.ready {
                proc::wake(procno);
            } else {
                // It may not know yet what it was started for.
                member.handle.terminate();
            }
        }
    }
}

/// Nobody reads any more how far this worker comes: it frees its slot itself at its end.
pub fn let_go(worker: &mut WorkerSlot) {
    worker.replays = false;
    if worker.ended {
        *worker = FREE;
    }
}

/// Processes that replay: the receiver and its workers.
pub fn replayers() -> Vec<proc::ProcNo> {
    let Some(replayer) = recovery::replayer() else { return Vec::new() };
    let mut all = vec![replayer];
    shmem::workers(|workers| {
        let replays = |w: &&WorkerSlot| w.used && w.replays && !w.ended && w.procno >= 0;
        all.extend(workers.iter().filter(replays).map(|w| w.procno));
    });
    all
}

const fn bit(n: u64) -> u64 {
    1 << (n % 64)
}

/// The worker's side: replays what comes through the ring until nobody wants it any more.
pub fn serve(slot: usize, origin: NodeId, ring: &Ring<'_>) {
    bgworker::set_config(c"synchronous_commit", c"off");
    let wanted = &shmem::peer(origin).wants_worker;
    let mut applier = Applier::new();
    let mut task = Vec::new();
    proc::hold_cancel();
    bgworker::report_idle();
    loop {
        bgworker::handle_signals();
        match ring.pop(&mut task) {
            Ok(true) => {
                let receiver = try_once(slot, &mut applier, &task);
                if wanted.load(Ordering::SeqCst) != 0 {
                    proc::wake(receiver);
                }
                bgworker::report_statistics();
            }
            Ok(false) => {
                if !shmem::workers(|all| all[slot].replays) {
                    return;
                }
                bgworker::report_idle();
                let unreported = bgworker::report_statistics();
                proc::wait(None, unreported);
            }
            Err(corrupt) => pgrx::error!("an apply worker's ring is corrupt: {corrupt}"),
        }
    }
}

/// Replays a transaction, or leaves nothing of it. Returns who wants to know.
fn try_once(slot: usize, applier: &mut Applier, message: &[u8]) -> proc::ProcNo {
    let mut r = Reader::new(message);
    let decoded = Gid::decode(&mut r).and_then(|gid| Ok((gid, r.take(r.remaining())?)));
    let (gid, task) = match decoded {
        Ok(decoded) => decoded,
        Err(error) => pgrx::error!("malformed task for a replaying worker: {error}"),
    };
    let mut receiver = proc::NO_PROC;
    // What comes from here on is meant for this transaction.
    proc::allow_cancel();
    let outcome = bgworker::catching(AssertUnwindSafe(|| {
        recovery::apply_committed(applier, &gid, task, || receiver = answer(slot, true));
    }));
    proc::hold_cancel();
    xact::unmark_commit_record();
    if let Err(caught) = outcome {
        twophase::abort();
        // The receiver tries again, and complains if that is of no use.
        pgrx::debug1!("multimaster: left to the receiver: {}", caught.message);
        receiver = answer(slot, false);
    }
    receiver
}

fn answer(slot: usize, done: bool) -> proc::ProcNo {
    let committed = wal::last_commit();
    shmem::workers(|all| {
        let mine = &mut all[slot];
        let bit = bit(mine.done);
        mine.failed = if done { mine.failed & !bit } else { mine.failed | bit };
        mine.committed = committed;
        mine.done += 1;
        mine.receiver
    })
}
