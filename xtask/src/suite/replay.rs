//! A node that was away replays in parallel what it missed, and has the same rows afterwards.

use super::arena::Arena;
use super::checks;
use super::compare;
use super::cut::Cut;
use super::failing::said_since;
use crate::server::DATABASE;
use crate::session::Session;
use crate::wait::until;
use anyhow::{Context, Result, ensure};
use std::time::Duration;

checks!("replay":
    everything_in_its_order,
    a_worker_is_terminated,
    the_monitor_is_terminated,
    killed_in_the_middle,
    stopped_in_the_middle,
    others_make_way,
    another_donor_takes_over,
    seen_commits_keep_nobody_waiting,
);

/// For whatever is waited for here.
const WITHIN: Duration = Duration::from_secs(120);
/// Writing clients.
const CLIENTS: usize = 6;
/// Workers that replay.
const WORKERS: &str =
    "SELECT pid FROM pg_stat_activity WHERE backend_type = 'mtm-logrep-receiver-dynworker'";

/// Ends them; how many there were.
const END_WORKERS: &str = "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid))
    FROM pg_stat_activity WHERE backend_type = 'mtm-logrep-receiver-dynworker'";

/// Each of `clients` clients does `n` transactions, on nodes 1 and 2 in turns, and repeats what
/// loses a conflict.
fn write(
    a: &Arena,
    clients: usize,
    n: usize,
    sql: impl Fn(usize, usize) -> String + Sync,
) -> Result<()> {
    let client = |client: usize| -> Result<()> {
        let session = a.on(1 + client % 2)?.patience(WITHIN);
        for i in 0..n {
            let sql = sql(client, i);
            until("a transaction without conflict", WITHIN, || match session.run(&sql) {
                Ok(_) => Ok(Some(())),
                Err(error) if ["40001", "40P01"].contains(&error.state.as_str()) => Ok(None),
                Err(error) => Err(error).with_context(|| sql.clone()),
            })?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let client = &client;
        let threads: Vec<_> =
            (0..clients).map(|number| scope.spawn(move || client(number))).collect();
        threads.into_iter().try_for_each(|t| t.join().expect("no panic in a client"))
    })
}

/// Kills node 3 and waits until the others go on.
fn leave(a: &Arena) -> Result<()> {
    a.cluster.node(3)?.kill()?;
    until("the others go on", WITHIN, || {
        a.run(1, "CREATE TABLE IF NOT EXISTS r_goes_on(id int PRIMARY KEY)")?;
        Ok(Some(()))
    })
}

fn admin(a: &Arena) -> Result<Session> {
    Ok(a.cluster.node(3)?.connect_as(DATABASE, "mtm_admin")?)
}

fn is_online(a: &Arena) -> Result<()> {
    until("node 3 is online", WITHIN, || {
        let status = a.cluster.status(a.cluster.node(3)?);
        ensure!(status == "online", "node 3 is {status}");
        Ok(Some(()))
    })
}

/// Waits until workers replay on node 3; it must not be online before.
fn workers_replay(session: &Session) -> Result<()> {
    until("workers replay", WITHIN, || {
        let status = session.one("SELECT status FROM mtm.status()")?;
        ensure!(status != "online", "node 3 is online and no worker has replayed");
        Ok((!session.run(WORKERS)?.is_empty()).then_some(()))
    })
}

/// Ten rows of a table with columns `id` and `pad`: enough to be worth a worker.
fn ten_rows(table: &str, client: usize, i: usize) -> String {
    let first = (client * 10_000 + i) * 10;
    format!("INSERT INTO {table} SELECT {first} + g, repeat('x', 200) FROM generate_series(0, 9) g")
}

/// Conflicting and independent transactions of several origins.
fn mixture(client: usize, i: usize) -> String {
    let rows = ten_rows("r_log(id, pad)", client, i);
    let (own, before) = (client * 1_000 + i, client * 1_000 + i.saturating_sub(2));
    match i % 6 {
        // A parent, then its children, then both are gone.
        0 => format!("INSERT INTO r_parent VALUES ({own}); {rows}"),
        1 => format!(
            "INSERT INTO r_child SELECT {own} * 10 + g, {own} - 1, repeat('c', 200)
             FROM generate_series(0, 9) g"
        ),
        2 => format!("DELETE FROM r_parent WHERE id = {before}; {rows}"),
        // A key that is free for a moment, or a unique value that moves from row to row.
        3 if client.is_multiple_of(2) => format!("DELETE FROM r_move WHERE id = {client}; {rows}"),
        4 if client.is_multiple_of(2) => {
            format!("INSERT INTO r_move VALUES ({client}, repeat('m', 1000 + {i}))")
        }
        3 => format!("DELETE FROM r_slot WHERE owner = {client}; {rows}"),
        4 => {
            let id = client * 10 + i / 6 % 10;
            format!("INSERT INTO r_slot VALUES ({id}, {client}, repeat('s', 2000))")
        }
        // What everybody changes.
        _ => format!("UPDATE r_sum SET n = n + 1 WHERE id = {}; {rows}", i % 3),
    }
}

