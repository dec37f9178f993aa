//! Nodes stop, freeze, die and come back, in any order: a majority goes on, a minority says that
//! it does not, and all heal by themselves.

use super::arena::Arena;
use super::checks;
use super::load::{Plan, Witness, under_load};
use crate::server::DATABASE;
use crate::session::{Session, SqlError};
use crate::wait::until;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

checks!("peers":
    status_and_nodes,
    reads_go_on_while_a_peer_is_frozen,
    peer_stopped,
    peer_frozen,
    peer_killed,
    minority_refuses,
    killed_one_after_the_other,
    restarted_in_another_order,
    all_restarted,
    origin_killed_while_committing,
    backend_terminated_while_committing,
    one_takes_connections_and_does_not_answer,
    one_lets_in_and_does_not_answer,
    lines_are_only_a_short_cut,
);

/// Whoever can go on does so within this time on a busy machine, too.
const GO_ON_WITHIN: Duration = Duration::from_secs(30);
/// After a peer is back the cluster works again within this time.
const BACK_WITHIN: Duration = Duration::from_secs(60);
/// No statement is without any answer for so long.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// How long a peer that does not answer is given to keep the others waiting ...
const SILENCE: Duration = Duration::from_secs(8);
/// ... and how long they may be without a write, on a busy machine, too: less than the time after
/// which a peer counts as gone.
const HICCUP: Duration = Duration::from_millis(1500);

fn status_and_nodes(a: &Arena) -> Result<()> {
    let count = a.ids().len().to_string();
    for id in a.ids() {
        let status =
            a.ask(id, "SELECT my_node_id, status, cardinality(gen_configured) FROM mtm.status()")?;
        ensure!(status == format!("{id},online,{count}"), "node {id}: {status}");
        let nodes = a.ask(id, "SELECT count(*), count(*) FILTER (WHERE is_self), bool_and(enabled), bool_and(connected) FROM mtm.nodes()")?;
        ensure!(nodes == format!("{count},1,t,t"), "node {id}: {nodes}");
    }
    Ok(())
}

/// What a client may be told while nodes come and go.
fn is_clear(error: &SqlError) -> bool {
    let class = error.state.get(..2).unwrap_or_default();
    ["08", "40", "57", "53", "55"].contains(&class) && !error.message.is_empty()
}

/// Writes `row` on a node until that succeeds; every refusal on the way is an understandable one,
/// and nobody waits for ever.
fn writes(a: &Arena, id: usize, table: &str, row: usize) -> Result<()> {
    let mut unclear = None;
    let done = until(&format!("node {id} writes"), GO_ON_WITHIN, || {
        let outcome = a.cluster.node(id)?.connect().and_then(|session| {
            let session = session.patience(ANSWER_WITHIN);
            session.run(&format!("INSERT INTO {table} VALUES ({row}) ON CONFLICT DO NOTHING"))
        });
        match outcome {
            Ok(_) => Ok(Some(())),
            Err(error) if is_clear(&error) => Err(error.into()),
            Err(error) => {
                unclear = Some(error);
                Ok(Some(()))
            }
        }
    });
    match unclear {
        Some(error) => bail!("a user of node {id} cannot understand: {error}"),
        None => done,
    }
}

/// All of `nodes` write, and read what the others wrote.
fn go_on(a: &Arena, nodes: &[usize], table: &str, row: &mut usize) -> Result<()> {
    for &id in nodes {
        *row += 1;
        writes(a, id, table, *row)?;
        for &reader in nodes {
            // A node that was started a moment ago may still refuse to read.
            let query = format!("SELECT count(*) FROM {table} WHERE id = {}", *row);
            let found = until(&format!("node {reader} reads"), BACK_WITHIN, || {
                a.ask(reader, &query).map(Some)
            })?;
            ensure!(found == "1", "node {reader} does not have what node {id} wrote");
        }
    }
    Ok(())
}

/// Every node writes and all agree, within the limit, without anybody's help.
fn works_again(a: &Arena, table: &str) -> Result<()> {
    until("every node can write again", BACK_WITHIN, || a.can_write().map(Some)).map_err(
        |error| {
            let told = a.ids().into_iter().map(|id| {
                let ask = || -> Result<String> {
                    let session = a.cluster.node(id)?.connect_as(DATABASE, "mtm_admin")?;
                    Ok(super::arena::flat(&session.run("SELECT * FROM mtm.status()")?))
                };
                format!("\n  node {id}: {}", ask().unwrap_or_else(|error| format!("{error:#}")))
            });
            anyhow::anyhow!("{error:#}{}", told.collect::<String>())
        },
    )?;
    super::compare::nothing_prepared(a)?;
    a.same(&format!("SELECT count(*), sum(id) FROM {table}"))?;
    Ok(())
}

