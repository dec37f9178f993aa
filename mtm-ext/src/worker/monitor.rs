//! mtm-monitor: starts the other workers, and starts them again when they end.

use crate::pg::bgworker::{self, Handle, Kind};
use crate::pg::{pipe, proc, shmem};
use core::cell::RefCell;
use core::sync::atomic::Ordering;
use mtm_core::{Instant, NodeId};
use std::collections::BTreeMap;

/// Pause before a worker that ended is started again.
const RESTART_US: u64 = 500_000;

struct Child {
    handle: Option<Handle>,
    not_before: Instant,
}

/// How often to look whether all workers still run.
const LOOK_US: u64 = 250_000;

type Children = BTreeMap<usize, (Kind, Child)>;

thread_local! {
    static CHILDREN: RefCell<Children> = const { RefCell::new(Children::new()) };
}

/// Runs until the server stops.
pub fn run() {
    pipe::with_exit_hook(watch, end_children);
}

fn watch() {
    bgworker::connect();
    shmem::header().monitor.store(proc::my_procno(), Ordering::Release);
    loop {
        bgworker::handle_signals();
        let wait_us = CHILDREN.with_borrow_mut(supervise);
        // The postmaster tells only processes with a database of their workers' ends.
        proc::wait(None, Some(wait_us.unwrap_or(LOOK_US).min(LOOK_US)));
    }
}

/// The next monitor starts all of them again; two senders would get in each other's way.
fn end_children() {
    CHILDREN.with_borrow(|children| {
        for (_, child) in children.values() {
            if let Some(handle) = &child.handle {
                handle.terminate();
            }
        }
    });
}

fn wanted() -> Vec<Kind> {
    let header = shmem::header();
    if header.me().is_none() {
        return Vec::new();
    }
    let receivers = header.peers_set().iter().map(NodeId::get).map(Kind::Receiver);
    let mut all = vec![Kind::Campaigner, Kind::Resolver, Kind::Sender, Kind::Health];
    if header.started.load(Ordering::Acquire) != 0 {
        all.extend(receivers);
    }
    all
}

/// Starts what is missing; returns when to look again, if that is before the next event.
fn supervise(children: &mut Children) -> Option<u64> {
    let now = proc::now();
    let wanted = wanted();
    for kind in &wanted {
        children
            .entry(kind.number())
            .or_insert_with(|| (*kind, Child { handle: None, not_before: Instant(0) }));
    }
    let mut wait_us = None;
    for (kind, child) in children.values_mut() {
        if child.handle.as_ref().is_some_and(Handle::has_ended) {
            child.handle = None;
            child.not_before = now.plus_us(RESTART_US);
        }
        if !wanted.contains(kind) {
            // The node was taken out of its cluster.
            child.handle.iter().for_each(Handle::terminate);
            continue;
        }
        if child.handle.is_some() {
            continue;
        }
        if child.not_before > now {
            wait_us = Some(wait_us.unwrap_or(u64::MAX).min(child.not_before.since(now)));
            continue;
        }
        child.handle = bgworker::start(*kind);
        if child.handle.is_none() {
            child.not_before = now.plus_us(10 * RESTART_US);
            wait_us = Some(RESTART_US);
            pgrx::warning!("could not start a worker: max_worker_processes is too low");
        }
    }
    wait_us
}
