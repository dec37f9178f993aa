//! Which row is meant: tables with and without keys, and every replica identity.

use super::arena::Arena;
use super::checks;
use crate::wait::until;
use anyhow::{Context, Result, ensure};
use std::time::Duration;

checks!("identities":
    without_primary_key,
    without_primary_key_warns_once,
    replica_identity_full,
    full_rows_found_by_an_index,
    full_rows_with_duplicates,
    deferrable_primary_key,
    replica_identity_index,
    replica_identity_nothing,
);

fn without_primary_key(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE p_nokey(a int, b text)")?;
    a.run(2, "INSERT INTO p_nokey VALUES (1, 'x'), (1, 'x'), (2, NULL)")?;
    a.expect("SELECT count(*) FROM p_nokey", "3")?;
    a.run(3, "UPDATE p_nokey SET b = 'y' WHERE a = 1")?;
    a.run(1, "DELETE FROM p_nokey WHERE a = 2")?;
    a.expect("SELECT a, b FROM p_nokey ORDER BY a", "1,y;1,y")
}

/// Said once per table, not for every row or transaction.
fn without_primary_key_warns_once(a: &Arena) -> Result<()> {
    let session = a.on(1)?;
    session.run("CREATE TABLE p_warn(a int)")?;
    let mut warned = Vec::new();
    for n in 0..5 {
        session.run(&format!("INSERT INTO p_warn VALUES ({n})"))?;
        warned.extend(session.notices());
    }
    let about: Vec<&String> = warned.iter().filter(|line| line.contains("p_warn")).collect();
    ensure!(about.len() == 1, "expected one warning about p_warn, got {warned:?}");
    Ok(())
}

fn replica_identity_full(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE p_full(a int, b text); ALTER TABLE p_full REPLICA IDENTITY FULL; INSERT INTO p_full VALUES (1, 'x'), (2, NULL), (2, NULL)")?;
    a.run(2, "UPDATE p_full SET b = 'z' WHERE a = 1")?;
    a.run(3, "DELETE FROM p_full WHERE ctid = (SELECT min(ctid) FROM p_full WHERE a = 2)")?;
    a.expect("SELECT a, b FROM p_full ORDER BY a", "1,z;2,~")
}

/// How often a node has looked into a table's indexes, and read it from end to end.
fn scans(a: &Arena, node: usize, table: &str) -> Result<(i64, i64)> {
    let session = a.on(node)?;
    let query = format!(
        "SELECT idx_scan || ' ' || seq_scan FROM pg_stat_user_tables WHERE relname = '{table}'"
    );
    let answer = session.one(&query)?;
    let (index, whole) = answer.split_once(' ').context("two numbers")?;
    Ok((index.parse()?, whole.parse()?))
}

/// Without an identity of its own a row is looked for by any index that helps, whatever is null.
fn full_rows_found_by_an_index(a: &Arena) -> Result<()> {
    let session = a.on(1)?;
    session.run(
        "CREATE TABLE p_fulli(a int, b text, c int, g int GENERATED ALWAYS AS (a + 1) STORED);
         CREATE INDEX ON p_fulli (lower(b)); CREATE INDEX ON p_fulli (c) WHERE c > 5; CREATE INDEX ON p_fulli USING hash (a);
         CREATE INDEX ON p_fulli (g); CREATE INDEX ON p_fulli (a, g, lower(b), b);
         INSERT INTO p_fulli SELECT nullif(n % 500, 0), nullif('t' || n % 3, 't0'), n FROM generate_series(1, 3000) n",
    )?;
    // Else what creating the indexes has read may be counted only when the session is over.
    session.run("SELECT pg_stat_force_next_flush()")?;
    let before = scans(a, 1, "p_fulli")?;
    a.run(2, "UPDATE p_fulli SET c = -c WHERE a IN (7, 8) OR a IS NULL")?;
    a.run(3, "DELETE FROM p_fulli WHERE a = 9 OR a IS NULL AND b IS NULL; UPDATE p_fulli SET a = 1000, b = NULL WHERE c IN (20, -7)")?;
    let after = until("the statistics are there", Duration::from_secs(10), || {
        // Whoever applies reports at most once a second, some only when more comes.
        a.can_write()?;
        let after = scans(a, 1, "p_fulli")?;
        // 18 rows and 6 + 2 + 2.
        Ok((after.0 >= before.0 + 28).then_some(after))
    })?;
    ensure!(after.1 == before.1, "node 1 read the whole table to find rows: {before:?}, {after:?}");
    let all = a.same("SELECT count(*), sum(a), sum(c), count(b) FROM p_fulli")?;
    ensure!(all.starts_with("2992,"), "{all}");
    Ok(())
}

