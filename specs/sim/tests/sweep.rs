//! Short sweeps; `cargo sim --seeds N` makes long ones.

use mtm_sim::{Fault, Plan, Shape, Slowness, Sweep, Transaction, run};

fn sweep(shape: Shape, seeds: u64) {
    let sweep = Sweep { from: 0, seeds, shapes: vec![shape], jobs: 1 };
    let (coverage, failures) = sweep.run();
    let first = failures.first().map(|f| (f.plan.seed, f.verdict.violation.clone()));
    assert_eq!(first, None, "{shape:?}");
    let coverage = coverage[0].1;
    assert_eq!(coverage.histories, seeds);
    assert_eq!(coverage.missing(shape), Vec::<String>::new(), "{coverage:?}");
}

#[test]
fn the_same_seed_is_the_same_history() {
    for shape in [Shape::Nodes(3), Shape::Nodes(5), Shape::Referee] {
        for seed in 0..16 {
            let plan = Plan::new(seed, shape);
            let (a, b) = (run(&plan, false), run(&plan, true));
            assert_eq!((a.trace_hash, a.coverage), (b.trace_hash, b.coverage), "seed {seed}");
        }
    }
    let hash = |seed| run(&Plan::new(seed, Shape::Nodes(3)), false).trace_hash;
    assert_ne!(hash(1), hash(2));
}

#[test]
fn three_nodes_hold_the_invariants() {
    sweep(Shape::Nodes(3), 400);
}

#[test]
fn five_nodes_hold_the_invariants() {
    sweep(Shape::Nodes(5), 150);
}

#[test]
fn two_nodes_and_a_referee_hold_the_invariants() {
    sweep(Shape::Referee, 400);
}

#[test]
fn a_sweep_in_which_nothing_happens_fails() {
    let mut quiet = Plan::new(0, Shape::Nodes(3));
    quiet.faults.clear();
    quiet.transactions.clear();
    let verdict = run(&quiet, false);
    assert_eq!(verdict.violation, None);
    let mut coverage = verdict.coverage;
    for _ in 1..200 {
        coverage.add(&verdict.coverage);
    }
    let missing = coverage.missing(Shape::Nodes(3)).join(" ");
    for what in ["committed", "aborted", "crashes", "replayed", "settled_commits"] {
        assert!(missing.contains(what), "{missing}");
    }
}

/// Seeds in which something was once wrong, in the node or in the simulator's driver.
#[test]
fn what_was_found_once_stays_mended() {
    let found = [
        (120, Shape::Referee),
        (185, Shape::Referee),
        (678, Shape::Nodes(5)),
        (112_518, Shape::Nodes(5)),
        (200_185, Shape::Nodes(3)),
        (200_969, Shape::Nodes(5)),
        (201_081, Shape::Nodes(3)),
        (8_000_673, Shape::Nodes(3)),
        (8_000_738, Shape::Referee),
        (8_000_742, Shape::Referee),
        (3_013_249, Shape::Nodes(5)),
        (3_022_714, Shape::Nodes(3)),
        (3_028_053, Shape::Nodes(3)),
        (3_033_664, Shape::Nodes(3)),
        (3_054_023, Shape::Nodes(3)),
    ];
    for (seed, shape) in found {
        assert_eq!(run(&Plan::new(seed, shape), false).violation, None, "seed {seed} {shape:?}");
    }
}

/// Either of two data nodes goes on with the referee when the other one is gone, not only the
/// lower one.
#[test]
fn either_node_goes_on_alone_with_the_referee() {
    for gone in 0..2 {
        let mut plan = Plan::new(7, Shape::Referee);
        // Both hear each other until one of them is gone: one that is alone by then has the grant.
        let quick = Slowness { percent: 0, max_us: 0 };
        (plan.latency, plan.disk, plan.write) = (quick, quick, quick);
        plan.refusals = 0;
        plan.heal_at_us = 3_000_000;
        plan.faults = vec![(500_000, Fault::Crash(gone))];
        plan.transactions = (0..20)
            .map(|n| Transaction {
                at_us: 1_500_000 + n * 50_000,
                node: 1 - gone,
                keys: vec![n as u8],
                think_us: 100,
                patience_us: 500_000,
                user: None,
            })
            .collect();
        let verdict = run(&plan, false);
        assert_eq!(verdict.violation, None);
        assert!(verdict.coverage.committed >= 20, "without n{}: {:?}", gone + 1, verdict.coverage);
    }
}
