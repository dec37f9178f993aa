//! Going through a large table of transactions that is nearly empty, as every step that looks at
//! all of them does.

#![allow(missing_docs, reason = "criterion_group! makes a public function")]

use criterion::{Criterion, criterion_group, criterion_main};
use mtm_core::{GenNum, Gid, NodeId, Xid};
use mtm_node::table::{Slot, Table};

const SLOTS: usize = 131_072;

/// As large as an `mtm_node::Entry`.
type Value = [u64; size_of::<mtm_node::Entry>() / 8];
const VALUE: Value = [7; size_of::<mtm_node::Entry>() / 8];

fn table(c: &mut Criterion) {
    let origin = NodeId::new(1).expect("it is small");
    let gid = |x: u64| Gid { origin, xid: Xid(x), generation: GenNum(1) };
    let mut group = c.benchmark_group("table");
    for live in [0, 200, 20_000] {
        let mut slots = vec![Slot::<Value>::FREE; SLOTS];
        let mut table = Table::new(&mut slots);
        for x in 0..live {
            table.entry(gid(x), || VALUE).expect("there is room");
        }
        group.bench_function(format!("iterate_{live}_of_{SLOTS}"), |b| {
            b.iter(|| table.iter().filter(|(_, value)| value[3] == 7).count());
        });
        group.bench_function(format!("insert_remove_{live}_of_{SLOTS}"), |b| {
            b.iter(|| {
                table.entry(gid(1 << 40), || VALUE).expect("there is room");
                table.remove(&gid(1 << 40))
            });
        });
    }
}

criterion_group!(benches, table);
criterion_main!(benches);
