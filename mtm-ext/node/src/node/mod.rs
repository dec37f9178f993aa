//! One node of the cluster: its table of transactions and its membership under one lock.
//!
//! Owns: which transaction is where, who may announce and prepare when (the barrier), the fence
//! after a restart, settlement as the proposer, bookkeeping of recovery. Must never: let two
//! outcomes of one transaction win, let a decision leave before it is durable, move to another
//! generation while somebody is between "checked the generation" and "written to the WAL".

mod bug;
mod io;
mod own;
mod peers;
mod readers;
mod recovery;
mod retention;
mod retry;
mod room;
mod settle;

pub use bug::Bug;
pub use io::{Effect, Found, Input, Misuse, Outcome, Rejection};
pub use retention::Below;
use retention::Retention;

use crate::entry::{Entry, Role, Waits};
use crate::peer_message::PeerMessage;
use crate::table::{Slot, Table};
use mtm_core::{GenNum, Gid, Instant, MAX_NODES, Machine, NodeId, NodeSet, Outbox, Xid};
use mtm_generations as generations;
use mtm_generations::{Membership, StatusInGeneration};
use mtm_paxos::commit::{CoordinatorState, ParticipantState, Report};

/// The fixed-size part of a node's state.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Core {
    membership: Membership,
    /// How many are between "checked the generation" and "written to the WAL": the generation
    /// lock, held shared (design section 2, The barrier).
    in_barrier: u32,
    /// Own transactions that are decided but whose commit record is not durable.
    deciding: u32,
    /// What recovery has asked for and is not durable yet.
    recovery_work: u32,
    retry_us: u64,
    next_retry: Option<Instant>,
    retention: Retention,
    /// One more than the highest number of each origin that a restart has found.
    found: Below,
    /// The last generation that this node has recovered into.
    recovered_into: GenNum,
    /// Readers may miss something that recovery or a restart has brought.
    unsettled: bool,
    #[cfg(feature = "planted-bugs")]
    planted: Option<Bug>,
}

impl Core {
    /// A node with this membership, which asks again every `retry_us`.
    pub const fn new(membership: Membership, retry_us: u64) -> Self {
        Self {
            membership,
            in_barrier: 0,
            deciding: 0,
            recovery_work: 0,
            retry_us,
            next_retry: None,
            retention: Retention::new(),
            found: [Xid(0); MAX_NODES as usize],
            recovered_into: GenNum(0),
            unsettled: false,
            #[cfg(feature = "planted-bugs")]
            planted: None,
        }
    }

    /// Breaks one rule, for tests of the tests.
    #[cfg(feature = "planted-bugs")]
    #[must_use]
    pub fn with_bug(mut self, bug: Option<Bug>) -> Self {
        self.planted = bug;
        if bug == Some(Bug::NoFence) && self.membership.is_fenced() {
            let fall = generations::Input::Fenced(false);
            let step = self.membership.step(Instant(0), fall, &mut Outbox::new());
            assert!(step.is_ok(), "the fence may always fall");
        }
        self
    }

    /// The node's membership.
    pub const fn membership(&self) -> &Membership {
        &self.membership
    }
}

/// A node's whole state, borrowed for a step.
#[derive(Debug)]
pub struct Node<'a> {
    core: &'a mut Core,
    table: Table<'a, Entry>,
}

impl<'a> Node<'a> {
    /// Views a node's state; the caller holds the lock that guards it.
    pub const fn new(core: &'a mut Core, slots: &'a mut [Slot<Entry>]) -> Self {
        Self { core, table: Table::new(slots) }
    }

    /// The node's membership.
    pub const fn membership(&self) -> &Membership {
        &self.core.membership
    }

    /// All transactions in the table.
    pub fn transactions(&self) -> impl Iterator<Item = (&Gid, &Entry)> {
        self.table.iter()
    }

    /// One transaction.
    pub fn transaction(&self, gid: &Gid) -> Option<Entry> {
        self.table.get(gid).copied()
    }

    /// How many transactions are in the table.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// How many transactions the table has room for.
    pub const fn capacity(&self) -> usize {
        self.table.capacity()
    }

    /// What is not finished on this node, and what it waits for.
    pub fn undecided(&self) -> impl Iterator<Item = (Gid, Waits)> {
        self.table.iter().filter_map(|(gid, entry)| entry.waits().map(|waits| (*gid, waits)))
    }

