//! The recovery process of a host: replays a donor's WAL up to its ParallelSafe record.

use super::host::Task;
use super::{Op, Then, World};
use crate::database::{Body, Owner, Record};
use crate::planted::Driver;
use crate::trace::What;
use mtm_core::{GenNum, Gid};
use mtm_generations as generations;
use mtm_node::{Input, Node, Role};

const AGAIN_US: u64 = 20_000;

impl World {
    /// With its rows at hand: the donor may be out of reach when its turn comes, and nothing that
    /// was begun may be left out.
    pub(super) fn task(&mut self, i: usize, task: Task) {
        let body = match task {
            Task::Drop(_) => Body::default(),
            Task::Apply(gid) | Task::Install(gid, _) => self.rows_for(i, gid),
        };
        self.hosts[i].tasks.push_back((task, body));
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
        let outside = dead && !membership.is_fenced();
        if outside {
            self.read_ahead(i);
        }
        let caught_up = outside && self.rng.chance(20);
        if caught_up != self.hosts[i].caught_up && (caught_up || !dead) {
            self.hosts[i].caught_up = caught_up;
            self.feed(i, Input::Generation(generations::Input::CaughtUp(caught_up)));
        }
    }

    /// While it is no member: replays what a node ONLINE in its generation has committed, so that
    /// recovery is short.
    fn read_ahead(&mut self, i: usize) {
        let num = self.current(i).generation.num;
        let usable = |d: usize| {
            d != i
                && self.hosts[i].known[d]
                && self.linked(d, i)
                && self.serves(d)
                && self.current(d).generation.num == num
        };
        let from = match self.hosts[i].catching_up {
            Some(same) if same.0 == num && usable(same.1) => Some(same),
            // From the confirmed place again: what was read last may not have been heeded.
            _ => (0..self.hosts.len())
                .find(|&d| usable(d))
                .map(|d| (num, d, self.hosts[i].confirmed[d])),
        };
        self.hosts[i].catching_up = from;
        // A recovery for a generation from before is over.
        self.hosts[i].recovery = None;
        let Some((num, donor, mut at)) = from else { return };
        // A few at a time: the next look comes soon.
        for _ in 0..20 {
            let busy = !self.hosts[i].tasks.is_empty() || !self.hosts[i].finishing.is_empty();
            if busy || at == self.hosts[donor].db.flushed {
                break;
            }
            let record = self.hosts[donor].db.wal[at].clone();
            if self.lacks_room_for(i, &record) {
                break;
            }
            at += 1;
            if let Record::Syncpoint(below) = record {
                self.feed(i, Input::Syncpoint { num, below });
            }
            if let Record::Commit(gid, _) | Record::CommitPrepared(gid, _) = record {
                self.coverage.caught_up += u64::from(!self.hosts[i].db.committed.contains(&gid));
                self.feed(i, Input::Replay { num, gid });
            }
        }
        self.hosts[i].catching_up = Some((num, donor, at));
    }

