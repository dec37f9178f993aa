//! Parts that fail inside one node: it leaves with a reason, the others go on, and it comes back
//! when the cause is gone.

use super::arena::Arena;
use super::checks;
use crate::server::DATABASE;
use crate::session::Session;
use crate::wait::until;
use anyhow::{Context, Result, ensure};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

checks!("failing":
    spill_directory_unwritable,
    prepared_slots_taken,
    refusals_of_transactions_do_not_count,
);

/// What the others may take until they can write again.
const GO_ON_WITHIN: Duration = Duration::from_secs(30);
/// Who may come back is online by itself within this time.
const BACK_WITHIN: Duration = Duration::from_secs(60);

fn admin(a: &Arena, id: usize) -> Result<Session> {
    Ok(a.cluster.node(id)?.connect_as(DATABASE, "mtm_admin")?)
}

/// A node's status and reason.
fn state(a: &Arena, id: usize) -> Result<(String, String)> {
    let rows = admin(a, id)?.run("SELECT status, reason FROM mtm.status()")?;
    let mut row = rows.into_iter().next().context("one row")?.into_iter();
    let mut next = || row.next().flatten().unwrap_or_default();
    Ok((next(), next()))
}

fn is_online(a: &Arena, id: usize) -> Result<()> {
    until(&format!("node {id} is online by itself"), BACK_WITHIN, || {
        let (status, reason) = state(a, id)?;
        ensure!(status == "online", "node {id} is {status}: {reason}");
        Ok(Some(()))
    })
}

fn all_are_online(a: &Arena) -> Result<()> {
    a.ids().into_iter().try_for_each(|id| is_online(a, id))?;
    a.can_write()
}

/// Waits until a node stays out by itself and says so with these words.
fn stays_out(a: &Arena, id: usize, words: &[&str]) -> Result<()> {
    until(&format!("node {id} says why it stays out"), GO_ON_WITHIN, || {
        let (status, reason) = state(a, id)?;
        ensure!(status == "disabled", "node {id} is {status}: {reason}");
        for word in words {
            ensure!(reason.contains(word), "the reason lacks \"{word}\": {reason}");
        }
        Ok(Some(()))
    })
}

/// Repeats what is refused at first because of another node, as an ordinary client would.
fn in_the_end(a: &Arena, id: usize, sql: &str) -> Result<()> {
    until(&format!("node {id} can: {sql}"), GO_ON_WITHIN, || {
        std::thread::sleep(Duration::from_millis(100));
        a.run(id, sql).map(Some)
    })
    .map(drop)
}

fn generation(a: &Arena, id: usize) -> Result<String> {
    a.ask(id, "SELECT gen_num, gen_members FROM mtm.status()")
}

fn spill_directory_unwritable(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_spill(id int PRIMARY KEY, v text)")?;
    let directory = a.cluster.node(3)?.data.join("base/pgsql_tmp/pgsql_tmp_mtm");
    let permit = |mode| std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(mode));
    permit(0o500)?;
    let out = in_the_end(
        a,
        1,
        "INSERT INTO x_spill SELECT g, repeat('x', 500) FROM generate_series(1, 10000) g",
    )
    .and_then(|()| stays_out(a, 3, &["pgsql_tmp_mtm", "make room", "since"]));
    let wrote = a.run(2, "INSERT INTO x_spill VALUES (0, 'two')");
    permit(0o700)?;
    out?;
    wrote?;
    all_are_online(a)?;
    a.expect("SELECT count(*) FROM x_spill", "10001")
}

fn prepared_slots_taken(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_slots(id int PRIMARY KEY)")?;
    let session = admin(a, 3)?;
    let most: usize = session.one("SHOW max_prepared_transactions")?.parse()?;
    for i in 0..most {
        let prepare =
            format!("BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'user-x-{i}'");
        // The last places may be in use for a moment.
        if session.run(&prepare).is_err() {
            session.run("ROLLBACK")?;
        }
    }
    let out = in_the_end(a, 1, "INSERT INTO x_slots VALUES (1)")
        .and_then(|()| stays_out(a, 3, &["places for prepared transactions", "pg_prepared_xacts"]));
    for row in session.run("SELECT gid FROM pg_prepared_xacts WHERE gid LIKE 'user-x-%'")? {
        let gid = row.into_iter().flatten().next().context("a name")?;
        session.run(&format!("ROLLBACK PREPARED '{gid}'"))?;
    }
    out?;
    all_are_online(a)?;
    a.expect("SELECT count(*) FROM x_slots", "1")
}

/// What is wrong with a transaction says nothing about the node that refuses it.
fn refusals_of_transactions_do_not_count(a: &Arena) -> Result<()> {
    let port = a.cluster.node(3)?.port;
    a.run(
        1,
        &format!(
            "CREATE TABLE x_no(id int PRIMARY KEY, n int);
             INSERT INTO x_no SELECT g, 0 FROM generate_series(1, 4) g;
             CREATE FUNCTION x_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
               IF current_setting('port') = '{port}' THEN RAISE EXCEPTION 'not here'; END IF;
               RETURN NEW; END $$;
             CREATE TABLE x_never(id int PRIMARY KEY);
             CREATE TRIGGER x_t BEFORE INSERT ON x_never FOR EACH ROW EXECUTE FUNCTION x_refuse();
             ALTER TABLE x_never ENABLE ALWAYS TRIGGER x_t"
        ),
    )?;
    let before = generation(a, 1)?;
    for i in 0..20 {
        let error = a.on(1)?.refused(&format!("INSERT INTO x_never VALUES ({i})"))?;
        ensure!(error.state == "P0001", "{error}");
    }
    let load = |id: usize| -> Result<()> {
        let session = a.on(id)?;
        for i in 0..150 {
            // Refused or not: both are ordinary here.
            let _ = session.run(&format!("UPDATE x_no SET n = n + 1 WHERE id = {}", 1 + i % 4));
        }
        Ok(())
    };
    let load = &load;
    std::thread::scope(|scope| {
        let threads: Vec<_> = a.ids().into_iter().map(|id| scope.spawn(move || load(id))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic in a writer"))
    })?;
    let after = generation(a, 1)?;
    ensure!(before == after, "the generation changed from {before} to {after}");
    all_are_online(a)
}
