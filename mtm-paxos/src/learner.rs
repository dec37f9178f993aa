//! The part that finds out.
//!
//! Owns who accepted what, last. A value is decided when a majority has accepted it *in one
//! ballot*; acceptances of the same value in different ballots do not add up.

use crate::Value;
use mtm_core::{Ballot, MAX_NODES, NodeId, NodeSet};

/// One node's learner.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Learner<V> {
    cohort: NodeSet,
    /// The highest acceptance of each node that was heard of.
    accepted: [Option<(Ballot, V)>; MAX_NODES as usize],
    decided: Option<V>,
}

impl<V: Value> Learner<V> {
    /// Knows nothing.
    pub const fn new(cohort: NodeSet) -> Self {
        Self { cohort, accepted: [const { None }; MAX_NODES as usize], decided: None }
    }

    /// What is decided, as far as is known here.
    pub const fn decided(&self) -> Option<&V> {
        self.decided.as_ref()
    }

    /// A node has durably accepted. True if that decides.
    pub fn accepted(&mut self, from: NodeId, ballot: Ballot, value: V) -> bool {
        if self.decided.is_some() || !self.cohort.contains(from) {
            return false;
        }
        let last = &mut self.accepted[from.index()];
        if last.as_ref().is_some_and(|(known, _)| *known >= ballot) {
            return false;
        }
        *last = Some((ballot, value));
        let together: NodeSet = self.cohort.iter().filter(|n| self.is_in(*n, ballot)).collect();
        if !together.is_majority_of(self.cohort) {
            return false;
        }
        self.decided = self.accepted[from.index()].take().map(|(_, value)| value);
        true
    }

    /// Someone knows. True if that is news.
    pub fn told(&mut self, value: V) -> bool {
        let news = self.decided.is_none();
        if news {
            self.decided = Some(value);
        }
        news
    }

    fn is_in(&self, node: NodeId, ballot: Ballot) -> bool {
        self.accepted[node.index()].as_ref().is_some_and(|(last, _)| *last == ballot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId::new(n).expect("small")
    }

    fn ballot(round: u64) -> Ballot {
        Ballot { round, node: node(1) }
    }

    #[test]
    fn a_majority_in_one_ballot_decides() {
        let mut learner = Learner::new(NodeSet::first(5));
        assert!(!learner.accepted(node(1), ballot(1), 7u64));
        assert!(!learner.accepted(node(2), ballot(1), 7));
        assert!(!learner.accepted(node(2), ballot(1), 7), "the same node twice is one");
        assert!(!learner.accepted(node(3), ballot(2), 7), "another ballot does not count");
        assert!(!learner.accepted(node(9), ballot(1), 7), "nobody we know");
        assert!(learner.accepted(node(4), ballot(1), 7));
        assert_eq!(learner.decided(), Some(&7));
        assert!(!learner.accepted(node(5), ballot(1), 7));
    }

    #[test]
    fn who_has_gone_on_does_not_count_for_the_ballot_it_left() {
        let mut learner = Learner::new(NodeSet::first(3));
        assert!(!learner.accepted(node(1), ballot(2), 8u64));
        assert!(!learner.accepted(node(1), ballot(1), 7));
        assert!(!learner.accepted(node(2), ballot(1), 7));
        assert_eq!(learner.decided(), None);
    }
}
