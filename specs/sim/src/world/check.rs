//! The invariants, checked after every step.

use super::{World, node};
use crate::oracle::Told;
use mtm_core::Gid;
use mtm_node::user::Operation;
use mtm_node::{Node, Role};

/// Rows that only the last transactions write.
pub(super) const PROBE_ROW: u8 = 240;

impl World {
    /// A decided commit is held by every node ONLINE in the deciding or a later generation
    /// (TLA+ `OnlineHoldsAll`).
    pub(super) fn check_host(&mut self, i: usize) {
        self.check_grant(i);
        self.check_users(i);
        self.check_readers(i);
        if self.oracle.pending.is_empty() || !self.serves(i) {
            return;
        }
        let num = self.current(i).generation.num;
        let db = &self.hosts[i].db;
        let missing = self
            .oracle
            .pending
            .iter()
            .find(|gid| self.oracle.commits[*gid] <= num && !db.holds(gid));
        if let Some(gid) = missing.copied() {
            let what = format!("n{} is online in {} and lacks {gid}", i + 1, num.0);
            self.oracle.violated("OnlineHoldsAll", what);
        }
        let members = self.members();
        let hosts = &self.hosts;
        let lacks = |gid: &Gid| members.iter().any(|&i| !hosts[i].db.committed.contains(gid));
        self.oracle.pending.retain(lacks);
    }

    /// A read that begins after a commit was acknowledged sees it, on whatever node. Not where
    /// clocks have jumped: leases need clocks that run at the same rate.
    fn check_readers(&mut self, i: usize) {
        if self.coverage.clock_steps > 0 {
            return;
        }
        let host = &mut self.hosts[i];
        let machine = Node::new(&mut host.core, &mut host.slots);
        let unseen = |gid: &Gid| machine.unseen(gid).is_empty();
        let told = host.waiting_clients.extract_if(.., unseen).collect::<Vec<_>>();
        let new = !told.is_empty();
        self.coverage.acknowledged += told.len() as u64;
        self.oracle.acknowledged.extend(told);
        let readers = if new { 0..self.hosts.len() } else { i..i + 1 };
        for x in readers {
            if let Some(gid) = self.missed_by_readers(x) {
                let what = format!("{gid} is acknowledged and readers on n{} miss it", x + 1);
                self.oracle.violated("ReadsAcknowledged", what);
            }
        }
        if new {
            let (hosts, ever) = (&self.hosts, self.ever);
            // A crash undoes what is only seen.
            let lacks =
                |gid: &Gid| ever.iter().any(|n| !hosts[n.index()].db.committed.contains(gid));
            self.oracle.acknowledged.retain(lacks);
        }
    }

    fn missed_by_readers(&mut self, x: usize) -> Option<Gid> {
        let now = self.local(x);
        let host = &mut self.hosts[x];
        let lacks = self.oracle.acknowledged.iter().find(|gid| !host.shows(gid)).copied()?;
        let reads = Node::new(&mut host.core, &mut host.slots).reads_until(now).is_some();
        (reads && host.up && !host.frozen).then_some(lacks)
    }

    /// At most one node serves alone (TLA+ `OneGrant`).
    fn check_grant(&mut self, i: usize) {
        let alone = |w: &Self, i: usize| {
            let here = w.hosts[i].up && w.hosts[i].core.membership().is_online();
            here && w.current(i).generation.members.len() == 1
        };
        if self.hosts.len() == 2 && alone(self, i) && alone(self, 1 - i) {
            self.oracle.violated("OneGrant", "both nodes serve alone".to_owned());
        }
    }

    /// An acknowledged commit is on a majority of the disks (TLA+ `AckedDurable`).
    pub(super) fn check_acked(&mut self, gid: Gid) {
        let lack = (0..self.hosts.len()).filter(|&i| !self.hosts[i].db.holds(&gid)).map(node);
        let lack: mtm_core::NodeSet = lack.collect();
        let configured = self.configured();
        if lack.intersection(configured).is_majority_of(configured) && configured.len() > 2 {
            self.oracle
                .violated("AckedDurable", format!("{gid} is acknowledged and not on {lack}"));
        }
    }

    /// After a crash the disk may have lost what memory had: nothing acknowledged may be among it.
    pub(super) fn recount(&mut self, i: usize) {
        let host = &self.hosts[i];
        let lost: Vec<Gid> = self
            .oracle
            .commits
            .keys()
            .filter(|g| !host.db.committed.contains(*g))
            .copied()
            .collect();
        self.oracle.pending.extend(lost.iter().copied());
        for gid in lost {
            if self.oracle.told.get(&gid) == Some(&Told::Committed) {
                self.check_acked(gid);
            }
        }
    }

