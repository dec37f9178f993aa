//! What peers get to read: marks of commits beside announced transactions, and everything that a
//! node committed when they recover from it. Read through slots of these checks' own.

use super::arena::Arena;
use super::checks;
use super::stream_reader::{Event, Said, Slot, hex};
use crate::server::DATABASE;
use crate::wait::until;
use anyhow::{Result, ensure};
use mtm_core::{GenNum, Gid, Xid};
use mtm_logrep::journal::{Forgotten, ParallelSafe, gid_bytes};
use std::time::Duration;

checks!("stream":
    marks_of_all_origins,
    marks_without_an_announcement,
    replays_of_all_origins,
    replays_with_schema_changes,
    values_stored_out_of_line,
    replays_from_the_middle,
    replays_of_what_users_prepare,
    large_replays,
    held_at_parallel_safe,
    held_and_rolled_back_since,
    users_rolled_back_since,
    local_transactions_are_left_out,
    rows_that_cannot_be_replayed,
    announcements_are_named,
    a_live_stream,
    syncpoints,
    options,
);

const LIMIT: Duration = Duration::from_secs(20);

/// Runs a transaction of one statement; its number. Nobody else commits on that node meanwhile.
fn write(a: &Arena, id: usize, sql: &str) -> Result<u64> {
    let session = a.on(id)?;
    session.run("BEGIN")?;
    session.run(sql)?;
    let number = session.one("SELECT next_number FROM mtm.transaction_table()")?.parse()?;
    session.run("COMMIT")?;
    Ok(number)
}

/// Waits until a node shows something.
fn shown(a: &Arena, id: usize, query: &str, answer: &str) -> Result<()> {
    until(&format!("{query} is {answer} on node {id}"), LIMIT, || {
        Ok((a.ask(id, query)? == answer).then_some(()))
    })
}

/// Events of one kind, once there are so many of them.
fn events(slot: &Slot<'_>, options: &str, said: Said, n: usize) -> Result<Vec<Event>> {
    let mut last = Vec::new();
    until(&format!("{n} times {said:?} from node {}", slot.node), LIMIT, || {
        last = slot.peek(options)?;
        let found = last.iter().filter(|event| event.said == said).count();
        ensure!(found <= n, "{found} times {said:?} instead of {n}: {last:?}");
        Ok((found == n).then_some(()))
    })?;
    Ok(last)
}

fn of(all: &[Event], said: Said) -> Vec<&Event> {
    all.iter().filter(|event| event.said == said).collect()
}

fn who(all: &[Event], said: Said) -> Vec<(usize, u64)> {
    of(all, said).iter().map(|event| event.who()).collect()
}

fn marks_of_all_origins(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE st_marks(id int PRIMARY KEY)")?;
    let slot = Slot::new(a, 1, "marks")?;
    let mut expected = Vec::new();
    for (n, node) in [1, 2, 3, 1, 3].into_iter().enumerate() {
        expected.push((node, write(a, node, &format!("INSERT INTO st_marks VALUES ({n})"))?));
        shown(a, 1, "SELECT count(*) FROM st_marks", &(n + 1).to_string())?;
        a.run(node, "BEGIN; INSERT INTO st_marks VALUES (100); ROLLBACK")?;
    }
    a.on(1)?.refused("INSERT INTO st_marks VALUES (1)")?;
    let all = events(&slot, "mode normal", Said::Mark, 5)?;
    ensure!(who(&all, Said::Mark) == expected, "{all:?} instead of {expected:?}");
    // Announcements are read when these are over: their rows are not news.
    ensure!(who(&all, Said::Over) == [expected[0], expected[3]], "{all:?}");
    // A place of a mark is one to begin at.
    let second = of(&all, Said::Mark)[1].lsn;
    slot.advance(&format!("'{second}'"))?;
    let rest = slot.peek("mode normal")?;
    ensure!(who(&rest, Said::Mark) == expected[2..], "{rest:?} instead of {expected:?}");
    Ok(())
}

