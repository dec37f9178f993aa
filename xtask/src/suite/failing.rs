//! Parts that fail inside one node: it leaves with a reason, the others go on, and it comes back
//! when the cause is gone.

use super::arena::Arena;
use super::checks;
use crate::host::{give_to_server, is_root};
use crate::server::{DATABASE, Life, Server};
use crate::session::Session;
use crate::wait::until;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

checks!("failing":
    spill_directory_unwritable,
    prepared_slots_taken,
    place_is_kept_for_what_is_open,
    refusals_of_transactions_do_not_count,
    differing_row,
    row_too_many,
    row_too_many_in_german,
    state_file_unwritable,
    workers_terminated,
    a_worker_ends_before_its_task,
    no_place_for_a_peer,
    receiver_terminated_in_recovery,
    workers_killed,
    log_disk_full,
    cut_off_and_made_anew,
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

fn all_are_online(a: &Arena) -> Result<()> {
    super::failover::all_online(a)?;
    // The last change of the members may still be under way elsewhere.
    until("all nodes write", BACK_WITHIN, || a.can_write().map(Some))
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

/// Every transaction needs a place among the prepared ones, also one that is kept open
/// (specs/adr/0006).
fn prepared_slots_taken(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_slots(id int PRIMARY KEY, v text)")?;
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
    let out = in_the_end(a, 1, "INSERT INTO x_slots VALUES (1, 'small')")
        .and_then(|()| stays_out(a, 3, &["places for prepared transactions", "pg_prepared_xacts"]));
    for row in session.run("SELECT gid FROM pg_prepared_xacts WHERE gid LIKE 'user-x-%'")? {
        let gid = row.into_iter().flatten().next().context("a name")?;
        session.run(&format!("ROLLBACK PREPARED '{gid}'"))?;
    }
    out?;
    all_are_online(a)?;
    a.expect("SELECT count(*) FROM x_slots", "1")
}

/// A node that has promised to commit a transaction, and keeps it open, has a place among the
/// prepared ones for it, whatever users do meanwhile.
fn place_is_kept_for_what_is_open(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_place(id int PRIMARY KEY)")?;
    let from = std::fs::metadata(&a.cluster.node(3)?.log)?.len();
    let session = admin(a, 3)?;
    let most: usize = session.one("SHOW max_prepared_transactions")?.parse()?;
    let prepare =
        |i| format!("BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'user-x-{i}'");
    for i in 1..most {
        session.run(&prepare(i))?;
    }
    let prepared = "SELECT count(*) FROM pg_prepared_xacts WHERE gid LIKE 'MTM-%'";
    let tried = (0..10).try_fold(false, |kept, id| -> Result<bool> {
        if kept {
            return Ok(true);
        }
        // Node 2 does not vote, so node 3 keeps the transaction open until it prepares it.
        a.cluster.node(2)?.freeze();
        let tried = std::thread::scope(|scope| {
            let insert =
                scope.spawn(move || a.run(1, &format!("INSERT INTO x_place VALUES ({id})")));
            let kept = until("no place is left on node 3", GO_ON_WITHIN, || {
                if session.run(&prepare(0)).is_ok() {
                    session.run("ROLLBACK PREPARED 'user-x-0'")?;
                    return Ok(insert.is_finished().then_some(false));
                }
                session.run("ROLLBACK")?;
                Ok(Some(session.one(prepared)? == "0"))
            });
            if matches!(kept, Ok(true)) {
                until("node 3 has prepared it", GO_ON_WITHIN, || {
                    Ok((insert.is_finished() || session.one(prepared)? == "1").then_some(()))
                })?;
            }
            a.cluster.node(2)?.thaw();
            // Its place may have been taken before it came: then it is refused.
            let _ = insert.join().expect("no panic in a writer");
            kept
        });
        a.cluster.node(2)?.thaw();
        all_are_online(a)?;
        tried
    });
    for i in 1..most {
        session.run(&format!("ROLLBACK PREPARED 'user-x-{i}'"))?;
    }
    ensure!(tried?, "node 3 never kept a place for a transaction without preparing it");
    let panics = said_since(a.cluster.node(3)?, from, "PANIC")?;
    ensure!(panics == 0, "node 3 had a PANIC");
    all_are_online(a)?;
    a.same("SELECT count(*) FROM x_place").map(drop)
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

/// Somebody deleted a row on one node only.
fn differing_row(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_row(\"I d\" text PRIMARY KEY, n int)")?;
    a.run(1, "INSERT INTO x_row SELECT 'it''s ' || g, 0 FROM generate_series(1, 9) g")?;
    admin(a, 3)?.run("DELETE FROM x_row WHERE \"I d\" = 'it''s 5'")?;
    in_the_end(a, 1, "UPDATE x_row SET n = 7 WHERE \"I d\" = 'it''s 5'")?;
    let words = ["public.x_row", "(I d)=(it's 5)", "nodes 1 and 2 have it", "return_to_cluster"];
    stays_out(a, 3, &words)?;
    a.run(2, "UPDATE x_row SET n = 8 WHERE \"I d\" = 'it''s 1'")?;
    // A restart does not make it any better.
    a.cluster.node(3)?.stop()?;
    a.cluster.node(3)?.start()?;
    stays_out(a, 3, &words)?;
    admin(a, 3)?.run("INSERT INTO x_row VALUES ('it''s 5', 0)")?;
    admin(a, 3)?.run("SELECT mtm.return_to_cluster()")?;
    all_are_online(a)?;
    a.expect("SELECT sum(n), count(*) FROM x_row", "15,9")
}

/// Somebody inserted a row on one node only.
fn row_too_many(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_key(a int, b text, PRIMARY KEY (a, b))")?;
    admin(a, 2)?.run("INSERT INTO x_key VALUES (7, 'o''clock, or so')")?;
    in_the_end(a, 3, "INSERT INTO x_key VALUES (7, 'o''clock, or so')")?;
    stays_out(a, 2, &["x_key_pkey", "(a, b)=(7, o'clock, or so)", "nodes 1 and 3 do not have it"])?;
    admin(a, 2)?.run("DELETE FROM x_key")?;
    admin(a, 2)?.run("SELECT mtm.return_to_cluster()")?;
    all_are_online(a)?;
    a.expect("SELECT count(*) FROM x_key", "1")
}

/// What a server says is in its own language. Two unique keys, of which the second is in the way.
fn row_too_many_in_german(a: &Arena) -> Result<()> {
    let two = a.cluster.node(2)?;
    let restart = |environment: &[(&str, &str)]| {
        two.stop()?;
        two.start_with(environment)?;
        all_are_online(a)
    };
    a.run(
        1,
        "CREATE TABLE x_german(id int PRIMARY KEY, a int, \"b )\" text, UNIQUE (a, \"b )\"))",
    )?;
    restart(&[("LANGUAGE", "de")])?;
    let error = admin(a, 2)?.refused("SELECT 1 / 0")?;
    ensure!(error.message == "Division durch Null", "node 2 speaks another language: {error}");
    admin(a, 2)?.run("INSERT INTO x_german VALUES (1, 7, '(id)=(1) o''clock')")?;
    in_the_end(a, 3, "INSERT INTO x_german VALUES (2, 7, '(id)=(1) o''clock')")?;
    let out = stays_out(
        a,
        2,
        &[
            "existiert bereits",
            "(a, \"b )\")=(7, (id)=(1) o'clock)",
            "nodes 1 and 3 do not have it",
        ],
    );
    admin(a, 2)?.run("DELETE FROM x_german")?;
    admin(a, 2)?.run("SELECT mtm.return_to_cluster()")?;
    restart(&[])?;
    out?;
    a.expect("SELECT count(*) FROM x_german", "1")
}

/// What a node may not forget cannot be written: it says so, again and again but not all the time.
fn state_file_unwritable(a: &Arena) -> Result<()> {
    let (two, three) = (a.cluster.node(2)?, a.cluster.node(3)?);
    let directory = three.data.join("multimaster");
    let permit = |mode| std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(mode));
    let from = std::fs::metadata(&three.log)?.len();
    permit(0o500)?;
    two.stop()?;
    let said = until("node 3 says what it cannot write", GO_ON_WITHIN, || {
        let n = said_since(three, from, "multimaster cannot go on")?;
        Ok((n >= 3).then_some(()))
    });
    let all = said_since(three, from, "multimaster cannot go on")?;
    let named = said_since(three, from, "multimaster/generation")?;
    permit(0o700)?;
    two.start()?;
    said?;
    ensure!(all < 60 && named > 0, "said {all} times, with the file's name {named} times");
    all_are_online(a)
}

/// How often the node has logged these words since its log was `from` bytes long.
pub(super) fn said_since(server: &Server, from: u64, words: &str) -> Result<usize> {
    let bytes = std::fs::read(&server.log)?;
    let text =
        String::from_utf8_lossy(&bytes[usize::try_from(from)?.min(bytes.len())..]).into_owned();
    Ok(text.lines().filter(|line| line.contains(words)).count())
}

const WORKERS: [&str; 7] = [
    "mtm-monitor",
    "mtm-campaigner",
    "mtm-resolver",
    "mtm-health",
    "mtm-dmq-sender",
    "mtm-logrep-receiver",
    "mtm-logrep-receiver-dynworker",
];

/// The process of one of our workers on node 2.
fn worker(a: &Arena, kind: &str) -> Result<i32> {
    if kind.ends_with("dynworker") {
        // Too large for the receiver itself.
        a.run(1, "INSERT INTO x_work SELECT g, repeat('x', 100) FROM generate_series(1, 1000) g; DELETE FROM x_work")?;
    }
    until(&format!("node 2 has a process {kind}"), BACK_WITHIN, || {
        Ok(workers(a, kind)?.first().copied())
    })
}

/// All processes of this kind on node 2.
fn workers(a: &Arena, kind: &str) -> Result<Vec<i32>> {
    let title = format!("postgres: {kind}");
    // The one without a database is not in pg_stat_activity.
    let is_one = |pid: &i32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let rest = name.strip_prefix(&title);
        rest.is_some_and(|rest| rest.trim_matches([' ', '\0']).chars().all(|c| c.is_ascii_digit()))
    };
    let data = &a.cluster.node(2)?.data;
    Ok(crate::process::of_server(data).into_iter().filter(is_one).collect())
}

fn signal(pids: &[i32], signal: Signal) -> Result<()> {
    pids.iter().try_for_each(|pid| Ok(nix::sys::signal::kill(Pid::from_raw(*pid), signal)?))
}

fn is_gone(pid: i32) -> Result<()> {
    until(&format!("process {pid} is gone"), BACK_WITHIN, || {
        Ok(crate::process::state(pid).is_none().then_some(()))
    })
}

fn workers_terminated(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_work(id int PRIMARY KEY, v text)")?;
    let crashes = |a: &Arena| -> Result<usize> {
        said_since(a.cluster.node(2)?, 0, "all server processes terminated")
    };
    let before = crashes(a)?;
    for kind in WORKERS {
        let pid = worker(a, kind)?;
        signal(&[pid], Signal::SIGTERM)?;
        is_gone(pid)?;
        worker(a, kind)?;
        all_are_online(a).with_context(|| format!("{kind} was terminated"))?;
    }
    ensure!(crashes(a)? == before, "the server was restarted");
    Ok(())
}

/// What it was given and never saw somebody must answer: its origin would wait for ever.
fn a_worker_ends_before_its_task(a: &Arena) -> Result<()> {
    const KIND: &str = "mtm-logrep-receiver-dynworker";
    a.run(1, "CREATE TABLE IF NOT EXISTS x_work(id int PRIMARY KEY, v text)")?;
    let looker = admin(a, 2)?;
    let unfinished = || looker.one("SELECT count(*) FROM mtm.unfinished() WHERE origin = 1");
    for round in 0..3 {
        worker(a, KIND)?;
        let pids = workers(a, KIND)?;
        signal(&pids, Signal::SIGSTOP)?;
        let refused = std::thread::scope(|scope| {
            let insert =
                "INSERT INTO x_work SELECT g, repeat('x', 100) FROM generate_series(1, 999) g";
            let client = scope.spawn(|| a.on(1)?.patience(GO_ON_WITHIN).refused(insert));
            let given = until("node 2 has been given the transaction", GO_ON_WITHIN, || {
                Ok((client.is_finished() || unfinished()? != "0").then_some(()))
            });
            signal(&pids, Signal::SIGTERM)?;
            signal(&pids, Signal::SIGCONT)?;
            given?;
            client.join().expect("no panic in a client")
        })
        .with_context(|| format!("round {round}"))?;
        ensure!(refused.state == "40001", "{refused}");
        pids.into_iter().try_for_each(is_gone)?;
    }
    ensure!(unfinished()? == "0", "something is left");
    in_the_end(a, 1, "INSERT INTO x_work VALUES (0, '')")?;
    a.expect("SELECT count(*) FROM x_work", "1")
}

/// A node whose places for connections are all taken reaches a peer that cannot reach it: one of
/// the two is left out, and the others go on, until there is a place again.
fn no_place_for_a_peer(a: &Arena) -> Result<()> {
    const LINES: &str = "pg_stat_activity WHERE query LIKE 'CALL mtm.dmq_receive(1,%'";
    a.run(1, "CREATE TABLE x_refused(id serial PRIMARY KEY)")?;
    let boss = admin(a, 3)?;
    let mut taken = Vec::new();
    let error = loop {
        match a.on(3) {
            Ok(session) => taken.push(session),
            Err(error) => break format!("{error:#}"),
        }
    };
    ensure!(error.contains("too many clients"), "after {} clients: {error}", taken.len());
    until("a client has the place of node 1's connection", GO_ON_WITHIN, || {
        boss.run(&format!("SELECT pg_terminate_backend(pid) FROM {LINES}"))?;
        // Node 1 tries again after 200 ms.
        for _ in 0..20 {
            if let Ok(session) = a.on(3) {
                taken.push(session);
                break;
            }
        }
        Ok((boss.one(&format!("SELECT count(*) FROM {LINES}"))? == "0").then_some(()))
    })?;
    until("node 3 is left out", GO_ON_WITHIN, || {
        let members = a.cluster.node(1)?.connect_as(DATABASE, "mtm_admin")?;
        Ok((members.one("SELECT gen_members FROM mtm.status()")? == "{1,2}").then_some(()))
    })?;
    for id in [1, 2] {
        in_the_end(a, id, "INSERT INTO x_refused DEFAULT VALUES")?;
    }
    let status = boss.one("SELECT status FROM mtm.status()")?;
    ensure!(status != "online", "node 3 is {status}");
    drop(taken);
    all_are_online(a)?;
    a.expect("SELECT count(*) FROM x_refused", "2")
}

fn receiver_terminated_in_recovery(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_recover(id int PRIMARY KEY)")?;
    a.cluster.node(3)?.stop()?;
    let session = a.on(1)?.patience(GO_ON_WITHIN);
    for i in 0..1500 {
        session.run(&format!("INSERT INTO x_recover VALUES ({i})"))?;
    }
    a.cluster.node(3)?.start()?;
    let mut ended = 0;
    until("node 3 recovers although its receiver is ended", BACK_WITHIN, || {
        let session = admin(a, 3)?;
        if ended < 3 {
            let n: usize = session
                .one(
                    "SELECT count(*) FILTER (WHERE pg_terminate_backend(receiver_pid))
                       FROM mtm.nodes() WHERE receiver_mode = 'recovery'",
                )?
                .parse()?;
            ended += n;
        }
        Ok((session.one("SELECT status FROM mtm.status()")? == "online").then_some(()))
    })?;
    ensure!(ended > 0, "recovery was over too soon");
    all_are_online(a)?;
    a.expect("SELECT count(*) FROM x_recover", "1500")
}

fn workers_killed(a: &Arena) -> Result<()> {
    for kind in WORKERS {
        let pid = worker(a, kind)?;
        signal(&[pid], Signal::SIGKILL)?;
        is_gone(pid)?;
        // Not before it is a member again has it work, and so apply workers.
        all_are_online(a).with_context(|| format!("{kind} was killed"))?;
        worker(a, kind).with_context(|| format!("{kind} was killed"))?;
    }
    Ok(())
}

fn command(program: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments);
    crate::server::succeed(command, program)
}

