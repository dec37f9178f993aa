//! Money: sums in every snapshot, and balances that follow from the ledger.

use super::{Anomaly, History, Report, who};
use crate::torture::history::Body;
use std::collections::BTreeMap;

pub(super) fn check(history: &History<'_>, report: &mut Report) {
    let start = history.start;
    let right = start.balance * i64::try_from(start.accounts).unwrap_or(i64::MAX);
    let mut transfers = BTreeMap::new();
    for op in &history.ops {
        match &op.body {
            // A read is a read even if its transaction ended badly later.
            Body::Sum { totals } => {
                for total in totals.iter().filter(|total| **total != right) {
                    report.wrong(
                        Anomaly::WrongSum,
                        format!("{} saw {total} instead of {right}", who(op)),
                    );
                }
            }
            Body::Transfer { token, from, to, amount, .. } => {
                transfers.insert(*token, (*from, *to, *amount));
            }
            Body::List { .. } | Body::Unique { .. } | Body::Schema { .. } => {}
        }
    }
    for state in &history.states {
        let mut expected = vec![start.balance; start.accounts];
        for (from, to, amount) in state.ledger.iter().filter_map(|token| transfers.get(token)) {
            expected[*from] -= amount;
            expected[*to] += amount;
        }
        if expected != state.balances {
            report.wrong(
                Anomaly::WrongSum,
                format!(
                    "balances on node {} at {:.3} s are {:?}, the ledger makes {expected:?}",
                    state.node,
                    state.at as f64 / 1e6,
                    state.balances
                ),
            );
        }
    }
}