/// The announcement lies before the slot's place; or the transaction was large and went out early.
fn marks_without_an_announcement(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE st_late(id int PRIMARY KEY, v text)")?;
    let slot = Slot::new(a, 1, "late")?;
    a.run(1, "BEGIN; INSERT INTO st_late VALUES (1); PREPARE TRANSACTION 'user-st1'")?;
    slot.skip()?;
    a.run(1, "COMMIT PREPARED 'user-st1'")?;
    // The mark of the second operation, and one more where the first one's rows become visible.
    let all = events(&slot, "mode normal", Said::Mark, 2)?;
    ensure!(all.iter().filter(|event| event.said == Said::Mark).count() == 2, "{all:?}");
    // What was user-prepared before does not come again.
    let all = slot.peek("mode recovery")?;
    ensure!(of(&all, Said::Replay).len() == 1 && all[0].rows()?.is_empty(), "{all:?}");
    slot.skip()?;
    let rows = "INSERT INTO st_late SELECT g, repeat('x', 50) FROM generate_series(2, 5000) g";
    let number = write(a, 1, rows)?;
    let all = events(&slot, "mode normal", Said::Mark, 1)?;
    ensure!(who(&all, Said::Mark) == [(1, number)], "{all:?}");
    ensure!(all.len() > 2, "nothing went out early: {all:?}");
    a.expect("SELECT count(*) FROM st_late", "5000")
}

fn replays_of_all_origins(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE st_all(id int PRIMARY KEY, v text)")?;
    let slot = Slot::new(a, 1, "all")?;
    let mut expected = Vec::new();
    for (n, node) in [2, 1, 3].into_iter().enumerate() {
        let (n, k) = (n + 1, 10 * (n + 1));
        let sql = format!(
            "INSERT INTO st_all VALUES ({k}, 'a'), ({k} + 1, 'b');
             SAVEPOINT s; UPDATE st_all SET v = 'no'; ROLLBACK TO s;
             SAVEPOINT t; UPDATE st_all SET v = 'c' WHERE id = {k}; RELEASE t;
             SAVEPOINT u; DELETE FROM st_all WHERE id = {k} + 1"
        );
        let rows = format!("+st_all({k},a)+st_all({},b)~st_all({k},c)-st_all", k + 1);
        expected.push(((node, write(a, node, &sql)?), rows));
        shown(a, 1, "SELECT count(*) FROM st_all", &n.to_string())?;
        a.run(node, "BEGIN; DELETE FROM st_all; ROLLBACK")?;
    }
    let all = events(&slot, "mode recovery", Said::Replay, 3)?;
    ensure!(all.len() == 3, "more than replays: {all:?}");
    for (event, (name, rows)) in all.iter().zip(&expected) {
        ensure!(event.who() == *name && event.rows()? == *rows, "{event:?}: {}", event.rows()?);
    }
    // Both modes name the same places.
    let normal = events(&slot, "mode normal", Said::Mark, 3)?;
    let marks: Vec<_> = of(&normal, Said::Mark).iter().map(|event| event.lsn).collect();
    let replays: Vec<_> = all.iter().map(|event| event.lsn).collect();
    ensure!(marks == replays, "{marks:?} against {replays:?}");
    Ok(())
}

fn replays_with_schema_changes(a: &Arena) -> Result<()> {
    let slot = Slot::new(a, 1, "ddl")?;
    for node in [1, 2] {
        write(
            a,
            node,
            &format!(
                "CREATE TABLE st_ddl{node}(id int PRIMARY KEY);
                 INSERT INTO st_ddl{node} VALUES (1), (2);
                 ALTER TABLE st_ddl{node} ADD COLUMN v text DEFAULT 'x';
                 SAVEPOINT s; ALTER TABLE st_ddl{node} ADD COLUMN gone int; ROLLBACK TO s;
                 INSERT INTO st_ddl{node} VALUES (3, 'y')"
            ),
        )?;
        write(
            a,
            node,
            &format!("TRUNCATE st_ddl{node}; INSERT INTO st_ddl{node} VALUES (4, 'z')"),
        )?;
        shown(a, 1, &format!("SELECT count(*), min(v) FROM st_ddl{node}"), "1,z")?;
    }
    let all = events(&slot, "mode recovery", Said::Replay, 4)?;
    for (event, node) in all.iter().zip([1, 1, 2, 2]) {
        ensure!(event.who().0 == node, "{event:?}");
    }
    for (at, node) in [(0, 1), (2, 2)] {
        let rows = all[at].rows()?;
        let expected = format!("!+st_ddl{node}(1)+st_ddl{node}(2)!+st_ddl{node}(3,y)");
        ensure!(rows == expected, "{rows} instead of {expected}");
        let rows = all[at + 1].rows()?;
        let end = format!("+st_ddl{node}(4,z)");
        ensure!(rows.ends_with(&end), "{rows} instead of ..{end}");
        let counts = all[at + 1].counts()?;
        ensure!(
            counts.get(&'0').or_else(|| counts.get(&'!')) == Some(&1),
            "nothing empties it: {rows}"
        );
    }
    Ok(())
}

