//! Large transactions travel while they are still being made. What is rolled back on the way must
//! leave nothing, what breaks on the way must lose nothing.

use super::arena::Arena;
use super::checks;
use crate::wait::until;
use anyhow::{Context, Result, ensure};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

checks!("large_stream":
    rolled_back_in_the_middle,
    schema_changes_rolled_back_in_the_middle,
    exception_blocks,
    rows_that_cannot_be_shipped,
    stored_out_of_line,
    prepared_by_a_user,
    rolled_back_before_its_commit,
    lost_before_its_commit,
    stream_broken_in_the_middle,
    three_origins_at_once,
    no_room_on_a_peer,
    small_ones_on_the_origin,
);

const PATIENCE: Duration = Duration::from_secs(180);

/// Runs statements that may take long.
fn run(a: &Arena, id: usize, sql: &str) -> Result<()> {
    let session = a.on(id)?.patience(PATIENCE);
    session.run(sql).with_context(|| format!("on node {id}"))?;
    Ok(())
}

/// How many transactions the node has sent before their commit.
fn streamed(a: &Arena, id: usize) -> Result<u64> {
    let sum = "SELECT coalesce(sum(stream_txns), 0) FROM pg_stat_replication_slots";
    Ok(a.ask(id, sum)?.parse()?)
}

/// Does `work` on a node; it must have sent a transaction before its commit.
fn while_streaming(a: &Arena, id: usize, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = streamed(a, id)?;
    work()?;
    let limit = Duration::from_secs(10);
    until("a transaction was sent before its commit", limit, || {
        Ok((streamed(a, id)? > before).then_some(()))
    })
}

/// Where a node keeps transactions that are not announced yet.
fn spill_directory(a: &Arena, id: usize) -> Result<PathBuf> {
    let node = a.cluster.node(id)?;
    Ok(node.data.join("base/pgsql_tmp/pgsql_tmp_mtm"))
}

fn spilled(a: &Arena, id: usize) -> Result<usize> {
    Ok(std::fs::read_dir(spill_directory(a, id)?)?.count())
}

fn wait_spilled(a: &Arena, id: usize, there: bool) -> Result<()> {
    let what = if there { "files of it on" } else { "no files of it left on" };
    until(&format!("{what} node {id}"), Duration::from_secs(20), || {
        Ok(((spilled(a, id)? > 0) == there).then_some(()))
    })
}

fn nothing_spilled(a: &Arena) -> Result<()> {
    a.ids().into_iter().try_for_each(|id| wait_spilled(a, id, false))
}

fn rolled_back_in_the_middle(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE ls_sub(id int PRIMARY KEY, v text)")?;
    while_streaming(a, 1, || {
        run(
            a,
            1,
            "BEGIN;
             INSERT INTO ls_sub SELECT g, 'top' FROM generate_series(1, 100000) g;
             SAVEPOINT one; UPDATE ls_sub SET v = 'no' WHERE id <= 50000;
             SAVEPOINT two; DELETE FROM ls_sub WHERE id % 2 = 0; RELEASE two;
             ROLLBACK TO one;
             INSERT INTO ls_sub SELECT g, 'between' FROM generate_series(100001, 150000) g;
             SAVEPOINT three; UPDATE ls_sub SET v = 'kept' WHERE id % 10 = 0;
             SAVEPOINT four; INSERT INTO ls_sub SELECT g, 'no' FROM generate_series(150001, 190000) g;
             ROLLBACK TO four; RELEASE three;
             INSERT INTO ls_sub SELECT g, 'end' FROM generate_series(150001, 200000) g;
             COMMIT",
        )
    })?;
    a.expect(
        "SELECT v, count(*), sum(id::bigint) FROM ls_sub GROUP BY v ORDER BY v",
        "between,45000,5625000000;end,50000,8750025000;kept,15000,1125075000;top,90000,4500000000",
    )?;
    nothing_spilled(a)
}

