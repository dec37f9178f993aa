//! mtm-health: looks after this node's own fitness, apart from the workers whose time matters: a
//! probe may wait for a slow disk.
//!
//! A node that refuses transactions for its own sake, again and again, keeps all others from
//! committing. It leaves by itself then, and comes back when the cause is gone.

use super::{divergence, retention, spill};
use crate::health::{self, Cause, Refusals};
use crate::pg::{bgworker, proc, shmem, sqlrun, xact};
use crate::{guc, machine};
use core::sync::atomic::Ordering;
use mtm_core::{Instant, NodeId};
use pgrx::spi::Spi;

/// A few refusals of the same kind are no accident.
pub const FEW_REFUSALS: u32 = 3;
/// So many without anything prepared in between, over [`ROW_US`], need no other evidence.
const ROW: u32 = 5;
/// A burst of refusals while all places for prepared transactions are taken lasts shorter.
const ROW_US: u64 = 1_000_000;
/// How often to look.
const LOOK_US: u64 = 1_000_000;
/// A node that left stays out for so long at least; twice as long each time it has to leave again.
const STAY_OUT_US: u64 = 3_000_000;
/// It stays out for no longer than this once the probes succeed.
const MOST_OUT_US: u64 = 300_000_000;
/// After so long without leaving again, the first time counts as the first again.
const FORGIVEN_US: u64 = 600_000_000;

struct Watch {
    /// When it left last.
    left: Option<Instant>,
    stay_out_us: u64,
    retention: retention::Watch,
}

/// Runs until the server stops.
pub fn run() {
    let header = shmem::header();
    bgworker::connect_to_database(header.database.load(Ordering::Relaxed));
    xact::set_applying();
    header.health.store(proc::my_procno(), Ordering::Release);
    let Some(me) = header.me() else { return };
    let mut watch =
        Watch { left: None, stay_out_us: STAY_OUT_US, retention: retention::Watch::new() };
    bgworker::report_idle();
    loop {
        bgworker::handle_signals();
        watch.look(me);
        divergence::look();
        watch.retention.look(me);
        proc::wait(None, Some(LOOK_US));
    }
}

impl Watch {
    fn look(&mut self, me: NodeId) {
        match health::standing(Cause::System) {
            None => self.consider_leaving(me),
            Some(standing) => self.consider_returning(standing.since),
        }
    }

    fn consider_leaving(&mut self, me: NodeId) {
        let Some(why) = reason_to_leave() else { return };
        // One after the other: when all have the same trouble, a majority stays.
        let turn_us = u64::from(me.get() - 1) * 2 * heartbeat_us();
        let until = proc::now().plus_us(turn_us);
        while proc::now() < until {
            proc::wait(None, Some(until.since(proc::now())));
            bgworker::handle_signals();
        }
        if !others_suffice() {
            return;
        }
        let now = proc::now();
        self.stay_out_us = match self.left {
            Some(left) if now.since(left) < FORGIVEN_US => (2 * self.stay_out_us).min(MOST_OUT_US),
            _ => STAY_OUT_US,
        };
        self.left = Some(now);
        health::set(Cause::System, &why);
    }

    fn consider_returning(&self, since: Instant) {
        if proc::now().since(since) < self.stay_out_us || probe().is_err() {
            return;
        }
        shmem::health(|health| {
            health.refusals.recent = 0;
            health.refusals.in_a_row = 0;
        });
        health::clear(Cause::System);
    }
}

fn heartbeat_us() -> u64 {
    u64::from(guc::HEARTBEAT_SEND_TIMEOUT.get().unsigned_abs()) * 1000
}

/// Why this node should leave, if it should.
fn reason_to_leave() -> Option<String> {
    let refusals = shmem::health(|health| health.refusals);
    if refusals.recent < FEW_REFUSALS {
        return None;
    }
    if let Err(why) = probe_disk() {
        return Some(why);
    }
    let lasted_us = refusals.last.since(refusals.row_began);
    (refusals.in_a_row >= ROW && lasted_us >= ROW_US).then(|| explain(&refusals))
}

fn explain(refusals: &Refusals) -> String {
    let sqlstate = core::str::from_utf8(&refusals.sqlstate).unwrap_or("XX000");
    let what = match probe_slots() {
        Err(why) => return why,
        Ok(()) if sqlstate.starts_with("53") => "give it more of what it lacks",
        Ok(()) => "look for the cause in its log",
    };
    format!(
        "it refused {} transactions in a row that the others could prepare: {} (SQLSTATE \
         {sqlstate}); {what}; it tries to come back by itself",
        refusals.in_a_row,
        refusals.why.as_str()
    )
}

/// Whether the others are a majority without this node.
fn others_suffice() -> bool {
    machine::look(|node| {
        let membership = node.membership();
        let others = membership.clique().without(membership.node());
        membership.current().generation.configured.has_majority(others)
    })
    .unwrap_or(false)
}

/// Whether what transactions of others need works here.
fn probe() -> Result<(), String> {
    probe_disk()?;
    probe_slots()
}

fn probe_disk() -> Result<(), String> {
    spill::probe().map_err(|error| {
        format!(
            "it could not write to its directory for temporary files, \
             base/pgsql_tmp/pgsql_tmp_mtm: {error}; make room or repair the directory, then it \
             comes back by itself"
        )
    })
}

fn probe_slots() -> Result<(), String> {
    let most: i64 = sqlrun::setting(c"max_prepared_transactions").parse().unwrap_or(0);
    let used = sqlrun::in_transaction(|| {
        Spi::connect(|client| {
            let sql = "SELECT count(*) FROM pg_catalog.pg_prepared_xact()";
            let rows = client.select(sql, Some(1), &[]).expect("a plain query");
            rows.first().get_one::<i64>().ok().flatten().unwrap_or(0)
        })
    });
    if used < most {
        return Ok(());
    }
    Err(format!(
        "all {most} places for prepared transactions are taken; finish those that are listed in \
         pg_prepared_xacts, or raise max_prepared_transactions; then it comes back by itself"
    ))
}
