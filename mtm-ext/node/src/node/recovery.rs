//! Restart and recovery: what the WAL, this node's own or a donor's, says of transactions.

use super::retention::pass;
use super::{Bug, Effect, Found, Misuse, Node};
use crate::entry::{DonorsWord, Entry, Role};
use mtm_core::{GenNum, Gid, Instant, LocalXid, Outbox, Xid};
use mtm_generations as generations;
use mtm_paxos::commit::{Coordinator, Decree, Participant, ParticipantState};

impl Node<'_> {
    /// While fenced: rebuilds the table. A ROLLBACK PREPARED or ABORT record is evidence of
    /// nothing, so there is no input for it.
    pub(super) fn found(&mut self, gid: Gid, found: Found) -> Result<(), Misuse> {
        if !self.core.membership.is_fenced() && !self.planted(Bug::NoFence) {
            return Err(Misuse::NotFenced);
        }
        if gid.origin == self.me() {
            self.core.retention.announced(gid.xid);
        }
        let members = self.core.membership.current().generation.members;
        let role = match found {
            Found::Prepared => Role::Peer(Participant::found_prepared()),
            Found::AbortAccepted { prepared } => {
                Role::Peer(Participant::found_abort_accepted(prepared))
            }
            Found::Committed => Role::Peer(Participant::found_finished(Decree::Commit)),
            Found::Aborted => Role::Peer(Participant::found_finished(Decree::Abort)),
            Found::AnnouncedOnly { .. } => Role::Own(Coordinator::found_refused(gid, members)),
        };
        let local = match found {
            Found::AnnouncedOnly { local } => local,
            _ => LocalXid(0),
        };
        self.core.retention.seen(&gid);
        pass(&mut self.core.found, &gid);
        self.core.unsettled = true;
        let entry = self.table.entry(gid, || Entry::new(role))?;
        (entry.role, entry.local) = (role, local);
        Ok(())
    }

    /// The fence falls: everything announced is restored or refused.
    pub(super) fn scan_complete(
        &mut self,
        now: Instant,
        next: Xid,
        out: &mut Outbox<Effect>,
    ) -> Result<(), Misuse> {
        if !self.core.membership.is_fenced() && !self.planted(Bug::NoFence) {
            return Err(Misuse::NotFenced);
        }
        self.core.retention.go_on_with(next);
        self.generation(now, generations::Input::Fenced(false), out)?;
        let mut effects = Outbox::new();
        self.core.membership.resume(&mut effects);
        super::translate(effects, out);
        self.watch(now);
        Ok(())
    }

    /// Whether what a recovery for generation `num` says may be heeded: the node may have moved
    /// on meanwhile, and the next recovery begins again.
    pub(super) fn recovers_for(&self, num: GenNum) -> bool {
        let current = self.core.membership.current().generation.num;
        num == current && self.core.membership.may_recover() && !self.switch_waits()
    }

    /// The donor committed it, next in its commit order (TLA+ `Replay`).
    pub(super) fn replay(&mut self, num: GenNum, gid: Gid, out: &mut Outbox<Effect>) {
        if !self.recovers_for(num) {
            out.push(Effect::Hold(gid));
            return;
        }
        if self.is_forgotten(&gid) {
            out.push(Effect::Skip(gid));
            return;
        }
        let refused = self.planted(Bug::RefusedIsFinal);
        // The donor had saved that enough is forgotten before it took this one, and wrote a
        // syncpoint: that only has to be saved here, too.
        let Some(entry) = self.peer_entry(gid) else {
            out.push(Effect::Hold(gid));
            return;
        };
        let mut apply = false;
        match &mut entry.role {
            Role::Peer(peer) => {
                let finished = matches!(
                    peer.state(),
                    ParticipantState::Committing(_) | ParticipantState::Committed
                );
                if refused && peer.state() == ParticipantState::Refused {
                    out.push(Effect::Skip(gid));
                    return;
                }
                out.push(match peer.replayed() {
                    true => Effect::CommitPrepared(gid),
                    false if finished => Effect::Skip(gid),
                    false => {
                        apply = true;
                        Effect::ApplyCommitted(gid)
                    }
                });
            }
            Role::Own(own) if own.decree() == Some(Decree::Commit) => out.push(Effect::Skip(gid)),
            // Given up here, committed by a generation without this node.
            Role::Own(_) => {
                let mut peer = Participant::new();
                peer.replayed();
                entry.role = Role::Peer(peer);
                apply = true;
                out.push(Effect::ApplyCommitted(gid));
            }
        }
        if apply {
            // The table says more than the disk until it is done: no switch meanwhile.
            self.begin_recovery_work();
        }
    }

    /// Rolls back an undecided transaction without any outcome: from here on this node lacks it.
    pub(super) fn drop_undecided(&mut self, gid: Gid, out: &mut Outbox<Effect>) {
        let undecided = self.core.membership.may_recover()
            && matches!(
                self.table.get_mut(&gid),
                Some(Entry { role: Role::Peer(peer), .. }) if peer.is_undecided()
            );
        if undecided {
            self.table.remove(&gid);
            self.begin_recovery_work();
            out.push(Effect::DropPrepared(gid));
        }
    }

    /// The donor held it at its ParallelSafe (TLA+ `Reconcile`): so will this node, as soon as the
    /// donor's whole set is known.
    pub(super) fn donor_holds(
        &mut self,
        num: GenNum,
        gid: Gid,
        accepted_abort: bool,
        out: &mut Outbox<Effect>,
    ) {
        if !self.recovers_for(num) || self.is_forgotten(&gid) {
            return;
        }
        let mut accepted = accepted_abort && !self.planted(Bug::ForgetAbort);
        let (refused, stays) = (self.planted(Bug::RefusedIsFinal), self.planted(Bug::OwnWordStays));
        let Some(entry) = self.peer_entry(gid) else {
            out.push(Effect::Hold(gid));
            return;
        };
        if let Role::Peer(peer) = &entry.role {
            if refused && peer.state() == ParticipantState::Refused {
                return;
            }
            accepted |= stays && matches!(peer.state(), ParticipantState::AbortAccepted(_));
        }
        entry.donors_word = Some(DonorsWord { num, accepted });
    }

    /// The donor's set is complete: what it did not hold, this node does not hold either; then
    /// what it held. Drops come first, since they free the rows that the others need.
    pub(super) fn donor_holds_no_more(&mut self, num: GenNum, out: &mut Outbox<Effect>) {
        if !self.recovers_for(num) {
            return;
        }
        let (mut gone, mut held) = (Vec::new(), Vec::new());
        for (gid, entry) in self.table.iter().filter(|(_, e)| e.decree().is_none()) {
            match entry.donors_word {
                Some(word) if word.num == num => held.push((*gid, word.accepted)),
                _ if gid.generation < num => gone.push(*gid),
                _ => {}
            }
        }
        for gid in gone {
            self.drop_undecided(gid, out);
        }
        for (gid, accepted) in held {
            self.install(gid, accepted, out);
        }
    }

    fn begin_recovery_work(&mut self) {
        self.enter_barrier();
        self.core.recovery_work += 1;
    }

    /// What recovery asked for is durable: the table and the disk agree again.
    pub(super) fn recovery_done(&mut self, now: Instant, gid: Gid, out: &mut Outbox<Effect>) {
        self.leave_barrier();
        self.core.recovery_work = self.core.recovery_work.saturating_sub(1);
        self.watch(now);
        let Some(entry) = self.table.get_mut(&gid) else { return };
        let Role::Peer(peer) = &mut entry.role else { return };
        if matches!(peer.state(), ParticipantState::Preparing(_)) {
            let accepted = entry.donors_word.is_some_and(|word| word.accepted);
            *peer = if accepted {
                Participant::found_abort_accepted(true)
            } else {
                Participant::found_prepared()
            };
        } else {
            let step = peer.finished();
            self.peer_step(gid, step, true, out);
        }
    }

    /// The donor's word replaces this node's in both directions, also an abort accepted here: that
    /// belongs to the ballot it was accepted in (specs/adr/0100).
    fn install(&mut self, gid: Gid, accepted_abort: bool, out: &mut Outbox<Effect>) {
        let wanted = Role::Peer(if accepted_abort {
            Participant::found_abort_accepted(true)
        } else {
            Participant::found_prepared()
        });
        let Some(entry) = self.table.get_mut(&gid) else { return };
        if entry.role != wanted {
            // Not before it is done may it be committed or rolled back.
            entry.role = Role::Peer(Participant::installing());
            self.begin_recovery_work();
            out.push(Effect::Install(gid, accepted_abort));
        }
    }
}
