//! Things that PREPARE TRANSACTION forbids and that must work all the same in writing transactions.

use super::arena::Arena;
use super::checks;
use crate::wait::until;
use anyhow::{Result, ensure};
use std::time::Duration;

checks!("features":
    notify_reaches_local_listeners,
    with_hold_cursor,
    session_advisory_locks,
    transaction_advisory_locks,
    exported_snapshot,
    temp_tables_alone,
    temp_and_permanent_mixed,
    temp_table_on_commit_actions,
    temp_table_shadows_permanent,
    prepared_statements,
    cursors_in_a_writing_transaction,
    session_settings_stay_local,
    vacuum_analyze_reindex_locally,
    lock_table,
    explain_analyze_writes,
    create_and_drop_database_locally,
    alter_system_is_local,
    large_objects_do_not_break_commit,
    two_databases,
);

fn notify_reaches_local_listeners(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE f_notify(id int PRIMARY KEY)")?;
    let listener = a.on(1)?;
    listener.run("LISTEN f_channel")?;
    a.run(1, "BEGIN; INSERT INTO f_notify VALUES (1); NOTIFY f_channel, 'hello'; COMMIT")?;
    until("the notification arrives", Duration::from_secs(5), || {
        let heard = listener.notifications();
        Ok(heard.contains(&("f_channel".into(), "hello".into())).then_some(()))
    })?;
    a.expect("SELECT count(*) FROM f_notify", "1")
}

fn with_hold_cursor(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE f_hold(id int PRIMARY KEY)")?;
    let session = a.on(1)?;
    session.run(
        "BEGIN; INSERT INTO f_hold SELECT generate_series(1, 5);
         DECLARE c CURSOR WITH HOLD FOR SELECT id FROM f_hold ORDER BY id; COMMIT",
    )?;
    a.expect("SELECT count(*) FROM f_hold", "5")?;
    ensure!(session.run("FETCH 3 FROM c")?.len() == 3, "the cursor does not hold");
    session.run("INSERT INTO f_hold VALUES (6)")?;
    ensure!(session.run("FETCH ALL FROM c")?.len() == 2, "the cursor does not hold over a commit");
    a.expect("SELECT count(*) FROM f_hold", "6")
}

fn session_advisory_locks(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE f_advisory(id int PRIMARY KEY)")?;
    let session = a.on(2)?;
    session
        .run("BEGIN; SELECT pg_advisory_lock(4711); INSERT INTO f_advisory VALUES (1); COMMIT")?;
    a.expect("SELECT count(*) FROM f_advisory", "1")?;
    ensure!(a.ask(2, "SELECT pg_try_advisory_lock(4711)")? == "f", "the lock was lost at commit");
    ensure!(session.one("SELECT pg_advisory_unlock(4711)")? == "t", "the lock was not ours");
    Ok(())
}

fn transaction_advisory_locks(a: &Arena) -> Result<()> {
    let session = a.on(2)?;
    session.run(
        "BEGIN; SELECT pg_advisory_xact_lock(4712); INSERT INTO f_advisory VALUES (2); COMMIT",
    )?;
    ensure!(
        a.ask(2, "SELECT pg_try_advisory_xact_lock(4712)")? == "t",
        "the lock outlived its transaction"
    );
    a.expect("SELECT count(*) FROM f_advisory", "2")
}

fn exported_snapshot(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE f_snapshot(id int PRIMARY KEY)")?;
    let (writer, reader) = (a.on(1)?, a.on(1)?);
    writer.run("BEGIN ISOLATION LEVEL REPEATABLE READ; INSERT INTO f_snapshot VALUES (1)")?;
    let snapshot = writer.one("SELECT pg_export_snapshot()")?;
    reader.run(&format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{snapshot}'"
    ))?;
    writer.run("COMMIT")?;
    ensure!(reader.one("SELECT count(*) FROM f_snapshot")? == "0", "the imported snapshot moved");
    reader.run("COMMIT")?;
    a.expect("SELECT count(*) FROM f_snapshot", "1")
}

