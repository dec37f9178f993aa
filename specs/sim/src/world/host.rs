//! One simulated server: its machine, its database, and what its processes are doing.

use super::network::SILENCE_US;
use super::node;
use crate::database::{Body, Database, Key, Owner};
use crate::plan::{Plan, Shape, UserWord};
use crate::planted::Planted;
use mtm_core::{GenNum, Gid, Instant, LocalXid, NodeId, NodeSet, Token};
use mtm_generations::{Membership, Message, Record, Timing};
use mtm_node::table::Slot;
use mtm_node::user::{Operation, User, Users};
use mtm_node::{Core, Entry, Node};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// How often a waiting node asks again.
const RETRY_US: u64 = 25_000;
/// Everything is quicker than in production: more happens in a second.
const TIMING: Timing = Timing {
    heartbeat_us: 40_000,
    vote_wait_us: 40_000,
    stagger_us: 15_000,
    recovery_limit_us: 3_000_000,
    patience_us: 0,
    lease_us: SILENCE_US,
};
/// Clocks show at least so much, and differ by as much again.
const CLOCK_US: u64 = 60_000_000;
/// Clocks run at rates that differ so much from the world's, in parts of a thousand: less than
/// what leases allow for between two of them.
const RATE: i64 = 40;
/// Places in the table of transactions: enough, and in some worlds so few that work waits for room.
const PLACES: usize = 256;
const FEW_PLACES: usize = 64;
const FEW_IN: u64 = 8;
/// Places for users' two-phase transactions.
const USERS: usize = 16;

/// A backend that runs a client's transaction.
#[derive(Clone, Debug)]
pub(crate) struct Backend {
    pub(crate) body: Body,
    /// What its user says instead of COMMIT.
    pub(crate) word: Option<UserWord>,
    /// So many of them are locked.
    pub(crate) locked: usize,
    pub(crate) working: bool,
    pub(crate) think_us: u64,
    pub(crate) gid: Option<Gid>,
}

/// An apply worker with one transaction.
#[derive(Clone, Debug)]
pub(crate) struct Applier {
    pub(crate) body: Body,
    pub(crate) locked: usize,
    /// All rows are written and names held.
    pub(crate) applied: bool,
    pub(crate) preparing: bool,
    /// The last holder that was reported as a conflict.
    pub(crate) waits_for: Option<Gid>,
}

/// What recovery has been asked to do by the machine, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Task {
    Drop(Gid),
    Apply(Gid),
    Install(Gid, bool),
}

/// A recovery under way.
#[derive(Clone, Debug)]
pub(crate) struct Recovery {
    pub(crate) num: GenNum,
    pub(crate) donors: NodeSet,
    pub(crate) donor: Option<usize>,
    /// Next record of the donor's WAL.
    pub(crate) at: usize,
    /// Where it began there.
    pub(crate) start: usize,
    /// The donor's undecided set was handed over.
    pub(crate) reconciled: bool,
}

