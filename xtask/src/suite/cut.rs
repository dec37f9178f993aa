//! A network between nodes that swallows everything, made of processes that stand still: those at
//! which what a node sends arrives. What is on its way arrives late, or never.

use super::arena::Arena;
use crate::server::DATABASE;
use crate::wait::until;
use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;

/// How long nodes may take to be connected to each other.
const CONNECTED_WITHIN: Duration = Duration::from_secs(30);

/// Ways between nodes that are cut while this lives, unless they are healed.
#[derive(Debug)]
pub(super) struct Cut {
    processes: Vec<Pid>,
}

impl Cut {
    /// Cuts the ways between a node and each of the others, in both directions.
    ///
    /// # Errors
    /// When a node does not say who serves its peers.
    pub(super) fn between(a: &Arena, node: usize, others: &[usize]) -> Result<Self> {
        // Who has lost a connection connects again; all are looked up at one time.
        let processes = until("the nodes serve each other", CONNECTED_WITHIN, || {
            let mut processes = Vec::new();
            for other in others {
                processes.extend(serving(a, node, *other)?);
                processes.extend(serving(a, *other, node)?);
            }
            Ok(Some(processes))
        })?;
        let cut = Self { processes };
        for process in &cut.processes {
            kill(*process, Signal::SIGSTOP)?;
        }
        Ok(cut)
    }

    /// What was on its way arrives now.
    ///
    /// # Errors
    /// When a process is gone.
    pub(super) fn heal(self) -> Result<()> {
        // Whatever the first error is, `drop` lets all others go on.
        self.processes.iter().try_for_each(|process| Ok(kill(*process, Signal::SIGCONT)?))
    }

    /// What was on its way is lost, and the nodes have to connect anew.
    ///
    /// # Errors
    /// When a process is gone.
    pub(super) fn reset(self) -> Result<()> {
        for process in &self.processes {
            kill(*process, Signal::SIGTERM)?;
        }
        self.heal()
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        for process in &self.processes {
            let _ = kill(*process, Signal::SIGCONT);
        }
    }
}

/// Processes of a node that take what a peer sends, or send it what it asks for.
fn serving(a: &Arena, node: usize, peer: usize) -> Result<Vec<Pid>> {
    let session = a.cluster.node(node)?.connect_as(DATABASE, "mtm_admin")?;
    let rows = session.run(&format!(
        "SELECT pid FROM pg_stat_activity WHERE query LIKE 'CALL mtm.%({peer},%'
            OR query LIKE 'START_REPLICATION SLOT \"mtm\\_slot\\_{peer}\"%'"
    ))?;
    let pids = rows.into_iter().flatten().flatten().map(|pid| Ok(Pid::from_raw(pid.parse()?)));
    let pids = pids.collect::<Result<Vec<_>>>()?;
    ensure!(pids.len() >= 2, "node {node} serves node {peer} with {} processes", pids.len());
    Ok(pids)
}
