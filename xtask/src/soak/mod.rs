//! A mixed load with schema changes on a cluster of its own, for minutes or hours, and then the
//! questions: are all nodes equal, is anything left over, has any process grown, has any node
//! logged what nobody expects?

mod actions;
mod logs;
mod memory;
mod schema;
mod worker;

use crate::artefacts::Profile;
use crate::cluster::{Cluster, Kind, Order};
use crate::host::default_directory;
use crate::suite::arena::Arena;
use crate::suite::compare;
use crate::table::Table;
use crate::wait::{step, until};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use worker::{Report, Tally};

/// Options of `cargo xtask soak`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How long the load lasts.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// What the load draws its choices from; the same number gives each client the same choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Clients with a mixed load on each node.
    #[arg(long, default_value_t = 2)]
    clients: usize,
    #[command(flatten)]
    servers: crate::cli::Servers,
}

/// Runs the load and asks the questions.
///
/// # Errors
/// When the cluster does not start or an answer is not as it should be.
pub fn run(options: &Options) -> Result<()> {
    ensure!(options.minutes > 0.0 && options.minutes < 1e5, "--minutes must be a positive number");
    let dir = match &options.servers.dir {
        Some(dir) => std::path::absolute(dir)?,
        None => default_directory("soak")?,
    };
    Cluster::clear(&dir)?;
    let mut arena = Arena::new(Cluster::create(&Order {
        kind: Kind::Multimaster,
        nodes: 3,
        dir,
        port: options.servers.port,
        set: options.servers.set.clone(),
        profile: Profile::choose(options.servers.profile)?,
    })?);
    let violations = soak(&arena, options);
    let kept = arena.cluster.dir.display().to_string();
    if options.servers.keep {
        arena.cluster.save()?;
        println!("\nThe cluster keeps running in {kept}.");
    } else if violations.as_ref().is_ok_and(Vec::is_empty) {
        arena.cluster.destroy()?;
    } else {
        arena.cluster.stop_all()?;
        println!("\nThe cluster's data and logs are kept in {kept}.");
    }
    let violations = violations?;
    ensure!(violations.is_empty(), "not as it should be:\n  {}", violations.join("\n  "));
    println!("\nAll is as it should be.");
    Ok(())
}

/// Everything that is not as it should be, for people.
fn soak(arena: &Arena, options: &Options) -> Result<Vec<String>> {
    step("tables for the load", || schema::create(arena))?;
    arena.mark_logs("soak");
    let from = logs::lengths(arena);
    let (tally, memory) =
        step(&format!("{} minutes of load", options.minutes), || load(arena, options))?;
    show_actions(&tally, options);
    let mut violations: Vec<String> = tally.violations();
    violations.extend(memory.report());
    for (what, question) in [
        ("all nodes are equal", &compare::everything as &dyn Fn(&Arena) -> Result<()>),
        ("the load's own rules hold", &schema::rules),
        ("every node is online and writes", &alive),
        ("nothing is left on disk", &nothing_spilled),
    ] {
        if let Err(error) = step(what, || question(arena)) {
            violations.push(format!("{what}: {error:#}"));
        }
    }
    violations.extend(logs::report(arena, &from));
    Ok(violations)
}

fn alive(arena: &Arena) -> Result<()> {
    arena.cluster.wait_online()?;
    arena.can_write()
}

/// Receivers keep large transactions in files, until they are over.
fn nothing_spilled(arena: &Arena) -> Result<()> {
    for node in &arena.cluster.nodes {
        let directory = node.data.join("base/pgsql_tmp/pgsql_tmp_mtm");
        until(&format!("node {} has no spill files", node.id), Duration::from_secs(20), || {
            let left = std::fs::read_dir(&directory).context("the directory of spill files")?;
            Ok((left.count() == 0).then_some(()))
        })?;
    }
    Ok(())
}

/// Runs all clients and watches the processes meanwhile.
fn load(arena: &Arena, options: &Options) -> Result<(Tally, memory::Watch)> {
    let length = Duration::from_secs_f64(options.minutes * 60.0);
    let stop = AtomicBool::new(false);
    let mut watch = memory::Watch::new(arena, length);
    let mut tally = Tally::default();
    std::thread::scope(|scope| -> Result<()> {
        let mut clients = Vec::new();
        for node in arena.ids() {
            for client in 0..options.clients {
                let seed = options.seed.wrapping_mul(1000) + (node * 100 + client) as u64;
                let stop = &stop;
                clients.push(scope.spawn(move || worker::mixed(arena, node, seed, stop)));
            }
        }
        let (seed, stop_flag) = (options.seed, &stop);
        clients.push(scope.spawn(move || worker::schema_changes(arena, seed, stop_flag)));
        let start = Instant::now();
        while start.elapsed() < length && clients.iter().all(|client| !client.is_finished()) {
            watch.look();
            std::thread::sleep(Duration::from_millis(500));
        }
        watch.finish();
        stop.store(true, Ordering::SeqCst);
        for client in clients {
            match client.join() {
                Ok(report) => tally.add(report?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(())
    })?;
    Ok((tally, watch))
}

fn show_actions(tally: &Tally, options: &Options) {
    let seconds = options.minutes * 60.0;
    let mut table =
        Table::new(["action", "done", "per s", "retries", "gave up", "p50 ms", "p99 ms", "max ms"]);
    let all: BTreeMap<&str, &Report> = tally.reports();
    for (name, report) in all {
        let [p50, p99, max] = report.percentiles();
        table.row([
            name.to_owned(),
            report.done().to_string(),
            format!("{:.1}", report.done() as f64 / seconds),
            report.retries.to_string(),
            report.gave_up.to_string(),
            format!("{p50:.1}"),
            format!("{p99:.1}"),
            format!("{max:.1}"),
        ]);
    }
    println!("\n{}", table.text(""));
}
