//! Which transactions may be applied in parallel.
//!
//! A recovering node gets a donor's committed transactions in the donor's commit order.
//! Conflicting ones must be applied in that order, the others may overtake each other. Two
//! transactions conflict when their [`Footprint`]s meet; a footprint may be too large (then they
//! wait for nothing) but never too small.
//!
//! While transactions are prepared, no plan is needed: a transaction that depends on another one
//! is announced only after every member has prepared the other, whose locks it then meets.

mod footprint;

pub use footprint::{
    Conflicts, Footprint, Parent, Rules, Tracer, equality_is_bytewise, footprint, table_hash,
};

use std::collections::{BTreeMap, BTreeSet};

/// A transaction's place in the commit order.
pub type Place = u64;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Task {
    footprint: Footprint,
    /// So many earlier ones must finish first.
    waits_for: usize,
    /// These wait for it.
    followers: Vec<Place>,
}

/// Who touched a table last, of those that are not finished.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Table {
    /// The last one that needs the whole table.
    whole: Option<Place>,
    /// Those after it that touch single rows.
    single: BTreeSet<Place>,
}

/// Who touched a row last, of those that are not finished.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Row {
    /// The last one that changes it.
    writer: Option<Place>,
    /// Those after it that need it to stay.
    readers: BTreeSet<Place>,
}

/// Transactions in commit order, and which of them may run.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Plan {
    next: Place,
    tasks: BTreeMap<Place, Task>,
    ready: BTreeSet<Place>,
    rows: BTreeMap<(u64, u64), Row>,
    tables: BTreeMap<u64, Table>,
    everything: Option<Place>,
}

impl Plan {
    /// No transactions.
    pub const fn new() -> Self {
        Self {
            next: 0,
            tasks: BTreeMap::new(),
            ready: BTreeSet::new(),
            rows: BTreeMap::new(),
            tables: BTreeMap::new(),
            everything: None,
        }
    }

    /// The next transaction in commit order. The driver bounds how many it lets in
    /// ([`Plan::len`]).
    pub fn admit(&mut self, footprint: Footprint) -> Place {
        let place = self.next;
        self.next += 1;
        let before = self.predecessors(&footprint);
        for earlier in &before {
            let task = self.tasks.get_mut(earlier).expect("finished ones are not remembered");
            task.followers.push(place);
        }
        self.remember(place, &footprint);
        if before.is_empty() {
            self.ready.insert(place);
        }
        let task = Task { footprint, waits_for: before.len(), followers: Vec::new() };
        self.tasks.insert(place, task);
        place
    }

    /// Takes the earliest transaction that may run now.
    pub fn start(&mut self) -> Option<Place> {
        self.ready.pop_first()
    }

    /// How many may run now and were not started.
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// A started transaction is committed here.
    ///
    /// # Panics
    /// When it was not started, or is finished: the order would be lost.
    pub fn finish(&mut self, place: Place) {
        assert!(!self.ready.contains(&place), "transaction {place} was not started");
        let task = self.tasks.remove(&place).expect("a transaction is finished once");
        assert!(task.waits_for == 0, "transaction {place} had to wait");
        self.forget(place, &task.footprint);
        for follower in task.followers {
            let task = self.tasks.get_mut(&follower).expect("it waits for this one");
            task.waits_for -= 1;
            if task.waits_for == 0 {
                self.ready.insert(follower);
            }
        }
    }

    /// How many are not finished.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether one that touches everything is not finished.
    pub const fn has_everything(&self) -> bool {
        self.everything.is_some()
    }

    /// Whether all are finished.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// The unfinished ones a transaction must wait for. Those who wait for each other in a row
    /// are represented by the last.
    fn predecessors(&self, footprint: &Footprint) -> BTreeSet<Place> {
        if footprint.is_everything() {
            return self.tasks.keys().copied().collect();
        }
        let mut before: BTreeSet<Place> = self.everything.into_iter().collect();
        for table in footprint.tables() {
            if let Some(known) = self.tables.get(&table) {
                before.extend(known.whole);
                before.extend(&known.single);
            }
        }
        for at in footprint.rows() {
            before.extend(self.tables.get(&at.0).and_then(|known| known.whole));
            if let Some(row) = self.rows.get(&at) {
                before.extend(row.writer);
                before.extend(&row.readers);
            }
        }
        for at in footprint.reads() {
            before.extend(self.tables.get(&at.0).and_then(|known| known.whole));
            before.extend(self.rows.get(&at).and_then(|row| row.writer));
        }
        before
    }

