//! Medians of the rounds, as a table for people and for the documentation.

use super::load::{Sample, percentile};
use super::{Key, Options};
use crate::table::Table;
use anyhow::Result;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Instant;

/// A commit slower than this is counted: 100 ms.
const SLOW_US: u64 = 100_000;

/// One line of the result.
#[derive(Debug, Clone)]
pub struct Row {
    /// Which.
    pub key: Key,
    /// Median over the rounds.
    pub tps: f64,
    /// Median latency over all rounds, milliseconds.
    pub p50: f64,
    /// 99th percentile over all rounds, milliseconds.
    pub p99: f64,
    /// Commits slower than 100 ms.
    pub slow: usize,
    /// Commits measured.
    pub commits: usize,
    /// Transactions tried again.
    pub retried: u64,
    /// tps beside `remote_apply` in the same run.
    pub ratio: Option<f64>,
}

/// The whole result, with its conditions.
#[derive(Debug, Clone)]
pub struct Report {
    /// The lines.
    pub rows: Vec<Row>,
    conditions: Vec<String>,
}

impl Report {
    /// Sums up the samples.
    ///
    /// # Errors
    /// When the conditions of the machine cannot be found out.
    pub fn new(measured: Vec<(Key, Vec<Sample>)>, options: &Options, dir: &Path) -> Result<Self> {
        let mut rows: Vec<Row> =
            measured.into_iter().map(|(key, samples)| row(key, samples)).collect();
        let reference = rows.clone();
        for row in &mut rows {
            let base = reference.iter().find(|other| {
                other.key.workload == row.key.workload && other.key.system == "remote_apply"
            });
            row.ratio = base.filter(|base| base.tps > 0.0).map(|base| row.tps / base.tps);
        }
        Ok(Self { rows, conditions: conditions(options, dir)? })
    }

    fn table(&self) -> Table {
        let heading = [
            "workload-clients",
            "system",
            "tps",
            "p50 ms",
            "p99 ms",
            "over 100 ms",
            "commits",
            "retried",
            "x remote_apply",
        ];
        let mut table = Table::new(heading);
        let mut last = String::new();
        for row in &self.rows {
            let workload =
                if row.key.workload == last { String::new() } else { row.key.workload.clone() };
            last.clone_from(&row.key.workload);
            table.row([
                workload,
                row.key.system.clone(),
                format!("{:.0}", row.tps),
                format!("{:.2}", row.p50),
                format!("{:.2}", row.p99),
                row.slow.to_string(),
                row.commits.to_string(),
                row.retried.to_string(),
                row.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            ]);
        }
        table
    }

    /// For the terminal.
    #[must_use]
    pub fn text(&self) -> String {
        format!("\n{}\n{}\n", self.table().text(""), self.conditions.join("\n"))
    }

    /// For the documentation.
    #[must_use]
    pub fn markdown(&self, plot: Option<&Path>) -> String {
        let mut out = String::from(
            "# What commits cost\n\nWritten by `cargo xtask bench --save`. All systems were measured in one run, taking turns;\n\
             tps are medians of the rounds, latencies are over all rounds. Compare within a workload only.\n\n",
        );
        if let Some(name) = plot.and_then(Path::file_name) {
            out += &format!("![tps and latencies]({})\n\n", name.to_string_lossy());
        }
        out += &self.table().markdown();
        out += "\n- upd: one row is updated. tx3: BEGIN, two updates, one select, COMMIT.\n\
                - disjoint, hot: 12 clients update single rows; on disjoint rows per node, or all on the same 100 rows.\n  \
                \"3 nodes\": four clients on each node; otherwise all on one. 40001 and 40P01 are retried.\n\n";
        for line in &self.conditions {
            out += &format!("- {line}\n");
        }
        out
    }
}

fn row(key: Key, samples: Vec<Sample>) -> Row {
    let mut tps: Vec<f64> = samples.iter().map(|sample| sample.tps).collect();
    tps.sort_by(f64::total_cmp);
    let retried = samples.iter().map(|sample| sample.retried).sum();
    let mut latencies: Vec<u64> = samples.into_iter().flat_map(|sample| sample.latencies).collect();
    latencies.sort_unstable();
    Row {
        key,
        tps: tps.get(tps.len() / 2).copied().unwrap_or(0.0),
        p50: percentile(&latencies, 0.5),
        p99: percentile(&latencies, 0.99),
        slow: latencies.iter().filter(|latency| **latency > SLOW_US).count(),
        commits: latencies.len(),
        retried,
        ratio: None,
    }
}

fn conditions(options: &Options, dir: &Path) -> Result<Vec<String>> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |pair| pair.1);
    let cores = std::thread::available_parallelism()?;
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<&str> = load.split(' ').take(3).collect();
    let date = std::process::Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]).output()?;
    Ok(vec![
        format!(
            "{}, PostgreSQL {}, {model}, {cores} cores, every server on it, loopback, fsync on",
            String::from_utf8_lossy(&date.stdout).trim(),
            crate::host::server_version()?
        ),
        format!(
            "{} rounds of {} s, scale {}, simple protocol; load average at the end {}",
            options.rounds,
            options.seconds,
            options.scale,
            load.join(" ")
        ),
        format!("median fdatasync of 8 kB here: {:.2} ms", flush_time(dir)?),
    ])
}

/// Median time of one small durable write in milliseconds.
fn flush_time(dir: &Path) -> Result<f64> {
    let path = dir.join("flush-probe");
    let mut file = std::fs::File::create(&path)?;
    let mut times = Vec::new();
    for _ in 0..100 {
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&[1; 8192])?;
        let start = Instant::now();
        file.sync_data()?;
        times.push(u64::try_from(start.elapsed().as_nanos())?);
    }
    std::fs::remove_file(&path)?;
    times.sort_unstable();
    Ok(percentile(&times, 0.5) / 1000.0)
}
