//! The commit path: what was committed is there, on all nodes, whichever way it was committed.

use super::arena::Arena;
use super::checks;
use anyhow::{Result, ensure};

checks!("commit":
    visible_everywhere_after_commit,
    autocommit_simple_protocol,
    autocommit_extended_protocol,
    several_statements_in_one_message,
    extended_pipeline,
    written_on_every_node,
    wait_peer_commits_off,
    rollback_leaves_nothing,
    failed_transaction_leaves_nothing,
    read_only_writes_no_wal,
    commit_and_chain,
    rollback_and_chain,
    savepoints,
    many_subtransactions,
    procedure_with_commits,
    do_block_with_commits,
    exception_blocks,
    serializable_commits,
    serializable_failure,
    repeatable_read,
    update_and_delete,
    on_conflict,
    returning,
    statement_timeout_before_commit,
    many_sessions_at_once,
);

fn visible_everywhere_after_commit(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE c_visible(id int PRIMARY KEY, v text)")?;
    let writer = a.on(1)?;
    for round in 1..=50 {
        writer.run(&format!("BEGIN; INSERT INTO c_visible VALUES ({round}, 'x'); COMMIT"))?;
        a.expect("SELECT max(id) FROM c_visible", &round.to_string())?;
    }
    Ok(())
}

fn autocommit_simple_protocol(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE c_simple(id int PRIMARY KEY)")?;
    let session = a.on(2)?;
    for id in 1..=20 {
        session.run(&format!("INSERT INTO c_simple VALUES ({id})"))?;
    }
    a.expect("SELECT count(*) FROM c_simple", "20")
}

fn autocommit_extended_protocol(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE c_extended(id int PRIMARY KEY, v text)")?;
    let session = a.on(3)?;
    for id in 1..=20_i32 {
        let changed = session.execute("INSERT INTO c_extended VALUES ($1, $2)", &[&id, &"word"])?;
        ensure!(changed == 1, "{changed} rows inserted");
    }
    let changed =
        session.execute("UPDATE c_extended SET v = $2 WHERE id <= $1", &[&5_i32, &"changed"])?;
    ensure!(changed == 5, "{changed} rows updated");
    a.expect("SELECT v, count(*) FROM c_extended GROUP BY v ORDER BY v", "changed,5;word,15")
}

fn several_statements_in_one_message(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE c_message(id int PRIMARY KEY)")?;
    let session = a.on(1)?;
    session.run("INSERT INTO c_message VALUES (1); INSERT INTO c_message VALUES (2); SELECT 1")?;
    let error =
        session.refused("INSERT INTO c_message VALUES (3); INSERT INTO c_message VALUES (1)")?;
    ensure!(error.state == "23505", "{error}");
    session
        .run("BEGIN; INSERT INTO c_message VALUES (4); COMMIT; INSERT INTO c_message VALUES (5)")?;
    a.expect("SELECT id FROM c_message ORDER BY id", "1;2;4;5")
}

fn extended_pipeline(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE c_pipeline(id int PRIMARY KEY)")?;
    let parameters: Vec<i32> = (1..=100).collect();
    let changed = a.on(2)?.pipeline("INSERT INTO c_pipeline VALUES ($1)", &parameters)?;
    ensure!(changed == 100, "{changed} rows inserted");
    a.expect("SELECT count(*), sum(id) FROM c_pipeline", "100,5050")
}

fn written_on_every_node(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE c_every(node int, n int, PRIMARY KEY (node, n))")?;
    for id in a.ids() {
        a.run(id, &format!("INSERT INTO c_every SELECT {id}, n FROM generate_series(1, 10) n"))?;
        a.expect(&format!("SELECT count(*) FROM c_every WHERE node = {id}"), "10")?;
    }
    Ok(())
}

