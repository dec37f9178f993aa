//! Tables and settings that keep rows where they were written.

use super::arena::Arena;
use super::checks;
use crate::wait::until;
use anyhow::{Result, ensure};
use std::time::Duration;

checks!("local":
    local_tables_from_now_on,
    local_partitions,
    local_labels_are_checked,
    local_and_replicated_in_one_transaction,
    tables_without_pk_ignored,
    deadlock_prevention_simple,
    unknown_settings_are_refused,
    remote_functions,
    remote_functions_in_every_form,
);

fn local_tables_from_now_on(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE local_t(id int PRIMARY KEY, v int); INSERT INTO local_t VALUES (1, 0)")?;
    a.expect("SELECT count(*) FROM local_t", "1")?;
    // Rows before the call travel, rows after it do not, even in one transaction.
    a.run(2, "BEGIN; INSERT INTO local_t VALUES (2, 0); SELECT mtm.make_table_local('local_t'); INSERT INTO local_t VALUES (3, 0); COMMIT")?;
    for (id, rows) in [(1, "1,2"), (2, "1,2,3"), (3, "1,2")] {
        let got = a.ask(id, "SELECT string_agg(id::text, ',' ORDER BY id) FROM local_t")?;
        ensure!(got == rows, "node {id} has {got}");
    }
    a.run(3, "UPDATE local_t SET v = 3; DELETE FROM local_t WHERE id = 1; TRUNCATE local_t")?;
    ensure!(a.ask(1, "SELECT count(*) FROM local_t")? == "2", "TRUNCATE travelled");
    // Its definition is everybody's, and a new life under the same name is replicated.
    a.run(1, "ALTER TABLE local_t ADD w int DEFAULT 5")?;
    a.expect(
        "SELECT count(*) FROM pg_attribute WHERE attrelid = 'local_t'::regclass AND attname = 'w'",
        "1",
    )?;
    a.run(2, "DROP TABLE local_t; CREATE TABLE local_t(id int PRIMARY KEY); INSERT INTO local_t VALUES (9)")?;
    a.expect("SELECT id FROM local_t", "9")?;
    a.run(1, "DROP TABLE local_t")?;
    Ok(())
}

fn local_partitions(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE local_p(id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE local_p1 PARTITION OF local_p FOR VALUES FROM (0) TO (10)",
    )?;
    a.run(2, "SELECT mtm.make_table_local('local_p')")?;
    a.run(3, "CREATE TABLE local_p2 PARTITION OF local_p FOR VALUES FROM (10) TO (20)")?;
    for id in a.ids() {
        a.run(id, "INSERT INTO local_p VALUES (1), (11)")?;
    }
    a.run(1, "INSERT INTO local_p VALUES (2), (12)")?;
    ensure!(
        a.ask(2, "SELECT count(*) FROM local_p")? == "2",
        "a partition of a local table is replicated"
    );
    // A partition that leaves the table is an ordinary one.
    a.run(1, "DELETE FROM local_p WHERE id IN (2, 12)")?;
    a.run(2, "ALTER TABLE local_p DETACH PARTITION local_p2")?;
    a.run(3, "INSERT INTO local_p2 VALUES (13)")?;
    a.expect("SELECT count(*) FROM local_p2", "2")
}

fn local_labels_are_checked(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE local_l(id int PRIMARY KEY); CREATE VIEW local_v AS SELECT 1; CREATE ROLE l_nobody; GRANT USAGE ON SCHEMA mtm TO l_nobody")?;
    let session = a.on(2)?;
    for (sql, state) in [
        ("SELECT mtm.make_table_local('local_v')", "42809"),
        ("SELECT mtm.make_table_local('pg_class')", "42501"),
        ("SECURITY LABEL FOR multimaster ON TABLE local_l IS 'global'", "22023"),
        ("SET ROLE l_nobody; SELECT mtm.make_table_local('local_l')", "42501"),
    ] {
        let error = session.refused(sql)?;
        ensure!(error.state == state, "{sql}: {error}");
    }
    session.run("RESET ROLE")?;
    a.run(3, "DROP OWNED BY l_nobody; DROP ROLE l_nobody; DROP VIEW local_v")?;
    Ok(())
}

