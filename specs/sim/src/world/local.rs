//! Things that take time inside one host: WAL writes, flushes, the state file.

use super::{Op, Packet, Then, World};
use crate::database::{Change, Owner, Record};
use crate::planted::Driver;
use mtm_core::Token;
use mtm_generations as generations;
use mtm_node::user::Operation;
use mtm_node::{Input, Node};
use mtm_paxos::commit::Decree;

/// How often a host looks at its connections.
const POLL_US: u64 = 20_000;

impl World {
    pub(super) fn operate(&mut self, i: usize, op: Op) {
        match op {
            Op::Append(record, then) => self.append(i, record, then),
            Op::Flushed(lsn, record, then) => self.flushed(i, lsn, &record, then),
            Op::StateFile(token, record) => self.state_written(i, token, record),
            Op::Applied(gid) => self.applied(i, gid),
            Op::Worked(id) => self.worked(i, id),
            Op::Patience(id) => self.lost_patience(i, id),
            Op::Recover => {
                if self.hosts[i].recover_at.is_some_and(|at| at <= self.now.0) {
                    self.hosts[i].recover_at = None;
                    self.recover(i);
                }
            }
            Op::Poll => {
                self.connectivity(i);
                self.poll_streams(i);
                self.deliver_held(i);
                self.catch_up(i);
                self.keep_house(i);
                self.confirm(i);
                self.measure_table(i);
                self.op(i, POLL_US, Op::Poll);
            }
            Op::ScanDone => self.scan(i),
            Op::RefereeSilent(num) => {
                let answer = generations::Input::Referee { num, granted: false };
                self.feed(i, Input::Generation(answer));
            }
        }
    }

    /// Now and then writes a syncpoint and a checkpoint.
    fn keep_house(&mut self, i: usize) {
        if self.hosts[i].core.membership().is_fenced() {
            return;
        }
        let by_chance = self.rng.chance(20);
        let host = &mut self.hosts[i];
        let machine = Node::new(&mut host.core, &mut host.slots);
        if by_chance || machine.wants_checkpoint() {
            let (forgotten, next) = (*machine.forgotten(), machine.next_number());
            let remembered: Option<Vec<_>> = machine.remembered().map(Iterator::collect);
            let start = host.db.wal.len();
            // At once: the checkpoint must not come before the syncpoint.
            self.append(i, Record::Syncpoint(forgotten), Then::Nothing);
            if let Some(remembered) = remembered {
                let checkpoint = Record::Checkpoint { start, forgotten, next, remembered };
                self.append_soon(i, checkpoint, Then::Saved(forgotten));
            }
        }
    }

    pub(super) fn persist(&mut self, i: usize, token: Token, record: generations::Record) {
        let us = self.disk_us(i);
        let host = &mut self.hosts[i];
        host.state_pending.push_back((token, record));
        let at = (self.now.0 + us).max(host.state_arrives + 1);
        host.state_arrives = at;
        self.op(i, at - self.now.0, Op::StateFile(token, record));
    }

    fn state_written(&mut self, i: usize, token: Token, record: generations::Record) {
        let host = &mut self.hosts[i];
        host.state = record;
        host.states.push((self.now.0, record));
        host.persisted = token;
        host.state_pending.pop_front();
        let (ready, waiting) =
            core::mem::take(&mut host.waiting).into_iter().partition(|w| w.0 <= token);
        host.waiting = waiting;
        let ready: Vec<_> = ready;
        for (_, to, message) in ready {
            self.send(i, to, Packet::Generation(message));
        }
        self.feed(i, Input::Generation(generations::Input::Persisted(token)));
    }

    pub(super) fn append(&mut self, i: usize, record: Record, then: Then) {
        let us = self.disk_us(i);
        // Every second peer's commit is seen before it is durable, as small ones are in production.
        let commits_open = matches!(&record, Record::CommitPrepared(gid, body)
            if body.user.is_none() && gid.xid.0.is_multiple_of(2));
        let host = &mut self.hosts[i];
        host.db.wal.push(record.clone());
        let lsn = host.db.wal.len();
        if let Record::Announce(gid, body, _) = &record {
            host.db.announced.insert(*gid, body.clone());
        }
        // A flush takes everything before with it, in order.
        let at = (self.now.0 + us).max(host.disk_arrives + 1);
        host.disk_arrives = at;
        self.op(i, at - self.now.0, Op::Flushed(lsn, record, then));
        if let Then::Announced(gid) = then {
            self.feed(i, Input::AnnouncementWritten(gid));
        }
        if self.neglects(Driver::UnsyncedIsDurable) && matches!(then, Then::Prepared(_)) {
            self.durable(i, then);
        }
        if let Then::Finished(gid) = then
            && commits_open
        {
            self.hosts[i].seen.insert(gid);
            let seen = Input::Visible(gid);
            let finished = Input::Finished(gid);
            self.feed(i, if self.neglects(Driver::SeenIsFinished) { finished } else { seen });
        }
    }

