//! A peer is gone: writers get a clear error and no hang, and work resumes when it is back.

use super::arena::Arena;
use super::checks;
use crate::session::SqlError;
use crate::wait::until;
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

checks!("peers":
    status_and_nodes,
    reads_go_on_without_a_peer,
    peer_stopped,
    peer_frozen,
    peer_killed,
    peer_killed_under_load,
    origin_killed_while_committing,
    backend_terminated_while_committing,
    all_restarted,
    all_killed,
    worker_terminated,
);

/// The default heartbeat timeout is 2 s; a writer knows by then, with a margin for a busy machine.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);
/// After a peer is back the cluster works again within this time.
const BACK_WITHIN: Duration = Duration::from_secs(30);

fn status_and_nodes(a: &Arena) -> Result<()> {
    let count = a.ids().len().to_string();
    for id in a.ids() {
        let status =
            a.ask(id, "SELECT my_node_id, status, cardinality(gen_configured) FROM mtm.status()")?;
        ensure!(status == format!("{id},online,{count}"), "node {id}: {status}");
        let nodes = a.ask(id, "SELECT count(*), count(*) FILTER (WHERE is_self), bool_and(enabled), bool_and(connected) FROM mtm.nodes()")?;
        ensure!(nodes == format!("{count},1,t,t"), "node {id}: {nodes}");
    }
    Ok(())
}

/// What a writer may be told while a peer is away.
fn is_clear(error: &SqlError) -> bool {
    let class = error.state.get(..2).unwrap_or_default();
    ["08", "40", "57", "53", "55"].contains(&class) && !error.message.is_empty()
}

/// Tries to write on node 1 while node 3 is away: an answer in time, and an understandable one.
/// When the cluster can go on without the peer, success is an answer as well.
fn answers_in_time(a: &Arena, table: &str, first: i32) -> Result<()> {
    for n in first..first + 3 {
        let session = a.on(1)?.patience(Duration::from_secs(20));
        let start = Instant::now();
        let outcome = session.run(&format!("INSERT INTO {table} VALUES ({n})"));
        ensure!(start.elapsed() < KNOWN_WITHIN, "a writer waited {:?}", start.elapsed());
        if let Err(error) = outcome {
            ensure!(is_clear(&error), "a user cannot understand: {error}");
        }
    }
    Ok(())
}

/// Every node writes and all agree, within the limit, without anybody's help.
fn works_again(a: &Arena, table: &str) -> Result<()> {
    until("every node can write again", BACK_WITHIN, || a.can_write().map(Some))?;
    super::compare::nothing_prepared(a)?;
    a.same(&format!("SELECT count(*), sum(id) FROM {table}"))?;
    Ok(())
}

fn reads_go_on_without_a_peer(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE n_read(id int PRIMARY KEY); INSERT INTO n_read VALUES (1)")?;
    // A transaction that only reads asks no peer: it is as quick as ever while one is frozen.
    let session = a.on(1)?.patience(Duration::from_secs(5));
    a.cluster.node(3)?.freeze();
    let read = session.one("SELECT count(*) FROM n_read");
    a.cluster.node(3)?.thaw();
    ensure!(read? == "1", "a read failed");
    works_again(a, "n_read")
}

fn peer_stopped(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE n_stop(id int PRIMARY KEY)")?;
    a.cluster.node(3)?.stop()?;
    let answered = answers_in_time(a, "n_stop", 1);
    a.cluster.node(3)?.start()?;
    answered?;
    works_again(a, "n_stop")
}

fn peer_frozen(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE n_freeze(id int PRIMARY KEY)")?;
    a.cluster.node(3)?.freeze();
    let answered = answers_in_time(a, "n_freeze", 1);
    a.cluster.node(3)?.thaw();
    answered?;
    works_again(a, "n_freeze")
}

fn peer_killed(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE n_kill(id int PRIMARY KEY)")?;
    a.cluster.node(3)?.kill()?;
    let answered = answers_in_time(a, "n_kill", 1);
    a.cluster.node(3)?.start()?;
    answered?;
    works_again(a, "n_kill")
}

/// What writers were told is true afterwards: acknowledged rows are there, refused ones are not.
struct Witness {
    acknowledged: Vec<i32>,
    refused: Vec<(i32, String)>,
}

impl Witness {
    fn new() -> Self {
        Self { acknowledged: Vec::new(), refused: Vec::new() }
    }

    fn note(&mut self, id: i32, outcome: &Result<(), SqlError>) {
        match outcome {
            Ok(()) => self.acknowledged.push(id),
            // No SQLSTATE: the connection broke. 08: the outcome is unknown.
            Err(error)
                if error.state.is_empty()
                    || error.state.starts_with("08")
                    || error.state.starts_with("57P") => {}
            Err(error) => self.refused.push((id, error.to_string())),
        }
    }

