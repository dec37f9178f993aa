//! Recovery: replays what another node has committed while this one was away, in that node's
//! commit order, all origins (duties 21 to 25 of `mtm-node`'s driver).
//!
//! Runs in the receiver of that node's stream, with workers beside it: what conflicts is committed
//! in the donor's order, the rest in parallel. Many transactions share a flush; whoever has
//! undecided or local work in the way is made to give way by the resolver.

use super::applier::apply_all;
use super::crew::Crew;
use super::lineup::{Lineup, Next, UnderWay};
use super::spill::{self, Incoming, Task};
use super::{finish, open, resolver};
use crate::guc;
use crate::health::{self, Cause};
use crate::machine;
use crate::pg::bgworker::{self, Caught};
use crate::pg::rows::Applier;
use crate::pg::{message, proc, shmem, twophase, wal, xact};
use crate::users::{self, Work};
use core::panic::AssertUnwindSafe;
use core::sync::atomic::Ordering;
use mtm_core::{GenNum, Gid, Instant, Lsn, NodeId, Xid};
use mtm_generations::{Input as Generation, StatusInGeneration};
use mtm_logrep::journal::Installed;
use mtm_logrep::plan::{Footprint, Place};
use mtm_logrep::stream::StreamMessage;
use mtm_node::user::{Obstacle, Operation};
use mtm_node::{Effect, Input, Role};
use mtm_paxos::commit::Decree;
use std::collections::{BTreeMap, VecDeque};
use std::io;

/// Smaller transactions, in bytes, are replayed by the receiver itself.
const SMALL: usize = 1024;
/// Events that wait for their turn before the stream is read on.
const MAX_WAITING: usize = 1024;
/// After an error, the same transaction is tried again after so long.
const AGAIN_US: u64 = 1_000_000;
/// Waiting for room for so long is worth a line in the log: a checkpoint comes sooner.
const FULL_US: u64 = 15_000_000;
/// How often to look whether a name is free.
const NAME_US: u64 = 10_000;
/// How often to look whether a replay may begin, if nobody says so.
const WAIT_US: u64 = 2_000;

/// What the stream brings, in its order.
enum Event {
    /// Committed on the donor.
    Commit(Commit),
    /// Everything below this is finished everywhere.
    Forgotten(mtm_node::Below),
    /// The donor's ParallelSafe record, with what it held.
    Safe(GenNum, Vec<(Gid, bool)>),
    /// The donor has announced this transaction of its own.
    Announced(Gid),
}

/// A transaction that is committed on the donor.
struct Commit {
    gid: Gid,
    /// Its rows; `None` when they came before.
    task: Option<Task>,
    /// What it touches, once that was looked at.
    touches: Option<Footprint>,
}

/// The replay of one node's log.
pub struct Replay {
    donor: NodeId,
    applier: Applier,
    incoming: Option<Incoming>,
    /// Prepared transactions of the donor, by name, with their rows.
    held: BTreeMap<Gid, Task>,
    /// Names since the last ParallelSafe record.
    listed: Vec<(Gid, bool)>,
    events: VecDeque<(Lsn, Event)>,
    lineup: Lineup,
    crew: Crew,
    /// How many workers there may be.
    workers: usize,
    complained: String,
    /// Since when there is no room for the next transaction.
    full: Option<Instant>,
    /// Holds the name that a replayed operation on a user's transaction needs.
    in_the_way: Option<Gid>,
}

impl Replay {
    /// Begins behind `from`, up to where this node has everything, once there is no other replay:
    /// what that has begun is before this one in the order of commits, and the resolver makes way
    /// for one at a time. `None` when that is not `wanted` any more.
    pub fn begin(donor: NodeId, from: Lsn, wanted: impl Fn() -> bool) -> Option<Self> {
        let header = shmem::header();
        // What is kept open is in nobody's way then, and can be dropped or committed here.
        while !open::is_nothing_left() || !header.replayer.take(me()) {
            if !wanted() {
                return None;
            }
            proc::wait(None, Some(WAIT_US));
            bgworker::handle_signals();
        }
        bgworker::finish_before_end();
        bgworker::set_config(c"synchronous_commit", c"off");
        // The resolver makes way much sooner. It may have ended, with the server.
        bgworker::set_config(c"lock_timeout", c"10s");
        header.replay_begun_us.store(proc::now().0, Ordering::Release);
        header.replay_begun_lsn.store(from.0, Ordering::Release);
        proc::wake(header.resolver.load(Ordering::Acquire));
        Some(Self {
            donor,
            applier: Applier::new(),
            incoming: None,
            held: BTreeMap::new(),
            listed: Vec::new(),
            events: VecDeque::new(),
            lineup: Lineup::new(from),
            crew: Crew::new(donor),
            workers: 0,
            complained: String::new(),
            full: None,
            in_the_way: None,
        })
    }