fn schema_changes_rolled_back_in_the_middle(a: &Arena) -> Result<()> {
    while_streaming(a, 2, || {
        run(
            a,
            2,
            "BEGIN;
             CREATE TABLE ls_ddl(id int PRIMARY KEY, v text);
             INSERT INTO ls_ddl SELECT g, 'a' FROM generate_series(1, 40000) g;
             SAVEPOINT one;
             ALTER TABLE ls_ddl ADD COLUMN gone int DEFAULT 7;
             INSERT INTO ls_ddl SELECT g, 'no' FROM generate_series(40001, 80000) g;
             CREATE TABLE ls_gone AS SELECT * FROM ls_ddl;
             ALTER TABLE ls_ddl ALTER COLUMN gone TYPE bigint;
             ROLLBACK TO one;
             INSERT INTO ls_ddl SELECT g, 'b' FROM generate_series(40001, 80000) g;
             SAVEPOINT two;
             ALTER TABLE ls_ddl ADD COLUMN y float DEFAULT random();
             INSERT INTO ls_ddl SELECT g, 'c' FROM generate_series(80001, 100000) g;
             TRUNCATE ls_sub;
             RELEASE two;
             CREATE TABLE ls_as AS SELECT id, y FROM ls_ddl;
             INSERT INTO ls_ddl SELECT g, 'd' FROM generate_series(100001, 120000) g;
             COMMIT",
        )
    })?;
    a.expect(
        "SELECT v, count(*), sum(id::bigint), count(DISTINCT y) > 10000 FROM ls_ddl GROUP BY v ORDER BY v",
        "a,40000,800020000,t;b,40000,2400020000,t;c,20000,1800010000,t;d,20000,2200010000,t",
    )?;
    a.same("SELECT count(*), sum(hashtext(t::text)) FROM ls_ddl t")?;
    a.same("SELECT count(*), sum(hashtext(t::text)) FROM ls_as t")?;
    a.expect("SELECT to_regclass('ls_gone'), (SELECT count(*) FROM ls_sub)", "~,0")
}

fn exception_blocks(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE ls_except(id int PRIMARY KEY, v text)")?;
    while_streaming(a, 3, || {
        run(
            a,
            3,
            "DO $$ BEGIN
               FOR i IN 1..20000 LOOP
                 BEGIN
                   INSERT INTO ls_except VALUES (i, 'block');
                   IF i % 4 = 0 THEN RAISE EXCEPTION 'no'; END IF;
                 EXCEPTION WHEN raise_exception THEN NULL;
                 END;
               END LOOP;
             END $$",
        )
    })?;
    a.expect("SELECT count(*), sum(id), min(id % 4) FROM ls_except", "15000,150000000,1")
}

/// A change that does not say which row it was refuses its transaction, unless it was rolled back.
fn rows_that_cannot_be_shipped(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE ls_nothing(id int, v text); CREATE TABLE ls_fine(id int PRIMARY KEY);
         INSERT INTO ls_nothing SELECT g, 'x' FROM generate_series(1, 10) g;
         ALTER TABLE ls_nothing REPLICA IDENTITY NOTHING",
    )?;
    let rows = "INSERT INTO ls_fine SELECT generate_series(1, 60000)";
    while_streaming(a, 1, || {
        run(
            a,
            1,
            &format!(
                "BEGIN; SAVEPOINT s; UPDATE ls_nothing SET v = 'y';
                 INSERT INTO ls_fine SELECT generate_series(60001, 120000);
                 ROLLBACK TO s; {rows}; COMMIT"
            ),
        )
    })?;
    a.expect("SELECT count(*), max(id) FROM ls_fine", "60000,60000")?;
    let session = a.on(1)?.patience(PATIENCE);
    session.run("BEGIN; DELETE FROM ls_fine; UPDATE ls_nothing SET v = 'y'")?;
    session.run(rows)?;
    let error = session.refused("COMMIT")?;
    ensure!(error.state == "55000", "{error}");
    a.expect("SELECT count(*) FROM ls_fine", "60000")?;
    a.expect("SELECT min(v), max(v) FROM ls_nothing", "x,x")
}

