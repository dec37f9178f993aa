//! The part that drives one ballot after the other until something is decided.
//!
//! Owns the node's wish and its running ballot; both are gone after a crash, and may be. Must
//! never: propose two values in one ballot, choose freely when a promise carries a value.

use crate::Value;
use mtm_core::{Ballot, NodeId, NodeSet};

/// Where the running ballot stands.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Phase<V> {
    /// No ballot runs.
    Idle,
    /// Promises are being collected.
    Collecting {
        ballot: Ballot,
        from: NodeSet,
        /// The acceptance of the highest ballot that a promise carried.
        highest: Option<(Ballot, V)>,
    },
    /// A value is proposed; the learners see what comes of it.
    Proposed(Ballot),
}

/// One node's proposer.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Proposer<V> {
    me: NodeId,
    cohort: NodeSet,
    /// Highest round heard of.
    round: u64,
    wish: Option<V>,
    phase: Phase<V>,
}

impl<V: Value> Proposer<V> {
    /// A proposer whose own acceptor has promised `promised`: its ballots begin above that.
    pub fn new(me: NodeId, cohort: NodeSet, promised: Option<Ballot>) -> Self {
        let round = promised.map_or(0, |ballot| ballot.round);
        Self { me, cohort, round, wish: None, phase: Phase::Idle }
    }

    /// What this node would like to be decided.
    pub const fn wish(&self) -> Option<&V> {
        self.wish.as_ref()
    }

    /// Wishes for a value. The first wish stays.
    pub fn wish_for(&mut self, value: V) {
        self.wish.get_or_insert(value);
    }

    /// Begins a ballot above all that were heard of; the driver's acceptor must promise it first.
    /// `None` after 2^64 rounds.
    pub fn begin(&mut self) -> Option<Ballot> {
        self.round = self.round.checked_add(1)?;
        let ballot = Ballot { round: self.round, node: self.me };
        self.phase = Phase::Collecting { ballot, from: NodeSet::EMPTY, highest: None };
        Some(ballot)
    }

    /// The initial ballot is begun with the wish: there is nothing to collect.
    pub(crate) fn begun_initial(&mut self, ballot: Ballot) {
        self.phase = Phase::Proposed(ballot);
    }

    /// A promise. Returns what to propose once a majority has promised: the accepted value of the
    /// highest ballot if there is one, only otherwise the wish.
    pub fn promised(
        &mut self,
        sender: NodeId,
        asked: Ballot,
        accepted: Option<(Ballot, V)>,
    ) -> Option<(Ballot, V)> {
        let Phase::Collecting { ballot, from, highest } = &mut self.phase else { return None };
        if *ballot != asked || !self.cohort.contains(sender) || !from.insert(sender) {
            return None;
        }
        if let Some((in_ballot, value)) = accepted
            && highest.as_ref().is_none_or(|(known, _)| *known < in_ballot)
        {
            *highest = Some((in_ballot, value));
        }
        if !from.is_majority_of(self.cohort) {
            return None;
        }
        let value = match highest.take() {
            Some((_, value)) => value,
            None => self.wish.clone()?,
        };
        self.phase = Phase::Proposed(asked);
        Some((asked, value))
    }

    /// A higher ballot exists: the running one is hopeless. True if it was ours.
    pub fn refused(&mut self, asked: Ballot, promised: Ballot) -> bool {
        self.heard(promised);
        let ours = match &self.phase {
            Phase::Collecting { ballot, .. } | Phase::Proposed(ballot) => *ballot == asked,
            Phase::Idle => false,
        };
        if ours {
            self.phase = Phase::Idle;
        }
        ours
    }

    /// Someone else's ballot was heard of.
    pub fn heard(&mut self, ballot: Ballot) {
        self.round = self.round.max(ballot.round);
    }

    /// Whether a ballot of this node runs.
    pub const fn is_running(&self) -> bool {
        !matches!(self.phase, Phase::Idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId::new(n).expect("small")
    }

    fn ballot(round: u64, n: u8) -> Ballot {
        Ballot { round, node: node(n) }
    }

    fn started() -> (Proposer<u64>, Ballot) {
        let mut p = Proposer::new(node(1), NodeSet::first(3), None);
        p.wish_for(7);
        let ballot = p.begin().expect("there are rounds left");
        (p, ballot)
    }

    #[test]
    fn the_wish_is_proposed_when_nothing_was_accepted() {
        let (mut p, b) = started();
        assert_eq!(p.promised(node(1), b, None), None);
        assert_eq!(p.promised(node(1), b, None), None, "the same node twice is one");
        assert_eq!(p.promised(node(2), b, None), Some((b, 7)));
        assert_eq!(p.promised(node(3), b, Some((ballot(0, 2), 9))), None, "one value per ballot");
    }

    #[test]
    fn the_highest_accepted_value_wins_over_the_wish() {
        let mut p = Proposer::new(node(1), NodeSet::first(5), Some(ballot(4, 2)));
        p.wish_for(7);
        let b = p.begin().expect("there are rounds left");
        assert_eq!(b, ballot(5, 1));
        p.promised(node(2), b, Some((ballot(3, 3), 8)));
        p.promised(node(3), b, Some((ballot(2, 5), 9)));
        assert_eq!(p.promised(node(4), b, None), Some((b, 8)));
    }

    #[test]
    fn the_next_ballot_is_above_what_refused_it() {
        let (mut p, b) = started();
        assert!(p.refused(b, ballot(9, 3)));
        assert!(!p.is_running());
        assert_eq!(p.begin(), Some(ballot(10, 1)));
        assert!(!p.refused(b, ballot(3, 3)), "an old refusal stops nothing");
    }
}
