//! What happened, as the clients and the driver saw it: one JSON object per line.
//!
//! Times are microseconds since the run began, on one clock. An operation is recorded when its
//! outcome is known to its client, so lines are in order of the ends.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

/// Isolation level of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Level {
    /// READ COMMITTED: a snapshot per statement.
    #[serde(rename = "rc")]
    ReadCommitted,
    /// REPEATABLE READ: a snapshot per transaction.
    #[serde(rename = "rr")]
    RepeatableRead,
}

/// What its client knows of the end of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// COMMIT was answered: it has happened.
    Acknowledged,
    /// An error whose SQLSTATE says that it has not happened and will not, or the loss of the
    /// connection before COMMIT was sent.
    Refused(String),
    /// 08xxx, no answer or no connection after COMMIT was sent: either.
    Unknown(String),
}

/// One step of a transaction on lists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Appended `(key, value)`; no value is appended twice in a run.
    Append(u64, u64),
    /// Read `key` and saw these values.
    Read(u64, Vec<u64>),
}

/// What a transaction did, as far as it got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Body {
    /// Moved money and wrote `token` into the ledger.
    Transfer {
        /// Unique in the run.
        token: u64,
        /// The account that pays.
        from: usize,
        /// The account that gets.
        to: usize,
        /// How much.
        amount: i64,
        /// With PREPARE TRANSACTION and COMMIT PREPARED.
        #[serde(default)]
        two_phase: bool,
    },
    /// Saw these sums of all accounts, each in one snapshot.
    Sum {
        /// In order of the statements; equal within a REPEATABLE READ transaction as all are.
        totals: Vec<i64>,
    },
    /// Appended to lists and read them.
    List {
        /// In order.
        steps: Vec<Step>,
    },
    /// Inserted `(key, token)`; key is unique in the table.
    Unique {
        /// Several clients try the same.
        key: u64,
        /// Unique in the run.
        token: u64,
    },
    /// Made a table, maybe among other changes of the schema.
    Schema {
        /// The table's name, unique in the run.
        table: String,
    },
}

impl Body {
    /// Its kind in one word.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Transfer { two_phase: true, .. } => "two-phase transfer",
            Self::Transfer { .. } => "transfer",
            Self::Sum { .. } => "sum",
            Self::List { steps } => {
                let writes = |step: &Step| matches!(step, Step::Append(..));
                if steps.iter().any(writes) { "append" } else { "list read" }
            }
            Self::Unique { .. } => "unique insert",
            Self::Schema { .. } => "schema",
        }
    }

    /// Whether it writes.
    #[must_use]
    pub fn writes(&self) -> bool {
        !matches!(self.kind(), "sum" | "list read")
    }
}

/// One transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Op {
    /// Which client.
    pub client: u32,
    /// The node it is connected to.
    pub node: usize,
    /// When it began.
    pub begin: u64,
    /// When its outcome was known.
    pub end: u64,
    /// Isolation level.
    pub level: Level,
    /// How it ended.
    pub outcome: Outcome,
    /// What it did.
    pub body: Body,
}

/// Everything a node holds at a quiet point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct State {
    /// When it was read; nothing ran.
    pub at: u64,
    /// Which node.
    pub node: usize,
    /// Balance of each account.
    pub balances: Vec<i64>,
    /// Tokens in the ledger.
    pub ledger: Vec<u64>,
    /// Lists by key.
    pub lists: BTreeMap<u64, Vec<u64>>,
    /// Tokens by unique key.
    pub uniques: BTreeMap<u64, u64>,
    /// Tables that clients made.
    pub tables: Vec<String>,
}

/// One fault, from its beginning until everything was as before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Its kind.
    pub kind: String,
    /// Where and how long.
    pub detail: String,
    /// When it began.
    pub begin: u64,
    /// When its cause was taken away.
    pub healed: u64,
    /// When every node was online and wrote again; nothing if that did not happen.
    pub rejoined: Option<u64>,
}

/// What the accounts hold at the beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The run's seed.
    pub seed: u64,
    /// How many nodes.
    pub nodes: usize,
    /// How many accounts.
    pub accounts: usize,
    /// What each holds.
    pub balance: i64,
}

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Record {
    /// The first.
    Start(Start),
    /// A transaction.
    Op(Op),
    /// A fault.
    Fault(Fault),
    /// A node at a quiet point; the states of one quiet point follow each other.
    State(State),
}

/// Writes the history down while it happens.
#[derive(Debug)]
pub struct Recorder {
    start: Instant,
    inner: Mutex<(BufWriter<std::fs::File>, Vec<Record>)>,
}

impl Recorder {
    /// Begins a history in `file`.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(file: &Path) -> Result<Self> {
        let out = std::fs::File::create(file)
            .with_context(|| format!("cannot create {}", file.display()))?;
        Ok(Self { start: Instant::now(), inner: Mutex::new((BufWriter::new(out), Vec::new())) })
    }

    /// Microseconds since the run began.
    #[must_use]
    pub fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Adds a record.
    ///
    /// # Panics
    /// When the history cannot be written: without it the run is worth nothing.
    pub fn add(&self, record: Record) {
        let line = serde_json::to_string(&record).expect("records are plain data");
        let mut inner = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        writeln!(inner.0, "{line}").expect("the history can be written");
        inner.1.push(record);
    }

    /// All records so far; they are in the file, too.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        let mut inner = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let _ = inner.0.flush();
        inner.1.clone()
    }
}

/// Reads a history.
///
/// # Errors
/// When the file cannot be read or is no history.
pub fn load(file: &Path) -> Result<Vec<Record>> {
    let input =
        std::fs::File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    let mut records = Vec::new();
    for (number, line) in BufReader::new(input).lines().enumerate() {
        let record = serde_json::from_str(&line?)
            .with_context(|| format!("{}, line {}", file.display(), number + 1))?;
        records.push(record);
    }
    Ok(records)
}
