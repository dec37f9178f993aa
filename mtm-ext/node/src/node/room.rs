//! Room for one more transaction: whatever may be begun must fit into the table, also after a
//! restart, which finds everything again that the last checkpoint does not call forgotten
//! (specs/adr/0115).
//!
//! Numbers of one origin are consecutive. So the numbers in use beyond what is saved as forgotten,
//! of all origins together, bound what a restart finds, and they stay within the table's places.
//! That one origin does not take the room of others, each has a share.

use super::Node;
use super::retention::Retention;
use mtm_core::{Gid, Xid};

const fn between(high: Xid, low: Xid) -> u64 {
    high.0.saturating_sub(low.0)
}

impl Node<'_> {
    /// How far one origin may go beyond what is saved as forgotten. Twice as much of each node
    /// fits in: whoever recovers may have saved that much less than its donor when the donor took
    /// a transaction.
    fn share(&self) -> u64 {
        let nodes = self.core.membership.current().generation.configured.nodes.len() as u64;
        (self.table.capacity() as u64 / (2 * nodes + 1)).max(1)
    }

    /// Whether a restart would still find places for everything if this transaction were begun.
    pub fn has_room_for(&self, gid: &Gid) -> bool {
        let Retention { saved, highest, .. } = &self.core.retention;
        let beyond = |(i, (high, low)): (usize, (&Xid, &Xid))| {
            let this = if i == gid.origin.index() { gid.xid.0.saturating_add(1) } else { 0 };
            between((*high).max(Xid(this)), *low)
        };
        let used = highest.iter().zip(saved).enumerate().map(beyond).fold(0, u64::saturating_add);
        used <= self.table.capacity() as u64 || self.table.get(gid).is_some()
    }

    /// Whether this new transaction is within its origin's share, too.
    pub(super) fn is_within_share(&self, gid: &Gid) -> bool {
        let saved = self.core.retention.saved[gid.origin.index()];
        self.has_room_for(gid)
            && (between(gid.xid, saved) < self.share() || self.table.get(gid).is_some())
    }

    /// Whether some origin has used half of its share.
    pub(super) fn is_tight(&self) -> bool {
        let Retention { saved, highest, .. } = &self.core.retention;
        let half = self.share() / 2;
        highest.iter().zip(saved).any(|(high, low)| between(*high, *low) > half)
    }

    /// Whether a checkpoint would make much room.
    pub fn wants_checkpoint(&self) -> bool {
        let Retention { forgotten, saved, .. } = &self.core.retention;
        let part = (self.share() / 4).max(1);
        forgotten.iter().zip(saved).any(|(new, old)| between(*new, *old) >= part)
    }
}
