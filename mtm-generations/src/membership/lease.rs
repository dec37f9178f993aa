//! Leases: a node answers readers without asking anybody, and never misses what somebody was told
//! to be committed (specs/adr/0118).
//!
//! With its answer to a sign of life a node *lends*: for so long it does not switch into a
//! generation without the peer. Nothing can be decided in a generation before all its members have
//! switched, and members are a majority of the configured nodes; so while a majority, itself
//! included, has lent to a node, nobody has gone on without it. What was lent is given back when
//! its holder hears of such a generation, and is over when the holder's connections have closed.
//!
//! Clocks need not agree; they must run at the same rate, to one part in [`DRIFT`].

use super::{Bug, Effect, Membership, Stage};
use crate::generation::Elected;
use crate::message::Message;
use mtm_core::{GenNum, Instant, MAX_NODES, NodeId, NodeSet, Outbox};

const ALL: NodeSet = NodeSet::first(MAX_NODES);

/// The holder counts with so much less, one part of the whole: clocks may be slewed by as much.
const DRIFT: u64 = 10;

/// What this node has promised a peer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Lent {
    at: Instant,
    until: Instant,
    /// The generation this node was in.
    num: GenNum,
}

/// What a peer has promised this node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Held {
    /// When the sign of life that it answers was sent.
    sent: Instant,
    until: Instant,
    num: GenNum,
}

/// All that is lent and held. Memory only: after a restart everything may be lent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Leases {
    lent: [Lent; MAX_NODES as usize],
    held: [Held; MAX_NODES as usize],
    /// What was lent in generations below is void: this one does not have this node.
    void_below: GenNum,
    /// An earlier life may have lent to everybody, and nobody has looked at a clock since.
    unknown: bool,
}

impl Leases {
    pub(super) const fn new(restarted: bool) -> Self {
        let lent = Lent { at: Instant(0), until: Instant(0), num: GenNum(0) };
        let held = Held { sent: Instant(0), until: Instant(0), num: GenNum(0) };
        Self {
            lent: [lent; MAX_NODES as usize],
            held: [held; MAX_NODES as usize],
            void_below: GenNum(0),
            unknown: restarted,
        }
    }
}

impl Membership {
    /// Whether this node goes on with `peer`, as far as it knows.
    fn counts_on(&self, peer: NodeId) -> bool {
        let next = self.wanted.map_or(ALL, |elected| elected.generation.members);
        self.record.current.generation.members.intersection(next).contains(peer)
    }

    /// Before the first step: what an earlier life may have lent. That was to members of the
    /// generation in its record: in another one nothing is lent before it is durable.
    pub(super) fn remember_lending(&mut self, now: Instant) {
        if core::mem::take(&mut self.leases.unknown) && !self.planted(Bug::LeaseForgotten) {
            let until = now.plus_us(self.timing.lease_us);
            let generation = self.record.current.generation;
            for peer in generation.members {
                self.leases.lent[peer.index()] = Lent { at: now, until, num: generation.num };
            }
        }
    }

    /// A peer is alive and may rely on this node.
    pub(super) fn lend(
        &mut self,
        now: Instant,
        to: NodeId,
        sent: Instant,
        out: &mut Outbox<Effect>,
    ) {
        let for_us = self.timing.lease_us;
        if for_us == 0 || matches!(self.stage, Stage::Entering(_)) {
            return;
        }
        if !self.counts_on(to) {
            if let Some(elected) = self.wanted
                && self.lent_outside(now).contains(to)
            {
                out.push(Effect::Recall { to, elected });
            }
            return;
        }
        let num = self.record.current.generation.num;
        let lent = &mut self.leases.lent[to.index()];
        *lent = Lent { at: now, until: lent.until.max(now.plus_us(for_us)), num };
        out.push(Effect::Lend { to, sent, for_us, num });
    }

    /// A peer has answered a sign of life.
    pub(super) fn borrowed(
        &mut self,
        now: Instant,
        from: NodeId,
        sent: Instant,
        for_us: u64,
        num: GenNum,
    ) {
        let held = &mut self.leases.held[from.index()];
        if num >= self.leases.void_below && sent <= now && sent >= held.sent {
            let until = sent.plus_us(for_us - for_us / DRIFT);
            *held = Held { sent, until, num };
        }
    }

