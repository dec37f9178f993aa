//! Shared memory: its layout, its locks, and safe access to it.
//!
//! | lock           | guards                                             | held for |
//! |----------------|----------------------------------------------------|----------|
//! | `CONFIG`       | `Header::conninfo`                                 | copies   |
//! | `NODE`         | the `Node` machine, users' names, driver's notes   | one step |
//! | `WORKERS`      | the slots of apply workers                         | one step |
//! | `HEALTH`       | `Header::fitness`: why this node stays out          | copies   |
//! | `RING + i`     | the producing side of the ring to node `i + 1`     | one push |
//! | `LINE + i`     | the same of the ring to that node's receiver       | one push |
//!
//! Everything else in the header is atomic. No lock is taken while another is held, and nothing
//! inside a locked section can raise an ERROR.

use super::proc::{self, NO_PROC, ProcNo};
use crate::health::Health;
use core::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use mtm_core::{GenNum, Gid, Lsn, MAX_NODES, NodeId, NodeSet, Token};
use mtm_dmq::holder::Holder;
use mtm_dmq::ring::Ring;
use mtm_generations as generations;
use mtm_node::message::{MAX_TEXT, Refusal};
use mtm_node::table::{Slot, Table};
use mtm_node::user::{Obstacle, Operation, User, Users};
use mtm_node::{Core, Entry, Node, Outcome, Role};
use mtm_paxos::commit::{Decree, ParticipantState};
use pgrx::pg_sys;

const NODES: usize = MAX_NODES as usize;
const RING_BYTES: usize = 256 * 1024;
const LINE_BYTES: usize = 64 * 1024;
/// Longest conninfo that fits, in bytes.
pub const MAX_CONNINFO: usize = 1024;
const TRANCHE: &core::ffi::CStr = c"multimaster";

const CONFIG: usize = 0;
const WORKERS: usize = 1;
const NODE: usize = 2;
const HEALTH: usize = 3;
const RING: usize = 4;
const LINE: usize = RING + NODES;
const LOCKS: usize = LINE + NODES;

/// Text of bounded length.
#[derive(Clone, Copy)]
pub struct Text<const N: usize> {
    len: u16,
    bytes: [u8; N],
}

