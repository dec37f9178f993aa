//! The tables of the load, and what holds in them whatever happens.

use crate::suite::arena::Arena;
use anyhow::{Context, Result};

/// Rows of `soak_row`; each node has a third of them for itself.
pub(super) const ROWS: u64 = 3000;
/// Rows that everybody updates.
pub(super) const HOT: u64 = 50;
/// Accounts and what they hold together.
pub(super) const ACCOUNTS: u64 = 60;

/// Creates them.
///
/// # Errors
/// When a statement fails.
pub(super) fn create(arena: &Arena) -> Result<()> {
    let sql = format!(
        "CREATE TABLE soak_row(id int PRIMARY KEY, n bigint NOT NULL DEFAULT 0, note text);
         INSERT INTO soak_row(id) SELECT generate_series(1, {ROWS});
         CREATE TABLE soak_hot(id int PRIMARY KEY, n bigint NOT NULL DEFAULT 0);
         INSERT INTO soak_hot(id) SELECT generate_series(1, {HOT});
         CREATE TABLE soak_account(id int PRIMARY KEY, amount bigint NOT NULL);
         INSERT INTO soak_account SELECT g, 1000 FROM generate_series(1, {ACCOUNTS}) g;
         CREATE TABLE soak_serial(id serial PRIMARY KEY, node int, v text, at timestamptz DEFAULT now());
         CREATE TABLE soak_identity(id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, node int, v jsonb);
         CREATE TABLE soak_parent(id int PRIMARY KEY, name text);
         INSERT INTO soak_parent SELECT g, 'parent ' || g FROM generate_series(1, 40) g;
         CREATE TABLE soak_child(id serial PRIMARY KEY, parent int NOT NULL REFERENCES soak_parent ON DELETE CASCADE, v text);
         CREATE TABLE soak_copy(node int, client bigint, batch int, n int, v text, PRIMARY KEY (node, client, batch, n));
         CREATE TABLE soak_cleared(id serial PRIMARY KEY, v text);
         CREATE TABLE soak_nokey(node int, n int);
         CREATE TABLE soak_prepared(id bigserial PRIMARY KEY, v text);
         CREATE TABLE soak_saved(id serial PRIMARY KEY, kept bool);
         CREATE TABLE soak_large(id bigserial PRIMARY KEY, node int, v text);
         CREATE TABLE soak_changing(id int PRIMARY KEY, v text);
         INSERT INTO soak_changing SELECT g, 'v' FROM generate_series(1, 200) g;
         CREATE TABLE soak_part(id int, day int, v text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
         CREATE TABLE soak_part_1 PARTITION OF soak_part FOR VALUES FROM (0) TO (50);
         CREATE TABLE soak_part_2 PARTITION OF soak_part FOR VALUES FROM (50) TO (100);
         CREATE SEQUENCE soak_sequence;
         CREATE TABLE soak_value(value bigint PRIMARY KEY, node int)"
    );
    for statement in sql.split(";\n").map(str::trim) {
        arena.run(1, statement)?;
    }
    Ok(())
}

/// Asks for them, on every node.
///
/// # Errors
/// With the first one that does not hold.
pub(super) fn rules(arena: &Arena) -> Result<()> {
    for (what, query, answer) in [
        (
            "money is neither made nor lost",
            "SELECT sum(amount) FROM soak_account",
            (ACCOUNTS * 1000).to_string(),
        ),
        (
            "no child without its parent",
            "SELECT count(*) FROM soak_child c WHERE NOT EXISTS
               (SELECT FROM soak_parent p WHERE p.id = c.parent)",
            "0".to_owned(),
        ),
        (
            "what was rolled back to a savepoint is not there",
            "SELECT count(*) FROM soak_saved WHERE NOT kept",
            "0".to_owned(),
        ),
        (
            "COPY is all or nothing",
            "SELECT count(*) FROM (SELECT FROM soak_copy GROUP BY node, client, batch
               HAVING count(*) <> 200) x",
            "0".to_owned(),
        ),
        (
            "no row of the load disappears",
            "SELECT (SELECT count(*) FROM soak_row), (SELECT count(*) FROM soak_hot)",
            format!("{ROWS},{HOT}"),
        ),
    ] {
        arena.expect(query, &answer).with_context(|| what.to_owned())?;
    }
    Ok(())
}
