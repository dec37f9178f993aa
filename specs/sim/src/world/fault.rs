//! Disturbances, restarts, healing.

use super::{Op, World, node};
use crate::database::Record;
use crate::oracle::Told;
use crate::plan::Fault;
use crate::planted::{Driver, Planted};
use crate::trace::What;
use mtm_core::{Gid, Xid};
use mtm_generations::referee::Referee;
use mtm_node::{Found, Input};

/// How long a file that is not synced may stay in memory.
const UNSYNCED_US: u64 = 300_000;

impl World {
    pub(super) fn fault(&mut self, fault: Fault) {
        self.tell(|| What::Fault(fault));
        match fault {
            Fault::Crash(i) if i == self.hosts.len() => {
                self.referee_up = false;
                if self.neglects(Driver::GrantLost) {
                    self.referee = Referee::new();
                }
            }
            Fault::Restart(i) if i == self.hosts.len() => self.referee_up = true,
            Fault::Crash(i) => self.crash(i),
            Fault::Restart(i) => self.restart(i),
            Fault::Cut(a, b) => self.cut[a][b] = true,
            Fault::Mend(a, b) => self.cut[a][b] = false,
            Fault::Loss(percent) => self.loss_percent = percent,
            Fault::SlowDisk(i, factor) => self.hosts[i].disk_factor = factor,
            Fault::Freeze(i) => {
                self.coverage.freezes += 1;
                self.hosts[i].frozen = self.hosts[i].up;
            }
            Fault::Thaw(i) => self.thaw(i),
            Fault::ClockStep(i, us) => {
                self.coverage.clock_steps += 1;
                self.hosts[i].clock = self.hosts[i].clock.saturating_add_signed(us);
                // The timer is set again; what was heard was heard at another time.
                self.hosts[i].wake_at = None;
                self.schedule_wake(i);
            }
        }
    }

    fn crash(&mut self, i: usize) {
        if !self.hosts[i].up {
            return;
        }
        self.coverage.crashes += 1;
        self.close_connections(i);
        let unknown: Vec<Gid> = self.hosts[i].backends.values().filter_map(|b| b.gid).collect();
        for gid in unknown {
            self.oracle.tell(gid, Told::Unknown);
        }
        let host = &mut self.hosts[i];
        host.up = false;
        host.life += 1;
        // Any part of what was written and not synced may have reached the disk, in order.
        let unsynced = (host.db.wal.len() - host.db.flushed) as u64;
        let survive = host.db.flushed + self.rng.below(unsynced + 1) as usize;
        let states = self.rng.below(self.hosts[i].state_pending.len() as u64 + 1) as usize;
        let host = &mut self.hosts[i];
        if states > 0 {
            host.state = host.state_pending[states - 1].1;
        }
        let synced = host.db.flushed;
        if self.plan.planted == Some(Planted::Driver(Driver::StateUnsynced)) {
            let old = |(at, _): &&(u64, _)| *at == 0 || at + UNSYNCED_US < self.now.0;
            host.state =
                host.states.iter().rev().find(old).expect("the first one is always there").1;
        }
        host.db.crash(survive);
        // A commit record that reached the disk unseen counts.
        let unseen = host.db.wal[synced..].to_vec();
        for record in &unseen {
            if let Record::Commit(gid, _) | Record::CommitPrepared(gid, _) = record {
                self.committed(i, *gid, record);
            }
        }
        let host = &mut self.hosts[i];
        let seed = self.rng.next();
        host.forget(&self.plan, seed);
        self.recount(i);
    }

    /// Everything that waited happens now, in order.
    fn thaw(&mut self, i: usize) {
        self.hosts[i].frozen = false;
        for event in core::mem::take(&mut self.hosts[i].parked) {
            self.after(0, event);
        }
    }

    pub(super) fn restart(&mut self, i: usize) {
        if self.hosts[i].up || !self.hosts[i].born {
            return;
        }
        self.hosts[i].up = true;
        self.op(i, 0, Op::Poll);
        let us = self.rng.between(1_000, 100_000);
        self.op(i, us, Op::ScanDone);
        self.schedule_wake(i);
    }

    /// Behind the fence: the machine is told what redo and the WAL say of every transaction.
    pub(super) fn scan(&mut self, i: usize) {
        let (evidence, deaf) =
            (self.neglects(Driver::RollbackIsEvidence), self.neglects(Driver::JournalIgnored));
        let undecided = self.neglects(Driver::UsersUndecided);
        let (forgotten, mut found, next) = self.hosts[i].db.scan(node(i), evidence, undecided);
        self.restore_users(i);
        if deaf {
            found.retain(|_, found| *found != Found::AbortAccepted { prepared: false });
            for found in found.values_mut() {
                if matches!(found, Found::AbortAccepted { .. }) {
                    *found = Found::Prepared;
                }
            }
        }
        if let Some(forgotten) = forgotten {
            self.feed(i, Input::Forgotten(forgotten));
        }
        for (gid, found) in found {
            self.feed(i, Input::Found { gid, found });
        }
        let next = if self.neglects(Driver::NumbersReused) { Xid(1) } else { next };
        self.feed(i, Input::ScanComplete { next });
    }

    /// Disturbances end.
    pub(super) fn heal(&mut self) {
        self.tell(|| What::Healing);
        self.healing = true;
        self.loss_percent = 0;
        self.referee_up = true;
        for row in &mut self.cut {
            row.fill(false);
        }
        for i in 0..self.hosts.len() {
            self.hosts[i].disk_factor = 1;
            self.thaw(i);
            self.restart(i);
        }
    }
}
