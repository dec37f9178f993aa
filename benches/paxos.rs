//! One decision of three nodes by single-decree Paxos, in memory: in the initial ballot, with both
//! phases, and what a record costs to write down and read.

#![allow(missing_docs, reason = "criterion_group! makes a public function")]

use criterion::{Criterion, criterion_group, criterion_main};
use mtm_core::{Ballot, Instant, Machine, NodeId, NodeSet, Outbox};
use mtm_paxos::{AcceptorRecord, Effect, Input, Message, Outgoing, Paxos, Timing};
use std::collections::VecDeque;
use std::hint::black_box;

fn node(n: u8) -> NodeId {
    NodeId::new(n).expect("small")
}

/// Steps and messages until everyone knows.
fn decide(initial: Option<NodeId>) -> usize {
    let cohort = NodeSet::first(3);
    let mut nodes: Vec<_> = cohort
        .iter()
        .map(|n| {
            let paxos = Paxos::new(n, cohort, AcceptorRecord::new(), Timing::default(), 1);
            let paxos = paxos.expect("one of three");
            match initial {
                Some(owner) => paxos.with_initial_proposer(owner),
                None => paxos,
            }
        })
        .collect();
    let (mut inputs, mut steps) = (VecDeque::from([(node(1), Input::Propose(7u64))]), 0);
    let mut out = Outbox::new();
    while let Some((me, input)) = inputs.pop_front() {
        steps += 1;
        nodes[me.index()].step(Instant(1), input, &mut out).expect("no mistake is made");
        for effect in out.drain() {
            let sends = match effect {
                Effect::Flush(flush) => flush.on_disk(),
                Effect::Send(outgoing) => vec![outgoing],
                Effect::Decided(_) => Vec::new(),
            };
            for Outgoing { to, message } in sends {
                for peer in to {
                    let mut bytes = Vec::with_capacity(32);
                    message.encode(&mut bytes);
                    let message = Message::decode(&bytes).expect("intact");
                    inputs.push_back((peer, Input::Message { from: me, message }));
                }
            }
        }
    }
    assert!(nodes.iter().all(|n| n.decided() == Some(&7)));
    steps
}

fn decision(c: &mut Criterion) {
    let mut group = c.benchmark_group("paxos/decision of 3");
    group.bench_function("initial ballot", |b| b.iter(|| decide(black_box(Some(node(1))))));
    group.bench_function("both phases", |b| b.iter(|| decide(black_box(None))));
    group.finish();
}

fn record(c: &mut Criterion) {
    let ballot = Ballot { round: 3, node: node(2) };
    let record = AcceptorRecord { promised: Some(ballot), accepted: Some((ballot, vec![7u8; 64])) };
    let bytes = record.to_bytes(node(1));
    c.bench_function("paxos/record/write", |b| b.iter(|| black_box(&record).to_bytes(node(1))));
    c.bench_function("paxos/record/read", |b| {
        b.iter(|| {
            AcceptorRecord::<Vec<u8>>::from_bytes(black_box(&bytes), node(1)).expect("intact")
        });
    });
}

criterion_group!(benches, decision, record);
criterion_main!(benches);
