//! Checks of a real cluster: one cluster, many named checks.
//!
//! A check acts as clients do and asks every node what it sees. After each group all tables, all
//! definitions and all prepared transactions are compared. A check that leaves the cluster unable
//! to write fails, and the cluster is restarted for the next one.

pub mod arena;
mod commit;
pub mod compare;
mod conflicts;
mod cut;
mod ddl;
mod failing;
mod failover;
mod features;
mod foreign;
mod identities;
mod integrity;
mod large;
mod large_stream;
pub(crate) mod load;
mod local;
mod numbers;
mod objects;
mod partition;
mod peers;
mod replay;
mod room;
mod rows;
mod schema;
mod sequences;
mod settings;
mod shares;
mod stream;
mod stream_order;
mod stream_reader;
mod tables;
mod twophase;

use crate::artefacts::Profile;
use crate::cluster::{Cluster, Kind, Order};
use crate::host::default_directory;
use crate::server::Server;
use anyhow::Result;
use arena::Arena;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Instant;

/// A check: a group, a name, and what it does.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    group: &'static str,
    name: &'static str,
    run: fn(&Arena) -> Result<()>,
}

/// The checks of one module, named after their functions.
macro_rules! checks {
    ($group:literal: $($name:ident),+ $(,)?) => {
        pub(super) const CHECKS: &[crate::suite::Check] = &[
            $(crate::suite::Check::new($group, stringify!($name), $name)),+
        ];
    };
}
use checks;

impl Check {
    const fn new(group: &'static str, name: &'static str, run: fn(&Arena) -> Result<()>) -> Self {
        Self { group, name, run }
    }

    fn full_name(&self) -> String {
        format!("{}::{}", self.group, self.name)
    }
}

const GROUPS: &[&[Check]] = &[
    commit::CHECKS,
    features::CHECKS,
    twophase::CHECKS,
    rows::CHECKS,
    tables::CHECKS,
    identities::CHECKS,
    foreign::CHECKS,
    integrity::CHECKS,
    schema::CHECKS,
    ddl::CHECKS,
    sequences::CHECKS,
    shares::CHECKS,
    conflicts::CHECKS,
    large::CHECKS,
    large_stream::CHECKS,
    stream::CHECKS,
    stream_order::CHECKS,
    local::CHECKS,
    objects::CHECKS,
    peers::CHECKS,
    failover::CHECKS,
    replay::CHECKS,
    failing::CHECKS,
    partition::CHECKS,
    room::CHECKS,
    numbers::CHECKS,
    settings::CHECKS,
];

/// How to run the checks.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Only checks whose full name contains one of these; all if empty.
    pub filter: Vec<String>,
    /// Where the cluster goes; the usual place if nothing is said.
    pub dir: Option<PathBuf>,
    /// Leave the cluster running.
    pub keep: bool,
    /// How to compile the extension.
    pub profile: Profile,
    /// Settings for every node.
    pub set: Vec<(String, String)>,
    /// Three names for one plain server, to test the checks themselves.
    pub plain: bool,
}

/// How many checks passed and failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Passed.
    pub passed: usize,
    /// Failed.
    pub failed: usize,
    /// What failed, each with what it said: shown again at the end, where people look first.
    pub failures: Vec<String>,
}

impl Tally {
    /// Adds another tally.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.failures.extend(other.failures);
    }

    /// One more that failed.
    pub fn fail(&mut self, what: String) {
        self.failed += 1;
        self.failures.push(what);
    }
}

/// Names of all checks.
#[must_use]
pub fn names() -> Vec<String> {
    GROUPS.iter().flat_map(|group| group.iter().map(Check::full_name)).collect()
}

/// Starts a cluster and runs the checks on it.
///
/// # Errors
/// When the cluster does not start.
pub fn run(plan: &Plan) -> Result<Tally> {
    let dir = match &plan.dir {
        Some(dir) => std::path::absolute(dir)?,
        None => default_directory("test")?,
    };
    Cluster::clear(&dir)?;
    let (kind, nodes) = if plan.plain { (Kind::Plain, 1) } else { (Kind::Multimaster, 3) };
    let order =
        Order { kind, nodes, dir, port: None, set: plan.set.clone(), profile: plan.profile };
    let mut arena = Arena::new(Cluster::create(&order)?);
    if plan.plain {
        let only = arena.cluster.nodes[0].clone();
        arena.cluster.nodes = (1..=3).map(|id| Server { id, ..only.clone() }).collect();
    }
    let mut tally = Tally::default();
    for group in GROUPS {
        tally.add(run_group(&mut arena, group, plan, &order)?);
    }
    if plan.keep || tally.failed > 0 {
        arena.cluster.stop_all()?;
        println!("the cluster's data and logs are kept in {}", arena.cluster.dir.display());
    } else {
        arena.cluster.destroy()?;
    }
    Ok(tally)
}

fn run_group(arena: &mut Arena, group: &[Check], plan: &Plan, order: &Order) -> Result<Tally> {
    let wanted = |check: &&Check| {
        let name = check.full_name();
        plan.filter.is_empty() || plan.filter.iter().any(|part| name.contains(part.as_str()))
    };
    let wanted: Vec<&Check> = group.iter().filter(wanted).collect();
    let mut tally = Tally::default();
    let Some(first) = wanted.first() else {
        return Ok(tally);
    };
    let last = Check::new(first.group, "equal_everywhere", compare::everything);
    for check in wanted.into_iter().chain([&last]) {
        let result = run_check(arena, check);
        let passed = result.is_ok();
        match (result, known_gap(check)) {
            (Ok(()), None) => tally.passed += 1,
            (Err(why), None) => tally.fail(format!("check {}\n{why}", check.full_name())),
            (Err(_), Some(why)) => println!("    known gap, issue 2: {why}"),
            (Ok(()), Some(_)) => {
                println!("    passes now: take it out of KNOWN_GAPS");
                tally.fail(format!("check {} passes now", check.full_name()));
            }
        }
        if !passed {
            arena.recover(order)?;
        }
    }
    Ok(tally)
}

/// Checks of what is promised and not there yet. They run, and count neither way until they pass.
const KNOWN_GAPS: &[(&str, &str)] = &[];

fn known_gap(check: &Check) -> Option<&'static str> {
    let name = check.full_name();
    KNOWN_GAPS.iter().find(|(gap, _)| *gap == name).map(|(_, why)| *why)
}

/// What it says when it fails, with what the servers logged meanwhile.
fn run_check(arena: &Arena, check: &Check) -> Result<(), String> {
    let start = Instant::now();
    arena.mark_logs(&check.full_name());
    let result = catch_unwind(AssertUnwindSafe(|| (check.run)(arena)))
        .unwrap_or_else(|panic| Err(anyhow::anyhow!("panicked: {}", words_of(&*panic))));
    let seconds = start.elapsed().as_secs_f64();
    match result {
        Ok(()) => {
            println!("check {} ... ok ({seconds:.2} s)", check.full_name());
            Ok(())
        }
        Err(error) => {
            println!("check {} ... FAILED ({seconds:.2} s)", check.full_name());
            let said = indented(&format!("{error:#}")) + &arena.log_extract();
            print!("{said}");
            Err(said)
        }
    }
}

fn indented(text: &str) -> String {
    text.lines().fold(String::new(), |all, line| all + "    " + line + "\n")
}

fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_unique() {
        let mut names = super::names();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
