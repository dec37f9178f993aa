//! Every step of a commit on three nodes, in memory: the machines that mtm-ext runs, every message
//! through its bytes, a frame and a ring. What a real commit adds is disk, network and processes.

#![allow(missing_docs, reason = "criterion_group! makes a public function")]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use mtm_core::{Instant, LocalXid, Machine, NodeId, NodeSet, Outbox};
use mtm_dmq::sync::AtomicU64;
use mtm_dmq::{Kind, Ring, decode_frame, encode_frame};
use mtm_generations::{Membership, Record, Timing};
use mtm_node::table::Slot;
use mtm_node::{Core, Effect, Entry, Input, Node, Outcome, PeerMessage};
use std::collections::VecDeque;

const NODES: u8 = 3;
const RING: usize = 64 << 10;

#[derive(Clone)]
struct Cluster {
    cores: Vec<Core>,
    slots: Vec<Vec<Slot<Entry>>>,
    inputs: VecDeque<(NodeId, Input)>,
    answers: u64,
}

/// What one message passes through on its way.
struct Pipe<'a> {
    ring: Ring<'a>,
    frame: Vec<u8>,
    popped: Vec<u8>,
    seq: u64,
}

impl Pipe<'_> {
    fn carry(&mut self, message: &PeerMessage) -> PeerMessage {
        let mut payload = Vec::with_capacity(32);
        message.encode(&mut payload);
        self.frame.clear();
        self.seq += 1;
        encode_frame(Kind::Message, self.seq, &payload, &mut self.frame);
        self.ring.push(&self.frame).expect("it was empty");
        assert!(self.ring.pop(&mut self.popped).expect("intact"));
        let frame = decode_frame(&self.popped).expect("intact");
        PeerMessage::decode(frame.payload).expect("intact")
    }
}

impl Cluster {
    fn new(slots: usize) -> Self {
        let all = NodeSet::first(NODES);
        let core = |node| {
            let record = Record::initial(node, 7, all);
            Core::new(Membership::new(record, Timing::default(), 1, false), 1_000_000)
        };
        Self {
            cores: all.iter().map(core).collect(),
            slots: all.iter().map(|_| vec![Slot::FREE; slots]).collect(),
            inputs: VecDeque::new(),
            answers: 0,
        }
    }

    /// Announces on `origin` and carries out all that follows, until nothing does.
    fn commit(&mut self, origin: NodeId, xid: u64, pipe: &mut Pipe<'_>) {
        self.inputs.push_back((origin, Input::Announce(LocalXid(xid))));
        let mut out = Outbox::new();
        while let Some((me, input)) = self.inputs.pop_front() {
            let slots = &mut self.slots[me.index()];
            let mut node = Node::new(&mut self.cores[me.index()], slots);
            node.step(Instant(1), input, &mut out).expect("the driver makes no mistake");
            for effect in out.drain() {
                self.obey(me, effect, pipe);
            }
        }
    }

    /// Disks are at once durable, transactions apply at once.
    fn obey(&mut self, me: NodeId, effect: Effect, pipe: &mut Pipe<'_>) {
        match effect {
            Effect::WriteAnnouncement(gid) => {
                self.inputs.push_back((me, Input::AnnouncementWritten(gid)));
                self.inputs.push_back((me, Input::AnnouncementDurable(gid)));
                // The peers' walsenders read it from the log.
                let peers = NodeSet::first(NODES).without(me);
                self.inputs.extend(peers.iter().map(|peer| (peer, Input::Delivered(gid))));
            }
            Effect::Apply(gid) => self.inputs.push_back((me, Input::TryPrepare(gid))),
            Effect::WritePrepare(gid) => self.inputs.push_back((me, Input::PrepareDurable(gid))),
            Effect::WriteCommit(gid) => self.inputs.push_back((me, Input::CommitDurable(gid))),
            Effect::CommitPrepared(gid) => self.inputs.push_back((me, Input::Finished(gid))),
            Effect::Answer(_, outcome) => {
                assert_eq!(outcome, Outcome::Committed);
                self.answers += 1;
            }
            Effect::Send { to, message } => {
                for peer in to {
                    let message = pipe.carry(&message);
                    self.inputs.push_back((peer, Input::Message { from: me, message }));
                }
            }
            Effect::SendGeneration { .. } => {} // heartbeats
            other => panic!("a commit has no {other:?}"),
        }
    }
}

fn words() -> Vec<AtomicU64> {
    (0..Ring::words_for(RING)).map(|_| AtomicU64::new(0)).collect()
}

fn commit(c: &mut Criterion) {
    let mut group = c.benchmark_group("commit/3 nodes");
    let words = words();
    let mut pipe = Pipe { ring: Ring::init(&words), frame: Vec::new(), popped: Vec::new(), seq: 0 };
    // How many entries the tables have places for: looking up must not depend on it.
    for slots in [64, 1024] {
        for batch in [1u64, 8] {
            let fresh = Cluster::new(slots);
            group.throughput(Throughput::Elements(batch));
            group.bench_function(format!("{batch} transactions, {slots} places"), |b| {
                b.iter_batched_ref(
                    || fresh.clone(),
                    |cluster| {
                        for xid in 0..batch {
                            let origin = NodeId::new(xid as u8 % NODES + 1).expect("one of three");
                            cluster.commit(origin, xid, &mut pipe);
                        }
                        assert_eq!(cluster.answers, batch);
                    },
                    BatchSize::SmallInput,
                );
            });
        }
    }
    group.finish();
}

criterion_group!(benches, commit);
criterion_main!(benches);
