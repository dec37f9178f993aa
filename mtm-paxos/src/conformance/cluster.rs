//! One history: nodes, their storages, and a network that keeps no promise.

use super::{Report, Violation};
use crate::{AcceptorRecord, Effect, Flush, Input, Message, Outgoing, Paxos, Timing};
use mtm_core::storage::Storage;
use mtm_core::{Ballot, Instant, Machine, NodeId, NodeSet, Outbox, Rng};
use std::collections::VecDeque;

/// One node, down or up.
struct Node<S> {
    storage: S,
    /// `None` while it is down.
    paxos: Option<Paxos<u64>>,
    /// Records waiting to be written, in order.
    unwritten: VecDeque<Flush<u64>>,
    /// The most that a message which has left said: the record may never be below.
    said: AcceptorRecord<u64>,
    proposed: bool,
}

/// A message under way.
struct Letter {
    from: NodeId,
    to: NodeId,
    bytes: Vec<u8>,
}

pub(super) struct Cluster<'r, S> {
    seed: u64,
    now: Instant,
    all: NodeSet,
    initial: Option<NodeId>,
    nodes: Vec<Node<S>>,
    wire: Vec<Letter>,
    decided: Option<u64>,
    report: &'r mut Report,
}

impl<'r, S: Storage> Cluster<'r, S> {
    pub(super) fn new(
        seed: u64,
        initial: bool,
        storages: Vec<S>,
        report: &'r mut Report,
    ) -> Result<Self, Violation> {
        let all = NodeSet::first(storages.len() as u8);
        let nodes = storages.into_iter().map(|storage| Node {
            storage,
            paxos: None,
            unwritten: VecDeque::new(),
            said: AcceptorRecord::new(),
            proposed: false,
        });
        let mut cluster = Self {
            seed,
            now: Instant(0),
            all,
            initial: if initial { all.lowest() } else { None },
            nodes: nodes.collect(),
            wire: Vec::new(),
            decided: None,
            report,
        };
        for node in all {
            cluster.start(node)?;
        }
        Ok(cluster)
    }

