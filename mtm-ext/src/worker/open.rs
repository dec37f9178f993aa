//! Small transactions of other nodes are kept open instead of PREPAREd: whoever applied one waits
//! with it for the outcome and then simply commits.
//!
//! PREPARE and COMMIT PREPARED flush the log one after the other, and the client waits for both.
//! Here the vote is one record with the rows ([`Open`]), flushed; the commit is not flushed at all
//! before others may see it and the origin is told ([`Input::Visible`]). It becomes durable with the
//! next flush, or [`SOON_US`] later, and counts as finished only then. A crash before that brings
//! the transaction back from the record, prepared (`crate::durable`).
//!
//! Who cannot keep it open any longer prepares it in earnest: after [`PATIENCE_US`], when the
//! generation changes, and when the process ends.

use super::finish;
use crate::machine;
use crate::pg::shmem::{self, NodeState};
use crate::pg::{bgworker, message, proc, twophase, wal, walwake, xact};
use core::cell::{Cell, RefCell};
use core::panic::AssertUnwindSafe;
use mtm_core::{Gid, Instant, Lsn};
use mtm_logrep::journal::{self, Open};
use mtm_node::Input;
use pgrx::{PgSqlErrorCode, ereport};
use std::collections::VecDeque;

/// Undecided for so long: it is prepared, so that the process can go on.
const PATIENCE_US: u64 = 200_000;
/// What is committed and seen is durable after so long at the latest.
const SOON_US: u64 = 20_000;

thread_local! {
    /// The transaction that this process keeps open, and since when.
    static KEPT: Cell<Option<(Gid, Instant)>> = const { Cell::new(None) };
    /// Committed here and seen, not known to be durable yet: where their records end, since when.
    static SEEN: RefCell<VecDeque<(Gid, Lsn, Instant)>> = const { RefCell::new(VecDeque::new()) };
}

/// Whether this process keeps one.
pub fn is_keeping() -> bool {
    KEPT.get().is_some()
}

/// What would fail at the commit, or at PREPARE, must fail before the promise: also for want of a
/// place, which is kept from here on. Within the transaction.
pub fn check(gid: &Gid) {
    xact::check_preparable();
    xact::fire_deferred();
    twophase::take_place(&gid.to_string());
}

/// Writes the promise, durably. Within the transaction, which is to stay open from here on.
pub fn promise(gid: &Gid, rows: &[u8]) {
    let mut content = Vec::with_capacity(22 + rows.len());
    Open::encode(gid, xact::full_xid().map_or(0, |xid| xid.short()), rows, &mut content);
    let end = message::log(c"mtm-open", &content, false);
    flush(end);
    KEPT.set(Some((*gid, proc::now())));
}

fn flush(end: Lsn) {
    walwake::suppress();
    message::flush(end);
    walwake::restore();
}

/// Microseconds after which [`turn`] has something to do at the latest.
pub fn patience_us() -> Option<u64> {
    let now = proc::now();
    let kept = KEPT.get().map(|(_, since)| PATIENCE_US.saturating_sub(now.since(since)));
    let seen = SEEN.with_borrow(|seen| seen.front().map(|(_, _, since)| *since));
    let seen = seen.map(|since| SOON_US.saturating_sub(now.since(since)));
    kept.into_iter().chain(seen).min().map(|us| us.max(1000))
}

/// Does what is due: carries the outcome out, prepares what has waited for too long, notes what
/// has become durable.
pub fn turn() {
    if let Some((gid, since)) = KEPT.get() {
        let waits = proc::now().since(since) < PATIENCE_US;
        match shmem::node(|state| look(state, &gid, waits)) {
            Turn::Wait => {}
            Turn::End(commit) => end(&gid, commit),
            Turn::Prepare => prepare(&gid),
        }
    }
    note_durable(false);
}

/// What this process has open is prepared, what it has committed is durable when this returns.
pub fn leave_nothing() {
    turn();
    if let Some((gid, _)) = KEPT.get() {
        prepare(&gid);
    }
    note_durable(true);
}

/// Whether nothing is open on this node any more, nor committed without being durable; does what
/// this process can for that, and wakes the others. The node must not be ONLINE, so that nothing
/// new is promised.
pub fn is_nothing_left() -> bool {
    leave_nothing();
    let seen = seen_anywhere();
    if let Some(newest) = seen.iter().map(|(_, end)| *end).max() {
        flush(newest);
    }
    note_finished(seen);
    let open = |(_, note): (&Gid, &shmem::Note)| (note.open != 0).then_some(note.worker);
    let left: Vec<_> = shmem::node(|state| state.notes.iter().filter_map(open).collect());
    left.iter().copied().for_each(proc::wake);
    left.is_empty()
}

/// What processes of this node have committed and not noted as durable.
fn seen_anywhere() -> Vec<(Gid, Lsn)> {
    let seen =
        |(gid, note): (&Gid, &shmem::Note)| (note.seen != 0).then_some((*gid, Lsn(note.seen)));
    shmem::node(|state| state.notes.iter().filter_map(seen).collect())
}

