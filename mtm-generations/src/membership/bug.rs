//! Rules of the election that can be broken on purpose.

/// A broken rule. Without the feature `planted-bugs` none can be switched on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Bug {
    /// A node votes for two proposals with one number.
    VoteTwice,
    /// Every member that voted is a donor, whenever it was ONLINE last.
    AnyDonor,
    /// Donors are compared with members only, not with all voters (specs/adr/0102).
    HighestOfMembers,
    /// A vote does not keep a node from becoming ONLINE in a lower generation.
    OnlineDespiteVote,
    /// A node moves into a generation without a peer that may still rely on it.
    LeaseIgnored,
    /// What was lent is relied on although a generation without this node is known.
    LeaseKept,
    /// A restart does not know that something may be lent.
    LeaseForgotten,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::VoteTwice,
        Self::AnyDonor,
        Self::HighestOfMembers,
        Self::OnlineDespiteVote,
        Self::LeaseIgnored,
        Self::LeaseKept,
        Self::LeaseForgotten,
    ];
}