    /// Whether more may be read from the stream.
    pub fn has_room(&self) -> bool {
        self.events.len() < MAX_WAITING
    }

    /// Up to here the donor's log is not needed any more.
    pub const fn done(&self) -> Lsn {
        self.lineup.done()
    }

    /// Takes a message of the stream.
    ///
    /// # Errors
    /// When rows cannot be kept.
    pub fn take(&mut self, message: StreamMessage<'_>) -> io::Result<()> {
        match message {
            StreamMessage::ReplayPiece { payload } => {
                let origin = self.donor;
                let nameless = Gid { origin, xid: Xid(0), generation: GenNum(0) };
                self.incoming.get_or_insert_with(|| Incoming::new(nameless)).push(payload);
            }
            StreamMessage::ReplayDiscard => self.incoming = None,
            StreamMessage::Replay { gid, lsn } => {
                let task = self.rows()?;
                let commit = Commit { gid, task: Some(task), touches: None };
                self.events.push_back((lsn, Event::Commit(commit)));
            }
            StreamMessage::ReplayPrepared { gid, lsn } => {
                self.incoming = None;
                let commit = Commit { gid, task: None, touches: None };
                self.events.push_back((lsn, Event::Commit(commit)));
            }
            StreamMessage::Held { gid, accepted_abort } => {
                let task = self.rows()?;
                self.held.insert(gid, task);
                self.listed.push((gid, accepted_abort));
            }
            StreamMessage::HeldElsewhere { gid, accepted_abort } => {
                self.listed.push((gid, accepted_abort));
            }
            // It was rolled back meanwhile, and so is certainly not committed: lacking it is right.
            StreamMessage::HeldGone { .. } => self.incoming = None,
            StreamMessage::Announced { gid, lsn } => {
                self.events.push_back((lsn, Event::Announced(gid)));
            }
            StreamMessage::ParallelSafe { num, lsn } => {
                let listed = core::mem::take(&mut self.listed);
                self.events.push_back((lsn, Event::Safe(num, listed)));
            }
            StreamMessage::Place { lsn } => self.reached(lsn),
            StreamMessage::Syncpoint { lsn, below } => {
                self.events.push_back((lsn, Event::Forgotten(below)));
            }
            _ => return Err(io::Error::other("the peer does not send what recovery needs")),
        }
        Ok(())
    }

    /// The peer has sent everything up to here.
    pub fn reached(&mut self, lsn: Lsn) {
        if self.incoming.is_none() && self.events.is_empty() {
            self.lineup.pass(lsn);
        }
    }

    fn rows(&mut self) -> io::Result<Task> {
        let origin = self.donor;
        let nameless = Gid { origin, xid: Xid(0), generation: GenNum(0) };
        self.incoming.take().unwrap_or_else(|| Incoming::new(nameless)).finish()
    }

    /// Does what can be done now. The receiver has `busy` other workers.
    pub fn work(&mut self, busy: usize) {
        let most = guc::MAX_WORKERS.get().unsigned_abs() as usize;
        let wanted = guc::RECOVERY_WORKERS.get().unsigned_abs() as usize;
        let workers = wanted.min(most.saturating_sub(busy));
        // Without workers nobody looks at what a transaction touches.
        if (workers == 0) == (self.workers == 0) || self.lineup.is_empty() {
            self.workers = workers;
        }
        loop {
            let mut goes_on = self.collect();
            goes_on |= self.take_in();
            goes_on |= self.start();
            self.lineup.flush_if_due();
            bgworker::handle_signals();
            if !goes_on {
                break;
            }
        }
        self.report();
    }

    /// Ends what is under way, and takes in nothing more: what was begun in the machine's table
    /// must be done.
    pub fn complete(&mut self) {
        while !self.lineup.is_done() {
            let goes_on = self.collect() | self.start();
            self.lineup.flush_if_due();
            bgworker::handle_signals();
            if !goes_on && self.may_wait() {
                proc::wait(None, Some(20_000));
            }
        }
        self.lineup.flush();
        self.report();
    }