fn values_stored_out_of_line(a: &Arena) -> Result<()> {
    a.run(
        1,
        "CREATE TABLE st_toast(id int PRIMARY KEY, n text, v text);
         ALTER TABLE st_toast ALTER v SET STORAGE EXTERNAL",
    )?;
    let slot = Slot::new(a, 1, "toast")?;
    let long = "x".repeat(9000);
    for node in [1, 3] {
        write(
            a,
            node,
            &format!(
                "INSERT INTO st_toast VALUES ({node}, 'a', '{long}');
                 UPDATE st_toast SET n = 'b' WHERE id = {node}"
            ),
        )?;
        shown(a, 1, &format!("SELECT n FROM st_toast WHERE id = {node}"), "b")?;
    }
    let all = events(&slot, "mode recovery", Said::Replay, 2)?;
    for (event, node) in all.iter().zip([1, 3]) {
        let expected = format!("+st_toast({node},a,{long})~st_toast({node},b,=)");
        ensure!(event.rows()? == expected, "{}", event.rows()?);
    }
    Ok(())
}

fn replays_from_the_middle(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE st_middle(id int PRIMARY KEY)")?;
    let slot = Slot::new(a, 2, "middle")?;
    let mut expected = Vec::new();
    for (n, node) in [1, 2, 3, 1, 2, 3].into_iter().enumerate() {
        expected.push((node, write(a, node, &format!("INSERT INTO st_middle VALUES ({n})"))?));
        shown(a, 2, "SELECT count(*) FROM st_middle", &(n + 1).to_string())?;
    }
    let all = events(&slot, "mode recovery", Said::Replay, 6)?;
    ensure!(who(&all, Said::Replay) == expected, "{all:?}");
    for n in 1..6 {
        slot.advance(&format!("'{}'", all[n - 1].lsn))?;
        let rest = slot.peek("mode recovery")?;
        ensure!(who(&rest, Said::Replay) == expected[n..], "from {n} on: {rest:?}");
    }
    Ok(())
}

/// What a user prepares is replayed where it becomes user-prepared, and how he ends it is another
/// transaction, without rows.
fn replays_of_what_users_prepare(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE st_before(id int PRIMARY KEY)")?;
    let slots = [Slot::new(a, 1, "before1")?, Slot::new(a, 2, "before2")?];
    a.run(1, "BEGIN; INSERT INTO st_before VALUES (1), (2); PREPARE TRANSACTION 'user-st2'")?;
    for slot in &slots {
        let all = events(slot, "mode recovery", Said::Replay, 1)?;
        ensure!(all.len() == 1, "{all:?}");
        ensure!(all[0].rows()? == "+st_before(1)+st_before(2)", "{}", all[0].rows()?);
    }
    a.run(1, "COMMIT PREPARED 'user-st2'")?;
    a.run(1, "BEGIN; INSERT INTO st_before VALUES (3); PREPARE TRANSACTION 'user-st3'")?;
    a.run(1, "ROLLBACK PREPARED 'user-st3'")?;
    let expected = ["+st_before(1)+st_before(2)", "", "+st_before(3)", ""];
    for slot in &slots {
        let all = events(slot, "mode recovery", Said::Replay, 4)?;
        let rows: Vec<String> = all.iter().map(Event::rows).collect::<Result<_>>()?;
        ensure!(rows == expected, "{rows:?}");
    }
    shown(a, 2, "SELECT count(*) FROM pg_prepared_xacts", "0")
}