impl<const N: usize> Text<N> {
    /// The longest prefix of `text` that fits and ends at a character.
    pub fn new(text: &str) -> Self {
        let mut end = text.len().min(N);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut bytes = [0; N];
        bytes[..end].copy_from_slice(&text.as_bytes()[..end]);
        Self { len: end as u16, bytes }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

/// A member's refusal, as it came.
#[derive(Clone, Copy)]
pub struct RefusalCopy {
    /// Who refused.
    pub from: NodeId,
    /// Its SQLSTATE.
    pub sqlstate: [u8; 5],
    /// Its message.
    pub message: Text<MAX_TEXT>,
    /// Its detail.
    pub detail: Text<MAX_TEXT>,
}

impl RefusalCopy {
    /// What `from` said.
    pub fn new(from: NodeId, refusal: &Refusal<'_>) -> Self {
        Self {
            from,
            sqlstate: refusal.sqlstate,
            message: Text::new(refusal.message),
            detail: Text::new(refusal.detail),
        }
    }
}

/// What the driver keeps for a process whose transaction is announced; one per process.
#[derive(Clone, Copy)]
pub struct Backend {
    /// The transaction, from its announcement to its end.
    pub gid: Option<Gid>,
    /// It may, and must, be committed: write the commit record.
    pub commit: bool,
    /// What the client is to be told.
    pub outcome: Option<Outcome>,
    /// Its outcome is decided by others.
    pub gave_up: bool,
    /// Set when it lost a conflict here: against this transaction.
    pub lost_to: Option<Gid>,
    /// What it lost was the name of a user's transaction.
    pub lost_name: bool,
    /// What the transaction does to a user's: it takes the name in the step that announces it.
    pub operation: Option<Operation>,
    /// Why it could not.
    pub obstacle: Option<Obstacle>,
    /// Wants to be woken when the node's state changes.
    pub waits: bool,
}

impl Backend {
    /// Nothing announced.
    pub const FREE: Self = Self {
        gid: None,
        commit: false,
        outcome: None,
        gave_up: false,
        lost_to: None,
        lost_name: false,
        operation: None,
        obstacle: None,
        waits: false,
    };
}

/// What the driver keeps for another node's transaction that a process here has.
#[derive(Clone, Copy)]
pub struct Note {
    /// The process that has it, an apply worker in most cases.
    pub worker: ProcNo,
    /// Whether that process carries the decision out: nobody else may.
    pub taken: bool,
    /// Set when it lost a conflict here: against this transaction of this node.
    pub lost_to: Option<Gid>,
    /// That process keeps it open, or has committed it and that is not durable: the promise, or
    /// the commit's need of it, is in the log from here on. 0 otherwise.
    pub open: u64,
    /// It is committed and seen, and durable when the log is flushed up to here. 0 otherwise. Any
    /// process may note it as finished then.
    pub seen: u64,
}

/// Messages of generations that wait for a process or for the disk.
const MAX_DEFERRED: usize = 64;

/// What a step left to `mtm-campaigner`.
#[derive(Clone, Copy)]
pub struct Deferred {
    /// Up to here records are durable.
    pub durable: Token,
    /// The newest record that is not durable.
    pub persist: Option<(Token, generations::Record)>,
    /// Messages, each with what must be durable before.
    pub messages: [Option<(NodeSet, generations::Message, Option<Token>)>; MAX_DEFERRED],
    /// The node became ONLINE, or must recover: receivers and waiting processes look again.
    pub recovery: Option<(GenNum, NodeSet)>,
    /// The referee is to be asked.
    pub ask_referee: Option<GenNum>,
    /// The referee is to be cleaned.
    pub clean_referee: Option<GenNum>,
}

impl Deferred {
    const NONE: Self = Self {
        durable: Token(0),
        persist: None,
        messages: [None; MAX_DEFERRED],
        recovery: None,
        ask_referee: None,
        clean_referee: None,
    };

    /// Keeps a message for the campaigner. One that finds no place is lost like any other:
    /// whoever waits for it asks again.
    pub fn push(&mut self, to: NodeSet, message: generations::Message, after: Option<Token>) {
        if let Some(place) = self.messages.iter_mut().find(|place| place.is_none()) {
            *place = Some((to, message, after));
        }
    }
}

/// The machine and what its driver notes, under their lock.
pub struct NodeState {
    core: &'static mut Option<Core>,
    slots: &'static mut [Slot<Entry>],
    users: &'static mut [Slot<User>],
    /// By process.
    pub backends: &'static mut [Backend],
    /// The first refusal that came, by process as `backends`: apart from them, for it is large.
    pub refusals: &'static mut [Option<RefusalCopy>],
    /// By transaction.
    pub notes: Table<'static, Note>,
    /// For the campaigner.
    pub deferred: &'static mut Deferred,
}

impl NodeState {
    /// The machine; `None` until the campaigner has read the durable state.
    pub fn node(&mut self) -> Option<Node<'_>> {
        self.core.as_mut().map(|core| Node::new(core, self.slots))
    }

    /// How far another node's transaction is here, if there is one of this name.
    pub fn participant(&mut self, gid: &Gid) -> Option<ParticipantState> {
        match self.node()?.transaction(gid)?.role {
            Role::Peer(peer) => Some(peer.state()),
            Role::Own(_) => None,
        }
    }

    /// Gives the machine its first state.
    pub fn begin(&mut self, core: Core) {
        self.slots.fill(Slot::FREE);
        self.users.fill(Slot::FREE);
        *self.deferred = Deferred::NONE;
        *self.core = Some(core);
    }

    /// Takes the machine away: the node has left its cluster.
    pub fn end(&mut self) {
        *self.core = None;
    }

    /// Users' two-phase transactions.
    pub fn users(&mut self) -> Users<'_> {
        Users::new(self.users)
    }

