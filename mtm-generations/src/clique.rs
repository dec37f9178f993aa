//! The largest set of nodes that all hear each other.
//!
//! Every node computes it from the same connectivity matrix and must find the same answer, so the
//! tie-break is part of the function: of two cliques of one size, the one that contains the lowest
//! node in which they differ.

use mtm_core::{MAX_NODES, NodeId, NodeSet};

/// Who hears whom, row per node. Only mutual connections count; every present node hears itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Connectivity {
    rows: [NodeSet; MAX_NODES as usize],
}

impl Connectivity {
    /// Nobody hears anybody.
    pub const fn new() -> Self {
        Self { rows: [NodeSet::EMPTY; MAX_NODES as usize] }
    }

    /// What `node` hears.
    pub const fn set(&mut self, node: NodeId, hears: NodeSet) {
        self.rows[node.index()] = hears;
    }

    /// Nodes with a mutual connection to `node`.
    pub fn neighbours(&self, node: NodeId) -> NodeSet {
        let row = self.rows[node.index()].without(node);
        row.iter().filter(|&other| self.rows[other.index()].contains(node)).collect()
    }
}

/// The largest clique among `nodes`.
pub fn largest_clique(matrix: &Connectivity, nodes: NodeSet) -> NodeSet {
    let mut search =
        Search { adjacent: [NodeSet::EMPTY; MAX_NODES as usize], best: NodeSet::EMPTY };
    for node in nodes {
        search.adjacent[node.index()] = matrix.neighbours(node).intersection(nodes);
    }
    search.expand(NodeSet::EMPTY, nodes);
    search.best
}

struct Search {
    adjacent: [NodeSet; MAX_NODES as usize],
    best: NodeSet,
}

impl Search {
    /// Branch and bound, lowest node first: the first clique of a size is then the preferred one.
    fn expand(&mut self, clique: NodeSet, mut candidates: NodeSet) {
        if clique.len() > self.best.len() {
            self.best = clique;
        }
        while let Some(node) = candidates.lowest() {
            if clique.len() + candidates.len() <= self.best.len() {
                return;
            }
            self.expand(clique.with(node), candidates.intersection(self.adjacent[node.index()]));
            candidates.remove(node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Tries every subset.
    fn dumb(matrix: &Connectivity, nodes: NodeSet) -> NodeSet {
        let mut best = NodeSet::EMPTY;
        for bits in 0..1u64 << MAX_NODES {
            let Some(set) = NodeSet::from_bits(bits) else { continue };
            if !set.is_subset(nodes) || set.len() < best.len() {
                continue;
            }
            if !set.iter().all(|n| set.without(n).is_subset(matrix.neighbours(n))) {
                continue;
            }
            let differ = set.bits() ^ best.bits();
            let lowest = differ & differ.wrapping_neg();
            if set.len() > best.len() || set.bits() & lowest != 0 {
                best = set;
            }
        }
        best
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn agrees_with_trying_every_subset(rows: [u16; 16], more: [u16; 16], dense: bool, nodes: u16) {
            let mut matrix = Connectivity::new();
            for (i, row) in rows.iter().enumerate() {
                let row = if dense { row | more[i] } else { *row };
                matrix.set(NodeId::new(i as u8 + 1).unwrap(), NodeSet::from_bits(u64::from(row)).unwrap());
            }
            let nodes = NodeSet::from_bits(u64::from(nodes)).unwrap();
            prop_assert_eq!(largest_clique(&matrix, nodes), dumb(&matrix, nodes));
        }
    }

    #[test]
    fn a_one_way_connection_does_not_count() {
        let (a, b) = (NodeId::new(1).unwrap(), NodeId::new(2).unwrap());
        let mut matrix = Connectivity::new();
        matrix.set(a, NodeSet::first(2));
        assert_eq!(largest_clique(&matrix, NodeSet::first(2)), NodeSet::only(a));
        matrix.set(b, NodeSet::only(a));
        assert_eq!(largest_clique(&matrix, NodeSet::first(2)), NodeSet::first(2));
    }
}