    fn flushed(&mut self, i: usize, lsn: usize, record: &Record, then: Then) {
        self.hosts[i].db.flushed = lsn.max(self.hosts[i].db.flushed);
        let change = self.hosts[i].db.apply(record);
        match change {
            Change::Nothing => {}
            Change::CommittedTwice(gid) => {
                self.oracle.violated("NoDuplicate", format!("n{} commits {gid} twice", i + 1));
            }
            Change::Committed(gid) => {
                self.committed(i, gid, record);
                if let Some(Operation::Prepare(_)) = self.hosts[i].operations.get(&gid) {
                    self.end_operation(i, gid, Decree::Commit);
                }
            }
            Change::UserEnded(first) => self.user_ended(i, first, record),
            Change::Impossible(gid) => self.impossible(i, gid),
        }
        self.release(i, record);
        if let Record::RollbackPrepared(gid) = record {
            self.end_operation(i, *gid, Decree::Abort);
        }
        if self.user_ends(i, record, then) {
            // The rest follows when the user's own transaction has ended.
            return;
        }
        if !self.neglects(Driver::UnsyncedIsDurable) || !matches!(then, Then::Prepared(_)) {
            self.durable(i, then);
        }
    }

    fn durable(&mut self, i: usize, then: Then) {
        match then {
            Then::Announced(gid) => {
                self.decode_for_all(i);
                self.feed(i, Input::AnnouncementDurable(gid));
            }
            Then::Committed(gid) => self.feed(i, Input::CommitDurable(gid)),
            Then::Prepared(gid) => {
                self.hosts[i].appliers.remove(&gid);
                self.feed(i, Input::PrepareDurable(gid));
            }
            Then::AbortAccepted(gid) => self.feed(i, Input::AbortDurable(gid)),
            Then::Finished(gid) => {
                self.hosts[i].finishing.remove(&gid);
                self.feed(i, Input::Finished(gid));
            }
            Then::ParallelSafe(num) => {
                self.feed(i, Input::Generation(generations::Input::ParallelSafe(num)));
            }
            Then::RecoveryDone(gid) => self.task_done(i, gid),
            Then::Saved(forgotten) => self.feed(i, Input::Saved(forgotten)),
            Then::Nothing => {}
        }
    }

    /// Locks end with the record that ends the transaction.
    fn release(&mut self, i: usize, record: &Record) {
        let host = &mut self.hosts[i];
        match record {
            Record::Commit(gid, body) => {
                if let Some(id) = host.backend_of(gid) {
                    host.db.unlock(Owner::Backend(id));
                    host.backends.remove(&id);
                }
                host.db.unlock(Owner::Recovery);
                host.keep_locked(*gid, body);
            }
            Record::CommitPrepared(gid, body) => {
                host.db.unlock(Owner::Gid(*gid));
                host.keep_locked(*gid, body);
            }
            Record::RollbackPrepared(gid) | Record::UserEnd(gid, ..) => {
                host.db.unlock(Owner::Gid(*gid));
            }
            Record::Announce(..)
            | Record::Prepare(..)
            | Record::AcceptAbort(_)
            | Record::Install(..)
            | Record::ParallelSafe(..)
            | Record::Syncpoint(_)
            | Record::Checkpoint { .. } => return,
        }
        host.locks_changed = true;
    }

    /// A transaction is durably committed here.
    pub(super) fn committed(&mut self, i: usize, gid: mtm_core::Gid, record: &Record) {
        self.decided_commit(i, gid);
        if let Record::Commit(_, body) | Record::CommitPrepared(_, body) = record
            && body.user.is_none()
        {
            self.written(i, gid, &body.keys);
        }
    }

    /// Rows of this node now end with a transaction.
    pub(super) fn written(&mut self, i: usize, gid: mtm_core::Gid, keys: &[crate::database::Key]) {
        for key in keys {
            let at = self.hosts[i].db.rows[key].iter().rposition(|g| *g == gid);
            self.oracle.written(*key, at.expect("it was written just now"), gid);
        }
    }
}
