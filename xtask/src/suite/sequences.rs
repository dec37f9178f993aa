//! Values of sequences never collide, whichever node they are drawn on.

use super::arena::Arena;
use super::checks;
use anyhow::{Result, ensure};

checks!("sequences":
    serial_on_all_nodes_at_once,
    identity_on_all_nodes_at_once,
    copy_defaults_on_all_nodes_at_once,
    cached_sequences,
    sequence_made_on_each_node,
    descending_and_stepping,
    in_the_creating_transaction,
    setval_and_restart,
    small_types_and_limits,
    monotonic,
);

/// Every node inserts at the same time; all values are different and all rows are there.
fn fill(a: &Arena, insert: &str, times: usize) -> Result<()> {
    let work = |id: usize| -> Result<()> {
        let session = a.on(id)?;
        for _ in 0..times {
            session.run(insert)?;
        }
        Ok(())
    };
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = a.ids().into_iter().map(|id| scope.spawn(move || work(id))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic in a writer"))
    })
}

fn serial_on_all_nodes_at_once(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE q_serial(id serial PRIMARY KEY, big bigserial UNIQUE, small smallserial UNIQUE, v int)")?;
    fill(a, "INSERT INTO q_serial(v) VALUES (1)", 50)?;
    a.expect("SELECT count(*) FROM q_serial", "150")
}

fn identity_on_all_nodes_at_once(a: &Arena) -> Result<()> {
    a.run(2, "CREATE TABLE q_identity(id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int)")?;
    fill(a, "INSERT INTO q_identity(v) SELECT generate_series(1, 10)", 10)?;
    a.expect("SELECT count(*) FROM q_identity", "300")
}

fn copy_defaults_on_all_nodes_at_once(a: &Arena) -> Result<()> {
    a.run(3, "CREATE TABLE q_copy(id serial PRIMARY KEY, v int)")?;
    let data: String = (1..=1000).map(|v| format!("{v}\n")).collect();
    let data = data.as_str();
    std::thread::scope(|scope| {
        let threads: Vec<_> = a
            .ids()
            .into_iter()
            .map(|id| {
                scope.spawn(move || -> Result<u64> {
                    Ok(a.on(id)?.copy_in("COPY q_copy(v) FROM STDIN", data)?)
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("no panic in a writer").map(drop))
    })?;
    a.expect("SELECT count(*), sum(v) FROM q_copy", "3000,1501500")
}

fn cached_sequences(a: &Arena) -> Result<()> {
    a.run(1, "CREATE SEQUENCE q_cache_s CACHE 20; CREATE TABLE q_cache(id int PRIMARY KEY DEFAULT nextval('q_cache_s'), v int)")?;
    fill(a, "INSERT INTO q_cache(v) SELECT generate_series(1, 7)", 10)?;
    // New sessions take new portions of the cache.
    fill(a, "INSERT INTO q_cache(v) SELECT generate_series(1, 7)", 10)?;
    a.expect("SELECT count(*) FROM q_cache", "420")
}

fn sequence_made_on_each_node(a: &Arena) -> Result<()> {
    for id in a.ids() {
        a.run(id, &format!("CREATE TABLE q_made_{id}(id serial PRIMARY KEY, v int)"))?;
    }
    for id in a.ids() {
        fill(a, &format!("INSERT INTO q_made_{id}(v) VALUES (1)"), 10)?;
        a.expect(&format!("SELECT count(*) FROM q_made_{id}"), "30")?;
    }
    Ok(())
}

fn descending_and_stepping(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE SEQUENCE q_down INCREMENT -1; CREATE SEQUENCE q_step INCREMENT 10 START 5 MINVALUE 5;
         CREATE TABLE q_steps(d bigint UNIQUE DEFAULT nextval('q_down'), s bigint PRIMARY KEY DEFAULT nextval('q_step'), v int)",
    )?;
    fill(a, "INSERT INTO q_steps(v) VALUES (1)", 20)?;
    a.expect("SELECT count(*), bool_and(d < 0) FROM q_steps", "60,t")
}

/// The sequence is created and used in the same transaction, on a node other than the first.
fn in_the_creating_transaction(a: &Arena) -> Result<()> {
    a.run(2, "BEGIN; CREATE TABLE q_trans(id serial PRIMARY KEY, v int); INSERT INTO q_trans(v) SELECT generate_series(1, 10); COMMIT")?;
    fill(a, "INSERT INTO q_trans(v) VALUES (1)", 10)?;
    a.expect("SELECT count(*) FROM q_trans", "40")
}

fn setval_and_restart(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE q_set(id serial PRIMARY KEY, v int)")?;
    fill(a, "INSERT INTO q_set(v) VALUES (1)", 5)?;
    for id in a.ids() {
        a.run(id, "SELECT setval('q_set_id_seq', 1000)")?;
    }
    fill(a, "INSERT INTO q_set(v) VALUES (2)", 5)?;
    a.run(2, "ALTER SEQUENCE q_set_id_seq RESTART WITH 5000")?;
    fill(a, "INSERT INTO q_set(v) VALUES (3)", 5)?;
    a.expect("SELECT v, count(*) FROM q_set GROUP BY v ORDER BY v", "1,15;2,15;3,15")
}

/// A smallint sequence must give out all its values before it ends, without a collision.
fn small_types_and_limits(a: &Arena) -> Result<()> {
    a.run(1, "CREATE SEQUENCE q_small AS smallint MAXVALUE 300; CREATE TABLE q_smalls(id smallint PRIMARY KEY DEFAULT nextval('q_small'), v int)")?;
    fill(a, "INSERT INTO q_smalls(v) VALUES (1)", 50)?;
    a.expect("SELECT count(*) FROM q_smalls", "150")?;
    let session = a.on(1)?;
    let mut error = None;
    for _ in 0..300 {
        if let Err(refusal) = session.run("INSERT INTO q_smalls(v) VALUES (2)") {
            error = Some(refusal);
            break;
        }
    }
    ensure!(
        error.as_ref().is_some_and(|error| error.state == "2200H"),
        "expected the end of the sequence, got {error:?}"
    );
    Ok(())
}

fn monotonic(a: &Arena) -> Result<()> {
    a.run(1, "CREATE SEQUENCE q_mono")?;
    let mut last = 0;
    for round in 0..4 {
        for id in a.ids() {
            let session = a.on(id)?;
            session.run("SET multimaster.monotonic_sequences = on")?;
            // Values of one node, committed, are seen by the next one.
            session.run(&format!("CREATE TABLE q_mono_{round}_{id}(id int PRIMARY KEY)"))?;
            session.run(&format!("INSERT INTO q_mono_{round}_{id} SELECT nextval('q_mono')"))?;
            let value: i64 =
                session.one(&format!("SELECT id FROM q_mono_{round}_{id}"))?.parse()?;
            ensure!(value > last, "node {id} drew {value} after {last}");
            last = value;
        }
    }
    Ok(())
}