    /// The operation of this transaction, if it is one on a user's, has ended here.
    pub fn end_operation(&mut self, gid: &Gid, outcome: Decree) {
        let mut users = self.users();
        if let Some(operation) = users.operation_of(gid) {
            users.end(*gid, &operation, outcome);
        }
    }

    /// The process that announced this transaction.
    pub fn backend_of(&mut self, gid: &Gid) -> Option<(ProcNo, &mut Backend)> {
        let at = self.backends.iter().position(|b| b.gid == Some(*gid))?;
        Some((at as ProcNo, &mut self.backends[at]))
    }

    /// Keeps why a member refuses the transaction of this process.
    pub fn refuse(&mut self, gid: &Gid, refusal: &RefusalCopy) {
        if let Some((procno, _)) = self.backend_of(gid) {
            self.refusals[procno as usize].get_or_insert(*refusal);
        }
    }

    /// Frees this process' place, or takes it for a transaction.
    pub fn occupy(&mut self, gid: Option<Gid>) {
        let at = proc::my_procno() as usize;
        self.backends[at] = Backend { gid, ..Backend::FREE };
        self.refusals[at] = None;
    }

    /// This process' place.
    pub fn mine(&mut self) -> &mut Backend {
        &mut self.backends[proc::my_procno() as usize]
    }
}

/// An apply worker.
#[derive(Clone, Copy)]
pub struct WorkerSlot {
    /// Whether the slot is taken.
    pub used: bool,
    /// Node whose transactions it applies.
    pub origin: NodeId,
    /// Its process once it runs.
    pub procno: ProcNo,
    /// Its process' pid once it runs.
    pub pid: i32,
    /// Its receiver.
    pub receiver: ProcNo,
    /// Segment with its ring.
    pub segment: u32,
    /// The transaction it has.
    pub gid: Option<Gid>,
    /// Transactions handed to it and finished by it.
    pub handed: u64,
    /// See `handed`.
    pub done: u64,
    /// Whether it replays what a donor has committed. It takes several at a time then, its receiver
    /// reads how they went, and frees the slot after its end.
    pub replays: bool,
    /// Of the last 64 transactions, those that it could not replay: bit `n % 64` for the `n`th.
    pub failed: u64,
    /// End of its last commit record.
    pub committed: Lsn,
    /// Its process has ended, and its receiver has not read how far it came.
    pub ended: bool,
}

const FREE_WORKER: WorkerSlot = WorkerSlot {
    used: false,
    origin: match NodeId::new(1) {
        Some(node) => node,
        None => unreachable!(),
    },
    procno: NO_PROC,
    pid: 0,
    receiver: NO_PROC,
    segment: 0,
    gid: None,
    handed: 0,
    done: 0,
    replays: false,
    failed: 0,
    committed: Lsn(0),
    ended: false,
};

/// What is known of a peer.
pub struct Peer {
    /// When its last message came; monotonic us, 0 if none since the link broke.
    pub last_heard_us: AtomicU64,
    /// Backend that receives its messages, 0 if none.
    pub inbox_pid: AtomicI32,
    /// Whether our link to it is up.
    pub link_up: AtomicU32,
    /// When it was last found up, while it is not; monotonic us.
    pub last_linked_us: AtomicU64,
    /// The process that serves its receiver's own line to this node (`worker::line`).
    pub line: AtomicI32,
    /// When our receiver of its stream was last found streaming; monotonic us.
    pub last_streamed_us: AtomicU64,
    /// End of its flushed log as it said last.
    pub log_end: AtomicU64,
    /// 1 while our receiver reads every origin's commits from it.
    pub replaying: AtomicU32,
    /// Our receiver of its stream.
    pub receiver_pid: AtomicI32,
    /// The same receiver's process slot.
    pub receiver: AtomicI32,
    /// The walsender that sends this node's transactions to it, 0 if none.
    pub walsender_pid: AtomicI32,
    /// 1 while our receiver waits for an idle apply worker.
    pub wants_worker: AtomicU32,
    /// Whether our receiver streams.
    pub streaming: AtomicU32,
    /// Position up to which its stream was received.
    pub received_lsn: AtomicU64,
    /// Position up to which everything it announced is finished here.
    pub finished_lsn: AtomicU64,
    /// Apply workers for its transactions.
    pub n_workers: AtomicI32,
}

