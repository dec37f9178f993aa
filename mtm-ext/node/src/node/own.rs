//! Transactions that run on this node.

use super::{Bug, Effect, Misuse, Node, Outcome, Rejection};
use crate::entry::{Entry, Role};
use crate::peer_message::PeerMessage;
use mtm_core::{Gid, Instant, LocalXid, NodeId, NodeSet, Outbox};
use mtm_paxos::commit::{Coordinator, CoordinatorStep, Decree};

impl Node<'_> {
    fn coordinator(&mut self, gid: Gid) -> Option<&mut Coordinator> {
        match self.table.get_mut(&gid) {
            Some(Entry { role: Role::Own(c), .. }) => Some(c),
            _ => None,
        }
    }

    /// Stamp, number and announce (TLA+ `Begin`): enters the barrier until the announcement is
    /// written.
    pub(super) fn announce(
        &mut self,
        now: Instant,
        local: LocalXid,
        out: &mut Outbox<Effect>,
    ) -> Result<(), Misuse> {
        let rejection = if !self.serves() {
            Some(Rejection::NotOnline)
        } else if self.switch_waits() {
            Some(Rejection::SwitchWaits)
        } else {
            None
        };
        if let Some(rejection) = rejection {
            out.push(Effect::Rejected(local, rejection));
            return Ok(());
        }
        let generation = self.core.membership.current().generation;
        let number = self.next_number();
        let gid = Gid { origin: self.me(), xid: number, generation: generation.num };
        let own = Coordinator::new(gid, generation.members);
        if !self.is_within_share(&gid) {
            out.push(Effect::Rejected(local, Rejection::TableFull));
            return Ok(());
        }
        if self.table.entry(gid, || Entry { local, ..Entry::new(Role::Own(own)) }).is_err() {
            out.push(Effect::Rejected(local, Rejection::TableFull));
            return Ok(());
        }
        self.core.retention.seen(&gid);
        self.core.retention.used(number);
        self.enter_barrier();
        self.watch(now);
        out.push(Effect::WriteAnnouncement(gid));
        Ok(())
    }

    /// Nobody can have heard of it.
    pub(super) fn announcement_failed(&mut self, gid: Gid) {
        self.leave_barrier();
        self.table.remove(&gid);
    }

    pub(super) fn announcement_durable(&mut self, gid: Gid, out: &mut Outbox<Effect>) {
        self.core.retention.announced(gid.xid);
        let step = self.coordinator(gid).map(Coordinator::announced);
        self.own_step(gid, step, out);
    }

    pub(super) fn voted(&mut self, from: NodeId, gid: Gid, yes: bool, out: &mut Outbox<Effect>) {
        let step = self.coordinator(gid).map(|c| c.vote(from, yes));
        self.own_step(gid, step, out);
        // Whoever still votes has not heard the outcome.
        let decree = self.table.get_mut(&gid).and_then(|e| e.decree());
        if let Some(decree) = decree {
            Self::send(out, NodeSet::only(from), PeerMessage::Decided(gid, decree));
        }
    }

    /// An interrupt in the wait starts the abort round; it does not simply throw. Only in the
    /// transaction's own generation (TLA+ `CoordAbort`).
    pub(super) fn cancel(&mut self, gid: Gid, out: &mut Outbox<Effect>) {
        if self.in_its_generation(gid) && !self.switch_waits() {
            let step = self.coordinator(gid).map(Coordinator::start_abort);
            self.own_step(gid, step, out);
        }
    }

    pub(super) fn abort_accepted(&mut self, from: NodeId, gid: Gid, out: &mut Outbox<Effect>) {
        let step = self.coordinator(gid).map(|c| c.abort_accepted(from));
        self.own_step(gid, step, out);
    }

    pub(super) fn commit_durable(
        &mut self,
        now: Instant,
        gid: Gid,
        out: &mut Outbox<Effect>,
    ) -> Result<(), Misuse> {
        let own = self.coordinator(gid).ok_or(Misuse::UnknownTransaction(gid))?;
        let step = own.commit_durable();
        self.core.deciding = self.core.deciding.saturating_sub(1);
        out.push(Effect::Answer(gid, Outcome::Committed));
        self.own_step(gid, Some(step), out);
        self.watch(now);
        Ok(())
    }

    pub(super) fn peer_committed(&mut self, from: NodeId, gid: Gid, out: &mut Outbox<Effect>) {
        let step = self.coordinator(gid).map(|c| c.peer_committed(from));
        self.own_step(gid, step, out);
    }

    /// What a coordinator's step means for the driver.
    pub(super) fn own_step(
        &mut self,
        gid: Gid,
        step: Option<CoordinatorStep>,
        out: &mut Outbox<Effect>,
    ) {
        let Some(step) = step else { return };
        match step {
            CoordinatorStep::Nothing | CoordinatorStep::AllCommitted => {}
            CoordinatorStep::Refused => self.cancel(gid, out),
            CoordinatorStep::PersistAbort => {
                self.enter_barrier();
                out.push(Effect::WriteAbort(gid));
            }
            CoordinatorStep::AskAbort(to) => {
                Self::send(out, to.without(self.me()), PeerMessage::AskAbort(gid));
                if self.planted(Bug::EarlyAbort) {
                    out.push(Effect::Answer(gid, Outcome::Aborted));
                }
            }
            CoordinatorStep::TellAbort(to) => {
                out.push(Effect::Answer(gid, Outcome::Aborted));
                Self::send(out, to, PeerMessage::Decided(gid, Decree::Abort));
            }
            CoordinatorStep::Commit => {
                self.core.deciding += 1;
                if self.planted(Bug::NoFlush) {
                    let to = self.core.membership.current().generation.members;
                    let decided = PeerMessage::Decided(gid, Decree::Commit);
                    Self::send(out, to.without(self.me()), decided);
                    out.push(Effect::Answer(gid, Outcome::Committed));
                }
                out.push(Effect::WriteCommit(gid));
            }
            CoordinatorStep::TellCommit(to) => {
                Self::send(out, to, PeerMessage::Decided(gid, Decree::Commit));
            }
        }
    }
}
