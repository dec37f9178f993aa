//! Measuring.
//!
//! Every figure of one table comes from one run: short runs of each system take turns, so that
//! what else the machine does hits all of them alike, and medians are shown.

pub mod load;
pub mod plot;
mod rejoin;
pub mod report;

use crate::artefacts::Profile;
use crate::baseline;
use crate::cluster::{Cluster, Kind, Order};
use crate::host::default_directory;
use crate::wait::step;
use anyhow::{Context, Result, bail};
use load::{Sample, Script};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use load::{Load, pgbench_init};

/// Rows of `pgbench_accounts` per unit of scale.
pub const ROWS_PER_SCALE: u32 = 100_000;

/// Options of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Length of one run.
    #[arg(long, default_value_t = 5)]
    pub seconds: u32,
    /// How many times each system takes its turn.
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,
    /// pgbench's scale factor.
    #[arg(long, default_value_t = 10)]
    pub scale: u32,
    /// Only workloads whose name contains this (upd-1, tx3-16, hot, disjoint ...), or `rejoin`: how
    /// fast a node takes over what it missed.
    #[arg(long)]
    pub only: Option<String>,
    /// With `--only rejoin`: transactions per second that go on while the node comes back, after it
    /// was away for `--seconds`.
    #[arg(long, default_value_t = 500)]
    pub rate: u32,
    /// Only these systems.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub systems: Vec<System>,
    /// Write the table to a Markdown file.
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Draw the table into an SVG file.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Where the servers and pgbench's logs go.
    #[arg(long, value_name = "D")]
    pub dir: Option<PathBuf>,
    /// A setting for every server.
    #[arg(long, value_name = "name=value", value_parser = crate::cli::setting)]
    pub set: Vec<(String, String)>,
    /// How to compile the extension (default: `MTM_PROFILE`, else release).
    #[arg(long, value_enum)]
    pub profile: Option<Profile>,
    /// Leave the servers running.
    #[arg(long)]
    pub keep: bool,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum System {
    /// One ordinary server.
    Plain,
    /// A primary and two standbys at `remote_apply`.
    Streaming,
    /// This cluster.
    Multimaster,
}

impl System {
    /// Its name in tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Streaming => "remote_apply",
            Self::Multimaster => "multimaster",
        }
    }
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// What the clients do.
    pub workload: String,
    /// On which system, and how spread over its nodes.
    pub system: String,
}

/// One thing to run again and again.
struct Run {
    key: Key,
    system: System,
    script: Script,
    /// Clients on node 1, 2, ...
    clients: Vec<u32>,
}

/// Runs the benchmark.
///
/// # Errors
/// When a server does not start, a client fails, or the options leave nothing to do.
pub fn run(options: &Options) -> Result<()> {
    let dir = match &options.dir {
        Some(dir) => std::path::absolute(dir)?,
        None => default_directory("bench")?,
    };
    if rejoin::is_wanted(options) {
        return rejoin::run(options, &dir);
    }
    let runs = plan(options);
    if runs.is_empty() {
        bail!("--only leaves nothing to run");
    }
    let logs = dir.join("pgbench");
    std::fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    let mut systems: Vec<System> = runs.iter().map(|run| run.system).collect();
    systems.sort_unstable();
    systems.dedup();
    let mut clusters = Vec::new();
    for system in systems {
        clusters.push((system, start(system, options, &dir)?));
    }
    let measured = measure(&runs, &clusters, options, &logs);
    for (_, cluster) in clusters {
        if !options.keep {
            cluster.destroy()?;
        }
    }
    let report = report::Report::new(measured?, options, &dir)?;
    println!("{}", report.text());
    if let Some(file) = &options.save {
        write(file, &report.markdown(options.plot.as_deref()))?;
    }
    if let Some(file) = &options.plot {
        write(file, &plot::draw(&report))?;
    }
    println!("pgbench's logs are in {}", logs.display());
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn start(system: System, options: &Options, dir: &Path) -> Result<Cluster> {
    eprintln!("{}", system.name());
    let cluster = match system {
        System::Plain => baseline::plain(dir, &options.set)?,
        System::Streaming => baseline::streaming(dir, &options.set)?,
        System::Multimaster => {
            let dir = dir.join("multimaster");
            Cluster::clear(&dir)?;
            Cluster::create(&Order {
                kind: Kind::Multimaster,
                nodes: 3,
                dir,
                port: None,
                set: options.set.clone(),
                profile: Profile::choose(options.profile)?,
            })?
        }
    };
    step(&format!("pgbench -i -s {}", options.scale), || {
        pgbench_init(cluster.node(1)?, options.scale, Duration::from_secs(600))
    })?;
    Ok(cluster)
}

/// The order of the table: for each workload the systems side by side.
fn plan(options: &Options) -> Vec<Run> {
    let rows = options.scale * ROWS_PER_SCALE;
    let mut runs = Vec::new();
    let all = [System::Plain, System::Streaming, System::Multimaster];
    for (name, script) in [("upd", Script::update(rows)), ("tx3", Script::three(rows))] {
        for clients in [1, 8, 16] {
            for system in all {
                let workload = format!("{name}-{clients}");
                let key = Key { workload, system: system.name().to_owned() };
                runs.push(Run { key, system, script: script.clone(), clients: vec![clients] });
            }
        }
    }
    for (name, script) in [("disjoint", Script::disjoint(rows, 3)), ("hot", Script::hot(100))] {
        for system in all {
            let key = Key { workload: format!("{name}-12"), system: system.name().to_owned() };
            runs.push(Run { key, system, script: script.clone(), clients: vec![12] });
        }
        let key = Key { workload: format!("{name}-12"), system: "multimaster, 3 nodes".into() };
        let clients = vec![4, 4, 4];
        runs.push(Run { key, system: System::Multimaster, script, clients });
    }
    runs.retain(|run| {
        options.only.as_ref().is_none_or(|only| run.key.workload.contains(only.as_str()))
            && (options.systems.is_empty() || options.systems.contains(&run.system))
    });
    runs
}

fn measure(
    runs: &[Run],
    clusters: &[(System, Cluster)],
    options: &Options,
    logs: &Path,
) -> Result<Vec<(Key, Vec<Sample>)>> {
    let mut all: Vec<(Key, Vec<Sample>)> =
        runs.iter().map(|run| (run.key.clone(), Vec::new())).collect();
    // Round 0 warms caches and is thrown away.
    for round in 0..=options.rounds {
        let seconds = if round == 0 { 1 } else { options.seconds };
        let what = if round == 0 {
            "warming up".into()
        } else {
            format!("round {round} of {}", options.rounds)
        };
        step(&what, || {
            for (run, (_, samples)) in runs.iter().zip(&mut all) {
                let (_, cluster) = clusters
                    .iter()
                    .find(|(system, _)| *system == run.system)
                    .context("every system that is measured was started")?;
                let name = format!("{}-{}-{round}", run.key.workload, run.key.system)
                    .replace([',', ' '], "");
                let load = Load { script: &run.script, clients: &run.clients, seconds };
                let sample = load
                    .run(cluster, &logs.join(name))
                    .with_context(|| format!("{} on {}", run.key.workload, run.key.system))?;
                if round > 0 {
                    samples.push(sample);
                }
            }
            Ok(())
        })?;
    }
    Ok(all)
}
