//! What readers may be answered, and when a client may be told that its commit is there for all of
//! them (specs/adr/0118).
//!
//! Together: a read that begins after a commit was acknowledged sees it, on whatever node.
//!
//! 1. A commit is acknowledged when all members of the generation in which its origin is have it,
//!    and, if others had voted for it, are ONLINE in it ([`Node::unseen`]).
//! 2. A node answers readers while it is ONLINE and a majority has promised not to go on without it
//!    (`mtm_generations`, leases).
//! 3. A node that has recovered into its generation, or restarted, answers readers when everything
//!    older that it holds is settled: it may have been acknowledged without this node.

use super::{Bug, Node};
use crate::entry::Role;
use mtm_core::{Gid, Instant, NodeSet};

impl Node<'_> {
    /// Whether something may be committed, and even acknowledged, that readers on this node do not
    /// see yet: recovery or a restart has brought it as prepared, and it is not settled. A node that
    /// was ONLINE in the generation before lacks nothing of it: without its word nothing was
    /// acknowledged.
    pub fn may_lack_commits(&mut self) -> bool {
        // The whole table is looked at until it has nothing of the kind, and no more after that.
        self.core.unsettled = self.core.unsettled && self.holds_unsettled();
        self.core.unsettled
    }

    fn holds_unsettled(&self) -> bool {
        let core = &self.core;
        let (recovered, found) = (!self.planted(Bug::ReadRecovered), !self.planted(Bug::ReadFound));
        self.held().any(|(gid, _)| {
            recovered && gid.generation < core.recovered_into
                || found && gid.xid < core.found[gid.origin.index()]
        })
    }

    /// Until when readers may be answered without looking again; `None` if they may not now.
    pub fn reads_until(&mut self, now: Instant) -> Option<Instant> {
        if !self.serves() || self.may_lack_commits() {
            return None;
        }
        self.core.membership.leased_until(now)
    }

    /// Where an own committed transaction may not be seen yet by readers: nowhere, and its client
    /// may be told, if this is empty.
    pub fn unseen(&self, gid: &Gid) -> NodeSet {
        let Some(Role::Own(own)) = self.table.get(gid).map(|entry| entry.role) else {
            return NodeSet::EMPTY;
        };
        let membership = &self.core.membership;
        let members = membership.current().generation.members;
        let missing = own.missing();
        let unseen = missing.intersection(members);
        // Those who are no members any more answer readers until all members have switched.
        if missing == unseen || self.planted(Bug::AcknowledgeEarly) {
            return unseen;
        }
        unseen.union(members.difference(membership.members_online()))
    }
}
