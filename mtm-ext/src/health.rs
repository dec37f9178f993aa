//! Why this node stays out of its cluster by itself: a set of reasons in shared memory.
//!
//! Whoever finds something broken sets its reason, and only whoever set it clears it;
//! `mtm-campaigner` turns "any reason" into the machine's `Withdrawn`, so that two causes cannot
//! take each other back. Refusals that are this node's own fault are counted here;
//! `mtm-health` judges them.

use crate::pg::bgworker::Caught;
use crate::pg::shmem::{self, Text};
use crate::pg::{proc, sqlrun};
use core::sync::atomic::Ordering;
use mtm_core::Instant;

/// A cause to stay out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// This node's own system fails: it refused transactions that the others could prepare.
    System,
    /// A transaction that is committed elsewhere cannot be replayed.
    Replay,
    /// This node's rows differ from the others'.
    Differs,
    /// A peer has dropped the log that this node needs.
    LogLost,
}

/// How many causes there are.
pub const CAUSES: usize = 4;

/// A cause that holds.
#[derive(Clone, Copy)]
pub struct Standing {
    /// Since when, by the monotonic clock.
    pub since: Instant,
    /// Since when, as text.
    pub since_text: Text<40>,
    /// What failed and what to do.
    pub why: Text<600>,
}

/// Refusals for this node's own sake.
#[derive(Clone, Copy)]
pub struct Refusals {
    /// Those of which each came soon after the one before.
    pub recent: u32,
    /// Those since a transaction was prepared here.
    pub in_a_row: u32,
    /// When the first of those in a row came.
    pub row_began: Instant,
    /// When the last one came.
    pub last: Instant,
    /// What it said.
    pub sqlstate: [u8; 5],
    /// See `sqlstate`.
    pub why: Text<300>,
}

/// Which row a transaction could not be applied to, and how often.
#[derive(Clone, Copy)]
pub struct Suspect {
    /// The refusal's text, which names the table and the key.
    pub text: Text<300>,
    /// Distinct transactions that were refused for it.
    pub refused: u32,
    /// When the last of them was.
    pub last: Instant,
    /// How to look for the row on any node: an SQL query that returns the row's digest.
    pub query: Text<1200>,
}

/// Suspicious rows that are watched at a time.
const SUSPECTS: usize = 8;

/// What is known of this node's fitness.
pub struct Health {
    /// By [`Cause`].
    pub standing: [Option<Standing>; CAUSES],
    /// Refusals for this node's own sake.
    pub refusals: Refusals,
    /// Rows that could not be found, or should not be there.
    pub suspects: [Option<Suspect>; SUSPECTS],
}

impl Health {
    /// Nothing is wrong.
    pub fn fit() -> Self {
        Self {
            standing: [None; CAUSES],
            refusals: Refusals {
                recent: 0,
                in_a_row: 0,
                row_began: Instant(0),
                last: Instant(0),
                sqlstate: *b"00000",
                why: Text::new(""),
            },
            suspects: [None; SUSPECTS],
        }
    }
}

/// Refusals further apart than this have nothing to do with each other.
const TOGETHER_US: u64 = 20_000_000;

/// Sets a cause; the first text of a cause stays.
pub fn set(cause: Cause, why: &str) {
    let standing = Standing {
        since: proc::now(),
        since_text: Text::new(&sqlrun::time_of_day()),
        why: Text::new(why),
    };
    let new = shmem::health(|health| {
        let place = &mut health.standing[cause as usize];
        let new = place.is_none();
        place.get_or_insert(standing);
        publish(health);
        new
    });
    if new {
        pgrx::log!("multimaster: this node leaves the cluster by itself: {why}");
        proc::wake(shmem::header().campaigner.load(Ordering::Acquire));
    }
}

/// At the start: what a restart does not change.
pub fn load() {
    let Some((kind, why)) = crate::durable::stays_out() else { return };
    let cause = if kind == "differs" { Cause::Differs } else { Cause::LogLost };
    set(cause, &why);
}

