//! Users' own two-phase transactions: prepared and finished cluster-wide.

use super::arena::Arena;
use super::checks;
use crate::wait::until;
use anyhow::{Result, ensure};
use std::time::Duration;

checks!("twophase":
    commit_prepared,
    rollback_prepared,
    prepared_rows_are_locked,
    finished_from_another_session,
    duplicate_gid_is_refused,
    reserved_gid_is_refused,
    prepare_of_temp_is_refused,
    prepared_conflict_with_a_peer,
    prepared_ddl,
    read_only_prepare,
);

fn commit_prepared(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE t_commit(id int PRIMARY KEY)")?;
    let session = a.on(1)?;
    session.run("BEGIN; INSERT INTO t_commit VALUES (1); PREPARE TRANSACTION 'user-1'")?;
    a.expect("SELECT count(*) FROM t_commit", "0")?;
    session.run("COMMIT PREPARED 'user-1'")?;
    a.expect("SELECT count(*) FROM t_commit", "1")
}

fn rollback_prepared(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE t_rollback(id int PRIMARY KEY)")?;
    let session = a.on(2)?;
    session.run("BEGIN; INSERT INTO t_rollback VALUES (1); PREPARE TRANSACTION 'user-2'")?;
    session.run("ROLLBACK PREPARED 'user-2'")?;
    // The key is free again on every node.
    for id in a.ids() {
        a.run(id, "BEGIN; INSERT INTO t_rollback VALUES (1); DELETE FROM t_rollback; COMMIT")?;
    }
    a.expect("SELECT count(*) FROM t_rollback", "0")
}

/// A prepared row is taken on the peers as well: nobody can write it until the end.
fn prepared_rows_are_locked(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE t_locked(id int PRIMARY KEY, v int); INSERT INTO t_locked VALUES (1, 0)",
    )?;
    a.run(1, "BEGIN; UPDATE t_locked SET v = 1; PREPARE TRANSACTION 'user-3'")?;
    let other = a.on(2)?;
    let error = other.refused("SET lock_timeout = '1s'; UPDATE t_locked SET v = 2")?;
    ensure!(error.state == "55P03" || error.state == "40001", "{error}");
    a.run(1, "COMMIT PREPARED 'user-3'")?;
    a.expect("SELECT v FROM t_locked", "1")
}

fn finished_from_another_session(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE t_other(id int PRIMARY KEY)")?;
    let first = a.on(3)?;
    first.run("BEGIN; INSERT INTO t_other VALUES (1); PREPARE TRANSACTION 'user-4'")?;
    drop(first);
    a.run(3, "COMMIT PREPARED 'user-4'")?;
    a.expect("SELECT count(*) FROM t_other", "1")
}

fn duplicate_gid_is_refused(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE t_duplicate(id int PRIMARY KEY)")?;
    a.run(1, "BEGIN; INSERT INTO t_duplicate VALUES (1); PREPARE TRANSACTION 'user-5'")?;
    let again = a.on(1)?;
    again.run("BEGIN; INSERT INTO t_duplicate VALUES (2)")?;
    let error = again.refused("PREPARE TRANSACTION 'user-5'")?;
    ensure!(error.state == "42710", "{error}");
    a.run(1, "COMMIT PREPARED 'user-5'")?;
    a.expect("SELECT id FROM t_duplicate", "1")
}

fn reserved_gid_is_refused(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE t_reserved(id int PRIMARY KEY)")?;
    let session = a.on(1)?;
    session.run("BEGIN; INSERT INTO t_reserved VALUES (1)")?;
    let refused = session.refused("PREPARE TRANSACTION 'MTM-1-1000-1'");
    if refused.is_err() {
        session.run("ROLLBACK PREPARED 'MTM-1-1000-1'")?;
    }
    let error = refused?;
    ensure!(!error.state.is_empty() && error.state != "XX000", "{error}");
    a.expect("SELECT count(*) FROM t_reserved", "0")
}

fn prepare_of_temp_is_refused(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE t_temp(id int PRIMARY KEY)")?;
    let session = a.on(1)?;
    session.run("BEGIN; CREATE TEMP TABLE t_temp_own(id int); INSERT INTO t_temp VALUES (1)")?;
    let error = session.refused("PREPARE TRANSACTION 'user-6'")?;
    ensure!(error.state == "0A000", "{error}");
    a.expect("SELECT count(*) FROM t_temp", "0")?;
    super::compare::nothing_prepared(a)
}

fn prepared_conflict_with_a_peer(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE t_conflict(id int PRIMARY KEY)")?;
    let (one, two) = (a.on(1)?, a.on(2)?);
    one.run("BEGIN; INSERT INTO t_conflict VALUES (1)")?;
    two.run("BEGIN; INSERT INTO t_conflict VALUES (1)")?;
    let (first, second) = Arena::both(
        || one.run("PREPARE TRANSACTION 'user-7a'").map(drop),
        || two.run("PREPARE TRANSACTION 'user-7b'").map(drop),
    );
    ensure!(first.is_err() || second.is_err(), "both were prepared");
    if first.is_ok() {
        one.run("COMMIT PREPARED 'user-7a'")?;
    }
    if second.is_ok() {
        two.run("COMMIT PREPARED 'user-7b'")?;
    }
    let expected = usize::from(first.is_ok() || second.is_ok()).to_string();
    a.expect("SELECT count(*) FROM t_conflict", &expected)
}

fn prepared_ddl(a: &Arena) -> Result<()> {
    let session = a.on(1)?;
    session.run("BEGIN; CREATE TABLE t_ddl(id int PRIMARY KEY); INSERT INTO t_ddl VALUES (1); PREPARE TRANSACTION 'user-8'")?;
    session.run("COMMIT PREPARED 'user-8'")?;
    a.expect("SELECT count(*) FROM t_ddl", "1")
}

fn read_only_prepare(a: &Arena) -> Result<()> {
    a.run(1, "BEGIN; SELECT count(*) FROM t_commit; PREPARE TRANSACTION 'user-9'")?;
    a.run(1, "COMMIT PREPARED 'user-9'")?;
    until("nothing is left of it", Duration::from_secs(5), || {
        Ok((a.ask(1, "SELECT count(*) FROM pg_prepared_xacts")? == "0").then_some(()))
    })
}