/// Ten times as large as what may stay in memory, with rolled back parts.
fn large_replays(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE st_large(id int PRIMARY KEY, v text)")?;
    let slot = Slot::new(a, 1, "large")?;
    for (node, first) in [(1, 0), (2, 10000)] {
        write(
            a,
            node,
            &format!(
                "INSERT INTO st_large SELECT g, repeat('x', 60) FROM generate_series({first} + 1, {first} + 4000) g;
                 SAVEPOINT s; UPDATE st_large SET v = 'no'; ROLLBACK TO s;
                 SAVEPOINT t;
                 INSERT INTO st_large SELECT g, repeat('y', 60) FROM generate_series({first} + 4001, {first} + 8000) g"
            ),
        )?;
    }
    shown(a, 1, "SELECT count(*) FROM st_large", "16000")?;
    let all = events(&slot, "mode recovery", Said::Replay, 2)?;
    for event in &all {
        ensure!(event.counts()?.get(&'+') == Some(&8000), "{:?}", event.counts()?);
        let (pieces, longest) = event.pieces;
        ensure!(pieces > 8 && longest < 66_000, "{pieces} pieces of up to {longest} bytes");
    }
    Ok(())
}

/// Runs `body` with a transaction that node 2 has announced and node 1 holds prepared: node 3 has
/// no vote, because a table is locked there. `body` is given its name, and how to commit it (`true`)
/// or to have it aborted. The table is `st_block`.
fn while_held(
    a: &Arena,
    sql: &str,
    body: impl FnOnce(Gid, &dyn Fn(bool) -> Result<()>) -> Result<()>,
) -> Result<()> {
    let lock = a.cluster.node(3)?.connect_as(DATABASE, "mtm_admin")?;
    lock.run("BEGIN; LOCK TABLE st_block IN SHARE MODE")?;
    let session = a.on(2)?;
    let pid = session.one("SELECT pg_backend_pid()")?;
    std::thread::scope(|scope| {
        let client = scope.spawn(move || {
            session.run(&format!("BEGIN; {sql}; INSERT INTO st_block VALUES (default); COMMIT"))
        });
        let end = |commit: bool| match commit {
            true => Ok(lock.run("ROLLBACK").map(drop)?),
            false => a.run(2, &format!("SELECT pg_cancel_backend({pid})")).map(drop),
        };
        let held = until("node 1 holds it", LIMIT, || {
            let gid = a.ask(1, "SELECT gid FROM pg_prepared_xacts WHERE gid LIKE 'MTM-2-%'")?;
            Ok(gid.parse::<Gid>().ok())
        });
        let result = held.and_then(|held| body(held, &end));
        let _ = lock.run("ROLLBACK");
        let _ = client.join();
        result
    })
}

/// Writes a message that belongs to no transaction, and makes it durable.
fn log(a: &Arena, prefix: &str, content: &[u8]) -> Result<()> {
    let content = hex(content);
    a.run(1, &format!("SELECT pg_logical_emit_message(false, '{prefix}', {content})"))?;
    a.run(1, "SELECT pg_logical_emit_message(true, 'suite', 'flushes')")?;
    Ok(())
}

fn log_parallel_safe(a: &Arena, num: u64, held: Vec<(Gid, bool)>) -> Result<()> {
    let mut content = Vec::new();
    ParallelSafe { num: GenNum(num), held, users: Vec::new() }.encode(&mut content);
    log(a, "mtm-parallel-safe", &content)
}

