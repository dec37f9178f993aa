//! The simulated world: virtual time, hosts, network, clients.

mod apply;
mod change;
mod check;
mod client;
mod effect;
mod fault;
mod host;
mod local;
mod network;
mod recovery;
mod referee;
mod user;

use crate::database::{Body, Record};
use crate::oracle::{Oracle, Violation};
use crate::plan::Plan;
use crate::planted::{Driver, Planted};
use crate::rng::Rng;
use crate::trace::{Moment, What, is_news};
use host::Host;
use mtm_core::{GenNum, Gid, Instant, Machine, NodeId, NodeSet, Outbox, Token};
use mtm_generations::{self as generations, referee::Referee};
use mtm_node::{Below, Effect, Input, Node, PeerMessage};
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

/// How much really happened.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Coverage {
    /// Histories.
    pub histories: u64,
    /// Steps of the machines.
    pub steps: u64,
    /// Transactions whose client was told that they are committed.
    pub committed: u64,
    /// ... when readers everywhere were to see them.
    pub acknowledged: u64,
    /// ... that they are aborted everywhere.
    pub aborted: u64,
    /// ... nothing, or that nobody knows.
    pub unknown: u64,
    /// Transactions that ended before they were announced.
    pub refused: u64,
    /// Crashes of one node.
    pub crashes: u64,
    /// Messages lost.
    pub lost_messages: u64,
    /// Switches to another generation, by all nodes together.
    pub switches: u64,
    /// Recoveries completed.
    pub recoveries: u64,
    /// Transactions recovery took from a donor: replayed, installed, dropped.
    pub replayed: u64,
    /// See `replayed`.
    pub installed: u64,
    /// See `replayed`.
    pub dropped: u64,
    /// The most transactions in one node's table at once.
    pub table_max: u64,
    /// Commits decided by settlement in a later generation.
    pub settled_commits: u64,
    /// Aborts decided by settlement in a later generation.
    pub settled_aborts: u64,
    /// Processes of a node that stood still for a while.
    pub freezes: u64,
    /// Jumps of a node's clock.
    pub clock_steps: u64,
    /// Commits that a node replayed while it was no member.
    pub caught_up: u64,
    /// Recoveries that did not begin at the start of the donor's WAL.
    pub from_syncpoints: u64,
    /// Grants of the referee.
    pub grants: u64,
    /// Users' transactions that their users know to be prepared.
    pub users_prepared: u64,
    /// ... that they know to be ended.
    pub users_ended: u64,
    /// Nodes that were added.
    pub births: u64,
    /// Nodes that were dropped.
    pub drops: u64,
}

impl Coverage {
    /// The number of each thing, with its name.
    pub fn counts(&self) -> [(&'static str, u64); 26] {
        [
            ("histories", self.histories),
            ("steps", self.steps),
            ("committed", self.committed),
            ("acknowledged", self.acknowledged),
            ("aborted", self.aborted),
            ("unknown", self.unknown),
            ("refused", self.refused),
            ("crashes", self.crashes),
            ("freezes", self.freezes),
            ("clock_steps", self.clock_steps),
            ("lost_messages", self.lost_messages),
            ("switches", self.switches),
            ("recoveries", self.recoveries),
            ("from_syncpoints", self.from_syncpoints),
            ("replayed", self.replayed),
            ("caught_up", self.caught_up),
            ("installed", self.installed),
            ("dropped", self.dropped),
            ("table_max", self.table_max),
            ("settled_commits", self.settled_commits),
            ("settled_aborts", self.settled_aborts),
            ("grants", self.grants),
            ("users_prepared", self.users_prepared),
            ("users_ended", self.users_ended),
            ("births", self.births),
            ("drops", self.drops),
        ]
    }

    /// Adds another history's.
    pub fn add(&mut self, o: &Self) {
        let Self {
            histories,
            steps,
            committed,
            acknowledged,
            aborted,
            unknown,
            refused,
            crashes,
            lost_messages,
            switches,
            recoveries,
            replayed,
            installed,
            dropped,
            table_max,
            settled_commits,
            settled_aborts,
            freezes,
            clock_steps,
            caught_up,
            from_syncpoints,
            grants,
            users_prepared,
            users_ended,
            births,
            drops,
        } = self;
        *histories += o.histories;
        *steps += o.steps;
        *committed += o.committed;
        *acknowledged += o.acknowledged;
        *aborted += o.aborted;
        *unknown += o.unknown;
        *refused += o.refused;
        *crashes += o.crashes;
        *lost_messages += o.lost_messages;
        *switches += o.switches;
        *recoveries += o.recoveries;
        *replayed += o.replayed;
        *installed += o.installed;
        *dropped += o.dropped;
        *table_max = o.table_max.max(*table_max);
        *settled_commits += o.settled_commits;
        *settled_aborts += o.settled_aborts;
        *freezes += o.freezes;
        *clock_steps += o.clock_steps;
        *caught_up += o.caught_up;
        *from_syncpoints += o.from_syncpoints;
        *grants += o.grants;
        *users_prepared += o.users_prepared;
        *users_ended += o.users_ended;
        *births += o.births;
        *drops += o.drops;
    }
}

/// What a history came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// The same seed gives the same hash.
    pub trace_hash: u64,
    /// What was wrong, and when.
    pub violation: Option<(u64, Violation)>,
    /// What happened.
    pub coverage: Coverage,
    /// The story, if it was asked for.
    pub story: Vec<Moment>,
}