fn stored_out_of_line(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE ls_toast(id int PRIMARY KEY, n int, v text);
         ALTER TABLE ls_toast ALTER v SET STORAGE EXTERNAL",
    )?;
    while_streaming(a, 2, || {
        run(
            a,
            2,
            "BEGIN;
             INSERT INTO ls_toast SELECT g, 0, repeat(md5(g::text), 100) FROM generate_series(1, 8000) g;
             UPDATE ls_toast SET n = 1 WHERE id % 2 = 0;
             INSERT INTO ls_toast SELECT g, 2, repeat(md5(g::text), 200) FROM generate_series(1, 4000) g
               ON CONFLICT (id) DO UPDATE SET n = 3, v = excluded.v;
             COMMIT",
        )
    })?;
    let all = a.same(
        "SELECT count(*), sum(n), sum(length(v)), md5(string_agg(v, '' ORDER BY id)) FROM ls_toast",
    )?;
    ensure!(all.starts_with("8000,14000,38400000,"), "{all}");
    Ok(())
}

fn prepared_by_a_user(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE ls_prepared(id int PRIMARY KEY)")?;
    for (gid, end, left) in
        [("user-ls1", "ROLLBACK", "0,~"), ("user-ls2", "COMMIT", "100000,100000")]
    {
        run(
            a,
            1,
            &format!(
                "BEGIN; INSERT INTO ls_prepared SELECT generate_series(1, 100000);
                 PREPARE TRANSACTION '{gid}'"
            ),
        )?;
        a.expect("SELECT count(*) FROM ls_prepared", "0")?;
        run(a, 1, &format!("{end} PREPARED '{gid}'"))?;
        a.run(1, "BEGIN; LOCK ls_prepared IN SHARE MODE; COMMIT")?;
        until("the outcome is the same everywhere", Duration::from_secs(10), || {
            a.expect("SELECT count(*), max(id) FROM ls_prepared", left).map(Some)
        })?;
    }
    Ok(())
}

/// Peers have its rows and nobody sees them; then they have them no more.
fn rolled_back_before_its_commit(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE ls_open(id int PRIMARY KEY)")?;
    let session = a.on(1)?.patience(PATIENCE);
    session.run("BEGIN; INSERT INTO ls_open SELECT generate_series(1, 100000)")?;
    wait_spilled(a, 2, true)?;
    wait_spilled(a, 3, true)?;
    a.expect("SELECT count(*) FROM ls_open", "0")?;
    session.run("ROLLBACK")?;
    a.run(1, "INSERT INTO ls_open VALUES (1)")?;
    a.expect("SELECT count(*) FROM ls_open", "1")?;
    nothing_spilled(a)
}

/// The session ends in the middle of it.
fn lost_before_its_commit(a: &Arena) -> Result<()> {
    let session = a.on(2)?.patience(PATIENCE);
    session.run("BEGIN; INSERT INTO ls_open SELECT generate_series(2, 100000)")?;
    wait_spilled(a, 3, true)?;
    drop(session);
    nothing_spilled(a)?;
    a.run(1, "INSERT INTO ls_open VALUES (2)")?;
    a.expect("SELECT count(*) FROM ls_open", "2")
}

/// A new stream brings all of it again, and none of it twice.
fn stream_broken_in_the_middle(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE ls_broken(id int PRIMARY KEY, v text)")?;
    let session = a.on(1)?.patience(PATIENCE);
    session.run(
        "BEGIN; INSERT INTO ls_broken SELECT g, 'one' FROM generate_series(1, 60000) g;
         SAVEPOINT s; UPDATE ls_broken SET v = 'no'; ROLLBACK TO s",
    )?;
    wait_spilled(a, 2, true)?;
    let ended = a.ask(
        1,
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_replication
          WHERE application_name = 'mtm_receiver'",
    )?;
    ensure!(ended == "2", "{ended} streams ended");
    session.run("INSERT INTO ls_broken SELECT g, 'two' FROM generate_series(60001, 120000) g")?;
    until("node 1 writes again", Duration::from_secs(30), || {
        a.run(1, "INSERT INTO ls_broken VALUES (-1, 'small') ON CONFLICT DO NOTHING").map(Some)
    })?;
    session.run("COMMIT")?;
    a.expect(
        "SELECT v, count(*), sum(id::bigint) FROM ls_broken GROUP BY v ORDER BY v",
        "one,60000,1800030000;small,1,-1;two,60000,5400030000",
    )?;
    nothing_spilled(a)
}

