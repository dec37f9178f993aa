//! Presence: what was acknowledged is there, what was refused is not, everywhere and for good.

use super::{Anomaly, History, Report, who};
use crate::torture::history::{Body, Op, Outcome, State, Step};
use std::collections::{BTreeMap, BTreeSet};

/// How many messages of a kind are enough.
const ENOUGH: usize = 20;

pub(super) fn check(history: &History<'_>, report: &mut Report) {
    equal_nodes(history, report);
    let mut before: Option<(u64, Vec<Presence>)> = None;
    for state in history.quiet_points() {
        let held = Held::new(state, report);
        let now: Vec<Presence> = history
            .ops
            .iter()
            .take_while(|op| op.end <= state.at)
            .map(|op| held.presence(op))
            .collect();
        for (number, (op, presence)) in history.ops.iter().zip(&now).enumerate() {
            let was = before.as_ref().and_then(|(_, old)| old.get(number));
            judge(op, *presence, was.copied(), state, report);
        }
        nobody_wrote(history, state, report);
        before = Some((state.at, now));
    }
    winners(history, report);
}

fn equal_nodes(history: &History<'_>, report: &mut Report) {
    let mut first: Option<&State> = None;
    for state in &history.states {
        match first {
            Some(one) if one.node != state.node => {
                let differences = differences(one, state);
                if !differences.is_empty() {
                    report.wrong(
                        Anomaly::NodesDiffer,
                        format!(
                            "nodes {} and {} at {:.3} s: {}",
                            one.node,
                            state.node,
                            state.at as f64 / 1e6,
                            differences.join("; ")
                        ),
                    );
                }
            }
            _ => first = Some(state),
        }
    }
}

fn differences(one: &State, two: &State) -> Vec<String> {
    let mut found = Vec::new();
    if one.balances != two.balances {
        found.push(format!("balances {:?} / {:?}", one.balances, two.balances));
    }
    let tokens = |state: &State| state.ledger.iter().copied().collect::<BTreeSet<u64>>();
    let missing = |a: &BTreeSet<u64>, b: &BTreeSet<u64>| a.difference(b).copied().collect();
    let (a, b) = (tokens(one), tokens(two));
    if a != b || one.ledger.len() != two.ledger.len() {
        let (left, right): (Vec<u64>, Vec<u64>) = (missing(&a, &b), missing(&b, &a));
        found.push(format!("ledger, only in one {left:?}, only in the other {right:?}"));
    }
    let keys: BTreeSet<&u64> = one.lists.keys().chain(two.lists.keys()).collect();
    for key in keys {
        let (a, b) = (one.lists.get(key), two.lists.get(key));
        if a != b {
            found.push(format!("list {key} {a:?} / {b:?}"));
        }
    }
    let keys: BTreeSet<&u64> = one.uniques.keys().chain(two.uniques.keys()).collect();
    for key in keys {
        let (a, b) = (one.uniques.get(key), two.uniques.get(key));
        if a != b {
            found.push(format!("unique key {key} {a:?} / {b:?}"));
        }
    }
    if one.tables != two.tables {
        found.push(format!("tables {:?} / {:?}", one.tables, two.tables));
    }
    found
}

/// How much of a transaction's writes is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Nothing,
    Part,
    All,
    /// It wrote nothing.
    NoWrites,
}

struct Held<'a> {
    state: &'a State,
    ledger: BTreeSet<u64>,
    appended: BTreeSet<(u64, u64)>,
    tables: BTreeSet<&'a str>,
}

impl<'a> Held<'a> {
    fn new(state: &'a State, report: &mut Report) -> Self {
        let mut twice = |what: String| {
            let at = state.at as f64 / 1e6;
            let text = format!("{what} on node {} at {at:.3} s", state.node);
            report.wrong(Anomaly::Twice, text);
        };
        let mut held = Self {
            state,
            ledger: BTreeSet::new(),
            appended: BTreeSet::new(),
            tables: state.tables.iter().map(String::as_str).collect(),
        };
        for token in &state.ledger {
            if !held.ledger.insert(*token) {
                twice(format!("token {token} in the ledger"));
            }
        }
        for (key, list) in &state.lists {
            for value in list {
                if !held.appended.insert((*key, *value)) {
                    twice(format!("value {value} in list {key}"));
                }
            }
        }
        held
    }

