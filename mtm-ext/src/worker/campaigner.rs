//! mtm-campaigner: the machine's clock, its durable record, and everything about generations:
//! heartbeats, campaigns, who is heard, from whom to recover.

use crate::pg::{bgworker, message, proc, shmem, sqlrun, wal, xact};
use crate::{cluster, dmq, durable, guc, health, machine};
use core::num::NonZero;
use core::sync::atomic::Ordering;
use mtm_core::{Gid, Instant, Lsn, Machine, NodeId, NodeSet, Xid};
use mtm_generations::{Input as Generation, Membership, Record, StatusInGeneration, Timing};
use mtm_logrep::journal::Forgotten;
use mtm_node::user::User;
use mtm_node::wire::Wire;
use mtm_node::{Below, Core, Input, SavedUser};
use pgrx::{PgSqlErrorCode, ereport};

/// Unanswered questions about transactions are asked again after so long.
const RETRY_US: u64 = 300_000;
/// Between two looks at the oldest transaction and at what recovery needs.
const HOUSEKEEPING_US: u64 = 1_000_000;
/// Between two checkpoints of what is remembered of transactions, at most ...
const CHECKPOINT_US: u64 = 5_000_000;
/// ... and sooner when it makes much room in the table of transactions, but not more often.
const CHECKPOINT_PAUSE_US: u64 = 20_000;
/// A checkpoint that cannot be taken just now is tried again after so long.
const CHECKPOINT_AGAIN_US: u64 = 20_000;
/// A node that lacks no more than this asks to be included.
const NEAR: u64 = 1 << 20;
/// A member that is not ONLINE for so long, and so keeps all commits waiting, is left out.
const RECOVERY_LIMIT_US: u64 = 10_000_000;
/// The campaigner looks at its peers at least so often.
const LOOK_US: u64 = 500_000;

struct Campaigner {
    me: NodeId,
    timing: Timing,
    connected: NodeSet,
    /// Peers with an open connection.
    open: NodeSet,
    caught_up: bool,
    /// What the machine was told; an earlier campaigner may have told it something else.
    withdrawn: Option<bool>,
    housekeeping: Instant,
    /// When the next checkpoint is due, and from when on it may be taken.
    checkpoint: Instant,
    no_checkpoint_before: Instant,
    syncpoint: Lsn,
    /// What the last syncpoint says.
    said: Option<Below>,
}

/// Runs until the server stops.
pub fn run() {
    let header = shmem::header();
    bgworker::connect_to_database(header.database.load(Ordering::Relaxed));
    xact::set_applying();
    header.campaigner.store(proc::my_procno(), Ordering::Release);
    let Some(me) = header.me() else { return };
    if header.started.load(Ordering::Acquire) == 0 {
        begin(me);
    }
    health::load();
    header.checkpoint_waits.store(0, Ordering::Release);
    let now = proc::now();
    let mut campaigner = Campaigner {
        me,
        timing: timing(),
        connected: NodeSet::EMPTY,
        open: NodeSet::EMPTY,
        caught_up: false,
        withdrawn: None,
        housekeeping: now,
        checkpoint: now.plus_us(CHECKPOINT_US),
        no_checkpoint_before: now,
        syncpoint: Lsn(0),
        said: None,
    };
    loop {
        bgworker::handle_signals();
        campaigner.turn();
        let wait_us = campaigner.next().since(proc::now()).clamp(1_000, LOOK_US);
        proc::wait(None, Some(wait_us));
    }
}

fn timing() -> Timing {
    let heartbeat_us = u64::from(guc::HEARTBEAT_SEND_TIMEOUT.get().unsigned_abs()) * 1000;
    let patience_us = cluster::recv_timeout_us();
    Timing {
        heartbeat_us,
        patience_us,
        recovery_limit_us: RECOVERY_LIMIT_US,
        lease_us: patience_us,
        ..Timing::default()
    }
}