    /// Whether nothing is to be done before somebody sets this process' latch. Workers do when they
    /// are asked to.
    pub fn may_wait(&mut self) -> bool {
        let wanted = &shmem::peer(self.donor).wants_worker;
        wanted.store(u32::from(self.crew.is_busy()), Ordering::SeqCst);
        !self.collect()
    }

    fn report(&self) {
        let (peer, done) = (shmem::peer(self.donor), self.lineup.done());
        peer.received_lsn.store(done.0, Ordering::Release);
        peer.finished_lsn.store(done.0, Ordering::Release);
    }

    /// Hears from the workers; `false` if there is nothing new.
    fn collect(&mut self) -> bool {
        let (outcomes, committed) = self.crew.collect();
        for outcome in &outcomes {
            match outcome.done {
                true => self.lineup.finished(outcome.place, committed),
                false => self.lineup.failed(outcome.place),
            }
        }
        !outcomes.is_empty()
    }

    /// Begins what comes next in the log; `false` if nothing can be begun now.
    fn take_in(&mut self) -> bool {
        let mut taken = false;
        while self.lineup.has_room() && !self.is_paused() {
            let Some((lsn, event)) = self.events.pop_front() else { break };
            match self.perform(lsn, event) {
                None => taken = true,
                Some(event) => {
                    self.events.push_front((lsn, event));
                    break;
                }
            }
        }
        taken
    }

    /// A checkpoint waits for the moment in which nothing is under way. It comes soon then.
    fn is_paused(&mut self) -> bool {
        let header = shmem::header();
        let paused = header.checkpoint_waits.load(Ordering::Acquire) != 0;
        if paused && self.lineup.is_empty() {
            self.lineup.flush();
        }
        paused
    }

    /// Commits what may be committed, here or through a worker; `false` if there is nothing.
    ///
    /// Handing over costs two wakes and a copy. It pays when there is more than one to be done at
    /// a time, and each is of some size.
    fn start(&mut self) -> bool {
        let mut started = false;
        while let Some(Next { place, again, alone }) = self.lineup.next() {
            let UnderWay { gid, task } = self.lineup.at(place);
            let small = task.file.is_none() && task.bytes.len() < SMALL;
            let mine = again || small || self.workers == 0 || (alone && !self.crew.is_busy());
            let handed = !mine && self.crew.hand(place, gid, &task.bytes, self.workers);
            if !mine && !handed && self.crew.is_busy() {
                break;
            }
            self.lineup.taken(place);
            if !handed {
                let first = self.lineup.is_first(place);
                self.replay_here(place, first);
            }
            started = true;
            if !self.crew.is_busy() {
                self.lineup.flush_if_due();
            }
        }
        started
    }

    /// Commits a transaction in this process. One with nothing before it must succeed; what another
    /// one fails for may be what is before it.
    fn replay_here(&mut self, place: Place, first: bool) {
        let gid = self.lineup.at(place).gid;
        let bytes = core::mem::take(&mut self.lineup.task_mut(place).bytes);
        let apply = |replay: &mut Self| replay.apply_here(&gid, &bytes);
        let done = if first {
            self.until_done(apply);
            true
        } else {
            self.once(apply).is_ok()
        };
        self.lineup.task_mut(place).bytes = bytes;
        match done {
            true => self.lineup.finished(place, wal::last_commit()),
            false => self.lineup.failed(place),
        }
    }

    /// The generation for which this node's machine takes what is replayed.
    fn generation() -> GenNum {
        GenNum(shmem::header().replay_generation.load(Ordering::Acquire))
    }

    /// Does what an event asks for; gives it back when it must be tried again later.
    fn perform(&mut self, lsn: Lsn, event: Event) -> Option<Event> {
        let event = match event {
            Event::Commit(commit) => return self.commit(lsn, commit).map(Event::Commit),
            event => event,
        };
        // Everything before it must be finished, not only begun.
        let alone = !matches!(event, Event::Announced(_));
        if alone && !self.lineup.is_empty() {
            return Some(event);
        }
        if alone {
            self.lineup.flush();
        }
        let done = match &event {
            Event::Commit(_) => true,
            Event::Forgotten(below) => {
                let num = Self::generation();
                machine::feed(Input::Syncpoint { num, below: *below });
                true
            }
            Event::Safe(num, held) => self.parallel_safe(*num, held),
            Event::Announced(gid) => Self::may_pass(gid),
        };
        if !done {
            return Some(event);
        }
        self.lineup.pass(lsn);
        None
    }

