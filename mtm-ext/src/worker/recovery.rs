//! Recovery: replays what another node has committed while this one was away, in that node's
//! commit order, all origins (duties 21 to 25 of `mtm-node`'s driver).
//!
//! Runs in the receiver of that node's stream. Many transactions share a flush; whoever has
//! undecided or local work in the way is made to give way by the resolver.

use super::applier::apply_all;
use super::spill::{self, Incoming, Task};
use super::{finish, resolver};
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
use mtm_logrep::stream::StreamMessage;
use mtm_node::user::{Obstacle, Operation};
use mtm_node::{Effect, Input};
use mtm_paxos::commit::Decree;
use std::collections::{BTreeMap, VecDeque};
use std::io;

/// Transactions that share a flush.
const BATCH: usize = 128;
/// Events that wait for their turn before the stream is read on.
const MAX_WAITING: usize = 1024;
/// After an error, the same transaction is tried again after so long.
const AGAIN_US: u64 = 1_000_000;
/// How often to look whether a name is free.
const NAME_US: u64 = 10_000;

/// What the stream brings, in its order.
enum Event {
    /// Committed on the donor; `None` when its rows came before.
    Commit(Gid, Option<Task>),
    /// Everything below this is finished everywhere.
    Forgotten(mtm_node::Below),
    /// The donor's ParallelSafe record, with what it held.
    Safe(GenNum, Vec<(Gid, bool)>),
    /// The donor has announced this transaction of its own.
    Announced(Gid),
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
    /// Committed here, not durably yet.
    batch: Vec<Gid>,
    /// Up to here everything is durable here.
    done: Lsn,
    /// Up to here everything is committed, not necessarily durable.
    applied: Lsn,
    not_before: Instant,
    complained: String,
    /// Holds the name that a replayed operation on a user's transaction needs.
    in_the_way: Option<Gid>,
}

impl Replay {
    /// Begins behind `from`, up to where this node has everything.
    pub fn new(donor: NodeId, from: Lsn) -> Self {
        bgworker::set_config(c"synchronous_commit", c"off");
        bgworker::set_config(c"lock_timeout", c"0");
        let header = shmem::header();
        header.replay_begun_us.store(proc::now().0, Ordering::Release);
        header.replay_begun_lsn.store(from.0, Ordering::Release);
        header.replayer.store(proc::my_procno(), Ordering::Release);
        proc::wake(header.resolver.load(Ordering::Acquire));
        Self {
            donor,
            applier: Applier::new(),
            incoming: None,
            held: BTreeMap::new(),
            listed: Vec::new(),
            events: VecDeque::new(),
            batch: Vec::new(),
            done: from,
            applied: from,
            not_before: Instant(0),
            complained: String::new(),
            in_the_way: None,
        }
    }

    /// Whether more may be read from the stream.
    pub fn has_room(&self) -> bool {
        self.events.len() < MAX_WAITING
    }

