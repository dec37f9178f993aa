//! Histories of lists, after the idea of Elle: each value is appended once and a list shows its
//! whole past, so the order of versions and who read which of them need not be guessed.

use super::graph::{Graph, Why};
use super::{Anomaly, History, Report, who};
use crate::torture::history::{Body, Level, Op, Outcome, Step};
use std::collections::{BTreeMap, BTreeSet};

/// How many messages of a kind are enough.
const ENOUGH: usize = 20;

/// A transaction on lists.
struct Txn<'a> {
    op: &'a Op,
    steps: &'a [Step],
    committed: bool,
}

/// A read of others' appends: what the list held before the transaction's own.
struct Seen<'a> {
    key: u64,
    base: &'a [u64],
    /// Whether the transaction had not yet appended to it.
    pristine: bool,
}

struct Lists<'a> {
    txns: Vec<Txn<'a>>,
    /// Order of versions.
    order: BTreeMap<u64, &'a [u64]>,
    /// Who appended a value to which list: (key, value) to number of the transaction.
    writer: BTreeMap<(u64, u64), usize>,
    /// Until then the order is known to be complete.
    settled: u64,
}

pub(super) fn check(history: &History<'_>, report: &mut Report) {
    let lists = Lists::new(history);
    for txn in &lists.txns {
        for seen in lists.reads(txn, report) {
            lists.fits(txn, &seen, report);
            lists.intermediate(txn, &seen, report);
        }
        lists.unrepeatable(txn, report);
        lists.lost_update(txn, report);
    }
    lists.stale(report);
    let graph = lists.graph();
    lists.circles(&graph, report);
    lists.skew(&graph, report);
}

