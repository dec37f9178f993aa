//! What shall happen in a history: drawn from the seed beforehand, so that a failing one can be
//! shrunk by leaving parts out.

use crate::rng::Rng;
use mtm_node::Bug;

/// A disturbance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The machine stops at once; what was not synced is lost.
    Crash(usize),
    /// It starts again.
    Restart(usize),
    /// Nothing from the first node reaches the second one.
    Cut(usize, usize),
    /// It does again.
    Mend(usize, usize),
    /// So many percent of the messages are lost from now on.
    Loss(u64),
    /// The disk of this node needs so many times as long.
    SlowDisk(usize, u64),
}

/// One client's transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transaction {
    /// When it begins.
    pub at_us: u64,
    /// Where.
    pub node: usize,
    /// The rows it writes, ascending.
    pub keys: Vec<u8>,
    /// How long it works before it commits.
    pub think_us: u64,
    /// When the client loses patience with the commit.
    pub patience_us: u64,
}

/// The kind of cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// So many data nodes.
    Nodes(usize),
    /// Two data nodes and a referee.
    Referee,
}

impl Shape {
    /// Number of data nodes.
    pub const fn nodes(self) -> usize {
        match self {
            Self::Nodes(n) => n,
            Self::Referee => 2,
        }
    }
}

/// A whole history's script.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Everything not in the script (delays, losses) is drawn from it.
    pub seed: u64,
    /// The cluster.
    pub shape: Shape,
    /// A rule broken on purpose.
    pub bug: Option<Bug>,
    /// Disturbances, by time.
    pub faults: Vec<(u64, Fault)>,
    /// Clients, by time.
    pub transactions: Vec<Transaction>,
    /// When disturbances end and healing begins.
    pub heal_at_us: u64,
}

const SECOND: u64 = 1_000_000;

impl Plan {
    /// The script of this seed.
    pub fn new(seed: u64, shape: Shape) -> Self {
        let mut rng = Rng::new(seed);
        let heal_at_us = rng.between(3, 12) * SECOND;
        let faults = faults(&mut rng, shape.nodes(), heal_at_us);
        let transactions = transactions(&mut rng, shape.nodes(), heal_at_us);
        Self { seed, shape, bug: None, faults, transactions, heal_at_us }
    }
}

fn faults(rng: &mut Rng, nodes: usize, end: u64) -> Vec<(u64, Fault)> {
    let mut faults = Vec::new();
    let n = nodes as u64;
    // Some histories are quiet, most are not.
    let count = if rng.chance(10) { 0 } else { rng.between(1, 8) };
    for _ in 0..count {
        let at = rng.between(100_000, end);
        let node = rng.below(n) as usize;
        let later = at + if rng.chance(50) { rng.between(1_000, 400_000) } else { rng.between(400_000, 4_000_000) };
        match rng.below(10) {
            0..4 => {
                faults.push((at, Fault::Crash(node)));
                faults.push((later, Fault::Restart(node)));
            }
            4 => {
                for node in 0..nodes {
                    faults.push((at + rng.below(30_000), Fault::Crash(node)));
                    faults.push((later + rng.below(500_000), Fault::Restart(node)));
                }
            }
            5..7 => {
                // A node is cut off from some or all others, in one direction or both.
                let both = rng.chance(60);
                for peer in (0..nodes).filter(|&p| p != node) {
                    if rng.chance(70) {
                        faults.push((at, Fault::Cut(node, peer)));
                        faults.push((later, Fault::Mend(node, peer)));
                        if both {
                            faults.push((at, Fault::Cut(peer, node)));
                            faults.push((later, Fault::Mend(peer, node)));
                        }
                    }
                }
            }
            7 => {
                faults.push((at, Fault::Loss(rng.between(1, 40))));
                faults.push((later, Fault::Loss(0)));
            }
            _ => {
                faults.push((at, Fault::SlowDisk(node, rng.between(5, 100))));
                faults.push((later, Fault::SlowDisk(node, 1)));
            }
        }
    }
    faults.sort_by_key(|(at, _)| *at);
    faults
}

fn transactions(rng: &mut Rng, nodes: usize, end: u64) -> Vec<Transaction> {
    let count = rng.between(10, 120);
    let rows = rng.between(2, 12);
    // Bursts put many transactions next to a fault or an election.
    let bursts: Vec<u64> = (0..rng.between(1, 5)).map(|_| rng.below(end)).collect();
    let mut all: Vec<Transaction> = (0..count)
        .map(|_| {
            let near = bursts[rng.below(bursts.len() as u64) as usize];
            let at_us = if rng.chance(50) { rng.below(end) } else { near + rng.below(100_000) };
            let mut keys: Vec<u8> = (0..rng.between(1, 3)).map(|_| rng.below(rows) as u8).collect();
            keys.sort_unstable();
            keys.dedup();
            Transaction {
                at_us,
                node: rng.below(nodes as u64) as usize,
                keys,
                think_us: rng.below(3_000),
                patience_us: if rng.chance(20) { rng.between(100, 5_000) } else { rng.between(50_000, 3_000_000) },
            }
        })
        .collect();
    all.sort_by_key(|t| t.at_us);
    all
}
