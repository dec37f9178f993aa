//! The recovery process of a host: replays a donor's WAL up to its ParallelSafe record.

use super::host::Task;
use super::{Op, Then, World};
use crate::database::{Keys, Owner, Record};
use mtm_core::{GenNum, Gid};
use mtm_generations as generations;
use mtm_node::{Input, Node, Role};

const AGAIN_US: u64 = 20_000;

impl World {
    pub(super) fn task(&mut self, i: usize, task: Task) {
        self.hosts[i].tasks.push_back(task);
        self.hosts[i].locks_changed = true;
    }

    pub(super) fn recover_in(&mut self, i: usize, us: u64) {
        let at = self.now.0 + us;
        if self.hosts[i].recover_at.is_none_or(|old| at < old) {
            self.hosts[i].recover_at = Some(at);
            self.op(i, us, Op::Recover);
        }
    }

    /// A node that is no member asks to be included when it has nearly everything.
    pub(super) fn catch_up(&mut self, i: usize) {
        let membership = self.hosts[i].core.membership();
        let dead = membership.status_in_generation() == generations::StatusInGeneration::Dead;
        let caught_up = dead && !membership.is_fenced() && self.rng.chance(20);
        if caught_up != self.hosts[i].caught_up && (caught_up || !dead) {
            self.hosts[i].caught_up = caught_up;
            self.feed(i, Input::Generation(generations::Input::CaughtUp(caught_up)));
        }
    }

    /// Reads on in the donor's WAL. Called again and again until the node is ONLINE or recovers
    /// into another generation.
    pub(super) fn recover(&mut self, i: usize) {
        if self.hosts[i].recovery.is_none() {
            return;
        }
        self.recover_in(i, AGAIN_US);
        loop {
            if !self.hosts[i].tasks.is_empty() || !self.recover_one(i) {
                return;
            }
        }
    }

    /// One record; false when something must be waited for.
    fn recover_one(&mut self, i: usize) -> bool {
        let Some((donor, end)) = self.donor(i) else { return false };
        let Some(recovery) = &mut self.hosts[i].recovery else { return false };
        let (num, at) = (recovery.num, recovery.at);
        if at == end {
            return self.reconcile(i, donor, end, num);
        }
        recovery.at += 1;
        let record = self.hosts[donor].db.wal[at].clone();
        if let Record::Syncpoint(below) = record {
            if self.hosts[i].finishing.is_empty() {
                self.feed(i, Input::Syncpoint { num, below });
            }
            return true;
        }
        let (Record::Commit(gid, _) | Record::CommitPrepared(gid, _)) = record else { return true };
        // In the donor's order: the one before must be done, also if it was prepared here.
        if !self.hosts[i].finishing.is_empty() {
            self.hosts[i].recovery.as_mut().expect("looked up above").at = at;
            return false;
        }
        self.coverage.replayed += 1;
        self.feed(i, Input::Replay { num, gid });
        true
    }

    /// The donor in use and where its ParallelSafe record is. It stays the same one as long as it
    /// can be reached (specs/adr/0105).
    fn donor(&mut self, i: usize) -> Option<(usize, usize)> {
        let recovery = self.hosts[i].recovery.as_ref()?;
        let (num, donors, old) = (recovery.num, recovery.donors, recovery.donor);
        let usable = |d: usize| {
            let reachable = self.hosts[d].up && !self.cut[d][i] && !self.cut[i][d];
            reachable.then(|| self.parallel_safe(d, num)).flatten()
        };
        if let Some(end) = old.and_then(usable) {
            return old.map(|d| (d, end));
        }
        let (donor, end) = donors.iter().find_map(|d| usable(d.index()).map(|end| (d.index(), end)))?;
        let recovery = self.hosts[i].recovery.as_mut()?;
        recovery.donor = Some(donor);
        recovery.at = 0;
        recovery.reconciled = false;
        Some((donor, end))
    }

    fn parallel_safe(&self, donor: usize, num: GenNum) -> Option<usize> {
        let db = &self.hosts[donor].db;
        db.wal[..db.flushed].iter().position(|r| matches!(r, Record::ParallelSafe(n, _) if *n == num))
    }

    fn reconcile(&mut self, i: usize, donor: usize, end: usize, num: GenNum) -> bool {
        if !self.hosts[i].finishing.is_empty() {
            return false;
        }
        let done = self.hosts[i].recovery.as_ref().is_some_and(|r| r.reconciled);
        if done {
            self.hosts[i].recovery = None;
            self.coverage.recoveries += 1;
            self.feed(i, Input::Generation(generations::Input::Recovered(num)));
            return false;
        }
        let Record::ParallelSafe(_, held) = self.hosts[donor].db.wal[end].clone() else {
            return false;
        };
        for (gid, accepted_abort) in held {
            self.feed(i, Input::DonorHolds { num, gid, accepted_abort });
        }
        self.feed(i, Input::DonorHoldsNoMore(num));
        if let Some(recovery) = &mut self.hosts[i].recovery {
            recovery.reconciled = recovery.num == num;
        }
        true
    }

