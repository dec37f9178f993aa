//! Transactions of other nodes.

use super::{Bug, Effect, Misuse, Node};
use crate::conflict::{Verdict, judge};
use crate::entry::{Entry, Role};
use crate::peer_message::PeerMessage;
use mtm_core::{GenNum, Gid, Instant, NodeId, NodeSet, Outbox};
use mtm_paxos::commit::{
    Coordinator, Decree, Delivery, Participant, ParticipantState, ParticipantStep,
};

impl Node<'_> {
    fn participant(&mut self, gid: Gid) -> Option<&mut Participant> {
        match self.table.get_mut(&gid) {
            Some(Entry { role: Role::Peer(p), .. }) => Some(p),
            _ => None,
        }
    }

    /// A transaction in its origin's stream. Only one of the current generation may be applied,
    /// and only when this node is ONLINE in it; of an older one it takes nothing any more.
    pub(super) fn delivered(
        &mut self,
        now: Instant,
        gid: Gid,
        out: &mut Outbox<Effect>,
    ) -> Result<(), Misuse> {
        let current = self.core.membership.current().generation;
        if gid.generation < current.num || gid.origin == self.me() || self.is_forgotten(&gid) {
            out.push(Effect::Skip(gid));
            return Ok(());
        }
        if gid.generation > current.num || (self.is_member() && !self.serves()) {
            out.push(Effect::Hold(gid));
            return Ok(());
        }
        if !self.is_member() {
            out.push(Effect::Skip(gid));
            return Ok(());
        }
        // Its origin's earlier ones make room when they are forgotten and that is saved.
        if !self.is_within_share(&gid) {
            out.push(Effect::Hold(gid));
            return Ok(());
        }
        let Some(entry) = self.peer_entry(gid) else {
            out.push(Effect::Hold(gid));
            return Ok(());
        };
        let Role::Peer(peer) = &mut entry.role else {
            out.push(Effect::Skip(gid));
            return Ok(());
        };
        out.push(match peer.delivered() {
            Delivery::Apply => Effect::Apply(gid),
            Delivery::Duplicate | Delivery::Never => Effect::Skip(gid),
        });
        self.watch(now);
        Ok(())
    }

    /// Check and PREPARE (TLA+ `RemotePrepare`): in the barrier until PREPARE is durable.
    pub(super) fn try_prepare(&mut self, gid: Gid, out: &mut Outbox<Effect>) {
        let may = self.in_its_generation(gid) && !self.switch_waits();
        let may = may && self.participant(gid).is_some_and(Participant::try_prepare);
        if may {
            self.enter_barrier();
            out.push(Effect::WritePrepare(gid));
            return;
        }
        if self.participant(gid).is_some_and(|p| p.state() == ParticipantState::Applying) {
            self.table.remove(&gid);
        }
        out.push(Effect::Discard(gid));
    }

    pub(super) fn prepare_durable(
        &mut self,
        now: Instant,
        gid: Gid,
        out: &mut Outbox<Effect>,
    ) -> Result<(), Misuse> {
        let peer = self.participant(gid).ok_or(Misuse::UnknownTransaction(gid))?;
        let step = peer.prepared();
        if step != ParticipantStep::PersistAbort {
            self.leave_barrier();
        }
        self.watch(now);
        self.peer_step(gid, step, true, out);
        Ok(())
    }

    pub(super) fn apply_failed(&mut self, now: Instant, gid: Gid, out: &mut Outbox<Effect>) {
        let Some(peer) = self.participant(gid) else { return };
        let preparing = matches!(peer.state(), ParticipantState::Preparing(_));
        let step = peer.failed();
        if preparing && step != ParticipantStep::PersistAbort {
            self.leave_barrier();
        }
        self.watch(now);
        self.peer_step(gid, step, preparing, out);
    }

    /// The origin misses our vote.
    pub(super) fn vote_asked(&mut self, from: NodeId, gid: Gid, out: &mut Outbox<Effect>) {
        let Some(peer) = self.participant(gid) else { return };
        let answer = match peer.state() {
            ParticipantState::Prepared => PeerMessage::Prepared(gid),
            ParticipantState::Refused => PeerMessage::Refused(gid),
            _ => return,
        };
        Self::send(out, NodeSet::only(from), answer);
    }

    pub(super) fn decided(&mut self, gid: Gid, decree: Decree, out: &mut Outbox<Effect>) {
        match self.table.get_mut(&gid) {
            Some(Entry { role: Role::Peer(peer), .. }) => {
                let step = peer.decided(decree);
                self.peer_step(gid, step, false, out);
            }
            #[expect(clippy::collapsible_match, reason = "a guard may not change the entry")]
            Some(Entry { role: Role::Own(own), .. }) => {
                // Given up here, settled by others. A commit comes back through recovery.
                if decree == Decree::Abort && own.settled_abort() {
                    out.push(Effect::Answer(gid, super::Outcome::Aborted));
                }
            }
            None => {}
        }
    }

    /// Asked to accept abort: by the origin in the transaction's own generation, or by the
    /// proposer in a later one. A node in another generation does not answer (TLA+
    /// `AcceptAbort`, `ResAccept`).
    pub(super) fn abort_asked(
        &mut self,
        from: NodeId,
        gid: Gid,
        num: GenNum,
        out: &mut Outbox<Effect>,
    ) -> Result<(), Misuse> {
        let here = self.core.membership.current().generation.num == num;
        let here = here || (self.planted(Bug::StaleAbort) && num == gid.generation);
        if !here || !self.serves() || self.switch_waits() {
            return Ok(());
        }
        if num == gid.generation && from != gid.origin {
            return Ok(());
        }
        if self.is_forgotten(&gid) {
            self.tell_forgotten(from, gid, out);
            return Ok(());
        }
        // With a full table: it will be asked again.
        let Some(entry) = self.peer_entry(gid) else { return Ok(()) };
        let step = match &mut entry.role {
            Role::Peer(peer) => {
                if peer.state() == ParticipantState::Applying {
                    // It may wait for a row, and others for the rows it has.
                    out.push(Effect::Discard(gid));
                }
                peer.abort_asked()
            }
            // An own transaction of an older generation was given up: that is durable, a restart
            // refuses it again.
            Role::Own(_) if num > gid.generation => ParticipantStep::TellAbortAccepted,
            Role::Own(_) => ParticipantStep::Nothing,
        };
        self.peer_step(gid, step, false, out);
        Ok(())
    }

    /// The acceptance of abort is durable: leaves the barrier and answers whoever may have asked.
    pub(super) fn abort_durable(&mut self, now: Instant, gid: Gid, out: &mut Outbox<Effect>) {
        self.leave_barrier();
        self.watch(now);
        // The abort may have been decided by others and forgotten meanwhile.
        let Some(entry) = self.table.get_mut(&gid) else { return };
        match &mut entry.role {
            Role::Own(own) => {
                let step = Coordinator::abort_durable(own);
                self.own_step(gid, Some(step), out);
            }
            Role::Peer(peer) => {
                let step = peer.abort_durable();
                self.peer_step(gid, step, false, out);
            }
        }
    }

    pub(super) fn visible(&mut self, gid: Gid, out: &mut Outbox<Effect>) {
        let Some(peer) = self.participant(gid) else { return };
        let step = peer.visible();
        self.peer_step(gid, step, false, out);
    }

    pub(super) fn finished(&mut self, gid: Gid, out: &mut Outbox<Effect>) {
        let Some(peer) = self.participant(gid) else { return };
        let step = peer.finished();
        self.peer_step(gid, step, false, out);
    }

    pub(super) fn conflict(&mut self, waiter: Gid, holder: Gid, out: &mut Outbox<Effect>) {
        if judge(waiter, holder) == Verdict::AbortHolder && holder.origin == self.me() {
            self.cancel(holder, out);
        }
    }

    /// What a participant's step means for the driver. `in_barrier`: the barrier was entered
    /// before and passes on to the acceptance of abort.
    pub(super) fn peer_step(
        &mut self,
        gid: Gid,
        step: ParticipantStep,
        in_barrier: bool,
        out: &mut Outbox<Effect>,
    ) {
        let origin = NodeSet::only(gid.origin).without(self.me());
        match step {
            ParticipantStep::Nothing => {}
            ParticipantStep::VoteYes => Self::send(out, origin, PeerMessage::Prepared(gid)),
            ParticipantStep::VoteNo => Self::send(out, origin, PeerMessage::Refused(gid)),
            ParticipantStep::PersistAbort => {
                if !in_barrier {
                    self.enter_barrier();
                }
                out.push(Effect::WriteAbort(gid));
            }
            ParticipantStep::TellAbortAccepted => self.tell_abort_accepted(gid, out),
            ParticipantStep::Commit => out.push(Effect::CommitPrepared(gid)),
            ParticipantStep::Rollback => out.push(Effect::RollbackPrepared(gid)),
            ParticipantStep::TellCommitted => Self::send(out, origin, PeerMessage::Committed(gid)),
        }
    }

    /// An acceptance counts in the ballot in which this node is now: the transaction's own
    /// generation, or the current one, whose proposer asked.
    fn tell_abort_accepted(&mut self, gid: Gid, out: &mut Outbox<Effect>) {
        let current = *self.core.membership.current();
        let num = current.generation.num;
        if !self.serves() {
            return;
        }
        if num == gid.generation || self.planted(Bug::StaleAbort) {
            let to = NodeSet::only(gid.origin).without(self.me());
            Self::send(out, to, PeerMessage::AbortAccepted(gid));
        }
        if num > gid.generation
            && let Some(proposer) = current.proposer()
        {
            if proposer == self.me() {
                self.accepted_in(proposer, gid, num, out);
            } else {
                Self::send(out, NodeSet::only(proposer), PeerMessage::AbortAcceptedIn(gid, num));
            }
        }
    }
}
