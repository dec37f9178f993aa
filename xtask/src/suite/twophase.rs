//! Users' own two-phase transactions: prepared and finished cluster-wide.

use super::arena::Arena;
use super::checks;
use super::cut::Cut;
use super::failover::{GO_ON_WITHIN, all_online};
use crate::server::{DATABASE, Server};
use crate::session::{Session, SqlError};
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
    finished_on_another_node,
    only_its_owner_ends_it,
    operators_of_users_decide_nothing,
    one_name_on_two_nodes_at_once,
    two_ends_at_once,
    locks_of_session_and_transaction,
    members_come_back_meanwhile,
    origin_dies_and_others_end_it,
    all_killed_while_prepared,
    not_unknown_to_who_was_cut_off,
);

/// Rows of the table on all nodes, once they are the same.
fn settles(a: &Arena, query: &str, expected: &str) -> Result<()> {
    until(&format!("{query} is {expected} everywhere"), GO_ON_WITHIN, || {
        a.expect(query, expected).map(Some)
    })
}

/// Names of what users have prepared, on all nodes.
fn prepared(a: &Arena, pattern: &str, expected: &str) -> Result<()> {
    let query = format!(
        "SELECT string_agg(gid || ' of ' || owner, ', ' ORDER BY gid) FROM pg_prepared_xacts
          WHERE gid LIKE '{pattern}'"
    );
    settles(a, &query, expected)
}

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

fn finished_on_another_node(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE t_node(id int PRIMARY KEY)")?;
    for (id, end) in [(10, "COMMIT"), (11, "ROLLBACK")] {
        a.run(
            1,
            &format!("BEGIN; INSERT INTO t_node VALUES ({id}); PREPARE TRANSACTION 'user-{id}'"),
        )?;
        prepared(a, "user-1_", &format!("user-{id} of {DATABASE}"))?;
        settles(a, "SELECT count(*) FROM mtm.undecided", "0")?;
        a.run(3, &format!("{end} PREPARED 'user-{id}'"))?;
        // It is over, also where it began, and the name is free.
        for node in a.ids() {
            let error = a.on(node)?.refused(&format!("COMMIT PREPARED 'user-{id}'"))?;
            ensure!(error.state == "42704", "{error}");
        }
    }
    let block = a.on(2)?;
    a.run(1, "BEGIN; INSERT INTO t_node VALUES (12); PREPARE TRANSACTION 'user-11'")?;
    block.run("BEGIN")?;
    let error = block.refused("ROLLBACK PREPARED 'user-11'")?;
    ensure!(error.state == "25001", "{error}");
    a.run(2, "ROLLBACK PREPARED 'user-11'")?;
    settles(a, "SELECT id FROM t_node", "10")
}

fn only_its_owner_ends_it(a: &Arena) -> Result<()> {
    a.run(1, "CREATE ROLE tp_one; CREATE ROLE tp_two; CREATE TABLE t_owner(id int PRIMARY KEY)")?;
    a.run(1, "GRANT INSERT ON t_owner TO tp_one")?;
    let session = a.on(1)?;
    session.run(
        "SET ROLE tp_one; BEGIN; INSERT INTO t_owner VALUES (1); PREPARE TRANSACTION 'user-13'",
    )?;
    prepared(a, "user-13", "user-13 of tp_one")?;
    let other = a.on(2)?;
    other.run("SET ROLE tp_two")?;
    let error = other.refused("COMMIT PREPARED 'user-13'")?;
    ensure!(error.state == "42501", "{error}");
    other.run("SET ROLE tp_one")?;
    other.run("COMMIT PREPARED 'user-13'")?;
    settles(a, "SELECT count(*) FROM t_owner", "1")?;
    a.run(1, "DROP TABLE t_owner; DROP ROLE tp_one; DROP ROLE tp_two").map(drop)
}