fn everything_in_its_order(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE r_log(id int PRIMARY KEY, pad text);
         CREATE TABLE r_parent(id int PRIMARY KEY);
         CREATE TABLE r_child(id int PRIMARY KEY, pad text,
                              parent int REFERENCES r_parent ON DELETE CASCADE);
         ALTER TABLE r_child DROP COLUMN pad, ADD pad text;
         CREATE INDEX ON r_child(parent);
         CREATE TABLE r_move(id int PRIMARY KEY, pad text);
         CREATE TABLE r_slot(id int PRIMARY KEY, owner int UNIQUE, pad text);
         CREATE TABLE r_sum(id int PRIMARY KEY, n int);
         INSERT INTO r_sum SELECT g, 0 FROM generate_series(0, 2) g;
         CREATE TABLE r_big(id int PRIMARY KEY, pad text)",
    )?;
    leave(a)?;
    write(a, CLIENTS, 120, mixture)?;
    // Schema changes and what must not overtake them; a transaction that does not stay in memory.
    a.run(1, "CREATE UNIQUE INDEX ON r_log(pad, id); ALTER TABLE r_sum ADD by_all int DEFAULT 1")?;
    let big = "INSERT INTO r_big SELECT g, repeat('b', 100) FROM generate_series(1, 20000) g";
    let (large, rest) = Arena::both(
        || a.run(2, big),
        || write(a, CLIENTS, 60, |client, i| mixture(client, i + 120)),
    );
    large?;
    rest?;
    a.run(1, "UPDATE r_big SET pad = 'later' WHERE id % 3 = 0")?;
    a.run(2, "TRUNCATE r_child; ALTER TABLE r_log ADD more int")?;
    write(a, CLIENTS, 60, |client, i| mixture(client, i + 180))?;
    a.cluster.node(3)?.start()?;
    let session = admin(a)?;
    workers_replay(&session)?;
    // All go on while it comes back.
    write(a, CLIENTS, 60, |client, i| mixture(client, i + 240))?;
    is_online(a)?;
    a.expect("SELECT sum(n) FROM r_sum", &(CLIENTS * 50).to_string())?;
    a.expect("SELECT count(*) FROM r_big WHERE pad = 'later'", "6666")?;
    compare::everything(a)
}

/// What is missed by the other checks: many transactions for workers, in which each client counts.
fn miss(a: &Arena, table: &str, n: usize) -> Result<()> {
    a.run(1, &format!("CREATE TABLE {table}(id int PRIMARY KEY, pad text)"))?;
    a.run(1, &format!("CREATE TABLE {table}_n(id int PRIMARY KEY, n int)"))?;
    a.run(1, &format!("INSERT INTO {table}_n SELECT g, 0 FROM generate_series(0, 9) g"))?;
    leave(a)?;
    write(a, CLIENTS, n, |client, i| {
        let rows = ten_rows(table, client, i);
        format!("{rows}; UPDATE {table}_n SET n = n + 1 WHERE id = {client}")
    })
}

/// Nothing was left out and nothing done twice.
fn all_counted(a: &Arena, table: &str, n: usize) -> Result<()> {
    is_online(a)?;
    a.expect(&format!("SELECT count(*) FROM {table}"), &(CLIENTS * n * 10).to_string())?;
    a.expect(&format!("SELECT sum(n) FROM {table}_n"), &(CLIENTS * n).to_string())
}

/// What a worker does not finish is finished by somebody else. The server goes on.
fn a_worker_is_terminated(a: &Arena) -> Result<()> {
    miss(a, "r_term", 250)?;
    a.cluster.node(3)?.start()?;
    let session = admin(a)?;
    workers_replay(&session)?;
    let mut ended = 0;
    until("node 3 is online", WITHIN, || {
        let status = session.one("SELECT status FROM mtm.status()")?;
        if status == "online" {
            return Ok(Some(()));
        }
        ended += session.one(END_WORKERS)?.parse::<usize>()?;
        Ok(None)
    })?;
    ensure!(ended > 0, "no worker was ended");
    println!("    {ended} workers ended");
    // A server that had to start again would have ended this session.
    session.run("SELECT 1").context("the server has started again")?;
    all_counted(a, "r_term", 250)
}