fn held_at_parallel_safe(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE st_held(id int PRIMARY KEY, v text)")?;
    a.run(1, "CREATE TABLE IF NOT EXISTS st_block(id serial PRIMARY KEY)")?;
    let slot = Slot::new(a, 1, "held")?;
    let rows = "INSERT INTO st_held VALUES (1, 'a'); SAVEPOINT s;
                INSERT INTO st_held VALUES (2, 'b'); RELEASE s; UPDATE st_held SET v = 'c' WHERE id = 1";
    while_held(a, rows, |held, end| {
        let number = write(a, 2, "INSERT INTO st_held VALUES (3, 'd')")?;
        shown(a, 1, "SELECT count(*) FROM st_held", "1")?;
        let before = Gid { xid: Xid(number), generation: GenNum(1), ..held };
        log_parallel_safe(a, 7, vec![(held, false), (before, true)])?;
        log_parallel_safe(a, 8, vec![(held, true)])?;
        write(a, 1, "INSERT INTO st_held VALUES (4, 'e')")?;
        end(true)?;
        let expected = "+st_held(1,a)+st_held(2,b)~st_held(1,c)+st_block(";
        let all = events(&slot, "mode recovery", Said::ReplayPrepared, 1)?;
        let said: Vec<Said> = all.iter().map(|event| event.said).collect();
        let order = [
            Said::Replay,
            Said::Held(false),
            Said::HeldElsewhere(true),
            Said::ParallelSafe(GenNum(7)),
            Said::HeldElsewhere(true),
            Said::ParallelSafe(GenNum(8)),
            Said::Replay,
            Said::ReplayPrepared,
        ];
        ensure!(said == order, "{said:?}");
        ensure!(all[1].gid == Some(held) && all[7].gid == Some(held), "{all:?}");
        ensure!(all[1].rows()?.starts_with(expected), "{}", all[1].rows()?);
        // Who asks for another generation gets each transaction at its commit, with its rows.
        let all = events(&slot, "mode recovery hold 8", Said::ReplayPrepared, 1)?;
        ensure!(of(&all, Said::Held(true))[0].rows()?.starts_with(expected), "{all:?}");
        ensure!(of(&all, Said::ParallelSafe(GenNum(7))).is_empty(), "{all:?}");
        let all = events(&slot, "mode recovery hold 0", Said::Replay, 3)?;
        ensure!(all.len() == 3 && all[2].gid == Some(held), "{all:?}");
        ensure!(all[2].rows()?.starts_with(expected), "{}", all[2].rows()?);
        Ok(())
    })
}

/// When this is read, the held transactions are not there any more: rows can be read nevertheless,
/// unless the schema they had went with them.
fn held_and_rolled_back_since(a: &Arena) -> Result<()> {
    let rows = "INSERT INTO st_held SELECT g, repeat('x', 100) FROM generate_series(101, 2100) g";
    let ddl = "CREATE TABLE st_gone(id int PRIMARY KEY); INSERT INTO st_gone VALUES (1)";
    a.run(1, "CREATE TABLE IF NOT EXISTS st_block(id serial PRIMARY KEY)")?;
    for sql in [rows, ddl] {
        let slot = Slot::new(a, 1, "rolled_back")?;
        while_held(a, sql, |held, end| {
            log_parallel_safe(a, 9, vec![(held, true)])?;
            if sql == ddl {
                let all = events(&slot, "mode recovery", Said::Held(true), 1)?;
                ensure!(all[0].rows()?.starts_with("!+st_gone(1)"), "{}", all[0].rows()?);
            }
            end(false)?;
            shown(a, 1, "SELECT count(*) FROM pg_prepared_xacts", "0")?;
            let all = events(&slot, "mode recovery", Said::ParallelSafe(GenNum(9)), 1)?;
            ensure!(all.len() == 2 && all[0].gid == Some(held), "{all:?}");
            if sql == rows {
                ensure!(all[0].said == Said::Held(true), "{all:?}");
                ensure!(all[0].counts()?.get(&'+') == Some(&2001), "{all:?}");
            } else {
                ensure!(all[0].said == Said::HeldGone(true), "{all:?}");
            }
            Ok(())
        })?;
    }
    a.expect("SELECT count(*) FROM st_held", "4")
}

/// A user rolls back what he has prepared: where that is read later, the rows can be read
/// nevertheless, unless their schema went with them. Then the name comes without them.
fn users_rolled_back_since(a: &Arena) -> Result<()> {
    let rows = "INSERT INTO st_held SELECT g, repeat('x', 100) FROM generate_series(101, 2100) g";
    let ddl = "CREATE TABLE st_gone(id int PRIMARY KEY); INSERT INTO st_gone VALUES (1)";
    for (sql, name, expected) in [(rows, "user-st5", 2000), (ddl, "user-st6", 0)] {
        let slot = Slot::new(a, 1, "users_rolled_back")?;
        a.run(2, &format!("BEGIN; {sql}; PREPARE TRANSACTION '{name}'"))?;
        a.run(2, &format!("ROLLBACK PREPARED '{name}'"))?;
        shown(a, 1, "SELECT count(*) FROM pg_prepared_xacts", "0")?;
        let all = events(&slot, "mode recovery", Said::Replay, 2)?;
        let replays = of(&all, Said::Replay);
        ensure!(replays[0].counts()?.get(&'+').copied().unwrap_or(0) == expected, "{all:?}");
        ensure!(replays[0].names()? == 1 && replays[1].names()? == 1, "{all:?}");
        ensure!(replays[1].counts()?.is_empty(), "{all:?}");
    }
    a.expect("SELECT count(*) FROM st_held", "4")
}

