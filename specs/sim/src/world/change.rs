//! Nodes that are added and dropped: an administrator on some node, and clones.

use super::{Event, Op, World, node};
use crate::database::{Database, Record};
use crate::plan::Change;
use crate::planted::Driver;
use crate::trace::What;
use mtm_core::{GenNum, NodeSet};
use mtm_generations as generations;
use mtm_generations::Configuration;
use mtm_node::{Found, Input, Node};

/// How often the administrator looks, and tries again.
const LOOK_US: u64 = 60_000;
/// How often he tries.
const TRIES: u64 = 30;
/// Fewer nodes shall not remain.
const LEAST: usize = 2;

impl World {
    /// The configuration of the cluster, as far as a running node knows it.
    fn configuration(&self) -> Configuration {
        let running = self.hosts.iter().filter(|h| h.born);
        let known = running.map(|h| {
            let generation = h.core.membership().current().generation;
            (generation.configured.version, generation.num, generation.configured)
        });
        known.max_by_key(|(version, num, _)| (*version, *num)).map(|k| k.2).expect("there is one")
    }

    /// The configured nodes.
    pub(super) fn configured(&self) -> NodeSet {
        if self.plan.changes.is_empty() { self.all() } else { self.configuration().nodes }
    }

    /// Places of the configured nodes.
    pub(super) fn members(&self) -> Vec<usize> {
        self.configured().iter().map(|n| n.index()).collect()
    }

    /// Someone who can be asked.
    fn servant(&mut self) -> Option<usize> {
        let configured = self.configured();
        let serving: Vec<usize> = (0..self.hosts.len())
            .filter(|&i| self.serves(i) && configured.contains(node(i)))
            .collect();
        let which = self.rng.below(serving.len().max(1) as u64) as usize;
        serving.get(which).copied()
    }

    /// The administrator wants a change until it is done.
    pub(super) fn change(&mut self, which: usize, tries: u64) {
        let change = self.plan.changes[which].1;
        if self.healing || tries > TRIES {
            return;
        }
        if let Some(i) = self.servant() {
            let now = self.current(i).generation.configured;
            let wanted = match change {
                Change::Add(n) if self.ever.contains(node(n)) => return,
                Change::Add(n) => now.adding(node(n)),
                Change::Drop(n) if !now.nodes.contains(node(n)) => None,
                Change::Drop(_) if now.nodes.len() <= LEAST => None,
                Change::Drop(n) if !self.can_do_without(n, now.nodes) => None,
                Change::Drop(n) => now.dropping(node(n)),
            };
            let may = |c: &Configuration| self.hosts[i].core.membership().may_configure(c);
            if let Some(wanted) = wanted.filter(may) {
                self.tell(|| What::Note(i, format!("the administrator wants {change:?}")));
                self.feed(i, Input::Generation(generations::Input::Configure(wanted)));
            }
        }
        self.after(LOOK_US, Event::Change(which, tries + 1));
    }

    /// Whether each of the others could recover from each, be it through third ones: any of them may
    /// become the only one that is up to date, and a clone may not be able to help a node that was
    /// away when it was born. One that is not born yet will be known to nobody at first.
    fn can_do_without(&self, n: usize, configured: NodeSet) -> bool {
        let remain: Vec<usize> = configured.without(node(n)).iter().map(|n| n.index()).collect();
        remain.iter().all(|&p| {
            let mut helped_by = vec![p];
            let mut next = 0;
            while let Some(&helped) = helped_by.get(next) {
                let knows = |x: &&usize| self.hosts[helped].known[**x] && !helped_by.contains(x);
                let more: Vec<usize> = remain.iter().filter(knows).copied().collect();
                helped_by.extend(more);
                next += 1;
            }
            self.hosts[p].born && helped_by.len() == remain.len()
        })
    }

    /// Configured nodes that do not exist yet are cloned.
    pub(super) fn births(&mut self) {
        for n in 0..self.hosts.len() {
            if self.hosts[n].born || !self.ever.contains(node(n)) {
                continue;
            }
            if let Some(d) = self.servant()
                && self.current(d).generation.configured.nodes.contains(node(n))
            {
                self.clone_from(n, d);
            }
        }
        if self.hosts.iter().any(|h| !h.born) {
            self.after(LOOK_US, Event::Births);
        }
    }