    /// Whether this node has no vote on this transaction. What it must vote on comes again when
    /// the stream is read from here in the ordinary way.
    fn may_pass(gid: &Gid) -> bool {
        let view = machine::look(|node| {
            let membership = node.membership();
            (membership.current().generation.num, membership.status_in_generation())
        });
        match view {
            Some((current, status)) if current == gid.generation => {
                status == StatusInGeneration::Dead
            }
            // The donor is ahead: this node will hear of that generation.
            Some((current, _)) => current > gid.generation,
            None => false,
        }
    }

    /// Takes in a transaction of the cluster; gives it back when it must be tried again later.
    fn commit(&mut self, lsn: Lsn, mut commit: Commit) -> Option<Commit> {
        let rows = commit.task.as_ref().or_else(|| self.held.get(&commit.gid));
        if commit.touches.is_none() {
            // A schema change decides what others touch.
            if self.lineup.changes_schema() {
                return Some(commit);
            }
            commit.touches = Some(match rows {
                // In one process all keep their order anyway.
                Some(_) if self.workers == 0 && !is_undecided(&commit.gid) => Footprint::new(),
                Some(rows) if !is_undecided(&commit.gid) => self.lineup.footprint(rows),
                // Ending what is prepared, or nothing at all: in its order, too.
                _ => Footprint::everything(),
            });
        }
        let alone = commit.touches.as_ref().is_some_and(Footprint::is_everything);
        if alone && !self.lineup.is_empty() {
            return Some(commit);
        }
        let (num, gid) = (Self::generation(), commit.gid);
        for effect in machine::feed_here(Input::Replay { num, gid }) {
            match effect {
                // Somebody else may be at it; what comes next may conflict with it, and the place in
                // the donor's log may move on only when it is durable.
                Effect::Skip(gid) => finish::await_commit(&gid),
                Effect::CommitPrepared(gid) => {
                    finish::unless_taken(&gid);
                    finish::await_commit(&gid);
                }
                Effect::ApplyCommitted(gid) => {
                    let held = self.held.remove(&gid);
                    let Some(task) = commit.task.take().or(held) else {
                        pgrx::error!("rows of transaction {gid} have not come from the donor");
                    };
                    let touches = commit.touches.take().unwrap_or_else(Footprint::everything);
                    self.lineup.admit(lsn, touches, UnderWay { gid, task });
                    return None;
                }
                // This recovery is over: the next one goes on here. Or there is no room yet.
                Effect::Hold(gid) => {
                    self.note_held(&gid);
                    return Some(commit);
                }
                _ => {}
            }
        }
        self.forget_rows(commit);
        self.lineup.pass(lsn);
        None
    }

    /// Nobody will apply them any more.
    fn forget_rows(&mut self, commit: Commit) {
        let held = self.held.remove(&commit.gid);
        commit.task.into_iter().chain(held).for_each(Task::discard);
    }

    /// Tries it once. On an ERROR nothing of it is left.
    fn once(&mut self, mut body: impl FnMut(&mut Self)) -> Result<(), Caught> {
        proc::allow_cancel();
        let result = bgworker::catching(AssertUnwindSafe(|| body(self)));
        proc::hold_cancel();
        xact::unmark_commit_record();
        if result.is_err() {
            twophase::abort();
            if let Some(holder) = self.in_the_way.take() {
                free_name(holder);
            }
        }
        result
    }

    /// Waiting for room ends with this node's next checkpoint, if it knows from its donor that
    /// enough is forgotten. It does, unless the donor has more places.
    fn note_held(&mut self, gid: &Gid) {
        if machine::look(|node| node.has_room_for(gid)) != Some(false) {
            self.full = None;
            return;
        }
        let now = proc::now();
        let since = *self.full.get_or_insert(now);
        if now.since(since) > FULL_US {
            self.full = Some(now);
            crate::report::warning(
                format!("no room for transaction {gid} in the table of transactions"),
                "Recovery waits for it.",
                "multimaster.max_transactions must not be smaller than on the other nodes.",
            );
        }
    }

