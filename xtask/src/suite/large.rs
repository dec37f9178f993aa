//! Large transactions go through with bounded memory while small ones keep committing.

use super::arena::Arena;
use super::checks;
use anyhow::{Result, ensure};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

checks!("large":
    half_a_million_rows,
    small_commits_go_on_meanwhile,
    spilled_transaction,
    spilled_and_rolled_back,
    large_update_and_delete,
    copy_a_million,
);

fn half_a_million_rows(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE l_half(id int PRIMARY KEY, v text)")?;
    a.on(2)?
        .patience(Duration::from_secs(180))
        .run("INSERT INTO l_half SELECT g, 'row ' || g FROM generate_series(1, 500000) g")?;
    a.expect("SELECT count(*), sum(id) FROM l_half", "500000,125000250000")
}

fn small_commits_go_on_meanwhile(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE l_big(id int PRIMARY KEY, v text); CREATE TABLE l_small(id serial PRIMARY KEY)")?;
    let over = AtomicBool::new(false);
    let (big, small) = Arena::both(
        || -> Result<()> {
            let answer = a
                .on(1)
                .map(|session| session.patience(Duration::from_secs(180)))
                .and_then(|session| Ok(session.run("INSERT INTO l_big SELECT g, repeat('x', 50) FROM generate_series(1, 500000) g")?));
            over.store(true, Ordering::SeqCst);
            answer.map(drop)
        },
        || -> Result<(u64, Duration)> {
            let session = a.on(2)?.patience(Duration::from_secs(120));
            let (mut count, mut worst) = (0, Duration::ZERO);
            while !over.load(Ordering::SeqCst) {
                let start = Instant::now();
                session.run("INSERT INTO l_small DEFAULT VALUES")?;
                worst = worst.max(start.elapsed());
                count += 1;
            }
            Ok((count, worst))
        },
    );
    big?;
    let (count, worst) = small?;
    ensure!(count > 20, "only {count} small transactions committed beside the large one");
    ensure!(worst < Duration::from_secs(2), "a small transaction took {worst:?}");
    a.expect(
        "SELECT (SELECT count(*) FROM l_big), (SELECT count(*) FROM l_small)",
        &format!("500000,{count}"),
    )
}

fn set_threshold(a: &Arena, value: &str) -> Result<()> {
    for id in a.ids() {
        a.run(id, &format!("ALTER SYSTEM SET multimaster.trans_spill_threshold = '{value}'"))?;
        a.run(id, "SELECT pg_reload_conf()")?;
    }
    Ok(())
}

/// The receivers write it to disk and apply it from there; nothing stays behind.
fn spilled_transaction(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE l_spill(id int PRIMARY KEY, v text)")?;
    set_threshold(a, "256kB")?;
    let result = (|| -> Result<()> {
        a.run(2, "INSERT INTO l_spill SELECT g, repeat(md5(g::text), 4) FROM generate_series(1, 50000) g")?;
        let all = a.same("SELECT count(*), md5(string_agg(v, '' ORDER BY id)) FROM l_spill")?;
        ensure!(all.starts_with("50000,"), "{all}");
        a.run(
            3,
            "BEGIN; SAVEPOINT a; UPDATE l_spill SET v = 'no'; ROLLBACK TO a;
             SAVEPOINT b; UPDATE l_spill SET v = 'yes' WHERE id % 2 = 0; RELEASE b; COMMIT",
        )?;
        a.expect("SELECT count(*) FROM l_spill WHERE v = 'yes'", "25000")
    })();
    set_threshold(a, "100MB")?;
    result
}

fn spilled_and_rolled_back(a: &Arena) -> Result<()> {
    set_threshold(a, "256kB")?;
    let result = (|| -> Result<()> {
        a.run(1, "BEGIN; INSERT INTO l_spill SELECT g, repeat(md5(g::text), 4) FROM generate_series(100001, 150000) g; ROLLBACK")?;
        a.expect("SELECT count(*) FROM l_spill", "50000")?;
        a.run(1, "INSERT INTO l_spill VALUES (100001, 'after')")?;
        a.expect("SELECT v FROM l_spill WHERE id = 100001", "after")
    })();
    set_threshold(a, "100MB")?;
    result
}

fn large_update_and_delete(a: &Arena) -> Result<()> {
    a.on(3)?.patience(Duration::from_secs(180)).run("BEGIN; UPDATE l_half SET v = 'new' WHERE id % 3 = 0; DELETE FROM l_half WHERE id % 3 = 1; COMMIT")?;
    a.expect("SELECT count(*), count(*) FILTER (WHERE v = 'new') FROM l_half", "333333,166666")
}

fn copy_a_million(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE l_copy(id int PRIMARY KEY, v int)")?;
    let data: String = (1..=1_000_000).map(|id| format!("{id}\t{}\n", id % 100)).collect();
    let copied =
        a.on(1)?.patience(Duration::from_secs(240)).copy_in("COPY l_copy FROM STDIN", &data)?;
    ensure!(copied == 1_000_000, "{copied} rows copied");
    a.expect("SELECT count(*), sum(v) FROM l_copy", "1000000,49500000")?;
    a.run(2, "DROP TABLE l_copy, l_half, l_big")?;
    Ok(())
}