    /// A new node with all that is on another one's disk, but with a state file of its own.
    fn clone_from(&mut self, n: usize, d: usize) {
        self.tell(|| What::Note(n, format!("is a clone of n{}", d + 1)));
        let elected = self.current(d);
        let mut state = generations::Record::joining(node(n), 1, elected);
        if self.neglects(Driver::CloneVouches) {
            state = generations::Record { node: node(n), ..self.hosts[d].state };
        }
        let from = &mut self.hosts[d];
        let forgotten = *Node::new(&mut from.core, &mut from.slots).forgotten();
        let mut wal: Vec<Record> =
            from.db.wal[..from.db.flushed].iter().filter_map(inherited).collect();
        let base = wal.len();
        let remembered = from.db.committed.iter().map(|gid| (*gid, Found::Committed)).collect();
        let next = mtm_core::Xid(1);
        wal.push(Record::Checkpoint { start: base, forgotten, next, remembered });
        let (mut confirmed, mut known) = (from.confirmed.clone(), from.known.clone());
        (confirmed[d], known[d]) = (from.db.flushed, true);
        let flushed = wal.len();
        let seed = self.rng.next();
        let host = &mut self.hosts[n];
        host.db = Database { wal, flushed, ..Database::default() };
        host.db.crash(flushed);
        host.state = state;
        host.states = vec![(self.now.0, state)];
        (host.confirmed, host.known) = (confirmed, known);
        (host.born, host.birth) = (true, Some((elected.generation.num, base)));
        host.life += 1;
        host.forget(&self.plan, seed);
        self.recount(n);
        self.restart(n);
        self.coverage.births += 1;
        for i in 0..self.hosts.len() {
            // The one it was made from has it all.
            let knows = i == d || self.neglects(Driver::CloneServesAll);
            (self.hosts[i].known[n], self.hosts[i].confirmed[n]) = (knows, base);
        }
    }

    /// A clone's log begins at its birth: it can help only who has all that it was born with. That
    /// is so once a node is ONLINE in its generation or a later one and has finished everything
    /// up to that generation: before, something that is committed in the clone may be only prepared
    /// here (specs/adr/0112).
    pub(super) fn get_to_know(&mut self, i: usize, peer: usize) -> bool {
        if self.hosts[i].known[peer] {
            return true;
        }
        let Some((birth, base)) = self.hosts[peer].birth else { return false };
        let old = |num: GenNum| num <= birth;
        let finished = !self.hosts[i].db.prepared.keys().any(|gid| old(gid.generation));
        if self.serves(i) && self.current(i).generation.num >= birth && finished {
            self.hosts[i].known[peer] = true;
            self.hosts[i].confirmed[peer] = base;
        }
        self.hosts[i].known[peer]
    }

    /// Birth and death of a node are remembered: its number is never used again.
    pub(super) fn note_configured(&mut self, i: usize) {
        if !self.plan.changes.is_empty() {
            let nodes = self.current(i).generation.configured.nodes;
            self.ever = self.ever.union(nodes);
            let dropped = self.ever.difference(self.configured()).len();
            self.coverage.drops = self.coverage.drops.max(dropped as u64);
        }
    }

    pub(super) fn start_changes(&mut self) {
        let times: Vec<u64> = self.plan.changes.iter().map(|(at, _)| *at).collect();
        for (which, at) in times.into_iter().enumerate() {
            self.at(at, Event::Change(which, 0));
        }
        if self.hosts.iter().any(|h| !h.born) {
            self.at(LOOK_US, Event::Births);
        }
        for i in 0..self.hosts.len() {
            if self.hosts[i].born {
                self.op(i, 0, Op::Poll);
                self.schedule_wake(i);
            }
        }
    }
}

/// What a clone has of the log it was made from: the data, and what is prepared. What was under
/// way on that node was not its.
fn inherited(record: &Record) -> Option<Record> {
    match record {
        Record::Commit(..)
        | Record::CommitPrepared(..)
        | Record::Prepare(..)
        | Record::RollbackPrepared(_)
        | Record::UserEnd(..) => Some(record.clone()),
        Record::Install(gid, body, _) => Some(Record::Install(*gid, body.clone(), false)),
        Record::Announce(..)
        | Record::AcceptAbort(_)
        | Record::ParallelSafe(..)
        | Record::Syncpoint(_)
        | Record::Checkpoint { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Plan, Shape};

    /// Five nodes that know whose log they can read, of each the places of the others.
    fn world(known: [&[usize]; 5]) -> World {
        let mut world = World::new(Plan::new(0, Shape::Nodes(5)), false);
        for (i, known) in known.into_iter().enumerate() {
            world.hosts[i].born = true;
            world.hosts[i].known = (0..5).map(|peer| known.contains(&peer)).collect();
        }
        world
    }

    #[test]
    fn nobody_is_dropped_who_alone_connects_the_others() {
        // Clones of n3, and old nodes that know no clone.
        let (old, clone) = ([0, 1, 2], [0, 1, 2, 3, 4]);
        let apart = world([&old, &old, &clone, &clone, &clone]);
        let all = NodeSet::first(5);
        assert!(!apart.can_do_without(2, all));
        // One old node that knows the clones is enough, and is needed then.
        let joined = world([&old, &clone, &clone, &clone, &clone]);
        assert!(joined.can_do_without(2, all));
        assert!(!joined.can_do_without(1, all.without(node(2))));
    }

    #[test]
    fn nobody_is_dropped_before_the_last_one_that_was_added_is_born() {
        let all = [0, 1, 2, 3, 4];
        let mut world = world([&all, &all, &all, &all, &all]);
        world.hosts[4].born = false;
        assert!(!world.can_do_without(2, NodeSet::first(5)));
        assert!(world.can_do_without(4, NodeSet::first(5)));
    }
}
