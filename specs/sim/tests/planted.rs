//! Every planted bug is found within its stated number of seeds, and can be shown to a person.

use mtm_sim::{
    CASES, Driver, Fault, Plan, Planted, Shape, Slowness, Transaction, draw, run, shrink,
};

/// Every second one of them, so that two threads share the work.
fn found(which: usize) {
    let missed: Vec<String> = CASES
        .iter()
        .skip(which)
        .step_by(2)
        .filter(|case| case.find().is_none())
        .map(|case| format!("{} within {} seeds", case.planted.name(), case.seeds))
        .collect();
    assert_eq!(missed, Vec::<String>::new());
}

#[test]
fn every_planted_bug_is_found() {
    found(0);
}

#[test]
fn every_other_planted_bug_is_found() {
    found(1);
}

#[test]
fn a_planted_bug_is_shrunk_and_drawn() {
    let early = |c: &&mtm_sim::Case| c.planted == Planted::Commit(mtm_node::Bug::EarlyAbort);
    let case = CASES.iter().find(early).expect("it is one of them");
    let (plan, verdict) = case.find().expect("it is found");
    let small = shrink(&plan, 2_000).expect("it fails");
    let invariant = |v: &mtm_sim::Verdict| v.violation.as_ref().map(|(_, v)| v.invariant);
    assert_eq!(invariant(&small.verdict), invariant(&verdict));
    let before = plan.faults.len() + plan.transactions.len();
    let after = small.plan.faults.len() + small.plan.transactions.len();
    assert!(after <= 8 && after < before, "{after} of {before} are left: {:?}", small.plan);
    let svg = draw(&small.plan, &small.verdict);
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    for shown in
        ["EarlyAbort", "generation", "Agreement violated", "AskAbort", "marker-end", "T1 = MTM-"]
    {
        assert!(svg.contains(shown), "{shown} is not in the picture");
    }
    assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("early-abort.svg");
    std::fs::write(&file, svg).expect("the directory is there");
}

#[test]
fn what_does_not_fail_is_not_shrunk() {
    let plan = Plan::new(0, Shape::Nodes(3));
    assert_eq!(shrink(&plan, 10), None);
    let planted = Some(Planted::Driver(Driver::ConfirmedEarly));
    assert_ne!(Plan { planted, ..plan.clone() }, plan);
}

/// Seed 2000246 of an earlier version, shrunk: node 1 had finished an abort, lost it in a crash
/// and got the transaction back from a donor, while its old word about its progress let node 2
/// forget the outcome (specs/adr/0106).
fn progress_of_an_earlier_generation() -> Plan {
    let faults = [
        (1, Fault::Loss(29)),
        (138109, Fault::Cut(2, 0)),
        (138109, Fault::Cut(0, 2)),
        (138109, Fault::Cut(2, 1)),
        (138109, Fault::Cut(1, 2)),
        (493349, Fault::Mend(2, 0)),
        (493349, Fault::Mend(2, 1)),
        (493349, Fault::Mend(1, 2)),
        (508931, Fault::Crash(0)),
        (758401, Fault::Crash(2)),
        (788316, Fault::Restart(0)),
    ];
    let transactions = [
        (32396, 2, 141, 2914, 515386),
        (67091, 2, 35, 1388, 13864),
        (75046, 0, 83, 317, 12967),
        (106806, 0, 0, 773, 1216349),
        (121775, 1, 44, 137, 1765870),
        (126527, 0, 16, 2835, 465268),
        (152545, 0, 78, 237, 1874496),
        (162007, 0, 49, 2944, 1909084),
        (164784, 0, 36, 135, 306886),
        (164861, 1, 67, 1152, 1242029),
        (174077, 1, 143, 2419, 17138),
        (179612, 1, 110, 2788, 1695450),
        (200404, 1, 69, 708, 500),
        (205908, 1, 43, 2735, 30635),
        (223925, 0, 99, 515, 1537890),
        (224426, 1, 135, 1724, 27532),
        (299347, 1, 84, 48, 1811187),
        (301308, 0, 142, 385, 1800),
        (312672, 1, 31, 1932, 1086033),
        (328529, 1, 20, 735, 429562),
        (334562, 1, 95, 1554, 76985),
        (339332, 1, 66, 74, 1541529),
        (343314, 0, 61, 517, 53635),
        (346167, 0, 24, 1642, 1681681),
        (349892, 0, 59, 1272, 1319885),
        (353548, 0, 105, 1228, 4417),
        (414093, 0, 75, 2793, 1459903),
        (446175, 0, 99, 2197, 1579001),
        (451082, 0, 53, 1849, 20939),
        (452539, 0, 8, 174, 4034),
        (483649, 1, 51, 1229, 9151),
        (535326, 1, 92, 2502, 7222),
        (564154, 1, 40, 762, 555568),
        (581293, 1, 39, 1763, 24574),
        (623240, 1, 106, 1367, 1140694),
    ];
    let transaction = |&(at_us, node, key, think_us, patience_us): &(u64, usize, u8, u64, u64)| {
        Transaction { at_us, node, keys: vec![key], think_us, patience_us, user: None }
    };
    Plan {
        seed: 2_000_246,
        shape: Shape::Nodes(3),
        initial: 3,
        changes: Vec::new(),
        planted: None,
        latency: Slowness { percent: 6, max_us: 39_731 },
        disk: Slowness { percent: 23, max_us: 10_000 },
        write: Slowness { percent: 10, max_us: 1_000 },
        refusals: 6,
        patience_us: 0,
        faults: faults.to_vec(),
        transactions: transactions.iter().map(transaction).collect(),
        heal_at_us: 1037502,
    }
}

#[test]
fn progress_counts_in_its_own_generation() {
    let plan = progress_of_an_earlier_generation();
    assert_eq!(run(&plan, false).violation, None);
    let planted = Some(Planted::Commit(mtm_node::Bug::OldProgress));
    let violation = run(&Plan { planted, ..plan }, false).violation;
    assert_eq!(violation.map(|(_, v)| v.invariant), Some("FinallyWorks"));
}
