//! Users' two-phase transactions: what their users are told, in histories written by hand.

use mtm_sim::{Coverage, Fault, Flavour, Plan, Shape, Slowness, Transaction, UserWord, run};

fn says(at_ms: u64, node: usize, keys: &[u8], user: UserWord) -> Transaction {
    Transaction {
        at_us: at_ms * 1_000,
        node,
        keys: keys.to_vec(),
        think_us: 100,
        patience_us: 400_000,
        user: Some(user),
    }
}

fn history(shape: Shape, faults: &[(u64, Fault)], transactions: Vec<Transaction>) -> Coverage {
    let mut plan = Plan::flavoured(1, shape, Flavour::Wild);
    plan.refusals = 0;
    let quick = Slowness { percent: 0, max_us: 0 };
    (plan.latency, plan.disk, plan.write) = (quick, quick, quick);
    plan.heal_at_us = 4_000_000;
    plan.faults = faults.iter().map(|(ms, fault)| (ms * 1_000, *fault)).collect();
    plan.transactions = transactions;
    let verdict = run(&plan, false);
    assert_eq!(verdict.violation, None);
    verdict.coverage
}

#[test]
fn what_is_prepared_outlives_crashes_and_is_ended_elsewhere() {
    for ends in [UserWord::Commit(0), UserWord::Rollback(0)] {
        let faults = [
            (600, Fault::Crash(0)),
            (1_200, Fault::Restart(0)),
            (1_800, Fault::Crash(1)),
            (1_810, Fault::Crash(2)),
            (1_900, Fault::Restart(1)),
            (1_950, Fault::Restart(2)),
        ];
        let told = vec![says(300, 0, &[7, 8], UserWord::Prepare(0)), says(3_000, 2, &[], ends)];
        let coverage = history(Shape::Nodes(3), &faults, told);
        assert_eq!((coverage.users_prepared, coverage.users_ended), (1, 1), "{ends:?}");
    }
}

#[test]
fn it_is_ended_without_the_node_where_it_began() {
    for shape in [Shape::Nodes(3), Shape::Referee] {
        let faults = [(600, Fault::Crash(0)), (3_900, Fault::Restart(0))];
        let told = vec![
            says(300, 0, &[7], UserWord::Prepare(0)),
            says(2_500, 1, &[], UserWord::Commit(0)),
            says(3_000, 1, &[7], UserWord::Prepare(0)),
        ];
        let coverage = history(shape, &faults, told);
        assert_eq!((coverage.users_prepared, coverage.users_ended), (2, 1), "{shape:?}");
    }
}

#[test]
fn nobody_but_its_user_ends_it() {
    let faults = [(600, Fault::Crash(0)), (1_900, Fault::Restart(0)), (2_400, Fault::Crash(1))];
    // Of another transaction of the same row nothing is ever heard.
    let waits = Transaction { user: None, ..says(3_000, 2, &[7], UserWord::Commit(9)) };
    let told = vec![says(300, 0, &[7], UserWord::Prepare(0)), waits];
    let coverage = history(Shape::Nodes(3), &faults, told);
    assert_eq!((coverage.users_prepared, coverage.users_ended), (1, 0));
    // The last transactions of the three nodes are the others.
    assert_eq!((coverage.committed, coverage.refused), (1 + 3, 1));
}

#[test]
fn of_two_who_end_it_one_is_told_no() {
    let told = vec![
        says(300, 0, &[7], UserWord::Prepare(0)),
        says(1_000, 1, &[], UserWord::Commit(0)),
        says(1_000, 2, &[], UserWord::Rollback(0)),
    ];
    let coverage = history(Shape::Nodes(3), &[], told);
    assert_eq!((coverage.users_prepared, coverage.users_ended), (1, 1));
    assert_eq!(coverage.aborted + coverage.refused, 1);
}

#[test]
fn of_two_who_take_a_name_one_is_told_no() {
    let told = vec![
        says(300, 0, &[7], UserWord::Prepare(0)),
        says(300, 1, &[8], UserWord::Prepare(0)),
        says(1_000, 2, &[9], UserWord::Prepare(0)),
    ];
    let coverage = history(Shape::Nodes(3), &[], told);
    assert_eq!(coverage.users_prepared, 1);
    assert_eq!(coverage.aborted + coverage.refused, 2);
}
