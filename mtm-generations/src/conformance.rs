//! A suite for the storage that keeps your nodes' [`Record`]s.
//!
//! [`check`] first asks [`mtm_core::storage::check`], then lets whole clusters elect generations
//! over your storages: messages are lost, doubled and reordered, nodes crash before, while and
//! after their records are written, and all of it follows from seeds. Whatever the storage does,
//! nobody may forget a vote or a generation, no number may be elected with two sets of donors, and
//! once the faults end everyone must be ONLINE in one generation.
//!
//! ```
//! use mtm_core::storage::MemoryStorage;
//! use mtm_generations::conformance::{Plan, check};
//!
//! let report = check(|_seed, _node| MemoryStorage::new(), &Plan { seeds: 0..5, ..Plan::default() })?;
//! assert!(report.elected > 0 && report.lost_writes > 0);
//! # Ok::<(), mtm_generations::conformance::Violation>(())
//! ```

mod cluster;

use cluster::Cluster;
use core::ops::Range;
use mtm_core::storage::{Fault, Storage};
use mtm_core::{GenNum, NodeId, NodeSet, Rng};

#[cfg(doc)]
use crate::Record;

/// How much to try.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Plan {
    /// One seed is one history.
    pub seeds: Range<u64>,
    /// Nodes in each.
    pub nodes: u8,
    /// Events before the faults end.
    pub events: u32,
}

impl Default for Plan {
    fn default() -> Self {
        Self { seeds: 0..50, nodes: 3, events: 4_000 }
    }
}

/// What really happened: a check in which nothing happens shows nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Report {
    /// Histories run.
    pub histories: u64,
    /// Generations elected.
    pub elected: u64,
    /// Crashes of a node.
    pub crashes: u64,
    /// Records that a crash took before anything of them was written.
    pub lost_writes: u64,
    /// Records that were being written when the node crashed.
    pub interrupted_writes: u64,
    /// Records written.
    pub writes: u64,
    /// Messages delivered.
    pub delivered: u64,
    /// Messages lost.
    pub lost: u64,
    /// Messages that came once more.
    pub doubled: u64,
}

/// What went wrong, in which history.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// The storage by itself does not do what it must.
    #[error("node {node}: {fault}")]
    Storage {
        /// Whose storage.
        node: NodeId,
        /// What it did.
        fault: Fault,
    },
    /// The storage failed in the middle of a history.
    #[error("seed {seed}: the storage of node {node} failed: {error}")]
    Failed {
        /// Which history.
        seed: u64,
        /// Whose storage.
        node: NodeId,
        /// The storage's own error.
        error: String,
    },
    /// What was read after a restart is no record of that node.
    #[error("seed {seed}: node {node} cannot read its record: {error}")]
    Unreadable {
        /// Which history.
        seed: u64,
        /// Whose storage.
        node: NodeId,
        /// Why not.
        error: crate::RecordError,
    },
    /// The record is older than one that was reported as written.
    #[error("seed {seed}: node {node} has forgotten a vote or a generation")]
    Forgot {
        /// Which history.
        seed: u64,
        /// Whose storage.
        node: NodeId,
    },
    /// A node's votes for one number went to two nodes.
    #[error("seed {seed}: node {node} voted twice in generation {num}")]
    TwoVotes {
        /// Which history.
        seed: u64,
        /// Who voted.
        node: NodeId,
        /// In which generation.
        num: GenNum,
    },
    /// One number was elected with different members or donors.
    #[error("seed {seed}: generation {num} was elected twice")]
    TwoGenerations {
        /// Which history.
        seed: u64,
        /// Which generation.
        num: GenNum,
    },
    /// The faults have ended and not everyone is ONLINE in one generation.
    #[error("seed {seed}: without faults, the cluster does not come together")]
    Stuck {
        /// Which history.
        seed: u64,
    },
    /// Nothing worth checking happened.
    #[error("the plan is too small: {0:?}")]
    TooLittle(Report),
}

/// Runs the suite over storages that `open` makes, new and empty for each seed and node.
///
/// # Errors
/// When a storage, or the machine, breaks a promise.
pub fn check<S: Storage>(
    mut open: impl FnMut(u64, NodeId) -> S,
    plan: &Plan,
) -> Result<Report, Violation> {
    let mut report = Report::default();
    let all = NodeSet::first(plan.nodes);
    for node in all {
        mtm_core::storage::check(&mut open(u64::MAX, node), u64::from(node.get()))
            .map_err(|fault| Violation::Storage { node, fault })?;
    }
    for seed in plan.seeds.clone() {
        let storages = all.iter().map(|node| open(seed, node)).collect();
        let mut cluster = Cluster::new(seed, storages, &mut report)?;
        let mut rng = Rng::new(seed ^ 0x0067_656e_7365_6564);
        for _ in 0..plan.events {
            cluster.event(&mut rng)?;
        }
        cluster.heal(&mut rng)?;
        report.histories += 1;
    }
    let enough = report.lost_writes > 0 && report.interrupted_writes > 0 && report.elected > 0;
    if enough { Ok(report) } else { Err(Violation::TooLittle(report)) }
}
