//! The checker: what a history proves to be wrong. Pure code, no clock and no server.
//!
//! | asked | by |
//! |---|---|
//! | no acknowledged write missing, no refused write present, whole transactions only | [`writes`] |
//! | money neither made nor lost, in every snapshot | [`bank`] |
//! | the anomalies that snapshot isolation excludes | [`lists`] |
//! | all nodes equal | [`writes`] |
//!
//! Which anomalies are excluded, and why just these, is in `docs/torture.md`.

pub mod bank;
pub mod graph;
pub mod lists;
#[cfg(test)]
mod tests;
pub mod writes;

use super::history::{Op, Record, Start, State};
use std::collections::BTreeMap;
use std::fmt;

/// What can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Anomaly {
    /// An acknowledged write is not there.
    Lost,
    /// A refused write is there, or one that nobody made.
    Phantom,
    /// Part of a transaction is there and part is not.
    Torn,
    /// One value is there twice.
    Twice,
    /// Two acknowledged inserts of one unique key.
    TwoWinners,
    /// What was there at one quiet point is gone at the next, or the other way round.
    Unsettled,
    /// Nodes differ at a quiet point.
    NodesDiffer,
    /// A sum of all accounts, or the balances at a quiet point, are wrong.
    WrongSum,
    /// Two reads saw one list in orders that do not fit together.
    Order,
    /// A transaction did not see its own writes.
    Internal,
    /// A read did not show what was acknowledged before it began.
    Stale,
    /// Two snapshots in one REPEATABLE READ transaction.
    Unrepeatable,
    /// Dirty write: a cycle of overwritings.
    G0,
    /// Aborted read.
    G1a,
    /// Intermediate read.
    G1b,
    /// Circular information flow.
    G1c,
    /// A REPEATABLE READ transaction overwrote what it had not seen.
    LostUpdate,
    /// Read skew: a cycle with exactly one anti-dependency.
    GSingle,
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lost => "acknowledged write missing",
            Self::Phantom => "refused or unknown write present",
            Self::Torn => "part of a transaction present",
            Self::Twice => "value present twice",
            Self::TwoWinners => "unique key acknowledged twice",
            Self::Unsettled => "changed between quiet points",
            Self::NodesDiffer => "nodes differ",
            Self::WrongSum => "wrong sum",
            Self::Order => "incompatible orders",
            Self::Internal => "own write not seen",
            Self::Stale => "stale read",
            Self::Unrepeatable => "unrepeatable read",
            Self::G0 => "G0 (dirty write)",
            Self::G1a => "G1a (aborted read)",
            Self::G1b => "G1b (intermediate read)",
            Self::G1c => "G1c (circular information flow)",
            Self::LostUpdate => "lost update",
            Self::GSingle => "G-single (read skew)",
        })
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Its kind.
    pub anomaly: Anomaly,
    /// Where, in words.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.anomaly, self.text)
    }
}

/// What a history proves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What is wrong.
    pub violations: Vec<Violation>,
    /// What is allowed but worth knowing, by name.
    pub notes: BTreeMap<&'static str, Note>,
}

/// What is allowed but worth knowing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Note {
    /// How often it was seen.
    pub count: u64,
    /// How bad the worst was, in microseconds.
    pub worst: u64,
    /// Which that was.
    pub example: String,
}

impl Report {
    fn wrong(&mut self, anomaly: Anomaly, text: String) {
        self.violations.push(Violation { anomaly, text });
    }

    fn note(&mut self, name: &'static str, size: u64, example: impl FnOnce() -> String) {
        let note = self.notes.entry(name).or_default();
        note.count += 1;
        if note.count == 1 || size > note.worst {
            note.worst = size;
            note.example = example();
        }
    }
}

/// A history, sorted out.
#[derive(Debug)]
pub struct History<'a> {
    /// How it began.
    pub start: &'a Start,
    /// The transactions.
    pub ops: Vec<&'a Op>,
    /// The states; those of one quiet point follow each other.
    pub states: Vec<&'a State>,
}

impl<'a> History<'a> {
    /// Sorts records; nothing if there is no beginning.
    #[must_use]
    pub fn new(records: &'a [Record]) -> Option<Self> {
        let start = records.iter().find_map(|record| match record {
            Record::Start(start) => Some(start),
            _ => None,
        })?;
        let (mut ops, mut states) = (Vec::new(), Vec::new());
        for record in records {
            match record {
                Record::Op(op) => ops.push(op),
                Record::State(state) => states.push(state),
                Record::Start(_) | Record::Fault(_) => {}
            }
        }
        Some(Self { start, ops, states })
    }

    /// The first node's state at each quiet point.
    pub fn quiet_points(&self) -> impl Iterator<Item = &'a State> {
        let first = self.states.first().map(|state| state.node);
        self.states.iter().copied().filter(move |state| Some(state.node) == first)
    }
}

/// For messages: who did it, where and when.
fn who(op: &Op) -> String {
    format!(
        "client {} on node {} ({:.3} s to {:.3} s, {:?})",
        op.client,
        op.node,
        op.begin as f64 / 1e6,
        op.end as f64 / 1e6,
        op.outcome
    )
}

/// Checks a whole history.
#[must_use]
pub fn check(records: &[Record]) -> Report {
    let mut report = Report::default();
    if let Some(history) = History::new(records) {
        writes::check(&history, &mut report);
        bank::check(&history, &mut report);
        lists::check(&history, &mut report);
    }
    report
}
