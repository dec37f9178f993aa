//! A suite for the storage that keeps your acceptors' records.
//!
//! [`check`] first asks [`mtm_core::storage::check`], then runs whole instances over your
//! storages: messages are lost, doubled and reordered, nodes crash before, while and after their
//! records are written, and all of it follows from seeds. Whatever the storage does, no two nodes
//! may decide differently, no node may forget what it said, and once the faults end everyone must
//! know.
//!
//! ```
//! use mtm_core::storage::MemoryStorage;
//! use mtm_paxos::conformance::{Plan, check};
//!
//! let report = check(|_seed, _node| MemoryStorage::new(), &Plan { seeds: 0..20, ..Plan::default() })?;
//! assert!(report.lost_writes > 0 && report.interrupted_writes > 0);
//! # Ok::<(), mtm_paxos::conformance::Violation>(())
//! ```

mod cluster;

use cluster::Cluster;
use core::ops::Range;
use mtm_core::storage::{Fault, Storage};
use mtm_core::{NodeId, Rng};

/// How much to try.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Plan {
    /// One seed is one history.
    pub seeds: Range<u64>,
    /// Nodes in each.
    pub nodes: u8,
    /// Events before the faults end.
    pub events: u32,
    /// Whether node 1 owns the initial ballot.
    pub initial_proposer: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self { seeds: 0..200, nodes: 3, events: 300, initial_proposer: true }
    }
}

/// What really happened: a check in which nothing happens shows nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Report {
    /// Histories run.
    pub histories: u64,
    /// Histories in which someone knew the decision before the faults ended.
    pub decided_under_faults: u64,
    /// Crashes of a node.
    pub crashes: u64,
    /// Records that a crash took before anything of them was written.
    pub lost_writes: u64,
    /// Records that were being written when the node crashed.
    pub interrupted_writes: u64,
    /// Records written.
    pub writes: u64,
    /// Messages delivered, lost and doubled.
    pub delivered: u64,
    /// Messages lost.
    pub lost: u64,
    /// Messages that came once more.
    pub doubled: u64,
    /// Ballots above the first of a history.
    pub ballots: u64,
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
    /// A message had left that the record does not cover any more.
    #[error("seed {seed}: node {node} has forgotten what it promised or accepted")]
    Forgot {
        /// Which history.
        seed: u64,
        /// Whose storage.
        node: NodeId,
    },
    /// Two nodes decided differently, or something that nobody proposed.
    #[error("seed {seed}: {first} is decided and node {node} decides {second}")]
    Disagreement {
        /// Which history.
        seed: u64,
        /// Who decided last.
        node: NodeId,
        /// What was decided before.
        first: u64,
        /// What it decides.
        second: u64,
    },
    /// The faults have ended and someone still does not know.
    #[error("seed {seed}: without faults, not everyone learned the decision")]
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
    for node in mtm_core::NodeSet::first(plan.nodes) {
        let mut storage = open(u64::MAX, node);
        mtm_core::storage::check(&mut storage, u64::from(node.get()))
            .map_err(|fault| Violation::Storage { node, fault })?;
    }
    for seed in plan.seeds.clone() {
        let storages = mtm_core::NodeSet::first(plan.nodes).iter().map(|n| open(seed, n)).collect();
        let mut cluster = Cluster::new(seed, plan.initial_proposer, storages, &mut report)?;
        let mut rng = Rng::new(seed ^ 0x0070_6178_6f73);
        for _ in 0..plan.events {
            cluster.event(&mut rng)?;
        }
        cluster.heal(&mut rng)?;
        report.histories += 1;
    }
    let enough = report.lost_writes > 0 && report.interrupted_writes > 0 && report.lost > 0;
    if enough { Ok(report) } else { Err(Violation::TooLittle(report)) }
}