    /// What the donor has committed must be committed here. As long as it cannot be, this node
    /// stays out of the cluster and says why.
    fn until_done(&mut self, mut body: impl FnMut(&mut Self)) {
        let mut withdrawn = false;
        while let Err(caught) = self.once(&mut body) {
            // Making way cancels whoever is in the way, this process too if it was just waiting.
            if &caught.sqlstate != b"57014" {
                self.complain(&caught);
                if !core::mem::replace(&mut withdrawn, true) {
                    health::set(Cause::Replay, &self.why_not(&caught));
                }
                proc::wait(None, Some(AGAIN_US));
            }
            bgworker::handle_signals();
        }
        if withdrawn {
            self.complained.clear();
            health::clear(Cause::Replay);
        }
    }

    fn why_not(&self, caught: &Caught) -> String {
        format!(
            "could not replay what node {} committed: {}; it is tried again every second, remove \
             the cause (repair a row under application_name mtm_admin)",
            self.donor, caught.message
        )
    }

    fn complain(&mut self, caught: &Caught) {
        if self.complained != caught.message {
            self.complained.clone_from(&caught.message);
            pgrx::ereport!(
                LOG,
                pgrx::PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
                format!(
                    "multimaster: could not replay what node {} committed: {}",
                    self.donor, caught.message
                ),
                format!("{} This node stays out of the cluster until it can.", caught.detail)
            );
        }
    }

    /// Replays a transaction in this process. An operation on a user's transaction is done to its
    /// end.
    fn apply_here(&mut self, gid: &Gid, task: &[u8]) {
        twophase::begin();
        let Some(work) = apply_rows(&mut self.applier, gid, task) else {
            xact::mark_origin(Lsn(0));
            return twophase::commit();
        };
        self.hold(gid, &work);
        users::write(gid, &work, true);
        match work.operation {
            Operation::Prepare(_) => {
                work.prepare(gid);
                users::note_prepared(gid, &work.operation, users::local(gid));
            }
            Operation::Finish { first, decree } => {
                xact::mark_origin(Lsn(0));
                twophase::commit();
                users::end_users(&first, decree);
            }
        }
        shmem::node(|state| state.end_operation(gid, Decree::Commit));
    }

    /// Takes the name that an operation needs; an ERROR after which it is tried again when it is
    /// not free.
    fn hold(&mut self, gid: &Gid, work: &Work) {
        match users::hold(gid, &work.operation, xact::assign_number().short()) {
            Ok(()) => {}
            Err(Obstacle::Busy(holder)) => {
                self.in_the_way = Some(holder);
                bgworker::raise("57014", "another transaction holds the name", "");
            }
            Err(obstacle) => {
                users::raise(&work.operation, users::name_of(&work.operation), obstacle);
            }
        }
    }

    fn parallel_safe(&mut self, num: GenNum, held: &[(Gid, bool)]) -> bool {
        let view = machine::look(|node| {
            let membership = node.membership();
            (membership.current().generation.num, membership.status_in_generation())
        });
        let recovery = shmem::node(|state| state.deferred.recovery);
        match view {
            Some((current, _)) if current > num => return true,
            Some((current, StatusInGeneration::Recovery)) if current == num => {
                // The switch to it may still be on its way to the disk.
                if recovery.is_none_or(|(of, _)| of != num) {
                    return false;
                }
            }
            Some((current, _)) if current == num => return true,
            // The donor is ahead: this node will hear of it.
            _ => return false,
        }
        if Self::generation() != num {
            return false;
        }
        for (gid, accepted_abort) in held {
            let holds = Input::DonorHolds { num, gid: *gid, accepted_abort: *accepted_abort };
            // Once there is room, all are told again.
            if machine::feed(holds).contains(&Effect::Hold(*gid)) {
                self.note_held(gid);
                return false;
            }
        }
        let mut installs = Vec::new();
        for effect in machine::feed(Input::DonorHoldsNoMore(num)) {
            match effect {
                Effect::DropPrepared(gid) => resolver::drop_prepared(&gid),
                Effect::Install(gid, accepted) => installs.push((gid, accepted)),
                _ => {}
            }
        }
        for (gid, accepted) in installs {
            self.install(&gid, accepted);
        }
        machine::generation(Generation::Recovered(num));
        pgrx::log!("multimaster: recovered from node {} for generation {num}", self.donor);
        true
    }

