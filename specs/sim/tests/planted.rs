//! Every planted bug is found within its stated number of seeds, and can be shown to a person.

use mtm_sim::{CASES, Driver, Planted, draw, shrink};

#[test]
fn every_planted_bug_is_found() {
    let missed: Vec<String> = CASES
        .iter()
        .filter(|case| case.find().is_none())
        .map(|case| format!("{} within {} seeds", case.planted.name(), case.seeds))
        .collect();
    assert_eq!(missed, Vec::<String>::new());
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
    for shown in ["EarlyAbort", "generation", "Agreement violated", "AskAbort", "marker-end", "T1 = MTM-"] {
        assert!(svg.contains(shown), "{shown} is not in the picture");
    }
    assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("early-abort.svg");
    std::fs::write(&file, svg).expect("the directory is there");
}

#[test]
fn what_does_not_fail_is_not_shrunk() {
    let plan = mtm_sim::Plan::new(0, mtm_sim::Shape::Nodes(3));
    assert_eq!(shrink(&plan, 10), None);
    let planted = Some(Planted::Driver(Driver::ConfirmedEarly));
    assert_ne!(mtm_sim::Plan { planted, ..plan.clone() }, plan);
}
