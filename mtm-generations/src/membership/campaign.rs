//! Proposing a generation: when, with whom, and counting votes (TLA+ `Propose`, `Elect`).

use super::{Bug, Effect, Membership, Misuse};
use crate::generation::{Configuration, Generation, elect};
use crate::message::Message;
use mtm_core::{GenNum, Instant, MAX_NODES, NodeId, NodeSet, Outbox, Token};

/// A proposal under way. It lives in memory only: after a restart its number is used up, so
/// donors are never chosen twice for one number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Campaign {
    generation: Generation,
    asked: NodeSet,
    voters: NodeSet,
    refused: NodeSet,
    last_online_in: [GenNum; MAX_NODES as usize],
    own_vote: Token,
    own_durable: bool,
    needs_grant: bool,
    granted: bool,
    deadline: Instant,
}

impl Campaign {
    pub(super) const fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(super) const fn num(&self) -> GenNum {
        self.generation.num
    }

    pub(super) fn end_by(&mut self, at: Instant) {
        self.deadline = self.deadline.min(at);
    }
}

impl Membership {
    /// The configuration of the next generation: an administrator's, or the present one, settled
    /// if it is known to be (specs/adr/0113).
    fn configuration(&self) -> Configuration {
        let current = self.record.current.generation.configured;
        let settled = self.settled == current.version;
        match self.configure {
            Some(wanted) => wanted,
            None if settled => current.settled(),
            None => current,
        }
    }

    /// Whether a new generation is needed, and with which members.
    fn proposal(&self, now: Instant) -> Option<NodeSet> {
        let me = self.node();
        if self.fenced || self.withdrawn || self.wanted.is_some() || !self.met_all {
            return None;
        }
        let current = self.record.current.generation;
        let configured = self.configuration();
        let clique = self.clique();
        if !clique.contains(me) || !configured.nodes.contains(me) {
            return None;
        }
        let late = self
            .not_all_online_since
            .is_some_and(|since| now.since(since) >= self.timing.recovery_limit_us);
        let member = current.members.contains(me);
        let missing = !current.members.is_subset(clique);
        let included = !member && self.caught_up;
        let must = self.must_campaign || (member && self.cannot_be_online());
        let settles = member && configured != current.configured;
        if !(missing || included || must || late || settles) {
            return None;
        }
        let quorum = |set: NodeSet| configured.has_majority(set);
        let mut alive = current.members.intersection(clique).intersection(configured.nodes);
        if late && quorum(self.members_online()) {
            alive = self.members_online();
        }
        // Those who can work at once, if they are enough; otherwise everyone within reach: with 5
        // nodes "old members in the clique plus me" can stay a minority for ever.
        let smallest = if included || (must && member) { alive.with(me) } else { alive };
        if quorum(smallest) && (member || included) {
            return Some(smallest);
        }
        let all = clique.intersection(configured.nodes);
        if quorum(all) && !quorum(alive) {
            return Some(all);
        }
        let alone = self.has_referee && member && self.record.last_online_in == current.num;
        if alone && clique == NodeSet::only(me) && missing { Some(clique) } else { None }
    }

    /// Watches the cluster after every input.
    pub(super) fn consider_campaign(&mut self, now: Instant, out: &mut Outbox<Effect>) {
        let current = self.record.current.generation;
        if self.members_online() == current.members {
            self.not_all_online_since = None;
            self.settled = current.configured.version;
        } else if self.not_all_online_since.is_none() {
            self.not_all_online_since = Some(now);
        }
        if let Some(campaign) = &self.campaign {
            if now >= campaign.deadline {
                self.count_votes(now, true, out);
            }
            return;
        }
        let Some(members) = self.proposal(now) else {
            self.campaign_at = None;
            return;
        };
        match self.campaign_at {
            None => self.campaign_at = Some(self.turn(now, members)),
            Some(at) if now >= at => self.start_campaign(now, members, out),
            Some(_) => {}
        }
    }

    /// Members of the proposal go first, lowest first; some jitter separates equals.
    fn turn(&mut self, now: Instant, members: NodeSet) -> Instant {
        let me = self.node();
        let before = members.iter().filter(|&m| m < me).count() as u64;
        let rank = if members.contains(me) { before } else { u64::from(MAX_NODES) };
        let jitter = self.draw(self.timing.stagger_us);
        now.plus_us(rank * self.timing.stagger_us + jitter)
    }