/// Among equal rows exactly one goes for each that goes on the origin, by an index and without.
fn full_rows_with_duplicates(a: &Arena) -> Result<()> {
    for (name, index) in [("p_dups", ""), ("p_dupsi", "CREATE INDEX ON p_dupsi (a, b)")] {
        a.run(
            1,
            &format!(
                "CREATE TABLE {name}(a int, b int, t text); {index};
                 INSERT INTO {name} SELECT nullif(n % 3, 0), nullif(n % 2, 0), nullif(repeat('x', n % 2 * 3000), '') FROM generate_series(1, 60) n"
            ),
        )?;
        a.run(2, &format!("DELETE FROM {name} WHERE ctid IN (SELECT ctid FROM {name} WHERE a IS NULL AND b IS NULL LIMIT 3)"))?;
        a.run(3, &format!("UPDATE {name} SET a = 5 WHERE ctid IN (SELECT ctid FROM {name} WHERE a = 1 AND b = 1 LIMIT 4)"))?;
        a.run(
            1,
            &format!("BEGIN; UPDATE {name} SET b = 7 WHERE a = 5; DELETE FROM {name} WHERE ctid = (SELECT min(ctid) FROM {name} WHERE b = 7); COMMIT"),
        )?;
        a.expect(
            &format!("SELECT a, b, count(*), count(t) FROM {name} GROUP BY a, b ORDER BY a, b"),
            "1,1,6,6;1,~,10,0;2,1,10,10;2,~,10,0;5,7,3,3;~,1,10,10;~,~,7,0",
        )?;
    }
    Ok(())
}

/// A deferrable primary key identifies no rows to PostgreSQL; its values may change places.
fn deferrable_primary_key(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE p_dpk(id int PRIMARY KEY DEFERRABLE, v text); INSERT INTO p_dpk SELECT g, 'v' || g FROM generate_series(1, 6) g",
    )?;
    a.run(2, "UPDATE p_dpk SET id = 7 - id")?;
    a.run(3, "UPDATE p_dpk SET v = 'changed' WHERE id = 6; DELETE FROM p_dpk WHERE id = 5")?;
    a.expect("SELECT string_agg(id || v, ' ' ORDER BY id) FROM p_dpk", "1v6 2v5 3v4 4v3 6changed")?;
    let error = a.on(1)?.refused("INSERT INTO p_dpk VALUES (6, 'again')")?;
    ensure!(error.state == "23505", "{error}");
    Ok(())
}

fn replica_identity_index(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE p_index(id int PRIMARY KEY, k text NOT NULL UNIQUE, v int);
         ALTER TABLE p_index REPLICA IDENTITY USING INDEX p_index_k_key; INSERT INTO p_index VALUES (1, 'one', 1), (2, 'two', 2)",
    )?;
    a.run(
        2,
        "UPDATE p_index SET k = 'uno', id = 10 WHERE id = 1; DELETE FROM p_index WHERE k = 'two'",
    )?;
    a.run(3, "UPDATE p_index SET v = 7")?;
    a.expect("SELECT id, k, v FROM p_index", "10,uno,7")
}

/// With REPLICA IDENTITY NOTHING there is no way to name the row on a peer: either the statement
/// is refused with a reason, or it is right everywhere. Never silently different.
fn replica_identity_nothing(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE p_nothing(id int PRIMARY KEY, v int); ALTER TABLE p_nothing REPLICA IDENTITY NOTHING; INSERT INTO p_nothing VALUES (1, 1)")?;
    a.expect("SELECT v FROM p_nothing", "1")?;
    if let Err(error) = a.on(2)?.run("UPDATE p_nothing SET v = 2") {
        ensure!(!error.state.is_empty() && error.state != "XX000", "{error}");
    }
    a.same("SELECT * FROM p_nothing")?;
    Ok(())
}
