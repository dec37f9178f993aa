//! What this session is to the cluster.

use crate::pg::shmem;
pub(crate) use crate::cluster::replicates;
pub(crate) use crate::pg::xact::mark_replicable;
use mtm_core::sequence::Share;

/// Which values of every sequence are this node's; `None` before there is a cluster.
///
/// There are as many classes as the highest number of a configured node.
pub(crate) fn share() -> Option<Share> {
    let header = shmem::header();
    let highest = header.configured_nodes().iter().last()?;
    Share::new(header.me()?, highest.get())
}