fn local_and_replicated_in_one_transaction(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE local_one(id int PRIMARY KEY); CREATE TABLE l_all(id int PRIMARY KEY); SELECT mtm.make_table_local('local_one')")?;
    a.run(2, "BEGIN; INSERT INTO local_one VALUES (1); INSERT INTO l_all VALUES (1); COMMIT")?;
    a.run(3, "BEGIN; INSERT INTO local_one VALUES (1); INSERT INTO l_all VALUES (2); COMMIT")?;
    a.expect("SELECT count(*) FROM l_all", "2")?;
    ensure!(a.ask(1, "SELECT count(*) FROM local_one")? == "0", "a local row travelled");
    Ok(())
}

fn set_everywhere(a: &Arena, name: &str, value: &str) -> Result<()> {
    for id in a.ids() {
        let session = a.on(id)?;
        session.run(&format!("ALTER SYSTEM SET {name} = '{value}'"))?;
        session.run("SELECT pg_reload_conf()")?;
        until("the setting is there", Duration::from_secs(10), || {
            Ok((a.ask(id, &format!("SHOW {name}"))? == value).then_some(()))
        })?;
    }
    Ok(())
}

fn tables_without_pk_ignored(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE local_nopk(v int); CREATE TABLE l_pk(id int PRIMARY KEY); INSERT INTO local_nopk VALUES (1)")?;
    a.expect("SELECT count(*) FROM local_nopk", "1")?;
    set_everywhere(a, "multimaster.ignore_tables_without_pk", "on")?;
    let outcome = (|| -> Result<()> {
        a.run(1, "BEGIN; INSERT INTO local_nopk VALUES (2); INSERT INTO l_pk VALUES (1); COMMIT")?;
        a.run(2, "UPDATE local_nopk SET v = 10")?;
        for (id, rows) in [(1, "1,2"), (2, "10"), (3, "1")] {
            let got = a.ask(id, "SELECT string_agg(v::text, ',' ORDER BY v) FROM local_nopk")?;
            ensure!(got == rows, "node {id} has {got}");
        }
        a.expect("SELECT count(*) FROM l_pk", "1")
    })();
    set_everywhere(a, "multimaster.ignore_tables_without_pk", "off")?;
    outcome?;
    a.run(3, "INSERT INTO local_nopk VALUES (77)")?;
    a.expect("SELECT count(*) FROM local_nopk WHERE v = 77", "1")?;
    a.run(1, "DROP TABLE local_nopk")?;
    Ok(())
}

/// Two transactions that wait for each other: with `simple` both are told to try again.
fn deadlock_prevention_simple(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE l_dead(id int PRIMARY KEY, v int); INSERT INTO l_dead VALUES (1, 0)")?;
    for value in ["smart", "simple"] {
        set_everywhere(a, "multimaster.deadlock_prevention", value)?;
    }
    let outcome = (0..20).try_for_each(|_| -> Result<()> {
        let (one, two) = (a.on(1)?, a.on(2)?);
        for session in [&one, &two] {
            session.run("BEGIN; UPDATE l_dead SET v = v + 1 WHERE id = 1")?;
        }
        let (first, second) = Arena::both(|| one.run("COMMIT"), || two.run("COMMIT"));
        // One survives if it was through before the other began to commit.
        for error in [first.err(), second.err()].into_iter().flatten() {
            ensure!(error.state == "40001", "{error}");
        }
        Ok(())
    });
    set_everywhere(a, "multimaster.deadlock_prevention", "off")?;
    outcome?;
    let error = a.on(1)?.refused("ALTER SYSTEM SET multimaster.deadlock_prevention = 'clever'")?;
    ensure!(error.hint.contains("off, simple, smart"), "{error}");
    a.same("SELECT v FROM l_dead")?;
    Ok(())
}

fn unknown_settings_are_refused(a: &Arena) -> Result<()> {
    let error = a.on(1)?.refused("SET multimaster.no_such_thing = on")?;
    ensure!(
        error.state == "42602" && error.detail.contains("reserved"),
        "{error} {}",
        error.detail
    );
    Ok(())
}