fn temp_tables_alone(a: &Arena) -> Result<()> {
    for id in a.ids() {
        let session = a.on(id)?;
        session.run("CREATE TEMP TABLE f_temp(id serial, v text)")?;
        session.run("INSERT INTO f_temp(v) SELECT 'x' FROM generate_series(1, 1000)")?;
        session.run("CREATE INDEX ON f_temp(v); ALTER TABLE f_temp ADD w int; UPDATE f_temp SET w = 1; DROP TABLE f_temp")?;
    }
    Ok(())
}

fn temp_and_permanent_mixed(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE f_mixed(id int PRIMARY KEY)")?;
    let session = a.on(3)?;
    session.run(
        "BEGIN; CREATE TEMP TABLE f_mix_temp(id int); INSERT INTO f_mix_temp VALUES (1), (2), (3);
         INSERT INTO f_mixed SELECT id FROM f_mix_temp; DROP TABLE f_mix_temp; COMMIT",
    )?;
    session.run(
        "BEGIN; CREATE TEMP TABLE f_mix_temp(id int); INSERT INTO f_mixed VALUES (4); COMMIT;
         INSERT INTO f_mix_temp SELECT id FROM f_mixed",
    )?;
    ensure!(
        session.one("SELECT count(*) FROM f_mix_temp")? == "4",
        "the temporary table lost rows"
    );
    session.run("BEGIN; TRUNCATE f_mix_temp; CREATE TABLE f_mixed_new(id int PRIMARY KEY); INSERT INTO f_mixed_new VALUES (1); COMMIT")?;
    a.expect("SELECT count(*) FROM f_mixed", "4")?;
    a.expect("SELECT count(*) FROM f_mixed_new", "1")
}

fn temp_table_on_commit_actions(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE f_oncommit(id int PRIMARY KEY)")?;
    let session = a.on(1)?;
    session.run(
        "CREATE TEMP TABLE f_oc_delete(id int) ON COMMIT DELETE ROWS;
         BEGIN; CREATE TEMP TABLE f_oc_drop(id int) ON COMMIT DROP;
         INSERT INTO f_oc_delete VALUES (1); INSERT INTO f_oncommit SELECT id FROM f_oc_delete; COMMIT",
    )?;
    ensure!(
        session.one("SELECT count(*) FROM f_oc_delete")? == "0",
        "ON COMMIT DELETE ROWS did nothing"
    );
    ensure!(
        session.one("SELECT to_regclass('f_oc_drop') IS NULL")? == "t",
        "ON COMMIT DROP did nothing"
    );
    a.expect("SELECT count(*) FROM f_oncommit", "1")
}

fn temp_table_shadows_permanent(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE f_shadow(id int PRIMARY KEY); INSERT INTO f_shadow VALUES (1)")?;
    let session = a.on(2)?;
    session.run("CREATE TEMP TABLE f_shadow(id int, extra int)")?;
    session.run("ALTER TABLE f_shadow ADD another int; INSERT INTO f_shadow VALUES (7, 7, 7)")?;
    session.run("BEGIN; INSERT INTO public.f_shadow VALUES (2); DROP TABLE f_shadow; COMMIT")?;
    a.expect("SELECT id FROM f_shadow ORDER BY id", "1;2")
}

fn prepared_statements(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE f_prepared(id int PRIMARY KEY)")?;
    let session = a.on(1)?;
    session.run("PREPARE p(int) AS INSERT INTO f_prepared VALUES ($1)")?;
    for id in 1..=10 {
        session.run(&format!("EXECUTE p({id})"))?;
    }
    session.run("DEALLOCATE p")?;
    a.expect("SELECT count(*) FROM f_prepared", "10")
}

fn cursors_in_a_writing_transaction(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE f_cursor(id int PRIMARY KEY, v int); INSERT INTO f_cursor SELECT g, 0 FROM generate_series(1, 10) g")?;
    let session = a.on(2)?;
    session.run("BEGIN; DECLARE c CURSOR FOR SELECT * FROM f_cursor ORDER BY id FOR UPDATE")?;
    for _ in 0..3 {
        session.run("FETCH c")?;
        session.run("UPDATE f_cursor SET v = 1 WHERE CURRENT OF c")?;
    }
    session.run("COMMIT")?;
    a.expect("SELECT sum(v), count(*) FROM f_cursor", "3,10")
}

