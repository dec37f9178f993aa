//! The rule of election against its words, and what it is for.

use mtm_core::{GenNum, NodeId, NodeSet};
use mtm_generations::{Configuration, Generation, elect};
use proptest::prelude::*;

fn subset_of(nodes: u8) -> impl Strategy<Value = NodeSet> {
    (0u64..1 << nodes).prop_map(|bits| NodeSet::from_bits(bits).unwrap())
}

fn generation(members: NodeSet, nodes: u8) -> Generation {
    let configured = Configuration::initial(NodeSet::first(nodes));
    Generation { num: GenNum(100), members, configured }
}

/// The design's words, one after the other, without sets.
fn in_words(members: NodeSet, voters: NodeSet, last: &[u64], nodes: u8) -> Option<Vec<NodeId>> {
    let all: Vec<NodeId> = NodeSet::first(nodes).iter().collect();
    let voting: Vec<_> = all.iter().filter(|n| voters.contains(**n)).collect();
    let joining: Vec<_> = all.iter().filter(|n| members.contains(**n)).collect();
    if voting.len() * 2 <= all.len() || joining.len() * 2 <= all.len() {
        return None;
    }
    let highest = voting.iter().map(|n| last[n.index()]).max()?;
    let donors: Vec<_> = joining
        .into_iter()
        .filter(|n| voting.contains(n) && last[n.index()] == highest)
        .copied()
        .collect();
    if donors.is_empty() { None } else { Some(donors) }
}

proptest! {
    #[test]
    fn the_rule_is_what_the_words_say(
        nodes in 1u8..8, members in subset_of(8), voters in subset_of(8), last in prop::collection::vec(1u64..4, 8)
    ) {
        let configured = NodeSet::first(nodes);
        let (members, voters) = (members.intersection(configured), voters.intersection(configured));
        let elected = elect(generation(members, nodes), voters, |n| GenNum(last[n.index()]), false);
        let donors = elected.map(|e| e.donors.iter().collect::<Vec<_>>());
        prop_assert_eq!(donors, in_words(members, voters, &last, nodes));
    }

    /// What was decided in generation g is held by all its members ONLINE in g. An election after
    /// it that a majority takes part in finds one of them, so its donors were ONLINE in g or later.
    #[test]
    fn donors_were_online_where_a_commit_could_be_decided(
        nodes in 1u8..8, members in subset_of(8), voters in subset_of(8), deciding in subset_of(8), old in prop::collection::vec(1u64..5, 8)
    ) {
        let configured = NodeSet::first(nodes);
        let deciding = deciding.intersection(configured);
        prop_assume!(deciding.is_majority_of(configured));
        // Generation 5 decided: all its members are ONLINE in it; the others are behind.
        let last = |n: NodeId| GenNum(if deciding.contains(n) { 5 } else { old[n.index()] });
        let members = members.intersection(configured);
        if let Some(elected) = elect(generation(members, nodes), voters, last, false) {
            prop_assert!(elected.donors.is_subset(deciding));
        }
    }

    /// Two changes of one configuration never both find majorities without a common voter.
    #[test]
    fn two_changes_share_a_voter(nodes in 2u8..7, x in 1u8..8, y in 1u8..8, a in subset_of(8), b in subset_of(8)) {
        let base = Configuration::initial(NodeSet::first(nodes));
        let change = |n: u8| {
            let n = NodeId::new(n).unwrap();
            base.adding(n).or_else(|| base.dropping(n))
        };
        let (Some(one), Some(other)) = (change(x), change(y)) else { return Ok(()) };
        if one.has_majority(a) && other.has_majority(b) {
            prop_assert!(!a.intersection(b).is_empty());
        }
    }
}