    /// What a ParallelSafe record says of this node: transactions of others that it may still
    /// commit, and whether it has accepted abort. One that is being committed counts as held,
    /// since its commit record may come after ParallelSafe.
    pub fn held(&self) -> impl Iterator<Item = (Gid, bool)> {
        self.table.iter().filter_map(|(gid, entry)| match &entry.role {
            Role::Peer(p) if p.is_undecided() => {
                Some((*gid, p.state() != ParticipantState::Prepared))
            }
            Role::Peer(p) if matches!(p.state(), ParticipantState::Committing(_)) => {
                Some((*gid, false))
            }
            Role::Peer(_) | Role::Own(_) => None,
        })
    }

    /// What a restart must know of transactions that have left no trace in the server itself: for
    /// the driver to save together with [`Self::forgotten`], and to give back as `Found`. `None`
    /// while recovery's work is under way, which could not be told from finished work: ask later.
    pub fn remembered(&self) -> Option<impl Iterator<Item = (Gid, Found)>> {
        if self.core.recovery_work > 0 {
            return None;
        }
        Some(self.table.iter().filter_map(|(gid, entry)| {
            let found = match &entry.role {
                Role::Own(c) => match c.state() {
                    CoordinatorState::Committed => Found::Committed,
                    CoordinatorState::Aborted => Found::Aborted,
                    // The commit log knows about one that is being committed.
                    _ => Found::AnnouncedOnly { local: entry.local },
                },
                Role::Peer(p) => match p.state() {
                    ParticipantState::Committing(_) | ParticipantState::Committed => {
                        Found::Committed
                    }
                    ParticipantState::Aborted => Found::Aborted,
                    // Still prepared, perhaps: then the restarted node must not hold it.
                    ParticipantState::RollingBack => Found::AbortAccepted { prepared: true },
                    ParticipantState::AbortPending(prepared)
                    | ParticipantState::AbortAccepted(prepared) => {
                        Found::AbortAccepted { prepared }
                    }
                    ParticipantState::Unknown
                    | ParticipantState::Applying
                    | ParticipantState::Preparing(_)
                    | ParticipantState::Prepared
                    | ParticipantState::Refused => return None,
                },
            };
            Some((*gid, found))
        }))
    }

    /// The number of the next own announcement: for the driver to save with the rest.
    pub fn next_number(&self) -> Xid {
        self.core.retention.next_number(self.me())
    }

    /// Whether the barrier is free: nobody is between the check and the WAL.
    pub const fn barrier_is_free(&self) -> bool {
        self.core.in_barrier == 0
    }

    #[cfg(feature = "planted-bugs")]
    fn planted(&self, bug: Bug) -> bool {
        self.core.planted == Some(bug)
    }

    #[cfg(not(feature = "planted-bugs"))]
    #[expect(clippy::unused_self, reason = "the same shape as with the feature")]
    const fn planted(&self, _bug: Bug) -> bool {
        false
    }

    fn me(&self) -> NodeId {
        self.core.membership.node()
    }

    /// A switch waits: new work must not enter the barrier, or the switch would starve.
    fn switch_waits(&self) -> bool {
        self.core.membership.wanted().is_some() && !self.core.membership.is_fenced()
    }

    /// Whether `gid` is stamped with the generation in which this node is ONLINE now.
    fn in_its_generation(&self, gid: Gid) -> bool {
        self.core.membership.is_online()
            && self.core.membership.current().generation.num == gid.generation
    }

    fn enter_barrier(&mut self) {
        self.core.in_barrier += 1;
    }

    fn leave_barrier(&mut self) {
        assert!(self.core.in_barrier > 0, "left the generation barrier without having entered it");
        self.core.in_barrier -= 1;
    }

    fn send(out: &mut Outbox<Effect>, to: NodeSet, message: PeerMessage) {
        if !to.is_empty() {
            out.push(Effect::Send { to, message });
        }
    }

    fn watch(&mut self, now: Instant) {
        let at = now.plus_us(self.core.retry_us);
        self.core.next_retry = Some(self.core.next_retry.map_or(at, |old| old.min(at)));
    }