/// Notes as finished what other processes have committed and what is durable by now: they may be
/// waiting for something else, as for a row or for another outcome.
pub fn note_left() {
    note_finished(seen_anywhere());
}

/// Of these, those that are durable.
fn note_finished(seen: Vec<(Gid, Lsn)>) {
    let durable = wal::flushed();
    for (gid, _) in seen.into_iter().filter(|(_, end)| *end <= durable) {
        // Unless its own process has just done so.
        machine::feed_if(Input::Finished(gid), |state| {
            let seen = state.notes.get_mut(&gid).is_some_and(|note| note.seen != 0);
            if seen {
                state.notes.remove(&gid);
            }
            seen
        });
    }
}

enum Turn {
    Wait,
    End(bool),
    Prepare,
}

fn look(state: &mut NodeState, gid: &Gid, waits: bool) -> Turn {
    let me = proc::my_procno();
    if let Some(commit) = finish::take_in(state, gid, me) {
        return Turn::End(commit);
    }
    let same = |node: mtm_node::Node<'_>| {
        node.serves() && node.membership().current().generation.num == gid.generation
    };
    if waits && state.node().is_some_and(same) { Turn::Wait } else { Turn::Prepare }
}

fn end(gid: &Gid, commit: bool) {
    KEPT.set(None);
    if !commit {
        close(gid);
        return;
    }
    xact::mark_origin(Lsn(0));
    let committed = bgworker::catching(AssertUnwindSafe(twophase::commit_unflushed));
    xact::unmark_commit_record();
    if let Err(caught) = committed {
        ereport!(
            PANIC,
            PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            format!("could not commit transaction {gid}, as is decided: {}", caught.message),
            "This server restarts and applies it again."
        );
    }
    // Whoever gets it is behind the commit in the log: a crash that undoes the commit finds it free.
    twophase::give_back_place();
    let end = wal::last_commit();
    machine::feed_after(Input::Visible(*gid), |state| {
        if let Some(note) = state.notes.get_mut(gid) {
            note.seen = end.0;
        }
    });
    SEEN.with_borrow_mut(|seen| seen.push_back((*gid, end, proc::now())));
}

/// Rolls it back: the promise is over, durably. The record comes before others may have the place.
fn close(gid: &Gid) {
    let end = message::log(c"mtm-closed", &journal::gid_bytes(gid), false);
    twophase::abort();
    flush(end);
    machine::feed_after(Input::Finished(*gid), |state| {
        state.notes.remove(gid);
    });
}

/// Prepares it in earnest, for whoever hears the outcome.
fn prepare(gid: &Gid) {
    KEPT.set(None);
    xact::mark_origin(Lsn(0));
    let prepared = bgworker::catching(AssertUnwindSafe(|| {
        twophase::give_back_place();
        twophase::prepare(gid.to_string());
    }));
    xact::unmark_commit_record();
    if let Err(caught) = prepared {
        ereport!(
            PANIC,
            PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
            format!("could not prepare transaction {gid}, as is promised: {}", caught.message),
            "This server restarts and applies it again. It needs a free place among the prepared \
             transactions: see max_prepared_transactions."
        );
    }
    // Not before PREPARE: whatever a crash leaves of the two, a restart finds the transaction.
    message::log(c"mtm-closed", &journal::gid_bytes(gid), false);
    shmem::node(|state| {
        if let Some(note) = state.notes.get_mut(gid) {
            note.worker = proc::NO_PROC;
            note.open = 0;
        }
    });
    // It may have been decided meanwhile.
    finish::unless_taken(gid);
}

/// Notes as finished what has become durable; makes it so when that is due.
fn note_durable(now: bool) {
    let newest = SEEN.with_borrow(|seen| {
        let (_, _, since) = seen.front()?;
        let due = now || proc::now().since(*since) >= SOON_US;
        seen.back().filter(|_| due).map(|(_, end, _)| *end)
    });
    if let Some(end) = newest {
        flush(end);
    }
    if SEEN.with_borrow(VecDeque::is_empty) {
        return;
    }
    let durable = wal::flushed();
    let next = |seen: &mut VecDeque<(Gid, Lsn, Instant)>| {
        seen.pop_front_if(|(_, end, _)| *end <= durable).map(|(gid, ..)| gid)
    };
    while let Some(gid) = SEEN.with_borrow_mut(next) {
        // Somebody else may have done so: then this says nothing new.
        machine::feed_after(Input::Finished(gid), |state| {
            state.notes.remove(&gid);
        });
    }
}

/// At the process' end. A promise that was given is kept: if nobody is left to keep it, the server
/// starts again and finds it in its log.
pub fn at_exit() {
    if let Some((gid, _)) = KEPT.get()
        && proc::postmaster_is_alive()
    {
        ereport!(
            PANIC,
            PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN,
            format!("the process that had promised to commit transaction {gid} ended"),
            "The server starts again and applies it again."
        );
    }
    if KEPT.get().is_none() {
        note_durable(true);
    }
}
