//! What is under way: `mtm.undecided` and `mtm.recovery`.

use super::view::numbers;
use crate::pg::{proc, shmem};
use core::sync::atomic::Ordering;
use mtm_core::{Gid, NodeId, NodeSet};
use mtm_generations::Elected;
use mtm_node::{Entry, Role, Waits};
use pgrx::prelude::*;

/// Who must do something before this transaction can be finished here.
fn awaited(gid: &Gid, entry: &Entry, waits: Waits, me: NodeId, current: &Elected) -> NodeSet {
    let proposer = || current.proposer().map_or(NodeSet::EMPTY, NodeSet::only);
    let settlement = entry.settlement.filter(|settlement| settlement.decree().is_none());
    match (waits, &entry.role) {
        (Waits::Votes | Waits::AbortAcceptances, Role::Own(own)) => own.missing(),
        (Waits::Outcome | Waits::Settlement, _) => match settlement {
            Some(s) if s.missing_reports().is_empty() => s.missing_acceptances(),
            Some(s) => s.missing_reports(),
            None if gid.generation == current.generation.num => NodeSet::only(gid.origin),
            None => proposer(),
        },
        _ => NodeSet::only(me),
    }
}

/// What is not finished on this node, and what it waits for.
#[pg_extern]
#[allow(clippy::type_complexity, reason = "pgrx wants the columns spelled out")]
fn unfinished() -> TableIterator<
    'static,
    (
        name!(gid, String),
        name!(origin, i32),
        name!(gen_num, i64),
        name!(waits_for, String),
        name!(waits_for_nodes, Vec<i32>),
        name!(pid, Option<i32>),
    ),
> {
    super::require_preload();
    let found = shmem::node(|state| {
        let Some(node) = state.node() else { return Vec::new() };
        let (me, current) = (node.membership().node(), *node.membership().current());
        let all: Vec<(Gid, Waits, NodeSet)> = node
            .undecided()
            .filter_map(|(gid, waits)| {
                let entry = node.transaction(&gid)?;
                Some((gid, waits, awaited(&gid, &entry, waits, me, &current)))
            })
            .collect();
        all.into_iter()
            .map(|(gid, waits, nodes)| {
                let backend = state.backend_of(&gid).map(|(procno, _)| procno);
                let worker = || state.notes.get_mut(&gid).map(|note| note.worker);
                let procno = backend.or_else(worker).unwrap_or(proc::NO_PROC);
                (gid, waits, nodes, procno)
            })
            .collect()
    });
    let rows: Vec<_> = found
        .into_iter()
        .map(|(gid, waits, nodes, procno)| {
            let pid = proc::pid_of(procno);
            (
                gid.to_string(),
                i32::from(gid.origin.get()),
                gid.generation.0 as i64,
                waits.to_string(),
                numbers(nodes),
                (pid != 0).then_some(pid),
            )
        })
        .collect();
    TableIterator::new(rows)
}

/// How far this node is in catching up; no row when it does not have to.
#[pg_extern]
#[allow(clippy::type_complexity, reason = "pgrx wants the columns spelled out")]
fn recovery_progress() -> TableIterator<
    'static,
    (
        name!(from_node, i32),
        name!(gen_num, i64),
        name!(receiver_pid, Option<i32>),
        name!(replayed, i64),
        name!(log_end, Option<i64>),
        name!(bytes_replayed, i64),
        name!(seconds, f64),
    ),
> {
    super::require_preload();
    let header = shmem::header();
    let from = u8::try_from(header.replay_from.load(Ordering::Acquire)).ok().and_then(NodeId::new);
    let Some(from) = from else { return TableIterator::new(Vec::new()) };
    let peer = shmem::peer(from);
    let begun = header.replay_begun_lsn.load(Ordering::Acquire);
    let replayed = peer.received_lsn.load(Ordering::Acquire);
    let end = peer.log_end.load(Ordering::Acquire);
    let begun_us = header.replay_begun_us.load(Ordering::Acquire);
    let receiver = peer.receiver_pid.load(Ordering::Acquire);
    let replaying = begun_us != 0 && peer.replaying.load(Ordering::Acquire) != 0;
    let elapsed_us = if replaying { proc::now().0.saturating_sub(begun_us) } else { 0 };
    let row = (
        i32::from(from.get()),
        header.replay_generation.load(Ordering::Acquire) as i64,
        (receiver != 0).then_some(receiver),
        replayed as i64,
        (end != 0).then_some(end.max(replayed) as i64),
        if replaying { replayed.saturating_sub(begun) as i64 } else { 0 },
        elapsed_us as f64 / 1e6,
    );
    TableIterator::new(vec![row])
}