    /// Passes an input to the membership and translates its effects.
    fn generation(
        &mut self,
        now: Instant,
        input: generations::Input,
        out: &mut Outbox<Effect>,
    ) -> Result<(), Misuse> {
        if let generations::Input::Recovered(num) = input {
            self.core.recovered_into = num.max(self.core.recovered_into);
            self.core.unsettled = true;
        }
        let mut effects = Outbox::new();
        self.core.membership.step(now, input, &mut effects)?;
        let recovers =
            |e: &generations::Effect| matches!(e, generations::Effect::StartRecovery { .. });
        let drop_early = self.planted(Bug::DropEarly) && effects.as_slice().iter().any(recovers);
        translate(effects, out);
        if drop_early {
            let undecided: Vec<Gid> = self.held().map(|(gid, _)| gid).collect();
            for gid in undecided {
                self.drop_undecided(gid, out);
            }
        }
        Ok(())
    }

    /// Moves into the wanted generation if nothing stands in the way (TLA+ `Switch`): nobody in
    /// the barrier, nothing decided without a durable commit record (`Deciding`).
    fn try_switch(&mut self, now: Instant, out: &mut Outbox<Effect>) -> Result<(), Misuse> {
        let free = self.planted(Bug::NoBarrier) || self.core.in_barrier == 0;
        let settled = self.planted(Bug::DecideRace) || self.core.deciding == 0;
        if !self.core.membership.may_switch(now) || !free || !settled {
            return Ok(());
        }
        self.give_up_own(out);
        self.generation(now, generations::Input::Switch, out)?;
        // What was only being applied is not prepared any more: ParallelSafe comes next.
        let num = self.core.membership.current().generation.num;
        let refused = self.planted(Bug::RefusedIsFinal);
        let keeps = |e: &Entry| matches!(e.role, Role::Peer(p) if refused && p.state() == ParticipantState::Refused);
        let gone =
            |(gid, e): &(&Gid, &Entry)| gid.generation < num && e.is_only_applying() && !keeps(e);
        let gone: smallvec::SmallVec<[Gid; 32]> =
            self.table.iter().filter(gone).map(|(gid, _)| *gid).collect();
        for gid in gone {
            self.table.remove(&gid);
            out.push(Effect::Discard(gid));
        }
        self.watch(now);
        Ok(())
    }

    /// At a switch the origin leaves its undecided transactions to others: their rows are in a
    /// running backend only (design section 2, "Not restorable").
    fn give_up_own(&mut self, out: &mut Outbox<Effect>) {
        if self.planted(Bug::SwitchKeep) {
            return;
        }
        let gids: smallvec::SmallVec<[Gid; 32]> = self
            .table
            .iter()
            .filter(
                |(_, e)| matches!(e.role, Role::Own(c) if c.state() != CoordinatorState::GivenUp),
            )
            .map(|(gid, _)| *gid)
            .collect();
        let early = self.planted(Bug::GiveUpAborts);
        for gid in gids {
            if let Some(Entry { role: Role::Own(c), .. }) = self.table.get_mut(&gid)
                && c.give_up()
            {
                if early {
                    out.push(Effect::Answer(gid, Outcome::Aborted));
                }
                out.push(Effect::GiveUp(gid));
            }
        }
    }
}

/// The membership's effects as the node's.
fn translate(mut effects: Outbox<generations::Effect>, out: &mut Outbox<Effect>) {
    for effect in effects.drain() {
        out.push(match effect {
            generations::Effect::Persist { token, record } => Effect::Persist { token, record },
            generations::Effect::Send { to, message, after } => {
                Effect::SendGeneration { to, message, after }
            }
            generations::Effect::SwitchWanted(_) => continue,
            generations::Effect::WriteParallelSafe(num) => Effect::WriteParallelSafe(num),
            generations::Effect::StartRecovery { num, donors } => {
                Effect::StartRecovery { num, donors }
            }
            generations::Effect::Lend { to, sent, for_us, num } => {
                Effect::Lend { to, sent, for_us, num }
            }
            generations::Effect::Recall { to, elected } => Effect::Recall { to, elected },
            generations::Effect::Online(num) => Effect::Online(num),
            generations::Effect::AskReferee(num) => Effect::AskReferee(num),
            generations::Effect::CleanReferee(num) => Effect::CleanReferee(num),
        });
    }
}