/// A listed function runs on every node, and its rows do not travel.
fn remote_functions(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE l_node(node text, note text); CREATE TABLE l_seen(id int PRIMARY KEY, n int DEFAULT 0);
         INSERT INTO l_seen VALUES (1, 0);
         CREATE FUNCTION l_remote(what text) RETURNS int LANGUAGE plpgsql AS $$
         BEGIN
           INSERT INTO l_node SELECT current_setting('port'), what;
           UPDATE l_seen SET n = n + 1;
           EXECUTE format('CREATE TABLE IF NOT EXISTS l_made_%s(id int PRIMARY KEY)', what);
           RETURN 1;
         END $$;
         SELECT mtm.make_table_local('l_node')",
    )?;
    let session = a.on(2)?;
    session.run("SET multimaster.remote_functions = 'nothing, public.l_remote'")?;
    session.run("SELECT l_remote('x' || 'y')")?;
    for id in a.ids() {
        let port = a.cluster.node(id)?.port.to_string();
        let row = a.ask(id, "SELECT * FROM l_node")?;
        ensure!(row == format!("{port},xy"), "node {id} has {row}");
    }
    a.expect("SELECT n, to_regclass('l_made_xy') IS NOT NULL FROM l_seen", "1,t")?;
    // In a transaction with other changes, and taken back.
    session.run("BEGIN; INSERT INTO l_seen VALUES (2); SAVEPOINT s; SELECT l_remote('no'); ROLLBACK TO s; SELECT l_remote('z'); INSERT INTO l_seen VALUES (3); COMMIT")?;
    a.expect("SELECT id, n FROM l_seen ORDER BY id", "1,2;2,1;3,0")?;
    a.expect("SELECT to_regclass('l_made_no') IS NULL, to_regclass('l_made_z') IS NULL", "t,f")?;
    // Elsewhere it is a function as any other: it runs once, its rows travel.
    a.run(3, "SELECT l_remote('w')")?;
    a.expect("SELECT n FROM l_seen WHERE id = 1", "3")?;
    ensure!(a.ask(1, "SELECT count(*) FROM l_node WHERE note = 'w'")? == "0", "it ran on node 1");
    a.run(1, "DROP TABLE l_node")?;
    Ok(())
}

fn remote_functions_in_every_form(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE l_calls(id serial PRIMARY KEY, what text, at bigint);
         CREATE SEQUENCE l_at;
         CREATE FUNCTION l_call(what text, n int DEFAULT 1) RETURNS SETOF int LANGUAGE sql AS $$
           INSERT INTO l_calls SELECT 1000 + (SELECT count(*) FROM l_calls) + g, what, setval('l_at', 500 + n) FROM generate_series(1, n) g; SELECT n $$;
         CREATE FUNCTION l_inlined(what text) RETURNS int LANGUAGE sql AS $$ SELECT x FROM l_call(what) x $$",
    )?;
    let session = a.on(3)?;
    session.run("SET multimaster.remote_functions = 'l_call,l_inlined'")?;
    session.run("SELECT l_call('it''s', 2); SELECT * FROM l_call('from'); SELECT 1, l_call(g::text) FROM generate_series(1, 2) g ORDER BY g DESC")?;
    session.run(
        "SELECT l_inlined('in'); DO $$ DECLARE v text := 'var'; BEGIN PERFORM l_inlined(v); END $$",
    )?;
    session.run("PREPARE p(text) AS SELECT l_inlined($1); EXECUTE p('prep')")?;
    a.expect(
        "SELECT count(*), string_agg(DISTINCT what, ',' ORDER BY what) FROM l_calls",
        "8,1,2,from,in,it's,prep,var",
    )?;
    let error = session.refused(
        "DO $$ DECLARE v text := 'no'; BEGIN PERFORM l_inlined(v), 1 FROM l_calls; END $$",
    )?;
    ensure!(error.state == "0A000" && error.hint.contains("SELECT function"), "{error}");
    let error = session.refused("BEGIN; DECLARE c CURSOR FOR SELECT l_call('cursor', g) FROM generate_series(1, 3) g; FETCH c; FETCH c")?;
    ensure!(error.state == "0A000" && error.detail.contains("in parts"), "{error}");
    session.run("ROLLBACK")?;
    a.expect("SELECT count(*) FROM l_calls", "8")
}
