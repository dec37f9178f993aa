//! The apply plan: 1,000 one-row transactions of which some conflict, with 16 workers; and what
//! finding a transaction's footprint costs.

#![allow(missing_docs, reason = "criterion_group! makes a public function")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mtm_core::Rng;
use mtm_logrep::plan::{Conflicts, Footprint, Plan, footprint};
use mtm_logrep::row::{Column, ColumnType, ReplicaIdentity, RowWriter, write_relation};
use std::collections::VecDeque;
use std::hint::black_box;

const WORKERS: usize = 16;

/// Transactions through the plan; what is started first ends first.
fn run(footprints: &[Footprint]) -> usize {
    let (mut plan, mut running, mut most) = (Plan::new(), VecDeque::new(), 0);
    for footprint in footprints {
        plan.admit(footprint.clone());
        while running.len() < WORKERS
            && let Some(place) = plan.start()
        {
            running.push_back(place);
        }
        most = most.max(running.len());
        if plan.len() > 4 * WORKERS
            && let Some(place) = running.pop_front()
        {
            plan.finish(place);
        }
    }
    while let Some(place) = plan.start().or_else(|| running.pop_front()) {
        plan.finish(place);
    }
    assert!(plan.is_empty());
    most
}

fn plan(c: &mut Criterion) {
    let mut group = c.benchmark_group("plan/1000 transactions");
    group.throughput(Throughput::Elements(1_000));
    for rows in [100_000u64, 10] {
        let mut rng = Rng::new(rows);
        let footprints: Vec<_> = (0..1_000)
            .map(|_| {
                let mut footprint = Footprint::new();
                footprint.touch_row(1, rng.below(rows));
                footprint
            })
            .collect();
        assert!(run(&footprints) > 1);
        group.bench_function(format!("{rows} rows"), |b| b.iter(|| run(black_box(&footprints))));
    }
    group.finish();
}

fn footprints(c: &mut Criterion) {
    let (mut description, mut blob) = (Vec::new(), Vec::new());
    let id = Column { name: b"id".as_slice(), key: true, of: ColumnType::BuiltIn(23), typmod: -1 };
    let name = (b"public".as_slice(), b"t".as_slice());
    let identity = ReplicaIdentity::Default;
    write_relation(&mut description, 1, b'r', identity, name, [id].into_iter());
    let mut w = RowWriter::new(&mut blob);
    w.described(&description);
    (0..100u32).for_each(|id| w.insert(0, 1).binary(&id.to_be_bytes()));
    let mut group = c.benchmark_group("plan/footprint");
    group.throughput(Throughput::Elements(100));
    group.bench_function("100 rows", |b| {
        b.iter(|| footprint(black_box(&blob), |_| Conflicts::ByKey.into()).expect("intact"));
    });
    group.finish();
}

criterion_group!(benches, plan, footprints);
criterion_main!(benches);
