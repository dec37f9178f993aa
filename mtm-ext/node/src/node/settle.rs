//! Settling what older generations left undecided (TLA+ `Respond`, `ResolveCommit`,
//! `ResolveAbort`, `ResAccept`): done by the lowest donor of the current generation.

use super::{Bug, Effect, Misuse, Node};
use crate::peer_message::PeerMessage;
use mtm_core::{GenNum, Gid, Instant, NodeId, NodeSet, Outbox};
use mtm_paxos::commit::{Decree, Report, Settlement, SettlementStep};

impl Node<'_> {
    /// Whether this node settles older transactions in its generation.
    fn is_proposer(&self) -> bool {
        self.serves() && self.core.membership.current().proposer() == Some(self.me())
    }

    /// Somebody waits for the outcome.
    pub(super) fn queried(
        &mut self,
        now: Instant,
        from: NodeId,
        gid: Gid,
        out: &mut Outbox<Effect>,
    ) -> Result<(), Misuse> {
        if self.is_forgotten(&gid) {
            self.tell_forgotten(from, gid, out);
            return Ok(());
        }
        let decree = self.table.get_mut(&gid).and_then(|e| e.decree());
        let answer = match decree {
            Some(decree) => PeerMessage::Decided(gid, decree),
            None => PeerMessage::Undecided(gid),
        };
        Self::send(out, NodeSet::only(from).without(self.me()), answer);
        if decree.is_none() {
            self.settle(now, gid, out)?;
        }
        Ok(())
    }

    /// Starts or goes on settling, if that is this node's duty.
    pub(super) fn settle(
        &mut self,
        now: Instant,
        gid: Gid,
        out: &mut Outbox<Effect>,
    ) -> Result<(), Misuse> {
        let generation = self.core.membership.current().generation;
        if !self.is_proposer() || gid.generation >= generation.num {
            return Ok(());
        }
        let me = self.me();
        if self.is_forgotten(&gid) {
            return Ok(());
        }
        // With a full table: it will be asked again.
        let Some(entry) = self.peer_entry(gid) else { return Ok(()) };
        if entry.settlement.is_none_or(|s| s.generation() != generation.num) {
            entry.settlement = Some(Settlement::new(generation.num, generation.members));
        }
        let own = entry.report();
        self.reported(me, gid, generation.num, own, out);
        self.ask_on(gid, out)?;
        self.watch(now);
        Ok(())
    }

    /// Asks members for what is still missing.
    pub(super) fn ask_on(&mut self, gid: Gid, out: &mut Outbox<Effect>) -> Result<(), Misuse> {
        let me = self.me();
        let Some(s) = self.table.get_mut(&gid).and_then(|e| e.settlement) else { return Ok(()) };
        let num = s.generation();
        if num != self.core.membership.current().generation.num {
            return Ok(());
        }
        Self::send(out, s.missing_reports().without(me), PeerMessage::AskReport(gid, num));
        let accept = s.missing_acceptances();
        Self::send(out, accept.without(me), PeerMessage::AskAbortIn(gid, num));
        if accept.contains(me) {
            self.abort_asked(me, gid, num, out)?;
        }
        Ok(())
    }

    /// A member's answer: only while it is ONLINE in the generation that asks.
    pub(super) fn report_asked(
        &mut self,
        from: NodeId,
        gid: Gid,
        num: GenNum,
        out: &mut Outbox<Effect>,
    ) {
        let current = self.core.membership.current();
        if !(self.serves() || self.planted(Bug::ReportEarly))
            || current.generation.num != num
            || current.proposer() != Some(from)
            || gid.generation >= num
        {
            return;
        }
        if self.is_forgotten(&gid) {
            self.tell_forgotten(from, gid, out);
            return;
        }
        let report = self.table.get_mut(&gid).map_or(Report::Lacks, |e| e.report());
        Self::send(out, NodeSet::only(from), PeerMessage::Report(gid, num, report));
    }

    /// A member has reported.
    pub(super) fn reported(
        &mut self,
        from: NodeId,
        gid: Gid,
        num: GenNum,
        report: Report,
        out: &mut Outbox<Effect>,
    ) {
        if !self.is_proposer() || self.core.membership.current().generation.num != num {
            return;
        }
        let Some(settlement) = self.settlement(gid, num) else { return };
        let mut step = settlement.report(from, report);
        if self.planted(Bug::CommitMissing) && report == Report::Lacks {
            step = SettlementStep::Decided(Decree::Commit);
        }
        if self.planted(Bug::AbortUnaccepted) && matches!(step, SettlementStep::AskAbort(_)) {
            step = SettlementStep::Decided(Decree::Abort);
        }
        self.settlement_step(gid, step, out);
    }

    pub(super) fn accepted_in(
        &mut self,
        from: NodeId,
        gid: Gid,
        num: GenNum,
        out: &mut Outbox<Effect>,
    ) {
        if !self.is_proposer() || self.core.membership.current().generation.num != num {
            return;
        }
        let Some(settlement) = self.settlement(gid, num) else { return };
        let step = settlement.abort_accepted(from);
        self.settlement_step(gid, step, out);
    }

    fn settlement(&mut self, gid: Gid, num: GenNum) -> Option<&mut Settlement> {
        self.table.get_mut(&gid)?.settlement.as_mut().filter(|s| s.generation() == num)
    }

    fn settlement_step(&mut self, gid: Gid, step: SettlementStep, out: &mut Outbox<Effect>) {
        match step {
            SettlementStep::Nothing => {}
            SettlementStep::AskAbort(to) => {
                let num = self.core.membership.current().generation.num;
                let message = PeerMessage::AskAbortIn(gid, num);
                Self::send(out, to.without(self.me()), message);
                // This node's own acceptance follows with the next retry, which is at once.
                self.core.next_retry = Some(Instant(0));
                if let Some(entry) = self.table.get_mut(&gid) {
                    entry.retry_at = Instant(0);
                }
            }
            SettlementStep::Decided(decree) => {
                let to = self.core.membership.current().generation.members.without(self.me());
                Self::send(out, to, PeerMessage::Decided(gid, decree));
                self.decided(gid, decree, out);
            }
        }
    }
}