/// What travels between hosts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Packet {
    /// About generations.
    Generation(generations::Message),
    /// About a transaction.
    Peer(PeerMessage),
    /// A sign of life.
    Alive {
        /// Of this life of the sender.
        life: u64,
        /// When it was sent, by the sender's clock.
        sent: Instant,
    },
    /// The answer to a sign of life.
    Lend {
        /// The life it answers.
        life: u64,
        /// When that was sent.
        sent: Instant,
        /// For how long it may be relied on.
        for_us: u64,
        /// The sender's generation.
        num: GenNum,
    },
    /// The sender's connections have closed: at this time, by the receiver's clock.
    Closed(Instant),
    /// To the referee: may this node form this generation alone?
    AskReferee(GenNum),
    /// To the referee: both nodes are ONLINE in this generation.
    CleanReferee(GenNum),
    /// Its answer.
    Referee(GenNum, bool),
}

/// What to tell the machine when a WAL record is durable.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Then {
    Announced(Gid),
    Committed(Gid),
    Prepared(Gid),
    AbortAccepted(Gid),
    Finished(Gid),
    ParallelSafe(GenNum),
    RecoveryDone(Gid),
    Saved(Below),
    Nothing,
}

/// Something that goes on inside one host.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Op {
    Append(Record, Then),
    Flushed(usize, Record, Then),
    StateFile(Token, generations::Record),
    Applied(Gid),
    /// A backend has done its statements.
    Worked(u64),
    /// A client loses patience.
    Patience(u64),
    Recover,
    /// Looks at connections.
    Poll,
    /// Waits for the referee no longer.
    RefereeSilent(GenNum),
    ScanDone,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    Arrive(usize, usize, Packet, u64),
    /// The sender's WAL is decoded for a receiver.
    Decode(usize, usize),
    /// A transaction arrives in a stream of this connection.
    Item {
        from: usize,
        to: usize,
        connection: u64,
        gid: Gid,
        body: Body,
    },
    Wake(usize, u64),
    /// In this life of the host.
    Op(usize, u64, Op),
    Begin(usize),
    Fault(usize),
    /// The administrator tries a change for the so-manieth time.
    Change(usize, u64),
    /// Looks for configured nodes that do not exist yet.
    Births,
}

pub(crate) struct World {
    plan: Plan,
    now: Instant,
    rng: Rng,
    queue: BTreeMap<(u64, u64), Event>,
    queued: u64,
    hosts: Vec<Host>,
    referee: Referee,
    referee_up: bool,
    /// `cut[a][b]`: nothing from a reaches b.
    cut: Vec<Vec<bool>>,
    loss_percent: u64,
    healing: bool,
    /// After healing every node has run one more transaction.
    probed: bool,
    oracle: Oracle,
    coverage: Coverage,
    trace: Fnv,
    story: Option<Vec<Moment>>,
    /// Nodes that were ever configured.
    ever: NodeSet,
    /// What was told last of each node's generation.
    told_generation: Vec<(GenNum, bool)>,
}

