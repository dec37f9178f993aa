//! Two nodes want different things: exactly one wins, the other is told, nothing is overwritten.

use super::arena::{Arena, is_retryable};
use super::checks;
use crate::session::{Session, SqlError};
use crate::wait::until;
use anyhow::{Result, ensure};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

checks!("conflicts":
    update_update,
    update_update_three_nodes,
    insert_insert_same_key,
    duplicate_key_after_commit,
    update_delete,
    delete_delete,
    unique_constraint_between_nodes,
    detail_names_node_and_gid,
    retry_succeeds,
    no_lost_updates,
    conflict_with_a_lock_holder,
    opposite_order_on_two_nodes,
    deadlock_is_resolved_at_once,
    three_node_deadlock,
    unannounced_transaction_in_the_cycle,
    hot_rows_on_three_nodes,
    circle_through_clients_of_two_nodes,
    bank_transfers,
    sum_is_constant_in_every_snapshot,
    cancel_while_committing,
);

/// Prepares both transactions up to COMMIT, commits them at the same moment.
fn race(a: &Arena, one: &str, two: &str) -> Result<[Result<(), SqlError>; 2]> {
    timed_race(a, one, two).map(|(outcomes, _)| outcomes)
}

/// As [`race`]; also how long it took until both were told, without what comes before COMMIT.
fn timed_race(a: &Arena, one: &str, two: &str) -> Result<([Result<(), SqlError>; 2], Duration)> {
    let (first, second) = (a.on(1)?, a.on(2)?);
    first.run(&format!("BEGIN; {one}"))?;
    second.run(&format!("BEGIN; {two}"))?;
    let start = Instant::now();
    let (x, y) = Arena::both(|| first.run("COMMIT").map(drop), || second.run("COMMIT").map(drop));
    Ok(([x, y], start.elapsed()))
}

fn retryable_losers(outcomes: &[Result<(), SqlError>]) -> Result<()> {
    for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        ensure!(is_retryable(error), "the loser got {error}");
    }
    Ok(())
}

fn winners(outcomes: &[Result<(), SqlError>]) -> usize {
    outcomes.iter().filter(|outcome| outcome.is_ok()).count()
}

/// Whoever was told "committed" must be seen, whoever was told "no" must not. In READ COMMITTED
/// two updates may also both succeed, one after the other, or both fail; never is one lost.
fn update_update(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_uu(id int PRIMARY KEY, v int); INSERT INTO x_uu SELECT g, 0 FROM generate_series(1, 30) g")?;
    let mut decided = 0;
    for id in 1..=30 {
        let update = format!("UPDATE x_uu SET v = v + 1 WHERE id = {id}");
        let outcomes = race(a, &update, &update)?;
        retryable_losers(&outcomes)?;
        ensure!(winners(&outcomes) < 2, "both won on row {id} although each had seen 0");
        decided += winners(&outcomes);
        a.expect(&format!("SELECT v FROM x_uu WHERE id = {id}"), &winners(&outcomes).to_string())?;
    }
    ensure!(decided >= 20, "only {decided} of 30 conflicts had a winner");
    Ok(())
}

fn update_update_three_nodes(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_uu3(id int PRIMARY KEY, v int); INSERT INTO x_uu3 SELECT g, 0 FROM generate_series(1, 20) g")?;
    for id in 1..=20 {
        let sessions: Vec<Session> =
            a.ids().into_iter().map(|node| a.on(node)).collect::<Result<_>>()?;
        for session in &sessions {
            session.run(&format!("BEGIN; UPDATE x_uu3 SET v = v + 1 WHERE id = {id}"))?;
        }
        let outcomes: Vec<Result<(), SqlError>> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                sessions.iter().map(|s| scope.spawn(|| s.run("COMMIT").map(drop))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        retryable_losers(&outcomes)?;
        ensure!(winners(&outcomes) < 2, "{} winners on row {id}", winners(&outcomes));
        a.expect(&format!("SELECT v FROM x_uu3 WHERE id = {id}"), &winners(&outcomes).to_string())?;
    }
    Ok(())
}

fn insert_insert_same_key(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_ii(id int PRIMARY KEY, node int)")?;
    for id in 1..=20 {
        let outcomes = race(
            a,
            &format!("INSERT INTO x_ii VALUES ({id}, 1)"),
            &format!("INSERT INTO x_ii VALUES ({id}, 2)"),
        )?;
        for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            ensure!(is_retryable(error) || error.state == "23505", "the loser got {error}");
        }
        ensure!(winners(&outcomes) < 2, "key {id} was inserted twice");
        let expected = match (&outcomes[0], &outcomes[1]) {
            (Ok(()), _) => "1",
            (_, Ok(())) => "2",
            _ => "",
        };
        a.expect(&format!("SELECT node FROM x_ii WHERE id = {id}"), expected)?;
    }
    Ok(())
}

