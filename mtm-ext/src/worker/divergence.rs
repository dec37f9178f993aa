//! Finding out that this node's rows differ from the others'.
//!
//! A row that an update cannot find, or that is in an insert's way, is mostly one that another
//! transaction is just changing: a retry succeeds. When transactions are refused for one and the
//! same row again and again, the other members are asked. Only if all of them agree with each other
//! and not with this node, over several looks, is it this node that differs: then it leaves, and
//! says which row it is.
//!
//! A conflict in flight cannot look like that. Nobody can change the row while this node refuses,
//! so in a lasting difference the others' row stands still; and before this node's own row is
//! looked at, everything that was prepared here when the others were asked is finished.

use crate::health::{self, Cause, Suspect};
use crate::pg::conn::{Conn, ConnError};
use crate::pg::{bgworker, proc, shmem, sqlrun};
use crate::{cluster, durable, machine};
use mtm_core::{GenNum, NodeId, NodeSet};
use mtm_generations::StatusInGeneration;
use pgrx::spi::Spi;
use std::collections::BTreeSet;

/// Refusals of different transactions for one row before anybody is asked.
const REFUSALS: u32 = 4;
/// Looks that must all say the same.
const LOOKS: u32 = 3;
/// Between two of them.
const BETWEEN_US: u64 = 300_000;
/// How long to wait for what is prepared here.
const PATIENCE_US: u64 = 5_000_000;

/// Looks into the suspicious rows, if there are any.
pub fn look() {
    for suspect in take_ripe() {
        if let Some(how) = differs(&suspect) {
            leave(&suspect, &how);
            return;
        }
    }
}

/// Those with enough refusals; they begin anew.
fn take_ripe() -> Vec<Suspect> {
    shmem::health(|health| {
        let ripe = |place: &mut Option<Suspect>| {
            if place.is_some_and(|s| s.refused >= REFUSALS) { place.take() } else { None }
        };
        health.suspects.iter_mut().filter_map(ripe).collect()
    })
}

fn leave(suspect: &Suspect, how: &str) {
    let why = format!(
        "its data differ from the other nodes': {} although {how}; repair the row here under \
         application_name mtm_admin, then run SELECT mtm.return_to_cluster() here",
        suspect.text.as_str()
    );
    durable::stay_out("differs", &why);
    health::set(Cause::Differs, &why);
}

/// How the others' row differs from this node's for good, if it does.
fn differs(suspect: &Suspect) -> Option<String> {
    let mut before = None;
    for _ in 0..LOOKS {
        let seen = compare(suspect)?;
        if before.as_ref().is_some_and(|before| *before != seen) {
            return None;
        }
        before = Some(seen);
        pause(BETWEEN_US);
    }
    let (_, theirs, nodes) = before?;
    let nodes: Vec<String> = nodes.iter().map(|node| node.to_string()).collect();
    let have = if theirs.is_empty() { "do not have it" } else { "have it" };
    Some(format!("nodes {} {have}", nodes.join(" and ")))
}

fn pause(us: u64) {
    let until = proc::now().plus_us(us);
    while proc::now() < until {
        proc::wait(None, Some(until.since(proc::now())));
        bgworker::handle_signals();
    }
}

/// One look. What all others have, if they agree with each other and not with this node.
fn compare(suspect: &Suspect) -> Option<(GenNum, String, NodeSet)> {
    let (num, others) = others()?;
    let theirs = ask_all(others, suspect.query.as_str())?;
    let prepared = prepared_here();
    let start = proc::now();
    while !prepared.is_disjoint(&prepared_here()) {
        if proc::now().since(start) > PATIENCE_US {
            return None;
        }
        pause(20_000);
    }
    let mine = ask_here(suspect.query.as_str())?;
    let again = ask_all(others, suspect.query.as_str())?;
    let stable = theirs == again && self::others() == Some((num, others));
    (stable && mine != theirs && (mine.is_empty() || theirs.is_empty()))
        .then_some((num, theirs, others))
}

/// The other members, if this node and all of them work, and are enough to judge.
fn others() -> Option<(GenNum, NodeSet)> {
    let (num, status, members, online) = machine::look(|node| {
        let membership = node.membership();
        let generation = membership.current().generation;
        let status = membership.status_in_generation();
        (generation.num, status, generation.members, membership.members_online())
    })?;
    let me = shmem::header().me()?;
    let all = status == StatusInGeneration::Online && members == online;
    (all && members.len() >= 3).then(|| (num, members.without(me)))
}