fn session_settings_stay_local(a: &Arena) -> Result<()> {
    a.run(1, "BEGIN; SET LOCAL work_mem = '7MB'; SET search_path = pg_catalog; COMMIT; RESET ALL")?;
    a.expect("SHOW work_mem", "4MB")
}

fn vacuum_analyze_reindex_locally(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE f_vacuum(id int PRIMARY KEY, v int); INSERT INTO f_vacuum SELECT g, g FROM generate_series(1, 1000) g")?;
    let session = a.on(2)?;
    for sql in [
        "VACUUM f_vacuum",
        "VACUUM (FULL, ANALYZE) f_vacuum",
        "ANALYZE f_vacuum",
        "REINDEX TABLE f_vacuum",
        "REINDEX TABLE CONCURRENTLY f_vacuum",
        "CLUSTER f_vacuum USING f_vacuum_pkey",
        "ALTER TABLE f_vacuum SET WITHOUT CLUSTER",
        "CHECKPOINT",
    ] {
        session.run(sql)?;
        a.run(1, "UPDATE f_vacuum SET v = v + 1 WHERE id = 1")?;
    }
    a.expect("SELECT v FROM f_vacuum WHERE id = 1", "9")
}

fn lock_table(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE f_lock(id int PRIMARY KEY)")?;
    a.run(2, "BEGIN; LOCK TABLE f_lock IN SHARE ROW EXCLUSIVE MODE; INSERT INTO f_lock VALUES (1); COMMIT")?;
    a.expect("SELECT count(*) FROM f_lock", "1")
}

fn explain_analyze_writes(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE f_explain(id int PRIMARY KEY)")?;
    a.run(3, "EXPLAIN (ANALYZE) INSERT INTO f_explain SELECT generate_series(1, 7)")?;
    a.run(3, "EXPLAIN INSERT INTO f_explain SELECT generate_series(8, 9)")?;
    a.expect("SELECT count(*) FROM f_explain", "7")
}

fn create_and_drop_database_locally(a: &Arena) -> Result<()> {
    a.run(2, "CREATE DATABASE f_other")?;
    let found = "SELECT count(*) FROM pg_database WHERE datname = 'f_other'";
    ensure!(a.ask(2, found)? == "1" && a.ask(1, found)? == "0", "CREATE DATABASE is not local");
    a.run(2, "DROP DATABASE f_other")?;
    Ok(())
}

fn alter_system_is_local(a: &Arena) -> Result<()> {
    a.run(2, "ALTER SYSTEM SET work_mem = '5MB'")?;
    a.run(2, "SELECT pg_reload_conf()")?;
    until("node 2 has the new value", Duration::from_secs(10), || {
        Ok((a.ask(2, "SHOW work_mem")? == "5MB").then_some(()))
    })?;
    ensure!(a.ask(1, "SHOW work_mem")? == "4MB", "ALTER SYSTEM went to another node");
    a.run(2, "ALTER SYSTEM RESET work_mem")?;
    a.run(2, "SELECT pg_reload_conf()")?;
    Ok(())
}

/// The manual: creating large objects is allowed, they are not replicated.
fn large_objects_do_not_break_commit(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE f_lo(id int PRIMARY KEY)")?;
    a.run(1, "BEGIN; SELECT lo_from_bytea(0, 'abc'); INSERT INTO f_lo VALUES (1); COMMIT")?;
    a.run(1, "SELECT lo_unlink(oid) FROM pg_largeobject_metadata")?;
    a.expect("SELECT count(*) FROM f_lo", "1")
}

/// Only one database is replicated; others on the same servers work as ever.
fn two_databases(a: &Arena) -> Result<()> {
    let node = a.cluster.node(1)?;
    let session = node.connect_as("postgres", "xtask")?;
    session
        .run("CREATE TABLE f_elsewhere(id int PRIMARY KEY); INSERT INTO f_elsewhere VALUES (1)")?;
    let other = a.cluster.node(2)?.connect_as("postgres", "xtask")?;
    ensure!(
        other.one("SELECT to_regclass('f_elsewhere') IS NULL")? == "t",
        "another database is replicated"
    );
    session.run("DROP TABLE f_elsewhere")?;
    Ok(())
}