/// What a session of the administrator does on one node, to rows that others have too.
fn local_transactions_are_left_out(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE st_local(id int PRIMARY KEY, v text)")?;
    let slot = Slot::new(a, 1, "local")?;
    let admin = a.on(1)?;
    admin.run("SET application_name = 'mtm_admin'")?;
    admin.run("INSERT INTO st_local SELECT g, repeat('x', 100) FROM generate_series(1, 2000) g")?;
    admin.run("DELETE FROM st_local")?;
    admin.run("INSERT INTO st_local VALUES (1, 'a')")?;
    admin.run("DELETE FROM st_local")?;
    let number = write(a, 1, "INSERT INTO st_local VALUES (2, 'b')")?;
    let all = events(&slot, "mode recovery", Said::Replay, 1)?;
    let said: Vec<Said> = all.iter().map(|event| event.said).collect();
    ensure!(said.ends_with(&[Said::Discard, Said::Replay]), "{said:?}");
    ensure!(said.len() <= 3, "small ones, too: {said:?}");
    ensure!(who(&all, Said::Replay) == [(1, number)], "{all:?}");
    let replay = of(&all, Said::Replay)[0];
    ensure!(replay.rows()? == "+st_local(2,b)", "{}", replay.rows()?);
    let marks = events(&slot, "mode normal", Said::Mark, 1)?;
    ensure!(who(&marks, Said::Mark) == [(1, number)], "{marks:?}");
    Ok(())
}

/// A committed transaction whose rows nobody can find again: an error, never a part of it.
fn rows_that_cannot_be_replayed(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE st_nothing(id int, v text); CREATE TABLE st_fine(id int PRIMARY KEY)")?;
    a.run(
        1,
        "INSERT INTO st_nothing VALUES (1, 'x'); ALTER TABLE st_nothing REPLICA IDENTITY NOTHING",
    )?;
    let slot = Slot::new(a, 1, "nothing")?;
    let number = write(a, 1, "INSERT INTO st_fine VALUES (1)")?;
    let all = events(&slot, "mode recovery", Said::Replay, 1)?;
    ensure!(who(&all, Said::Replay) == [(1, number)], "{all:?}");
    let Some(gid) = all[0].gid else { anyhow::bail!("no name: {all:?}") };
    let admin = a.on(1)?;
    admin.run("SET application_name = 'mtm_admin'")?;
    admin.run("UPDATE st_nothing SET v = 'y'")?;
    let all = events(&slot, "mode recovery", Said::Replay, 1)?;
    ensure!(all.len() == 1, "{all:?}");
    let marker = hex(&gid_bytes(&gid));
    admin.run(&format!(
        "BEGIN; UPDATE st_nothing SET v = 'x';
         SELECT pg_logical_emit_message(true, 'mtm-marker', {marker}); COMMIT"
    ))?;
    let error = a.on(1)?.refused(&slot.query("peek", "mode recovery"))?;
    ensure!(error.state == "55000" && error.message.contains(&gid.to_string()), "{error}");
    ensure!(error.message.contains("replica identity"), "{error}");
    Ok(())
}

/// Who recovers must not confirm more than the announcements on which it has no vote.
fn announcements_are_named(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE st_named(id int PRIMARY KEY)")?;
    let slot = Slot::new(a, 1, "named")?;
    a.run(1, "BEGIN; INSERT INTO st_named VALUES (1); PREPARE TRANSACTION 'user-st7'")?;
    let own = write(a, 1, "INSERT INTO st_named VALUES (2)")?;
    let other = write(a, 2, "INSERT INTO st_named VALUES (3)")?;
    shown(a, 1, "SELECT count(*) FROM st_named", "2")?;
    events(&slot, "mode recovery", Said::Replay, 3)?;
    let mut all = slot.peek_all("mode recovery")?;
    all.retain(|event| !matches!(event.said, Said::Syncpoint(_)));
    let said: Vec<Said> = all.iter().map(|event| event.said).collect();
    a.run(1, "COMMIT PREPARED 'user-st7'")?;
    let replay = [Said::Announcement, Said::Replay];
    ensure!(said == [replay.as_slice(), &replay, &[Said::Replay]].concat(), "{said:?}");
    ensure!(all[2].who() == (1, own) && all[3].who() == (1, own), "{all:?}");
    ensure!(all[4].who() == (2, other), "{all:?}");
    Ok(())
}