    /// One event that `rng` chooses.
    pub(super) fn event(&mut self, rng: &mut Rng) -> Result<(), Violation> {
        let node = self.pick(rng);
        match rng.below(100) {
            0..50 => self.deliver(rng),
            50..80 => self.write(node),
            80..88 => self.pass(node, rng.below(100_000)),
            88..93 => self.propose(node),
            _ if self.nodes[node.index()].paxos.is_none() => self.start(node),
            93..97 => {
                self.crash(node, rng);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// No more faults: everyone must come to know.
    pub(super) fn heal(&mut self, rng: &mut Rng) -> Result<(), Violation> {
        self.report.decided_under_faults += u64::from(self.decided.is_some());
        for node in self.all {
            if self.nodes[node.index()].paxos.is_none() {
                self.start(node)?;
            }
            self.propose(node)?;
        }
        for _ in 0..2_000 {
            for node in self.all {
                while !self.nodes[node.index()].unwritten.is_empty() {
                    self.write(node)?;
                }
                self.pass(node, 2_000)?;
            }
            for _ in 0..self.wire.len() {
                let at = rng.below(self.wire.len() as u64) as usize;
                let letter = self.wire.swap_remove(at);
                self.hand_over(&letter)?;
            }
            let knows = |n: &Node<S>| n.paxos.as_ref().is_some_and(|p| p.decided().is_some());
            if self.nodes.iter().all(knows) {
                return Ok(());
            }
        }
        Err(Violation::Stuck { seed: self.seed })
    }

    fn pick(&self, rng: &mut Rng) -> NodeId {
        let at = rng.below(self.nodes.len() as u64) as usize;
        self.all.iter().nth(at).expect("there are so many nodes")
    }

    fn step(&mut self, node: NodeId, input: Input<u64>) -> Result<(), Violation> {
        let (seed, now) = (self.seed, self.now);
        let Some(paxos) = self.nodes[node.index()].paxos.as_mut() else { return Ok(()) };
        let mut out = Outbox::new();
        paxos.step(now, input, &mut out).expect("the cohort has this node");
        for effect in out.drain() {
            match effect {
                Effect::Flush(flush) => self.nodes[node.index()].unwritten.push_back(flush),
                Effect::Send(outgoing) => self.post(node, &outgoing),
                Effect::Decided(second) => {
                    let first = *self.decided.get_or_insert(second);
                    // Node n proposes n, so anything else was made up.
                    let proposed = (1..=self.nodes.len() as u64).contains(&second);
                    if first != second || !proposed {
                        return Err(Violation::Disagreement { seed, node, first, second });
                    }
                }
            }
        }
        Ok(())
    }

    fn post(&mut self, from: NodeId, outgoing: &Outgoing<u64>) {
        let mut bytes = Vec::new();
        outgoing.message.encode(&mut bytes);
        for to in outgoing.to {
            self.wire.push(Letter { from, to, bytes: bytes.clone() });
        }
    }

    fn deliver(&mut self, rng: &mut Rng) -> Result<(), Violation> {
        if self.wire.is_empty() {
            return Ok(());
        }
        let at = rng.below(self.wire.len() as u64) as usize;
        let letter = self.wire.swap_remove(at);
        // A message to the node itself goes through memory: the driver's own loop loses none.
        if letter.from != letter.to && rng.percent(15) {
            self.report.lost += 1;
            return Ok(());
        }
        self.hand_over(&letter)?;
        if rng.percent(10) {
            self.report.doubled += 1;
            self.wire.push(letter);
        }
        Ok(())
    }

    fn hand_over(&mut self, letter: &Letter) -> Result<(), Violation> {
        self.report.delivered += 1;
        let message = Message::decode(&letter.bytes).expect("it was encoded here");
        self.step(letter.to, Input::Message { from: letter.from, message })
    }

    /// Writes the oldest waiting record and lets its messages leave.
    fn write(&mut self, node: NodeId) -> Result<(), Violation> {
        let seed = self.seed;
        let this = &mut self.nodes[node.index()];
        let Some(flush) = this.unwritten.pop_front() else { return Ok(()) };
        let stored = this.storage.store(&flush.record().to_bytes(node));
        stored.map_err(|e| Violation::Failed { seed, node, error: format!("{e:?}") })?;
        this.said = flush.record().clone();
        self.report.writes += 1;
        for outgoing in flush.on_disk() {
            if let Message::Phase1a { ballot } = outgoing.message {
                self.report.ballots += u64::from(ballot.round > 1);
            }
            self.post(node, &outgoing);
        }
        Ok(())
    }

    fn pass(&mut self, node: NodeId, us: u64) -> Result<(), Violation> {
        self.now = self.now.plus_us(us);
        self.step(node, Input::Wake)
    }

    fn propose(&mut self, node: NodeId) -> Result<(), Violation> {
        let this = &mut self.nodes[node.index()];
        if this.paxos.is_none() || core::mem::replace(&mut this.proposed, true) {
            return Ok(());
        }
        self.step(node, Input::Propose(u64::from(node.get())))
    }

    /// The node dies: what was not written is gone, and perhaps the next record half written.
    fn crash(&mut self, node: NodeId, rng: &mut Rng) {
        let this = &mut self.nodes[node.index()];
        this.paxos = None;
        this.proposed = false;
        let waiting = core::mem::take(&mut this.unwritten);
        let writing = waiting.front().filter(|_| rng.percent(50));
        let bytes = writing.map(|flush| flush.record().to_bytes(node));
        this.storage.crash(bytes.as_deref(), rng);
        self.report.crashes += 1;
        self.report.interrupted_writes += u64::from(bytes.is_some());
        self.report.lost_writes += waiting.len() as u64 - u64::from(bytes.is_some());
        // What waited in the node's own memory for itself is gone as well.
        self.wire.retain(|letter| (letter.from, letter.to) != (node, node));
    }

    fn start(&mut self, node: NodeId) -> Result<(), Violation> {
        let seed = self.seed;
        let this = &mut self.nodes[node.index()];
        let bytes = this.storage.load();
        let bytes = bytes.map_err(|e| Violation::Failed { seed, node, error: format!("{e:?}") })?;
        let record = match bytes {
            None => AcceptorRecord::new(),
            Some(bytes) => AcceptorRecord::from_bytes(&bytes, node)
                .map_err(|error| Violation::Unreadable { seed, node, error })?,
        };
        if !covers(&record, &this.said) {
            return Err(Violation::Forgot { seed, node });
        }
        let timing = Timing { retry_us: 20_000, jitter_us: 40_000 };
        let seed = self.seed ^ u64::from(node.get());
        let paxos = Paxos::new(node, self.all, record, timing, seed).expect("it is in the cohort");
        this.paxos = Some(match self.initial {
            Some(initial) => paxos.with_initial_proposer(initial),
            None => paxos,
        });
        Ok(())
    }
}

/// Whether `record` still holds what was said: promises and acceptances only go up.
fn covers(record: &AcceptorRecord<u64>, said: &AcceptorRecord<u64>) -> bool {
    let in_ballot =
        |r: &AcceptorRecord<u64>| -> Option<Ballot> { r.accepted.as_ref().map(|a| a.0) };
    record.promised >= said.promised && in_ballot(record) >= in_ballot(said)
}
