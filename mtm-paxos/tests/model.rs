//! Every order of events for three nodes and two proposers, breadth-first over the real machines.
//!
//! Bounds: nodes 1 and 2 propose once each (node 1 begins with the initial ballot, or both are
//! equal), nobody tries again by itself, and any node may crash, once. A message that was sent
//! stays and may be delivered at any later time, again or never: that is every loss, delay,
//! reordering and doubling at once. Acceptances go to one learner that hears everything, because
//! it knows whatever any other could; refusals only say when to try again, and go nowhere. The
//! pinned number of states tells that the protocol changed.

use mtm_core::{Ballot, Instant, Machine, NodeId, NodeSet, Outbox};
use mtm_paxos::{AcceptorRecord, Effect, Flush, Input, Message, Outgoing, Paxos, Timing};
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

#[derive(Clone, PartialEq, Eq, Hash)]
struct Node {
    paxos: Paxos<u64>,
    disk: AcceptorRecord<u64>,
    unwritten: VecDeque<Flush<u64>>,
    proposed: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct World {
    nodes: Vec<Node>,
    /// From, to, bytes; nothing is ever taken away.
    sent: BTreeSet<(NodeId, NodeId, Vec<u8>)>,
    fragile: Option<NodeId>,
    initial: Option<NodeId>,
}

fn node(n: u8) -> NodeId {
    NodeId::new(n).unwrap()
}

fn machine(n: NodeId, record: AcceptorRecord<u64>, initial: Option<NodeId>) -> Paxos<u64> {
    let timing = Timing { retry_us: 1, jitter_us: 0 };
    let paxos = Paxos::new(n, NodeSet::first(3), record, timing, 0).unwrap();
    match initial {
        Some(owner) => paxos.with_initial_proposer(owner),
        None => paxos,
    }
}

impl World {
    fn new(initial: Option<NodeId>, fragile: Option<NodeId>) -> Self {
        let nodes = NodeSet::first(3).iter().map(|n| Node {
            paxos: machine(n, AcceptorRecord::new(), initial),
            disk: AcceptorRecord::new(),
            unwritten: VecDeque::new(),
            proposed: false,
        });
        let nodes = nodes.collect();
        Self { nodes, sent: BTreeSet::new(), fragile, initial }
    }

    /// Values that a majority has accepted in one ballot.
    fn decided(&self) -> BTreeSet<u64> {
        let mut by_ballot = BTreeMap::<(Ballot, u64), NodeSet>::new();
        for (from, _, bytes) in &self.sent {
            if let Ok(Message::Accepted { ballot, value }) = Message::<u64>::decode(bytes) {
                by_ballot.entry((ballot, value)).or_default().insert(*from);
            }
        }
        let all = NodeSet::first(3);
        by_ballot.iter().filter(|(_, who)| who.is_majority_of(all)).map(|(k, _)| k.1).collect()
    }

    fn send(&mut self, from: NodeId, outgoing: &Outgoing<u64>) {
        let mut bytes = Vec::new();
        outgoing.message.encode(&mut bytes);
        self.sent.extend(outgoing.to.iter().map(|to| (from, to, bytes.clone())));
    }

    /// Only a node that may still crash has a slow disk: without a crash, a slow disk is a slow
    /// network.
    fn flush(&mut self, me: NodeId, flush: Flush<u64>) {
        let node = &mut self.nodes[me.index()];
        if self.fragile == Some(me) && node.disk != *flush.record() {
            if !node.unwritten.contains(&flush) {
                node.unwritten.push_back(flush);
            }
        } else {
            self.write(me, flush);
        }
    }

    fn write(&mut self, me: NodeId, flush: Flush<u64>) {
        self.nodes[me.index()].disk = flush.record().clone();
        flush.on_disk().iter().for_each(|outgoing| self.send(me, outgoing));
    }

    fn step(&mut self, me: NodeId, input: Input<u64>) {
        let mut out = Outbox::new();
        // Time stands still: nobody's patience ends.
        self.nodes[me.index()].paxos.step(Instant(0), input, &mut out).unwrap();
        for effect in out.drain() {
            match effect {
                Effect::Flush(flush) => self.flush(me, flush),
                Effect::Send(outgoing) => self.send(me, &outgoing),
                Effect::Decided(_) => unreachable!("no learner hears anything"),
            }
        }
    }

    fn successors(&self) -> Vec<Self> {
        let mut next = Vec::new();
        let mut add = |change: &dyn Fn(&mut Self)| {
            let mut world = self.clone();
            change(&mut world);
            next.push(world);
        };
        for n in NodeSet::first(3) {
            let i = n.index();
            if n <= node(2) && !self.nodes[i].proposed {
                add(&|w| {
                    w.nodes[i].proposed = true;
                    w.step(n, Input::Propose(u64::from(n.get())));
                });
            }
            if !self.nodes[i].unwritten.is_empty() {
                add(&|w| {
                    let flush = w.nodes[i].unwritten.pop_front().unwrap();
                    w.write(n, flush);
                });
            }
            if self.fragile == Some(n) {
                add(&|w| {
                    w.fragile = None;
                    let disk = w.nodes[i].disk.clone();
                    w.nodes[i].paxos = machine(n, disk, w.initial);
                    w.nodes[i].unwritten.clear();
                    w.nodes[i].proposed = true;
                });
            }
        }
        for (from, to, bytes) in &self.sent {
            let message = Message::decode(bytes).unwrap();
            if matches!(message, Message::Accepted { .. } | Message::Refused { .. }) {
                continue;
            }
            add(&|w| w.step(*to, Input::Message { from: *from, message: message.clone() }));
        }
        next
    }
}

/// Number of states, and every value that was decided in one of them.
fn explore(start: World) -> (usize, BTreeSet<u64>) {
    let key = |world: &World| {
        let mut hasher = DefaultHasher::new();
        world.hash(&mut hasher);
        hasher.finish()
    };
    let mut seen = HashSet::from([key(&start)]);
    let (mut queue, mut ever) = (VecDeque::from([start]), BTreeSet::new());
    while let Some(world) = queue.pop_front() {
        let decided = world.decided();
        assert!(decided.len() <= 1, "two values are decided: {decided:?}");
        ever.extend(decided);
        for next in world.successors() {
            if seen.insert(key(&next)) {
                queue.push_back(next);
            }
        }
    }
    (seen.len(), ever)
}

fn both() -> BTreeSet<u64> {
    BTreeSet::from([1, 2])
}

#[test]
fn equal_proposers_never_decide_differently() {
    assert_eq!(explore(World::new(None, None)), (53_907, both()));
}

#[test]
fn a_crash_of_the_initial_proposer_changes_nothing() {
    assert_eq!(explore(World::new(Some(node(1)), Some(node(1)))), (62_330, both()));
}

#[test]
fn a_crash_of_another_acceptor_changes_nothing() {
    assert_eq!(explore(World::new(Some(node(1)), Some(node(3)))), (121_483, both()));
}