/// Announced transactions leave while they are in progress, and their marks follow without them
/// being read again.
fn a_live_stream(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE st_live(id int PRIMARY KEY, v text)")?;
    let slot = Slot::new(a, 1, "live")?;
    let reader = slot.follow()?;
    let mut gids = Vec::new();
    for (n, node) in [1, 2, 1].into_iter().enumerate() {
        let xid = write(a, node, &format!("INSERT INTO st_live VALUES ({n}, 'live-{n}')"))?;
        shown(a, 1, "SELECT count(*) FROM st_live", &(n + 1).to_string())?;
        gids.push((node, xid));
    }
    let large = "INSERT INTO st_live SELECT g, repeat('x', 100) FROM generate_series(10, 60000) g";
    gids.push((1, write(a, 1, large)?));
    let name = |(node, xid): (usize, u64)| {
        let mut bytes = vec![u8::try_from(node).unwrap_or(0)];
        bytes.extend(xid.to_be_bytes());
        bytes
    };
    // A mark begins with its letter and the name.
    let mark = |who| [b"C", name(who).as_slice()].concat();
    until("all marks have come", LIMIT, || {
        let bytes = reader.bytes()?;
        Ok(gids.iter().all(|who| find(&bytes, &mark(*who)).is_some()).then_some(()))
    })?;
    let bytes = reader.bytes()?;
    let marks: Vec<_> = gids.iter().map(|who| find(&bytes, &mark(*who))).collect();
    ensure!(marks.is_sorted(), "{marks:?}");
    for (n, rows) in [(0, "live-0"), (2, "live-2")] {
        let piece = [b"T", name(gids[n]).as_slice()].concat();
        let places = (find(&bytes, &piece), find(&bytes, rows.as_bytes()), marks[n]);
        ensure!(places.0.is_some() && places.0 < places.1 && places.1 < places.2, "{places:?}");
    }
    ensure!(find(&bytes, b"live-1").is_none(), "rows of another node");
    let end = [b"P", name(gids[3]).as_slice()].concat();
    ensure!(find(&bytes, &end).is_some_and(|at| Some(at) < marks[3]), "the large one stays away");
    Ok(())
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

fn syncpoints(a: &Arena) -> Result<()> {
    let slot = Slot::new(a, 1, "syncpoint")?;
    let below = core::array::from_fn(|i| Xid(i as u64 * 1000));
    let mut content = Vec::new();
    Forgotten { below }.encode(&mut content);
    log(a, "mtm-syncpoint", &content)?;
    let ours = Said::Syncpoint(below.map(|xid| xid.0));
    let all = slot.peek_all("mode recovery")?;
    ensure!(all.iter().filter(|event| event.said == ours).count() == 1, "{all:?}");
    let normal = slot.peek_all("mode normal")?;
    ensure!(!normal.iter().any(|event| matches!(event.said, Said::Syncpoint(_))), "{normal:?}");
    Ok(())
}

fn options(a: &Arena) -> Result<()> {
    let slot = Slot::new(a, 1, "options")?;
    for wrong in ["mode fast", "mode ", "hold x", "hold -1", "speed 1"] {
        let error = a.on(1)?.refused(&slot.query("peek", wrong))?;
        ensure!(error.state == "22023" && error.message.contains("option"), "{wrong}: {error}");
    }
    // A slot that does not decode two-phase transactions cannot say what is held.
    a.run(1, "SELECT pg_create_logical_replication_slot('suite_plain', 'multimaster')")?;
    let read = "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('suite_plain', null, null, 'mode', 'recovery')";
    let error = a.on(1)?.refused(read)?;
    a.run(1, "SELECT pg_drop_replication_slot('suite_plain')")?;
    ensure!(error.state == "55000" && error.message.contains("two-phase"), "{error}");
    Ok(())
}
