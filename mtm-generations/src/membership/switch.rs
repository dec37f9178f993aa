//! Moving into an elected generation (TLA+ `Switch`, the last step of `Recover`).
//!
//! Three durable steps, so that a crash between them is harmless:
//! 1. the record says "in n, last ONLINE in m < n": from here on nothing of an older generation
//!    is prepared or announced, not even after a restart;
//! 2. ParallelSafe(n) is in the WAL (a donor), or everything of a donor is (any other member);
//! 3. the record says "ONLINE in n".
//!
//! Were 2 durable before 1, a crash would leave a ParallelSafe in the WAL of a node that still
//! prepares older transactions, and who recovers from it would miss them.

use super::{Effect, Membership, Misuse, Stage};
use crate::generation::Elected;
use mtm_core::{GenNum, Instant, Outbox, Token};

impl Membership {
    /// A generation was elected somewhere.
    pub(super) fn learn(&mut self, now: Instant, elected: Elected, out: &mut Outbox<Effect>) {
        self.mind(&elected, out);
        let num = elected.generation.num;
        let known = self.wanted.map_or(self.record.current.generation.num, |w| w.generation.num);
        if num > known {
            self.wanted = Some(elected);
            self.recall(now, out);
        }
    }

    /// Says once of each wanted generation that nothing here keeps this node from moving into it.
    pub(super) fn offer_switch(&mut self, now: Instant, out: &mut Outbox<Effect>) {
        self.free_at = self.lent_until(now);
        if let Some(wanted) = self.wanted
            && wanted.generation.num > self.offered
            && self.may_switch(now)
        {
            self.offered = wanted.generation.num;
            out.push(Effect::SwitchWanted(wanted.generation.num));
        }
    }

    /// The driver holds the barrier.
    pub(super) fn switch(&mut self, now: Instant, out: &mut Outbox<Effect>) -> Result<(), Misuse> {
        if !self.may_switch(now) {
            return Err(Misuse::NoSwitch);
        }
        let elected = self.wanted.take().ok_or(Misuse::NoSwitch)?;
        let num = elected.generation.num;
        self.record.current = elected;
        if num > self.record.last_vote {
            self.record.last_vote = num;
            self.record.voted_for = None;
        }
        self.must_campaign = false;
        self.not_all_online_since = None;
        if self.campaign.as_ref().is_some_and(|c| c.num() <= num) {
            self.campaign = None;
        }
        self.campaign_at = None;
        if self.configure.is_some_and(|c| c.version <= elected.generation.configured.version) {
            self.configure = None;
        }
        let token = self.persist(out);
        self.stage = Stage::Entering(token);
        Ok(())
    }

    /// A write is durable.
    pub(super) fn persisted(
        &mut self,
        now: Instant,
        token: Token,
        out: &mut Outbox<Effect>,
    ) -> Result<(), Misuse> {
        if token > self.handed_out {
            return Err(Misuse::UnknownToken(token));
        }
        self.durable = self.durable.max(token);
        match self.stage {
            Stage::Entering(waited) if self.durable >= waited => {
                self.stage = Stage::Settled;
                self.resume(out);
            }
            Stage::GoingOnline(waited) if self.durable >= waited => {
                self.stage = Stage::Settled;
                out.push(Effect::Online(self.record.current.generation.num));
                self.next_heartbeat = now;
            }
            Stage::Settled | Stage::Entering(_) | Stage::Filling | Stage::GoingOnline(_) => {}
        }
        self.own_vote_durable(now, out);
        Ok(())
    }

    /// Starts what makes this member ONLINE in its current generation. The driver's inputs call
    /// it after a switch; a driver calls [`Membership::resume`] itself after a restart.
    pub fn resume(&mut self, out: &mut Outbox<Effect>) {
        let Elected { generation, donors } = self.record.current;
        let online = self.record.last_online_in == generation.num;
        let member = generation.members.contains(self.node());
        if self.fenced
            || self.stage != Stage::Settled
            || online
            || !member
            || self.cannot_be_online()
        {
            return;
        }
        self.stage = Stage::Filling;
        if donors.contains(self.node()) {
            out.push(Effect::WriteParallelSafe(generation.num));
        } else {
            out.push(Effect::StartRecovery { num: generation.num, donors });
        }
    }

    /// ParallelSafe is written or recovery is complete.
    pub(super) fn filled(&mut self, num: GenNum, out: &mut Outbox<Effect>) {
        if num != self.record.current.generation.num || self.stage != Stage::Filling {
            return;
        }
        // A vote promises never to become ONLINE strictly between (TLA+ `lastVote[n] <= g`). And
        // who is about to leave this generation takes over nothing more of what a donor says.
        if self.cannot_be_online() || self.wanted.is_some() {
            self.stage = Stage::Settled;
            return;
        }
        self.record.last_online_in = num;
        let token = self.persist(out);
        self.stage = Stage::GoingOnline(token);
    }
}
