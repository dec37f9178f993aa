//! A load of small writes, and a witness of what its clients were told.

use super::arena::Arena;
use crate::session::{Session, SqlError};
use crate::wait::until;
use anyhow::{Result, ensure};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What clients were told is true afterwards: acknowledged rows are there, refused ones are not.
#[derive(Debug, Default)]
pub(crate) struct Witness {
    acknowledged: Vec<i32>,
    refused: Vec<(i32, String)>,
}

impl Witness {
    pub(crate) fn note(&mut self, id: i32, outcome: &Result<(), SqlError>) {
        match outcome {
            Ok(()) => self.acknowledged.push(id),
            Err(error) if is_unknown(error) => {}
            Err(error) => self.refused.push((id, error.to_string())),
        }
    }

    fn add(&mut self, other: Self) {
        self.acknowledged.extend(other.acknowledged);
        self.refused.extend(other.refused);
    }

    /// How many writes were acknowledged.
    pub(crate) const fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    /// How many were refused for sure.
    pub(crate) const fn refused(&self) -> usize {
        self.refused.len()
    }

    /// How many were refused with this SQLSTATE.
    pub(crate) fn refused_with(&self, state: &str) -> usize {
        self.refused.iter().filter(|(_, why)| why.contains(state)).count()
    }

    /// Compares with what the nodes have.
    pub(crate) fn check(&self, a: &Arena, table: &str) -> Result<()> {
        ensure!(!self.acknowledged.is_empty(), "nothing was committed");
        let list = |ids: &[i32]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let there = format!(
            "SELECT count(*) FROM {table} WHERE id = ANY ('{{{}}}')",
            list(&self.acknowledged)
        );
        a.expect(&there, &self.acknowledged.len().to_string())?;
        let refused: Vec<i32> = self.refused.iter().map(|(id, _)| *id).collect();
        let present = format!(
            "SELECT coalesce(string_agg(id::text, ','), '') FROM {table} \
             WHERE id = ANY ('{{{}}}')",
            list(&refused)
        );
        let present = a.ask(1, &present)?;
        let told = self
            .refused
            .iter()
            .filter(|(id, _)| present.split(',').any(|p| p == id.to_string()))
            .map(|(id, why)| format!("{id}: {why}"))
            .collect::<Vec<_>>();
        ensure!(told.is_empty(), "refused and there nevertheless: {}", told.join("; "));
        Ok(())
    }
}

/// Whether the client cannot know what became of its transaction: no SQLSTATE: the connection
/// broke; 08: the server says so; 57P01 and 57P02: the session was ended. A refusal because the
/// node is not online (57P03) is a promise that nothing happened.
fn is_unknown(error: &SqlError) -> bool {
    error.state.is_empty()
        || error.state.starts_with("08")
        || (error.state.starts_with("57P") && error.state != "57P03")
}

/// What to write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan<'a> {
    /// A table with one column, `id`.
    pub(crate) table: &'a str,
    /// A statement to be executed in the same transaction, with `$` for the client's number.
    pub(crate) before: &'a str,
    /// Where.
    pub(crate) nodes: &'a [usize],
    /// By how many clients on each of them.
    pub(crate) clients: usize,
    /// Pause between two transactions of a client.
    pub(crate) pause: Duration,
}

impl<'a> Plan<'a> {
    /// As much as two clients on each of `nodes` can write into `table`.
    pub(crate) const fn new(table: &'a str, nodes: &'a [usize]) -> Self {
        Self { table, before: "", nodes, clients: 2, pause: Duration::ZERO }
    }
}

/// A load while it runs.
#[derive(Debug)]
pub(crate) struct Running {
    stop: AtomicBool,
    /// Acknowledged writes by node.
    counts: Vec<AtomicUsize>,
}

impl Running {
    fn count(&self, node: usize) -> usize {
        self.counts[node - 1].load(Ordering::Relaxed)
    }

