//! Generations and the configured set they belong to.

use mtm_core::wire::{DecodeError, DecodeErrorKind, Reader, Writer};
use mtm_core::{GenNum, NodeId, NodeSet};

/// The configured nodes, versioned; a new version differs from the one before by one node.
///
/// A majority is counted in `nodes` and in `previous`: two different changes proposed at the same
/// time then still share a voter (with 2 nodes, majorities of "2 and x" and "2 and y" do not).
/// Later, when enough nodes know it, it is [`settled`](Self::settled).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Configuration {
    /// Grows by one with every change.
    pub version: u32,
    /// The configured nodes.
    pub nodes: NodeSet,
    /// The configured nodes of the version before.
    pub previous: NodeSet,
}

impl Configuration {
    /// The first configuration of a cluster.
    pub const fn initial(nodes: NodeSet) -> Self {
        Self { version: 1, nodes, previous: nodes }
    }

    /// This configuration with one more node, or `None` if it is configured already.
    #[must_use]
    pub const fn adding(&self, node: NodeId) -> Option<Self> {
        if self.nodes.contains(node) {
            return None;
        }
        Some(Self { version: self.version + 1, nodes: self.nodes.with(node), previous: self.nodes })
    }

    /// This configuration without a node, or `None` if it is not configured or the last one.
    #[must_use]
    pub const fn dropping(&self, node: NodeId) -> Option<Self> {
        if !self.nodes.contains(node) || self.nodes.len() == 1 {
            return None;
        }
        let nodes = self.nodes.without(node);
        Some(Self { version: self.version + 1, nodes, previous: self.nodes })
    }

    /// This configuration once all members of a generation with it were ONLINE in it: a majority of
    /// the nodes before know it then, and no other change of those nodes can be elected any more,
    /// so they need not be counted any longer.
    #[must_use]
    pub const fn settled(&self) -> Self {
        Self { version: self.version, nodes: self.nodes, previous: self.nodes }
    }

    /// Whether `set` is a majority of the configured nodes, old and new. Nodes that are no longer
    /// configured never count.
    pub const fn has_majority(&self, set: NodeSet) -> bool {
        let set = set.intersection(self.nodes);
        set.is_majority_of(self.nodes) && set.is_majority_of(self.previous)
    }

    /// Whether a voter that knows `self` may vote for a generation configured as `proposed`:
    /// never an older version, never another set under the same version, one node per change.
    pub const fn admits(&self, proposed: &Self) -> bool {
        let (ours, theirs) = (self.nodes.bits(), proposed.nodes.bits());
        if proposed.version == self.version {
            return ours == theirs;
        }
        proposed.version > self.version
            && (proposed.version > self.version + 1
                || (proposed.previous.bits() == ours && (ours ^ theirs).count_ones() == 1))
    }

    pub(crate) fn encode(&self, w: &mut Writer<'_>) {
        w.u32(self.version);
        w.u16(self.nodes.bits() as u16);
        w.u16(self.previous.bits() as u16);
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { version: r.u32()?, nodes: node_set(r)?, previous: node_set(r)? })
    }
}

/// A membership epoch. Between two generations is nothing: a transaction belongs to one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Generation {
    /// Its number; higher ones supersede lower ones.
    pub num: GenNum,
    /// Nodes whose PREPARE a commit needs (`M(g)`, TLA+ `gens[g].members`).
    pub members: NodeSet,
    /// The configured nodes it was elected among.
    pub configured: Configuration,
}

impl Generation {
    /// The generation with which a cluster starts: everyone is a member and ONLINE.
    pub const fn initial(nodes: NodeSet) -> Self {
        Self { num: GenNum(1), members: nodes, configured: Configuration::initial(nodes) }
    }

    pub(crate) fn encode(&self, w: &mut Writer<'_>) {
        w.u64(self.num.0);
        w.u16(self.members.bits() as u16);
        self.configured.encode(w);
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            num: GenNum(r.u64()?),
            members: node_set(r)?,
            configured: Configuration::decode(r)?,
        })
    }
}

/// An elected generation with its donors, fixed once by its one proposer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Elected {
    /// The generation.
    pub generation: Generation,
    /// Members that are ONLINE in it as soon as they switch (`D(g)`, TLA+ `gens[g].donors`).
    pub donors: NodeSet,
}

impl Elected {
    /// The generation with which a cluster starts.
    pub const fn initial(nodes: NodeSet) -> Self {
        Self { generation: Generation::initial(nodes), donors: nodes }
    }

