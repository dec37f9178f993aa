//! `cargo sim`: replays one seed or sweeps many.

use mtm_node::Bug;
use mtm_sim::{Coverage, Plan, Shape, Verdict, run};
use std::process::ExitCode;

struct Options {
    seed: Option<u64>,
    seeds: u64,
    from: u64,
    shape: Shape,
    story: bool,
    bug: Option<Bug>,
}

fn options() -> Result<Options, String> {
    let mut o = Options { seed: None, seeds: 200, from: 0, shape: Shape::Nodes(3), story: false, bug: None };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        if arg == "--bug" {
            let name = args.next().unwrap_or_default();
            let named = |b: &&Bug| format!("{b:?}") == name;
            let all = || format!("--bug needs one of {:?}", Bug::ALL);
            o.bug = Some(*Bug::ALL.iter().find(named).ok_or_else(all)?);
            continue;
        }
        if arg == "--referee" {
            o.shape = Shape::Referee;
            continue;
        }
        let mut number = || {
            let value = args.next().ok_or_else(|| format!("{arg} needs a number"))?;
            value.parse::<u64>().map_err(|e| format!("{arg}: {e}"))
        };
        match arg.as_str() {
            "--seed" => o.seed = Some(number()?),
            "--seeds" => o.seeds = number()?,
            "--from" => o.from = number()?,
            "--nodes" => o.shape = Shape::Nodes(number()? as usize),
            "--story" => o.story = true,
            _ => return Err(format!("unknown option {arg}")),
        }
    }
    Ok(o)
}

fn main() -> ExitCode {
    let o = match options() {
        Ok(o) => o,
        Err(e) => {
            eprintln!("{e}");
            return ExitCode::FAILURE;
        }
    };
    let mut total = Coverage::default();
    let mut failures = 0;
    let seeds = o.seed.map_or(o.from..o.from + o.seeds, |s| s..s + 1);
    for seed in seeds {
        let plan = Plan { bug: o.bug, ..Plan::new(seed, o.shape) };
        let verdict = run(&plan, o.story);
        total.add(&verdict.coverage);
        if !report(seed, &verdict) {
            failures += 1;
            if failures == 5 {
                break;
            }
        }
    }
    println!("{total:#?}");
    if failures > 0 {
        println!("{failures} seeds failed");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn report(seed: u64, verdict: &Verdict) -> bool {
    for line in &verdict.story {
        println!("{line}");
    }
    let Some((at, v)) = &verdict.violation else { return true };
    println!("seed {seed}: {} at {:.3} ms: {}", v.invariant, *at as f64 / 1000.0, v.what);
    false
}
