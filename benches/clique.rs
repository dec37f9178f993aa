//! The largest clique of 16 nodes, which every node computes whenever a connection changes.

#![allow(missing_docs, reason = "criterion_group! makes a public function")]

use criterion::{Criterion, criterion_group, criterion_main};
use mtm_core::{MAX_NODES, NodeId, NodeSet, Rng};
use mtm_generations::clique::{Connectivity, largest_clique};
use std::hint::black_box;

/// So many percent of all pairs hear each other.
fn matrix(percent: u64, seed: u64) -> Connectivity {
    let (mut rng, mut rows) = (Rng::new(seed), [NodeSet::EMPTY; MAX_NODES as usize]);
    let all = NodeSet::first(MAX_NODES);
    for a in all {
        for b in all.iter().filter(|b| *b > a) {
            if rng.percent(percent) {
                rows[a.index()].insert(b);
                rows[b.index()].insert(a);
            }
        }
    }
    let mut matrix = Connectivity::new();
    all.iter().for_each(|node: NodeId| matrix.set(node, rows[node.index()].with(node)));
    matrix
}

fn clique(c: &mut Criterion) {
    let mut group = c.benchmark_group("clique/16");
    let all = NodeSet::first(MAX_NODES);
    for percent in [100, 90, 70, 50] {
        let matrices: Vec<_> = (0..32).map(|seed| matrix(percent, seed)).collect();
        let mut next = 0;
        group.bench_function(format!("{percent}%"), |b| {
            b.iter(|| {
                next = (next + 1) % matrices.len();
                largest_clique(black_box(&matrices[next]), all)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, clique);
criterion_main!(benches);