/// What all these nodes answer, if they agree.
fn ask_all(nodes: NodeSet, query: &str) -> Option<String> {
    let mut answers = nodes.iter().map(|node| ask(node, query).ok());
    let first = answers.next()??;
    answers.all(|answer| answer.as_ref() == Some(&first)).then_some(first)
}

fn ask(node: NodeId, query: &str) -> Result<String, ConnError> {
    let extra = [("application_name", cluster::ADMIN), ("options", "-c statement_timeout=5s")];
    let mut conn = Conn::connect(&shmem::conninfo(node), &extra, 5)?;
    let rows = conn.query(query, &[])?;
    Ok(rows.into_iter().flatten().flatten().next().unwrap_or_default())
}

fn ask_here(query: &str) -> Option<String> {
    let asked = bgworker::catching(|| {
        sqlrun::in_transaction(|| {
            Spi::connect(|client| {
                let rows = client.select(query, Some(1), &[]).ok()?;
                let text = rows.into_iter().next().and_then(|row| row.get::<String>(1).ok());
                Some(text.flatten().unwrap_or_default())
            })
        })
    });
    asked.unwrap_or_else(|_| {
        crate::pg::twophase::abort();
        None
    })
}

fn prepared_here() -> BTreeSet<String> {
    sqlrun::in_transaction(|| {
        Spi::connect(|client| {
            let sql = "SELECT gid FROM pg_catalog.pg_prepared_xact() WHERE gid LIKE 'MTM-%'";
            let rows = client.select(sql, None, &[]).expect("a plain query");
            rows.filter_map(|row| row.get::<String>(1).ok().flatten()).collect()
        })
    })
}

/// Turns a refusal for a duplicate key into a query for the row that is in the way.
///
/// The text is in whatever language the server speaks, so no word of it is looked at: the index is
/// the one whose columns the detail names, as `(a, b)=(1, x)`, and the values go up to the last
/// parenthesis.
pub fn query_of_duplicate(table: u32, detail: &str) -> Option<String> {
    let (values, _) = detail.rsplit_once(')')?;
    let found = sqlrun::in_transaction(|| {
        Spi::connect(|client| {
            let table = table.to_string();
            let rows = client.select(UNIQUE_KEY, Some(1), &[table.as_str().into(), detail.into()]);
            let row = rows.ok()?.next()?;
            let text = |i: usize| row.get::<String>(i).ok().flatten();
            Some((text(1)?, text(2)?, text(3)?))
        })
    });
    let (table, key, columns) = found?;
    let (_, values) = values.split_once(columns.as_str())?;
    let values = values.replace('\'', "''");
    Some(format!(
        "SELECT pg_catalog.md5((x.*)::text) FROM {table} x WHERE {key} = E'{}' LIMIT 1",
        values.replace('\\', "\\\\")
    ))
}

/// For the table and the detail of an error: the table's name, the key's value as the detail has
/// it, and what stands before the value. An index on `(b)` is not the one on `(a)` whose value
/// happens to say `(b)=(`: the first place counts.
const UNIQUE_KEY: &str = "SELECT i.indrelid::pg_catalog.regclass::text, k.value, k.columns \
    FROM pg_catalog.pg_index i CROSS JOIN LATERAL (\
        SELECT '(' || pg_catalog.string_agg(d.def, ', ' ORDER BY d.k) || ')=(' AS columns, \
            pg_catalog.string_agg(\
                pg_catalog.format('coalesce((%s)::text, ''null'')', d.def), ' || '', '' || ' \
                ORDER BY d.k) AS value \
        FROM (SELECT k, pg_catalog.pg_get_indexdef(i.indexrelid, k, true) AS def \
            FROM pg_catalog.generate_series(1, i.indnkeyatts::int) k) d) k \
    WHERE i.indrelid = $1::text::pg_catalog.oid AND i.indisunique \
        AND pg_catalog.strpos($2, k.columns) > 0 \
    ORDER BY pg_catalog.strpos($2, k.columns) LIMIT 1";