/// The fixed part of shared memory.
pub struct Header {
    /// 1 when this node belongs to a cluster.
    pub configured: AtomicU32,
    /// Number of this node, 0 if none.
    pub my_id: AtomicU32,
    /// The replicated database.
    pub database: AtomicU32,
    /// Configured nodes.
    pub nodes: AtomicU64,
    /// Name of the cluster, drawn at random when it was made.
    pub cluster_id: AtomicU64,
    /// Until then clients are served without another look at the machine; monotonic us. Set and
    /// taken back under `NODE` only.
    pub serving_until_us: AtomicU64,
    /// When the replay of `replay_from` began; monotonic us.
    pub replay_begun_us: AtomicU64,
    /// Where in that node's log it began.
    pub replay_begun_lsn: AtomicU64,
    /// 1 once the machine has its state: unfinished work from before the start is known.
    pub started: AtomicU32,
    /// Node whose log is replayed here, 0 if none: see `replay_generation`.
    pub replay_from: AtomicU32,
    /// The generation for which it is.
    pub replay_generation: AtomicU64,
    /// The process that replays it, or that brings the replay before it to its end: the next one
    /// waits for that.
    pub replayer: Holder,
    /// 1 while a checkpoint waits for the moment in which recovery has nothing under way.
    pub checkpoint_waits: AtomicU32,
    /// When walsenders were last woken for records that our streams skip; monotonic us.
    pub streams_woken_us: AtomicU64,
    /// Processes that others wake.
    pub monitor: AtomicI32,
    /// See `monitor`.
    pub sender: AtomicI32,
    /// See `monitor`.
    pub resolver: AtomicI32,
    /// See `monitor`.
    pub campaigner: AtomicI32,
    /// See `monitor`.
    pub health: AtomicI32,
    /// 1 while there is a cause for this node to stay out by itself.
    pub unfit: AtomicU32,
    /// 1 when a transaction was refused for this node's own sake and none was prepared since.
    pub refuses: AtomicU32,
    /// Peers by `NodeId::index`.
    pub peers: [Peer; NODES],
    conninfo: [Text<MAX_CONNINFO>; NODES],
    fitness: Health,
}

struct Shared {
    header: *mut Header,
    core: *mut Option<Core>,
    deferred: *mut Deferred,
    backends: *mut Backend,
    refusals: *mut Option<RefusalCopy>,
    n_backends: usize,
    entries: *mut Slot<Entry>,
    n_entries: usize,
    users: *mut Slot<User>,
    n_users: usize,
    notes: *mut Slot<Note>,
    n_notes: usize,
    workers: *mut WorkerSlot,
    n_workers: usize,
    rings: *const AtomicU64,
    locks: *mut pg_sys::LWLockPadded,
}

static SHARED: AtomicPtr<Shared> = AtomicPtr::new(core::ptr::null_mut());

fn shared() -> &'static Shared {
    let shared = SHARED.load(Ordering::Relaxed);
    assert!(!shared.is_null(), "multimaster's shared memory is not there");
    // SAFETY: set once per server start from a leaked box, before any other process exists.
    unsafe { &*shared }
}

/// The fixed part.
pub fn header() -> &'static Header {
    // SAFETY: lives in PostgreSQL's main shared memory, which outlives this process; all its
    // public fields are atomics.
    unsafe { &*shared().header }
}

/// A peer's part of the header.
pub fn peer(node: NodeId) -> &'static Peer {
    &header().peers[node.index()]
}

/// Unfinished transactions of the cluster, and finished ones that are not forgotten yet.
fn entries() -> usize {
    crate::guc::MAX_TRANSACTIONS.get().unsigned_abs() as usize
}

/// How much of everything there is a place for.
struct Sizes {
    backends: usize,
    workers: usize,
    notes: usize,
    users: usize,
}