/// A transaction that only reads asks no peer.
fn reads_go_on_while_a_peer_is_frozen(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE n_read(id int PRIMARY KEY); INSERT INTO n_read VALUES (1)")?;
    let session = a.on(1)?.patience(ANSWER_WITHIN);
    a.cluster.node(3)?.freeze();
    let read = until("node 3 is left out, and all the time node 1 reads", GO_ON_WITHIN, || {
        let read = session.one("SELECT count(*) FROM n_read");
        let left_out = "SELECT NOT 3 = ANY (gen_members) FROM mtm.status()";
        match read {
            Ok(count) => Ok((count != "1" || session.one(left_out)? == "t").then_some(Ok(count))),
            Err(error) => Ok(Some(Err(error))),
        }
    });
    a.cluster.node(3)?.thaw();
    ensure!(read?? == "1", "a read failed");
    works_again(a, "n_read")
}

/// The others go on while node 3 is away, and it comes back.
fn one_away(
    a: &Arena,
    table: &str,
    leave: impl FnOnce() -> Result<()>,
    come_back: impl FnOnce() -> Result<()>,
) -> Result<()> {
    a.run(1, &format!("CREATE TABLE {table}(id int PRIMARY KEY)"))?;
    leave()?;
    let went_on = go_on(a, &[1, 2], table, &mut 0);
    come_back()?;
    went_on?;
    works_again(a, table)
}

fn peer_stopped(a: &Arena) -> Result<()> {
    let node = a.cluster.node(3)?;
    one_away(a, "n_stop", || node.stop(), || node.start())
}

fn peer_frozen(a: &Arena) -> Result<()> {
    let node = a.cluster.node(3)?;
    let freeze = || {
        node.freeze();
        Ok(())
    };
    let thaw = || {
        node.thaw();
        Ok(())
    };
    one_away(a, "n_freeze", freeze, thaw)
}

fn peer_killed(a: &Arena) -> Result<()> {
    let node = a.cluster.node(3)?;
    one_away(a, "n_kill", || node.kill(), || node.start())
}

/// A node that is left alone turns clients away, shows its state, and goes on with the first other
/// node that comes back.
fn minority_refuses(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE n_minority(id int PRIMARY KEY)")?;
    let session = a.on(3)?.patience(ANSWER_WITHIN);
    for id in [1, 2] {
        a.cluster.node(id)?.kill()?;
    }
    let refused = (|| {
        for sql in ["SELECT count(*) FROM n_minority", "INSERT INTO n_minority VALUES (1)"] {
            let error = until(&format!("refused: {sql}"), GO_ON_WITHIN, || {
                Ok(session.run(sql).err().filter(|error| error.state != "40001"))
            })?;
            ensure!(error.state == "57P03", "{sql}: {error}");
        }
        let login = a.cluster.node(3)?.connect().err().context("a client was let in")?;
        ensure!(login.state == "57P03", "at login: {login}");
        let status = session.one("SELECT status FROM mtm.status()")?;
        ensure!(status == "isolated", "node 3 says it is {status}");
        let admin = a.cluster.node(3)?.connect_as(DATABASE, "mtm_admin")?;
        ensure!(admin.one("SELECT count(*) FROM n_minority")? == "0", "not even mtm_admin reads");
        Ok(())
    })();
    a.cluster.node(2)?.start()?;
    let went_on = go_on(a, &[2, 3], "n_minority", &mut 1);
    a.cluster.node(1)?.start()?;
    refused?;
    went_on?;
    works_again(a, "n_minority")
}

/// Two nodes die, one after the other; each of them makes a majority with the third.
fn killed_one_after_the_other(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE n_order(id int PRIMARY KEY)")?;
    let mut row = 0;
    for (first, second, other) in [(1, 2, 3), (2, 1, 3), (1, 3, 2), (3, 1, 2), (2, 3, 1), (3, 2, 1)]
    {
        let step = || format!("killed {first}, killed {second}, started {first}");
        a.cluster.node(first)?.kill()?;
        a.cluster.node(second)?.kill()?;
        a.cluster.node(first)?.start()?;
        go_on(a, &[other, first], "n_order", &mut row).with_context(step)?;
        a.cluster.node(second)?.start()?;
        works_again(a, "n_order").with_context(|| format!("{}, started {second}", step()))?;
    }
    Ok(())
}