fn three_origins_at_once(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE ls_three(id int PRIMARY KEY, node int)")?;
    let work = |id: usize| {
        move || {
            run(
                a,
                id,
                &format!(
                    "INSERT INTO ls_three SELECT g * 3 + {id}, {id} FROM generate_series(0, 79999) g"
                ),
            )
        }
    };
    let ((one, two), three) = Arena::both(|| Arena::both(work(1), work(2)), work(3));
    one.and(two).and(three)?;
    a.expect(
        "SELECT node, count(*), min(id), max(id) FROM ls_three GROUP BY node ORDER BY node",
        "1,80000,1,239998;2,80000,2,239999;3,80000,3,240000",
    )
}

/// A peer that cannot keep a large transaction refuses it, says why, and goes on with others.
fn no_room_on_a_peer(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE ls_room(id int PRIMARY KEY)")?;
    let directory = spill_directory(a, 3)?;
    std::fs::set_permissions(&directory, Permissions::from_mode(0o500))?;
    let refused = (|| {
        let session = a.on(1)?.patience(PATIENCE);
        let error = session.refused("INSERT INTO ls_room SELECT generate_series(1, 100000)")?;
        a.run(1, "INSERT INTO ls_room VALUES (1)")?;
        Ok::<_, anyhow::Error>(error)
    })();
    std::fs::set_permissions(&directory, Permissions::from_mode(0o700))?;
    let error = refused?;
    ensure!(error.state == "58030", "{error}");
    ensure!(error.message.contains("temporary file"), "{error}");
    ensure!(error.detail.contains("Node 3"), "{error}");
    a.expect("SELECT count(*) FROM ls_room", "1")?;
    run(a, 1, "INSERT INTO ls_room SELECT generate_series(2, 100000)")?;
    a.expect("SELECT count(*) FROM ls_room", "100000")
}

/// Small transactions of all nodes, the large one's origin among them, are answered meanwhile.
fn small_ones_on_the_origin(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE ls_large(id int PRIMARY KEY, v text); CREATE TABLE ls_small(id serial PRIMARY KEY)")?;
    let over = AtomicBool::new(false);
    let small = |id: usize| {
        let over = &over;
        move || -> Result<(u64, Duration)> {
            let session = a.on(id)?.patience(PATIENCE);
            let (mut count, mut worst) = (0, Duration::ZERO);
            while !over.load(Ordering::SeqCst) {
                let start = Instant::now();
                session.run("INSERT INTO ls_small DEFAULT VALUES")?;
                worst = worst.max(start.elapsed());
                count += 1;
            }
            Ok((count, worst))
        }
    };
    let large = || {
        let result = run(
            a,
            1,
            "INSERT INTO ls_large SELECT g, repeat('x', 50) FROM generate_series(1, 500000) g",
        );
        over.store(true, Ordering::SeqCst);
        result
    };
    let (result, (one, two)) = Arena::both(large, || Arena::both(small(1), small(2)));
    result?;
    for (id, answer) in [(1, one), (2, two)] {
        let (count, worst) = answer?;
        ensure!(count > 20, "node {id}: only {count} small transactions beside the large one");
        // Decoding the whole of it at its announcement takes longer than this alone.
        ensure!(worst < Duration::from_secs(1), "node {id}: a small transaction took {worst:?}");
    }
    a.same("SELECT (SELECT count(*) FROM ls_large), (SELECT count(*) FROM ls_small)")?;
    a.run(1, "DROP TABLE ls_large, ls_three, ls_toast, ls_ddl, ls_as")?;
    Ok(())
}