/// How long convergence may take.
const HEAL_US: u64 = 20_000_000;

/// Runs the history of a plan; `tell` keeps its story.
pub fn run(plan: &Plan, tell: bool) -> Verdict {
    let mut world = World::new(plan.clone(), tell);
    world.run();
    world.verdict()
}

pub(crate) fn node(i: usize) -> NodeId {
    NodeId::new(i as u8 + 1).expect("few nodes")
}

impl World {
    fn new(plan: Plan, tell: bool) -> Self {
        let (n, machines) = (plan.shape.nodes(), plan.shape.machines());
        let mut rng = Rng::new(plan.seed ^ 0x5EED);
        let hosts = (0..n).map(|i| Host::new(i, &plan, rng.next())).collect();
        let mut world = Self {
            now: Instant(0),
            rng,
            queue: BTreeMap::new(),
            queued: 0,
            hosts,
            referee: Referee::new(),
            referee_up: true,
            cut: vec![vec![false; machines]; machines],
            loss_percent: 0,
            healing: false,
            probed: false,
            oracle: Oracle::default(),
            coverage: Coverage { histories: 1, ..Coverage::default() },
            trace: Fnv::default(),
            story: tell.then(Vec::new),
            ever: NodeSet::first(plan.initial as u8),
            told_generation: vec![(GenNum(0), false); n],
            plan,
        };
        world.start_changes();
        for (at, which) in world.plan.faults.iter().map(|(at, _)| *at).zip(0..).collect::<Vec<_>>()
        {
            world.at(at, Event::Fault(which));
        }
        for (at, which) in
            world.plan.transactions.iter().map(|t| t.at_us).zip(0..).collect::<Vec<_>>()
        {
            world.at(at, Event::Begin(which));
        }
        world
    }

    fn run(&mut self) {
        let heal_at = self.plan.heal_at_us;
        let mut next_look = heal_at;
        while let Some(((at, _), event)) = self.queue.pop_first() {
            if at >= heal_at && !self.healing {
                self.now = Instant(heal_at);
                self.heal();
            }
            if self.healing && at >= next_look {
                if self.converged().is_ok() {
                    if self.probed && self.forgotten().is_ok() {
                        break;
                    }
                    self.probe();
                }
                next_look = at + 50_000;
            }
            if at > heal_at + HEAL_US || self.oracle.violation.is_some() {
                break;
            }
            self.now = Instant(at);
            self.handle(event);
            for i in 0..self.hosts.len() {
                while core::mem::take(&mut self.hosts[i].locks_changed) {
                    self.pump(i);
                }
            }
        }
        if self.oracle.violation.is_none() {
            self.final_checks();
        }
    }

    fn verdict(self) -> Verdict {
        Verdict {
            trace_hash: self.trace.finish(),
            violation: self.oracle.violation.map(|v| (self.now.0, v)),
            coverage: self.coverage,
            story: self.story.unwrap_or_default(),
        }
    }

    /// Which host an event happens on.
    fn place(&self, event: &Event) -> Option<usize> {
        match event {
            Event::Arrive(_, to, ..) | Event::Item { to, .. } => Some(*to),
            Event::Decode(from, _) => Some(*from),
            Event::Wake(i, _) | Event::Op(i, ..) => Some(*i),
            Event::Begin(_) | Event::Fault(_) | Event::Change(..) | Event::Births => None,
        }
    }

    fn handle(&mut self, event: Event) {
        if let Some(host) = self.place(&event).and_then(|i| self.hosts.get_mut(i))
            && host.frozen
        {
            host.parked.push(event);
            return;
        }
        match event {
            Event::Arrive(from, to, packet, id) => {
                if self.hosts.get(to).is_none_or(|h| h.up) {
                    self.tell(|| What::Arrived(id));
                }
                self.arrive(from, to, packet);
            }
            Event::Decode(from, to) => self.decode(from, to),
            Event::Item { from, to, connection, gid, body } => {
                self.item(from, to, connection, gid, body);
            }
            Event::Wake(i, at) => {
                if self.hosts[i].wake_at == Some(at) {
                    self.hosts[i].wake_at = None;
                    self.feed(i, Input::Generation(generations::Input::Wake));
                }
            }
            Event::Op(i, life, op) => {
                if self.hosts[i].life == life && self.hosts[i].up {
                    self.operate(i, op);
                }
            }
            Event::Begin(which) => self.begin(which),
            Event::Change(which, tries) => self.change(which, tries),
            Event::Births => self.births(),
            Event::Fault(which) => {
                let fault = self.plan.faults[which].1;
                if !self.healing {
                    self.fault(fault);
                }
            }
        }
    }

