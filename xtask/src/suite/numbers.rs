//! Announcements are numbered: what is forgotten does not depend on who keeps a transaction open,
//! and numbers go on after a crash (specs/adr/0004).

use super::arena::Arena;
use super::{checks, compare};
use crate::wait::until;
use anyhow::{Result, ensure};
use std::time::Duration;

checks!("numbers":
    an_open_writer_keeps_nothing_in_mind,
    numbers_go_on_after_a_crash,
);

const LIMIT: Duration = Duration::from_secs(30);
const BACK_WITHIN: Duration = Duration::from_secs(60);
/// Commits of each node beside the open transaction.
const COMMITS: usize = 300;
/// Far fewer than were committed.
const FEW: usize = 100;

fn column(a: &Arena, id: usize, column: &str) -> Result<usize> {
    Ok(a.ask(id, &format!("SELECT {column} FROM mtm.transaction_table()"))?.parse()?)
}

/// Waits until every node has forgotten nearly everything.
fn is_forgotten(a: &Arena) -> Result<()> {
    for id in a.ids() {
        let mut used = 0;
        until(&format!("node {id} keeps fewer than {FEW} transactions in mind"), LIMIT, || {
            used = column(a, id, "used")?;
            Ok((used < FEW).then_some(()))
        })
        .map_err(|error| error.context(format!("node {id} keeps {used}")))?;
    }
    Ok(())
}

/// Commits so many rows on a node, each by itself.
fn commit(a: &Arena, id: usize, table: &str) -> Result<()> {
    let session = a.on(id)?;
    (0..COMMITS).try_for_each(|row| {
        session.run(&format!("INSERT INTO {table} VALUES ({id}, {row})")).map(drop)?;
        Ok(())
    })
}

/// Written, and not committed, before everything else and on every node.
fn an_open_writer_keeps_nothing_in_mind(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE n_open(node int, id int, PRIMARY KEY (node, id))")?;
    let mut open = Vec::new();
    for id in a.ids() {
        let session = a.on(id)?;
        session.run("BEGIN")?;
        session.run(&format!("INSERT INTO n_open VALUES ({id}, -1)"))?;
        open.push(session);
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            a.ids().into_iter().map(|id| scope.spawn(move || commit(a, id, "n_open"))).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    is_forgotten(a)?;
    for session in &open {
        session.run("COMMIT")?;
    }
    let all = a.ids().len() * (COMMITS + 1);
    a.expect("SELECT count(*) FROM n_open", &all.to_string())?;
    is_forgotten(a)
}

/// Whatever was committed before the crash, the next number is above its number.
fn numbers_go_on_after_a_crash(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE n_crash(node int, id int, PRIMARY KEY (node, id))")?;
    let id = 2;
    // The second time nothing was announced since the start.
    for round in 0..2 {
        if round == 0 {
            commit(a, id, "n_crash")?;
        }
        let before = column(a, id, "next_number")?;
        a.cluster.node(id)?.kill()?;
        a.cluster.node(id)?.start()?;
        for id in a.ids() {
            until(&format!("node {id} is online by itself"), BACK_WITHIN, || {
                Ok((a.cluster.status(a.cluster.node(id)?) == "online").then_some(()))
            })?;
        }
        let after = column(a, id, "next_number")?;
        ensure!(after >= before, "numbers go on with {after}, {before} was next");
    }
    a.run(id, "INSERT INTO n_crash VALUES (2, -1)")?;
    a.expect("SELECT count(*) FROM n_crash", &(COMMITS + 1).to_string())?;
    compare::nothing_prepared(a)?;
    is_forgotten(a)
}
