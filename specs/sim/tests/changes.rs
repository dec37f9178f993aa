//! Nodes that are added and dropped, in histories written by hand.

use mtm_sim::{Change, Coverage, Fault, Flavour, Plan, Shape, Slowness, Transaction, run};

fn commits(node: usize, from_ms: u64, until_ms: u64) -> impl Iterator<Item = Transaction> {
    (from_ms..until_ms).step_by(20).map(move |ms| Transaction {
        at_us: ms * 1_000,
        node,
        keys: vec![(ms / 20 % 200) as u8],
        think_us: 200,
        patience_us: 400_000,
        user: None,
    })
}

fn history(
    initial: usize,
    changes: &[(u64, Change)],
    faults: &[(u64, Fault)],
    transactions: Vec<Transaction>,
) -> Coverage {
    let mut plan = Plan::flavoured(2, Shape::Nodes(5), Flavour::Wild);
    plan.refusals = 0;
    let quick = Slowness { percent: 0, max_us: 0 };
    (plan.latency, plan.disk, plan.write) = (quick, quick, quick);
    plan.initial = initial;
    plan.heal_at_us = 5_000_000;
    plan.changes = changes.iter().map(|(ms, change)| (ms * 1_000, *change)).collect();
    plan.faults = faults.iter().map(|(ms, fault)| (ms * 1_000, *fault)).collect();
    plan.transactions = transactions;
    plan.transactions.sort_by_key(|t| t.at_us);
    let verdict = run(&plan, false);
    assert_eq!(verdict.violation, None);
    verdict.coverage
}

#[test]
fn a_new_node_takes_part() {
    let transactions = commits(0, 100, 2_500).chain(commits(3, 2_500, 4_500)).collect();
    let coverage = history(3, &[(800, Change::Add(3))], &[], transactions);
    assert_eq!((coverage.births, coverage.drops), (1, 0));
    // Nearly all of both, also those that run while generations change.
    assert!(coverage.committed > 180, "{coverage:?}");
}

#[test]
fn a_dead_node_is_dropped_and_another_one_takes_its_place() {
    let changes = [(1_000, Change::Drop(2)), (1_500, Change::Add(3))];
    let faults = [(600, Fault::Crash(2)), (3_000, Fault::Crash(1))];
    let transactions = commits(0, 100, 2_900).chain(commits(3, 3_600, 4_900)).collect();
    let coverage = history(3, &changes, &faults, transactions);
    assert_eq!((coverage.births, coverage.drops), (1, 1));
    // Without the new one there is no majority after the second crash.
    assert!(coverage.committed > 170, "{coverage:?}");
}

#[test]
fn all_nodes_but_one_are_replaced() {
    let changes = [
        (500, Change::Add(3)),
        (1_000, Change::Drop(0)),
        (1_800, Change::Add(4)),
        (2_600, Change::Drop(1)),
    ];
    let transactions = commits(1, 100, 2_000).chain(commits(4, 3_500, 4_900)).collect();
    let coverage = history(3, &changes, &[], transactions);
    assert_eq!((coverage.births, coverage.drops), (2, 2));
    assert!(coverage.committed > 130, "{coverage:?}");
}
