//! Which values of a sequence belong to which node.
//!
//! In the default mode every node hands out its own residue class: with `START 1 INCREMENT 1`,
//! node `k` of stride `n` hands out `k`, `k + n`, `k + 2n` and so on. The classes never meet, so no
//! message is needed to hand out a value.
//!
//! In the monotonic mode a node also leaves out its values up to the last one that is known to have
//! been handed out anywhere ([`Definition::beyond`]). Classes still never meet, so what a node
//! does not know yet can cost the order, never uniqueness.
//!
//! Classes do not depend on where a sequence starts, only on its increment and the stride: moving
//! a sequence never makes one node's future values another node's past.

use crate::NodeId;
use core::fmt;

/// What `CREATE SEQUENCE` said, or what one node's catalog says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Definition {
    /// First value.
    pub start: i64,
    /// Step; negative for a descending sequence, never 0.
    pub increment: i64,
    /// Lowest value.
    pub min: i64,
    /// Highest value.
    pub max: i64,
    /// Whether it begins again after the last value.
    pub cycle: bool,
}

/// Where a sequence stands, in PostgreSQL's words: `last_value` and `is_called`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// The value handed out last, or to be handed out first.
    pub last: i64,
    /// Whether `last` has been handed out.
    pub called: bool,
}

/// Which part of all values belongs to a node: class `node` of `stride` classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Share {
    node: NodeId,
    stride: u8,
}

/// A definition that one stride cannot share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TooNarrow {
    /// The step of a node does not fit into 64 bits.
    #[error("increment {increment} times {stride} nodes does not fit into 64 bits")]
    Increment {
        /// The user's increment.
        increment: i64,
        /// Number of classes.
        stride: u8,
    },
    /// Not every node has two values, which PostgreSQL wants of a cycle.
    #[error("not every one of {stride} nodes has a value of its own between {min} and {max}")]
    Range {
        /// Number of classes.
        stride: u8,
        /// Lowest value.
        min: i64,
        /// Highest value.
        max: i64,
    },
}

impl Share {
    /// The class of `node` among `stride`; `None` when the node's number is above the stride.
    pub const fn new(node: NodeId, stride: u8) -> Option<Self> {
        if node.get() <= stride { Some(Self { node, stride }) } else { None }
    }

    /// The node.
    pub const fn node(self) -> NodeId {
        self.node
    }

    /// Number of classes: the highest number of a configured node.
    pub const fn stride(self) -> u8 {
        self.stride
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node, self.stride)
    }
}

impl Definition {
    const fn ascending(&self) -> bool {
        self.increment > 0
    }

    /// Distance between neighbours of one class, positive.
    fn modulus(&self, share: Share) -> i128 {
        i128::from(self.increment).abs() * i128::from(share.stride)
    }

    /// Some value of the class, perhaps out of every range: on node 1 the value nearest to zero
    /// that a single server could reach from `start`, on the others the values behind it.
    fn anchor(&self, share: Share) -> i128 {
        let behind = i128::from(share.node.get()) - 1;
        let (start, step) = (i128::from(self.start), i128::from(self.increment));
        if self.ascending() {
            1 + (start - 1).rem_euclid(step) + behind * step
        } else {
            -1 - (-start - 1).rem_euclid(-step) + behind * step
        }
    }

    /// Whether `value` is the node's.
    pub fn owns(&self, share: Share, value: i64) -> bool {
        (i128::from(value) - self.anchor(share)).rem_euclid(self.modulus(share)) == 0
    }

    /// The first value of the class that is not before `from`, in the direction of the sequence
    /// and within its limits.
    fn first_from(&self, share: Share, from: i128) -> Option<i64> {
        let (m, anchor) = (self.modulus(share), self.anchor(share));
        let value = if self.ascending() {
            let from = from.max(i128::from(self.min));
            from + (anchor - from).rem_euclid(m)
        } else {
            let from = from.min(i128::from(self.max));
            from - (from - anchor).rem_euclid(m)
        };
        let within = i128::from(self.min) <= value && value <= i128::from(self.max);
        if within { i64::try_from(value).ok() } else { None }
    }

    /// The first value of the class within the limits: where a cycle begins again.
    fn lap_start(&self, share: Share) -> Option<i64> {
        let edge = if self.ascending() { self.min } else { self.max };
        self.first_from(share, i128::from(edge))
    }

