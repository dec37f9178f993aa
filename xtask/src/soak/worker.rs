//! Clients: they run one action after the other, again when an error says so, and keep count.

use super::actions::{Action, Client, MIXED, SCHEMA};
use crate::session::{Session, SqlError};
use crate::suite::arena::{Arena, is_retryable};
use anyhow::Result;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How often an action is tried.
const TRIES: u64 = 200;
/// Between two schema changes.
const SCHEMA_PAUSE: Duration = Duration::from_millis(1500);
/// A transaction that takes longer than this is not answered as far as its client is concerned.
const PATIENCE: Duration = Duration::from_secs(60);

/// How one action went.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Milliseconds of each successful try.
    times: Vec<f64>,
    /// Errors after which it was tried again.
    pub(super) retries: u64,
    /// How often it never succeeded.
    pub(super) gave_up: u64,
}

impl Report {
    /// How often it succeeded.
    pub(super) const fn done(&self) -> usize {
        self.times.len()
    }

    /// Half, 99 % and all of the tries took at most this many milliseconds.
    pub(super) fn percentiles(&self) -> [f64; 3] {
        let mut times = self.times.clone();
        times.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let last = times.len().saturating_sub(1);
            times.get((last as f64 * share) as usize).copied().unwrap_or(0.0)
        };
        [at(0.5), at(0.99), at(1.0)]
    }
}

/// How all actions of some clients went.
#[derive(Debug, Default)]
pub(super) struct Tally {
    reports: BTreeMap<&'static str, Report>,
    /// Errors that no client should see, with their counts.
    errors: BTreeMap<String, u64>,
}

impl Tally {
    /// Adds what other clients did.
    pub(super) fn add(&mut self, other: Self) {
        for (name, report) in other.reports {
            let mine = self.reports.entry(name).or_default();
            mine.times.extend(report.times);
            mine.retries += report.retries;
            mine.gave_up += report.gave_up;
        }
        for (error, count) in other.errors {
            *self.errors.entry(error).or_default() += count;
        }
    }

    /// By name of the action.
    pub(super) fn reports(&self) -> BTreeMap<&str, &Report> {
        self.reports.iter().map(|(name, report)| (*name, report)).collect()
    }

    /// What should not have happened to a client.
    pub(super) fn violations(&self) -> Vec<String> {
        let errors = self.errors.iter().map(|(error, count)| format!("{count} times: {error}"));
        let never = self.reports.iter().filter(|(_, report)| report.done() == 0);
        let gave_up = self.reports.iter().filter(|(_, report)| report.gave_up > 0);
        errors
            .chain(never.map(|(name, _)| format!("\"{name}\" never succeeded")))
            .chain(gave_up.map(|(name, report)| {
                format!("\"{name}\" failed {TRIES} times in a row, {} times", report.gave_up)
            }))
            .collect()
    }

    /// Runs one action to its end.
    fn run(&mut self, session: &Session, name: &'static str, action: Action, client: &mut Client) {
        client.turn += 1;
        let report = self.reports.entry(name).or_default();
        for _ in 0..TRIES {
            let start = Instant::now();
            let outcome = action(session, client);
            match outcome {
                Ok(()) => {
                    report.times.push(start.elapsed().as_secs_f64() * 1000.0);
                    return;
                }
                Err(error) => {
                    // Ends the transaction block, if the error came within one.
                    let _ = session.run("ROLLBACK");
                    // 23503: somebody removed the parent between the choice and the check.
                    if !is_retryable(&error) && error.state != "23503" {
                        let what = format!("{name}: {}", without_numbers(&error));
                        *self.errors.entry(what).or_default() += 1;
                        return;
                    }
                    report.retries += 1;
                    std::thread::sleep(Duration::from_millis(client.draw(10)));
                }
            }
        }
        report.gave_up += 1;
    }
}

/// The error, such that two of a kind read the same.
fn without_numbers(error: &SqlError) -> String {
    let message = super::logs::without_numbers(&format!("{} {}", error.message, error.detail));
    format!("{} {message}", error.state)
}

/// The mixed load on one node until the flag is set.
///
/// # Errors
/// When the node does not let the client in.
pub(super) fn mixed(arena: &Arena, node: usize, seed: u64, stop: &AtomicBool) -> Result<Tally> {
    let session = arena.on(node)?.patience(PATIENCE);
    session.run("SET client_min_messages = error")?;
    let mut client = Client::new(node, seed);
    let mut tally = Tally::default();
    let all: u64 = MIXED.iter().map(|(share, ..)| share).sum();
    while !stop.load(Ordering::SeqCst) {
        let mut lot = client.draw(all);
        for (share, name, action) in MIXED {
            if lot < *share {
                tally.run(&session, name, *action, &mut client);
                break;
            }
            lot -= share;
        }
    }
    Ok(tally)
}

/// Schema changes on all nodes in turn until the flag is set.
///
/// # Errors
/// When a node does not let the client in.
pub(super) fn schema_changes(arena: &Arena, seed: u64, stop: &AtomicBool) -> Result<Tally> {
    let mut sessions = Vec::new();
    for node in arena.ids() {
        let session = arena.on(node)?.patience(PATIENCE);
        session.run("SET client_min_messages = error")?;
        sessions.push(session);
    }
    let mut client = Client::new(0, seed);
    let mut tally = Tally::default();
    for (name, action) in SCHEMA.iter().cycle() {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let at = client.draw(sessions.len() as u64) as usize;
        tally.run(&sessions[at], name, *action, &mut client);
        pause(SCHEMA_PAUSE, stop);
    }
    Ok(tally)
}

/// The pace of schema changes, not a wait for anything.
fn pause(length: Duration, stop: &AtomicBool) {
    let start = Instant::now();
    while start.elapsed() < length && !stop.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(50));
    }
}