fn wait_peer_commits_off(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE c_nowait(id int PRIMARY KEY)")?;
    let session = a.on(1)?;
    session.run("SET multimaster.wait_peer_commits = off")?;
    for id in 1..=50 {
        session.run(&format!("INSERT INTO c_nowait VALUES ({id})"))?;
    }
    ensure!(
        session.one("SELECT count(*) FROM c_nowait")? == "50",
        "the writer does not see its own rows"
    );
    // The next transaction waits for its peers; it cannot overtake earlier ones on the same rows.
    session.run("SET multimaster.wait_peer_commits = on; UPDATE c_nowait SET id = -id")?;
    a.expect("SELECT count(*), max(id) FROM c_nowait", "50,-1")
}

fn rollback_leaves_nothing(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE c_rollback(id int PRIMARY KEY)")?;
    a.run(2, "BEGIN; INSERT INTO c_rollback VALUES (1); ROLLBACK")?;
    a.expect("SELECT count(*) FROM c_rollback", "0")?;
    a.run(3, "INSERT INTO c_rollback VALUES (1)")?;
    a.expect("SELECT count(*) FROM c_rollback", "1")
}

fn failed_transaction_leaves_nothing(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE c_failed(id int PRIMARY KEY, d int, CHECK (d > 0))")?;
    let session = a.on(1)?;
    session.run("BEGIN; INSERT INTO c_failed VALUES (1, 1)")?;
    let error = session.refused("INSERT INTO c_failed VALUES (2, 0)")?;
    ensure!(error.state == "23514", "{error}");
    session.run("COMMIT")?;
    a.expect("SELECT count(*) FROM c_failed", "0")
}

fn read_only_writes_no_wal(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE c_readonly(id int PRIMARY KEY); INSERT INTO c_readonly VALUES (1)")?;
    let session = a.on(1)?;
    session.run("SELECT * FROM c_readonly")?;
    // Background writers may add something now and then; a hundred announced transactions would
    // add much more every time.
    let mut grown = Vec::new();
    for _ in 0..3 {
        let before = session.one("SELECT pg_current_wal_insert_lsn()")?;
        for _ in 0..100 {
            session.run("BEGIN; SELECT * FROM c_readonly; COMMIT")?;
        }
        let bytes = format!("SELECT pg_current_wal_insert_lsn() - '{before}'::pg_lsn");
        grown.push(session.one(&bytes)?.parse::<u64>()?);
    }
    let is_little = grown.iter().any(|bytes| *bytes < 8192);
    ensure!(is_little, "100 read-only transactions each time wrote {grown:?} bytes of WAL");
    Ok(())
}

fn commit_and_chain(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE c_chain(id int PRIMARY KEY)")?;
    let session = a.on(1)?;
    session.run("BEGIN ISOLATION LEVEL SERIALIZABLE")?;
    session.run("INSERT INTO c_chain VALUES (1)")?;
    session.run("COMMIT AND CHAIN")?;
    a.expect("SELECT count(*) FROM c_chain", "1")?;
    ensure!(
        session.one("SHOW transaction_isolation")? == "serializable",
        "the chained transaction lost its isolation"
    );
    session.run("INSERT INTO c_chain VALUES (2)")?;
    session.run("COMMIT AND CHAIN")?;
    session.run("INSERT INTO c_chain VALUES (3)")?;
    session.run("COMMIT")?;
    a.expect("SELECT id FROM c_chain ORDER BY id", "1;2;3")
}

fn rollback_and_chain(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE c_rchain(id int PRIMARY KEY)")?;
    let session = a.on(2)?;
    session.run("BEGIN")?;
    session.run("INSERT INTO c_rchain VALUES (1)")?;
    session.run("ROLLBACK AND CHAIN")?;
    session.run("INSERT INTO c_rchain VALUES (2)")?;
    session.run("COMMIT")?;
    a.expect("SELECT id FROM c_rchain", "2")
}