/// Whatever somebody makes of `=`: who may end what is decided with the server's own.
fn operators_of_users_decide_nothing(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE t_trick(id int PRIMARY KEY); CREATE ROLE t_trickster;
         CREATE SCHEMA t_tricks AUTHORIZATION t_trickster; SET ROLE t_trickster;
         CREATE FUNCTION t_tricks.yes(name, name) RETURNS bool LANGUAGE sql AS 'SELECT true';
         CREATE FUNCTION t_tricks.no(xid, xid) RETURNS bool LANGUAGE plpgsql
             AS 'BEGIN RAISE ''not so''; END';
         CREATE OPERATOR t_tricks.= (LEFTARG = name, RIGHTARG = name, FUNCTION = t_tricks.yes);
         CREATE OPERATOR t_tricks.= (LEFTARG = xid, RIGHTARG = xid, FUNCTION = t_tricks.no)",
    )?;
    a.run(1, "BEGIN; INSERT INTO t_trick VALUES (1); PREPARE TRANSACTION 'user-trick'")?;
    let session = a.on(1)?;
    session.run("SET ROLE t_trickster; SET search_path = t_tricks, pg_catalog")?;
    let error = session.refused("ROLLBACK PREPARED 'user-trick'")?;
    ensure!(error.state == "42501", "{error}");
    session.run("BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'user-trickster'")?;
    session.run("COMMIT PREPARED 'user-trickster'")?;
    a.run(1, "COMMIT PREPARED 'user-trick'")?;
    settles(a, "SELECT count(*) FROM t_trick", "1")
}

/// Of two transactions that want one name, one gets it and the other one is told so.
fn one_name_on_two_nodes_at_once(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE t_name(id int PRIMARY KEY)")?;
    let (one, two) = (a.on(1)?, a.on(2)?);
    let mut expected = 0;
    for round in 0..200 {
        let [here, there] =
            [round, 1000 + round].map(|id| format!("BEGIN; INSERT INTO t_name VALUES ({id})"));
        one.run(&here)?;
        two.run(&there)?;
        let (first, second) =
            Arena::both(|| prepare_surely(&one, &here), || prepare_surely(&two, &there));
        ensure!(first.is_err() || second.is_err(), "both got the name");
        for error in [first.err(), second.err()].into_iter().flatten() {
            ensure!(error.state == "42710", "{error}");
        }
        let one = usize::from(a.on(3)?.run("COMMIT PREPARED 'user-14'").is_ok());
        expected += one;
        settles(a, "SELECT count(*) FROM t_name", &expected.to_string())?;
    }
    ensure!(expected > 0, "nobody ever got the name");
    prepared(a, "user-14", "~")
}

/// PREPARE TRANSACTION after `begin`; both again if the node said that what it knows of the name
/// may be old, which it does when its peers answer late.
fn prepare_surely(session: &Session, begin: &str) -> Result<(), SqlError> {
    let prepare = "PREPARE TRANSACTION 'user-14'";
    let again = format!("{begin}; {prepare}");
    let mut answer = session.run(prepare);
    for _ in 0..10 {
        let Err(error) = &answer else { break };
        let why = "the members of the cluster changed during the statement";
        if error.state != "40001" || !error.message.contains(why) {
            break;
        }
        answer = session.run(&again);
    }
    answer.map(drop)
}

/// COMMIT PREPARED and ROLLBACK PREPARED on two nodes at once: one of them is true, everywhere.
fn two_ends_at_once(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE t_ends(id int PRIMARY KEY)")?;
    let (one, two) = (a.on(1)?, a.on(2)?);
    let mut expected = 0;
    for round in 0..10 {
        a.run(
            3,
            &format!("BEGIN; INSERT INTO t_ends VALUES ({round}); PREPARE TRANSACTION 'user-15'"),
        )?;
        let (commit, rollback) = Arena::both(
            || one.run("COMMIT PREPARED 'user-15'"),
            || two.run("ROLLBACK PREPARED 'user-15'"),
        );
        ensure!(commit.is_err() || rollback.is_err(), "it was committed and rolled back");
        expected += usize::from(commit.is_ok());
        for error in [commit.err(), rollback.err()].into_iter().flatten() {
            let known = ["42704", "55000", "40001"].contains(&error.state.as_str());
            ensure!(known, "{error}");
        }
        // Both may have lost; then it is still there.
        if a.ask(3, "SELECT count(*) FROM pg_prepared_xacts WHERE gid = 'user-15'")? == "1" {
            let _ = a.on(3)?.run("ROLLBACK PREPARED 'user-15'");
        }
        settles(a, "SELECT count(*) FROM t_ends", &expected.to_string())?;
        prepared(a, "user-15", "~")?;
    }
    Ok(())
}