    fn check(&self, a: &Arena, table: &str) -> Result<()> {
        let list = |ids: &[i32]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let there = format!(
            "SELECT count(*) FROM {table} WHERE id = ANY ('{{{}}}')",
            list(&self.acknowledged)
        );
        a.expect(&there, &self.acknowledged.len().to_string())?;
        let refused: Vec<i32> = self.refused.iter().map(|(id, _)| *id).collect();
        let present = format!(
            "SELECT coalesce(string_agg(id::text, ','), '') FROM {table} \
             WHERE id = ANY ('{{{}}}')",
            list(&refused)
        );
        let present = a.ask(1, &present)?;
        let told = self
            .refused
            .iter()
            .filter(|(id, _)| present.split(',').any(|p| p == id.to_string()))
            .map(|(id, why)| format!("{id}: {why}"))
            .collect::<Vec<_>>();
        ensure!(told.is_empty(), "refused and there nevertheless: {}", told.join("; "));
        Ok(())
    }
}

/// Writes on node `id` until told to stop; opens a new session whenever the old one broke.
fn write_on(
    a: &Arena,
    id: usize,
    table: &str,
    range: std::ops::Range<i32>,
    time: Duration,
) -> Witness {
    let mut witness = Witness::new();
    let start = Instant::now();
    let mut session = None;
    for row in range {
        if start.elapsed() > time {
            break;
        }
        if session.is_none() {
            session = a.on(id).ok().map(|session| session.patience(Duration::from_secs(20)));
        }
        let Some(open) = &session else {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        let outcome = open.run(&format!("INSERT INTO {table} VALUES ({row})")).map(drop);
        if outcome
            .as_ref()
            .is_err_and(|error| error.state.is_empty() || error.state.starts_with("57P"))
        {
            session = None;
        }
        witness.note(row, &outcome);
    }
    witness
}

fn peer_killed_under_load(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE n_load(id int PRIMARY KEY)")?;
    let (witness, fault) = Arena::both(
        || write_on(a, 1, "n_load", 0..1_000_000, Duration::from_secs(6)),
        || -> Result<()> {
            until("the load runs", Duration::from_secs(5), || {
                Ok((a.ask(2, "SELECT count(*) > 50 FROM n_load")? == "t").then_some(()))
            })?;
            a.cluster.node(3)?.kill()?;
            a.cluster.node(3)?.start()
        },
    );
    fault?;
    works_again(a, "n_load")?;
    ensure!(!witness.acknowledged.is_empty(), "nothing was committed");
    witness.check(a, "n_load")
}

fn origin_killed_while_committing(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE n_origin(id int PRIMARY KEY)")?;
    let (witness, fault) = Arena::both(
        || write_on(a, 1, "n_origin", 0..1_000_000, Duration::from_secs(6)),
        || -> Result<()> {
            until("the load runs", Duration::from_secs(5), || {
                Ok((a.ask(2, "SELECT count(*) > 50 FROM n_origin")? == "t").then_some(()))
            })?;
            a.cluster.node(1)?.kill()?;
            a.cluster.node(1)?.start()
        },
    );
    fault?;
    works_again(a, "n_origin")?;
    ensure!(!witness.acknowledged.is_empty(), "nothing was committed");
    witness.check(a, "n_origin")
}

fn backend_terminated_while_committing(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE n_term(id int PRIMARY KEY)")?;
    let mut witness = Witness::new();
    for row in 0..30 {
        let session = a.on(1)?;
        let pid = session.backend()?;
        session.run(&format!("BEGIN; INSERT INTO n_term VALUES ({row})"))?;
        let killer = a.on(1)?;
        let (outcome, _) = Arena::both(
            || session.run("COMMIT").map(drop),
            || {
                std::thread::sleep(Duration::from_micros(
                    200 * u64::try_from(row % 10).unwrap_or(0),
                ));
                killer.run(&format!("SELECT pg_terminate_backend({pid})"))
            },
        );
        witness.note(row, &outcome);
    }
    works_again(a, "n_term")?;
    witness.check(a, "n_term")
}

fn all_restarted(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE n_all(id int PRIMARY KEY); INSERT INTO n_all VALUES (1)")?;
    a.cluster.each(|node| {
        node.stop()?;
        node.start()
    })?;
    works_again(a, "n_all")?;
    a.expect("SELECT count(*) FROM n_all", "1")
}

fn all_killed(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE n_killed(id int PRIMARY KEY)")?;
    let (witness, fault) = Arena::both(
        || write_on(a, 2, "n_killed", 0..1_000_000, Duration::from_secs(4)),
        || -> Result<()> {
            until("the load runs", Duration::from_secs(5), || {
                Ok((a.ask(1, "SELECT count(*) > 50 FROM n_killed")? == "t").then_some(()))
            })?;
            a.cluster.each(crate::server::Server::kill)?;
            a.cluster.each(crate::server::Server::start)
        },
    );
    fault?;
    works_again(a, "n_killed")?;
    ensure!(!witness.acknowledged.is_empty(), "nothing was committed");
    witness.check(a, "n_killed")
}

/// Each of our background processes is started again when it ends.
fn worker_terminated(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE n_worker(id int PRIMARY KEY)")?;
    let kinds = a.run(2, "SELECT DISTINCT backend_type FROM pg_stat_activity WHERE backend_type LIKE 'mtm-%' ORDER BY 1")?;
    ensure!(!kinds.is_empty(), "no process called mtm-*");
    for kind in kinds.into_iter().flatten().flatten() {
        a.run(2, &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = '{kind}'"))?;
        until(&format!("all nodes write after {kind} was terminated"), BACK_WITHIN, || {
            a.can_write().map(Some)
        })?;
    }
    works_again(a, "n_worker")
}