fn sizes() -> Sizes {
    // SAFETY: plain variables, final when shared memory is requested (15: MaxBackends is set).
    let (backends, prepared, workers) = unsafe {
        (
            pg_sys::MaxBackends as usize,
            super::sys::max_prepared_xacts as usize,
            pg_sys::max_worker_processes as usize,
        )
    };
    // A user's transaction is prepared, or a session is about to prepare it.
    Sizes { backends, workers, notes: 8 * (prepared + 64) + 1024, users: prepared + backends }
}

const fn align(n: usize) -> usize {
    (n + 63) & !63
}

fn ring_words() -> usize {
    Ring::words_for(RING_BYTES)
}

fn line_words() -> usize {
    Ring::words_for(LINE_BYTES)
}

fn total() -> usize {
    let sizes = sizes();
    align(size_of::<Header>())
        + align(size_of::<Option<Core>>())
        + align(size_of::<Deferred>())
        + align(sizes.backends * size_of::<Backend>())
        + align(sizes.backends * size_of::<Option<RefusalCopy>>())
        + align(entries() * size_of::<Slot<Entry>>())
        + align(sizes.users * size_of::<Slot<User>>())
        + align(sizes.notes * size_of::<Slot<Note>>())
        + align(sizes.workers * size_of::<WorkerSlot>())
        + align(NODES * (ring_words() + line_words()) * 8)
}

static mut PREVIOUS_REQUEST: pg_sys::shmem_request_hook_type = None;
static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;

/// Installs the hooks that ask for shared memory. Only in `_PG_init` under
/// `shared_preload_libraries`.
pub fn init() {
    // SAFETY: _PG_init runs in the single-threaded postmaster; hooks are chained.
    unsafe {
        PREVIOUS_REQUEST = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(request);
        PREVIOUS_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(startup);
    }
}

#[pgrx::pg_guard]
extern "C-unwind" fn request() {
    // SAFETY: called by the postmaster at the time when requests are taken.
    unsafe {
        if let Some(previous) = PREVIOUS_REQUEST {
            previous();
        }
        pg_sys::RequestAddinShmemSpace(total());
        pg_sys::RequestNamedLWLockTranche(TRANCHE.as_ptr(), LOCKS as i32);
    }
}

#[pgrx::pg_guard]
extern "C-unwind" fn startup() {
    // SAFETY: called by the postmaster after shared memory exists; the block is ours alone and
    // written before any other process is started. AddinShmemInitLock is LWLock 21 of the main
    // array and serialises such set-up.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP {
            previous();
        }
        let mut found = false;
        let start = pg_sys::ShmemInitStruct(TRANCHE.as_ptr(), total(), &raw mut found).cast::<u8>();
        let sizes = sizes();
        let header = start.cast::<Header>();
        let core = start.add(align(size_of::<Header>()));
        let deferred = core.add(align(size_of::<Option<Core>>()));
        let backends = deferred.add(align(size_of::<Deferred>()));
        let refusals = backends.add(align(sizes.backends * size_of::<Backend>()));
        let n_entries = entries();
        let entries = refusals.add(align(sizes.backends * size_of::<Option<RefusalCopy>>()));
        let users = entries.add(align(n_entries * size_of::<Slot<Entry>>()));
        let notes = users.add(align(sizes.users * size_of::<Slot<User>>()));
        let workers = notes.add(align(sizes.notes * size_of::<Slot<Note>>()));
        let rings = workers.add(align(sizes.workers * size_of::<WorkerSlot>()));
        let shared = Shared {
            header,
            core: core.cast(),
            deferred: deferred.cast(),
            backends: backends.cast(),
            refusals: refusals.cast(),
            n_backends: sizes.backends,
            entries: entries.cast(),
            n_entries,
            users: users.cast(),
            n_users: sizes.users,
            notes: notes.cast(),
            n_notes: sizes.notes,
            workers: workers.cast(),
            n_workers: sizes.workers,
            rings: rings.cast::<AtomicU64>().cast_const(),
            locks: pg_sys::GetNamedLWLockTranche(TRANCHE.as_ptr()),
        };
        if !found {
            format_memory(&shared);
        }
        SHARED.store(Box::into_raw(Box::new(shared)), Ordering::Relaxed);
    }
}

