//! Asking again: nobody waits for a message that is sent once.

use super::{Effect, Node};
use crate::entry::{Entry, Role};
use crate::peer_message::PeerMessage;
use mtm_core::{Gid, Instant, NodeSet, Outbox};
use mtm_paxos::commit::{CoordinatorState, Decree, ParticipantState};

impl Node<'_> {
    /// Goes through open transactions when it is time.
    pub(super) fn retry(&mut self, now: Instant, out: &mut Outbox<Effect>) {
        if self.core.next_retry.is_none_or(|at| now < at) || self.core.membership.is_fenced() {
            return;
        }
        let open: smallvec::SmallVec<[(Gid, Instant); 32]> = self
            .table
            .iter()
            .filter(|(_, e)| e.is_open())
            .map(|(gid, e)| (*gid, e.retry_at))
            .collect();
        self.core.next_retry = None;
        for &(gid, at) in &open {
            if now < at {
                self.core.next_retry =
                    Some(self.core.next_retry.map_or(at, |next: Instant| next.min(at)));
                continue;
            }
            let next = now.plus_us(self.core.retry_us);
            if let Some(entry) = self.table.get_mut(&gid) {
                entry.retry_at = next;
                let entry = *entry;
                self.ask_again(now, gid, entry, out);
            }
            self.core.next_retry = Some(self.core.next_retry.map_or(next, |other| other.min(next)));
        }
    }

    fn ask_again(&mut self, now: Instant, gid: Gid, entry: Entry, out: &mut Outbox<Effect>) {
        let me = self.me();
        let current = *self.core.membership.current();
        let num = current.generation.num;
        match &entry.role {
            Role::Own(own) => match own.state() {
                // Not before its announcement is durable, and with it this node's own vote: after
                // a crash the number might be used again.
                CoordinatorState::Voting if own.missing().contains(me) => {}
                CoordinatorState::Voting => {
                    Self::send(out, own.missing(), PeerMessage::AskVote(gid));
                }
                CoordinatorState::Aborting => {
                    let to = own.missing().without(me);
                    Self::send(out, to, PeerMessage::AskAbort(gid));
                }
                CoordinatorState::Committed => {
                    // Who is no member any more learns it through recovery.
                    let to = own.missing().intersection(current.generation.members).without(me);
                    Self::send(out, to, PeerMessage::Decided(gid, Decree::Commit));
                }
                // Likewise: whoever is asked makes an entry of it, and would keep it until this
                // node has announced as many again.
                CoordinatorState::GivenUp if !self.core.retention.is_kept(gid.xid) => {}
                CoordinatorState::GivenUp => self.ask_outcome(now, gid, out),
                CoordinatorState::AbortPending
                | CoordinatorState::Aborted
                | CoordinatorState::CommitDecided => {}
            },
            Role::Peer(peer)
                if peer.is_undecided()
                    || peer.state() == ParticipantState::AbortAccepted(false) =>
            {
                if num == gid.generation && peer.state() == ParticipantState::Prepared {
                    let to = NodeSet::only(gid.origin).without(me);
                    Self::send(out, to, PeerMessage::Prepared(gid));
                }
                self.ask_outcome(now, gid, out);
            }
            Role::Peer(_) => {}
        }
        // A settlement under way goes on even if this node itself no longer waits.
        if entry.settlement.is_some_and(|s| s.decree().is_none()) {
            let _full = self.settle(now, gid, out);
        }
    }

    /// Asks whoever must know: the origin in the same generation, the proposer of a later one.
    fn ask_outcome(&mut self, now: Instant, gid: Gid, out: &mut Outbox<Effect>) {
        let current = *self.core.membership.current();
        let whom = if current.generation.num == gid.generation {
            Some(gid.origin)
        } else {
            current.proposer()
        };
        let Some(whom) = whom else { return };
        if whom != self.me() {
            Self::send(out, NodeSet::only(whom), PeerMessage::Query(gid));
        } else {
            // The table may be full of others' transactions: the next retry tries again.
            let _full = self.settle(now, gid, out);
        }
    }
}
