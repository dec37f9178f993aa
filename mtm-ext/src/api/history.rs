//! `mtm.generations`: the generations this node has been in, in a small text file beside the data.
//!
//! The file is for people: it is bounded, not synced, and a line that cannot be read is left out.
//!
//! ```text
//! 7 1790000000000000 {1,2} {1,2} {1,2,3} node 3 left: no connection to node 3
//! number, microseconds since 1970, members, donors, configured nodes, why
//! ```

use super::view::numbers;
use crate::cluster;
use crate::pg::sqlrun;
use core::cell::Cell;
use mtm_core::{GenNum, NodeId, NodeSet};
use mtm_generations::{Configuration, Elected, Generation};
use pgrx::prelude::*;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// Generations that are kept.
const KEPT: usize = 1000;

thread_local! {
    /// Number of the last generation that this process has noted.
    static NOTED: Cell<u64> = const { Cell::new(0) };
}

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    elected: Elected,
    at_us: u64,
    why: String,
}

impl Entry {
    fn line(&self) -> String {
        let Generation { num, members, configured } = self.elected.generation;
        let why = self.why.replace(['\n', '\r'], " ");
        let (donors, at) = (self.elected.donors, self.at_us);
        format!("{num} {at} {members} {donors} {} {why}\n", configured.nodes)
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(6, ' ');
        let num = GenNum(words.next()?.parse().ok()?);
        let at_us = words.next()?.parse().ok()?;
        let members = parse_set(words.next()?)?;
        let donors = parse_set(words.next()?)?;
        let configured = Configuration::initial(parse_set(words.next()?)?);
        let why = words.next()?.to_owned();
        let generation = Generation { num, members, configured };
        Some(Self { elected: Elected { generation, donors }, at_us, why })
    }
}

fn parse_set(text: &str) -> Option<NodeSet> {
    let inner = text.strip_prefix('{')?.strip_suffix('}')?;
    if inner.is_empty() {
        return Some(NodeSet::EMPTY);
    }
    inner.split(',').map(|id| id.parse().ok().and_then(NodeId::new)).collect()
}

fn path() -> PathBuf {
    sqlrun::data_directory().join("multimaster").join("history")
}

fn read() -> Vec<Entry> {
    let text = fs::read(path()).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().filter_map(Entry::parse).collect()
}

/// Notes that this node is in this generation from now on, if that is new. For the one process
/// that makes generations durable. A file that cannot be written is no reason to stop.
pub fn note(elected: &Elected) {
    let num = elected.generation.num.0;
    if NOTED.replace(num) >= num {
        return;
    }
    let before = read().into_iter().last();
    if before.as_ref().is_none_or(|before| before.elected.generation.num.0 < num) {
        append(elected, &why(before.as_ref().map(|before| &before.elected), elected));
    }
}

/// What has changed from one generation to a later one, in words.
fn why(before: Option<&Elected>, after: &Elected) -> String {
    let Some(before) = before else { return "the first one known here".to_owned() };
    let (old, new) = (before.generation.members, after.generation.members);
    let left = old.difference(new).iter().map(|node| {
        let me = crate::pg::shmem::header().me();
        let reason = (Some(node) != me && cluster::heard_until(node).is_none())
            .then(|| cluster::why_not_connected(node));
        reason.map_or_else(|| format!("node {node} left"), |r| format!("node {node} left: {r}"))
    });
    let joined = new.difference(old).iter().map(|node| format!("node {node} joined"));
    let changes: Vec<String> = left.chain(joined).collect();
    if changes.is_empty() {
        "the same members begin anew, after a restart or an unsuccessful election".to_owned()
    } else {
        changes.join("; ")
    }
}

/// Adds a generation to the history.
pub fn append(elected: &Elected, why: &str) {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let at_us = u64::try_from(since_1970.as_micros()).unwrap_or(u64::MAX);
    let entry = Entry { elected: *elected, at_us, why: why.to_owned() };
    if let Err(error) = try_append(&entry) {
        pgrx::warning!("could not write the history of generations: {error}");
    }
}

fn try_append(entry: &Entry) -> io::Result<()> {
    let file = path();
    if let Some(directory) = file.parent() {
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    let entries = read();
    // Rewritten now and then, not each time.
    if entries.len() >= 2 * KEPT {
        let kept = &entries[entries.len() - KEPT..];
        let text: String = kept.iter().map(Entry::line).collect();
        let new = file.with_extension("new");
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?
            .write_all(text.as_bytes())?;
        fs::rename(new, &file)?;
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&file)?
        .write_all(entry.line().as_bytes())
}

/// Generations this node has been in, the newest ones.
#[pg_extern]
#[allow(clippy::type_complexity, reason = "pgrx wants the columns spelled out")]
fn generation_history() -> TableIterator<
    'static,
    (
        name!(num, i64),
        name!(members, Vec<i32>),
        name!(donors, Vec<i32>),
        name!(configured, Vec<i32>),
        name!(since, f64),
        name!(why, String),
    ),
> {
    super::require_preload();
    let entries = read();
    let newest = entries.len().saturating_sub(KEPT);
    let rows: Vec<_> = entries
        .into_iter()
        .skip(newest)
        .map(|entry| {
            let Generation { num, members, configured } = entry.elected.generation;
            (
                num.0 as i64,
                numbers(members),
                numbers(entry.elected.donors),
                numbers(configured.nodes),
                entry.at_us as f64 / 1e6,
                entry.why,
            )
        })
        .collect();
    TableIterator::new(rows)
}
