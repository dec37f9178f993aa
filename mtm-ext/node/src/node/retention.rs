//! When a finished transaction may be forgotten (TLA+ `Forget`), so that the table stays small.
//!
//! Every ONLINE node tells the others, per origin, below which number it has finished everything
//! ("progress"). What all members of a generation, ONLINE in it, have finished is finished for
//! good: whoever is ONLINE later was one of them or recovered from one. So a number below the
//! smallest progress of all members and not in the table means "finished, outcome forgotten":
//! such a transaction is never applied again, and it is never said to be lacking.

use super::{Bug, Effect, Node};
use crate::entry::{Entry, Role};
use crate::peer_message::PeerMessage;
use mtm_core::{GenNum, Gid, Instant, MAX_NODES, NodeId, NodeSet, Outbox, Xid};
use mtm_paxos::commit::{Participant, ParticipantState};

/// Per origin a number: everything of it below that number.
pub type Below = [Xid; MAX_NODES as usize];

/// Everything of a node that says nothing any more.
const NO_MORE: Xid = Xid(u64::MAX);

/// Nothing of anybody.
const NOTHING: Below = [Xid(0); MAX_NODES as usize];

/// What a node knows of everybody's progress.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Retention {
    /// What each node said last while ONLINE in that generation.
    said: [(GenNum, Below); MAX_NODES as usize],
    /// Finished and forgotten.
    pub(super) forgotten: Below,
    /// What the last durable checkpoint calls forgotten: a restart may find everything above it.
    pub(super) saved: Below,
    /// One more than the highest number of which there was an entry here.
    pub(super) highest: Below,
    /// Own announcements go on with this number, or a higher one.
    next_number: Xid,
    /// One more than the highest own number whose announcement is durable. A crash may make the
    /// numbers above it be used again, so nothing is said about them.
    pub(super) durable: Xid,
    next: Option<Instant>,
    last_said: Below,
    asked: bool,
}

impl Retention {
    pub(super) const fn new() -> Self {
        Self {
            said: [(GenNum(0), NOTHING); MAX_NODES as usize],
            forgotten: NOTHING,
            saved: NOTHING,
            highest: NOTHING,
            next_number: Xid(1),
            durable: Xid(0),
            next: None,
            last_said: NOTHING,
            asked: false,
        }
    }

    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.next
    }

    /// The number of the next announcement. Above all that is forgotten of `me`: it may have been
    /// another node with this node's id that announced it.
    pub(super) fn next_number(&self, me: NodeId) -> Xid {
        self.next_number.max(self.forgotten[me.index()])
    }

    pub(super) fn used(&mut self, number: Xid) {
        self.next_number = Xid(number.0 + 1);
    }

    /// After a restart. A number of which nothing was durable is used again, maybe in the same
    /// generation: nobody has heard of that transaction, since a walsender reads only what is
    /// flushed, votes and the outcome of what was given up are asked for only after that, an abort
    /// round begins with a durable record, and no progress was said beyond `durable`.
    pub(super) fn go_on_with(&mut self, next: Xid) {
        self.next_number = next.max(self.next_number);
    }

    pub(super) fn announced(&mut self, number: Xid) {
        self.durable = self.durable.max(Xid(number.0 + 1));
    }

    /// Whether a crash cannot make this own number be used again.
    pub(super) fn is_kept(&self, number: Xid) -> bool {
        number < self.durable
    }

    /// Raises what is forgotten, never lowers it.
    pub(super) fn forget(&mut self, below: &Below) {
        raise(&mut self.forgotten, below);
    }

    /// There is an entry of this transaction.
    pub(super) fn seen(&mut self, gid: &Gid) {
        pass(&mut self.highest, gid);
    }

    /// A checkpoint with this is durable.
    pub(super) fn saved(&mut self, below: &Below) {
        raise(&mut self.saved, below);
    }
}

/// Raises the number of its origin above this transaction's.
pub(super) fn pass(below: &mut Below, gid: &Gid) {
    let below = &mut below[gid.origin.index()];
    *below = (*below).max(Xid(gid.xid.0.saturating_add(1)));
}

fn raise(mine: &mut Below, theirs: &Below) {
    for (mine, theirs) in mine.iter_mut().zip(theirs) {
        *mine = (*mine).max(*theirs);
    }
}

