//! Steps per second of the simulator: whole nodes with their databases, checked after each step.

#![allow(missing_docs, reason = "criterion_group! makes a public function")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mtm_sim::{Plan, Shape, run};
use std::hint::black_box;

/// One wild history of each kind of cluster; elements are steps of the machines.
fn steps(c: &mut Criterion) {
    let mut group = c.benchmark_group("sim/steps");
    for shape in [Shape::Nodes(3), Shape::Nodes(5), Shape::Referee] {
        let plan = Plan::new(1, shape);
        let steps = run(&plan, false).coverage.steps;
        group.throughput(Throughput::Elements(steps));
        group.bench_function(format!("{shape:?}"), |b| {
            b.iter(|| {
                let verdict = run(black_box(&plan), false);
                assert_eq!((verdict.violation, verdict.coverage.steps), (None, steps));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
