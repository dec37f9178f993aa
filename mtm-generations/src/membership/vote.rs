//! Voting: once per number, durable before it leaves (TLA+ `Vote`).

use super::{Bug, Effect, Membership};
use crate::generation::Generation;
use crate::message::Message;
use mtm_core::{NodeId, NodeSet, Outbox};

impl Membership {
    /// A peer proposes a generation.
    pub(super) fn vote_requested(
        &mut self,
        from: NodeId,
        generation: Generation,
        out: &mut Outbox<Effect>,
    ) {
        // A fenced node does not vote: its `last_online_in` vouches for transactions it may have
        // lost (TLA+ `BugNoFence`).
        if self.fenced || self.withdrawn {
            return;
        }
        let again = self.record.last_vote == generation.num
            && self.record.voted_for == Some(from)
            && self.record.current.generation.num < generation.num;
        if !again {
            if !self.acceptable(from, &generation) {
                let message =
                    Message::VoteRefused { num: generation.num, last_vote: self.record.last_vote };
                out.push(Effect::Send { to: NodeSet::only(from), message, after: None });
                return;
            }
            self.record.last_vote = generation.num;
            self.record.voted_for = Some(from);
            // A campaign of ours for a lower number could only elect a generation in which this
            // node may never be ONLINE.
            self.campaign = None;
            self.persist(out);
        }
        let message =
            Message::Vote { num: generation.num, last_online_in: self.record.last_online_in };
        let after = Some(self.handed_out);
        out.push(Effect::Send { to: NodeSet::only(from), message, after });
    }

    fn acceptable(&self, from: NodeId, generation: &Generation) -> bool {
        let ours = &self.record.current.generation.configured;
        let theirs = &generation.configured;
        // Safety: never twice for a number, never for an older configuration, never when dropped.
        let again = self.planted(Bug::VoteTwice) && generation.num == self.record.last_vote;
        let safe = (generation.num > self.record.last_vote || again)
            && generation.num > self.record.current.generation.num
            && ours.admits(theirs)
            && theirs.nodes.contains(self.node())
            && theirs.nodes.contains(from);
        // Liveness: members that this node cannot hear would make a useless generation.
        safe && generation.members.is_subset(self.clique())
    }
}