    fn task_keys(&mut self, i: usize, gid: Gid) -> Keys {
        if let Some(keys) = &self.hosts[i].task_keys {
            return keys.clone();
        }
        // The rows come from the donor, or are here already.
        let donor = self.hosts[i].recovery.as_ref().and_then(|r| r.donor);
        let keys = donor.and_then(|d| self.hosts[d].db.keys_of(&gid));
        let keys = keys.or_else(|| self.hosts[i].db.keys_of(&gid));
        let keys = keys.unwrap_or_else(|| {
            self.oracle.violated("NoMisuse", format!("no rows of {gid} for recovery"));
            Keys::new()
        });
        self.hosts[i].task_keys = Some(keys.clone());
        keys
    }

    /// Goes on with the first task: locks its rows, writes its record.
    pub(super) fn pump_task(&mut self, i: usize) {
        let Some(&task) = self.hosts[i].tasks.front() else { return };
        if self.hosts[i].task_writing {
            return;
        }
        let (record, gid) = match task {
            Task::Drop(gid) => (Record::RollbackPrepared(gid), gid),
            Task::Apply(gid) => {
                let keys = self.task_keys(i, gid);
                if !self.lock_for_task(i, gid, &keys, Owner::Recovery) {
                    return;
                }
                (Record::Commit(gid, keys), gid)
            }
            Task::Install(gid, accepted) => {
                let keys = self.task_keys(i, gid);
                if !self.lock_for_task(i, gid, &keys, Owner::Gid(gid)) {
                    return;
                }
                (Record::Install(gid, keys, accepted), gid)
            }
        };
        self.hosts[i].task_writing = true;
        match task {
            Task::Drop(_) => self.coverage.dropped += 1,
            Task::Install(..) => self.coverage.installed += 1,
            Task::Apply(_) => {}
        }
        self.append_soon(i, record, Then::RecoveryDone(gid));
    }

    fn lock_for_task(&mut self, i: usize, gid: Gid, keys: &Keys, owner: Owner) -> bool {
        while let Some(&key) = keys.get(self.hosts[i].task_locked) {
            match self.hosts[i].owner(key) {
                None => {
                    self.hosts[i].db.locks.insert(key, owner);
                }
                Some(held) if held == owner => {}
                Some(Owner::Backend(id)) => {
                    if self.hosts[i].backends.get(&id).is_some_and(|b| b.gid.is_none()) {
                        self.end_unannounced(i, id);
                        continue;
                    }
                    return false;
                }
                Some(Owner::Gid(other)) => {
                    self.in_the_way(i, gid, other);
                    return false;
                }
                Some(Owner::Recovery) => return false,
            }
            self.hosts[i].task_locked += 1;
        }
        true
    }

    /// An undecided transaction stands in the way of a replayed one: it is dropped. The task for
    /// that comes first.
    fn in_the_way(&mut self, i: usize, gid: Gid, other: Gid) {
        let host = &mut self.hosts[i];
        let entry = Node::new(&mut host.core, &mut host.slots).transaction(&other);
        let undecided = entry.is_some_and(|e| matches!(e.role, Role::Peer(p) if p.is_undecided()));
        let dropping = host.tasks.contains(&Task::Drop(other));
        if !undecided || dropping {
            return;
        }
        self.tell(|| format!("n{}    {other} is in the way of {gid}", i + 1));
        self.feed(i, Input::Drop(other));
        let host = &mut self.hosts[i];
        if let Some(at) = host.tasks.iter().position(|t| *t == Task::Drop(other)) {
            host.tasks.remove(at);
            host.tasks.push_front(Task::Drop(other));
        }
    }

    pub(super) fn task_done(&mut self, i: usize, gid: Gid) {
        let host = &mut self.hosts[i];
        host.tasks.pop_front();
        host.task_writing = false;
        // After a drop the task behind goes on with the rows it has.
        let dropped = matches!(host.db.wal.last(), Some(Record::RollbackPrepared(g)) if *g == gid);
        if !dropped {
            host.task_locked = 0;
            host.task_keys = None;
        }
        host.locks_changed = true;
        self.feed(i, Input::RecoveryDone(gid));
        self.recover_in(i, 0);
    }
}
