//! One run of pgbench on one or several nodes, and what its logs say.

use crate::cluster::Cluster;
use crate::host::client;
use crate::server::{DATABASE, Server, succeed};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

/// A pgbench script.
#[derive(Debug, Clone)]
pub struct Script(String);

impl Script {
    /// Any script.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// What pgbench reads.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }

    /// One row is updated.
    #[must_use]
    pub fn update(rows: u32) -> Self {
        Self(format!("\\set aid random(1, {rows})\n{}", set_balance("aid")))
    }

    /// Two updates and a select in one transaction.
    #[must_use]
    pub fn three(rows: u32) -> Self {
        Self(format!(
            "\\set a random(1, {rows})\n\\set b random(1, {rows})\nBEGIN;\n{}{}\
             SELECT abalance FROM pgbench_accounts WHERE aid = :a;\nCOMMIT;\n",
            set_balance("a"),
            set_balance("b")
        ))
    }

    /// One row is updated; clients of different nodes never meet.
    #[must_use]
    pub fn disjoint(rows: u32, nodes: u32) -> Self {
        let share = rows / nodes;
        Self(format!(
            "\\set aid random(1, {share}) + (:node - 1) * {share}\n{}",
            set_balance("aid")
        ))
    }

    /// One of very few rows is updated, by everybody.
    #[must_use]
    pub fn hot(rows: u32) -> Self {
        Self::update(rows)
    }
}

fn set_balance(variable: &str) -> String {
    format!("UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :{variable};\n")
}

/// What one run showed.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Committed transactions per second, all nodes together.
    pub tps: f64,
    /// Latency of every committed transaction, microseconds, sorted.
    pub latencies: Vec<u64>,
    /// Transactions that were tried again after 40001 or 40P01.
    pub retried: u64,
    /// Transactions that failed in spite of that.
    pub failed: u64,
}

impl Sample {
    /// The latency not exceeded by this share of transactions, in milliseconds.
    #[must_use]
    pub fn percentile(&self, share: f64) -> f64 {
        percentile(&self.latencies, share)
    }
}

/// The same for any sorted microseconds.
#[must_use]
pub fn percentile(sorted: &[u64], share: f64) -> f64 {
    if sorted.is_empty() {
        return 0.0;
    }
    let last = sorted.len() - 1;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "share is within 0 and 1"
    )]
    let at = (last as f64 * share).round() as usize;
    sorted[at.min(last)] as f64 / 1000.0
}

/// A load: a script, how many clients on each node, how long.
#[derive(Debug, Clone, Copy)]
pub struct Load<'a> {
    /// What every client does.
    pub script: &'a Script,
    /// Clients on node 1, 2, ...
    pub clients: &'a [u32],
    /// How long.
    pub seconds: u32,
}

/// Fills the pgbench tables on `server`.
///
/// # Errors
/// With what pgbench said.
pub fn pgbench_init(server: &Server, scale: u32, limit: Duration) -> Result<()> {
    let mut command = client("pgbench");
    target(&mut command, server);
    command.args(["-i", "-q", "-s", &scale.to_string()]);
    command.env("PGOPTIONS", format!("-c statement_timeout={}", limit.as_millis()));
    succeed(command, "pgbench -i")
}

fn target(command: &mut std::process::Command, server: &Server) {
    let port = server.port.to_string();
    command.args(["-h", "127.0.0.1", "-p", &port, "-U", DATABASE]);
    command.env("PGDATABASE", DATABASE).stdin(Stdio::null());
}