    fn presence(&self, op: &Op) -> Presence {
        let one = |there: bool| {
            if there { Presence::All } else { Presence::Nothing }
        };
        match &op.body {
            Body::Transfer { token, .. } => one(self.ledger.contains(token)),
            Body::Sum { .. } => Presence::NoWrites,
            Body::Unique { key, token } => one(self.state.uniques.get(key) == Some(token)),
            Body::Schema { table } => one(self.tables.contains(table.as_str())),
            Body::List { steps } => {
                let there: Vec<bool> = steps
                    .iter()
                    .filter_map(|step| match step {
                        Step::Append(key, value) => Some(self.appended.contains(&(*key, *value))),
                        Step::Read(..) => None,
                    })
                    .collect();
                match there.iter().filter(|there| **there).count() {
                    _ if there.is_empty() => Presence::NoWrites,
                    0 => Presence::Nothing,
                    n if n == there.len() => Presence::All,
                    _ => Presence::Part,
                }
            }
        }
    }
}

fn judge(op: &Op, now: Presence, was: Option<Presence>, state: &State, report: &mut Report) {
    let at = format!("at the quiet point at {:.3} s", state.at as f64 / 1e6);
    let what = format!("{}: {:?}", who(op), op.body);
    let anomaly = match (&op.outcome, now, was) {
        (_, Presence::NoWrites, _) => return,
        (_, Presence::Part, _) => Anomaly::Torn,
        (_, _, Some(was)) if was != now => Anomaly::Unsettled,
        // Told at the quiet point before.
        (_, _, Some(_)) => return,
        (Outcome::Acknowledged, Presence::Nothing, _) => Anomaly::Lost,
        (Outcome::Refused(_), Presence::All, _) => Anomaly::Phantom,
        _ => return,
    };
    if count(report, anomaly) < ENOUGH {
        report.wrong(anomaly, format!("{what}, {at}"));
    }
}

fn count(report: &Report, anomaly: Anomaly) -> usize {
    let same = |violation: &&super::Violation| violation.anomaly == anomaly;
    report.violations.iter().filter(same).count()
}

/// Everything that is there was written by somebody.
fn nobody_wrote(history: &History<'_>, state: &State, report: &mut Report) {
    let mut tokens = BTreeSet::new();
    let mut appended = BTreeSet::new();
    let mut inserted = BTreeSet::new();
    for op in &history.ops {
        match &op.body {
            Body::Transfer { token, .. } => {
                tokens.insert(*token);
            }
            Body::Unique { key, token } => {
                inserted.insert((*key, *token));
            }
            Body::List { steps } => {
                appended.extend(steps.iter().filter_map(|step| match step {
                    Step::Append(key, value) => Some((*key, *value)),
                    Step::Read(..) => None,
                }));
            }
            Body::Sum { .. } | Body::Schema { .. } => {}
        }
    }
    let mut found: Vec<String> = Vec::new();
    let ledger = state.ledger.iter().filter(|token| !tokens.contains(token));
    found.extend(ledger.map(|token| format!("token {token} in the ledger")));
    let uniques = state.uniques.iter();
    let uniques = uniques.filter(|(key, token)| !inserted.contains(&(**key, **token)));
    found.extend(uniques.map(|(key, token)| format!("unique key {key} with {token}")));
    for (key, list) in &state.lists {
        let strange = list.iter().filter(|value| !appended.contains(&(*key, **value)));
        found.extend(strange.map(|value| format!("value {value} in list {key}")));
    }
    for what in found.into_iter().take(ENOUGH) {
        report.wrong(Anomaly::Phantom, format!("{what}, which nobody wrote"));
    }
}

/// Rows with a unique key are never deleted: at most one insert of a key is acknowledged.
fn winners(history: &History<'_>, report: &mut Report) {
    let mut winner: BTreeMap<u64, &Op> = BTreeMap::new();
    for op in &history.ops {
        if let (Body::Unique { key, .. }, Outcome::Acknowledged) = (&op.body, &op.outcome)
            && let Some(other) = winner.insert(*key, op)
        {
            let text = format!("key {key} by {} and by {}", who(other), who(op));
            report.wrong(Anomaly::TwoWinners, text);
        }
    }
}