    /// The one node that settles older transactions inside this generation (`P(g)`): its lowest donor.
    pub const fn proposer(&self) -> Option<NodeId> {
        self.donors.lowest()
    }

    pub(crate) fn encode(&self, w: &mut Writer<'_>) {
        self.generation.encode(w);
        w.u16(self.donors.bits() as u16);
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { generation: Generation::decode(r)?, donors: node_set(r)? })
    }
}

/// Donors by the one rule (design section 2, Voting; TLA+ `Elect`): the voters among the members
/// with the highest `last_online_in` *of all voters*. `None` when the generation cannot be elected.
///
/// `last_online_in` gives each voter's vote; a grant of the referee replaces both majorities.
pub fn elect(
    generation: Generation,
    voters: NodeSet,
    last_online_in: impl Fn(NodeId) -> GenNum,
    granted: bool,
) -> Option<Elected> {
    let quorum = granted
        || (generation.configured.has_majority(voters)
            && generation.configured.has_majority(generation.members));
    if !quorum || !generation.members.is_subset(generation.configured.nodes) {
        return None;
    }
    let voters = voters.intersection(generation.configured.nodes);
    let highest = voters.iter().map(&last_online_in).max()?;
    let donors: NodeSet = voters
        .intersection(generation.members)
        .iter()
        .filter(|&n| last_online_in(n) == highest)
        .collect();
    if donors.is_empty() || highest == GenNum(0) {
        None
    } else {
        Some(Elected { generation, donors })
    }
}

/// Reads a 16-bit node set.
pub(crate) fn node_set(r: &mut Reader<'_>) -> Result<NodeSet, DecodeError> {
    let before = r.error(DecodeErrorKind::Range("node set"));
    NodeSet::from_bits(u64::from(r.u16()?)).ok_or(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n(i: u8) -> NodeId {
        NodeId::new(i).unwrap()
    }

    fn set(nodes: &[u8]) -> NodeSet {
        nodes.iter().map(|&i| n(i)).collect()
    }

    fn generation(num: u64, members: &[u8]) -> Generation {
        let configured = Configuration::initial(NodeSet::first(3));
        Generation { num: GenNum(num), members: set(members), configured }
    }

    #[test]
    fn donors_are_the_members_that_were_online_last() {
        let last = |m: NodeId| GenNum(if m == n(3) { 1 } else { 4 });
        let elected = elect(generation(5, &[1, 2, 3]), set(&[1, 2, 3]), last, false).unwrap();
        assert_eq!(elected.donors, set(&[1, 2]));
        assert_eq!(elected.proposer(), Some(n(1)));
    }

    #[test]
    fn a_newer_voter_outside_the_members_forbids_the_generation() {
        let last = |m: NodeId| GenNum(if m == n(3) { 4 } else { 1 });
        assert_eq!(elect(generation(5, &[1, 2]), set(&[1, 2, 3]), last, false), None);
    }

    #[test]
    fn members_and_voters_need_a_majority_each() {
        let last = |_| GenNum(1);
        assert_eq!(elect(generation(5, &[1]), set(&[1, 2, 3]), last, false), None);
        assert_eq!(elect(generation(5, &[1, 2]), set(&[1]), last, false), None);
        assert!(elect(generation(5, &[1]), set(&[1]), last, true).is_some());
    }

    #[test]
    fn a_settled_configuration_counts_its_own_nodes() {
        let joint = Configuration::initial(set(&[1, 2])).adding(n(3)).unwrap();
        assert!(!joint.has_majority(set(&[1, 3])) && joint.settled().has_majority(set(&[1, 3])));
        assert!(joint.admits(&joint.settled()) && joint.settled().admits(&joint));
        assert!(!joint.settled().has_majority(set(&[3])));
        let next = joint.settled().dropping(n(1)).unwrap();
        assert!(joint.admits(&next) && !next.has_majority(set(&[3])));
    }

    #[test]
    fn two_changes_of_two_nodes_cannot_both_find_a_majority() {
        let base = Configuration::initial(set(&[1, 2]));
        let (x, y) = (base.adding(n(3)).unwrap(), base.adding(n(4)).unwrap());
        assert!(!x.has_majority(set(&[1, 3])) || !y.has_majority(set(&[2, 4])));
        assert!(!x.admits(&base) && base.admits(&x) && !x.admits(&y));
    }
}
