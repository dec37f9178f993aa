//! A message through a ring: pushed and popped by one thread, and handed from one to another.

#![allow(missing_docs, reason = "criterion_group! makes a public function")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use mtm_dmq::sync::AtomicU64;
use mtm_dmq::{PushError, Ring};
use std::hint::{black_box, spin_loop};

const CAPACITY: usize = 256 << 10;

fn words() -> Vec<AtomicU64> {
    (0..Ring::words_for(CAPACITY)).map(|_| AtomicU64::new(0)).collect()
}

fn one_thread(c: &mut Criterion) {
    let mut group = c.benchmark_group("ring/push_pop");
    let words = words();
    let ring = Ring::init(&words);
    let mut out = Vec::new();
    for size in [16usize, 64, 1024, 16 << 10] {
        let message = vec![0x5a; size];
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("{size}B"), |b| {
            b.iter(|| {
                ring.push(black_box(&message)).expect("empty before");
                ring.pop(&mut out).expect("intact")
            });
        });
    }
    group.finish();
}

/// One consumer, one producer, 1,000 messages of 64 bytes.
fn two_threads(c: &mut Criterion) {
    const MESSAGES: u64 = 1_000;
    let mut group = c.benchmark_group("ring/spsc");
    group.throughput(Throughput::Elements(MESSAGES));
    group.bench_function("64B", |b| {
        b.iter_batched(
            words,
            |words| {
                let ring = Ring::init(&words);
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        let message = [7; 64];
                        for _ in 0..MESSAGES {
                            while let Err(PushError::Full { .. }) = ring.push(&message) {
                                spin_loop();
                            }
                        }
                    });
                    let (mut got, mut out) = (0, Vec::new());
                    while got < MESSAGES {
                        if ring.pop(&mut out).expect("intact") {
                            got += 1;
                        } else {
                            spin_loop();
                        }
                    }
                });
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, one_thread, two_threads);
criterion_main!(benches);