fn duplicate_key_after_commit(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_dup(id int PRIMARY KEY); INSERT INTO x_dup VALUES (1)")?;
    for id in a.ids() {
        let error = a.on(id)?.refused("INSERT INTO x_dup VALUES (1)")?;
        ensure!(error.state == "23505", "{error}");
    }
    Ok(())
}

fn update_delete(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_ud(id int PRIMARY KEY, v int); INSERT INTO x_ud SELECT g, 0 FROM generate_series(1, 20) g")?;
    for id in 1..=20 {
        let outcomes = race(
            a,
            &format!("UPDATE x_ud SET v = 1 WHERE id = {id}"),
            &format!("DELETE FROM x_ud WHERE id = {id}"),
        )?;
        retryable_losers(&outcomes)?;
        ensure!(winners(&outcomes) < 2, "row {id} was updated and deleted");
        let expected = match (&outcomes[0], &outcomes[1]) {
            (Ok(()), _) => "1",
            (_, Ok(())) => "",
            _ => "0",
        };
        a.expect(&format!("SELECT v FROM x_ud WHERE id = {id}"), expected)?;
    }
    Ok(())
}

fn delete_delete(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE x_dd(id int PRIMARY KEY); INSERT INTO x_dd SELECT generate_series(1, 20)",
    )?;
    for id in 1..=20 {
        let delete = format!("DELETE FROM x_dd WHERE id = {id}");
        let outcomes = race(a, &delete, &delete)?;
        retryable_losers(&outcomes)?;
        ensure!(winners(&outcomes) < 2, "row {id} was deleted twice");
        let expected = 1 - winners(&outcomes);
        a.expect(&format!("SELECT count(*) FROM x_dd WHERE id = {id}"), &expected.to_string())?;
    }
    Ok(())
}

fn unique_constraint_between_nodes(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_uni(id int PRIMARY KEY, email text UNIQUE)")?;
    for id in 1..=10 {
        let (one, two) = (id * 2, id * 2 + 1);
        let outcomes = race(
            a,
            &format!("INSERT INTO x_uni VALUES ({one}, 'mail{id}')"),
            &format!("INSERT INTO x_uni VALUES ({two}, 'mail{id}')"),
        )?;
        for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            ensure!(is_retryable(error) || error.state == "23505", "the loser got {error}");
        }
        a.expect(
            &format!("SELECT count(*) FROM x_uni WHERE email = 'mail{id}'"),
            &winners(&outcomes).to_string(),
        )?;
    }
    Ok(())
}

/// One conflict for sure: node 2 has committed what node 1, with an older snapshot, still changes.
fn detail_names_node_and_gid(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_detail(id int PRIMARY KEY, v int); INSERT INTO x_detail SELECT g, 0 FROM generate_series(1, 50) g")?;
    for id in 1..=50 {
        let update = format!("UPDATE x_detail SET v = v + 1 WHERE id = {id}");
        for error in race(a, &update, &update)?.into_iter().filter_map(Result::err) {
            if error.state == "40001" {
                ensure!(error.detail.contains("node"), "no node in DETAIL: {error}");
                ensure!(error.detail.contains("MTM-"), "no gid in DETAIL: {error}");
                return Ok(());
            }
        }
    }
    anyhow::bail!("50 conflicts and not one 40001")
}

fn retry_succeeds(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_retry(id int PRIMARY KEY, v int); INSERT INTO x_retry VALUES (1, 0)")?;
    let update = "UPDATE x_retry SET v = v + 1 WHERE id = 1";
    for _ in 0..10 {
        let before: usize = a.same("SELECT v FROM x_retry")?.parse()?;
        let outcomes = race(a, update, update)?;
        for (id, outcome) in [1, 2].into_iter().zip(&outcomes) {
            if outcome.is_err() {
                a.run(id, update)?;
            }
        }
        a.expect("SELECT v FROM x_retry", &(before + 2).to_string())?;
    }
    Ok(())
}