/// Clears a cause.
pub fn clear(cause: Cause) {
    let old = shmem::health(|health| {
        let old = health.standing[cause as usize].take();
        publish(health);
        old
    });
    if let Some(old) = old {
        let why = old.why.as_str();
        pgrx::log!("multimaster: this node may come back, no longer true is: {why}");
        proc::wake(shmem::header().campaigner.load(Ordering::Acquire));
    }
}

/// Under the lock.
fn publish(health: &Health) {
    let unfit = health.standing.iter().any(Option::is_some);
    shmem::header().unfit.store(u32::from(unfit), Ordering::Release);
}

/// Whether any cause holds.
pub fn is_unfit() -> bool {
    shmem::header().unfit.load(Ordering::Acquire) != 0
}

/// The cause that holds, if it does.
pub fn standing(cause: Cause) -> Option<Standing> {
    shmem::health(|health| health.standing[cause as usize])
}

/// What is wrong, since when, and what to do; empty if nothing is.
pub fn text() -> String {
    let standing = shmem::health(|health| health.standing);
    let all: Vec<String> = standing
        .iter()
        .flatten()
        .map(|s| format!("{} (since {})", s.why.as_str(), s.since_text.as_str()))
        .collect();
    all.join("; ")
}

/// Whether a refusal with this SQLSTATE says something about this node rather than about the
/// transaction: resources, input and output, administrators, internal errors.
///
/// A missing or doubled file (58P01, 58P02) is mostly one that a statement names: an extension or
/// a library that is not installed here.
fn is_own_fault(sqlstate: [u8; 5]) -> bool {
    match &sqlstate[..2] {
        b"53" | b"XX" => true,
        b"58" => &sqlstate != b"58P01" && &sqlstate != b"58P02",
        b"57" => &sqlstate != b"57014",
        _ => false,
    }
}

/// A transaction of another node was refused here.
pub fn refused(caught: &Caught) {
    if !is_own_fault(caught.sqlstate) {
        return;
    }
    let now = proc::now();
    let why = Text::new(&caught.message);
    let recent = shmem::health(|health| {
        let refusals = &mut health.refusals;
        if now.since(refusals.last) > TOGETHER_US {
            refusals.recent = 0;
            refusals.in_a_row = 0;
        }
        if refusals.in_a_row == 0 {
            refusals.row_began = now;
        }
        refusals.recent = refusals.recent.saturating_add(1);
        refusals.in_a_row = refusals.in_a_row.saturating_add(1);
        refusals.last = now;
        refusals.sqlstate = caught.sqlstate;
        refusals.why = why;
        refusals.recent
    });
    let header = shmem::header();
    header.refuses.store(1, Ordering::Release);
    if recent >= super::worker::FEW_REFUSALS {
        proc::wake(header.health.load(Ordering::Acquire));
    }
}

/// A transaction of another node was prepared here. One load when nothing is wrong.
pub fn prepared() {
    let header = shmem::header();
    if header.refuses.load(Ordering::Relaxed) != 0 {
        shmem::health(|health| health.refusals.in_a_row = 0);
        header.refuses.store(0, Ordering::Release);
    }
}

/// A transaction was refused for a row that is missing here, or is here and should not be.
/// `query` looks for it on any node.
pub fn suspect(text: &str, query: &str) {
    let now = proc::now();
    let (text, query) = (Text::new(text), Text::<1200>::new(query));
    shmem::health(|health| {
        let known = |s: &&mut Option<Suspect>| {
            s.as_ref().is_some_and(|s| s.query.as_str() == query.as_str())
        };
        let place = match health.suspects.iter_mut().find(known) {
            Some(place) => place,
            None => {
                let oldest = |s: &&mut Option<Suspect>| s.as_ref().map_or(0, |s| s.last.0);
                let Some(place) = health.suspects.iter_mut().min_by_key(oldest) else { return };
                *place = None;
                place
            }
        };
        let fresh = Suspect { text, refused: 0, last: now, query };
        let suspect = place.get_or_insert(fresh);
        if now.since(suspect.last) > TOGETHER_US {
            *suspect = fresh;
        }
        suspect.refused = suspect.refused.saturating_add(1);
        suspect.last = now;
    });
}