    fn remember(&mut self, place: Place, footprint: &Footprint) {
        if footprint.is_everything() {
            self.everything = Some(place);
            // Everything before finishes before it, so who comes later need only look at it.
            self.rows.clear();
            self.tables.clear();
            return;
        }
        for table in footprint.tables() {
            self.tables.insert(table, Table { whole: Some(place), single: BTreeSet::new() });
        }
        for (table, _) in footprint.rows().chain(footprint.reads()) {
            self.tables.entry(table).or_default().single.insert(place);
        }
        for at in footprint.rows() {
            // Whoever read it before finishes before this one.
            self.rows.insert(at, Row { writer: Some(place), readers: BTreeSet::new() });
        }
        for at in footprint.reads() {
            self.rows.entry(at).or_default().readers.insert(place);
        }
    }

    fn forget(&mut self, place: Place, footprint: &Footprint) {
        if self.everything == Some(place) {
            self.everything = None;
        }
        let single = || footprint.rows().chain(footprint.reads());
        for at in single() {
            let Some(row) = self.rows.get_mut(&at) else { continue };
            row.writer = row.writer.filter(|writer| *writer != place);
            row.readers.remove(&place);
            if *row == Row::default() {
                self.rows.remove(&at);
            }
        }
        for table in footprint.tables().chain(single().map(|(table, _)| table)) {
            let Some(known) = self.tables.get_mut(&table) else { continue };
            known.single.remove(&place);
            if known.whole == Some(place) {
                known.whole = None;
            }
            if *known == Table::default() {
                self.tables.remove(&table);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn touches() -> impl Strategy<Value = Footprint> {
        let rows = prop::collection::vec((0u64..3, 0u64..4), 0..5);
        let reads = prop::collection::vec((0u64..3, 0u64..4), 0..4);
        let tables = prop::collection::vec(0u64..3, 0..2);
        let everything = prop::bool::weighted(0.05);
        (rows, reads, tables, everything).prop_map(|(rows, reads, tables, everything)| {
            let mut footprint = Footprint::new();
            reads.into_iter().for_each(|(table, row)| footprint.read_row(table, row));
            rows.into_iter().for_each(|(table, row)| footprint.touch_row(table, row));
            // Mostly single rows.
            tables.into_iter().skip(1).for_each(|table| footprint.touch_table(table));
            if everything {
                footprint.touch_everything();
            }
            footprint
        })
    }

    proptest! {
        /// Against the plain words: a transaction may run exactly when every earlier one that
        /// conflicts with it is finished.
        #[test]
        fn it_allows_what_the_words_allow(
            all in prop::collection::vec(touches(), 1..30),
            choices in prop::collection::vec((0u8..3, any::<usize>()), 0..150),
        ) {
            let (mut plan, mut admitted) = (Plan::new(), 0);
            let (mut running, mut done) = (Vec::new(), BTreeSet::new());
            let rest = core::iter::repeat_n((1u8, 0usize), 4 * all.len());
            for (what, which) in choices.into_iter().chain(rest) {
                match what {
                    0 if admitted < all.len() => {
                        prop_assert_eq!(plan.admit(all[admitted].clone()), admitted as u64);
                        admitted += 1;
                    }
                    1 => if let Some(place) = plan.start() {
                        running.push(place);
                    } else if !running.is_empty() {
                        let place = running.swap_remove(which % running.len());
                        plan.finish(place);
                        done.insert(place);
                    },
                    _ if !running.is_empty() => {
                        let place = running.swap_remove(which % running.len());
                        plan.finish(place);
                        done.insert(place);
                    }
                    _ => {}
                }
                let may = |j: usize| (0..j).all(|i| {
                    done.contains(&(i as u64)) || !all[i].conflicts_with(&all[j])
                });
                let expected: BTreeSet<u64> = (0..admitted)
                    .map(|j| j as u64)
                    .filter(|j| !done.contains(j) && !running.contains(j) && may(*j as usize))
                    .collect();
                prop_assert_eq!(&plan.ready, &expected);
                prop_assert_eq!(plan.len(), admitted - done.len());
            }
            prop_assert_eq!(done.len(), admitted, "all that were let in end");
            prop_assert!(plan.rows.is_empty() && plan.tables.is_empty(), "nothing is left behind");
        }
    }

    #[test]
    #[should_panic(expected = "was not started")]
    fn what_was_not_started_cannot_finish() {
        let mut plan = Plan::new();
        let place = plan.admit(Footprint::new());
        plan.finish(place);
    }
}