/// Adds to counters from all nodes, retrying; what was acknowledged is the sum.
fn no_lost_updates(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_count(id int PRIMARY KEY, v int); INSERT INTO x_count SELECT g, 0 FROM generate_series(1, 5) g")?;
    let done = AtomicU64::new(0);
    storm(a, 2, Duration::from_secs(4), |session, n| {
        let answer = session.run(&format!("UPDATE x_count SET v = v + 1 WHERE id = {}", n % 5 + 1));
        if answer.is_ok() {
            done.fetch_add(1, Ordering::Relaxed);
        }
        answer.map(drop)
    })?;
    let done = done.load(Ordering::Relaxed);
    ensure!(done > 0, "nothing was committed");
    a.expect("SELECT sum(v) FROM x_count", &done.to_string())
}

/// Runs `work` in `clients` sessions per node for `time`; only retryable errors are allowed.
fn storm(
    a: &Arena,
    clients: usize,
    time: Duration,
    work: impl Fn(&Session, usize) -> Result<(), SqlError> + Sync,
) -> Result<()> {
    let work = &work;
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for client in 0..clients {
            for id in a.ids() {
                threads.push(scope.spawn(move || -> Result<()> {
                    let session = a.on(id)?;
                    let start = Instant::now();
                    let mut n = client * 7 + id;
                    while start.elapsed() < time {
                        n += 1;
                        if let Err(error) = work(&session, n) {
                            ensure!(is_retryable(&error), "node {id}: {error}");
                            // A failed transaction block has to be left; outside of one this only warns.
                            session.run("ROLLBACK")?;
                        }
                    }
                    Ok(())
                }));
            }
        }
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic in a writer"))
    })
}

/// Node 2 holds the row without committing; the transaction of node 1 waits for it or loses, and
/// it is not applied half.
fn conflict_with_a_lock_holder(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_hold(id int PRIMARY KEY, v int); INSERT INTO x_hold VALUES (1, 0)")?;
    let (holder, writer) = (a.on(2)?, a.on(1)?);
    holder.run("BEGIN; SELECT * FROM x_hold FOR UPDATE")?;
    let (written, ()) = Arena::both(
        || writer.run("UPDATE x_hold SET v = v + 1").map(drop),
        || {
            // The holder goes on as soon as somebody waits for it, or after a while.
            let watcher = a.on(2).expect("node 2 answers");
            let start = Instant::now();
            let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted";
            while start.elapsed() < Duration::from_secs(2)
                && watcher.one(waiting).is_ok_and(|n| n == "0")
            {}
            let _ = holder.run("ROLLBACK");
        },
    );
    let expected = match written {
        Ok(()) => "1",
        Err(error) => {
            ensure!(is_retryable(&error), "{error}");
            "0"
        }
    };
    a.expect("SELECT v FROM x_hold", expected)
}

/// Rows 1 then 2 here, 2 then 1 there: without detection both would wait for ever.
fn opposite_order_on_two_nodes(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE x_opp(id int PRIMARY KEY, v int); INSERT INTO x_opp VALUES (1, 0), (2, 0)",
    )?;
    let mut won = 0;
    for _ in 0..20 {
        let outcomes = race(
            a,
            "UPDATE x_opp SET v = v + 1 WHERE id = 1; UPDATE x_opp SET v = v + 1 WHERE id = 2",
            "UPDATE x_opp SET v = v + 1 WHERE id = 2; UPDATE x_opp SET v = v + 1 WHERE id = 1",
        )?;
        retryable_losers(&outcomes)?;
        won += winners(&outcomes);
        a.expect(
            "SELECT v = {} FROM x_opp WHERE id = 1".replace("{}", &won.to_string()).as_str(),
            "t",
        )?;
    }
    ensure!(won >= 10, "only {won} of 20 deadlocks had a winner");
    Ok(())
}

/// The conflict is known when both are announced: far below deadlock_timeout (1 s) even at the worst.
fn deadlock_is_resolved_at_once(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE x_fast(id int PRIMARY KEY, v int); INSERT INTO x_fast VALUES (1, 0), (2, 0)",
    )?;
    let mut times = Vec::new();
    for _ in 0..20 {
        let (outcomes, time) = timed_race(
            a,
            "UPDATE x_fast SET v = v + 1 WHERE id = 1; UPDATE x_fast SET v = v + 1 WHERE id = 2",
            "UPDATE x_fast SET v = v + 1 WHERE id = 2; UPDATE x_fast SET v = v + 1 WHERE id = 1",
        )?;
        times.push(time);
        retryable_losers(&outcomes)?;
    }
    times.sort_unstable();
    ensure!(times[10] < Duration::from_millis(100), "median {:?}", times[10]);
    ensure!(
        times[19] < Duration::from_millis(900),
        "slowest {:?}: that looks like a timeout",
        times[19]
    );
    Ok(())
}

