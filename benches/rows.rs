//! The row codec: rows as pgbench's, written by the origin's output plugin and read by a peer, and
//! the stream messages around them.

#![allow(missing_docs, reason = "criterion_group! makes a public function")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mtm_core::{GenNum, Gid, Lsn, NodeId, Xid};
use mtm_logrep::row::{
    Column, ColumnType, ReplicaIdentity, RowMessage, RowReader, RowWriter, Value, write_relation,
};
use mtm_logrep::stream::StreamMessage;
use std::hint::black_box;

/// pgbench_accounts: aid int (key), bid int, abalance int, filler char(84).
fn description() -> Vec<u8> {
    let column = |name, key, oid| Column { name, key, of: ColumnType::BuiltIn(oid), typmod: -1 };
    let columns = [
        column(b"aid".as_slice(), true, 23),
        column(b"bid", false, 23),
        column(b"abalance", false, 23),
        column(b"filler", false, 1042),
    ];
    let (mut out, name) = (Vec::new(), (b"public".as_slice(), b"pgbench_accounts".as_slice()));
    write_relation(&mut out, 16_384, b'r', ReplicaIdentity::Default, name, columns.into_iter());
    out
}

fn write(description: &[u8], updates: u32, out: &mut Vec<u8>) {
    out.clear();
    let mut w = RowWriter::new(out);
    w.described(description);
    for aid in 0..updates {
        w.update(0);
        w.no_old();
        let mut row = w.tuple(4);
        row.binary(&aid.to_be_bytes());
        row.binary(&1u32.to_be_bytes());
        row.binary(&77u32.to_be_bytes());
        row.text(&[b' '; 84]);
    }
}

fn read(blob: &[u8]) -> usize {
    let mut bytes = 0;
    for message in RowReader::new(blob) {
        if let RowMessage::Update { new, .. } = message.expect("intact") {
            for value in new.values() {
                if let Value::Binary(value) | Value::Text(value) = value {
                    bytes += value.len();
                }
            }
        }
    }
    bytes
}

fn rows(c: &mut Criterion) {
    let (description, mut blob) = (description(), Vec::new());
    for updates in [1u32, 1_000] {
        write(&description, updates, &mut blob);
        assert_eq!(read(&blob), updates as usize * 96);
        let mut group = c.benchmark_group("rows");
        group.throughput(Throughput::Bytes(blob.len() as u64));
        let mut out = Vec::with_capacity(blob.len());
        group.bench_function(format!("write {updates} updates"), |b| {
            b.iter(|| write(black_box(&description), updates, &mut out));
        });
        group.bench_function(format!("read {updates} updates"), |b| {
            b.iter(|| read(black_box(&blob)));
        });
        group.finish();
    }
}

fn stream(c: &mut Criterion) {
    let origin = NodeId::new(1).expect("small");
    let gid = Gid { origin, xid: Xid(7), generation: GenNum(1) };
    let payload = [0x5a; 128];
    let message =
        StreamMessage::Piece { gid, lsn: Lsn(9), first: true, last: true, payload: &payload };
    let mut out = Vec::with_capacity(256);
    c.bench_function("stream/write and read a piece", |b| {
        b.iter(|| {
            out.clear();
            black_box(&message).encode(&mut out);
            assert_eq!(StreamMessage::decode(black_box(&out)), Ok(message));
        });
    });
}

criterion_group!(benches, rows, stream);
criterion_main!(benches);