/// At the server's start: what was unfinished before is found out, behind the fence.
fn begin(me: NodeId) {
    let header = shmem::header();
    let cluster = header.cluster_id.load(Ordering::Relaxed);
    let record = durable::read_record(me, cluster);
    let start = durable::found_at_start(me);
    // A cluster that was made just now has nothing that a new generation would have to settle.
    let new = start.found.is_empty()
        && start.next == Xid(1)
        && start.forgotten.iter().all(|below| *below == Xid(0))
        && record == Record::initial(me, cluster, record.current.generation.members);
    let membership = Membership::new(record, timing(), sqlrun::random_u64(), !new);
    shmem::node(|state| state.begin(Core::new(membership, RETRY_US)));
    if new {
        header.started.store(1, Ordering::Release);
        proc::wake(header.monitor.load(Ordering::Acquire));
        return;
    }
    machine::feed(Input::Forgotten(start.forgotten));
    let n = start.found.len();
    // Only a smaller table than before the start can be too small (specs/adr/0115). This node knows
    // the outcome of what does not fit, and must not take part without.
    let room = machine::look(|node| node.capacity()).unwrap_or_default();
    if n > room {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            format!("{n} transactions from before the start do not fit into {room} places"),
            "Raise multimaster.max_transactions and start the server again."
        );
    }
    for (gid, found) in start.found {
        machine::feed(Input::Found { gid, found });
    }
    super::users::restore(&start.users);
    pgrx::log!("multimaster: {n} transactions from before the start are known");
    machine::feed(Input::ScanComplete { next: start.next });
    header.started.store(1, Ordering::Release);
    proc::wake(header.monitor.load(Ordering::Acquire));
}

impl Campaigner {
    fn turn(&mut self) {
        let now = proc::now();
        self.follow_settings();
        self.follow_health();
        self.listen();
        if machine::look(|node| node.deadline()).flatten().is_some_and(|at| at <= now) {
            machine::generation(Generation::Wake);
        }
        self.choose_donor();
        carry_out();
        if now >= self.housekeeping {
            self.housekeeping = now.plus_us(HOUSEKEEPING_US);
            self.keep_house();
        }
        if now >= self.no_checkpoint_before
            && (now >= self.checkpoint
                || machine::look(|node| node.wants_checkpoint()) == Some(true))
        {
            self.take_checkpoint(now);
        }
    }

    /// When something is to be done at the latest.
    fn next(&self) -> Instant {
        let machine = machine::look(|node| node.deadline()).flatten();
        let header = shmem::header();
        let silent = header.peers_set().iter().filter_map(cluster::heard_until).min();
        let silent = silent.map(|at| at.plus_us(1000));
        [machine, silent]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(self.housekeeping)
            .min(self.housekeeping)
            .min(self.checkpoint)
    }

    fn follow_settings(&mut self) {
        let timing = timing();
        if timing != self.timing {
            self.timing = timing;
            machine::generation(Generation::Timing(timing));
        }
    }

    /// A node that something is wrong with leaves by itself, as long as it is.
    fn follow_health(&mut self) {
        let unfit = health::is_unfit();
        if self.withdrawn != Some(unfit) {
            self.withdrawn = Some(unfit);
            machine::generation(Generation::Withdrawn(unfit));
        }
    }

    /// Tells the machine which peers are heard, and which are gone.
    fn listen(&mut self) {
        let at = proc::now();
        let peers = shmem::header().peers_set();
        let open: NodeSet = peers.iter().filter(|peer| cluster::is_open(*peer)).collect();
        let closed = self.open.difference(open);
        self.open = open;
        if !closed.is_empty() {
            machine::generation(Generation::Closed { peers: closed, at });
        }
        let connected = cluster::connected();
        if connected != self.connected {
            self.connected = connected;
            machine::generation(Generation::Connected(connected));
        }
    }

    /// From whom to read what this node lacks.
    fn choose_donor(&mut self) {
        let header = shmem::header();
        let recovery = shmem::node(|state| state.deferred.recovery);
        let view = machine::look(|node| {
            let membership = node.membership();
            (
                membership.current().generation.num,
                membership.status_in_generation(),
                membership.members_online(),
                membership.is_fenced(),
            )
        });
        let Some((num, status, online, fenced)) = view else { return };
        let candidates = match status {
            StatusInGeneration::Online => NodeSet::EMPTY,
            _ if fenced => NodeSet::EMPTY,
            StatusInGeneration::Dead => online.without(self.me),
            StatusInGeneration::Recovery => match recovery {
                Some((of, donors)) if of == num => donors.without(self.me),
                _ => NodeSet::EMPTY,
            },
        };
        let usable = candidates.intersection(cluster::connected());
        let old = NodeId::new(header.replay_from.load(Ordering::Acquire) as u8);
        // It stays the same one while it can be reached (specs/adr/0105).
        let donor = old.filter(|old| usable.contains(*old)).or_else(|| usable.lowest());
        let generation = header.replay_generation.swap(num.0, Ordering::AcqRel);
        let number = donor.map_or(0, |donor| u32::from(donor.get()));
        let before = header.replay_from.swap(number, Ordering::AcqRel);
        if before != number || (number != 0 && generation != num.0) {
            machine::wake_receivers();
        }
        self.ask_to_be_included(status, donor);
    }

