//! The log that is kept for absent nodes: warned about early, and bounded if so set.
//!
//! A node that is away keeps the others' log from being recycled, through its slot on each of them.
//! At the limit an absent node's slot is dropped: a full disk would stop those who work. A member,
//! or a node that is receiving, is never cut off. The slot `mtm_self`, which keeps what this node's
//! own restart reads, has no limit: it moves every few seconds.

use crate::pg::{proc, shmem, sqlrun};
use crate::{cluster, guc, machine, report};
use mtm_core::{Instant, NodeId, NodeSet};
use pgrx::spi::Spi;
use std::collections::BTreeMap;

/// How often to look.
const LOOK_US: u64 = 1_000_000;
/// Parts of the limit at which to warn, in percent.
const WARNINGS: [u64; 3] = [50, 80, 100];
const MB: u64 = 1 << 20;

/// What was said about each node.
pub struct Watch {
    next: Instant,
    warned: BTreeMap<NodeId, u64>,
}

/// A slot of a peer.
struct Kept {
    node: NodeId,
    active: bool,
    bytes: u64,
}

impl Watch {
    /// Nothing was said yet.
    pub const fn new() -> Self {
        Self { next: Instant(0), warned: BTreeMap::new() }
    }

    /// Compares what is kept with the limit.
    pub fn look(&mut self, me: NodeId) {
        let limit_mb = u64::try_from(guc::MAX_RETAINED_WAL.get()).ok();
        let now = proc::now();
        let Some(limit_mb) = limit_mb.filter(|_| now >= self.next) else { return };
        self.next = now.plus_us(LOOK_US);
        for kept in kept() {
            if kept.node != me {
                self.judge(&kept, limit_mb * MB);
            }
        }
    }

    fn judge(&mut self, kept: &Kept, limit: u64) {
        let level = WARNINGS.into_iter().filter(|part| kept.bytes >= limit / 100 * part).max();
        let level = level.unwrap_or(0);
        let before = self.warned.insert(kept.node, level).unwrap_or(0);
        if level >= 100 && may_cut_off(kept) {
            self.warned.remove(&kept.node);
            return cut_off(kept, limit);
        }
        // One that receives is only a little behind in most cases; PostgreSQL lets go of log late.
        if level > before && (level >= 100 || !kept.active) {
            let what = if kept.active { "is behind" } else { "is absent" };
            report::warning(
                format!(
                    "node {} {what}: {} MB of write-ahead log are kept for it, {level} % of \
                     multimaster.max_retained_wal ({} MB)",
                    kept.node,
                    kept.bytes / MB,
                    limit / MB
                ),
                "",
                "Start that node, or raise the limit. At the limit an absent node is cut off and \
                 has to be made anew.",
            );
        }
    }
}

/// Whether the node is neither a member nor heard nor receiving.
fn may_cut_off(kept: &Kept) -> bool {
    let members = machine::look(|node| {
        let membership = node.membership();
        let wanted = membership.wanted().map_or(NodeSet::EMPTY, |w| w.generation.members);
        membership.current().generation.members.union(wanted)
    });
    let member = members.is_none_or(|members| members.contains(kept.node));
    !kept.active && !member && !cluster::is_linked(kept.node)
}

fn cut_off(kept: &Kept, limit: u64) {
    let name = format!("mtm_slot_{}", kept.node);
    let dropped = crate::pg::bgworker::catching(|| {
        sqlrun::in_transaction(|| {
            Spi::connect(|client| {
                let sql = "SELECT pg_catalog.pg_drop_replication_slot($1::text::pg_catalog.name)";
                client.select(sql, None, &[name.as_str().into()]).map(drop)
            })
        })
    });
    if let Err(caught) = dropped {
        // It has come back at this very moment.
        crate::pg::twophase::abort();
        pgrx::log!("multimaster: could not drop slot \"{name}\": {}", caught.message);
        return;
    }
    report::warning(
        format!(
            "node {} is cut off: {} MB of write-ahead log were kept for it, and \
             multimaster.max_retained_wal is {} MB",
            kept.node,
            kept.bytes / MB,
            limit / MB
        ),
        "",
        "It cannot catch up any more and has to be made anew from another node.",
    );
}

/// What the slots of all peers keep. Slots that keep nothing any more are left out.
fn kept() -> Vec<Kept> {
    let configured = shmem::header().configured_nodes();
    sqlrun::in_transaction(|| {
        Spi::connect(|client| {
            let sql = "SELECT pg_catalog.substr(slot_name::text, 10)::int4, active, \
                    pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_insert_lsn(), \
                    restart_lsn)::int8 \
                FROM pg_catalog.pg_replication_slots \
                WHERE plugin = 'multimaster' AND slot_name ~ '^mtm_slot_[0-9]+$' \
                AND restart_lsn IS NOT NULL";
            let rows = client.select(sql, None, &[]).expect("a plain query");
            rows.filter_map(|row| {
                let id = row.get::<i32>(1).ok()??;
                let node = NodeId::new(u8::try_from(id).ok()?)?;
                let active = row.get::<bool>(2).ok()??;
                let bytes = u64::try_from(row.get::<i64>(3).ok()??).unwrap_or(0);
                configured.contains(node).then_some(Kept { node, active, bytes })
            })
            .collect()
        })
    })
}
