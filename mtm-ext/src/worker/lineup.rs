//! Which of the donor's transactions are under way here, in what order they may be committed, and
//! up to where everything is durable.
//!
//! What conflicts keeps the donor's order (`mtm_logrep::plan`); the rest may overtake each other.
//! What has been begun in the machine's table stays here until it is durable: then the machine hears
//! of it, and only then may the donor's log be let go.

use super::spill::{self, Rows, Task};
use crate::machine;
use crate::pg::bgworker;
use crate::pg::rows::Catalog;
use crate::pg::{message, proc, sqlrun, twophase};
use core::panic::AssertUnwindSafe;
use mtm_core::{Gid, Instant, Lsn};
use mtm_logrep::plan::{Footprint, Place, Plan, Tracer};
use mtm_node::Input;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Transactions under way at a time, in the machine's table begun and not done: so many hold the
/// barrier, and a change of the generation waits for no more than these.
const UNDER_WAY: usize = 128;
/// Their bytes in memory; one of any size is always let in.
const UNDER_WAY_BYTES: usize = 8 << 20;
/// What is committed waits no longer than this for others to share its flush.
const FLUSH_US: u64 = 10_000;

/// A transaction that is begun here and not committed.
pub struct UnderWay {
    /// Its name.
    pub gid: Gid,
    /// Its rows.
    pub task: Task,
}

/// A transaction that may run.
pub struct Next {
    /// Which.
    pub place: Place,
    /// It was tried in vain, and everything before it is committed now.
    pub again: bool,
    /// No other one may run that nobody has.
    pub alone: bool,
}

/// What is under way.
pub struct Lineup {
    plan: Plan,
    catalog: Catalog,
    under_way: BTreeMap<Place, UnderWay>,
    bytes: usize,
    /// May run, and nobody has them.
    waiting: VecDeque<Place>,
    /// Tried in vain, and nobody has them.
    failed: BTreeSet<Place>,
    /// Where in the log what was passed ends, in its order; done when its place is.
    passed: VecDeque<(Lsn, Option<Place>)>,
    /// Committed here, not durably yet, since when, and up to where to flush for it.
    batch: Vec<Gid>,
    since: Instant,
    committed: Lsn,
    /// Up to here everything is durable here.
    done: Lsn,
}

impl Lineup {
    /// Nothing under way; everything before `from` is done.
    pub fn new(from: Lsn) -> Self {
        Self {
            plan: Plan::new(),
            catalog: Catalog::default(),
            under_way: BTreeMap::new(),
            bytes: 0,
            waiting: VecDeque::new(),
            failed: BTreeSet::new(),
            passed: VecDeque::new(),
            batch: Vec::new(),
            since: Instant(0),
            committed: Lsn(0),
            done: from,
        }
    }

    /// Whether another one may be let in.
    pub fn has_room(&self) -> bool {
        self.under_way.len() + self.batch.len() < UNDER_WAY && self.bytes < UNDER_WAY_BYTES
    }

    /// Whether everything that was let in is committed.
    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Whether everything that was let in is durable.
    pub fn is_done(&self) -> bool {
        self.under_way.is_empty() && self.batch.is_empty()
    }

    /// Up to here everything is durable.
    pub const fn done(&self) -> Lsn {
        self.done
    }

    /// What a transaction touches. Nothing that may change the catalogs is under way.
    pub fn footprint(&mut self, task: &Task) -> Footprint {
        let catalog = &mut self.catalog;
        proc::allow_cancel();
        let found = bgworker::catching(AssertUnwindSafe(|| {
            sqlrun::in_transaction(|| trace(catalog, task))
        }));
        proc::hold_cancel();
        match found {
            Ok(footprint) => footprint.unwrap_or_else(Footprint::everything),
            Err(_) => {
                twophase::abort();
                Footprint::everything()
            }
        }
    }

    /// Lets a transaction in, next in the donor's order, that ends at `lsn` in its log.
    pub fn admit(&mut self, lsn: Lsn, footprint: Footprint, transaction: UnderWay) {
        let place = self.plan.admit(footprint);
        self.bytes += transaction.task.bytes.len();
        self.under_way.insert(place, transaction);
        self.passed.push_back((lsn, Some(place)));
    }

