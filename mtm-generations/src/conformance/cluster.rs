//! One history: nodes, their storages, and a network that keeps no promise.

use super::{Report, Violation};
use crate::{Effect, Elected, Input, Membership, Message, Record, StatusInGeneration, Timing};
use mtm_core::storage::Storage;
use mtm_core::{GenNum, Instant, Machine, NodeId, NodeSet, Outbox, Rng, Token};
use std::collections::{BTreeMap, VecDeque};

const CLUSTER: u64 = 0x6d74_6d67;

/// What waits for the disk, in order.
enum Waiting {
    Record(Token, Box<Record>),
    Send(NodeSet, Message),
}

struct Node<S> {
    storage: S,
    /// `None` while it is down.
    membership: Option<Membership>,
    waiting: VecDeque<Waiting>,
    /// What was last reported as written.
    written: Record,
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
    nodes: Vec<Node<S>>,
    wire: Vec<Letter>,
    elected: BTreeMap<GenNum, Elected>,
    votes: BTreeMap<(NodeId, GenNum), NodeId>,
    report: &'r mut Report,
}

impl<'r, S: Storage> Cluster<'r, S> {
    pub(super) fn new(
        seed: u64,
        storages: Vec<S>,
        report: &'r mut Report,
    ) -> Result<Self, Violation> {
        let all = NodeSet::first(storages.len() as u8);
        let mut nodes = Vec::new();
        for (node, mut storage) in all.iter().zip(storages) {
            let written = Record::initial(node, CLUSTER, all);
            let stored = storage.store(&written.to_bytes());
            stored.map_err(|e| Violation::Failed { seed, node, error: format!("{e:?}") })?;
            let of_node = seed.wrapping_mul(31).wrapping_add(u64::from(node.get()));
            let membership = Some(Membership::new(written, Timing::default(), of_node, false));
            nodes.push(Node { storage, membership, waiting: VecDeque::new(), written });
        }
        let (elected, votes) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self { seed, now: Instant(0), all, nodes, wire: Vec::new(), elected, votes, report })
    }

    /// One event that `rng` chooses.
    pub(super) fn event(&mut self, rng: &mut Rng) -> Result<(), Violation> {
        let at = rng.below(self.nodes.len() as u64) as usize;
        let node = self.all.iter().nth(at).expect("there are so many nodes");
        let down = self.nodes[node.index()].membership.is_none();
        match rng.below(1_000) {
            0..600 => self.deliver(rng),
            // Crashes are worth most while something waits for the disk.
            600..800 if !self.nodes[node.index()].waiting.is_empty() && rng.percent(8) => {
                self.crash(node, rng);
                Ok(())
            }
            600..800 => self.write(node),
            800..985 => self.pass(rng.below(25_000)),
            985..990 if !down => {
                self.crash(node, rng);
                Ok(())
            }
            985..1_000 if down => self.restart(node),
            _ => Ok(()),
        }
    }

    /// No more faults: everyone must be ONLINE in one full generation.
    pub(super) fn heal(&mut self, rng: &mut Rng) -> Result<(), Violation> {
        for node in self.all {
            if self.nodes[node.index()].membership.is_none() {
                self.restart(node)?;
            }
        }
        for _ in 0..4_000 {
            for node in self.all {
                while !self.nodes[node.index()].waiting.is_empty() {
                    self.write(node)?;
                }
            }
            self.pass(10_000)?;
            for _ in 0..self.wire.len() {
                let at = rng.below(self.wire.len() as u64) as usize;
                let letter = self.wire.swap_remove(at);
                self.hand_over(&letter)?;
            }
            if self.is_whole() {
                return Ok(());
            }
        }
        Err(Violation::Stuck { seed: self.seed })
    }

    fn is_whole(&self) -> bool {
        let current = self.nodes[0].membership.as_ref().map(|m| *m.current());
        current.is_some_and(|current| current.generation.members == self.all)
            && self.nodes.iter().all(|n| {
                n.membership.as_ref().is_some_and(|m| {
                    Some(*m.current()) == current
                        && m.status_in_generation() == StatusInGeneration::Online
                })
            })
    }

    fn up(&self) -> NodeSet {
        self.all.iter().filter(|n| self.nodes[n.index()].membership.is_some()).collect()
    }

    /// An input, and whatever follows from it without disk and network.
    fn step(&mut self, node: NodeId, first: Input) -> Result<(), Violation> {
        let mut inputs = VecDeque::from([first]);
        while let Some(input) = inputs.pop_front() {
            let now = self.now;
            let Some(membership) = self.nodes[node.index()].membership.as_mut() else {
                return Ok(());
            };
            let mut out = Outbox::new();
            membership.step(now, input, &mut out).expect("this driver makes no mistake");
            let may_switch = membership.wanted().is_some() && !membership.is_fenced();
            self.obey(node, &mut out, &mut inputs)?;
            // Nothing is prepared or announced here, so the barrier is always free.
            if may_switch && !inputs.contains(&Input::Switch) {
                inputs.push_back(Input::Switch);
            }
        }
        Ok(())
    }

    fn obey(
        &mut self,
        node: NodeId,
        out: &mut Outbox<Effect>,
        inputs: &mut VecDeque<Input>,
    ) -> Result<(), Violation> {
        for effect in out.drain() {
            match effect {
                Effect::Persist { token, record } => {
                    let waiting = &mut self.nodes[node.index()].waiting;
                    waiting.push_back(Waiting::Record(token, Box::new(record)));
                }
                Effect::Send { to, message, after: Some(_) } => {
                    // Behind the last record: later than it must be, which is allowed.
                    self.nodes[node.index()].waiting.push_back(Waiting::Send(to, message));
                }
                Effect::Send { to, message, after: None } => self.post(node, to, message)?,
                Effect::WriteParallelSafe(num) => inputs.push_back(Input::ParallelSafe(num)),
                Effect::StartRecovery { num, .. } => inputs.push_back(Input::Recovered(num)),
                Effect::SwitchWanted(_)
                | Effect::Lend { .. }
                | Effect::Recall { .. }
                | Effect::Online(_)
                | Effect::AskReferee(_)
                | Effect::CleanReferee(_) => {}
            }
        }
        Ok(())
    }

    fn post(&mut self, from: NodeId, to: NodeSet, message: Message) -> Result<(), Violation> {
        let seed = self.seed;
        match message {
            Message::Elected(elected) | Message::Status { current: elected, .. } => {
                let num = elected.generation.num;
                let new = !self.elected.contains_key(&num);
                self.report.elected += u64::from(new && num > GenNum(1));
                if *self.elected.entry(num).or_insert(elected) != elected {
                    return Err(Violation::TwoGenerations { seed, num });
                }
            }
            Message::Vote { num, .. } => {
                for candidate in to {
                    if *self.votes.entry((from, num)).or_insert(candidate) != candidate {
                        return Err(Violation::TwoVotes { seed, node: from, num });
                    }
                }
            }
            Message::VoteRequest(_) | Message::VoteRefused { .. } | Message::Released(_) => {}
        }
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        let letters = to.iter().map(|to| Letter { from, to, bytes: bytes.clone() });
        self.wire.extend(letters);
        Ok(())
    }

    fn deliver(&mut self, rng: &mut Rng) -> Result<(), Violation> {
        if self.wire.is_empty() {
            return Ok(());
        }
        let at = rng.below(self.wire.len() as u64) as usize;
        let letter = self.wire.swap_remove(at);
        if rng.percent(10) {
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

    /// Writes the oldest waiting record; the messages behind it leave.
    fn write(&mut self, node: NodeId) -> Result<(), Violation> {
        let seed = self.seed;
        let this = &mut self.nodes[node.index()];
        if let Some(Waiting::Record(..)) = this.waiting.front()
            && let Some(Waiting::Record(token, record)) = this.waiting.pop_front()
        {
            let stored = this.storage.store(&record.to_bytes());
            stored.map_err(|e| Violation::Failed { seed, node, error: format!("{e:?}") })?;
            this.written = *record;
            self.report.writes += 1;
            self.step(node, Input::Persisted(token))?;
        }
        while let Some(Waiting::Send(..)) = self.nodes[node.index()].waiting.front()
            && let Some(Waiting::Send(to, message)) = self.nodes[node.index()].waiting.pop_front()
        {
            self.post(node, to, message)?;
        }
        Ok(())
    }

    fn pass(&mut self, us: u64) -> Result<(), Violation> {
        self.now = self.now.plus_us(us);
        let up = self.up();
        for node in up {
            self.step(node, Input::Connected(up))?;
            // A node that was left out has caught up at once: nothing is replicated here.
            self.step(node, Input::CaughtUp(true))?;
        }
        Ok(())
    }

    /// The node dies: what was not written is gone, and perhaps the next record half written.
    fn crash(&mut self, node: NodeId, rng: &mut Rng) {
        let this = &mut self.nodes[node.index()];
        this.membership = None;
        let records: Vec<_> = core::mem::take(&mut this.waiting)
            .into_iter()
            .filter_map(|waiting| match waiting {
                Waiting::Record(_, record) => Some(record),
                Waiting::Send(..) => None,
            })
            .collect();
        let writing = records.first().filter(|_| rng.percent(50)).map(|record| record.to_bytes());
        this.storage.crash(writing.as_deref(), rng);
        self.report.crashes += 1;
        self.report.interrupted_writes += u64::from(writing.is_some());
        self.report.lost_writes += records.len() as u64 - u64::from(writing.is_some());
    }

    fn restart(&mut self, node: NodeId) -> Result<(), Violation> {
        let seed = self.seed;
        let this = &mut self.nodes[node.index()];
        let bytes = this.storage.load();
        let bytes = bytes.map_err(|e| Violation::Failed { seed, node, error: format!("{e:?}") })?;
        let bytes = bytes.ok_or(Violation::Forgot { seed, node })?;
        let record = Record::from_bytes(&bytes, node, CLUSTER)
            .map_err(|error| Violation::Unreadable { seed, node, error })?;
        if !covers(&record, &this.written) {
            return Err(Violation::Forgot { seed, node });
        }
        this.membership = Some(Membership::new(record, Timing::default(), self.now.0 ^ seed, true));
        self.step(node, Input::Fenced(false))?;
        let (mut out, mut inputs) = (Outbox::new(), VecDeque::new());
        if let Some(membership) = self.nodes[node.index()].membership.as_mut() {
            membership.resume(&mut out);
        }
        self.obey(node, &mut out, &mut inputs)?;
        inputs.into_iter().try_for_each(|input| self.step(node, input))
    }
}

/// Whether `record` still says what was written: votes and generations only go up.
fn covers(record: &Record, written: &Record) -> bool {
    let same_vote = record.last_vote > written.last_vote || record.voted_for == written.voted_for;
    record.last_vote >= written.last_vote
        && same_vote
        && record.current.generation.num >= written.current.generation.num
        && record.last_online_in >= written.last_online_in
}
