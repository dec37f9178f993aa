//! The frame codec: encoding, decoding a whole frame, and finding frames in a stream of chunks.

#![allow(missing_docs, reason = "criterion_group! makes a public function")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mtm_dmq::frame::MAX_PAYLOAD;
use mtm_dmq::{FrameReader, Kind, decode_frame, encode_frame};
use std::hint::black_box;

const SIZES: [usize; 4] = [16, 128, 1024, 64 << 10];

fn encode(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame/encode");
    for size in SIZES {
        let (payload, mut out) = (vec![0xa5; size], Vec::new());
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("{size}B"), |b| {
            b.iter(|| {
                out.clear();
                encode_frame(Kind::Message, 7, black_box(&payload), &mut out);
                out.len()
            });
        });
    }
    group.finish();
}

fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame/decode");
    for size in SIZES {
        let mut bytes = Vec::new();
        encode_frame(Kind::Message, 7, &vec![0xa5; size], &mut bytes);
        group.throughput(Throughput::Bytes(size as u64));
        group.bench_function(format!("{size}B"), |b| {
            b.iter(|| decode_frame(black_box(&bytes)).expect("intact").payload.len());
        });
    }
    group.finish();
}

/// 1,000 frames of 128 bytes that arrive in chunks of 4 KiB.
fn stream(c: &mut Criterion) {
    const FRAMES: u64 = 1_000;
    let mut bytes = Vec::new();
    for seq in 0..FRAMES {
        encode_frame(Kind::Message, seq, &[0xa5; 128], &mut bytes);
    }
    let mut group = c.benchmark_group("frame/stream");
    group.throughput(Throughput::Elements(FRAMES));
    group.bench_function("128B", |b| {
        b.iter(|| {
            let (mut reader, mut frames) = (FrameReader::new(MAX_PAYLOAD), 0);
            for chunk in black_box(&bytes).chunks(4096) {
                reader.feed(chunk);
                while let Some(frame) = reader.next_frame().expect("intact") {
                    black_box(frame);
                    frames += 1;
                }
            }
            assert_eq!(frames, FRAMES);
        });
    });
    group.finish();
}

criterion_group!(benches, encode, decode, stream);
criterion_main!(benches);