fn savepoints(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE c_savepoint(id int PRIMARY KEY, v int)")?;
    let session = a.on(1)?;
    session.run(
        "BEGIN; INSERT INTO c_savepoint VALUES (1, 1);
         SAVEPOINT a; INSERT INTO c_savepoint VALUES (2, 2); ROLLBACK TO a;
         SAVEPOINT b; INSERT INTO c_savepoint VALUES (3, 3); RELEASE b;
         SAVEPOINT c; UPDATE c_savepoint SET v = 30 WHERE id = 3;
         SAVEPOINT d; DELETE FROM c_savepoint WHERE id = 1; ROLLBACK TO c;
         INSERT INTO c_savepoint VALUES (4, 4); COMMIT",
    )?;
    a.expect("SELECT id, v FROM c_savepoint ORDER BY id", "1,1;3,3;4,4")
}

fn many_subtransactions(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE c_subxacts(id int PRIMARY KEY)")?;
    // More than PGPROC caches (64), every third one rolled back.
    a.run(
        2,
        "DO $$ BEGIN
           FOR i IN 1..300 LOOP
             BEGIN
               INSERT INTO c_subxacts VALUES (i);
               IF i % 3 = 0 THEN RAISE EXCEPTION 'no'; END IF;
             EXCEPTION WHEN raise_exception THEN NULL;
             END;
           END LOOP;
         END $$",
    )?;
    a.expect("SELECT count(*), count(*) FILTER (WHERE id % 3 = 0) FROM c_subxacts", "200,0")
}

fn procedure_with_commits(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE c_proc(id int PRIMARY KEY)")?;
    a.run(
        1,
        "CREATE PROCEDURE c_proc_fill(n int) LANGUAGE plpgsql AS $$
         BEGIN
           FOR i IN 1..n LOOP
             INSERT INTO c_proc VALUES (i);
             IF i % 2 = 0 THEN COMMIT; ELSE ROLLBACK; END IF;
           END LOOP;
         END $$",
    )?;
    a.run(3, "CALL c_proc_fill(10)")?;
    a.expect("SELECT id FROM c_proc ORDER BY id", "2;4;6;8;10")
}

fn do_block_with_commits(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE c_do(id int PRIMARY KEY)")?;
    a.run(
        2,
        "DO $$ BEGIN
           FOR i IN 1..6 LOOP
             INSERT INTO c_do VALUES (i);
             IF i <= 4 THEN COMMIT; ELSE ROLLBACK; END IF;
           END LOOP;
         END $$",
    )?;
    a.expect("SELECT id FROM c_do ORDER BY id", "1;2;3;4")
}

fn exception_blocks(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE c_exception(id int PRIMARY KEY, v text)")?;
    a.run(
        1,
        "DO $$ BEGIN
           INSERT INTO c_exception VALUES (1, 'kept');
           BEGIN
             INSERT INTO c_exception VALUES (1, 'twice');
           EXCEPTION WHEN unique_violation THEN
             INSERT INTO c_exception VALUES (2, 'instead');
           END;
         END $$",
    )?;
    a.expect("SELECT id, v FROM c_exception ORDER BY id", "1,kept;2,instead")
}

fn serializable_commits(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE c_ssi(id int PRIMARY KEY, v int); INSERT INTO c_ssi VALUES (1, 0), (2, 0)",
    )?;
    for id in a.ids() {
        a.run(
            id,
            "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT sum(v) FROM c_ssi;
             UPDATE c_ssi SET v = v + 1 WHERE id = 1; COMMIT",
        )?;
    }
    a.expect("SELECT v FROM c_ssi ORDER BY id", "3;0")
}