    /// The donor holds it, undecided: so does this node from now on.
    fn install(&mut self, gid: &Gid, accepted_abort: bool) {
        if !users::is_prepared(gid) {
            let Some(bytes) = self.held.get(gid).map(|task| task.bytes.clone()) else {
                pgrx::error!("rows of undecided transaction {gid} have not come from the donor");
            };
            self.until_done(|replay| {
                twophase::begin();
                match apply_rows(&mut replay.applier, gid, &bytes) {
                    Some(work) => {
                        replay.hold(gid, &work);
                        users::write(gid, &work, false);
                        work.prepare(gid);
                    }
                    None => {
                        xact::mark_origin(Lsn(0));
                        twophase::prepare(gid.to_string());
                    }
                }
            });
        }
        let mut content = Vec::new();
        Installed { gid: *gid, accepted_abort }.encode(&mut content);
        message::flush(message::log(c"mtm-installed", &content, false));
        machine::feed(Input::RecoveryDone(*gid));
    }
}

/// The receiver that replays, if one does.
pub fn replayer() -> Option<proc::ProcNo> {
    shmem::header().replayer.get().and_then(|procno| i32::try_from(procno).ok())
}

/// This process, as [`replayer`] names it.
fn me() -> u32 {
    u32::try_from(proc::my_procno()).unwrap_or(u32::MAX)
}

/// One transaction with its rows and its name, committed but not durably. `done` runs at once
/// after the commit.
/// Those that do more than that are for the receiver.
pub fn apply_committed(applier: &mut Applier, gid: &Gid, task: &[u8], done: impl FnOnce()) {
    xact::begin();
    if apply_rows(applier, gid, task).is_some() {
        bgworker::raise("55P03", "left to the receiver", "");
    }
    xact::mark_origin(Lsn(0));
    xact::commit_and(done);
}

fn apply_rows(applier: &mut Applier, gid: &Gid, task: &[u8]) -> Option<Work> {
    xact::mark_origin(Lsn(0));
    crate::hook::commit::write_marker(gid);
    xact::mark_rows_of(gid.origin);
    applier.begin();
    // They were checked where it was committed.
    applier.unchecked();
    // The rows came before the name.
    match spill::decode(task) {
        Ok((_, rows)) => apply_all(applier, gid, rows, &mut crate::hook::apply_ddl),
        Err(error) => pgrx::error!("malformed rows in recovery: {error}"),
    }
    applier.finish();
    applier.work()
}

/// At the replaying process' end: what was begun in the machine's table must be done. It cannot be
/// taken back, so the server starts again.
pub fn at_exit() {
    if !shmem::header().replayer.let_go(me()) {
        return;
    }
    let me = proc::my_procno();
    let begun = shmem::node(|state| {
        let of_me = |(_, note): (&Gid, &shmem::Note)| note.worker == me && note.taken;
        state.notes.iter().any(of_me)
    });
    if begun {
        pgrx::ereport!(
            PANIC,
            pgrx::PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN,
            "multimaster: recovery was ended in the middle of a transaction",
            "The server starts again and recovers from there."
        );
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        // After an ERROR this process is about to end, and `at_exit` sees what it leaves behind.
        if !std::thread::panicking() {
            shmem::header().replayer.let_go(me());
            machine::wake_receivers();
            bgworker::end_at_once();
        }
        for (_, event) in self.events.drain(..) {
            if let Event::Commit(Commit { task: Some(task), .. }) = event {
                task.discard();
            }
        }
        for task in core::mem::take(&mut self.held).into_values() {
            task.discard();
        }
    }
}

/// Whether the machine holds it prepared and undecided.
fn is_undecided(gid: &Gid) -> bool {
    let undecided = machine::look(|node| match node.transaction(gid).map(|entry| entry.role) {
        Some(Role::Peer(peer)) => peer.is_undecided(),
        Some(Role::Own(_)) | None => false,
    });
    undecided == Some(true)
}

/// Makes whoever holds a name let go of it: what is undecided is dropped, a session that waits for
/// an outcome stops waiting, and what is just being ended is waited for.
fn free_name(holder: Gid) {
    for effect in machine::feed(Input::Drop(holder)) {
        if let Effect::DropPrepared(gid) = effect {
            resolver::drop_prepared(&gid);
        }
    }
    if let Some(procno) = shmem::node(|state| state.backend_of(&holder).map(|(procno, _)| procno)) {
        proc::cancel(procno);
    }
    proc::wait(None, Some(NAME_US));
}