    fn ask_to_be_included(&mut self, status: StatusInGeneration, donor: Option<NodeId>) {
        let near = |peer: &NodeId| {
            let state = shmem::peer(*peer);
            let end = state.log_end.load(Ordering::Acquire);
            end != 0 && end.saturating_sub(state.received_lsn.load(Ordering::Acquire)) <= NEAR
        };
        let replays = |donor: NodeId| shmem::peer(donor).replaying.load(Ordering::Acquire) != 0;
        let caught_up = status == StatusInGeneration::Dead
            && donor.is_some_and(replays)
            && cluster::connected().without(self.me).iter().all(|peer| near(&peer));
        if caught_up != self.caught_up {
            self.caught_up = caught_up;
            machine::generation(Generation::CaughtUp(caught_up));
        }
    }

    fn keep_house(&mut self) {
        let end = wal::inserted();
        let online = machine::look(|node| node.serves().then(|| *node.forgotten()));
        if let Some(forgotten) = online.flatten()
            && end.0 > self.syncpoint.0 + 8192
        {
            self.write_syncpoint(forgotten);
        }
    }

    fn write_syncpoint(&mut self, forgotten: Below) {
        let mut content = Vec::new();
        Forgotten { below: forgotten }.encode(&mut content);
        self.syncpoint = message::log(c"mtm-syncpoint", &content, false);
        self.said = Some(forgotten);
    }

    fn take_checkpoint(&mut self, now: Instant) {
        let waits = &shmem::header().checkpoint_waits;
        let start = wal::inserted();
        let (saved, open) = shmem::node(|state| {
            let users = saved_users(state);
            let saved = state.node().map(|node| {
                let found = node.remembered().map(Iterator::collect::<Vec<_>>)?;
                Some((found, users, *node.forgotten(), node.next_number()))
            });
            let open = state.notes.iter().filter_map(|(_, note)| NonZero::new(note.open)).min();
            (saved, open)
        });
        // What is kept open is in the log only.
        let start = open.map_or(start, |open| start.min(Lsn(open.get())));
        match saved {
            Some(Some((found, users, forgotten, next))) => {
                // Whoever recovers from this node's log needs to know it before it comes to what
                // this makes room for.
                if self.said != Some(forgotten) {
                    self.write_syncpoint(forgotten);
                    message::flush(self.syncpoint);
                }
                durable::take_checkpoint(found, users, forgotten, next, start);
                machine::feed(Input::Saved(forgotten));
                self.checkpoint = now.plus_us(CHECKPOINT_US);
                self.no_checkpoint_before = now.plus_us(CHECKPOINT_PAUSE_US);
            }
            // Recovery's work is under way.
            Some(None) => {
                self.no_checkpoint_before = now.plus_us(CHECKPOINT_AGAIN_US);
                return waits.store(1, Ordering::Release);
            }
            None => self.checkpoint = now.plus_us(CHECKPOINT_US),
        }
        if waits.swap(0, Ordering::AcqRel) != 0
            && let Some(replayer) = super::recovery::replayer()
        {
            proc::wake(replayer);
        }
    }
}

/// Users' transactions as a restart must know them.
fn saved_users(state: &mut shmem::NodeState) -> Vec<SavedUser> {
    let users = state.users();
    let saved = |(first, user): (&Gid, &User)| {
        let User { name, local, stage } = *user;
        SavedUser { first: *first, name, local, stage }
    };
    users.iter().map(saved).collect()
}

/// What other processes' steps left to this one.
fn carry_out() {
    loop {
        let (persist, messages) = shmem::node(|state| {
            let durable = state.deferred.durable;
            let mut ready = Vec::new();
            for place in &mut state.deferred.messages {
                if place.is_some_and(|(_, _, after)| after.is_none_or(|token| token <= durable)) {
                    ready.extend(place.take());
                }
            }
            (state.deferred.persist, ready)
        });
        let idle = persist.is_none() && messages.is_empty();
        for (to, message, _) in messages {
            dmq::send_wire(to, &Wire::Generation(message));
        }
        if let Some((token, record)) = persist {
            durable::write_record(&record);
            crate::api::history::note(&record.current);
            machine::feed_after(Input::Generation(Generation::Persisted(token)), |state| {
                state.deferred.durable = token;
                if state.deferred.persist.is_some_and(|(newest, _)| newest == token) {
                    state.deferred.persist = None;
                }
            });
        }
        if idle {
            return;
        }
    }
}