/// The next one starts all processes again while those that replay come to their end: nothing is
/// done twice.
fn the_monitor_is_terminated(a: &Arena) -> Result<()> {
    miss(a, "r_monitor", 250)?;
    a.cluster.node(3)?.start()?;
    let session = admin(a)?;
    workers_replay(&session)?;
    let ended = session.one(
        "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid))
           FROM pg_stat_activity WHERE backend_type = 'mtm-monitor'",
    )?;
    ensure!(ended == "1", "{ended} monitors were ended");
    all_counted(a, "r_monitor", 250)
}

fn killed_in_the_middle(a: &Arena) -> Result<()> {
    miss(a, "r_kill", 250)?;
    for _ in 0..3 {
        a.cluster.node(3)?.start()?;
        let session = admin(a)?;
        until("workers replay, or there is nothing more", WITHIN, || {
            let status = session.one("SELECT status FROM mtm.status()")?;
            Ok((status == "online" || !session.run(WORKERS)?.is_empty()).then_some(()))
        })?;
        a.cluster.node(3)?.kill()?;
    }
    a.cluster.node(3)?.start()?;
    all_counted(a, "r_kill", 250)
}

/// An orderly stop is one: what is begun is brought to its end before.
fn stopped_in_the_middle(a: &Arena) -> Result<()> {
    miss(a, "r_stop", 250)?;
    let node = a.cluster.node(3)?;
    let from = std::fs::metadata(&node.log)?.len();
    let mut stopped = 0;
    for _ in 0..3 {
        node.start()?;
        let session = admin(a)?;
        until("workers replay, or there is nothing more", WITHIN, || {
            let status = session.one("SELECT status FROM mtm.status()")?;
            let replays = status != "online";
            let workers = !session.run(WORKERS)?.is_empty();
            stopped += usize::from(replays && workers);
            Ok((!replays || workers).then_some(()))
        })?;
        node.stop()?;
    }
    ensure!(stopped > 0, "it was never stopped while workers replayed");
    let panics = said_since(node, from, "PANIC")?;
    ensure!(panics == 0, "node 3 did not stop in an orderly way");
    println!("    stopped {stopped} times");
    node.start()?;
    all_counted(a, "r_stop", 250)
}

/// A session that stands in a worker's way is ended, not the worker.
fn others_make_way(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE r_way(id int PRIMARY KEY, pad text)")?;
    a.run(1, "INSERT INTO r_way SELECT g, '' FROM generate_series(0, 99) g")?;
    miss(a, "r_before", 100)?;
    write(a, CLIENTS, 10, |client, i| {
        let pad = "repeat('w', 200)";
        format!("UPDATE r_way SET pad = {pad} WHERE id / 10 = {client} AND {i} >= 0")
    })?;
    a.cluster.node(3)?.start()?;
    let session = admin(a)?;
    session.run("BEGIN; LOCK TABLE r_way IN SHARE ROW EXCLUSIVE MODE")?;
    let before = session.one("SELECT count(*) FROM r_way WHERE pad <> ''")?;
    ensure!(before == "0", "replayed before it could be locked");
    all_counted(a, "r_before", 100)?;
    ensure!(session.run("COMMIT").is_err(), "the session stood in the way and was not ended");
    a.expect("SELECT count(*) FROM r_way WHERE pad <> ''", &(CLIENTS * 10).to_string())
}

/// Stands still on node 3 while there is a file of this name in its data directory.
const HOLDS: &str = "CREATE FUNCTION r_holds() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        WHILE (SELECT my_node_id FROM mtm.status()) = 3
              AND (pg_stat_file('r_holds', true)).size IS NOT NULL
        LOOP PERFORM pg_sleep(0.01); END LOOP;
        RETURN NEW;
    END $$";