    /// Whether everything is as it should be when nothing disturbs; what is not.
    pub(super) fn converged(&mut self) -> Result<(), String> {
        let (members, all) = (self.members(), self.configured());
        let first = members[0];
        let num = self.current(first).generation.num;
        for &i in &members {
            let current = self.current(i).generation;
            if !self.serves(i) || current.num != num || current.members != all {
                let host = &mut self.hosts[i];
                let status = host.core.membership().status();
                let machine = Node::new(&mut host.core, &mut host.slots);
                let (len, places) = (machine.len(), machine.capacity());
                let n = i + 1;
                return Err(format!(
                    "n{n} is {status:?} in {current:?} with {len} of {places} places taken"
                ));
            }
            let host = &mut self.hosts[i];
            if let Some(gid) = host.db.prepared.keys().next() {
                let entry = Node::new(&mut host.core, &mut host.slots).transaction(gid);
                return Err(format!("n{} has {gid} prepared: {entry:?}", i + 1));
            }
            if !host.backends.is_empty() || !host.appliers.is_empty() || !host.finishing.is_empty()
            {
                return Err(format!(
                    "n{} is at work: {:?} {:?}",
                    i + 1,
                    host.backends,
                    host.appliers
                ));
            }
            let machine = Node::new(&mut host.core, &mut host.slots);
            let open = machine.transactions().find(|(_, e)| match &e.role {
                Role::Own(c) => {
                    c.state() == mtm_paxos::commit::CoordinatorState::GivenUp || e.holds()
                }
                Role::Peer(_) => e.holds(),
            });
            if let Some((gid, entry)) = open {
                return Err(format!("n{} has {gid} open: {entry:?}", i + 1));
            }
        }
        let differ = members.iter().find(|&&i| self.hosts[i].db.rows != self.hosts[first].db.rows);
        match differ {
            Some(i) => Err(format!("n{} and n{} differ", i + 1, first + 1)),
            None => self.users_agree(),
        }
    }

    pub(super) fn measure_table(&mut self, i: usize) {
        let host = &mut self.hosts[i];
        let machine = Node::new(&mut host.core, &mut host.slots);
        let size = machine.transactions().count() as u64;
        self.coverage.table_max = self.coverage.table_max.max(size);
    }

    /// In the end every node has forgotten every transaction.
    pub(super) fn forgotten(&mut self) -> Result<(), String> {
        let members = self.members();
        for &i in &members {
            let host = &mut self.hosts[i];
            let machine = Node::new(&mut host.core, &mut host.slots);
            if let Some((gid, entry)) = machine.transactions().next() {
                return Err(format!("n{} does not forget {gid}: {entry:?}", i + 1));
            }
        }
        let rows = &self.hosts[members[0]].db.rows;
        let mut probes = members.iter().map(|&i| PROBE_ROW + i as u8);
        let unwritten = probes.find(|row| !rows.contains_key(row));
        match unwritten {
            Some(row) => Err(format!("the last transaction of row {row} is not there")),
            None => Ok(()),
        }
    }

    pub(super) fn final_checks(&mut self) {
        if let Err(what) = self.converged().and_then(|()| self.forgotten()) {
            self.oracle.violated("FinallyWorks", what);
            return;
        }
        self.users_ended_by_decision();
        let first = self.members()[0];
        let told: Vec<(Gid, Told)> = self.oracle.told.iter().map(|(g, t)| (*g, *t)).collect();
        for (gid, told) in told {
            let there = self.hosts[first].db.committed.contains(&gid);
            match told {
                Told::Committed => {
                    self.coverage.committed += 1;
                    match self.oracle.operations.get(&gid) {
                        Some(Operation::Prepare(_)) => self.coverage.users_prepared += 1,
                        Some(Operation::Finish { .. }) => self.coverage.users_ended += 1,
                        None => {}
                    }
                    if !there {
                        self.oracle.violated(
                            "AckedDurable",
                            format!("{gid} was acknowledged and is gone"),
                        );
                    }
                }
                Told::Aborted => {
                    self.coverage.aborted += 1;
                    if there {
                        self.oracle
                            .violated("AbortFinal", format!("{gid} was refused and is there"));
                    }
                }
                Told::Unknown => self.coverage.unknown += 1,
            }
        }
        let settled = self.oracle.aborts.len() as u64;
        self.coverage.settled_aborts += settled.saturating_sub(self.coverage.aborted);
    }
}