    /// Up to here the donor's log is not needed any more.
    pub const fn done(&self) -> Lsn {
        self.done
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
                self.events.push_back((lsn, Event::Commit(gid, Some(task))));
            }
            StreamMessage::ReplayPrepared { gid, lsn } => {
                self.incoming = None;
                self.events.push_back((lsn, Event::Commit(gid, None)));
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
            self.applied = self.applied.max(lsn);
        }
    }

    fn rows(&mut self) -> io::Result<Task> {
        let origin = self.donor;
        let nameless = Gid { origin, xid: Xid(0), generation: GenNum(0) };
        self.incoming.take().unwrap_or_else(|| Incoming::new(nameless)).finish()
    }

    /// Does what can be done; what is done is durable afterwards.
    pub fn work(&mut self) {
        while let Some((lsn, event)) = self.events.pop_front() {
            if proc::now() < self.not_before || !self.perform(&event) {
                self.events.push_front((lsn, event));
                break;
            }
            if let Event::Commit(gid, task) = event {
                task.into_iter().for_each(Task::discard);
                if let Some(task) = self.held.remove(&gid) {
                    task.discard();
                }
            }
            self.applied = lsn;
            if self.batch.len() >= BATCH {
                self.flush();
            }
            bgworker::handle_signals();
        }
        self.flush();
    }

    /// Makes durable what is committed.
    fn flush(&mut self) {
        if !self.batch.is_empty() {
            message::flush(wal::last_commit());
            for gid in core::mem::take(&mut self.batch) {
                machine::feed(Input::RecoveryDone(gid));
            }
        }
        self.done = self.applied;
        let peer = shmem::peer(self.donor);
        peer.received_lsn.store(self.done.0, Ordering::Release);
        peer.finished_lsn.store(self.done.0, Ordering::Release);
    }

    /// The generation for which this node's machine takes what is replayed.
    fn generation() -> GenNum {
        GenNum(shmem::header().replay_generation.load(Ordering::Acquire))
    }

    /// `false` when it must be tried again later.
    fn perform(&mut self, event: &Event) -> bool {
        match event {
            Event::Commit(gid, task) => self.commit(gid, task.as_ref()),
            Event::Forgotten(below) => {
                // What it names must be finished, not only begun.
                self.flush();
                let num = Self::generation();
                machine::feed(Input::Syncpoint { num, below: *below });
                true
            }
            Event::Safe(num, held) => self.parallel_safe(*num, held),
            Event::Announced(gid) => Self::may_pass(gid),
        }
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

    fn commit(&mut self, gid: &Gid, task: Option<&Task>) -> bool {
        let num = Self::generation();
        for effect in machine::feed_here(Input::Replay { num, gid: *gid }) {
            match effect {
                Effect::Skip(_) => {}
                Effect::CommitPrepared(gid) => finish::unless_taken(&gid, true),
                Effect::ApplyCommitted(gid) => {
                    let Some(task) = task.or_else(|| self.held.get(&gid)) else {
                        pgrx::error!("rows of transaction {gid} have not come from the donor");
                    };
                    let bytes = task.bytes.clone();
                    self.until_done(|replay| replay.apply_committed(&gid, &bytes));
                    self.batch.push(gid);
                }
                // This recovery is over: the next one goes on here.
                Effect::Hold(_) => return false,
                _ => {}
            }
        }
        true
    }

    /// What the donor has committed must be committed here. As long as it cannot be, this node
    /// stays out of the cluster and says why.
    fn until_done(&mut self, mut body: impl FnMut(&mut Self)) {
        let mut withdrawn = false;
        loop {
            proc::allow_cancel();
            let result = bgworker::catching(AssertUnwindSafe(|| body(self)));
            proc::hold_cancel();
            xact::unmark_commit_record();
            let Err(caught) = result else { break };
            twophase::abort();
            if let Some(holder) = self.in_the_way.take() {
                free_name(holder);
            }
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

    /// One transaction with its rows and its name, committed but not durably. An operation on a
    /// user's transaction is done to its end.
    fn apply_committed(&mut self, gid: &Gid, task: &[u8]) {
        twophase::begin();
        let Some(work) = self.apply_rows(gid, task) else {
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

    fn apply_rows(&mut self, gid: &Gid, task: &[u8]) -> Option<Work> {
        xact::mark_origin(Lsn(0));
        crate::hook::commit::write_marker(gid);
        xact::mark_rows_of(gid.origin);
        let applier = &mut self.applier;
        applier.begin();
        // They were checked where it was committed.
        applier.unchecked();
        match spill::decode(task) {
            Ok((_, rows)) => apply_all(applier, gid, rows, &mut crate::hook::apply_ddl),
            Err(error) => pgrx::error!("malformed rows in recovery: {error}"),
        }
        applier.finish();
        applier.work()
    }

    fn parallel_safe(&mut self, num: GenNum, held: &[(Gid, bool)]) -> bool {
        self.flush();
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
            machine::feed(Input::DonorHolds { num, gid: *gid, accepted_abort: *accepted_abort });
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
                match replay.apply_rows(gid, &bytes) {
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

/// At the replaying process' end: what was begun in the machine's table must be done. It cannot be
/// taken back, so the server starts again.
pub fn at_exit() {
    let me = proc::my_procno();
    let header = shmem::header();
    if header
        .replayer
        .compare_exchange(me, proc::NO_PROC, Ordering::AcqRel, Ordering::Acquire)
        .is_err()
    {
        return;
    }
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
        shmem::header().replayer.store(proc::NO_PROC, Ordering::Release);
        for (_, event) in self.events.drain(..) {
            if let Event::Commit(_, Some(task)) = event {
                task.discard();
            }
        }
        for task in core::mem::take(&mut self.held).into_values() {
            task.discard();
        }
    }
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