/// PostgreSQL panics when its log's disk is full. The others go on, and after there is room again
/// and the server was started, the node is back.
fn log_disk_full(a: &Arena) -> Result<()> {
    if !is_root() {
        println!("    left out: a small disk can be mounted by root only");
        return Ok(());
    }
    let three = a.cluster.node(3)?;
    let (log, small) = (three.data.join("pg_wal"), three.data.with_file_name("small"));
    let (log_text, small_text) = (log.display().to_string(), small.display().to_string());
    a.run(1, "CREATE TABLE x_full(id int PRIMARY KEY, v text)")?;
    three.stop()?;
    std::fs::create_dir_all(&small)?;
    let kept: u64 = std::fs::read_dir(&log)?
        .filter_map(|entry| entry.and_then(|entry| entry.metadata()).ok())
        .map(|segment| segment.len())
        .sum();
    let size = format!("size={}m", (kept >> 20) + 200);
    command("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &small_text])?;
    give_to_server(&small)?;
    let result = command("cp", &["-a", &format!("{log_text}/."), &format!("{small_text}/")])
        .and_then(|()| command("mv", &[&log_text, &format!("{log_text}.away")]))
        .and_then(|()| Ok(std::os::unix::fs::symlink(&small, &log)?))
        .and_then(|()| full_and_back(a, three, &small));
    three.stop().or_else(|_| three.kill())?;
    if std::fs::symlink_metadata(&log)?.is_symlink() {
        command("rm", &["-f", &log_text])?;
        command("mkdir", &["-m", "700", &log_text])?;
        command("cp", &["-a", &format!("{small_text}/."), &log_text])?;
        give_to_server(&log)?;
        command("rm", &["-rf", &format!("{log_text}.away")])?;
    }
    command("umount", &[&small_text])?;
    three.start()?;
    result?;
    all_are_online(a)?;
    a.same("SELECT count(*), sum(length(v)) FROM x_full").map(drop)
}

fn full_and_back(a: &Arena, three: &Server, small: &Path) -> Result<()> {
    three.start()?;
    all_are_online(a)?;
    let from = std::fs::metadata(&three.log)?.len();
    let filler = small.join("filler");
    let filled = std::fs::write(&filler, vec![0; 500 << 20]);
    ensure!(filled.is_err(), "the disk is not full");
    let mut written = 0;
    until("node 3 has no place for its log, and the others go on", BACK_WITHIN, || {
        let insert = format!(
            "INSERT INTO x_full SELECT {written} + g, repeat('x', 500) FROM generate_series(1, 2000) g"
        );
        if a.run(1, &insert).is_ok() {
            written += 2000;
        }
        let panics = said_since(three, from, "PANIC")?;
        Ok((panics > 0 && written >= 60_000).then_some(()))
    })?;
    std::fs::remove_file(&filler)?;
    if three.life() == Life::Stopped {
        three.start()?;
    }
    all_are_online(a)?;
    a.expect("SELECT count(*) FROM x_full", &written.to_string())
}

/// More log than allowed would have to be kept for an absent node. It is cut off, says why, and the
/// cluster is made anew from one node's data, as the manual says.
fn cut_off_and_made_anew(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE x_cut(id int PRIMARY KEY, v text)")?;
    let limit = |id: usize, sql: &str| -> Result<()> {
        admin(a, id)?.run(sql)?;
        admin(a, id)?.run("SELECT pg_reload_conf()").map(drop).map_err(Into::into)
    };
    let three = a.cluster.node(3)?;
    let one = a.cluster.node(1)?;
    let from = std::fs::metadata(&one.log)?.len();
    let kept = |id| -> Result<i64> {
        Ok(a.ask(id, "SELECT max(bytes) / 1048576 FROM mtm.retained_wal")?.parse()?)
    };
    // What earlier checks wrote must be let go first: else more than half of the limit is kept from
    // the beginning, and that is nothing to warn about on the way.
    for id in [1, 2] {
        until(&format!("node {id} keeps little log"), BACK_WITHIN, || {
            admin(a, id)?.run("CHECKPOINT")?;
            Ok((kept(id)? < 48).then_some(()))
        })?;
    }
    three.stop()?;
    let mut most = 0;
    for id in [1, 2] {
        most = most.max(kept(id)? + 64);
    }
    for id in [1, 2] {
        limit(id, &format!("ALTER SYSTEM SET multimaster.max_retained_wal = '{most}MB'"))?;
    }
    let mut written = 0;
    until("node 3 is cut off", BACK_WITHIN, || {
        let insert = format!(
            "INSERT INTO x_cut SELECT {written} + g, repeat('x', 500) FROM generate_series(1, 4000) g"
        );
        a.run(1, &insert)?;
        written += 4000;
        // Some megabytes between two looks of the node, so that it sees what it is to warn about.
        std::thread::sleep(Duration::from_millis(200));
        let slots = |id| a.ask(id, "SELECT state FROM mtm.retained_wal WHERE id = 3");
        Ok((slots(1)? == "lost" && slots(2)? == "lost").then_some(()))
    })?;
    for words in ["node 3 is absent", "50 % of", "node 3 is cut off"] {
        ensure!(said_since(one, from, words)? > 0, "node 1 did not say: {words}");
    }
    let own = a.ask(1, "SELECT state FROM mtm.retained_wal WHERE id = 1")?;
    ensure!(own == "kept", "mtm_self: {own}");
    three.start()?;
    let words = ["no longer has the log that this node needs", "mtm_slot_3"];
    stays_out(a, 3, &words)?;
    // Who makes the slot by hand does not make up for what is missing.
    for id in [1, 2] {
        admin(a, id)?.run(
            "SELECT pg_create_logical_replication_slot('mtm_slot_3', 'multimaster', false, true)",
        )?;
    }
    three.stop()?;
    three.start()?;
    stays_out(a, 3, &words)?;
    let refused = admin(a, 3)?.refused("SELECT mtm.return_to_cluster()")?;
    ensure!(refused.state == "55000", "{refused}");
    a.run(2, "INSERT INTO x_cut VALUES (-1, 'the others go on')")?;
    for id in [1, 2] {
        limit(id, "ALTER SYSTEM RESET multimaster.max_retained_wal")?;
    }
    make_anew(a)?;
    all_are_online(a)?;
    a.expect("SELECT count(*) FROM x_cut", &(written + 1).to_string())
}

/// The steps of docs/retention.md, "The way back".
fn make_anew(a: &Arena) -> Result<()> {
    let one = a.cluster.node(1)?;
    let others = [a.cluster.node(2)?, a.cluster.node(3)?];
    others.iter().try_for_each(|node| node.stop())?;
    until("node 1 is taken out of its cluster", BACK_WITHIN, || {
        let session = admin(a, 1)?;
        ensure!(session.one("SELECT count(*) FROM pg_prepared_xacts")? == "0", "undecided");
        session.run("SELECT mtm.unconfigure_node()")?;
        Ok(Some(()))
    })?;
    admin(a, 1)?.run(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
          WHERE slot_name LIKE 'mtm\\_slot\\_%'",
    )?;
    for node in others {
        std::fs::remove_dir_all(&node.data)?;
        node.clone_from(one, "copy")?;
        std::fs::remove_file(node.data.join("standby.signal"))?;
        node.configure(&[("port".to_owned(), node.port.to_string())])?;
        node.start()?;
    }
    let peers: Vec<String> = others.iter().map(|node| format!("'{}'", node.conninfo())).collect();
    let call =
        format!("SELECT mtm.init_cluster('{}', ARRAY[{}])", one.conninfo(), peers.join(", "));
    one.connect()?.patience(BACK_WITHIN).run(&call)?;
    Ok(())
}