/// All stop, one after the other; any two of them go on with what they have.
fn restarted_in_another_order(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE n_restart(id int PRIMARY KEY)")?;
    let mut row = 0;
    for (stopped, started) in
        [([1, 2, 3], [1, 2, 3]), ([2, 3, 1], [1, 3, 2]), ([3, 1, 2], [3, 2, 1])]
    {
        for id in stopped {
            a.cluster.node(id)?.stop()?;
        }
        let step = || format!("stopped {stopped:?}, started {started:?}");
        let [first, second, third] = started;
        a.cluster.node(first)?.start()?;
        a.cluster.node(second)?.start()?;
        go_on(a, &[first, second], "n_restart", &mut row).with_context(step)?;
        a.cluster.node(third)?.start()?;
        works_again(a, "n_restart").with_context(step)?;
    }
    Ok(())
}

fn all_restarted(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE n_all(id int PRIMARY KEY); INSERT INTO n_all VALUES (1)")?;
    a.cluster.each(|node| {
        node.stop()?;
        node.start()
    })?;
    works_again(a, "n_all")?;
    a.expect("SELECT count(*) FROM n_all", "1")
}

/// The node on which all clients commit dies: what it had acknowledged is there, what it had
/// refused is not, and the others do not wait for it.
fn origin_killed_while_committing(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE n_origin(id int PRIMARY KEY)")?;
    let plan = Plan { clients: 4, ..Plan::new("n_origin", &[1]) };
    let (report, ()) = under_load(a, &plan, |load| {
        load.goes_on(&[1], 50, GO_ON_WITHIN)?;
        a.cluster.node(1)?.kill()?;
        go_on(a, &[2, 3], "n_origin", &mut 900_000_000)?;
        a.cluster.node(1)?.start()?;
        load.goes_on(&[1], 50, BACK_WITHIN)
    })?;
    works_again(a, "n_origin")?;
    report.witness.check(a, "n_origin")
}

fn backend_terminated_while_committing(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE n_term(id int PRIMARY KEY)")?;
    let mut witness = Witness::default();
    for row in 0..30 {
        let session = a.on(1)?;
        let pid = session.backend()?;
        session.run(&format!("BEGIN; INSERT INTO n_term VALUES ({row})"))?;
        let killer = a.on(1)?;
        let commit = || session.run("COMMIT").map(drop);
        let kill = || killer.run(&format!("SELECT pg_terminate_backend({pid})"));
        let outcome = match u64::try_from(row % 10)? {
            // Who is answered before that was told the truth, too.
            9 => {
                let outcome = commit();
                kill()?;
                outcome
            }
            // Each round hits the commit at another place.
            n => {
                let late = Duration::from_micros(200 * n);
                let kill_late = || {
                    std::thread::sleep(late);
                    kill()
                };
                Arena::both(commit, kill_late).0
            }
        };
        witness.note(row, &outcome);
    }
    works_again(a, "n_term")?;
    witness.check(a, "n_term")
}

/// A network that swallows everything looks like this: the kernel takes connections to node 3, and
/// nobody answers on them.
fn one_takes_connections_and_does_not_answer(a: &Arena) -> Result<()> {
    let node = a.cluster.node(3)?;
    two_go_on(a, "n_deaf", |admin| {
        let postmaster = node.postmaster().context("node 3 has no postmaster")?;
        send(postmaster, Signal::SIGSTOP)?;
        hang_up(admin, &["mtm_dmq", "mtm_receiver"])
    })
}

/// Connections to node 3 are made, and no statement on them is answered.
fn one_lets_in_and_does_not_answer(a: &Arena) -> Result<()> {
    two_go_on(a, "n_dumb", |admin| {
        // A new backend knows no function yet and looks for it here.
        admin.run("BEGIN; LOCK TABLE pg_catalog.pg_proc IN ACCESS EXCLUSIVE MODE")?;
        hang_up(admin, &["mtm_dmq"])
    })
}