/// A transaction takes long, and another donor is chosen meanwhile. What the first one's replay has
/// begun is brought to its end, and whoever stands in the next one's way is ended as before.
fn another_donor_takes_over(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE r_held(id int PRIMARY KEY); CREATE TABLE r_after(id int PRIMARY KEY);
         CREATE TABLE r_last(id int PRIMARY KEY, n int); INSERT INTO r_last VALUES (1, 0);
         CREATE TABLE r_much(id int PRIMARY KEY, pad text)",
    )?;
    a.run(1, HOLDS)?;
    a.run(
        1,
        "CREATE TRIGGER holds BEFORE INSERT ON r_held FOR EACH ROW EXECUTE FUNCTION r_holds();
         ALTER TABLE r_held ENABLE ALWAYS TRIGGER holds",
    )?;
    leave(a)?;
    a.run(1, "INSERT INTO r_held VALUES (1)")?;
    // More than may be under way at a time.
    let session = a.on(1)?;
    for id in 0..300 {
        session.run(&format!("INSERT INTO r_after VALUES ({id})"))?;
    }
    // As long as it lacks so much it is not included by the others.
    a.run(1, "INSERT INTO r_much SELECT g, repeat('m', 1000) FROM generate_series(1, 5000) g")?;
    a.run(1, "UPDATE r_last SET n = 1")?;
    let held = a.cluster.node(3)?.data.join("r_holds");
    std::fs::write(&held, "")?;
    a.cluster.node(3)?.start()?;
    let lock = admin(a)?;
    lock.run("BEGIN; LOCK TABLE r_last IN SHARE ROW EXCLUSIVE MODE")?;
    let session = admin(a)?;
    until("node 3 is in the middle of a transaction", WITHIN, || {
        let held = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        Ok((session.one(held)? == "1").then_some(()))
    })?;
    let donor: usize = session.one("SELECT from_node FROM mtm.recovery_progress()")?.parse()?;
    let other = 3 - donor;
    let other_s = a.cluster.node(other)?.connect_as(DATABASE, "mtm_admin")?;
    // Neither hears the other from here on, and so another donor is chosen.
    let cut = Cut::between(a, 3, &[donor])?;
    let asks = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE
                'START_REPLICATION SLOT \"mtm_slot_3\"%recovery%'";
    let taken_over = until("another donor is asked", WITHIN, || {
        let n = other_s.one(asks)?;
        ensure!(n == "1", "{n} ask node {other} instead of node {donor}");
        Ok(Some(()))
    });
    cut.heal()?;
    std::fs::remove_file(&held)?;
    taken_over?;
    is_online(a)?;
    ensure!(lock.run("COMMIT").is_err(), "the session stood in the way and was not ended");
    until("all nodes write", WITHIN, || a.can_write().map(Some))?;
    a.expect("SELECT count(*), (SELECT n FROM r_last) FROM r_after", "300,1")
}

/// Whether the tables of transactions of these nodes are empty.
fn nothing_remembered(a: &Arena, nodes: &[usize]) -> Result<Option<()>> {
    for id in nodes {
        let used = a.ask(*id, "SELECT used FROM mtm.transaction_table()")?;
        ensure!(used == "0", "node {id} remembers {used} transactions");
    }
    Ok(Some(()))
}

/// What a worker has committed, and what is not known to be durable, keeps nobody waiting while it
/// waits for the outcome of another transaction.
fn seen_commits_keep_nobody_waiting(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE r_locked(id int PRIMARY KEY, pad text)")?;
    a.run(1, "CREATE TABLE r_free(id int PRIMARY KEY)")?;
    // What node 3 has announced would be remembered while it is away.
    until("all is forgotten", WITHIN, || nothing_remembered(a, &[1, 2, 3]))?;
    let lock = a.cluster.node(2)?.connect_as(DATABASE, "mtm_admin")?;
    lock.run("BEGIN; LOCK TABLE r_locked IN SHARE MODE")?;
    let node_3 = admin(a)?;
    let prepared = |n: &str| {
        until("node 3 has prepared them", WITHIN, || {
            let count = node_3.one("SELECT count(*) FROM pg_prepared_xacts")?;
            ensure!(count == n, "{count} are prepared");
            Ok(Some(()))
        })
    };
    // Too large to be kept open.
    let large = |id: u32| format!("INSERT INTO r_locked VALUES ({id}, repeat('x', 20000))");
    let (first, second) = (a.on(1)?.patience(WITHIN), a.on(1)?.patience(WITHIN));
    std::thread::scope(|scope| -> Result<()> {
        // With it there is work outstanding, and the receiver leaves what follows to workers.
        scope.spawn(|| first.run(&large(0)));
        prepared("1")?;
        let many: String =
            (0..20).map(|id| format!("BEGIN; INSERT INTO r_free VALUES ({id}); COMMIT;")).collect();
        let sql = format!("{many} {}", large(1));
        scope.spawn(move || second.run(&sql));
        prepared("2")?;
        let cut = Cut::between(a, 3, &[1, 2])?;
        // The others abort both and forget them, so that nobody can tell.
        let forgotten = until("the others go on and forget both", WITHIN, || {
            a.run(1, "INSERT INTO r_free VALUES (100) ON CONFLICT DO NOTHING")?;
            nothing_remembered(a, &[1, 2])
        });
        cut.reset()?;
        forgotten?;
        lock.run("ROLLBACK")?;
        is_online(a)
    })?;
    until("all nodes write", WITHIN, || a.can_write().map(Some))?;
    a.expect("SELECT count(*) FROM r_free", "21")?;
    compare::everything(a)
}
