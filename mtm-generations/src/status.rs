//! What a node is, in the words of `mtm.status()`.

use core::fmt;

/// A node's place in its current generation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum StatusInGeneration {
    /// Not a member.
    Dead,
    /// A member that does not hold everything yet.
    Recovery,
    /// A member that holds everything: it may prepare and announce.
    Online,
}

/// A node's status as users see it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NodeStatus {
    /// ONLINE, all members in its clique.
    Online,
    /// ONLINE, but a member is out of reach: writes wait for a new generation.
    Isolated,
    /// A member still applying what older generations committed.
    Recovery,
    /// Not a member, receiving.
    Catchup,
    /// Not receiving.
    Disabled,
}

/// Why a node has its status, and what would change it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reason {
    /// Nothing is wrong.
    Healthy,
    /// Some member is not in the largest clique; a new generation without it will be elected.
    MemberUnreachable,
    /// This node is not in the largest clique, or the clique is no majority.
    NoMajority,
    /// Members recover from a donor first.
    Recovering,
    /// It voted for a later generation and may not become ONLINE in this one; it campaigns.
    PromisedLater,
    /// It must catch up before it may campaign to be included.
    CatchingUp,
    /// Caught up; it campaigns to be included.
    Campaigning,
    /// Announced transactions from before the restart are not settled yet.
    Fenced,
    /// It left by itself: something local is broken.
    Withdrawn,
    /// It was dropped from the cluster.
    Dropped,
}

impl fmt::Display for NodeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Online => "online",
            Self::Isolated => "isolated",
            Self::Recovery => "recovery",
            Self::Catchup => "catchup",
            Self::Disabled => "disabled",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Healthy => "all members are connected",
            Self::MemberUnreachable => {
                "a member is unreachable; a generation without it is being elected"
            }
            Self::NoMajority => "no majority of the configured nodes is connected to this node",
            Self::Recovering => "receiving what other members committed without this node",
            Self::PromisedLater => {
                "this node voted for a later generation; it campaigns for a new one"
            }
            Self::CatchingUp => "not a member; catching up before asking to be included",
            Self::Campaigning => "not a member; asking to be included",
            Self::Fenced => "transactions announced before the restart are being settled",
            Self::Withdrawn => "this node left the cluster by itself because of a local failure",
            Self::Dropped => "this node was dropped from the cluster",
        })
    }
}