/// What PREPARE refuses late is refused before anything is announced.
fn locks_of_session_and_transaction(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE t_advisory(id int PRIMARY KEY)")?;
    let session = a.on(1)?;
    session.run("SELECT pg_advisory_lock(7)")?;
    session.run("BEGIN; SELECT pg_advisory_xact_lock(7); INSERT INTO t_advisory VALUES (1)")?;
    let error = session.refused("PREPARE TRANSACTION 'user-16'")?;
    ensure!(error.state == "0A000", "{error}");
    session.run("SELECT pg_advisory_unlock_all()")?;
    // Held by the transaction alone it goes with it.
    session.run("BEGIN; SELECT pg_advisory_xact_lock(7); INSERT INTO t_advisory VALUES (2); PREPARE TRANSACTION 'user-16'")?;
    a.run(2, "COMMIT PREPARED 'user-16'")?;
    settles(a, "SELECT id FROM t_advisory", "2")
}

fn goes_on(a: &Arena, id: usize) -> Result<()> {
    until(&format!("node {id} writes"), GO_ON_WITHIN, || {
        a.run(id, "INSERT INTO t_go_on VALUES (default)").map(Some)
    })
    .map(drop)
}

/// Kills a node, lets the others go on without it, and waits until it is back.
fn away_and_back(a: &Arena, id: usize, other: usize) -> Result<()> {
    a.cluster.node(id)?.kill()?;
    goes_on(a, other)?;
    a.cluster.node(id)?.start()?;
    all_online(a)
}

/// What a node answers in the end: nodes that have just come back may change the members once
/// more, and what is refused for that is done nowhere and may be repeated (docs/failures.md).
fn settled(a: &Arena, id: usize, sql: &str) -> Result<Result<(), SqlError>> {
    until(&format!("node {id} answers: {sql}"), GO_ON_WITHIN, || {
        let answer = a.on(id)?.run(sql).map(drop);
        let passing = |e: &SqlError| {
            e.state == "57P03" || e.message.contains("the members of the cluster changed")
        };
        Ok(if answer.as_ref().is_err_and(passing) { None } else { Some(answer) })
    })
}

/// What a user has prepared survives others' deaths and returns: who was away has it again, with
/// its rows locked, and ends it.
fn members_come_back_meanwhile(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE t_back(id int PRIMARY KEY, v int); INSERT INTO t_back VALUES (0, 0)")?;
    a.run(1, "CREATE TABLE IF NOT EXISTS t_go_on(id bigserial PRIMARY KEY)")?;
    a.run(1, "BEGIN; INSERT INTO t_back VALUES (1, 1); UPDATE t_back SET v = 1 WHERE id = 0; PREPARE TRANSACTION 'user-17a'")?;
    away_and_back(a, 2, 1)?;
    // This one is prepared while node 3 is away: it gets it from its donor.
    a.cluster.node(3)?.kill()?;
    goes_on(a, 1)?;
    settled(
        a,
        1,
        "BEGIN; CREATE TABLE t_back_ddl(id int); INSERT INTO t_back VALUES (2, 2); PREPARE TRANSACTION 'user-17b'",
    )??;
    settled(a, 2, "BEGIN; INSERT INTO t_back VALUES (3, 3); PREPARE TRANSACTION 'user-17c'")??;
    a.cluster.node(3)?.start()?;
    all_online(a)?;
    let all = ["user-17a", "user-17b", "user-17c"].map(|name| format!("{name} of {DATABASE}"));
    prepared(a, "user-17_", &all.join(", "))?;
    a.expect("SELECT count(*) FROM t_back", "1")?;
    let error =
        a.on(3)?.refused("SET lock_timeout = '1s'; UPDATE t_back SET v = 2 WHERE id = 0")?;
    ensure!(error.state == "55P03", "{error}");
    settled(a, 3, "COMMIT PREPARED 'user-17a'")??;
    settled(a, 3, "COMMIT PREPARED 'user-17b'")??;
    settled(a, 2, "ROLLBACK PREPARED 'user-17c'")??;
    settles(a, "SELECT id, v FROM t_back ORDER BY id", "0,1;1,1;2,2")?;
    settles(a, "SELECT count(*) FROM t_back_ddl", "0")?;
    super::compare::everything(a)
}