fn three_node_deadlock(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_ring(id int PRIMARY KEY, v int); INSERT INTO x_ring VALUES (1, 0), (2, 0), (3, 0)")?;
    let mut won = 0;
    for _ in 0..10 {
        let sessions: Vec<Session> =
            a.ids().into_iter().map(|id| a.on(id)).collect::<Result<_>>()?;
        for (session, id) in sessions.iter().zip(1..) {
            let next = id % 3 + 1;
            session.run(&format!("BEGIN; UPDATE x_ring SET v = v + 1 WHERE id = {id}; UPDATE x_ring SET v = v + 1 WHERE id = {next}"))?;
        }
        let start = Instant::now();
        let outcomes: Vec<Result<(), SqlError>> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                sessions.iter().map(|s| scope.spawn(|| s.run("COMMIT").map(drop))).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        ensure!(start.elapsed() < Duration::from_secs(2), "it took {:?}", start.elapsed());
        retryable_losers(&outcomes)?;
        won += winners(&outcomes);
        a.expect("SELECT sum(v) FROM x_ring", &(2 * won).to_string())?;
    }
    ensure!(won > 0, "nobody ever won");
    Ok(())
}

/// The apply of T1 on node 2 waits for L, which is not committing but waits for a row of T2 on
/// node 2; T2 waits for the vote of node 1, where its apply waits for T1.
fn unannounced_transaction_in_the_cycle(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_chain(id int PRIMARY KEY, v int); INSERT INTO x_chain VALUES (1, 0), (2, 0), (3, 0)")?;
    for _ in 0..5 {
        let (t1, t2, l) = (a.on(1)?, a.on(2)?, a.on(2)?);
        t1.run("BEGIN; UPDATE x_chain SET v = v + 1 WHERE id IN (1, 3)")?;
        t2.run("BEGIN; UPDATE x_chain SET v = v + 1 WHERE id IN (2, 3)")?;
        l.run("BEGIN; UPDATE x_chain SET v = v + 1 WHERE id = 1")?;
        let start = Instant::now();
        let (first, (second, third)) = Arena::both(
            || t1.run("COMMIT").map(drop),
            || {
                Arena::both(
                    || t2.run("COMMIT").map(drop),
                    || l.run("UPDATE x_chain SET v = v + 1 WHERE id = 2; COMMIT").map(drop),
                )
            },
        );
        ensure!(start.elapsed() < Duration::from_secs(10), "it took {:?}", start.elapsed());
        retryable_losers(&[first, second, third])?;
        drop((t1, t2, l));
        a.same("SELECT string_agg(v::text, ' ' ORDER BY id) FROM x_chain")?;
    }
    Ok(())
}

/// A load on few rows from all nodes goes on: every second something is committed.
fn hot_rows_on_three_nodes(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_hot(id int PRIMARY KEY, v int); INSERT INTO x_hot SELECT g, 0 FROM generate_series(1, 100) g")?;
    let seconds: Vec<AtomicU64> = (0..6).map(|_| AtomicU64::new(0)).collect();
    let start = Instant::now();
    storm(a, 4, Duration::from_secs(5), |session, n| {
        let row = (n * 7919) % 100 + 1;
        let answer = session.run(&format!("UPDATE x_hot SET v = v + 1 WHERE id = {row}"));
        if answer.is_ok() {
            let second = usize::try_from(start.elapsed().as_secs()).unwrap_or(5).min(5);
            seconds[second].fetch_add(1, Ordering::Relaxed);
        }
        answer.map(drop)
    })?;
    let each: Vec<u64> = seconds.iter().map(|n| n.load(Ordering::Relaxed)).collect();
    ensure!(each[..5].iter().all(|n| *n > 0), "commits per second: {each:?}");
    let total: u64 = each.iter().sum();
    a.expect("SELECT sum(v) FROM x_hot", &total.to_string())
}

