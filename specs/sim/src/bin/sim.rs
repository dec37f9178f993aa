//! `cargo sim`: replays one seed, sweeps many, or shows that planted bugs are found.

use mtm_sim::{CASES, Case, Coverage, Failure, Plan, Shape, Sweep, draw, run, shrink};
use std::process::ExitCode;
use std::time::Instant;

const USAGE: &str =
    "cargo sim [--seeds N] [--from SEED] [--nodes N | --referee | --mixed] [--jobs N]
          sweeps so many seeds (default 200), on at most so many threads (default 2)
          the first that fails is shrunk and drawn (--svg FILE, default sim-failure.svg)
cargo sim --seed SEED [--nodes N | --referee] [--bug NAME] [--story] [--shrink] [--svg FILE]
          replays one, tells its story, shrinks it, draws it
cargo sim --bugs [--bug NAME]
          shows that planted bugs are found, and with which seed";

/// Histories tried to make one smaller.
const SHRINK_LIMIT: u64 = 3_000;

struct Options {
    seed: Option<u64>,
    sweep: Sweep,
    story: bool,
    shrink: bool,
    svg: Option<String>,
    bugs: bool,
    bug: Option<Case>,
}

fn options() -> Result<Options, String> {
    let sweep = Sweep { from: 0, seeds: 200, shapes: vec![Shape::Nodes(3)], jobs: 2 };
    let mut o = Options {
        seed: None,
        sweep,
        story: false,
        shrink: false,
        svg: None,
        bugs: false,
        bug: None,
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        let number = |v: String| v.parse::<u64>().map_err(|e| format!("{arg}: {e}"));
        match arg.as_str() {
            "--seed" => o.seed = Some(number(value()?)?),
            "--seeds" => o.sweep.seeds = number(value()?)?,
            "--from" => o.sweep.from = number(value()?)?,
            "--jobs" => o.sweep.jobs = number(value()?)?.clamp(1, 2),
            "--nodes" => {
                o.sweep.shapes = vec![Shape::Nodes(number(value()?)?.clamp(2, 9) as usize)]
            }
            "--referee" => o.sweep.shapes = vec![Shape::Referee],
            "--mixed" => o.sweep.shapes = vec![Shape::Nodes(3), Shape::Nodes(5), Shape::Referee],
            "--story" => o.story = true,
            "--shrink" => o.shrink = true,
            "--svg" => o.svg = Some(value()?),
            "--bugs" => o.bugs = true,
            "--bug" => {
                let name = value()?;
                let all = || CASES.iter().map(|c| c.planted.name()).collect::<Vec<_>>().join(", ");
                let case = CASES.iter().find(|c| c.planted.name() == name);
                o.bug = Some(*case.ok_or_else(|| format!("--bug needs one of {}", all()))?);
            }
            _ => return Err(format!("unknown option {arg}\n{USAGE}")),
        }
    }
    Ok(o)
}

fn main() -> ExitCode {
    let done = options().and_then(|o| {
        if let Some(seed) = o.seed {
            replay(&o, seed)
        } else if o.bugs {
            bugs(&o)
        } else {
            sweep(&o)
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn replay(o: &Options, seed: u64) -> Result<(), String> {
    // A planted bug brings its own shape and kind of history.
    let plan = o.bug.map_or_else(|| Plan::new(seed, o.sweep.shapes[0]), |case| case.plan(seed));
    let verdict = run(&plan, o.story || o.svg.is_some());
    if o.shrink && verdict.violation.is_some() {
        return small(&plan, o);
    }
    if let Some(file) = &o.svg {
        save(file, &draw(&plan, &verdict))?;
    }
    for line in verdict.story.iter().filter(|_| o.story) {
        println!("{line}");
    }
    print(plan.shape, &verdict.coverage);
    println!("trace hash {:016x}", verdict.trace_hash);
    let failure = Failure { plan, verdict };
    if failure.verdict.violation.is_some() { Err(describe(&failure)) } else { Ok(()) }
}

/// Shrinks, tells and draws a failing history.
fn small(plan: &Plan, o: &Options) -> Result<(), String> {
    let small = shrink(plan, SHRINK_LIMIT).ok_or("it does not fail")?;
    for line in small.verdict.story.iter().filter(|_| o.story) {
        println!("{line}");
    }
    println!("{:#?}", small.plan);
    save(o.svg.as_deref().unwrap_or("sim-failure.svg"), &draw(&small.plan, &small.verdict))?;
    println!("{} histories tried", small.tried);
    Err(describe(&Failure { plan: small.plan, verdict: small.verdict }))
}

fn save(file: &str, svg: &str) -> Result<(), String> {
    std::fs::write(file, svg).map_err(|e| format!("{file}: {e}"))?;
    println!("drawn: {file}");
    Ok(())
}

fn sweep(o: &Options) -> Result<(), String> {
    let start = Instant::now();
    let (coverage, failures) = o.sweep.run();
    let mut wrong: Vec<String> = failures.iter().map(describe).collect();
    for (shape, coverage) in &coverage {
        print(*shape, coverage);
        // A handful of histories may well be quiet.
        if coverage.histories >= 100 {
            wrong.extend(coverage.missing(*shape).iter().map(|m| format!("{shape:?}: {m}")));
        }
    }
    println!("{:.1} s", start.elapsed().as_secs_f64());
    if let Some(first) = failures.first()
        && let Err(small) = small(&first.plan, o)
    {
        wrong.push(format!("shrunk: {small}"));
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

fn bugs(o: &Options) -> Result<(), String> {
    let mut missed = Vec::new();
    for case in CASES.iter().filter(|c| o.bug.is_none_or(|b| b == **c)) {
        let (start, name) = (Instant::now(), case.planted.name());
        match case.find() {
            Some((plan, verdict)) => {
                let (at, v) = verdict.violation.expect("it was found");
                println!(
                    "{name}: seed {} of {} {:?}: {} at {:.1} ms ({:.1} s)",
                    plan.seed,
                    case.seeds,
                    case.shape,
                    v.invariant,
                    at as f64 / 1000.0,
                    start.elapsed().as_secs_f64()
                );
            }
            None => {
                println!("{name}: not found within {} seeds of {:?}", case.seeds, case.shape);
                missed.push(name);
            }
        }
    }
    if missed.is_empty() { Ok(()) } else { Err(format!("not found: {}", missed.join(", "))) }
}

fn print(shape: Shape, coverage: &Coverage) {
    let counts: Vec<String> =
        coverage.counts().iter().map(|(name, count)| format!("{name} {count}")).collect();
    println!("{shape:?}: {}", counts.join(", "));
}

fn describe(f: &Failure) -> String {
    let Some((at, v)) = &f.verdict.violation else { return String::new() };
    let at = *at as f64 / 1000.0;
    format!("seed {} {:?}: {} at {at:.3} ms: {}", f.plan.seed, f.plan.shape, v.invariant, v.what)
}