    /// Up to here there is nothing more to be done than what is under way.
    pub fn pass(&mut self, lsn: Lsn) {
        match self.passed.back_mut() {
            Some((last, None)) => *last = lsn.max(*last),
            _ => self.passed.push_back((lsn, None)),
        }
    }

    /// The next one that may run and that nobody has.
    pub fn next(&mut self) -> Option<Next> {
        while let Some(place) = self.plan.start() {
            self.waiting.push_back(place);
        }
        // What was tried in vain is tried again when all before it is done. So the first one never
        // waits for a later one.
        let first = self.under_way.keys().next();
        if let Some(first) = first.copied().filter(|first| self.failed.contains(first)) {
            return Some(Next { place: first, again: true, alone: false });
        }
        let alone = self.waiting.len() == 1;
        self.waiting.front().map(|place| Next { place: *place, again: false, alone })
    }

    /// Whether nothing before it is under way.
    pub fn is_first(&self, place: Place) -> bool {
        self.under_way.keys().next() == Some(&place)
    }

    /// Whether something is under way that may change what others touch.
    pub const fn changes_schema(&self) -> bool {
        self.plan.has_everything()
    }

    /// The rows of the transaction at a place.
    pub fn task_mut(&mut self, place: Place) -> &mut Task {
        &mut self.under_way.get_mut(&place).expect("it is under way").task
    }

    /// The transaction at a place.
    pub fn at(&self, place: Place) -> &UnderWay {
        &self.under_way[&place]
    }

    /// Somebody has it now.
    pub fn taken(&mut self, place: Place) {
        self.waiting.retain(|waiting| *waiting != place);
        self.failed.remove(&place);
    }

    /// It could not be committed. Nobody has it any more.
    pub fn failed(&mut self, place: Place) {
        self.failed.insert(place);
    }

    /// It is committed; durably if the log is flushed up to `committed`.
    pub fn finished(&mut self, place: Place, committed: Lsn) {
        let Some(UnderWay { gid, task }) = self.under_way.remove(&place) else { return };
        self.plan.finish(place);
        self.bytes -= task.bytes.len();
        task.discard();
        if self.batch.is_empty() {
            self.since = proc::now();
        }
        self.batch.push(gid);
        self.committed = self.committed.max(committed);
    }

    /// Makes durable what is committed, if it is time for that.
    pub fn flush_if_due(&mut self) {
        let due = self.batch.len() >= UNDER_WAY / 2
            || self.under_way.is_empty()
            || proc::now().since(self.since) >= FLUSH_US;
        if due {
            self.flush();
        }
    }

    /// Makes durable what is committed.
    pub fn flush(&mut self) {
        if !self.batch.is_empty() {
            message::flush(self.committed);
            for gid in core::mem::take(&mut self.batch) {
                machine::feed(Input::RecoveryDone(gid));
            }
        }
        while let Some((lsn, place)) = self.passed.front() {
            if place.is_some_and(|place| self.under_way.contains_key(&place)) {
                break;
            }
            self.done = self.done.max(*lsn);
            self.passed.pop_front();
        }
    }
}

impl Drop for Lineup {
    fn drop(&mut self) {
        for (_, left) in core::mem::take(&mut self.under_way) {
            left.task.discard();
        }
    }
}

/// What the rows of a transaction touch; `None` if they cannot be read: whoever applies them says
/// what is wrong.
fn trace(catalog: &mut Catalog, task: &Task) -> Option<Footprint> {
    let mut tracer = Tracer::new();
    let mut part = |rows: &[u8]| tracer.part(rows, |relation| catalog.rules(relation)).is_ok();
    let read = match spill::decode(&task.bytes).ok()?.1 {
        Rows::Memory(rows) => part(rows),
        Rows::File(name) => {
            let mut intact = true;
            spill::replay(name, |piece| intact &= part(piece)).is_ok() && intact
        }
        Rows::Early(..) => false,
    };
    read.then(|| tracer.finish())
}
