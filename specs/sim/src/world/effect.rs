//! The driver: what the machine asks for, done on the simulated server.

use super::host::{Recovery, Task};
use super::network::QUICK;
use super::{Event, Op, Packet, Then, World};
use crate::database::Record;
use crate::trace::What;
use mtm_core::{GenNum, Gid, NodeSet};
use mtm_node::{Effect, Input, Node, PeerMessage, Role};
use mtm_paxos::commit::Decree;

/// How long a node waits for the referee.
const REFEREE_US: u64 = 35_000;

impl World {
    pub(super) fn effect(&mut self, i: usize, effect: Effect, held: &[(Gid, bool)]) {
        self.tell_effect(i, &effect);
        match effect {
            Effect::Persist { token, record } => self.persist(i, token, record),
            Effect::SendGeneration { to, message, after } => {
                self.sign_of_life(i, &message);
                match after {
                    Some(token) if token > self.hosts[i].persisted => {
                        self.hosts[i].waiting.push((token, to, message));
                    }
                    _ => self.send(i, to, Packet::Generation(message)),
                }
            }
            Effect::Recall { to, elected } => {
                let message = mtm_generations::Message::Elected(elected);
                self.send_to(i, to.index(), Packet::Generation(message));
            }
            Effect::Lend { to, sent, for_us, num } => {
                let life = self.hosts[i].answered[to.index()];
                self.send_to(i, to.index(), Packet::Lend { life, sent, for_us, num });
            }
            Effect::Send { to, message } => {
                self.note_decision(i, &message);
                self.send(i, to, Packet::Peer(message));
            }
            Effect::Rejected(local, _) => self.end_unannounced(i, local.0),
            Effect::WriteAnnouncement(gid) => {
                let local = self.hosts[i].local(&gid);
                if !self.hold_announced(i, gid) {
                    self.feed(i, Input::AnnouncementFailed(gid));
                    self.end_unannounced(i, local.0);
                } else if let Some(backend) = self.hosts[i].backends.get_mut(&local.0) {
                    backend.gid = Some(gid);
                    let body = backend.body.clone();
                    self.append_soon(i, Record::Announce(gid, body, local), Then::Announced(gid));
                }
            }
            Effect::WriteCommit(gid) => {
                let body = self.hosts[i].db.announced.get(&gid).cloned().unwrap_or_default();
                self.ends_first(i, &body);
                self.append_soon(i, Record::Commit(gid, body), Then::Committed(gid));
            }
            Effect::Answer(gid, outcome) => self.answer(i, gid, outcome),
            Effect::GiveUp(gid) => self.give_up(i, gid),
            Effect::Apply(gid) => self.start_applier(i, gid),
            Effect::Skip(gid) => {
                self.hosts[i].rows_of.remove(&gid);
            }
            Effect::Hold(gid) => self.hold(i, gid),
            Effect::WritePrepare(gid) => self.write_prepare(i, gid),
            Effect::Discard(gid) => self.discard(i, gid),
            Effect::WriteAbort(gid) => {
                self.append_soon(i, Record::AcceptAbort(gid), Then::AbortAccepted(gid));
            }
            Effect::CommitPrepared(gid) => self.finish(i, gid, Decree::Commit),
            Effect::RollbackPrepared(gid) => self.finish(i, gid, Decree::Abort),
            Effect::ApplyCommitted(gid) => self.task(i, Task::Apply(gid)),
            Effect::DropPrepared(gid) => self.task(i, Task::Drop(gid)),
            Effect::Install(gid, accepted) => self.task(i, Task::Install(gid, accepted)),
            Effect::WriteParallelSafe(num) => {
                let record = Record::ParallelSafe(num, held.to_vec());
                self.append_soon(i, record, Then::ParallelSafe(num));
            }
            Effect::StartRecovery { num, donors } => self.start_recovery(i, num, donors),
            Effect::Online(num) => self.online(i, num),
            Effect::AskReferee(num) => {
                self.send_to(i, self.hosts.len(), Packet::AskReferee(num));
                self.op(i, REFEREE_US, Op::RefereeSilent(num));
            }
            Effect::CleanReferee(num) => {
                self.send_to(i, self.hosts.len(), Packet::CleanReferee(num));
            }
        }
    }

    fn tell_effect(&mut self, i: usize, effect: &Effect) {
        let sends = |e: &Effect| {
            matches!(e, Effect::SendGeneration { .. } | Effect::Send { .. } | Effect::Lend { .. })
        };
        if !sends(effect) {
            let effect = *effect;
            self.tell(|| What::Effect(i, effect));
        }
    }

    /// What a message claims to be decided must be decided.
    fn note_decision(&mut self, i: usize, message: &PeerMessage) {
        match message {
            PeerMessage::Decided(gid, Decree::Commit) => self.decided_commit(i, *gid),
            PeerMessage::Decided(gid, Decree::Abort) => self.oracle.abort(*gid),
            _ => {}
        }
    }

    /// Commit is decided, if not before then now and in this node's generation.
    pub(super) fn decided_commit(&mut self, i: usize, gid: Gid) {
        // Its coordinator decides in its own generation, settlement in the current one.
        let host = &mut self.hosts[i];
        let entry = Node::new(&mut host.core, &mut host.slots).transaction(&gid);
        let own = entry.is_some_and(|e| matches!(e.role, Role::Own(_)));
        let num = if own { gid.generation } else { self.current(i).generation.num };
        let known = self.oracle.commits.contains_key(&gid);
        if !known && num > gid.generation {
            self.coverage.settled_commits += 1;
        }
        if known {
            return;
        }
        self.oracle.commit(gid, num);
        self.second_decided(gid);
    }

    pub(super) fn append_soon(&mut self, i: usize, record: Record, then: Then) {
        // The time between "may" and "written": what the barrier is for.
        let slowness = if self.healing { QUICK } else { self.plan.write };
        let us = slowness.draw(&mut self.rng, 5, 300);
        self.op(i, us, Op::Append(record, then));
    }

    pub(super) fn disk_us(&mut self, i: usize) -> u64 {
        let slowness = if self.healing { QUICK } else { self.plan.disk };
        slowness.draw(&mut self.rng, 50, 800) * self.hosts[i].disk_factor
    }

    fn finish(&mut self, i: usize, gid: Gid, decree: Decree) {
        self.hosts[i].finishing.insert(gid);
        let record = match decree {
            Decree::Commit => {
                let body = self.hosts[i].db.prepared.get(&gid).cloned().unwrap_or_default();
                Record::CommitPrepared(gid, body)
            }
            Decree::Abort => {
                self.oracle.abort(gid);
                Record::RollbackPrepared(gid)
            }
        };
        self.append_soon(i, record, Then::Finished(gid));
    }

    fn start_recovery(&mut self, i: usize, num: GenNum, donors: NodeSet) {
        let restart = Recovery { num, donors, donor: None, at: 0, start: 0, reconciled: false };
        self.hosts[i].catching_up = None;
        self.hosts[i].recovery = Some(restart);
        self.recover_in(i, 1);
    }

    fn online(&mut self, i: usize, _num: GenNum) {
        self.coverage.switches += 1;
        self.hosts[i].recovery = None;
        self.op(i, 0, Op::Poll);
    }

    pub(super) fn decode_for_all(&mut self, i: usize) {
        for peer in (0..self.hosts.len()).filter(|&p| p != i) {
            let us = self.rng.between(10, 200);
            self.after(us, Event::Decode(i, peer));
        }
    }
}