    /// All connections with these peers had closed at this time: they are gone, or know that this
    /// node is.
    pub(super) fn closed(&mut self, peers: NodeSet, at: Instant) {
        for peer in peers {
            let (lent, held) =
                (&mut self.leases.lent[peer.index()], &mut self.leases.held[peer.index()]);
            if lent.at <= at {
                lent.until = Instant(0);
            }
            if held.sent <= at {
                held.until = Instant(0);
            }
        }
    }

    /// An elected generation: if it does not have this node, nothing that was lent before holds,
    /// and all who may have lent it are told.
    pub(super) fn mind(&mut self, elected: &Elected, out: &mut Outbox<Effect>) {
        let num = elected.generation.num;
        if elected.generation.members.contains(self.node())
            || num <= self.leases.void_below
            || self.planted(Bug::LeaseKept)
        {
            return;
        }
        self.leases.void_below = num;
        for held in self.leases.held.iter_mut().filter(|held| held.num < num) {
            held.until = Instant(0);
        }
        self.give_back(self.record.current.generation.configured.nodes, num, out);
    }

    /// Says that nothing is relied on that was lent in generations below this one.
    fn give_back(&self, to: NodeSet, num: GenNum, out: &mut Outbox<Effect>) {
        if self.timing.lease_us > 0 {
            let to = to.without(self.node());
            out.push(Effect::Send { to, message: Message::Released(num), after: None });
        }
    }

    /// Somebody asks for what it has lent, not for the first time.
    pub(super) fn asked_again(&self, by: NodeId, elected: &Elected, out: &mut Outbox<Effect>) {
        let num = elected.generation.num;
        let outside = !elected.generation.members.contains(self.node());
        if outside && (num <= self.leases.void_below || self.planted(Bug::LeaseKept)) {
            self.give_back(NodeSet::only(by), num, out);
        }
    }

    /// A peer relies on nothing that was lent in generations below.
    pub(super) fn released(&mut self, from: NodeId, num: GenNum) {
        let lent = &mut self.leases.lent[from.index()];
        if lent.num < num {
            lent.until = Instant(0);
        }
    }

    /// Whom the wanted generation leaves out and who may still rely on this node.
    fn lent_outside(&self, now: Instant) -> NodeSet {
        let Some(wanted) = self.wanted else { return NodeSet::EMPTY };
        // This node has lent to nobody else.
        let outside = self
            .record
            .current
            .generation
            .configured
            .nodes
            .difference(wanted.generation.members)
            .without(self.node());
        outside.iter().filter(|peer| now < self.leases.lent[peer.index()].until).collect()
    }

    /// Asks for what was lent to those whom the wanted generation leaves out.
    pub(super) fn recall(&self, now: Instant, out: &mut Outbox<Effect>) {
        let to = self.lent_outside(now);
        if let Some(wanted) = self.wanted
            && !to.is_empty()
        {
            out.push(Effect::Send { to, message: Message::Elected(wanted), after: None });
        }
    }

    /// Whether [`Input::Switch`](super::Input::Switch) may come now: a generation is wanted, this
    /// node is not fenced, and nobody whom that generation leaves out relies on this node.
    pub fn may_switch(&self, now: Instant) -> bool {
        let free = self.lent_outside(now).is_empty() || self.planted(Bug::LeaseIgnored);
        self.wanted.is_some() && !self.fenced && free
    }

    /// When the last of those relies on this node no more, whatever happens.
    pub(super) fn lent_until(&self, now: Instant) -> Option<Instant> {
        let until = |peer: NodeId| self.leases.lent[peer.index()].until;
        self.lent_outside(now).iter().map(until).max()
    }

    /// Until when this node, being ONLINE, misses nothing that anybody was told to be committed,
    /// if every commit is told after all members of its generation have it and are ONLINE; `None`
    /// if it may miss something.
    pub fn leased_until(&self, now: Instant) -> Option<Instant> {
        let current = self.record.current.generation;
        let (me, configured) = (self.node(), current.configured);
        if current.members == NodeSet::only(me) {
            return Some(Instant(u64::MAX));
        }
        // A peer that is ahead may have gone on without this node before it lent.
        let holds = |held: &Held| now < held.until && held.num <= current.num;
        let held = |peer: NodeId| self.leases.held[peer.index()];
        let lenders = configured.nodes.without(me).iter().filter(|peer| holds(&held(*peer)));
        let lenders: NodeSet = lenders.collect();
        let enough = |until: &Instant| {
            let longer = lenders.iter().filter(|peer| held(*peer).until >= *until);
            configured.has_majority(longer.collect::<NodeSet>().with(me))
        };
        lenders.iter().map(|peer| held(peer).until).filter(enough).max()
    }
}
