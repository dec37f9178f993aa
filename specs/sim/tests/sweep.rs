//! Short sweeps; `cargo sim --seeds N` makes long ones.

use mtm_node::Bug;
use mtm_sim::{Coverage, Plan, Shape, run};

fn sweep(shape: Shape, seeds: core::ops::Range<u64>) -> Coverage {
    let mut total = Coverage::default();
    for seed in seeds {
        let verdict = run(&Plan::new(seed, shape), false);
        assert_eq!(verdict.violation, None, "seed {seed} {shape:?}");
        total.add(&verdict.coverage);
    }
    total
}

#[test]
fn the_same_seed_is_the_same_history() {
    for seed in 0..20 {
        let plan = Plan::new(seed, Shape::Nodes(3));
        let (a, b) = (run(&plan, false), run(&plan, true));
        assert_eq!((a.trace_hash, a.coverage), (b.trace_hash, b.coverage), "seed {seed}");
    }
    let hash = |seed| run(&Plan::new(seed, Shape::Nodes(3)), false).trace_hash;
    assert_ne!(hash(1), hash(2));
}

#[test]
fn three_nodes_hold_the_invariants_and_something_happens() {
    let c = sweep(Shape::Nodes(3), 0..400);
    assert!(c.committed > 4_000 && c.aborted > 1_000, "{c:?}");
    assert!(c.crashes > 500 && c.switches > 1_000 && c.recoveries > 300, "{c:?}");
    assert!(c.replayed > 1_000 && c.installed > 20 && c.dropped > 20, "{c:?}");
    assert!(c.settled_commits > 20 && c.settled_aborts > 5, "{c:?}");
}

#[test]
fn five_nodes_hold_the_invariants() {
    let c = sweep(Shape::Nodes(5), 0..100);
    assert!(c.committed > 500 && c.recoveries > 100, "{c:?}");
}

/// Within so many seeds a broken rule must be noticed.
fn finds(bug: Bug, seeds: u64) {
    let found = (0..seeds).find(|&seed| {
        let plan = Plan { bug: Some(bug), ..Plan::new(seed, Shape::Nodes(3)) };
        run(&plan, false).violation.is_some()
    });
    assert!(found.is_some(), "{bug:?} was not found within {seeds} seeds");
}

#[test]
fn broken_rules_are_noticed() {
    finds(Bug::NoFlush, 20);
    finds(Bug::SwitchKeep, 20);
    finds(Bug::CommitMissing, 20);
    finds(Bug::NoFence, 50);
    finds(Bug::EarlyAbort, 300);
    finds(Bug::NoBarrier, 400);
    finds(Bug::DecideRace, 600);
}
