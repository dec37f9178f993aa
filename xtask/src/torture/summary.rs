//! What a run was like, for people.

use super::history::{Op, Outcome, Record};
use crate::table::Table;
use std::collections::BTreeMap;

/// The longest time, in microseconds, in which no write was acknowledged on any node between
/// `from` and `to`.
#[must_use]
pub fn outage(records: &[Record], from: u64, to: u64) -> u64 {
    let mut acknowledged: Vec<u64> = operations(records)
        .filter(|op| op.outcome == Outcome::Acknowledged && op.body.writes())
        .map(|op| op.end)
        .filter(|end| (from..to).contains(end))
        .collect();
    acknowledged.push(to);
    acknowledged.sort_unstable();
    let mut last = from;
    let mut longest = 0;
    for end in acknowledged {
        longest = longest.max(end - last);
        last = end;
    }
    longest
}

fn operations(records: &[Record]) -> impl Iterator<Item = &Op> {
    records.iter().filter_map(|record| match record {
        Record::Op(op) => Some(op),
        Record::Start(_) | Record::Fault(_) | Record::State(_) => None,
    })
}

#[derive(Default)]
struct Row {
    acknowledged: u64,
    refused: u64,
    unknown: u64,
    worst: u64,
}

/// How the clients' transactions ended.
#[must_use]
pub fn clients(records: &[Record]) -> String {
    let mut rows: BTreeMap<&str, Row> = BTreeMap::new();
    let mut why: BTreeMap<String, u64> = BTreeMap::new();
    for op in operations(records) {
        let row = rows.entry(op.body.kind()).or_default();
        match &op.outcome {
            Outcome::Acknowledged => {
                row.acknowledged += 1;
                row.worst = row.worst.max(op.end - op.begin);
            }
            Outcome::Refused(state) => {
                row.refused += 1;
                *why.entry(state.clone()).or_default() += 1;
            }
            Outcome::Unknown(what) => {
                row.unknown += 1;
                // One line for all transactions.
                let words = what.split_whitespace().filter(|word| !word.starts_with("MTM-"));
                let what: String = words.collect::<Vec<_>>().join(" ").chars().take(60).collect();
                *why.entry(format!("unknown ({what})")).or_default() += 1;
            }
        }
    }
    let mut table = Table::new(["transaction", "committed", "refused", "unknown", "slowest ms"]);
    for (kind, row) in rows {
        table.row([
            kind.to_owned(),
            row.acknowledged.to_string(),
            row.refused.to_string(),
            row.unknown.to_string(),
            (row.worst / 1000).to_string(),
        ]);
    }
    let why: Vec<String> = why.iter().map(|(what, n)| format!("{what} {n}")).collect();
    format!("{}\nNot committed: {}\n", table.text(""), why.join(", "))
}

/// What the faults did.
#[must_use]
pub fn faults(records: &[Record]) -> String {
    let mut rows: BTreeMap<&str, (u64, u64, Vec<u64>)> = BTreeMap::new();
    for record in records {
        let Record::Fault(fault) = record else {
            continue;
        };
        let row = rows.entry(&fault.kind).or_default();
        row.0 += 1;
        let end = fault.rejoined.unwrap_or(fault.healed);
        row.1 = row.1.max(outage(records, fault.begin, end.max(fault.begin)));
        row.2.extend(fault.rejoined.map(|at| at - fault.healed));
    }
    let mut table = Table::new([
        "fault",
        "count",
        "longest write outage s",
        "rejoin median s",
        "rejoin worst s",
    ]);
    let seconds = |us: u64| format!("{:.2}", us as f64 / 1e6);
    for (kind, (count, outage, mut rejoins)) in rows {
        rejoins.sort_unstable();
        let at = |i: usize| rejoins.get(i).map_or_else(|| "-".into(), |us| seconds(*us));
        table.row([
            kind.to_owned(),
            count.to_string(),
            seconds(outage),
            at(rejoins.len() / 2),
            at(rejoins.len().saturating_sub(1)),
        ]);
    }
    table.text("")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torture::history::{Body, Level};

    #[test]
    fn outage_is_the_longest_gap_between_acknowledged_writes() {
        let op = |end, outcome, writes| {
            let body = if writes {
                Body::Unique { key: 1, token: end }
            } else {
                Body::Sum { totals: vec![] }
            };
            Record::Op(Op {
                client: 1,
                node: 1,
                begin: end - 1,
                end,
                level: Level::ReadCommitted,
                outcome,
                body,
            })
        };
        let records = [
            op(10, Outcome::Acknowledged, true),
            op(30, Outcome::Refused("57P03".into()), true),
            op(35, Outcome::Acknowledged, false),
            op(60, Outcome::Acknowledged, true),
        ];
        assert_eq!(outage(&records, 0, 70), 50);
        assert_eq!(outage(&records, 20, 50), 30);
        assert_eq!(outage(&[], 20, 50), 30);
    }
}
