//! Apply workers, row locks, and who waits for whom.

use super::host::Applier;
use super::{Op, Then, World};
use crate::database::{Owner, Record};
use mtm_core::Gid;
use mtm_node::Input;
use mtm_paxos::commit::Decree;

impl World {
    pub(super) fn start_applier(&mut self, i: usize, gid: Gid) {
        let host = &mut self.hosts[i];
        let body = host.rows_of.remove(&gid).unwrap_or_default();
        let applier =
            Applier { body, locked: 0, applied: false, preparing: false, waits_for: None };
        host.appliers.insert(gid, applier);
        host.locks_changed = true;
    }

    pub(super) fn hold(&mut self, i: usize, gid: Gid) {
        let from = gid.origin.index();
        // Without rows at hand it was a recovery's: that begins again anyway.
        if let Some(body) = self.hosts[i].rows_of.remove(&gid) {
            self.hosts[i].receivers[from].held.push_back((gid, body));
        }
    }

    pub(super) fn applied(&mut self, i: usize, gid: Gid) {
        if !self.hosts[i].appliers.contains_key(&gid) {
            return;
        }
        if !self.healing && self.rng.chance(self.plan.refusals) {
            self.discard(i, gid);
            self.feed(i, Input::ApplyFailed(gid));
        } else {
            self.feed(i, Input::TryPrepare(gid));
        }
    }

    pub(super) fn write_prepare(&mut self, i: usize, gid: Gid) {
        let Some(applier) = self.hosts[i].appliers.get_mut(&gid) else { return };
        applier.preparing = true;
        let body = applier.body.clone();
        self.append_soon(i, Record::Prepare(gid, body), Then::Prepared(gid));
    }

    pub(super) fn discard(&mut self, i: usize, gid: Gid) {
        let host = &mut self.hosts[i];
        if host.appliers.get(&gid).is_some_and(|a| !a.preparing) {
            host.appliers.remove(&gid);
            host.db.unlock(Owner::Gid(gid));
            host.locks_changed = true;
            self.end_operation(i, gid, Decree::Abort);
        }
    }

    /// Everyone who waits for a row tries again.
    pub(super) fn pump(&mut self, i: usize) {
        self.pump_task(i);
        let waiting: Vec<Gid> = self.hosts[i]
            .appliers
            .iter()
            .filter(|(_, a)| !a.applied)
            .map(|(gid, _)| *gid)
            .collect();
        for gid in waiting {
            self.pump_applier(i, gid);
        }
        let waiting: Vec<u64> =
            self.hosts[i].backends.iter().filter(|(_, b)| !b.working).map(|(id, _)| *id).collect();
        for id in waiting {
            self.pump_backend(i, id);
        }
    }

    fn pump_applier(&mut self, i: usize, gid: Gid) {
        loop {
            let host = &mut self.hosts[i];
            let Some(applier) = host.appliers.get_mut(&gid) else { return };
            let Some(&key) = applier.body.keys.get(applier.locked) else { break };
            match host.db.locks.get(&key).copied() {
                None => {
                    host.db.locks.insert(key, Owner::Gid(gid));
                    applier.locked += 1;
                }
                Some(Owner::Gid(holder)) if holder == gid => applier.locked += 1,
                Some(owner) => {
                    let Some(holder) = self.blocker(i, owner) else { return };
                    self.waits_for(i, gid, holder);
                    return;
                }
            }
        }
        if !self.hold_applied(i, gid) {
            return;
        }
        if let Some(applier) = self.hosts[i].appliers.get_mut(&gid) {
            applier.applied = true;
        }
        let us = self.rng.between(20, 2_000);
        self.op(i, us, Op::Applied(gid));
    }

    /// An applier waits for an announced transaction: said once per pair.
    pub(super) fn waits_for(&mut self, i: usize, gid: Gid, holder: Gid) {
        let Some(applier) = self.hosts[i].appliers.get_mut(&gid) else { return };
        if applier.waits_for != Some(holder) {
            applier.waits_for = Some(holder);
            self.feed(i, Input::Conflict { waiter: gid, holder });
        }
    }

    /// The announced transaction behind the owner of a row. A local transaction that is not
    /// announced and waits itself is made to give way: nobody else would ever notice the cycle.
    fn blocker(&mut self, i: usize, owner: Owner) -> Option<Gid> {
        match owner {
            Owner::Gid(gid) => Some(gid),
            Owner::Recovery => None,
            Owner::Backend(id) => {
                let backend = self.hosts[i].backends.get(&id)?;
                if backend.gid.is_none() && !backend.working {
                    self.end_unannounced(i, id);
                    return None;
                }
                backend.gid
            }
        }
    }

    fn pump_backend(&mut self, i: usize, id: u64) {
        loop {
            let host = &mut self.hosts[i];
            let Some(backend) = host.backends.get_mut(&id) else { return };
            let Some(&key) = backend.body.keys.get(backend.locked) else { break };
            match host.db.locks.get(&key) {
                None => {
                    host.db.locks.insert(key, Owner::Backend(id));
                    backend.locked += 1;
                }
                Some(owner) if *owner == Owner::Backend(id) => backend.locked += 1,
                Some(_) => return,
            }
        }
        let backend = self.hosts[i].backends.get_mut(&id).expect("looked up above");
        backend.working = true;
        let us = backend.think_us;
        self.op(i, us, Op::Worked(id));
    }
}