/// Two transactions of node 3 that do not conflict. On node 1 the second one waits for a client that
/// waits for the first one, on node 2 the first one for a client that waits for the second one: no
/// server sees the circle.
fn circle_through_clients_of_two_nodes(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_circle(id int PRIMARY KEY, v int); INSERT INTO x_circle SELECT g, 0 FROM generate_series(1, 4) g")?;
    let update = |id: i32| format!("UPDATE x_circle SET v = v + 1 WHERE id = {id}");
    let sessions = [1, 2, 3, 3]
        .map(|node| a.on(node).map(|session| session.patience(Duration::from_secs(20))));
    let [one, two, first, second] = sessions;
    let (one, two, first, second) = (one?, two?, first?, second?);
    one.run(&format!("BEGIN; {}", update(3)))?;
    two.run(&format!("BEGIN; {}", update(4)))?;
    first.run(&format!("BEGIN; {}; {}", update(1), update(4)))?;
    second.run(&format!("BEGIN; {}; {}", update(2), update(3)))?;
    let commit = |session: &Session| session.run("COMMIT").map(drop);
    let blocked =
        "SELECT (SELECT count(*) FROM pg_prepared_xacts) || ' prepared, ' || count(*) || ' waiting'
        FROM pg_stat_activity WHERE backend_type LIKE 'mtm-%' AND wait_event_type = 'Lock'";
    let outcomes = std::thread::scope(|scope| {
        let others = [scope.spawn(|| commit(&first)), scope.spawn(|| commit(&second))];
        for id in [1, 2] {
            until("one is prepared, the other one waits", Duration::from_secs(20), || {
                Ok((a.on(id)?.one(blocked)? == "1 prepared, 1 waiting").then_some(()))
            })?;
        }
        let own = |session: &Session, id: i32| {
            session.run(&update(id)).and_then(|_| session.run("COMMIT")).map(drop)
        };
        let (x, y) = Arena::both(|| own(&one, 1), || own(&two, 2));
        let others = others.map(|thread| thread.join().expect("no panic in a client"));
        anyhow::Ok(others.into_iter().chain([x, y]).collect::<Vec<_>>())
    })?;
    retryable_losers(&outcomes)?;
    // Each of them has updated two rows.
    a.expect("SELECT sum(v) FROM x_circle", &(2 * winners(&outcomes)).to_string())
}

/// Transfers in random order between few accounts: money is neither made nor lost.
fn bank_transfers(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_bank(id int PRIMARY KEY, v int CHECK (v >= 0)); INSERT INTO x_bank SELECT g, 1000 FROM generate_series(1, 20) g")?;
    storm(a, 2, Duration::from_secs(4), |session, n| {
        let (from, to) = ((n * 13) % 20 + 1, (n * 29 + 7) % 20 + 1);
        session.run(&format!(
            "BEGIN; UPDATE x_bank SET v = v - 1 WHERE id = {from}; UPDATE x_bank SET v = v + 1 WHERE id = {to}; COMMIT"
        ))?;
        Ok(())
    })?;
    a.expect("SELECT sum(v) FROM x_bank", "20000")
}

/// Readers never see half a transfer, on any node, while transfers go on.
fn sum_is_constant_in_every_snapshot(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_sum(id int PRIMARY KEY, v int); INSERT INTO x_sum SELECT g, 100 FROM generate_series(1, 50) g")?;
    storm(a, 2, Duration::from_secs(4), |session, n| {
        if n % 2 == 0 {
            let sum = session.one("SELECT sum(v) FROM x_sum")?;
            assert_eq!(sum, "5000", "a reader saw half a transfer");
            return Ok(());
        }
        let (from, to) = ((n * 13) % 50 + 1, (n * 29 + 7) % 50 + 1);
        session.run(&format!(
            "BEGIN; UPDATE x_sum SET v = v - 1 WHERE id = {from}; UPDATE x_sum SET v = v + 1 WHERE id = {to}; COMMIT"
        ))?;
        Ok(())
    })?;
    a.expect("SELECT sum(v) FROM x_sum", "5000")
}

/// A cancel during COMMIT: either it came too late and the row is everywhere, or it is nowhere.
fn cancel_while_committing(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_cancel(id int PRIMARY KEY)")?;
    for id in 1..=60 {
        // A late cancel hits whatever its session does then: no session is used twice.
        let session = a.on(1)?;
        let canceller = session.canceller();
        session.run(&format!("BEGIN; INSERT INTO x_cancel VALUES ({id})"))?;
        let (outcome, _) = Arena::both(
            || session.run("COMMIT").map(drop),
            || {
                // From "before it began" to "when it is long over".
                std::thread::sleep(Duration::from_micros(100 * (id % 20)));
                canceller.cancel()
            },
        );
        let there = match outcome {
            Ok(()) => "1",
            Err(error) => {
                ensure!(["57014", "40001"].contains(&error.state.as_str()), "{error}");
                "0"
            }
        };
        super::compare::nothing_prepared(a)?;
        let rows = format!("SELECT count(*) FROM x_cancel WHERE id = {id}");
        let warned = |notice: &String| notice.contains("canceling the wait for other nodes");
        if session.notices().iter().any(warned) {
            // It is committed, and the others were not waited for.
            until("every node has what was committed", Duration::from_secs(20), || {
                a.expect(&rows, there).map(Some)
            })?;
        } else {
            a.expect(&rows, there)?;
        }
    }
    Ok(())
}
