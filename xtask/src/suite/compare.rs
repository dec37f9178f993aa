//! Are all nodes the same? Rows of every table, definitions of everything, nothing prepared.

use super::arena::{Arena, shorten};
use crate::host::client;
use crate::server::{DATABASE, Server};
use crate::wait::until;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::time::Duration;

/// Everything that must be the same after each group of checks.
///
/// # Errors
/// With the first difference.
pub fn everything(arena: &Arena) -> Result<()> {
    nothing_prepared(arena)?;
    let nodes = &arena.cluster.nodes;
    let (first, others) = nodes.split_first().context("a cluster has nodes")?;
    let sums = checksums(first)?;
    let definitions = definitions(first)?;
    for other in others {
        compare_sums(&sums, &checksums(other)?)
            .with_context(|| format!("node 1 and node {}", other.id))?;
        compare_definitions(&definitions, &self::definitions(other)?)
            .with_context(|| format!("node 1 and node {}", other.id))?;
    }
    Ok(())
}

/// No prepared transaction is left; what just ended may take a moment to be finished everywhere.
///
/// # Errors
/// With the gids that stay.
pub fn nothing_prepared(arena: &Arena) -> Result<()> {
    for id in arena.ids() {
        let session = arena.on(id)?;
        until(&format!("nothing is prepared on node {id}"), Duration::from_secs(10), || {
            let left = session.one("SELECT string_agg(gid, ', ') FROM pg_prepared_xacts")?;
            if left.is_empty() {
                Ok(Some(()))
            } else {
                bail!("prepared on node {id}: {}", shorten(&left))
            }
        })?;
    }
    Ok(())
}

/// Number and checksum of the rows of every replicated table.
///
/// # Errors
/// When the server cannot be asked.
pub fn checksums(server: &Server) -> Result<BTreeMap<String, String>> {
    let session = server.connect()?.patience(Duration::from_secs(300));
    session.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
    let tables = session.run(
        "SELECT format('%I.%I', nspname, relname)
           FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
          WHERE relkind IN ('r', 'm') AND relpersistence = 'p' AND nspname NOT LIKE 'pg\\_%'
            AND nspname NOT IN ('information_schema', 'mtm', 'referee')
            AND relname NOT LIKE 'local\\_%'
            AND (relkind = 'r' OR relispopulated)
          ORDER BY 1",
    )?;
    let mut sums = BTreeMap::new();
    for table in tables.into_iter().flatten().flatten() {
        let sum = session
            .one(&format!(
                "SELECT count(*) || ' rows, sum ' || coalesce(sum(hashtextextended(whole_row::text, 0)::numeric), 0)
                   FROM ONLY {table} whole_row"
            ))
            .with_context(|| format!("checksum of {table} on node {}", server.id))?;
        sums.insert(table, sum);
    }
    session.run("COMMIT")?;
    Ok(sums)
}

fn compare_sums(one: &BTreeMap<String, String>, two: &BTreeMap<String, String>) -> Result<()> {
    let nothing = "no such table".to_owned();
    let names: std::collections::BTreeSet<&String> = one.keys().chain(two.keys()).collect();
    let differences: Vec<String> = names
        .into_iter()
        .filter_map(|name| {
            let (a, b) = (one.get(name).unwrap_or(&nothing), two.get(name).unwrap_or(&nothing));
            (a != b).then(|| format!("\n  {name}: {a} against {b}"))
        })
        .collect();
    ensure!(differences.is_empty(), "rows differ{}", differences.concat());
    Ok(())
}

/// `pg_dump --schema-only` without what belongs to one node: sequences start and step differently.
fn definitions(server: &Server) -> Result<Vec<String>> {
    let mut command = client("pg_dump");
    command.args([
        "-h",
        "127.0.0.1",
        "-p",
        &server.port.to_string(),
        "-U",
        DATABASE,
        "-d",
        DATABASE,
    ]);
    let output = command
        .args(["--schema-only", "--exclude-schema=mtm", "--exclude-table=*.local_*"])
        .env("PGAPPNAME", "mtm_admin")
        .output()?;
    ensure!(
        output.status.success(),
        "pg_dump of node {}: {}",
        server.id,
        String::from_utf8_lossy(&output.stderr)
    );
    let own = ["START WITH", "INCREMENT BY", "MINVALUE", "\\restrict", "\\unrestrict"];
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text
        .lines()
        .filter(|line| !own.iter().any(|word| line.trim_start().starts_with(word)))
        .map(ToOwned::to_owned)
        .collect())
}

fn compare_definitions(one: &[String], two: &[String]) -> Result<()> {
    let Some(at) = (0..one.len().max(two.len())).find(|i| one.get(*i) != two.get(*i)) else {
        return Ok(());
    };
    let around = |lines: &[String]| {
        let from = at.saturating_sub(4);
        lines.get(from..(at + 4).min(lines.len())).unwrap_or_default().join("\n    ")
    };
    bail!(
        "definitions differ at line {at} of pg_dump:\n    {}\n  against\n    {}",
        around(one),
        around(two)
    )
}
