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
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 4] =
        [Self::VoteTwice, Self::AnyDonor, Self::HighestOfMembers, Self::OnlineDespiteVote];
}
