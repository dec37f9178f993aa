//! Many histories, on several threads.

use crate::plan::{Plan, Shape};
use crate::planted::Case;
use crate::world::{Coverage, Verdict, run};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Which histories.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sweep {
    /// The first seed.
    pub from: u64,
    /// So many of each shape.
    pub seeds: u64,
    /// In clusters of these shapes, in turns.
    pub shapes: Vec<Shape>,
    /// Threads.
    pub jobs: u64,
}

/// A history in which something was wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Its plan.
    pub plan: Plan,
    /// What was wrong.
    pub verdict: Verdict,
}

/// Ends a sweep: one bug makes many seeds fail.
const ENOUGH_FAILURES: usize = 5;

impl Sweep {
    /// Runs all histories; says what happened, per shape, and what was wrong.
    ///
    /// # Panics
    /// When a thread panics.
    pub fn run(&self) -> (Vec<(Shape, Coverage)>, Vec<Failure>) {
        let next = AtomicU64::new(0);
        let total = Mutex::new(vec![Coverage::default(); self.shapes.len()]);
        let failures = Mutex::new(Vec::new());
        let all = self.seeds * self.shapes.len() as u64;
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.max(1) {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let enough = failures.lock().expect("no panic").len() >= ENOUGH_FAILURES;
                        if index >= all || enough {
                            return;
                        }
                        let which = (index % self.shapes.len() as u64) as usize;
                        let seed = self.from + index / self.shapes.len() as u64;
                        let plan = Plan::new(seed, self.shapes[which]);
                        let verdict = run(&plan, false);
                        total.lock().expect("no panic")[which].add(&verdict.coverage);
                        if verdict.violation.is_some() {
                            failures.lock().expect("no panic").push(Failure { plan, verdict });
                        }
                    }
                });
            }
        });
        let total = total.into_inner().expect("no panic");
        let coverage = self.shapes.iter().copied().zip(total).collect();
        let mut failures = failures.into_inner().expect("no panic");
        failures.sort_by_key(|f: &Failure| (f.plan.seed, f.plan.shape.nodes()));
        (coverage, failures)
    }
}

impl Coverage {
    /// What must have happened in a sweep of so many histories and did not: a sweep in which
    /// nothing happens has shown nothing. The rates are a fraction of what is usual.
    pub fn missing(&self, shape: Shape) -> Vec<String> {
        let n = self.histories;
        let alone = shape == Shape::Referee;
        let least = [
            ("committed", self.committed, n * 5),
            ("aborted", self.aborted, n),
            ("crashes", self.crashes, n / 2),
            ("freezes", self.freezes, n / 20),
            ("clock_steps", self.clock_steps, n / 50),
            ("lost_messages", self.lost_messages, n * 10),
            ("switches", self.switches, n * 2),
            ("recoveries", self.recoveries, n / 2),
            ("from_syncpoints", self.from_syncpoints, n / 2),
            ("replayed", self.replayed, n / 2),
            ("caught_up", self.caught_up, n / 4),
            ("installed", self.installed, if alone { n / 1_000 } else { n / 20 }),
            ("dropped", self.dropped, n / 50),
            ("settled_commits", self.settled_commits, n / 50),
            ("settled_aborts", self.settled_aborts, if alone { n / 2_000 } else { n / 200 }),
            ("grants", self.grants, if alone { n / 2 } else { 0 }),
            ("births", self.births, if alone { 0 } else { n / 40 }),
            ("drops", self.drops, if alone { 0 } else { n / 40 }),
            ("users_prepared", self.users_prepared, n / 20),
            ("users_ended", self.users_ended, n / 30),
        ];
        least
            .iter()
            .filter(|(_, happened, least)| happened < least)
            .map(|(name, happened, least)| format!("{name}: {happened}, at least {least} expected"))
            .collect()
    }
}

impl Case {
    /// The first seed whose history shows the bug, within the stated number.
    pub fn find(&self) -> Option<(Plan, Verdict)> {
        (self.from..self.from + self.seeds).find_map(|seed| {
            let plan = self.plan(seed);
            let verdict = run(&plan, false);
            verdict.violation.is_some().then_some((plan, verdict))
        })
    }
}
