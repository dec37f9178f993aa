//! Three nodes agree although a third of their messages are lost and nodes crash before they have
//! written anything: `cargo run -p mtm-paxos --example three_nodes [seed]`.

use mtm_core::{Instant, Machine, NodeId, NodeSet, Outbox, Rng};
use mtm_paxos::{AcceptorRecord, Effect, Flush, Input, Message, Outgoing, Paxos, Timing};
use std::collections::VecDeque;

type Value = &'static str;
struct Node {
    paxos: Paxos<Value>,
    disk: AcceptorRecord<Value>,
    unwritten: VecDeque<Flush<Value>>,
}
struct Cluster {
    now: Instant,
    nodes: Vec<Node>,
    wire: Vec<(NodeId, NodeId, Message<Value>)>,
    rng: Rng,
}

fn start(node: NodeId, disk: AcceptorRecord<Value>, seed: u64) -> Node {
    let paxos = Paxos::new(node, NodeSet::first(3), disk.clone(), Timing::default(), seed);
    Node { paxos: paxos.expect("one of three"), disk, unwritten: VecDeque::new() }
}

impl Cluster {
    fn step(&mut self, me: NodeId, input: Input<Value>) {
        let mut out = Outbox::new();
        self.nodes[me.index()].paxos.step(self.now, input, &mut out).expect("no mistake is made");
        for effect in out.drain() {
            match effect {
                Effect::Flush(flush) => self.nodes[me.index()].unwritten.push_back(flush),
                Effect::Send(outgoing) => self.send(me, outgoing),
                Effect::Decided(v) => println!("{:>9} us  node {me} knows: {v}", self.now.0),
            }
        }
    }

    fn send(&mut self, from: NodeId, Outgoing { to, message }: Outgoing<Value>) {
        self.wire.extend(to.iter().map(|node| (from, node, message.clone())));
    }

    /// The disk is done with one record: only now its messages leave.
    fn write(&mut self, me: NodeId) {
        let Some(flush) = self.nodes[me.index()].unwritten.pop_front() else { return };
        self.nodes[me.index()].disk = flush.record().clone();
        flush.on_disk().into_iter().for_each(|outgoing| self.send(me, outgoing));
    }

    fn deliver(&mut self) {
        let at = self.rng.below(self.wire.len().max(1) as u64) as usize;
        if at < self.wire.len() {
            let (from, to, message) = self.wire.swap_remove(at);
            if from == to || !self.rng.percent(33) {
                self.step(to, Input::Message { from, message });
            }
        }
    }

    /// Memory is gone, and so is every record that was not written.
    fn crash(&mut self, me: NodeId) {
        println!("{:>9} us  node {me} crashes", self.now.0);
        let disk = self.nodes[me.index()].disk.clone();
        self.nodes[me.index()] = start(me, disk, self.rng.draw());
        self.step(me, Input::Ask);
    }
}

fn main() {
    run(std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(1));
}

pub(crate) fn run(seed: u64) {
    let all = NodeSet::first(3);
    let nodes = all.iter().map(|n| start(n, AcceptorRecord::new(), u64::from(n.get()))).collect();
    let mut cluster = Cluster { now: Instant(0), nodes, wire: Vec::new(), rng: Rng::new(seed) };
    for (node, wish) in all.iter().zip(["tea", "coffee", "water"]) {
        cluster.step(node, Input::Propose(wish));
    }
    let mut crashes = 0;
    while cluster.nodes.iter().any(|n| n.paxos.decided().is_none()) || crashes < 3 {
        cluster.now = cluster.now.plus_us(1_000);
        let node = all.iter().nth(cluster.rng.below(3) as usize).expect("there are three");
        match cluster.rng.below(200) {
            0 if crashes < 3 => {
                crashes += 1;
                cluster.crash(node);
            }
            1..60 => cluster.write(node),
            _ => cluster.deliver(),
        }
        all.iter().for_each(|n| cluster.step(n, Input::Wake));
        // A crash loses wishes too; somebody must go on wishing.
        cluster.step(node, Input::Propose("milk"));
    }
    let values: Vec<_> = cluster.nodes.iter().filter_map(|n| n.paxos.decided()).collect();
    assert!(values.iter().all(|value| *value == values[0]), "{values:?}");
    println!("agreed on {}", values[0]);
}
