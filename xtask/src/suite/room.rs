//! A table of transactions that is far too small: work waits for room, and nothing falls over.

use super::arena::Arena;
use super::checks;
use super::failing::said_since;
use super::failover::{GO_ON_WITHIN, all_is_well, all_online};
use super::load::{Plan, under_load};
use anyhow::{Result, ensure};
use std::time::Duration;

checks!("room":
    small_table,
);

/// The smallest there is.
const PLACES: usize = 1024;

/// Gives every node's table so many places.
fn set_places(a: &Arena, places: usize) -> Result<()> {
    let setting = ("multimaster.max_transactions".to_owned(), places.to_string());
    a.cluster.each(|node| {
        node.stop()?;
        node.configure(std::slice::from_ref(&setting))?;
        node.start()
    })?;
    all_online(a)
}

/// A node misses far more transactions than its table has places for and takes them over under
/// load; another one crashes and must find places for what it knew.
fn small_table(a: &Arena) -> Result<()> {
    let before: usize = a.ask(1, "SHOW multimaster.max_transactions")?.parse()?;
    a.run(1, "CREATE TABLE r_small(id int PRIMARY KEY)")?;
    let from = a
        .cluster
        .nodes
        .iter()
        .map(|node| Ok(std::fs::metadata(&node.log)?.len()))
        .collect::<Result<Vec<_>>>()?;
    set_places(a, PLACES)?;
    let outcome = in_a_small_table(a);
    for (node, from) in a.cluster.nodes.iter().zip(from) {
        for words in ["PANIC", "do not fit", "no room for transaction"] {
            let n = said_since(node, from, words)?;
            ensure!(n == 0, "node {} said {n} times: {words}", node.id);
        }
    }
    outcome?;
    set_places(a, before)?;
    all_is_well(a, "r_small")
}

fn in_a_small_table(a: &Arena) -> Result<()> {
    let plan = Plan { clients: 8, ..Plan::new("r_small", &[1, 2, 3]) };
    let (report, most) = under_load(a, &plan, |load| {
        load.goes_on(&[1, 2, 3], 400, 4 * GO_ON_WITHIN)?;
        a.cluster.node(3)?.kill()?;
        load.goes_on(&[1, 2], 2 * PLACES, Duration::from_secs(120))?;
        a.cluster.node(3)?.start()?;
        all_online(a)?;
        load.goes_on(&[1, 2, 3], 100, GO_ON_WITHIN)?;
        a.cluster.node(1)?.kill()?;
        load.goes_on(&[2, 3], 100, GO_ON_WITHIN)?;
        a.cluster.node(1)?.start()?;
        all_online(a)?;
        load.goes_on(&[1, 2, 3], 100, GO_ON_WITHIN)?;
        let mut most = 0;
        for id in a.ids() {
            let row = a.ask(id, "SELECT places, used FROM mtm.transaction_table()")?;
            let used = row.strip_prefix(&format!("{PLACES},")).unwrap_or("no such number");
            most = most.max(used.parse::<usize>()?);
        }
        Ok(most)
    })?;
    println!(
        "    {} commits with {PLACES} places, {most} in use in the end",
        report.witness.acknowledged()
    );
    let refused = report.witness.refused_with("53400");
    ensure!(refused == 0, "{refused} transactions found no room in time");
    all_is_well(a, "r_small")?;
    report.witness.check(a, "r_small")
}