/// The lines of receivers are ended again and again under load: nothing is lost, no node leaves,
/// and there are new ones.
fn lines_are_only_a_short_cut(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE n_lines(id int PRIMARY KEY)")?;
    let line = "FROM pg_stat_activity WHERE query LIKE 'CALL mtm.line\\_serve(%'";
    let lines = format!("SELECT count(*) {line}");
    let all_there = || {
        until("each node serves two lines", BACK_WITHIN, || {
            for id in a.ids() {
                let n = a.ask(id, &lines)?;
                ensure!(n == "2", "node {id} serves {n}");
            }
            Ok(Some(()))
        })
    };
    all_there()?;
    let number = a.same("SELECT gen_num FROM mtm.status()")?;
    let end = format!("SELECT count(pg_terminate_backend(pid)) {line}");
    let plan = Plan { clients: 6, ..Plan::new("n_lines", &[1, 2, 3]) };
    let (report, ended) = under_load(a, &plan, |load| {
        let mut ended = 0;
        for _ in 0..10 {
            for id in a.ids() {
                ended += a.ask(id, &end)?.parse::<usize>()?;
                load.goes_on(&[1, 2, 3], 5, GO_ON_WITHIN)?;
            }
            all_there()?;
        }
        Ok(ended)
    })?;
    println!("    {ended} lines were ended");
    ensure!(ended >= 20, "only {ended} lines were ended");
    ensure!(a.same("SELECT gen_num FROM mtm.status()")? == number, "a node has left");
    report.witness.check(a, "n_lines")
}

/// Node 3 is silent, and new connections to it get nowhere: the others leave it out and go on, and
/// their attempts to reach it do not keep them from hearing each other.
fn two_go_on(a: &Arena, table: &str, silence: impl FnOnce(&Session) -> Result<()>) -> Result<()> {
    a.run(1, &format!("CREATE TABLE {table}(id int PRIMARY KEY)"))?;
    let newest = a.ask(1, "SELECT gen_num FROM mtm.status()")?;
    let node = a.cluster.node(3)?;
    let admin = node.connect_as(DATABASE, "mtm_admin")?;
    let sender =
        admin.one("SELECT pid FROM pg_stat_activity WHERE backend_type = 'mtm-dmq-sender'")?;
    let sender = sender.parse().context("node 3 has no sender")?;
    let plan = Plan { clients: 1, pause: Duration::from_millis(5), ..Plan::new(table, &[1, 2]) };
    let gone_on = under_load(a, &plan, |load| {
        load.goes_on(&[1, 2], 50, GO_ON_WITHIN)?;
        send(sender, Signal::SIGSTOP)?;
        silence(&admin)?;
        until("node 3 is left out", GO_ON_WITHIN, || {
            let two = "SELECT NOT 3 = ANY (gen_members) FROM mtm.status()";
            Ok((a.ask(1, two)? == "t" && a.ask(2, two)? == "t").then_some(()))
        })?;
        load.goes_on(&[1, 2], 1, GO_ON_WITHIN)?;
        let from = Instant::now();
        std::thread::sleep(SILENCE);
        Ok((from, Instant::now()))
    });
    let since =
        format!("SELECT members, why FROM mtm.generations WHERE num > {newest} ORDER BY num");
    let generations = [a.ask(1, &since), a.ask(2, &since)];
    drop(admin);
    node.thaw();
    let (report, (from, to)) = gone_on?;
    let outage = report.outage(&[1, 2], from, to);
    println!(
        "    while node 3 did not answer: {} writes in {} s, none for {} ms at most",
        report.count(from, to),
        SILENCE.as_secs(),
        outage.as_millis()
    );
    for generations in generations {
        let generations = generations?;
        let once = generations.starts_with("{1,2},") && !generations.contains(';');
        ensure!(once, "not node 3 alone was left out, and once: {generations}");
    }
    ensure!(outage < HICCUP, "nothing was written for {} ms", outage.as_millis());
    works_again(a, table)?;
    report.witness.check(a, table)
}

fn send(pid: i32, signal: Signal) -> Result<()> {
    Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal)?)
}

/// Ends what serves peers' connections of these names.
fn hang_up(admin: &Session, names: &[&str]) -> Result<()> {
    for name in names {
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity";
        let ended = admin.one(&format!("{end} WHERE application_name = '{name}'"))?;
        ensure!(ended.parse().is_ok_and(|n: u32| n >= 2), "node 3 had {ended} peers as {name}");
    }
    Ok(())
}