    /// What the node's catalog must say so that the server's own `nextval` stays in the class.
    ///
    /// Only a cycle needs its lower limit (upper, if descending) moved: that is where the server
    /// begins again. A node for which no value is left starts at the limit; its position
    /// ([`Definition::position`]) says that it is used up.
    ///
    /// # Errors
    /// When the step overflows, or when a cycle leaves a node without two values.
    pub fn on_node(&self, share: Share) -> Result<Self, TooNarrow> {
        let stride = share.stride;
        let step = self.increment.checked_mul(i64::from(stride));
        let increment = step.ok_or(TooNarrow::Increment { increment: self.increment, stride })?;
        let mut mine = Self { increment, ..*self };
        let limit = if self.ascending() { self.max } else { self.min };
        mine.start = self.first_from(share, self.start.into()).unwrap_or(limit);
        if self.cycle {
            let narrow = TooNarrow::Range { stride, min: self.min, max: self.max };
            let lap = self.lap_start(share).ok_or(narrow)?;
            if self.ascending() {
                mine.min = lap;
            } else {
                mine.max = lap;
            }
            if mine.min >= mine.max {
                return Err(narrow);
            }
            mine.start = self.first_from(share, self.start.into()).unwrap_or(lap);
        }
        Ok(mine)
    }

    /// Where the node continues when the sequence as a whole stands at `at`: the first value of
    /// the class that a single server would not have handed out yet.
    ///
    /// Nothing changes when the next value is the node's anyway.
    pub fn position(&self, share: Share, at: Position) -> Position {
        if share.stride == 1 {
            return at;
        }
        let last = i128::from(at.last);
        let next = if at.called { last + i128::from(self.increment) } else { last };
        if let Some(first) = self.first_from(share, next) {
            let stays = at.called && self.owns(share, at.last);
            return if stays { at } else { Position { last: first, called: false } };
        }
        match self.lap_start(share) {
            Some(lap) if self.cycle => Position { last: lap, called: false },
            _ => {
                let limit = if self.ascending() { self.max } else { self.min };
                Position { last: limit, called: true }
            }
        }
    }

    /// Where the node, which stands at `at`, continues in the monotonic mode when `seen` has been
    /// handed out somewhere: at the first value of its class beyond `seen`.
    ///
    /// Nothing changes when its next value is beyond `seen` anyway. A cycle that has begun again is
    /// no order; values are compared within one lap.
    pub fn beyond(&self, share: Share, at: Position, seen: i64) -> Position {
        let step = i128::from(self.increment) * i128::from(share.stride);
        let next = if at.called { i128::from(at.last) + step } else { i128::from(at.last) };
        let is_beyond = if self.ascending() { next > seen.into() } else { next < seen.into() };
        if is_beyond { at } else { self.position(share, Position { last: seen, called: true }) }
    }

    /// Whichever of two values is handed out later by a single server.
    pub fn later(&self, one: i64, other: i64) -> i64 {
        if self.ascending() { one.max(other) } else { one.min(other) }
    }

    /// Whether the nodes' classes are the same under both definitions, so that a change from one
    /// to the other makes no node's past another node's future. One that turns round is as good:
    /// a single server comes back over its own past as well.
    pub fn same_classes(&self, other: &Self, share: Share) -> bool {
        let turns = self.ascending() != other.ascending();
        let same_anchor = || {
            let apart = self.anchor(share) - other.anchor(share);
            apart.rem_euclid(self.modulus(share)) == 0
        };
        turns || self.modulus(share) == other.modulus(share) && same_anchor()
    }

    /// A bound of what was handed out by a node (or by a single server) that stands at `at`, as
    /// tight as its position tells; `None` if that is nothing.
    pub fn used_up_to(&self, at: Position) -> Option<i64> {
        if at.called {
            return Some(at.last);
        }
        // The node may have been moved to a first value that is behind used ones.
        let before = if self.ascending() { at.last.checked_sub(1) } else { at.last.checked_add(1) };
        before.filter(|bound| self.min <= *bound && *bound <= self.max)
    }

