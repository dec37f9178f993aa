//! Whole clusters of memberships in memory: elections under message loss and crashes.

use mtm_core::{GenNum, Instant, Machine, NodeId, NodeSet, Outbox};
use mtm_generations::{Effect, Input, Membership, Message, Record, StatusInGeneration, Timing};
use std::collections::BTreeMap;

const NODES: u8 = 3;

struct Cluster {
    now: Instant,
    nodes: Vec<Membership>,
    disks: Vec<Record>,
    up: NodeSet,
    wire: Vec<(NodeId, NodeId, Message)>,
    /// Donors ever announced per number: fixed once.
    elected: BTreeMap<GenNum, (NodeSet, NodeSet)>,
    rng: u64,
    loss_percent: u64,
}

fn node(i: usize) -> NodeId {
    NodeId::new(i as u8 + 1).unwrap()
}

impl Cluster {
    fn new(seed: u64, loss_percent: u64) -> Self {
        let disks: Vec<_> = (0..NODES as usize)
            .map(|i| Record::initial(node(i), 7, NodeSet::first(NODES)))
            .collect();
        let nodes = disks
            .iter()
            .enumerate()
            .map(|(i, r)| Membership::new(*r, Timing::default(), seed + i as u64, false))
            .collect();
        Self {
            now: Instant(0),
            nodes,
            disks,
            up: NodeSet::first(NODES),
            wire: Vec::new(),
            elected: BTreeMap::new(),
            rng: seed | 1,
            loss_percent,
        }
    }

    fn draw(&mut self, bound: u64) -> u64 {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        self.rng % bound
    }

    /// One input, and all that follows from it on this node without the network.
    fn step(&mut self, i: usize, first: Input) {
        let mut inputs = vec![first];
        while let Some(input) = inputs.pop() {
            let mut out = Outbox::new();
            self.nodes[i].step(self.now, input, &mut out).expect("the driver makes no mistake");
            for effect in out.drain() {
                match effect {
                    Effect::Persist { token, record } => {
                        self.disks[i] = record;
                        inputs.push(Input::Persisted(token));
                    }
                    Effect::Send { to, message, .. } => {
                        for peer in to.intersection(self.up) {
                            if self.draw(100) >= self.loss_percent {
                                self.wire.push((node(i), peer, message));
                            }
                        }
                    }
                    Effect::SwitchWanted(_) => inputs.insert(0, Input::Switch),
                    Effect::WriteParallelSafe(n) => inputs.push(Input::ParallelSafe(n)),
                    Effect::StartRecovery { num, .. } => inputs.push(Input::Recovered(num)),
                    Effect::Online(_)
                    | Effect::Lend { .. }
                    | Effect::Recall { .. }
                    | Effect::AskReferee(_)
                    | Effect::CleanReferee(_) => {}
                }
            }
            if let Some(w) = self.nodes[i].wanted() {
                if !inputs.contains(&Input::Switch) {
                    inputs.insert(0, Input::Switch);
                }
                let known = self
                    .elected
                    .entry(w.generation.num)
                    .or_insert((w.generation.members, w.donors));
                assert_eq!(*known, (w.generation.members, w.donors), "donors are fixed once");
            }
        }
        let record = self.nodes[i].record();
        assert!(record.last_online_in <= record.current.generation.num);
        assert!(record.last_vote >= record.current.generation.num);
    }

    fn run(&mut self, ms: u64) {
        for _ in 0..ms / 10 {
            self.now = self.now.plus_us(10_000);
            for i in 0..NODES as usize {
                if self.up.contains(node(i)) {
                    self.step(i, Input::Connected(self.up));
                    // A node that was left out while it ran catches up too: here, at once.
                    self.step(i, Input::CaughtUp(true));
                }
            }
            for _ in 0..self.wire.len() {
                let at = self.draw(self.wire.len() as u64) as usize;
                let (from, to, message) = self.wire.swap_remove(at);
                let mut bytes = Vec::new();
                message.encode(&mut bytes);
                assert_eq!(Message::decode(&bytes), Ok(message));
                if self.up.contains(to) {
                    self.step(to.index(), Input::Message { from, message });
                }
            }
        }
    }

    fn kill(&mut self, i: usize) {
        self.up.remove(node(i));
    }

    fn restart(&mut self, i: usize) {
        let bytes = self.disks[i].to_bytes();
        let record = Record::from_bytes(&bytes, node(i), 7).expect("it was written whole");
        self.nodes[i] = Membership::new(record, Timing::default(), self.now.0, true);
        self.up.insert(node(i));
        self.step(i, Input::Fenced(false));
        let mut out = Outbox::new();
        self.nodes[i].resume(&mut out);
        for effect in out.drain() {
            match effect {
                Effect::WriteParallelSafe(n) => self.step(i, Input::ParallelSafe(n)),
                Effect::StartRecovery { num, .. } => self.step(i, Input::Recovered(num)),
                _ => {}
            }
        }
        self.step(i, Input::CaughtUp(true));
    }

    fn describe(&self) -> String {
        let of = |m: &Membership| format!("{:?} {:?} {:?}", m.record(), m.wanted(), m.status());
        self.nodes.iter().map(of).collect::<Vec<_>>().join("\n")
    }

    fn all_online(&self) -> bool {
        let num = self.nodes[0].current().generation.num;
        self.up.iter().all(|n| {
            let m = &self.nodes[n.index()];
            m.status_in_generation() == StatusInGeneration::Online
                && m.current().generation.num == num
        })
    }
}

#[test]
fn a_dead_node_is_excluded_and_comes_back() {
    let mut cluster = Cluster::new(1, 0);
    cluster.run(1_000);
    assert_eq!(cluster.nodes[0].current().generation.num, GenNum(1), "nothing happens for nothing");
    cluster.kill(2);
    cluster.run(1_000);
    assert_eq!(cluster.nodes[0].current().generation.members, NodeSet::first(2));
    assert!(cluster.all_online());
    cluster.restart(2);
    cluster.run(2_000);
    assert_eq!(cluster.nodes[0].current().generation.members, NodeSet::first(3));
    assert!(cluster.all_online());
}

#[test]
fn a_minority_elects_nothing() {
    let mut cluster = Cluster::new(2, 0);
    cluster.run(500);
    cluster.kill(1);
    cluster.kill(2);
    cluster.run(3_000);
    assert_eq!(cluster.nodes[0].current().generation.num, GenNum(1));
}

#[test]
fn crashes_and_losses_never_make_two_generations_of_one_number_and_all_heals() {
    let mut changes = 0;
    for seed in 1..=200u64 {
        let mut cluster = Cluster::new(seed * 7919, 30);
        for _ in 0..8 {
            let i = cluster.draw(u64::from(NODES)) as usize;
            if cluster.up.contains(node(i)) {
                cluster.kill(i)
            } else {
                cluster.restart(i)
            }
            let ms = 50 + cluster.draw(1_000);
            cluster.run(ms);
        }
        for i in 0..NODES as usize {
            if !cluster.up.contains(node(i)) {
                cluster.restart(i);
            }
        }
        cluster.loss_percent = 0;
        cluster.run(20_000);
        assert!(
            cluster.all_online(),
            "seed {seed}: not all nodes are online: {}",
            cluster.describe()
        );
        assert_eq!(cluster.nodes[0].current().generation.members.len(), 3, "seed {seed}");
        changes += cluster.elected.len();
    }
    assert!(changes > 400, "only {changes} generations in 200 histories");
}
