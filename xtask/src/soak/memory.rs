//! Whether a process grows.
//!
//! What counts is anonymous memory, which no other process shares: shared buffers that only one
//! process has touched so far would look like its own.

use crate::process;
use crate::suite::arena::Arena;
use crate::table::Table;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Caches fill during this share of the time.
const WARM_UP: f64 = 0.4;
/// A process may grow by this much, in KiB, and by a quarter of what it had: caches still fill,
/// and an allocator keeps holes.
const SLACK: u64 = 4096;

#[derive(Debug, Clone)]
struct Seen {
    node: usize,
    kind: String,
    warm: Option<u64>,
    last: u64,
    peak: u64,
}

/// Looks at all processes of all nodes now and then.
#[derive(Debug)]
pub(super) struct Watch {
    nodes: Vec<(usize, PathBuf)>,
    start: Instant,
    warm_at: Duration,
    warm: bool,
    next: Duration,
    seen: BTreeMap<i32, Seen>,
    /// Processes that were there in the last look.
    alive: Vec<i32>,
}

impl Watch {
    /// For a load of this length.
    pub(super) fn new(arena: &Arena, length: Duration) -> Self {
        Self {
            nodes: arena.cluster.nodes.iter().map(|node| (node.id, node.data.clone())).collect(),
            start: Instant::now(),
            warm_at: length.mul_f64(WARM_UP),
            warm: false,
            next: Duration::ZERO,
            seen: BTreeMap::new(),
            alive: Vec::new(),
        }
    }

    /// Looks, if it is time to.
    pub(super) fn look(&mut self) {
        let now = self.start.elapsed();
        let warm = !self.warm && now >= self.warm_at;
        if now >= self.next || warm {
            self.next = now + Duration::from_secs(2);
            self.warm |= warm;
            self.take(warm);
        }
    }

    /// The last look, while the load still runs.
    pub(super) fn finish(&mut self) {
        self.take(false);
    }

    fn take(&mut self, warm: bool) {
        self.alive.clear();
        for (node, data) in &self.nodes {
            for pid in process::of_server(data) {
                let Some(kib) = anonymous(pid) else { continue };
                self.alive.push(pid);
                let seen = self.seen.entry(pid).or_insert_with(|| Seen {
                    node: *node,
                    kind: kind(pid),
                    warm: None,
                    last: 0,
                    peak: 0,
                });
                if warm {
                    seen.warm = Some(kib);
                }
                seen.last = kib;
                seen.peak = seen.peak.max(kib);
            }
        }
    }

    /// Prints a line per kind of process and names those that have grown.
    pub(super) fn report(&self) -> Vec<String> {
        let mut table = Table::new([
            "process",
            "number",
            "warm MiB",
            "end MiB",
            "peak MiB",
            "largest growth MiB",
        ]);
        let mut kinds: BTreeMap<(usize, &str), Vec<&Seen>> = BTreeMap::new();
        for pid in &self.alive {
            let seen = &self.seen[pid];
            kinds.entry((seen.node, &seen.kind)).or_default().push(seen);
        }
        let mib = |kib: u64| format!("{:.1}", kib as f64 / 1024.0);
        for ((node, kind), all) in &kinds {
            let growth = all.iter().filter_map(|seen| Some(seen.last.saturating_sub(seen.warm?)));
            table.row([
                format!("node {node} {kind}"),
                all.len().to_string(),
                mib(all.iter().filter_map(|seen| seen.warm).sum()),
                mib(all.iter().map(|seen| seen.last).sum()),
                mib(all.iter().map(|seen| seen.peak).max().unwrap_or(0)),
                mib(growth.max().unwrap_or(0)),
            ]);
        }
        println!("{}", table.text(""));
        self.grown()
    }

    fn grown(&self) -> Vec<String> {
        self.alive
            .iter()
            .map(|pid| &self.seen[pid])
            .filter_map(|seen| Some((seen, seen.warm?)))
            .filter(|(seen, warm)| seen.last > warm + warm / 4 + SLACK)
            .map(|(seen, warm)| {
                format!(
                    "{} of node {} has grown from {warm} to {} KiB",
                    seen.kind, seen.node, seen.last
                )
            })
            .collect()
    }
}

/// Anonymous memory of a process, in KiB.
fn anonymous(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find(|line| line.starts_with("Anonymous:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// What a process is, from the title `PostgreSQL` gives it.
fn kind(pid: i32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let title = String::from_utf8_lossy(&bytes).replace('\0', " ");
    let Some(title) = title.trim().strip_prefix("postgres: ") else {
        return "postmaster".into();
    };
    // A client backend's title names user, database and address; the others' begin with what
    // they are.
    if title.contains("127.0.0.1(") {
        let walsender = title.starts_with("walsender");
        return if walsender { "walsender" } else { "client backend" }.into();
    }
    let words =
        title.split_whitespace().take_while(|word| !word.starts_with(|c: char| c.is_ascii_digit()));
    words.collect::<Vec<_>>().join(" ")
}