impl<'a> Lists<'a> {
    fn new(history: &History<'a>) -> Self {
        let last = history.quiet_points().last();
        let settled = last.map_or(0, |state| state.at);
        let mut txns: Vec<Txn<'a>> = Vec::new();
        let mut writer = BTreeMap::new();
        let mut order: BTreeMap<u64, &'a [u64]> = BTreeMap::new();
        for op in &history.ops {
            let Body::List { steps } = &op.body else {
                continue;
            };
            let mut own: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Append(key, value) => {
                        writer.insert((*key, *value), txns.len());
                        own.entry(*key).or_default().push(*value);
                    }
                    // What was read before the last quiet point must be found in it.
                    Step::Read(key, list) if op.end > settled => {
                        let mine = own.get(key).map(Vec::as_slice).unwrap_or_default();
                        // What it appended itself need never have come to be.
                        let list = match op.outcome {
                            Outcome::Acknowledged => list,
                            _ => list.strip_suffix(mine).unwrap_or(list),
                        };
                        let longest = order.entry(*key).or_default();
                        if list.len() > longest.len() {
                            *longest = list;
                        }
                    }
                    Step::Read(..) => {}
                }
            }
            txns.push(Txn { op, steps, committed: op.outcome == Outcome::Acknowledged });
        }
        // Reads after the last quiet point may have seen more than it.
        for (key, list) in last.iter().flat_map(|state| &state.lists) {
            let longest = order.entry(*key).or_default();
            if !longest.starts_with(list) {
                *longest = list;
            }
        }
        for (key, list) in &order {
            for value in *list {
                if let Some(by) = writer.get(&(*key, *value)) {
                    txns[*by].committed |= matches!(txns[*by].op.outcome, Outcome::Unknown(_));
                }
            }
        }
        Self { txns, order, writer, settled }
    }

    fn order(&self, key: u64) -> &'a [u64] {
        self.order.get(&key).copied().unwrap_or_default()
    }

    fn writer(&self, key: u64, value: u64) -> Option<usize> {
        self.writer.get(&(key, value)).copied()
    }

    /// Reads without the transaction's own appends, which must be the end of what it saw.
    fn reads(&self, txn: &Txn<'a>, report: &mut Report) -> Vec<Seen<'a>> {
        let mut own: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        let mut seen = Vec::new();
        for step in txn.steps {
            match step {
                Step::Append(key, value) => own.entry(*key).or_default().push(*value),
                Step::Read(key, list) => {
                    let mine = own.get(key).map(Vec::as_slice).unwrap_or_default();
                    let Some(base) = list.strip_suffix(mine) else {
                        let text = format!("{} appended {mine:?} and saw {list:?}", who(txn.op));
                        wrong(report, Anomaly::Internal, text);
                        continue;
                    };
                    seen.push(Seen { key: *key, base, pristine: mine.is_empty() });
                }
            }
        }
        seen
    }

    /// What was read is a beginning of what came to be.
    fn fits(&self, txn: &Txn<'a>, seen: &Seen<'a>, report: &mut Report) {
        let order = self.order(seen.key);
        let fits = order.starts_with(seen.base);
        let settled = txn.op.end <= self.settled;
        let never = |value: &u64| {
            let by = self.writer(seen.key, *value);
            by.is_none_or(|by| matches!(self.txns[by].op.outcome, Outcome::Refused(_)))
                || (settled && !fits && !order.contains(value))
        };
        let gone: Vec<u64> = seen.base.iter().copied().filter(never).collect();
        let (anomaly, what) = if !gone.is_empty() {
            (Anomaly::G1a, format!("{gone:?} never came to be"))
        } else if fits {
            return;
        } else {
            (Anomaly::Order, format!("the list became {order:?}"))
        };
        let text = format!("{} saw list {} as {:?}; {what}", who(txn.op), seen.key, seen.base);
        wrong(report, anomaly, text);
    }

    /// The last value seen is its transaction's last one in this list.
    fn intermediate(&self, txn: &Txn<'a>, seen: &Seen<'a>, report: &mut Report) {
        let Some(last) = seen.base.last() else {
            return;
        };
        let Some(by) = self.writer(seen.key, *last) else {
            return;
        };
        let writer = &self.txns[by];
        let mut values = writer.steps.iter().filter_map(|step| match step {
            Step::Append(key, value) if *key == seen.key => Some(*value),
            _ => None,
        });
        if !std::ptr::eq(writer.op, txn.op) && values.next_back() != Some(*last) {
            let text = format!(
                "{} saw list {} end with {last}, in the middle of {}",
                who(txn.op),
                seen.key,
                who(writer.op)
            );
            wrong(report, Anomaly::G1b, text);
        }
    }

    /// A REPEATABLE READ transaction sees one state of each list.
    fn unrepeatable(&self, txn: &Txn<'a>, report: &mut Report) {
        if txn.op.level != Level::RepeatableRead {
            return;
        }
        let mut first: BTreeMap<u64, &[u64]> = BTreeMap::new();
        for seen in self.reads(txn, &mut Report::default()) {
            let one = *first.entry(seen.key).or_insert(seen.base);
            if one != seen.base {
                let text = format!(
                    "{} saw list {} as {one:?} and as {:?}",
                    who(txn.op),
                    seen.key,
                    seen.base
                );
                wrong(report, Anomaly::Unrepeatable, text);
            }
        }
    }

    /// A REPEATABLE READ transaction that read a list and then appended to it did so to what it read.
    fn lost_update(&self, txn: &Txn<'a>, report: &mut Report) {
        if txn.op.level != Level::RepeatableRead || !txn.committed {
            return;
        }
        for seen in self.reads(txn, &mut Report::default()) {
            let mine = txn.steps.iter().find_map(|step| match step {
                Step::Append(key, value) if *key == seen.key => Some(*value),
                _ => None,
            });
            let order = self.order(seen.key);
            let Some(at) = mine.and_then(|mine| order.iter().position(|value| *value == mine))
            else {
                continue;
            };
            if seen.pristine && order.get(..at) != Some(seen.base) {
                let text = format!(
                    "{} saw list {} as {:?} and appended to {:?}",
                    who(txn.op),
                    seen.key,
                    seen.base,
                    &order[..at]
                );
                wrong(report, Anomaly::LostUpdate, text);
            }
        }
    }

    /// A read shows what was acknowledged before it began, on whatever node (specs/adr/0118).
    fn stale(&self, report: &mut Report) {
        for txn in &self.txns {
            for seen in self.reads(txn, &mut Report::default()) {
                let missing = self.order(seen.key).get(seen.base.len()..);
                let age = missing.unwrap_or_default().iter().filter_map(|value| {
                    let by = self.writer(seen.key, *value)?;
                    let op = self.txns[by].op;
                    let told = op.outcome == Outcome::Acknowledged && op.end < txn.op.begin;
                    told.then(|| (txn.op.begin - op.end, *value, op))
                });
                if let Some((age, value, op)) = age.max_by_key(|(age, ..)| *age) {
                    let text = format!(
                        "{} did not see {value} in list {} of {}, acknowledged {} ms before",
                        who(txn.op),
                        seen.key,
                        who(op),
                        age / 1000
                    );
                    wrong(report, Anomaly::Stale, text);
                }
            }
        }
    }

    fn graph(&self) -> Graph {
        let mut graph = Graph::new(self.txns.len());
        for (key, order) in &self.order {
            for pair in order.windows(2) {
                if let (Some(from), Some(to)) =
                    (self.writer(*key, pair[0]), self.writer(*key, pair[1]))
                {
                    graph.add(from, to, Why::Overwritten);
                }
            }
        }
        for (number, txn) in self.txns.iter().enumerate() {
            if !txn.committed {
                continue;
            }
            for seen in self.reads(txn, &mut Report::default()) {
                let last = seen.base.last();
                if let Some(from) = last.and_then(|value| self.writer(seen.key, *value)) {
                    graph.add(from, number, Why::Read);
                }
            }
        }
        graph
    }

    fn circles(&self, graph: &Graph, report: &mut Report) {
        let names = |group: &[usize]| {
            let ops = group.iter().take(5).map(|n| who(self.txns[*n].op));
            ops.collect::<Vec<_>>().join(" -> ")
        };
        for group in graph.cycles(&[Why::Overwritten]) {
            wrong(report, Anomaly::G0, names(&group));
        }
        for group in graph.cycles(&[Why::Overwritten, Why::Read]) {
            if graph.holds(&group, Why::Read) {
                wrong(report, Anomaly::G1c, names(&group));
            }
        }
    }

    /// A REPEATABLE READ transaction that did not see X, but saw what came after X.
    fn skew(&self, graph: &Graph, report: &mut Report) {
        for (number, txn) in self.txns.iter().enumerate() {
            if txn.op.level != Level::RepeatableRead || !txn.committed {
                continue;
            }
            let missed: BTreeSet<usize> = self
                .reads(txn, &mut Report::default())
                .iter()
                .filter_map(|seen| {
                    let next = self.order(seen.key).get(seen.base.len())?;
                    self.writer(seen.key, *next)
                })
                .filter(|by| *by != number)
                .collect();
            for from in missed {
                self.skew_from(graph, from, number, report);
            }
        }
    }

    fn skew_from(&self, graph: &Graph, from: usize, number: usize, report: &mut Report) {
        let txn = &self.txns[number];
        let node = txn.op.node;
        if let Some(path) = self.path(graph, from, number, Some(node)) {
            let ops = path.iter().map(|n| who(self.txns[*n].op));
            let text = ops.collect::<Vec<_>>().join(" -> ");
            wrong(report, Anomaly::GSingle, format!("not seen, but what followed: {text}"));
        } else if let Some(path) = self.path(graph, from, number, None) {
            let op = self.txns[path[0]].op;
            report.note(
                "effects seen before causes read on another node",
                txn.op.end.saturating_sub(op.end),
                || format!("{} and {}", who(op), who(txn.op)),
            );
        }
    }

    /// The shortest way from `from` to `to`. With a node: only by what puts commits in order on
    /// that node, which is overwriting, and reading on that node itself.
    fn path(
        &self,
        graph: &Graph,
        from: usize,
        to: usize,
        node: Option<usize>,
    ) -> Option<Vec<usize>> {
        let begin = self.txns[from].op.begin;
        let end = self.txns[to].op.end;
        let mut came: BTreeMap<usize, usize> = BTreeMap::new();
        let mut queue = std::collections::VecDeque::from([from]);
        while let Some(at) = queue.pop_front() {
            if at == to {
                let mut path = vec![to];
                while let Some(before) = path.last().and_then(|last| came.get(last)) {
                    path.push(*before);
                    if *before == from {
                        break;
                    }
                }
                path.reverse();
                return Some(path);
            }
            for (next, why) in graph.after(at) {
                let op = self.txns[next].op;
                let here = match why {
                    Why::Overwritten => true,
                    Why::Read => node.is_none_or(|node| op.node == node),
                };
                // Whatever lies on the way ran between the two.
                let between = op.begin <= end && op.end >= begin;
                if here && between && next != from && !came.contains_key(&next) {
                    came.insert(next, at);
                    queue.push_back(next);
                }
            }
        }
        None
    }
}

fn wrong(report: &mut Report, anomaly: Anomaly, text: String) {
    let same = |violation: &&super::Violation| violation.anomaly == anomaly;
    if report.violations.iter().filter(same).count() < ENOUGH {
        report.wrong(anomaly, text);
    }
}