/// Writes an empty state.
///
/// # Safety
/// The block must be ours alone.
unsafe fn format_memory(shared: &Shared) {
    // SAFETY: the pointers cover disjoint parts of one block of `total()` bytes; all-zero bytes
    // are valid atomics, and everything else is written explicitly.
    unsafe {
        core::ptr::write_bytes(shared.header.cast::<u8>(), 0, total());
        let header = &mut *shared.header;
        let procs =
            [&header.monitor, &header.sender, &header.resolver, &header.campaigner, &header.health];
        for atomic in procs {
            atomic.store(NO_PROC, Ordering::Relaxed);
        }
        core::ptr::write(&raw mut header.fitness, Health::fit());
        for peer in &header.peers {
            peer.receiver.store(NO_PROC, Ordering::Relaxed);
            peer.line.store(NO_PROC, Ordering::Relaxed);
        }
        shared.core.write(None);
        shared.deferred.write(Deferred::NONE);
        for i in 0..shared.n_backends {
            shared.backends.add(i).write(Backend::FREE);
            shared.refusals.add(i).write(None);
        }
        for i in 0..shared.n_entries {
            shared.entries.add(i).write(Slot::FREE);
        }
        for i in 0..shared.n_users {
            shared.users.add(i).write(Slot::FREE);
        }
        for i in 0..shared.n_notes {
            shared.notes.add(i).write(Slot::FREE);
        }
        for i in 0..shared.n_workers {
            shared.workers.add(i).write(FREE_WORKER);
        }
        for i in 0..NODES {
            Ring::init(ring_slice(shared, i));
            Ring::init(line_slice(shared, i));
        }
    }
}

fn ring_slice(shared: &Shared, i: usize) -> &'static [AtomicU64] {
    // SAFETY: NODES rings of ring_words() words each lie behind `rings`.
    unsafe { core::slice::from_raw_parts(shared.rings.add(i * ring_words()), ring_words()) }
}

fn line_slice(shared: &Shared, i: usize) -> &'static [AtomicU64] {
    // SAFETY: NODES rings of line_words() words each lie behind the others.
    unsafe {
        let first = shared.rings.add(NODES * ring_words());
        core::slice::from_raw_parts(first.add(i * line_words()), line_words())
    }
}