    /// Up to where this node needs nothing of a peer's WAL any more: before the first commit, of
    /// whatever origin, that is not durable here. The peer's slot moves there some time later.
    pub(super) fn confirm(&mut self, i: usize) {
        for peer in (0..self.hosts.len()).filter(|&p| p != i) {
            if !self.linked(peer, i) || !self.rng.chance(20) || !self.get_to_know(i, peer) {
                continue;
            }
            let (mine, wal) = (&self.hosts[i].db.committed, &self.hosts[peer].db);
            let start = self.hosts[i].confirmed[peer].min(wal.flushed);
            let needed = |r: &Record| match r {
                Record::Commit(gid, _) | Record::CommitPrepared(gid, _) => !mine.contains(gid),
                _ => false,
            };
            if self.neglects(Driver::ConfirmedEarly) {
                self.hosts[i].confirmed[peer] = wal.flushed;
                continue;
            }
            let done = wal.wal[start..wal.flushed].iter().position(needed);
            self.hosts[i].confirmed[peer] = done.map_or(wal.flushed, |n| start + n);
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
        let start = recovery.start;
        let record = if self.neglects(Driver::OriginByOrigin) {
            let origin = |r: &&Record| match r {
                Record::Commit(gid, _) | Record::CommitPrepared(gid, _) => gid.origin.get(),
                _ => 0,
            };
            let mut records: Vec<&Record> = self.hosts[donor].db.wal[start..end].iter().collect();
            records.sort_by_key(origin);
            records[at - start].clone()
        } else {
            self.hosts[donor].db.wal[at].clone()
        };
        if let Record::Syncpoint(below) = record {
            // Everything before it must be finished, not only begun. It may not be passed over:
            // what is confirmed is not read again.
            if !self.hosts[i].finishing.is_empty() {
                self.hosts[i].recovery.as_mut().expect("looked up above").at = at;
                return false;
            }
            self.feed(i, Input::Syncpoint { num, below });
            return true;
        }
        let (Record::Commit(gid, _) | Record::CommitPrepared(gid, _)) = record else { return true };
        // In the donor's order: the one before must be done, also if it was prepared here.
        if !self.hosts[i].finishing.is_empty() || self.lacks_room_for(i, &record) {
            self.hosts[i].recovery.as_mut().expect("looked up above").at = at;
            return false;
        }
        self.coverage.replayed += 1;
        self.feed(i, Input::Replay { num, gid });
        true
    }

    /// What is begun must fit in: it waits for the next checkpoint.
    fn lacks_room_for(&mut self, i: usize, record: &Record) -> bool {
        let (Record::Commit(gid, _) | Record::CommitPrepared(gid, _)) = record else {
            return false;
        };
        let host = &mut self.hosts[i];
        !Node::new(&mut host.core, &mut host.slots).has_room_for(gid)
    }

    /// The donor in use and where its ParallelSafe record is. It stays the same one as long as it
    /// can be reached (specs/adr/0105).
    fn donor(&mut self, i: usize) -> Option<(usize, usize)> {
        let recovery = self.hosts[i].recovery.as_ref()?;
        let (num, donors, old) = (recovery.num, recovery.donors, recovery.donor);
        let usable = |d: usize| {
            let may = self.linked(d, i) && self.hosts[i].known[d];
            may.then(|| self.parallel_safe(d, num)).flatten()
        };
        if let Some(end) = old.and_then(usable) {
            return old.map(|d| (d, end));
        }
        let (donor, end) =
            donors.iter().find_map(|d| usable(d.index()).map(|end| (d.index(), end)))?;
        let start = self.hosts[i].confirmed[donor].min(end);
        let recovery = self.hosts[i].recovery.as_mut()?;
        recovery.donor = Some(donor);
        recovery.at = start;
        recovery.start = start;
        recovery.reconciled = false;
        self.coverage.from_syncpoints += u64::from(start > 0);
        Some((donor, end))
    }

    fn parallel_safe(&self, donor: usize, num: GenNum) -> Option<usize> {
        let db = &self.hosts[donor].db;
        db.wal[..db.flushed]
            .iter()
            .position(|r| matches!(r, Record::ParallelSafe(n, _) if *n == num))
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
        let ignored = self.neglects(Driver::UndecidedIgnored);
        for (gid, accepted_abort) in held.into_iter().filter(|_| !ignored) {
            self.feed(i, Input::DonorHolds { num, gid, accepted_abort });
        }
        self.feed(i, Input::DonorHoldsNoMore(num));
        if let Some(recovery) = &mut self.hosts[i].recovery {
            recovery.reconciled = recovery.num == num;
        }
        true
    }

    /// The rows come from the donor, or are here already.
    fn rows_for(&mut self, i: usize, gid: Gid) -> Body {
        let donor = self.hosts[i].recovery.as_ref().and_then(|r| r.donor);
        let donor = donor.or_else(|| self.hosts[i].catching_up.map(|(_, d, _)| d));
        let body = donor.and_then(|d| self.hosts[d].db.body_of(&gid));
        let body = body.or_else(|| self.hosts[i].db.body_of(&gid));
        body.unwrap_or_else(|| {
            self.oracle.violated("NoMisuse", format!("no rows of {gid} for recovery"));
            Body::default()
        })
    }

    /// Goes on with the first task: locks its rows, writes its record.
    pub(super) fn pump_task(&mut self, i: usize) {
        let Some((task, body)) = self.hosts[i].tasks.front().cloned() else { return };
        if self.hosts[i].task_writing {
            return;
        }
        let (record, gid) = match task {
            Task::Drop(gid) => (Record::RollbackPrepared(gid), gid),
            Task::Apply(gid) => {
                if !self.lock_for_task(i, gid, &body, Owner::Recovery) {
                    return;
                }
                let body = self.as_recovered(body);
                (Record::Commit(gid, body), gid)
            }
            Task::Install(gid, accepted) => {
                if !self.lock_for_task(i, gid, &body, Owner::Gid(gid)) {
                    return;
                }
                (Record::Install(gid, body, accepted), gid)
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

    fn lock_for_task(&mut self, i: usize, gid: Gid, body: &Body, owner: Owner) -> bool {
        while let Some(&key) = body.keys.get(self.hosts[i].task_locked) {
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
        self.hold_for_task(i, gid, body)
    }

    /// An undecided transaction stands in the way of a replayed one: it is dropped. The task for
    /// that comes first.
    pub(super) fn in_the_way(&mut self, i: usize, gid: Gid, other: Gid) {
        let host = &mut self.hosts[i];
        let entry = Node::new(&mut host.core, &mut host.slots).transaction(&other);
        let undecided = entry.is_some_and(|e| matches!(e.role, Role::Peer(p) if p.is_undecided()));
        let dropping = host.tasks.iter().any(|(t, _)| *t == Task::Drop(other));
        if !undecided || dropping {
            return;
        }
        self.tell(|| What::Note(i, format!("{other} is in the way of {gid}")));
        self.feed(i, Input::Drop(other));
        let host = &mut self.hosts[i];
        if let Some(at) = host.tasks.iter().position(|(t, _)| *t == Task::Drop(other)) {
            let drop = host.tasks.remove(at).expect("it is at that place");
            host.tasks.push_front(drop);
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
        }
        host.locks_changed = true;
        self.feed(i, Input::RecoveryDone(gid));
        self.recover_in(i, 0);
    }
}