/// Whoever is left ends what the user of a dead node has prepared; the dead one hears of it.
fn origin_dies_and_others_end_it(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE t_orphan(id int PRIMARY KEY)")?;
    a.run(1, "CREATE TABLE IF NOT EXISTS t_go_on(id bigserial PRIMARY KEY)")?;
    for id in 1..=3 {
        a.run(
            1,
            &format!(
                "BEGIN; INSERT INTO t_orphan VALUES ({id}); PREPARE TRANSACTION 'user-18{id}'"
            ),
        )?;
    }
    a.cluster.node(1)?.kill()?;
    goes_on(a, 2)?;
    settled(a, 2, "COMMIT PREPARED 'user-181'")??;
    settled(a, 3, "ROLLBACK PREPARED 'user-182'")??;
    // A name that is free again is used again, and the dead one is told which is which.
    settled(a, 3, "BEGIN; INSERT INTO t_orphan VALUES (4); PREPARE TRANSACTION 'user-182'")??;
    a.cluster.node(1)?.start()?;
    all_online(a)?;
    let left = ["user-182", "user-183"].map(|name| format!("{name} of {DATABASE}"));
    prepared(a, "user-18_", &left.join(", "))?;
    settles(a, "SELECT id FROM t_orphan", "1")?;
    settled(a, 1, "COMMIT PREPARED 'user-182'")??;
    settled(a, 2, "COMMIT PREPARED 'user-183'")??;
    settles(a, "SELECT id FROM t_orphan ORDER BY id", "1;3;4")?;
    super::compare::everything(a)
}

/// Nothing but the disks is left of it.
fn all_killed_while_prepared(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE t_all(id int PRIMARY KEY)")?;
    for (node, id) in [(1, 1), (2, 2), (3, 3)] {
        a.run(
            node,
            &format!("BEGIN; INSERT INTO t_all VALUES ({id}); PREPARE TRANSACTION 'user-19{id}'"),
        )?;
    }
    let all = ["user-191", "user-192", "user-193"].map(|name| format!("{name} of {DATABASE}"));
    // Twice: the second time a checkpoint has what the log said before the first.
    for _ in 0..2 {
        a.cluster.each(Server::kill)?;
        a.cluster.each(Server::start)?;
        all_online(a)?;
        prepared(a, "user-19_", &all.join(", "))?;
        let again = "BEGIN; INSERT INTO t_all VALUES (9); PREPARE TRANSACTION 'user-191'";
        let answer = settled(a, 2, again)?;
        ensure!(answer.as_ref().is_err_and(|e| e.state == "42710"), "{answer:?}");
    }
    settled(a, 2, "COMMIT PREPARED 'user-191'")??;
    settled(a, 3, "ROLLBACK PREPARED 'user-192'")??;
    settled(a, 1, "COMMIT PREPARED 'user-193'")??;
    settles(a, "SELECT id FROM t_all ORDER BY id", "1;3")?;
    super::compare::everything(a)
}

/// A node that was cut off, and does not know yet that the others have gone on without it, says
/// of no transaction that they have prepared meanwhile that there is none.
fn not_unknown_to_who_was_cut_off(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE t_cut(id int PRIMARY KEY)")?;
    for id in 0..3 {
        let end = format!("COMMIT PREPARED 'user-cut-{id}'");
        let cut_off = a.on(3)?;
        let cut = Cut::between(a, 3, &[1, 2])?;
        let prepare =
            format!("BEGIN; INSERT INTO t_cut VALUES ({id}); PREPARE TRANSACTION 'user-cut-{id}'");
        until("the others go on", GO_ON_WITHIN, || a.run(1, &prepare).map(Some))?;
        let ended = std::thread::scope(|scope| {
            let ended = scope.spawn(|| {
                until("it is ended on node 3", GO_ON_WITHIN, || match cut_off.run(&end) {
                    Ok(_) => Ok(Some(Ok(()))),
                    Err(error) if error.state == "42704" => Ok(Some(Err(error))),
                    Err(error) => Err(error.into()),
                })
            });
            std::thread::sleep(Duration::from_millis(500));
            cut.reset()?;
            ended.join().expect("no panic in a client")
        })?;
        ended?;
        all_online(a)?;
    }
    settles(a, "SELECT count(*) FROM t_cut", "3")
}