fn locked<R>(lock: usize, exclusive: bool, body: impl FnOnce(&'static Shared) -> R) -> R {
    let shared = shared();
    let mode =
        if exclusive { pg_sys::LWLockMode::LW_EXCLUSIVE } else { pg_sys::LWLockMode::LW_SHARED };
    // SAFETY: the tranche has LOCKS locks. `body` raises no ERROR, so the release is reached; a
    // panic of ours becomes an ERROR, whose handling releases all LWLocks.
    unsafe {
        let lock = &raw mut (*shared.locks.add(lock)).lock;
        acquire(lock, mode);
        let result = body(shared);
        pg_sys::LWLockRelease(lock);
        result
    }
}

/// Takes a lock. What is done under it takes a few microseconds at most, which is less than going
/// to sleep and being woken: so that comes only after as long a time of trying.
///
/// # Safety
/// A lock of the tranche that this process does not hold.
unsafe fn acquire(lock: *mut pg_sys::LWLock, mode: pg_sys::LWLockMode::Type) {
    // SAFETY: the caller's promise.
    unsafe {
        for _ in 0..TRIES {
            if pg_sys::LWLockConditionalAcquire(lock, mode) {
                return;
            }
            for _ in 0..PAUSES {
                core::hint::spin_loop();
            }
        }
        pg_sys::LWLockAcquire(lock, mode);
    }
}

/// Tries for a lock before sleeping: all together about 10 us.
const TRIES: u32 = 25;
/// Moments between two tries for a lock.
const PAUSES: u32 = 8;

/// Runs `body` with the machine and what its driver notes.
pub fn node<R>(body: impl FnOnce(&mut NodeState) -> R) -> R {
    locked(NODE, true, |shared| {
        // SAFETY: the lock is held exclusively and covers all of it.
        let mut state = unsafe {
            NodeState {
                core: &mut *shared.core,
                slots: core::slice::from_raw_parts_mut(shared.entries, shared.n_entries),
                users: core::slice::from_raw_parts_mut(shared.users, shared.n_users),
                backends: core::slice::from_raw_parts_mut(shared.backends, shared.n_backends),
                refusals: core::slice::from_raw_parts_mut(shared.refusals, shared.n_backends),
                notes: Table::new(core::slice::from_raw_parts_mut(shared.notes, shared.n_notes)),
                deferred: &mut *shared.deferred,
            }
        };
        body(&mut state)
    })
}

/// Runs `body` with the slots of apply workers.
pub fn workers<R>(body: impl FnOnce(&mut [WorkerSlot]) -> R) -> R {
    locked(WORKERS, true, |shared| {
        // SAFETY: the lock is held exclusively and covers all slots.
        body(unsafe { core::slice::from_raw_parts_mut(shared.workers, shared.n_workers) })
    })
}

/// Runs `body` with what is known of this node's fitness.
pub fn health<R>(body: impl FnOnce(&mut Health) -> R) -> R {
    // SAFETY: guarded by HEALTH, held exclusively.
    locked(HEALTH, true, |s| body(unsafe { &mut (*s.header).fitness }))
}

/// A free apply worker's slot.
pub const fn free_worker() -> WorkerSlot {
    FREE_WORKER
}

/// Runs `body` with the ring to `node`, as its only producer.
pub fn produce<R>(node: NodeId, body: impl FnOnce(&Ring<'_>) -> R) -> R {
    locked(RING + node.index(), true, |_| body(&ring(node)))
}

/// The ring to `node`, for its only consumer.
pub fn ring(node: NodeId) -> Ring<'static> {
    Ring::attach(ring_slice(shared(), node.index())).expect("the ring was made at server start")
}

/// Runs `body` with the ring to the receiver of `node`, as its only producer.
pub fn produce_line<R>(node: NodeId, body: impl FnOnce(&Ring<'_>) -> R) -> R {
    locked(LINE + node.index(), true, |_| body(&line(node)))
}

/// The ring to the receiver of `node`, for its only consumer.
pub fn line(node: NodeId) -> Ring<'static> {
    Ring::attach(line_slice(shared(), node.index())).expect("the ring was made at server start")
}

/// Copies out a node's connection string; empty if there is none.
pub fn conninfo(node: NodeId) -> String {
    // SAFETY: guarded by CONFIG, held shared.
    let copy = locked(CONFIG, false, |s| unsafe { (*s.header).conninfo[node.index()] });
    copy.as_str().to_owned()
}

/// Sets a node's connection string.
pub fn set_conninfo(node: NodeId, text: &str) {
    let copy = Text::new(text);
    // SAFETY: guarded by CONFIG, held exclusively.
    locked(CONFIG, true, |s| unsafe { (*s.header).conninfo[node.index()] = copy });
}

impl Header {
    /// This node's number, if it belongs to a cluster.
    pub fn me(&self) -> Option<NodeId> {
        if self.configured.load(Ordering::Acquire) == 0 {
            return None;
        }
        NodeId::new(self.my_id.load(Ordering::Relaxed) as u8)
    }

    /// Configured nodes.
    pub fn configured_nodes(&self) -> NodeSet {
        NodeSet::from_bits(self.nodes.load(Ordering::Acquire)).unwrap_or_default()
    }

    /// Configured nodes other than this one.
    pub fn peers_set(&self) -> NodeSet {
        self.me().map_or(NodeSet::EMPTY, |me| self.configured_nodes().without(me))
    }
}

/// Whether the library was preloaded, so that shared memory is there.
pub fn is_there() -> bool {
    !SHARED.load(Ordering::Relaxed).is_null()
}