/// A receiver of one peer's stream.
#[derive(Clone, Default, Debug)]
pub(crate) struct Receiver {
    pub(crate) connection: u64,
    pub(crate) connected: bool,
    /// Next record of the peer's WAL to be decoded for it.
    pub(crate) at: usize,
    /// When the last transaction arrives: a stream keeps its order.
    pub(crate) arrives: u64,
    /// Transactions to be delivered again.
    pub(crate) held: VecDeque<(Gid, Body)>,
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) up: bool,
    /// No process runs; this is what waits for them.
    pub(crate) frozen: bool,
    pub(crate) parked: Vec<super::Event>,
    /// What its clock shows more than the world's.
    pub(crate) clock: u64,
    /// How much faster than the world's it runs, in parts of a thousand.
    pub(crate) rate: i64,
    /// It exists: a node that is added later does not yet.
    pub(crate) born: bool,
    /// A clone: in which generation, and where its own log begins.
    pub(crate) birth: Option<(GenNum, usize)>,
    /// Which peers' logs reach back to where this node needs them.
    pub(crate) known: Vec<bool>,
    /// Up to where it has everything of each peer's WAL: what that peer keeps for it.
    pub(crate) confirmed: Vec<usize>,
    /// Where it reads on while it is no member.
    pub(crate) catching_up: Option<(GenNum, usize, usize)>,
    /// Counts restarts: what an earlier life had begun does not go on.
    pub(crate) life: u64,
    pub(crate) core: Core,
    pub(crate) slots: Vec<Slot<Entry>>,
    /// Users' two-phase transactions, and which operations hold them.
    pub(crate) users: Vec<Slot<User>>,
    pub(crate) operations: BTreeMap<Gid, Operation>,
    pub(crate) db: Database,
    /// The generation state file.
    pub(crate) state: Record,
    pub(crate) state_pending: VecDeque<(Token, Record)>,
    pub(crate) state_arrives: u64,
    /// What was in it, and since when.
    pub(crate) states: Vec<(u64, Record)>,
    pub(crate) persisted: Token,
    pub(crate) waiting: Vec<(Token, NodeSet, Message)>,
    pub(crate) disk_factor: u64,
    pub(crate) disk_arrives: u64,
    pub(crate) wake_at: Option<u64>,
    pub(crate) heard: BTreeMap<NodeId, Instant>,
    pub(crate) connected: NodeSet,
    /// Peers' transactions that readers see and that may not be durable yet.
    pub(crate) seen: BTreeSet<Gid>,
    /// Own ones that are committed and whose clients wait for the others.
    pub(crate) waiting_clients: BTreeSet<Gid>,
    /// Which life of each peer sent the last sign of life.
    pub(crate) answered: Vec<u64>,
    pub(crate) backends: BTreeMap<u64, Backend>,
    pub(crate) appliers: BTreeMap<Gid, Applier>,
    pub(crate) rows_of: BTreeMap<Gid, Body>,
    pub(crate) receivers: Vec<Receiver>,
    pub(crate) recovery: Option<Recovery>,
    /// When recovery goes on.
    pub(crate) recover_at: Option<u64>,
    pub(crate) caught_up: bool,
    pub(crate) tasks: VecDeque<(Task, Body)>,
    /// Rows locked for the first task, and whether its record is being written.
    pub(crate) task_locked: usize,
    pub(crate) task_writing: bool,
    /// COMMIT PREPARED or ROLLBACK PREPARED is being done.
    pub(crate) finishing: BTreeSet<Gid>,
    /// The server's own transaction numbers, which its commit log knows.
    pub(crate) next_xid: u64,
    pub(crate) locks_changed: bool,
    /// What it held before the last generation was elected.
    pub(crate) held_before: Vec<(Gid, bool)>,
}

impl Host {
    pub(crate) fn new(i: usize, plan: &Plan, seed: u64) -> Self {
        let n = plan.shape.nodes();
        let places = if plan.seed.is_multiple_of(FEW_IN) { FEW_PLACES } else { PLACES };
        let state = Record::initial(node(i), 1, NodeSet::first(plan.initial as u8));
        Self {
            up: i < plan.initial,
            born: i < plan.initial,
            birth: None,
            known: (0..n).map(|peer| peer < plan.initial).collect(),
            frozen: false,
            parked: Vec::new(),
            clock: CLOCK_US + seed % CLOCK_US,
            rate: (seed >> 40) as i64 % (2 * RATE + 1) - RATE,
            confirmed: vec![0; n],
            catching_up: None,
            life: 0,
            core: core(plan, state, seed, false),
            slots: vec![Slot::FREE; places],
            users: vec![Slot::FREE; USERS],
            operations: BTreeMap::new(),
            db: Database::default(),
            state,
            state_pending: VecDeque::new(),
            state_arrives: 0,
            states: vec![(0, state)],
            persisted: Token(0),
            waiting: Vec::new(),
            disk_factor: 1,
            disk_arrives: 0,
            wake_at: None,
            heard: BTreeMap::new(),
            connected: NodeSet::only(node(i)),
            seen: BTreeSet::new(),
            waiting_clients: BTreeSet::new(),
            answered: vec![0; n],
            backends: BTreeMap::new(),
            appliers: BTreeMap::new(),
            rows_of: BTreeMap::new(),
            receivers: vec![Receiver::default(); n],
            recovery: None,
            recover_at: None,
            caught_up: false,
            tasks: VecDeque::new(),
            task_locked: 0,
            task_writing: false,
            finishing: BTreeSet::new(),
            next_xid: 1,
            locks_changed: false,
            held_before: Vec::new(),
        }
    }