    /// Waits until each of `nodes` has acknowledged `more` writes from now on.
    pub(crate) fn goes_on(&self, nodes: &[usize], more: usize, limit: Duration) -> Result<()> {
        let goals: Vec<(usize, usize)> =
            nodes.iter().map(|&node| (node, self.count(node) + more)).collect();
        until(&format!("{more} more writes on each of nodes {nodes:?}"), limit, || {
            Ok(goals.iter().all(|&(node, goal)| self.count(node) >= goal).then_some(()))
        })
    }
}

/// What came of a load.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// What the clients were told.
    pub(crate) witness: Witness,
    /// When which node acknowledged a write, in order of time.
    acknowledgements: Vec<(Instant, usize)>,
}

impl Report {
    /// The longest time without any acknowledged write on one of `nodes` between two moments.
    pub(crate) fn outage(&self, nodes: &[usize], from: Instant, to: Instant) -> Duration {
        let longest = |node: usize| {
            let mut last = from;
            let mut longest = Duration::ZERO;
            let of_node = self.acknowledgements.iter().filter(|(_, n)| *n == node);
            let times = of_node.map(|(at, _)| *at).filter(|at| (from..=to).contains(at));
            for at in times.chain([to]) {
                longest = longest.max(at.duration_since(last));
                last = at;
            }
            longest
        };
        nodes.iter().map(|&node| longest(node)).max().unwrap_or_default()
    }

    /// Acknowledged writes on any node between two moments.
    pub(crate) fn count(&self, from: Instant, to: Instant) -> usize {
        self.acknowledgements.iter().filter(|(at, _)| (from..=to).contains(at)).count()
    }
}

/// Does `body` while the load runs; the load ends with it.
pub(crate) fn under_load<R>(
    a: &Arena,
    plan: &Plan<'_>,
    body: impl FnOnce(&Running) -> Result<R>,
) -> Result<(Report, R)> {
    let running = Running {
        stop: AtomicBool::new(false),
        counts: a.ids().iter().map(|_| AtomicUsize::new(0)).collect(),
    };
    let (reports, result) = std::thread::scope(|scope| {
        let clients = plan.nodes.iter().flat_map(|&node| (0..plan.clients).map(move |_| node));
        let threads: Vec<_> = clients
            .enumerate()
            .map(|(client, node)| {
                let running = &running;
                scope.spawn(move || write(a, plan, client, node, running))
            })
            .collect();
        let result = body(&running);
        running.stop.store(true, Ordering::Relaxed);
        let reports: Vec<Report> =
            threads.into_iter().map(|t| t.join().expect("no panic in a client")).collect();
        (reports, result)
    });
    let mut report = Report::default();
    for one in reports {
        report.witness.add(one.witness);
        report.acknowledgements.extend(one.acknowledgements);
    }
    report.acknowledgements.sort_unstable();
    result.map(|result| (report, result))
}

/// A client: writes rows of its own; opens a new session whenever the old one broke.
fn write(a: &Arena, plan: &Plan<'_>, client: usize, node: usize, running: &Running) -> Report {
    let mut report = Report::default();
    let mut session: Option<Session> = None;
    let first = i32::try_from(client * 1_000_000).unwrap_or(0);
    let before = plan.before.replace('$', &client.to_string());
    for row in first.. {
        if running.stop.load(Ordering::Relaxed) {
            break;
        }
        if session.is_none() {
            session = a.on(node).ok().map(|session| session.patience(Duration::from_secs(20)));
        }
        let Some(open) = &session else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        let sql = format!("{before}; INSERT INTO {} VALUES ({row})", plan.table);
        let outcome = open.run(&sql).map(drop);
        report.witness.note(row, &outcome);
        match &outcome {
            Ok(()) => {
                running.counts[node - 1].fetch_add(1, Ordering::Relaxed);
                report.acknowledgements.push((Instant::now(), node));
                std::thread::sleep(plan.pause);
            }
            Err(error) if error.state.is_empty() || error.state.starts_with("57P") => {
                session = None;
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(_) => {}
        }
    }
    report
}
