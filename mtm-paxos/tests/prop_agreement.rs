//! Whole instances over storages in memory, honest and not, under every fault of the suite.

use mtm_core::NodeId;
use mtm_core::storage::{Fault, MemoryStorage, Vice};
use mtm_paxos::conformance::{Plan, Violation, check};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn nobody_ever_disagrees_and_all_come_to_know(
        seed in 0u64..1 << 40, nodes in 1u8..=5, events in 100u32..600, initial_proposer: bool
    ) {
        let plan = Plan { seeds: seed..seed + 25, nodes, events, initial_proposer };
        let done = check(|_, _| MemoryStorage::new(), &plan);
        prop_assert!(matches!(done, Ok(_) | Err(Violation::TooLittle(_))), "{}", done.unwrap_err());
    }
}

#[test]
fn a_run_is_worth_its_name() {
    let report = check(|_, _| MemoryStorage::new(), &Plan::default()).unwrap();
    assert!(report.decided_under_faults > 20 && report.decided_under_faults < report.histories);
    assert!(report.crashes > 500 && report.interrupted_writes > 50, "{report:?}");
    assert!(report.lost_writes > 50 && report.lost > 500 && report.doubled > 500, "{report:?}");
    assert!(report.ballots > 500, "{report:?}");
}

#[test]
fn the_same_seeds_give_the_same_run() {
    let plan = Plan { seeds: 5..40, ..Plan::default() };
    let run = || check(|_, _| MemoryStorage::new(), &plan);
    assert_eq!(run(), run());
}

#[test]
fn a_bad_storage_is_found_by_itself() {
    for vice in [Vice::ReturnsEarly, Vice::Tears, Vice::GoesBack] {
        let done = check(|_, _| MemoryStorage::with(vice), &Plan::default());
        assert!(matches!(
            done,
            Err(Violation::Storage { fault: Fault::Lost { .. } | Fault::Torn { .. }, .. })
        ));
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