    /// Everything that only memory knew is gone.
    pub(crate) fn forget(&mut self, plan: &Plan, seed: u64) {
        self.core = core(plan, self.state, seed, true);
        self.frozen = false;
        self.parked.clear();
        // The monotonic clock of a new boot has nothing to do with the old one's.
        self.clock = CLOCK_US + seed % CLOCK_US;
        self.catching_up = None;
        self.slots.fill(Slot::FREE);
        self.users.fill(Slot::FREE);
        self.operations.clear();
        self.state_pending.clear();
        self.state_arrives = 0;
        self.persisted = Token(0);
        self.waiting.clear();
        self.disk_arrives = 0;
        self.wake_at = None;
        self.heard.clear();
        self.connected = NodeSet::only(self.state.node);
        self.seen.clear();
        self.waiting_clients.clear();
        self.backends.clear();
        self.appliers.clear();
        self.rows_of.clear();
        for receiver in &mut self.receivers {
            *receiver = Receiver { connection: receiver.connection + 1, ..Receiver::default() };
        }
        self.recovery = None;
        self.recover_at = None;
        self.caught_up = false;
        self.tasks.clear();
        self.task_locked = 0;
        self.task_writing = false;
        self.finishing.clear();
    }

    /// The server's number of an own transaction in the table; 0 if it is not there.
    pub(crate) fn local(&mut self, gid: &Gid) -> LocalXid {
        let node = Node::new(&mut self.core, &mut self.slots);
        node.transaction(gid).map_or(LocalXid(0), |entry| entry.local)
    }

    /// What its clock shows at this time of the world.
    pub(crate) fn shows_at(&self, now: u64) -> Instant {
        let more = now as i64 * self.rate / 1000;
        Instant((self.clock + now).saturating_add_signed(more))
    }

    /// When its clock shows that.
    pub(crate) fn world_at(&self, local: Instant) -> u64 {
        let since = local.0.saturating_sub(self.clock);
        (since * 1000).div_ceil((1000 + self.rate) as u64)
    }

    /// Whether readers see what the transaction wrote.
    pub(crate) fn shows(&self, gid: &Gid) -> bool {
        self.db.committed.contains(gid) || self.seen.contains(gid)
    }

    /// Which backend runs this announced transaction.
    pub(crate) fn backend_of(&self, gid: &Gid) -> Option<u64> {
        self.backends.iter().find(|(_, b)| b.gid == Some(*gid)).map(|(id, _)| *id)
    }

    pub(crate) fn owner(&self, key: Key) -> Option<Owner> {
        self.db.locks.get(&key).copied()
    }

    /// What a user has prepared keeps its rows.
    pub(crate) fn keep_locked(&mut self, gid: Gid, body: &Body) {
        if let Some(Operation::Prepare(_)) = body.user {
            for key in &body.keys {
                self.db.locks.insert(*key, Owner::Gid(gid));
            }
        }
    }

    /// The users' transactions.
    pub(crate) fn users(&mut self) -> Users<'_> {
        Users::new(&mut self.users)
    }
}

fn core(plan: &Plan, state: Record, seed: u64, restarted: bool) -> Core {
    let timing = Timing { patience_us: plan.patience_us, ..TIMING };
    let mut membership = Membership::new(state, timing, seed, restarted);
    if plan.shape == Shape::Referee {
        membership = membership.with_referee();
    }
    let (election, commit) = match plan.planted {
        Some(Planted::Election(bug)) => (Some(bug), None),
        Some(Planted::Commit(bug)) => (None, Some(bug)),
        Some(Planted::Driver(_)) | None => (None, None),
    };
    Core::new(membership.with_bug(election), RETRY_US).with_bug(commit)
}
