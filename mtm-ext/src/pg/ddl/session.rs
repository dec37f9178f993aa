//! What this session is to the cluster.

use crate::pg::shmem;
pub(crate) use crate::pg::xact::mark_replicable;
use mtm_core::sequence::Share;

/// Whether what this session does is to be captured: not what every node does by itself.
pub(crate) fn replicates() -> bool {
    !super::remote::running() && crate::cluster::replicates()
}

/// Which values of every sequence are this node's; `None` before there is a cluster.
///
/// There are as many classes as the highest number of a configured node.
pub(crate) fn share() -> Option<Share> {
    let header = shmem::header();
    let highest = header.configured_nodes().iter().last()?;
    Share::new(header.me()?, highest.get())
}
