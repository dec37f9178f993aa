//! Clients and the backends that run their transactions.

use super::check::PROBE_ROW;
use super::host::Backend;
use super::{Op, World};
use crate::database::{Body, Owner};
use crate::oracle::Told;
use crate::plan::Transaction;
use mtm_core::{Gid, LocalXid};
use mtm_node::{Input, Outcome};
use mtm_paxos::commit::Decree;

impl World {
    pub(super) fn begin(&mut self, which: usize) {
        let t = self.plan.transactions[which].clone();
        if self.healing || !self.serves(t.node) {
            self.coverage.refused += 1;
            return;
        }
        self.start(t);
    }

    /// When everything is quiet again, every node commits one more transaction.
    pub(super) fn probe(&mut self) {
        self.probed = true;
        let members = self.members();
        for &node in &members {
            let keys = vec![PROBE_ROW + node as u8];
            if self.hosts[members[0]].db.rows.contains_key(&keys[0]) {
                continue;
            }
            self.start(Transaction {
                at_us: 0,
                node,
                keys,
                think_us: 10,
                patience_us: u64::from(u32::MAX),
                user: None,
            });
        }
    }

    fn start(&mut self, t: Transaction) {
        let id = self.hosts[t.node].next_xid;
        self.hosts[t.node].next_xid += 1;
        let body = Body { keys: t.keys, user: None };
        let backend = Backend {
            body,
            word: t.user,
            locked: 0,
            working: false,
            think_us: t.think_us,
            gid: None,
        };
        self.hosts[t.node].backends.insert(id, backend);
        self.hosts[t.node].locks_changed = true;
        self.op(t.node, t.think_us + t.patience_us, Op::Patience(id));
    }

    /// Its statements are done: COMMIT.
    pub(super) fn worked(&mut self, i: usize, id: u64) {
        if self.hosts[i].backends.contains_key(&id) && self.says_its_word(i, id) {
            self.feed(i, Input::Announce(LocalXid(id)));
        }
    }

    /// A client cancels, or its connection breaks.
    pub(super) fn lost_patience(&mut self, i: usize, id: u64) {
        let Some(backend) = self.hosts[i].backends.get(&id) else { return };
        match backend.gid {
            Some(gid) => self.feed(i, Input::Cancel(gid)),
            None => self.end_unannounced(i, id),
        }
    }

    /// A transaction that was never announced ends: it did not happen.
    pub(super) fn end_unannounced(&mut self, i: usize, id: u64) {
        self.coverage.refused += 1;
        self.end_backend(i, id);
    }

    pub(super) fn end_backend(&mut self, i: usize, id: u64) {
        self.hosts[i].backends.remove(&id);
        self.hosts[i].db.unlock(Owner::Backend(id));
        self.hosts[i].locks_changed = true;
    }

    pub(super) fn answer(&mut self, i: usize, gid: Gid, outcome: Outcome) {
        match outcome {
            Outcome::Committed => {
                self.decided_commit(i, gid);
                self.oracle.tell(gid, Told::Committed);
                self.hosts[i].waiting_clients.insert(gid);
                self.check_acked(gid);
            }
            Outcome::Aborted => {
                self.oracle.abort(gid);
                self.oracle.tell(gid, Told::Aborted);
                self.end_operation(i, gid, Decree::Abort);
            }
        }
        if let Some(id) = self.hosts[i].backend_of(&gid) {
            self.end_backend(i, id);
        }
    }

    /// The outcome is others' business: rows are released, the client gets 08007.
    pub(super) fn give_up(&mut self, i: usize, gid: Gid) {
        self.oracle.tell(gid, Told::Unknown);
        self.end_operation(i, gid, Decree::Abort);
        if let Some(id) = self.hosts[i].backend_of(&gid) {
            self.end_backend(i, id);
        }
    }
}