    fn at(&mut self, at: u64, event: Event) {
        self.queued += 1;
        self.queue.insert((at, self.queued), event);
    }

    fn after(&mut self, us: u64, event: Event) {
        self.at(self.now.0 + us, event);
    }

    fn op(&mut self, i: usize, us: u64, op: Op) {
        let life = self.hosts[i].life;
        self.after(us, Event::Op(i, life, op));
    }

    fn tell(&mut self, what: impl FnOnce() -> What) {
        if let Some(story) = &mut self.story {
            story.push(Moment { at: self.now.0, what: what() });
        }
    }

    fn tell_generation(&mut self, i: usize) {
        let generation = self.current(i).generation;
        let now = (generation.num, self.serves(i));
        if self.story.is_some() && self.told_generation[i] != now {
            self.told_generation[i] = now;
            self.tell(|| What::Generation(i, now.0, generation.members, now.1));
        }
    }

    /// One step of a host's machine, and what it asks for.
    fn feed(&mut self, i: usize, input: Input) {
        if !self.hosts[i].up {
            return;
        }
        let now = self.local(i);
        (now, i, input).hash(&mut self.trace);
        self.coverage.steps += 1;
        if is_news(&input) {
            self.tell(|| What::Input(i, input));
        }
        let mut out = Outbox::new();
        let host = &mut self.hosts[i];
        let mut machine = Node::new(&mut host.core, &mut host.slots);
        let before = machine.membership().wanted().is_none().then(|| machine.held().collect());
        let result = machine.step(now, input, &mut out);
        // What a ParallelSafe record says is taken in the same step (the driver holds the lock).
        let safe = |e: &Effect| matches!(e, Effect::WriteParallelSafe(_));
        let held: Vec<(Gid, bool)> = if out.as_slice().iter().any(safe) {
            let early = self.plan.planted == Some(Planted::Driver(Driver::HeldEarly));
            if early { host.held_before.clone() } else { machine.held().collect() }
        } else {
            Vec::new()
        };
        if let Some(before) = before {
            host.held_before = before;
        }
        if let Err(misuse) = result {
            self.oracle.violated("NoMisuse", format!("n{}: {input:?}: {misuse}", i + 1));
            return;
        }
        for effect in out.drain() {
            self.effect(i, effect, &held);
        }
        self.schedule_wake(i);
        self.tell_generation(i);
        self.note_configured(i);
        self.check_host(i);
    }

    fn schedule_wake(&mut self, i: usize) {
        let host = &mut self.hosts[i];
        let machine = Node::new(&mut host.core, &mut host.slots);
        let Some(at) = machine.deadline() else { return };
        let at = host.world_at(at).max(self.now.0 + 1);
        if host.wake_at.is_none_or(|old| at < old) {
            host.wake_at = Some(at);
            self.at(at, Event::Wake(i, at));
        }
    }

    /// Whether the driver neglects this duty.
    fn neglects(&self, duty: Driver) -> bool {
        self.plan.planted == Some(Planted::Driver(duty))
    }

    /// What the clock of a host says.
    fn local(&self, i: usize) -> Instant {
        self.hosts[i].shows_at(self.now.0)
    }

    fn serves(&self, i: usize) -> bool {
        self.hosts[i].up && !self.hosts[i].frozen && self.hosts[i].core.membership().is_online()
    }

    fn current(&self, i: usize) -> mtm_generations::Elected {
        *self.hosts[i].core.membership().current()
    }

    fn all(&self) -> NodeSet {
        NodeSet::first(self.hosts.len() as u8)
    }
}

/// FNV-1a, the same on every platform and in every run.
#[derive(Clone, Copy, Debug)]
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01B3);
        }
    }
}