/// Whether the outcome is of no concern to this node any more, given that the origin has
/// finished everything below `origin`: what is not held here then was aborted.
fn is_finished(gid: &Gid, entry: &Entry, origin: Xid) -> bool {
    let settling = entry.settlement.is_some_and(|s| s.decree().is_none());
    match &entry.role {
        Role::Own(c) => c.decree().is_some() && c.is_durable(),
        Role::Peer(p) => match p.state() {
            ParticipantState::Committed | ParticipantState::Aborted => true,
            ParticipantState::Unknown
            | ParticipantState::Applying
            | ParticipantState::Refused
            | ParticipantState::AbortAccepted(false) => gid.xid < origin && !settling,
            ParticipantState::Preparing(_)
            | ParticipantState::Prepared
            | ParticipantState::AbortPending(_)
            | ParticipantState::AbortAccepted(true)
            | ParticipantState::Committing(_)
            | ParticipantState::RollingBack => false,
        },
    }
}

impl Node<'_> {
    /// What is finished and forgotten: a number below and not in the table. Goes into every
    /// syncpoint record, and into what the node must remember across a restart.
    pub const fn forgotten(&self) -> &Below {
        &self.core.retention.forgotten
    }

    /// Whether `gid` was finished and is forgotten.
    pub(super) fn is_forgotten(&self, gid: &Gid) -> bool {
        gid.xid < self.core.retention.forgotten[gid.origin.index()]
            && !self.planted(Bug::ForgottenLacks)
            && self.table.get(gid).is_none()
    }

    /// The entry of another node's transaction, made if there is none; `None` when there is no
    /// room. The caller has looked whether it is forgotten.
    pub(super) fn peer_entry(&mut self, gid: Gid) -> Option<&mut Entry> {
        if !self.has_room_for(&gid) {
            return None;
        }
        self.core.retention.seen(&gid);
        self.table.entry(gid, || Entry::new(Role::Peer(Participant::new()))).ok()
    }

    /// What a node says that was dropped and does not say anything any more: it announces nothing
    /// in a generation without it, so below what others have of it all is known (specs/adr/0112).
    fn dropped(&self) -> NodeSet {
        if self.planted(Bug::DroppedRemembered) {
            return NodeSet::EMPTY;
        }
        NodeSet::first(MAX_NODES)
            .difference(self.core.membership.current().generation.configured.nodes)
    }

    fn origin_finished(&self, origin: NodeId) -> Xid {
        if self.dropped().contains(origin) {
            return NO_MORE;
        }
        self.core.retention.said[origin.index()].1[origin.index()]
    }

    /// Below what this node, ONLINE, has finished everything.
    fn finished_below(&mut self) -> Below {
        let me = self.me();
        let dropped = self.dropped();
        let retention = &self.core.retention;
        let num = self.core.membership.current().generation.num;
        // Numbers are consecutive: none below will be announced any more.
        let own = retention.durable.max(retention.forgotten[me.index()]);
        let mut below = NOTHING;
        for (i, below) in below.iter_mut().enumerate() {
            *below = retention.said[i].1[i].max(retention.forgotten[i]);
        }
        below[me.index()] = own;
        let mut highest = NOTHING;
        for (gid, _) in self.table.iter().filter(|(gid, _)| dropped.contains(gid.origin)) {
            let highest = &mut highest[gid.origin.index()];
            *highest = Xid(gid.xid.0 + 1).max(*highest);
        }
        for origin in dropped {
            let highest = highest[origin.index()];
            below[origin.index()] = if highest > Xid(0) { highest } else { NO_MORE };
        }
        for (gid, entry) in self.table.iter() {
            let i = gid.origin.index();
            if gid.xid < below[i] && !is_finished(gid, entry, self.origin_finished(gid.origin)) {
                below[i] = gid.xid;
            }
        }
        self.core.retention.said[me.index()] = (num, below);
        below
    }

    /// Tells progress and forgets, now and then.
    pub(super) fn retain(&mut self, now: Instant, out: &mut Outbox<Effect>) {
        if self.core.retention.next.is_some_and(|at| now < at) || !self.serves() {
            return;
        }
        let below = self.finished_below();
        let busy = !self.table.is_empty();
        let retention = &mut self.core.retention;
        // Of whom nobody has anything there is no news.
        let news = below.map(|xid| if xid == NO_MORE { Xid(0) } else { xid });
        if busy || retention.asked || news != retention.last_said {
            retention.asked = false;
            retention.last_said = news;
            let current = self.core.membership.current().generation;
            let message = PeerMessage::Progress { num: current.num, busy, below };
            let to = current.members.without(self.me());
            Self::send(out, to, message);
        }
        // Who has little room wants to hear that others have finished.
        let pause_us = self.core.retry_us / if self.is_tight() { 4 } else { 1 };
        self.core.retention.next = Some(now.plus_us(pause_us));
        self.forget_finished(out);
    }

    /// A member's progress. It counts only when both are in the same generation: then this node
    /// has seen everything that the sender finished.
    pub(super) fn progress(&mut self, from: NodeId, num: GenNum, busy: bool, below: &Below) {
        if !self.in_generation(num) {
            return;
        }
        let old_counts = self.planted(Bug::OldProgress);
        let said = &mut self.core.retention.said[from.index()];
        if said.0 != num && !old_counts {
            // What it had finished in an earlier generation it may have taken over again from a
            // donor that had not (specs/adr/0106).
            said.1 = NOTHING;
        }
        said.0 = num;
        for (old, new) in said.1.iter_mut().zip(below) {
            *old = (*old).max(*new);
        }
        self.core.retention.asked |= busy;
    }

    fn forget_finished(&mut self, out: &mut Outbox<Effect>) {
        let current = self.core.membership.current().generation;
        let mut all = [NO_MORE; MAX_NODES as usize];
        let alone = NodeSet::only(self.me());
        let members = if self.planted(Bug::ForgetEarly) { alone } else { current.members };
        for member in members {
            let (num, below) = &self.core.retention.said[member.index()];
            if *num != current.num {
                return;
            }
            for (least, said) in all.iter_mut().zip(below) {
                *least = (*least).min(*said);
            }
        }
        // Where nobody has anything there is nothing to forget: a node may be configured later.
        for least in all.iter_mut().filter(|least| **least == NO_MORE) {
            *least = Xid(0);
        }
        self.core.retention.forget(&all);
        self.sweep(out);
    }

    /// Removes what is finished and below the watermark.
    fn sweep(&mut self, out: &mut Outbox<Effect>) {
        let gone = |(gid, e): &(&Gid, &Entry)| {
            gid.xid < self.core.retention.forgotten[gid.origin.index()]
                && is_finished(gid, e, self.origin_finished(gid.origin))
        };
        let gone: smallvec::SmallVec<[Gid; 32]> =
            self.table.iter().filter(gone).map(|(gid, _)| *gid).collect();
        for gid in gone {
            let applying = self.table.get_mut(&gid).is_some_and(|e| e.is_only_applying());
            self.table.remove(&gid);
            if applying {
                out.push(Effect::Discard(gid));
            }
        }
    }

    /// While recovering: the donor had finished everything below this, and all of it that it
    /// committed is replayed.
    pub(super) fn syncpoint(&mut self, num: GenNum, below: &Below, out: &mut Outbox<Effect>) {
        if self.recovers_for(num) {
            self.core.retention.forget(below);
            self.sweep(out);
        }
    }

    /// Somebody ONLINE in the same generation has forgotten it: all have finished it. So what
    /// this node, ONLINE too, does not hold was aborted.
    pub(super) fn forgotten_elsewhere(&mut self, gid: Gid, num: GenNum, out: &mut Outbox<Effect>) {
        if !self.in_generation(num) {
            return;
        }
        let Some(entry) = self.table.get_mut(&gid) else { return };
        match &mut entry.role {
            Role::Own(own) => {
                if own.settled_abort() {
                    out.push(Effect::Answer(gid, super::Outcome::Aborted));
                }
            }
            Role::Peer(peer) => match peer.state() {
                ParticipantState::Unknown | ParticipantState::Refused => {
                    self.table.remove(&gid);
                }
                ParticipantState::AbortAccepted(false) => {
                    entry.settlement = None;
                    peer.decided(mtm_paxos::commit::Decree::Abort);
                }
                _ => {}
            },
        }
    }

    /// Whether this node is ONLINE in generation `num`.
    pub(super) fn in_generation(&self, num: GenNum) -> bool {
        self.serves() && self.core.membership.current().generation.num == num
    }

    /// Answers for a forgotten transaction: "unknown", never "lacks".
    pub(super) fn tell_forgotten(&self, to: NodeId, gid: Gid, out: &mut Outbox<Effect>) {
        if self.serves() {
            let num = self.core.membership.current().generation.num;
            let report = mtm_paxos::commit::Report::Forgotten;
            let to = NodeSet::only(to).without(self.me());
            Self::send(out, to, PeerMessage::Report(gid, num, report));
        }
    }
}