/// Write skew on one node: one of the two fails, and nothing of it is left on the peers.
fn serializable_failure(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE c_skew(id int PRIMARY KEY, v int); INSERT INTO c_skew VALUES (1, 0), (2, 0)",
    )?;
    let (one, two) = (a.on(1)?, a.on(1)?);
    for (session, row) in [(&one, 1), (&two, 2)] {
        session.run("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT sum(v) FROM c_skew")?;
        session.run(&format!("UPDATE c_skew SET v = 1 WHERE id = {row}"))?;
    }
    one.run("COMMIT")?;
    let error = two.refused("COMMIT")?;
    ensure!(error.state == "40001", "{error}");
    a.expect("SELECT id, v FROM c_skew ORDER BY id", "1,1;2,0")
}

fn repeatable_read(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE c_rr(id int PRIMARY KEY, v int); INSERT INTO c_rr VALUES (1, 0)")?;
    let reader = a.on(2)?;
    reader.run("BEGIN ISOLATION LEVEL REPEATABLE READ")?;
    ensure!(reader.one("SELECT v FROM c_rr")? == "0", "before the write");
    a.run(1, "UPDATE c_rr SET v = 1")?;
    ensure!(reader.one("SELECT v FROM c_rr")? == "0", "the snapshot moved");
    let error = reader.refused("UPDATE c_rr SET v = v + 10")?;
    ensure!(error.state == "40001", "{error}");
    reader.run("ROLLBACK")?;
    a.expect("SELECT v FROM c_rr", "1")
}

fn update_and_delete(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE c_upd(id int PRIMARY KEY, v int); INSERT INTO c_upd SELECT g, 0 FROM generate_series(1, 100) g")?;
    a.run(2, "UPDATE c_upd SET v = id WHERE id % 2 = 0")?;
    a.run(3, "DELETE FROM c_upd WHERE id > 50")?;
    a.run(1, "UPDATE c_upd SET id = id + 1000 WHERE id <= 10")?;
    a.expect("SELECT count(*), sum(v), min(id), max(id) FROM c_upd", "50,650,11,1010")
}

fn on_conflict(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE c_upsert(id int PRIMARY KEY, v int)")?;
    for id in a.ids() {
        a.run(
            id,
            "INSERT INTO c_upsert VALUES (1, 1), (2, 1) ON CONFLICT (id) DO UPDATE SET v = c_upsert.v + 1;
             INSERT INTO c_upsert VALUES (1, 99) ON CONFLICT DO NOTHING",
        )?;
    }
    a.expect("SELECT id, v FROM c_upsert ORDER BY id", "1,3;2,3")
}

fn returning(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE c_returning(id int PRIMARY KEY, v int)")?;
    let got = a.ask(
        2,
        "WITH new AS (INSERT INTO c_returning SELECT g, g * 2 FROM generate_series(1, 3) g RETURNING v)
         SELECT sum(v) FROM new",
    )?;
    ensure!(got == "12", "{got}");
    a.expect("SELECT sum(v) FROM c_returning", "12")
}

fn statement_timeout_before_commit(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE c_timeout(id int PRIMARY KEY)")?;
    let session = a.on(1)?;
    session.run("BEGIN; INSERT INTO c_timeout VALUES (1)")?;
    // Gone with the transaction: nothing else may run into it.
    session.run("SET LOCAL statement_timeout = 100")?;
    let error = session.refused("SELECT pg_sleep(10)")?;
    ensure!(error.state == "57014", "{error}");
    session.run("ROLLBACK")?;
    session.run("INSERT INTO c_timeout VALUES (2)")?;
    a.expect("SELECT id FROM c_timeout", "2")
}

fn many_sessions_at_once(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE c_many(node int, client int, n int, PRIMARY KEY (node, client, n))")?;
    let work = |id: usize, client: i32| -> Result<()> {
        let session = a.on(id)?;
        for n in 1..=20 {
            session.run(&format!("INSERT INTO c_many VALUES ({id}, {client}, {n})"))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..12)
            .map(|client| {
                let id = a.ids()[client as usize % a.ids().len()];
                scope.spawn(move || work(id, client))
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic in a writer"))
    })?;
    a.expect("SELECT count(*) FROM c_many", "240")
}
