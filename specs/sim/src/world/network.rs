//! Messages, connectivity, streams.

use super::{Event, Packet, World, node};
use crate::database::{Body, Record};
use crate::plan::Slowness;
use crate::trace::What;
use mtm_core::{Gid, NodeSet};
use mtm_generations as generations;
use mtm_node::Input;

/// A peer that was not heard of for so long is not connected.
pub(super) const SILENCE_US: u64 = 200_000;
/// While healing.
pub(super) const QUICK: Slowness = Slowness { percent: 2, max_us: 20_000 };

impl World {
    pub(super) fn send(&mut self, from: usize, to: NodeSet, packet: Packet) {
        for peer in to.intersection(self.all()) {
            if peer.index() != from {
                self.send_to(from, peer.index(), packet);
            }
        }
    }

    pub(super) fn send_to(&mut self, from: usize, to: usize, packet: Packet) {
        let id = self.queued + 1;
        self.tell(|| What::Sent { from, to, id, packet });
        let copies = if !self.healing && self.rng.chance(2) { 2 } else { 1 };
        for _ in 0..copies {
            if self.cut[from][to] || self.rng.chance(self.loss_percent) {
                self.coverage.lost_messages += 1;
                continue;
            }
            let us = self.latency();
            self.after(us, Event::Arrive(from, to, packet, id));
        }
    }

    pub(super) fn latency(&mut self) -> u64 {
        let latency = if self.healing { QUICK } else { self.plan.latency };
        latency.draw(&mut self.rng, 50, 1_500)
    }

    pub(super) fn arrive(&mut self, from: usize, to: usize, packet: Packet) {
        if to == self.hosts.len() {
            self.ask_referee(from, packet);
            return;
        }
        if !self.hosts[to].up {
            return;
        }
        if let Packet::Referee(num, granted) = packet {
            self.feed(to, Input::Generation(generations::Input::Referee { num, granted }));
            return;
        }
        if let Packet::Closed(at) = packet {
            let peers = NodeSet::only(node(from));
            self.feed(to, Input::Generation(generations::Input::Closed { peers, at }));
            return;
        }
        let now = self.local(to);
        self.hosts[to].heard.insert(node(from), now);
        self.connectivity(to);
        let from = node(from);
        let input = match packet {
            Packet::Generation(message) => {
                Input::Generation(generations::Input::Message { from, message })
            }
            Packet::Peer(message) => Input::Message { from, message },
            Packet::Alive { life, sent } => {
                self.hosts[to].answered[from.index()] = life;
                Input::Generation(generations::Input::SignOfLife { from, sent })
            }
            Packet::Lend { life, sent, for_us, num } if life == self.hosts[to].life => {
                Input::Generation(generations::Input::Lent { from, sent, for_us, num })
            }
            Packet::Lend { .. }
            | Packet::Closed(_)
            | Packet::AskReferee(_)
            | Packet::CleanReferee(_)
            | Packet::Referee(..) => return,
        };
        self.feed(to, input);
    }

    /// With every heartbeat goes a sign of life, which waits for no disk.
    pub(super) fn sign_of_life(&mut self, i: usize, message: &generations::Message) {
        if matches!(message, generations::Message::Status { .. }) {
            let packet = Packet::Alive { life: self.hosts[i].life, sent: self.local(i) };
            self.send(i, self.all(), packet);
        }
    }

    /// Peers that hear of it know at once that this host is gone.
    pub(super) fn close_connections(&mut self, i: usize) {
        for peer in (0..self.hosts.len()).filter(|&p| p != i) {
            if self.linked(i, peer) && self.rng.chance(50) {
                self.send_to(i, peer, Packet::Closed(self.local(peer)));
            }
        }
    }

    /// Who is heard changes with time and with every message.
    pub(super) fn connectivity(&mut self, i: usize) {
        let host = &self.hosts[i];
        let fresh = |at: &mtm_core::Instant| self.local(i).since(*at) < SILENCE_US;
        let heard: NodeSet =
            host.heard.iter().filter(|(_, at)| fresh(at)).map(|(n, _)| *n).collect();
        let heard = heard.with(node(i));
        if heard != host.connected {
            self.hosts[i].connected = heard;
            self.feed(i, Input::Generation(generations::Input::Connected(heard)));
        }
    }

    pub(super) fn linked(&self, a: usize, b: usize) -> bool {
        let runs = |i: usize| self.hosts[i].up && !self.hosts[i].frozen;
        runs(a) && runs(b) && !self.cut[a][b] && !self.cut[b][a]
    }

    /// Opens or loses the streams of a host; also asks for what was not decoded yet.
    pub(super) fn poll_streams(&mut self, i: usize) {
        for peer in (0..self.hosts.len()).filter(|&p| p != i) {
            let linked = self.linked(peer, i);
            let back = self.rng.below(8) as usize;
            let receiver = &mut self.hosts[i].receivers[peer];
            if receiver.connected != linked {
                receiver.connected = linked;
                receiver.connection += 1;
                // At least once: a stream begins again somewhat earlier.
                receiver.at = receiver.at.saturating_sub(back);
                receiver.held.clear();
            }
            if linked {
                self.after(1, Event::Decode(peer, i));
            }
        }
    }

    /// A walsender decodes what is new in the flushed WAL: announcements of its own node whose
    /// transaction is still in progress.
    pub(super) fn decode(&mut self, from: usize, to: usize) {
        if !self.linked(from, to) || !self.hosts[to].receivers[from].connected {
            return;
        }
        let flushed = self.hosts[from].db.flushed;
        let start = self.hosts[to].receivers[from].at.min(flushed);
        self.hosts[to].receivers[from].at = flushed;
        for at in start..flushed {
            let Record::Announce(gid, body, _) = self.hosts[from].db.wal[at].clone() else {
                continue;
            };
            if self.hosts[from].backend_of(&gid).is_none() {
                continue;
            }
            let us = self.latency();
            let arrives = (self.now.0 + us).max(self.hosts[to].receivers[from].arrives);
            let receiver = &mut self.hosts[to].receivers[from];
            receiver.arrives = arrives;
            let connection = receiver.connection;
            self.at(arrives, Event::Item { from, to, connection, gid, body });
        }
    }

    pub(super) fn item(&mut self, from: usize, to: usize, connection: u64, gid: Gid, body: Body) {
        let host = &mut self.hosts[to];
        if !host.up || host.receivers[from].connection != connection {
            return;
        }
        let receiver = &mut host.receivers[from];
        if !receiver.held.is_empty() {
            receiver.held.push_back((gid, body));
            return;
        }
        self.tell(|| What::Delivered(from, to, gid));
        self.deliver(to, gid, body);
    }

    pub(super) fn deliver(&mut self, i: usize, gid: Gid, body: Body) {
        self.hosts[i].rows_of.insert(gid, body);
        self.feed(i, Input::Delivered(gid));
    }

    /// What was held is delivered again, in order, after a change of generation or status.
    pub(super) fn deliver_held(&mut self, i: usize) {
        for peer in 0..self.hosts.len() {
            let held = core::mem::take(&mut self.hosts[i].receivers[peer].held);
            for (gid, body) in held {
                self.deliver(i, gid, body);
            }
        }
    }
}
