//! What the nodes hold at a quiet point.

use super::history::{Record, Recorder, State};
use super::servers::Servers;
use crate::server::Server;
use crate::session::Rows;
use crate::suite::compare;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::time::Duration;

/// A list as it is stored.
#[must_use]
pub fn list(text: &str) -> Vec<u64> {
    // What is no number is nobody's value, and the checker says so.
    text.split(',')
        .filter(|word| !word.is_empty())
        .map(|word| word.parse().unwrap_or(u64::MAX))
        .collect()
}

/// Reads every node's state into the history; what differs in any other table comes back in words.
///
/// # Errors
/// When a node cannot be asked.
pub fn record(servers: &Servers, recorder: &Recorder) -> Result<Vec<String>> {
    let mut first: Option<BTreeMap<String, String>> = None;
    let mut differences = Vec::new();
    for node in &servers.cluster.nodes {
        let state = read(node, recorder.now())
            .with_context(|| format!("reading the state of node {}", node.id))?;
        recorder.add(Record::State(state));
        let sums = compare::checksums(node)?;
        let one = first.get_or_insert_with(|| sums.clone());
        if *one != sums {
            let differing: Vec<String> = one
                .keys()
                .chain(sums.keys())
                .filter(|name| one.get(*name) != sums.get(*name))
                .map(|name| format!("{name}: {:?} / {:?}", one.get(name), sums.get(name)))
                .collect();
            differences.push(format!(
                "node {} is not as the first: {}",
                node.id,
                differing.join("; ")
            ));
        }
    }
    Ok(differences)
}

fn read(node: &Server, at: u64) -> Result<State> {
    let session = node.connect()?.patience(Duration::from_secs(120));
    session.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
    let state = State {
        at,
        node: node.id,
        balances: numbers(&session.run("SELECT balance FROM accounts ORDER BY id")?)?,
        ledger: numbers(&session.run("SELECT token FROM ledger ORDER BY token")?)?,
        lists: pairs(&session.run("SELECT key, value FROM lists")?)
            .map(|(key, value)| Ok((key.parse()?, list(value))))
            .collect::<Result<_>>()?,
        uniques: pairs(&session.run("SELECT key, token FROM uniques")?)
            .map(|(key, token)| Ok((key.parse()?, token.parse()?)))
            .collect::<Result<_>>()?,
        tables: session
            .run("SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'side\\_%' ORDER BY 1")?
            .into_iter()
            .flatten()
            .flatten()
            .collect(),
    };
    session.run("COMMIT")?;
    Ok(state)
}

fn numbers<T: std::str::FromStr>(rows: &Rows) -> Result<Vec<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    rows.iter().flatten().flatten().map(|text| Ok(text.parse()?)).collect()
}

fn pairs(rows: &Rows) -> impl Iterator<Item = (&str, &str)> {
    rows.iter().filter_map(|row| match row.as_slice() {
        [Some(one), Some(two)] => Some((one.as_str(), two.as_str())),
        _ => None,
    })
}