impl Load<'_> {
    /// Runs it and keeps pgbench's files under names that begin with `prefix`.
    ///
    /// # Errors
    /// When a client fails.
    pub fn run(&self, cluster: &Cluster, prefix: &Path) -> Result<Sample> {
        let mut children = Vec::new();
        for (id, clients) in (1..).zip(self.clients) {
            if *clients > 0 {
                children.push((id, self.spawn(cluster.node(id)?, *clients, prefix)?));
            }
        }
        let mut sample = Sample::default();
        let mut errors = Vec::new();
        for (id, child) in children {
            let out = child.wait_with_output().context("waiting for pgbench")?;
            let said = String::from_utf8_lossy(&out.stdout);
            let complaint = String::from_utf8_lossy(&out.stderr);
            let notes = with_suffix(prefix, &format!("-node{id}.txt"));
            std::fs::write(&notes, format!("{said}{complaint}"))?;
            if !out.status.success() {
                errors.push(format!(
                    "pgbench on node {id} ({}):\n{}",
                    out.status,
                    complaint.trim_end()
                ));
                continue;
            }
            sample.tps +=
                tps(&said).with_context(|| format!("no tps in pgbench's output:\n{said}"))?;
            sample.read_logs(&with_suffix(prefix, &format!("-node{id}")))?;
        }
        if !errors.is_empty() {
            bail!("{}", errors.join("\n"));
        }
        sample.latencies.sort_unstable();
        Ok(sample)
    }

    fn spawn(&self, server: &Server, clients: u32, prefix: &Path) -> Result<Child> {
        let log = with_suffix(prefix, &format!("-node{}", server.id));
        let script = with_suffix(prefix, &format!("-node{}.sql", server.id));
        std::fs::write(&script, &self.script.0)?;
        for old in logs_of(&log)? {
            std::fs::remove_file(old)?;
        }
        let mut command = client("pgbench");
        target(&mut command, server);
        command.args(["-n", "-c", &clients.to_string(), "-j", &clients.min(2).to_string()]);
        command.args(["-T", &self.seconds.to_string(), "--max-tries=1000", "-l"]);
        command.arg("--log-prefix").arg(&log).arg("-f").arg(&script);
        command.args(["-D", &format!("node={}", server.id)]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().context("cannot run pgbench")
    }
}

fn with_suffix(path: &Path, suffix: &str) -> std::path::PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// pgbench names its logs `prefix.pid` and `prefix.pid.thread`.
fn logs_of(prefix: &Path) -> Result<Vec<std::path::PathBuf>> {
    let (dir, name) =
        (prefix.parent().context("a directory")?, prefix.file_name().context("a name")?);
    let start = format!("{}.", name.to_string_lossy());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let rest = file.strip_prefix(&start).unwrap_or("x");
        if rest.starts_with(|c: char| c.is_ascii_digit()) {
            found.push(path);
        }
    }
    Ok(found)
}

fn tps(said: &str) -> Option<f64> {
    let line = said.lines().find(|line| line.starts_with("tps = "))?;
    line.split_whitespace().nth(2)?.parse().ok()
}

impl Sample {
    /// A line of the log is: client, number, microseconds or "failed" or a word for why, script,
    /// seconds, microseconds, and with `--max-tries` how often it was tried again.
    fn read_logs(&mut self, prefix: &Path) -> Result<()> {
        for file in logs_of(prefix)? {
            for line in std::fs::read_to_string(&file)?.lines() {
                let fields: Vec<&str> = line.split(' ').collect();
                match fields.get(2).map(|field| field.parse::<u64>()) {
                    Some(Ok(latency)) => self.latencies.push(latency),
                    Some(Err(_)) => self.failed += 1,
                    None => bail!("{}: strange line {line:?}", file.display()),
                }
                let retries =
                    fields.get(6).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
                self.retried += u64::from(retries > 0);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_sorted_latencies() {
        let sorted: Vec<u64> = (1..=100).map(|n| n * 1000).collect();
        assert!((percentile(&sorted, 0.5) - 51.0).abs() < 1.1);
        assert!((percentile(&sorted, 0.99) - 99.0).abs() < 1.1);
        assert!((percentile(&sorted, 1.0) - 100.0).abs() < f64::EPSILON);
        assert!(percentile(&[], 0.5).abs() < f64::EPSILON);
    }

    #[test]
    fn tps_is_read_from_the_summary() {
        assert_eq!(tps("a\ntps = 1234.5 (without initial connection time)\n"), Some(1234.5));
        assert_eq!(tps("nothing"), None);
    }
}
