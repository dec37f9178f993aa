//! Three nodes lose a fifth of their messages; one after the other dies, is left out by the rest
//! and comes back: `cargo run -p mtm-generations --example three_nodes [seed]`.

use mtm_core::{Instant, Machine, NodeId, NodeSet, Outbox, Rng};
use mtm_generations::{Effect, Input, Membership, Message, Record, StatusInGeneration, Timing};
use std::collections::VecDeque;

struct Cluster {
    now: Instant,
    nodes: Vec<Membership>,
    disks: Vec<Record>,
    up: NodeSet,
    wire: VecDeque<(NodeId, NodeId, Message)>,
    rng: Rng,
}

impl Cluster {
    /// One input and what follows from it. Nothing is replicated here, so the barrier is always
    /// free and recovery takes no time; the disk is never late.
    fn step(&mut self, me: NodeId, first: Input) {
        let mut inputs = VecDeque::from([first]);
        while let Some(input) = inputs.pop_front() {
            let (node, mut out) = (&mut self.nodes[me.index()], Outbox::new());
            node.step(self.now, input, &mut out).expect("the driver makes no mistake");
            if input == Input::Fenced(false) {
                node.resume(&mut out);
            }
            if node.wanted().is_some() && !node.is_fenced() && !inputs.contains(&Input::Switch) {
                inputs.push_back(Input::Switch);
            }
            for effect in out.drain() {
                match effect {
                    Effect::Persist { token, record } => {
                        self.disks[me.index()] = record;
                        inputs.push_back(Input::Persisted(token));
                    }
                    Effect::Send { to, message, .. } => {
                        self.wire.extend(to.iter().map(|peer| (me, peer, message)));
                    }
                    Effect::WriteParallelSafe(num) => inputs.push_back(Input::ParallelSafe(num)),
                    Effect::StartRecovery { num, .. } => inputs.push_back(Input::Recovered(num)),
                    Effect::Online(num) => println!("{}  node {me} is online in {num}", self.now.0),
                    Effect::SwitchWanted(_) | Effect::Lend { .. } | Effect::Recall { .. } => {}
                    Effect::AskReferee(_) | Effect::CleanReferee(_) => {}
                }
            }
        }
    }

    /// Time goes on until these nodes, and no others, are ONLINE in one generation.
    fn until_online(&mut self, members: NodeSet) {
        let begun = self.now;
        while !members.iter().all(|n| self.is_online_with(n, members)) {
            self.now = self.now.plus_us(10_000);
            assert!(self.now.since(begun) < 60_000_000, "{members} never come together");
            for node in self.up {
                self.step(node, Input::Connected(self.up));
                self.step(node, Input::CaughtUp(true));
            }
            for (from, to, message) in core::mem::take(&mut self.wire) {
                if self.up.contains(to) && !self.rng.percent(20) {
                    self.step(to, Input::Message { from, message });
                }
            }
        }
        let num = self.nodes[members.lowest().expect("not empty").index()].current().generation.num;
        println!("{}  generation {num} has members {members}", self.now.0);
    }

    fn is_online_with(&self, node: NodeId, members: NodeSet) -> bool {
        let membership = &self.nodes[node.index()];
        membership.status_in_generation() == StatusInGeneration::Online
            && membership.current().generation.members == members
    }
}

fn main() {
    run(std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(1));
}

pub(crate) fn run(seed: u64) {
    let all = NodeSet::first(3);
    let disks: Vec<_> = all.iter().map(|node| Record::initial(node, 77, all)).collect();
    let start = |disk: Record, again| {
        Membership::new(disk, Timing::default(), seed ^ disk.node.index() as u64, again)
    };
    let nodes = disks.iter().map(|disk| start(*disk, false)).collect();
    let (now, wire, rng) = (Instant(0), VecDeque::new(), Rng::new(seed));
    let mut cluster = Cluster { now, nodes, disks, up: all, wire, rng };
    for victim in all {
        cluster.up = all.without(victim);
        cluster.until_online(cluster.up);
        cluster.up = all;
        cluster.nodes[victim.index()] = start(cluster.disks[victim.index()], true);
        cluster.step(victim, Input::Fenced(false));
        cluster.until_online(all);
    }
}
