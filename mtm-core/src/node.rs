//! Node numbers and sets of them.

use core::fmt;
use core::iter::FromIterator;

/// Largest node number; nodes are numbered from 1.
pub const MAX_NODES: u8 = 16;

/// Number of a configured node, `1..=MAX_NODES`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct NodeId(u8);

impl NodeId {
    /// Returns the node with this number, or `None` if it is out of `1..=MAX_NODES`.
    pub const fn new(id: u8) -> Option<Self> {
        if id >= 1 && id <= MAX_NODES { Some(Self(id)) } else { None }
    }

    /// The number, `1..=MAX_NODES`.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// Position in arrays of `MAX_NODES` elements, `0..MAX_NODES`.
    pub const fn index(self) -> usize {
        self.0 as usize - 1
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

/// A set of nodes. Iterates in ascending order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct NodeSet(u64);

impl NodeSet {
    /// The empty set.
    pub const EMPTY: Self = Self(0);

    /// Nodes `1..=n`; `n` above `MAX_NODES` counts as `MAX_NODES`.
    pub const fn first(n: u8) -> Self {
        let n = if n > MAX_NODES { MAX_NODES } else { n };
        Self((1u64 << n) - 1)
    }

    /// The set whose bit `i` (from 0) stands for node `i + 1`; `None` if a bit has no node.
    pub const fn from_bits(bits: u64) -> Option<Self> {
        if bits >> MAX_NODES == 0 { Some(Self(bits)) } else { None }
    }

    /// Bit `i` (from 0) stands for node `i + 1`.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// The set with only `node`.
    pub const fn only(node: NodeId) -> Self {
        Self(1 << node.index())
    }

    /// Whether `node` is in the set.
    pub const fn contains(self, node: NodeId) -> bool {
        self.0 & (1 << node.index()) != 0
    }

    /// Adds `node`; true if it was not there.
    pub fn insert(&mut self, node: NodeId) -> bool {
        let was = self.contains(node);
        self.0 |= 1 << node.index();
        !was
    }

    /// Removes `node`; true if it was there.
    pub fn remove(&mut self, node: NodeId) -> bool {
        let was = self.contains(node);
        self.0 &= !(1 << node.index());
        was
    }

    /// The set with `node` added.
    #[must_use]
    pub const fn with(self, node: NodeId) -> Self {
        Self(self.0 | 1 << node.index())
    }

    /// The set without `node`.
    #[must_use]
    pub const fn without(self, node: NodeId) -> Self {
        Self(self.0 & !(1 << node.index()))
    }

    /// Nodes in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Nodes in both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Nodes of this set that are not in `other`.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether every node of this set is in `other`.
    pub const fn is_subset(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// Number of nodes.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether there is no node.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Lowest node.
    pub const fn lowest(self) -> Option<NodeId> {
        if self.0 == 0 { None } else { Some(NodeId(self.0.trailing_zeros() as u8 + 1)) }
    }

    /// Whether this set is a majority of `all` (more than half of it).
    pub const fn is_majority_of(self, all: Self) -> bool {
        2 * self.intersection(all).len() > all.len()
    }

    /// Nodes in ascending order.
    pub const fn iter(self) -> NodeSetIter {
        NodeSetIter(self.0)
    }
}

/// Nodes of a set in ascending order.
#[derive(Clone, Debug)]
pub struct NodeSetIter(u64);

impl Iterator for NodeSetIter {
    type Item = NodeId;

    fn next(&mut self) -> Option<NodeId> {
        let next = NodeSet(self.0).lowest()?;
        self.0 &= self.0 - 1;
        Some(next)
    }
}

impl IntoIterator for NodeSet {
    type Item = NodeId;
    type IntoIter = NodeSetIter;

    fn into_iter(self) -> NodeSetIter {
        self.iter()
    }
}

impl FromIterator<NodeId> for NodeSet {
    fn from_iter<I: IntoIterator<Item = NodeId>>(nodes: I) -> Self {
        nodes.into_iter().fold(Self::EMPTY, Self::with)
    }
}

impl fmt::Display for NodeSet {
    /// `{1,2,3}`, which is also PostgreSQL's array syntax.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (i, node) in self.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{node}")?;
        }
        f.write_str("}")
    }
}

impl fmt::Debug for NodeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_out_of_range_are_no_nodes() {
        assert_eq!(NodeId::new(0), None);
        assert_eq!(NodeId::new(MAX_NODES + 1), None);
        assert_eq!(NodeId::new(1).map(NodeId::get), Some(1));
    }

    #[test]
    fn half_is_no_majority() {
        let four = NodeSet::first(4);
        assert!(!NodeSet::first(2).is_majority_of(four));
        assert!(NodeSet::first(3).is_majority_of(four));
    }

    proptest! {
        #[test]
        fn sets_behave_like_btree_sets(a in 0u64..1 << MAX_NODES, b in 0u64..1 << MAX_NODES) {
            use std::collections::BTreeSet;
            let (x, y) = (NodeSet::from_bits(a).unwrap(), NodeSet::from_bits(b).unwrap());
            let (p, q): (BTreeSet<_>, BTreeSet<_>) = (x.iter().collect(), y.iter().collect());
            prop_assert_eq!(x.union(y).iter().collect::<Vec<_>>(), p.union(&q).copied().collect::<Vec<_>>());
            prop_assert_eq!(x.intersection(y).len(), p.intersection(&q).count());
            prop_assert_eq!(x.difference(y).iter().collect::<Vec<_>>(), p.difference(&q).copied().collect::<Vec<_>>());
            prop_assert_eq!(x.is_subset(y), p.is_subset(&q));
            prop_assert_eq!(x.iter().collect::<NodeSet>(), x);
        }
    }
}