    /// `bound` moved on by `values` values of a single server, but not out of the limits.
    pub fn advanced(&self, bound: i64, values: u32) -> i64 {
        let step = i128::from(self.increment) * i128::from(values);
        let moved = i128::from(bound) + step;
        let moved = moved.clamp(self.min.into(), self.max.into());
        i64::try_from(moved).expect("the limits are of 64 bits")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// What the server's `nextval` does.
    fn nextval(d: &Definition, at: &mut Position) -> Option<i64> {
        if !at.called {
            at.called = true;
            return Some(at.last);
        }
        let next = i128::from(at.last) + i128::from(d.increment);
        let past = if d.increment > 0 { next > d.max.into() } else { next < d.min.into() };
        at.last = match (past, d.cycle) {
            (false, _) => i64::try_from(next).unwrap(),
            (true, false) => return None,
            (true, true) if d.increment > 0 => d.min,
            (true, true) => d.max,
        };
        Some(at.last)
    }

    fn share(node: u8, stride: u8) -> Share {
        Share::new(NodeId::new(node).unwrap(), stride).unwrap()
    }

    fn plain() -> Definition {
        Definition { start: 1, increment: 1, min: 1, max: i64::MAX, cycle: false }
    }

    fn definition() -> impl Strategy<Value = Definition> {
        let near = prop_oneof![-40i64..40, i64::MIN..i64::MIN + 40, i64::MAX - 40..=i64::MAX];
        let increment = prop_oneof![1i64..7, -7i64..-1];
        (near, 1i64..200, increment, any::<bool>(), 0.0f64..=1.0).prop_map(
            |(min, width, increment, cycle, part)| {
                let max = min.saturating_add(width);
                let min = max - width;
                let start = min + (width as f64 * part) as i64;
                Definition { start, increment, min, max, cycle }
            },
        )
    }

    #[test]
    fn three_nodes_count_as_the_manual_says() {
        for node in 1..=3 {
            let d = plain().on_node(share(node, 3)).unwrap();
            let mut at = plain().position(share(node, 3), Position { last: 1, called: false });
            let got: Vec<_> = (0..3).map(|_| nextval(&d, &mut at).unwrap()).collect();
            let k = i64::from(node);
            assert_eq!(got, [k, k + 3, k + 6]);
        }
    }

    #[test]
    fn all_nodes_continue_above_what_was_used() {
        let at = |node| plain().position(share(node, 3), Position { last: 1000, called: true });
        assert_eq!(at(1), Position { last: 1000, called: true });
        assert_eq!(at(2), Position { last: 1001, called: false });
        assert_eq!(at(3), Position { last: 1002, called: false });
    }

    #[test]
    fn a_node_without_a_value_is_used_up() {
        let d = Definition { max: 2, ..plain() };
        let mut at = d.position(share(3, 3), Position { last: 1, called: false });
        assert_eq!(nextval(&d.on_node(share(3, 3)).unwrap(), &mut at), None);
    }

    #[test]
    fn a_step_beyond_64_bits_is_refused() {
        let d = Definition { increment: i64::MAX / 2, ..plain() };
        assert!(matches!(d.on_node(share(1, 3)), Err(TooNarrow::Increment { .. })));
    }

    #[test]
    fn a_new_start_keeps_the_classes() {
        for start in [-7, 0, 1, 2, 100] {
            let d = Definition { start, min: -10, ..plain() };
            assert!(d.owns(share(2, 3), 5) && d.owns(share(1, 3), 4) && d.owns(share(3, 3), 0));
        }
    }

    #[test]
    fn a_descending_sequence_counts_down_from_the_node() {
        let d = Definition { start: -1, increment: -2, min: i64::MIN, max: -1, cycle: false };
        assert_eq!(d.on_node(share(3, 3)).unwrap().start, -5);
        assert_eq!(d.on_node(share(3, 3)).unwrap().increment, -6);
    }

    #[test]
    fn a_cycle_too_short_for_all_is_refused() {
        let d = Definition { max: 3, cycle: true, ..plain() };
        assert!(matches!(d.on_node(share(3, 3)), Err(TooNarrow::Range { .. })));
    }

    #[test]
    fn monotonic_leaves_out_what_others_have_passed_as_the_manual_says() {
        // Node 1 has handed out 1, 4 and 7: node 2 leaves out 2 and 5.
        let at = Position { last: 2, called: false };
        assert_eq!(plain().beyond(share(2, 3), at, 7), Position { last: 8, called: false });
        let ahead = Position { last: 11, called: true };
        assert_eq!(plain().beyond(share(2, 3), ahead, 12), ahead, "14 is beyond 12");
    }

    #[test]
    fn classes_move_with_the_increment_and_with_the_start_behind_it() {
        let by = |increment, start| Definition { start, increment, ..plain() };
        assert!(by(1, 1).same_classes(&by(1, 77), share(2, 3)));
        assert!(!by(1, 1).same_classes(&by(5, 1), share(2, 3)));
        assert!(!by(5, 1).same_classes(&by(5, 2), share(2, 3)));
        assert!(by(5, 1).same_classes(&by(5, 6), share(2, 3)));
    }

    proptest! {
        /// What ALTER SEQUENCE does to a used sequence: every node goes past what any has used.
        #[test]
        fn a_new_definition_brings_nothing_again(
            (old, new) in (definition(), definition()), stride in 1u8..5,
            used in prop::collection::vec(0usize..20, 5)
        ) {
            let old = Definition { cycle: false, ..old };
            let new = Definition { cycle: false, min: old.min, max: old.max, start: old.start, ..new };
            prop_assume!(old.ascending() == new.ascending());
            let mut seen = Vec::new();
            let mut bound = None;
            for node in 1..=stride {
                let share = share(node, stride);
                let Ok(mine) = old.on_node(share) else { return Ok(()) };
                let mut at = old.position(share, Position { last: old.start, called: false });
                for _ in 0..used[usize::from(node)] {
                    seen.extend(nextval(&mine, &mut at));
                }
                let here = old.used_up_to(at);
                bound = match (bound, here) {
                    (Some(a), Some(b)) => Some(old.later(a, b)),
                    (a, b) => a.or(b),
                };
            }
            for node in 1..=stride {
                let share = share(node, stride);
                let Ok(mine) = new.on_node(share) else { return Ok(()) };
                let first = Position { last: old.start, called: false };
                let mut at = match bound {
                    Some(last) => new.position(share, Position { last, called: true }),
                    None => new.position(share, first),
                };
                for _ in 0..40 {
                    let Some(v) = nextval(&mine, &mut at) else { break };
                    prop_assert!(!seen.contains(&v), "{v} comes again on node {node}");
                    seen.push(v);
                }
            }
        }

        /// Any interleaving of nodes that know of each other at once (monotonic) or late: with full
        /// knowledge values grow over the whole cluster, without it each node's own do, and every
        /// one is beyond all the node knew of; no value ever comes twice.
        #[test]
        fn monotonic_values_grow(
            d in definition(), stride in 1u8..6,
            turns in prop::collection::vec((0u8..6, 0u8..6, any::<bool>()), 0..80),
            at_once: bool,
        ) {
            let d = Definition { cycle: false, ..d };
            let mut here = Vec::new();
            for node in 1..=stride {
                let mine = d.on_node(share(node, stride)).unwrap();
                let first = d.position(share(node, stride), Position { last: d.start, called: false });
                here.push((mine, first, None::<i64>));
            }
            let (mut last, mut all) = (None::<i64>, Vec::new());
            let is_later = |a: i64, b: i64| a != b && d.later(a, b) == a;
            for (node, teller, tells) in turns {
                let (i, j) = (usize::from(node % stride), usize::from(teller % stride));
                if at_once {
                    here[i].2 = last;
                } else if tells {
                    let told = here[j].2;
                    here[i].2 = match (here[i].2, told) { (Some(a), Some(b)) => Some(d.later(a, b)), (a, b) => a.or(b) };
                }
                let knew = here[i].2;
                let (mine, mut at, _) = here[i];
                if let Some(seen) = knew { at = d.beyond(share(i as u8 + 1, stride), at, seen); }
                let value = nextval(&mine, &mut at);
                here[i].1 = at;
                let Some(value) = value else { continue };
                prop_assert!(!all.contains(&value), "{value} came twice");
                prop_assert!(knew.is_none_or(|seen| is_later(value, seen)));
                if at_once {
                    prop_assert!(last.is_none_or(|before| is_later(value, before)));
                    last = Some(value);
                }
                here[i].2 = Some(value);
                all.push(value);
            }
        }

        #[test]
        fn nodes_never_hand_out_the_same_value(
            d in definition(), stride in 1u8..6, used in 0usize..20, called: bool
        ) {
            let first = Position { last: d.start, called: false };
            let mut at = first;
            for _ in 0..used {
                if nextval(&Definition { cycle: false, ..d }, &mut at).is_none() { break }
            }
            at.called |= called;
            let mut owner = BTreeMap::new();
            for node in 1..=stride {
                let share = share(node, stride);
                let Ok(mine) = d.on_node(share) else { continue };
                prop_assert!(mine.min <= mine.start && mine.start <= mine.max);
                let mut here = d.position(share, at);
                prop_assert!(mine.min <= here.last && here.last <= mine.max);
                for _ in 0..60 {
                    let Some(v) = nextval(&mine, &mut here) else { break };
                    prop_assert!(d.min <= v && v <= d.max);
                    prop_assert_eq!(*owner.entry(v).or_insert(node), node);
                    prop_assert!(d.owns(share, v));
                }
            }
        }

        #[test]
        fn nothing_used_comes_again(d in definition(), stride in 1u8..6, used in 1usize..30) {
            let d = Definition { cycle: false, ..d };
            let mut at = Position { last: d.start, called: false };
            let mut seen = Vec::new();
            for _ in 0..used {
                if let Some(v) = nextval(&d, &mut at) { seen.push(v) }
            }
            for node in 1..=stride {
                let mine = d.on_node(share(node, stride)).unwrap();
                let mut here = d.position(share(node, stride), at);
                while let Some(v) = nextval(&mine, &mut here) {
                    prop_assert!(!seen.contains(&v));
                }
            }
        }

        #[test]
        fn positions_are_stable(d in definition(), node in 1u8..5, last in -50i64..50, called: bool) {
            let share = share(node, 4);
            let once = d.position(share, Position { last, called });
            prop_assert_eq!(d.position(share, once), once);
        }
    }
}