impl Machine for Node<'_> {
    type Input = Input;
    type Effect = Effect;
    type Misuse = Misuse;

    fn step(&mut self, now: Instant, input: Input, out: &mut Outbox<Effect>) -> Result<(), Misuse> {
        match input {
            Input::Generation(input) => self.generation(now, input, out)?,
            Input::Announce(local) => self.announce(now, local, out)?,
            // It may be aborted and forgotten by now: the driver was still writing.
            Input::AnnouncementWritten(_) => self.leave_barrier(),
            Input::AnnouncementFailed(gid) => self.announcement_failed(gid),
            Input::AnnouncementDurable(gid) => self.announcement_durable(gid, out),
            Input::Cancel(gid) => self.cancel(gid, out),
            Input::CommitDurable(gid) => self.commit_durable(now, gid, out)?,
            Input::Delivered(gid) => self.delivered(now, gid, out)?,
            Input::TryPrepare(gid) => self.try_prepare(gid, out),
            Input::PrepareDurable(gid) => self.prepare_durable(now, gid, out)?,
            Input::ApplyFailed(gid) => self.apply_failed(now, gid, out),
            Input::AbortDurable(gid) => self.abort_durable(now, gid, out),
            Input::Visible(gid) => self.visible(gid, out),
            Input::Finished(gid) => self.finished(gid, out),
            Input::Conflict { waiter, holder } => self.conflict(waiter, holder, out),
            Input::Replay { num, gid } => self.replay(num, gid, out),
            Input::Drop(gid) => self.drop_undecided(gid, out),
            Input::DonorHolds { num, gid, accepted_abort } => {
                self.donor_holds(num, gid, accepted_abort, out);
            }
            Input::Syncpoint { num, below } => self.syncpoint(num, &below, out),
            Input::Forgotten(below) => {
                self.core.retention.forget(&below);
                self.core.retention.saved(&below);
            }
            Input::Saved(below) => self.core.retention.saved(&below),
            Input::RecoveryDone(gid) => self.recovery_done(now, gid, out),
            Input::DonorHoldsNoMore(num) => self.donor_holds_no_more(num, out),
            Input::Found { gid, found } => self.found(gid, found)?,
            Input::ScanComplete { next } => self.scan_complete(now, next, out)?,
            Input::Message { from, message } => self.message(now, from, message, out)?,
        }
        self.retry(now, out);
        self.retain(now, out);
        self.try_switch(now, out)
    }

    fn deadline(&self) -> Option<Instant> {
        let progress = self.core.retention.deadline().filter(|_| self.serves());
        [self.core.membership.deadline(), self.core.next_retry, progress]
            .into_iter()
            .flatten()
            .min()
    }
}

impl Node<'_> {
    fn message(
        &mut self,
        now: Instant,
        from: NodeId,
        message: PeerMessage,
        out: &mut Outbox<Effect>,
    ) -> Result<(), Misuse> {
        // A fenced node does not answer: it does not know yet what it has.
        if self.core.membership.is_fenced() && !self.planted(Bug::NoFence) {
            return Ok(());
        }
        match message {
            PeerMessage::Prepared(gid) => self.voted(from, gid, true, out),
            PeerMessage::Refused(gid) => self.voted(from, gid, false, out),
            PeerMessage::AskVote(gid) => self.vote_asked(from, gid, out),
            PeerMessage::Decided(gid, decree) => self.decided(gid, decree, out),
            PeerMessage::Committed(gid) => self.peer_committed(from, gid, out),
            PeerMessage::AskAbort(gid) => self.abort_asked(from, gid, gid.generation, out)?,
            PeerMessage::AskAbortIn(gid, num) => self.abort_asked(from, gid, num, out)?,
            PeerMessage::AbortAccepted(gid) => self.abort_accepted(from, gid, out),
            PeerMessage::Query(gid) => self.queried(now, from, gid, out)?,
            PeerMessage::Undecided(_) => {}
            PeerMessage::AskReport(gid, num) => self.report_asked(from, gid, num, out),
            PeerMessage::Report(gid, num, Report::Forgotten) => {
                self.forgotten_elsewhere(gid, num, out);
            }
            PeerMessage::Progress { num, busy, below } => self.progress(from, num, busy, &below),
            PeerMessage::Report(gid, num, report) => self.reported(from, gid, num, report, out),
            PeerMessage::AbortAcceptedIn(gid, num) => self.accepted_in(from, gid, num, out),
        }
        Ok(())
    }

    /// Whether this node serves clients.
    pub fn serves(&self) -> bool {
        self.core.membership.is_online()
    }

    /// Whether this node is a member of its generation.
    fn is_member(&self) -> bool {
        self.core.membership.status_in_generation() != StatusInGeneration::Dead
    }
}
