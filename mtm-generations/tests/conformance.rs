//! Whole clusters over storages in memory, honest and not, under every fault of the suite.

use mtm_core::NodeId;
use mtm_core::storage::{MemoryStorage, Vice};
use mtm_generations::conformance::{Plan, Violation, check};

#[test]
fn clusters_come_together_whatever_happened() {
    for nodes in [2, 3, 5] {
        let plan = Plan { nodes, seeds: 0..60, ..Plan::default() };
        let report = check(|_, _| MemoryStorage::new(), &plan)
            .unwrap_or_else(|e| panic!("{nodes} nodes: {e}"));
        println!("{nodes} nodes: {report:?}");
        assert!(report.crashes > 200 && report.interrupted_writes > 50, "{report:?}");
        assert!(report.lost_writes > 50 && report.elected > 200, "{report:?}");
        assert!(report.lost > 500 && report.doubled > 500, "{report:?}");
    }
}

#[test]
fn the_same_seeds_give_the_same_run() {
    let plan = Plan { seeds: 5..15, ..Plan::default() };
    let run = || check(|_, _| MemoryStorage::new(), &plan);
    assert_eq!(run(), run());
}

#[test]
fn a_bad_storage_is_found_by_itself() {
    for vice in [Vice::ReturnsEarly, Vice::Tears, Vice::GoesBack] {
        let done = check(|_, _| MemoryStorage::with(vice), &Plan::default());
        assert!(matches!(done, Err(Violation::Storage { .. })), "{done:?}");
    }
}

/// A storage that behaves while it is looked at alone still does not get away with it.
#[test]
fn a_bad_storage_is_found_by_its_histories() {
    let bad_later = |vice| {
        move |seed: u64, _: NodeId| {
            if seed == u64::MAX { MemoryStorage::new() } else { MemoryStorage::with(vice) }
        }
    };
    let early = check(bad_later(Vice::ReturnsEarly), &Plan::default());
    assert!(matches!(early, Err(Violation::Forgot { .. })), "{early:?}");
    let back = check(bad_later(Vice::GoesBack), &Plan::default());
    assert!(matches!(back, Err(Violation::Forgot { .. })), "{back:?}");
    let torn = check(bad_later(Vice::Tears), &Plan::default());
    assert!(matches!(torn, Err(Violation::Unreadable { .. })), "{torn:?}");
}