    fn start_campaign(&mut self, now: Instant, members: NodeSet, out: &mut Outbox<Effect>) {
        let current = self.record.current.generation;
        let configured = self.configuration();
        let highest = self
            .peers
            .iter()
            .map(|p| p.last_vote.max(p.current))
            .fold(self.record.last_vote.max(current.num), GenNum::max);
        let num = GenNum(highest.0 + 1);
        let me = self.node();
        self.record.last_vote = num;
        self.record.voted_for = Some(me);
        let own_vote = self.persist(out);
        let generation = Generation { num, members, configured };
        let needs_grant = self.has_referee && members.len() == 1;
        let asked = self.clique().intersection(configured.nodes).without(me);
        let mut last_online_in = [GenNum(0); MAX_NODES as usize];
        last_online_in[me.index()] = self.record.last_online_in;
        self.campaign = Some(Campaign {
            generation,
            asked,
            voters: NodeSet::EMPTY,
            refused: NodeSet::EMPTY,
            last_online_in,
            own_vote,
            own_durable: false,
            needs_grant,
            granted: false,
            deadline: now.plus_us(self.timing.vote_wait_us),
        });
        self.campaign_at = None;
        out.push(Effect::Send {
            to: asked,
            message: Message::VoteRequest(generation),
            after: None,
        });
        if needs_grant {
            out.push(Effect::AskReferee(num));
        }
    }

    pub(super) fn own_vote_durable(&mut self, now: Instant, out: &mut Outbox<Effect>) {
        let (durable, me) = (self.durable, self.node());
        let Some(campaign) = self.campaign.as_mut() else { return };
        if !campaign.own_durable && durable >= campaign.own_vote {
            campaign.own_durable = true;
            campaign.voters.insert(me);
            self.count_votes(now, false, out);
        }
    }

    pub(super) fn vote_received(
        &mut self,
        now: Instant,
        from: NodeId,
        num: GenNum,
        last_online_in: GenNum,
        out: &mut Outbox<Effect>,
    ) {
        let Some(campaign) = self.campaign.as_mut().filter(|c| c.generation.num == num) else {
            return;
        };
        if !campaign.asked.contains(from) || !campaign.voters.insert(from) {
            return;
        }
        campaign.last_online_in[from.index()] = last_online_in;
        self.count_votes(now, false, out);
    }

    pub(super) fn vote_refused(&mut self, now: Instant, from: NodeId, num: GenNum, last: GenNum) {
        let peer = &mut self.peers[from.index()];
        peer.last_vote = peer.last_vote.max(last);
        if let Some(campaign) = self.campaign.as_mut().filter(|c| c.generation.num == num) {
            campaign.refused.insert(from);
            if campaign.voters.union(campaign.refused).is_subset(campaign.asked)
                && campaign.refused == campaign.asked
            {
                campaign.deadline = now;
            }
        }
    }

    pub(super) fn referee_answered(
        &mut self,
        now: Instant,
        num: GenNum,
        granted: bool,
        out: &mut Outbox<Effect>,
    ) {
        let Some(campaign) = self.campaign.as_mut().filter(|c| c.generation.num == num) else {
            return;
        };
        campaign.granted = granted && campaign.needs_grant;
        self.count_votes(now, false, out);
    }

    /// Elects when everyone asked has voted, or at the deadline with what is there. The donors
    /// are fixed here, once: the campaign ends with it.
    fn count_votes(&mut self, now: Instant, at_deadline: bool, out: &mut Outbox<Effect>) {
        let Some(campaign) = self.campaign else { return };
        let waited_for = campaign.asked.difference(campaign.refused);
        let complete = waited_for.is_subset(campaign.voters) && campaign.own_durable;
        let complete = complete && (campaign.granted || !campaign.needs_grant);
        if !complete && !at_deadline {
            return;
        }
        let elected = if campaign.own_durable {
            let (any, inner) = (self.planted(Bug::AnyDonor), self.planted(Bug::HighestOfMembers));
            let last = |n: NodeId| {
                if any || (inner && !campaign.generation.members.contains(n)) {
                    return GenNum(1);
                }
                campaign.last_online_in[n.index()]
            };
            elect(campaign.generation, campaign.voters, last, campaign.granted)
        } else {
            None
        };
        self.campaign = None;
        if let Some(elected) = elected {
            let to =
                campaign.generation.configured.nodes.union(campaign.asked).without(self.node());
            out.push(Effect::Send { to, message: Message::Elected(elected), after: None });
            self.learn(now, elected, out);
        } else {
            let steps = 2 + self.draw(2 * u64::from(MAX_NODES));
            self.campaign_at = Some(now.plus_us(steps * self.timing.stagger_us));
        }
    }

    /// An administrator's change: one node at a time, and only when all members are ONLINE in a
    /// generation with the configuration before.
    pub(super) fn configure(&mut self, configuration: Configuration) -> Result<(), Misuse> {
        if !self.may_configure(&configuration) {
            return Err(Misuse::MayNotConfigure);
        }
        self.configure = Some(configuration);
        Ok(())
    }

    /// Whether `Input::Configure` may come now. A node is dropped by another one: it would not
    /// campaign for a generation without itself.
    pub fn may_configure(&self, configuration: &Configuration) -> bool {
        let current = self.record.current.generation;
        let settled = self.wanted.is_none() && self.members_online() == current.members;
        settled
            && self.configure.is_none()
            && configuration.nodes.contains(self.node())
            && configuration.version == current.configured.version + 1
            && current.configured.admits(configuration)
    }
}
