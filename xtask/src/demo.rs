//! The demonstration: a story told by a real cluster, with every claim checked.
//!
//! Each section prints the SQL it runs and what came back. Whatever is not as told ends the
//! demonstration with an error.

use crate::artefacts::Profile;
use crate::baseline;
use crate::bench::load::Script;
use crate::bench::{Load, pgbench_init};
use crate::cluster::{Cluster, Kind, Order};
use crate::host::default_directory;
use crate::server::Life;
use crate::session::{Rows, Session, SqlError};
use crate::suite::arena::Arena;
use crate::suite::compare;
use crate::suite::load::{Plan, Running, under_load};
use crate::table::Table;
use crate::wait::{step, until};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Options of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Leave the cluster running, to play with.
    #[arg(long)]
    keep: bool,
    /// Where the cluster goes.
    #[arg(long, value_name = "D")]
    dir: Option<PathBuf>,
    /// How to compile the extension (default: `MTM_PROFILE`, else release).
    #[arg(long, value_enum)]
    profile: Option<Profile>,
}

/// Runs the demonstration.
///
/// # Errors
/// When anything is not as it should be.
pub fn run(options: &Options) -> Result<()> {
    let dir = match &options.dir {
        Some(dir) => std::path::absolute(dir)?,
        None => default_directory("demo")?,
    };
    let start = Instant::now();
    let home = dir.join("cluster");
    Cluster::clear(&home)?;
    title(1, "Three ordinary PostgreSQL servers become one cluster");
    let cluster = Cluster::create(&Order {
        kind: Kind::Multimaster,
        nodes: 3,
        dir: home,
        port: None,
        set: Vec::new(),
        profile: Profile::choose(options.profile)?,
    })?;
    let mut arena = Arena::new(cluster);
    let told = tell(&arena, &dir);
    if options.keep {
        arena.cluster.save()?;
        println!("\nThe cluster keeps running in {}:", arena.cluster.dir.display());
        println!("  cargo xtask cluster --dir {} psql 1", arena.cluster.dir.display());
        println!("  cargo xtask cluster --dir {} down --destroy", arena.cluster.dir.display());
    } else if told.is_ok() {
        arena.cluster.destroy()?;
    } else {
        for node in &arena.cluster.nodes {
            eprintln!("node {}, the end of {}:\n{}", node.id, node.log.display(), node.log_tail(8));
        }
        arena.cluster.stop_all()?;
    }
    told?;
    println!("\nAll of it held. ({:.0} s)", start.elapsed().as_secs_f64());
    Ok(())
}

fn tell(arena: &Arena, dir: &Path) -> Result<()> {
    stage_members(arena)?;
    stage_write_anywhere(arena)?;
    stage_one_transaction(arena)?;
    stage_conflict(arena)?;
    stage_deadlock(arena)?;
    stage_load(arena, dir)?;
    stage_killed(arena)?;
    stage_cost(arena, dir)
}

fn title(number: u32, text: &str) {
    println!("\n== {number}. {text}\n");
}

/// Shows a statement and its answer.
fn show(arena: &Arena, id: usize, sql: &str) -> Result<Rows> {
    println!("node {id}> {sql}");
    let (names, rows) = arena.on(id)?.query(sql).with_context(|| format!("on node {id}: {sql}"))?;
    if !names.is_empty() {
        let mut table = Table::new(names);
        for row in &rows {
            table.row(row.iter().map(|cell| cell.clone().unwrap_or_default()));
        }
        println!("{}", table.text("        "));
    }
    Ok(rows)
}

fn stage_members(arena: &Arena) -> Result<()> {
    for node in &arena.cluster.nodes {
        println!("{}", arena.cluster.line(node));
    }
    println!();
    show(arena, 1, "SELECT version()")?;
    show(
        arena,
        1,
        "SELECT id, is_self, enabled, connected, receiver_mode FROM mtm.nodes() ORDER BY id",
    )?;
    Ok(())
}

fn stage_write_anywhere(arena: &Arena) -> Result<()> {
    title(2, "Write on any node, read on every node");
    show(
        arena,
        1,
        "CREATE TABLE city(id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text, noted_on text)",
    )?;
    for (id, name) in [(1, "Basel"), (2, "Lyon"), (3, "Turin")] {
        show(
            arena,
            id,
            &format!("INSERT INTO city(name, noted_on) VALUES ('{name}', 'node {id}')"),
        )?;
    }
    println!(
        "\nEvery COMMIT returned after all nodes had it. Keys were drawn on three nodes and do not collide:\n"
    );
    for id in arena.ids() {
        show(arena, id, "SELECT * FROM city ORDER BY name")?;
    }
    let seen = arena.same("SELECT name, noted_on FROM city ORDER BY name")?;
    ensure!(seen == "Basel,node 1;Lyon,node 2;Turin,node 3", "unexpected rows: {seen}");
    ensure!(arena.same("SELECT count(DISTINCT id) FROM city")? == "3", "keys collide");
    Ok(())
}

fn stage_one_transaction(arena: &Arena) -> Result<()> {
    title(3, "Definitions and rows in one transaction, on a temporary table's advice");
    let session = arena.on(2)?;
    for sql in [
        "BEGIN",
        "CREATE TEMP TABLE visited AS SELECT id, 40 + id AS days FROM city",
        "ALTER TABLE city ADD COLUMN days int",
        "UPDATE city SET days = visited.days FROM visited WHERE city.id = visited.id",
        "CREATE INDEX ON city (days)",
        "COMMIT",
    ] {
        println!("node 2> {sql}");
        session.run(sql).context(sql)?;
    }
    println!(
        "\nThe other nodes have the column, the index and the rows; the temporary table stays here:\n"
    );
    show(
        arena,
        3,
        "SELECT name, days - id AS days_minus_id, to_regclass('visited') AS visited FROM city ORDER BY name",
    )?;
    arena.expect("SELECT count(*) FROM city WHERE days = 40 + id", "3")?;
    arena.expect("SELECT count(*) FROM pg_indexes WHERE tablename = 'city'", "2")
}

fn stage_conflict(arena: &Arena) -> Result<()> {
    title(4, "Two nodes change the same row: one wins, the other is told");
    let update = "UPDATE city SET days = days + 1 WHERE name = 'Lyon'";
    let before: i64 = arena.same("SELECT days FROM city WHERE name = 'Lyon'")?.parse()?;
    for _ in 0..20 {
        let (one, two) = (arena.on(1)?, arena.on(2)?);
        one.run(&format!("BEGIN; {update}"))?;
        two.run(&format!("BEGIN; {update}"))?;
        let (first, second) =
            Arena::both(|| one.run("COMMIT").map(drop), || two.run("COMMIT").map(drop));
        ensure!(first.is_err() || second.is_err(), "both had seen the same row and both committed");
        let now: i64 = arena.same("SELECT days FROM city WHERE name = 'Lyon'")?.parse()?;
        let won = i64::from(first.is_ok()) + i64::from(second.is_ok());
        let committed = arena.same("SELECT days FROM city WHERE name = 'Lyon'")?;
        if won == 0 {
            // Both were refused: allowed, but not the story. Try again.
            continue;
        }
        ensure!(now > before, "the winner's value is not there: {committed}");
        report_conflict(update, 1, &first);
        report_conflict(update, 2, &second);
        let loser = if first.is_err() { &one } else { &two };
        let error = first.err().or_else(|| second.err()).context("one of them lost")?;
        ensure!(error.state == "40001", "the loser got {error}");
        return retry(arena, loser, update, now);
    }
    bail!("twenty conflicts in a row without a winner")
}

fn report_conflict(update: &str, id: usize, outcome: &Result<(), SqlError>) {
    println!("node {id}> BEGIN; {update}; COMMIT");
    match outcome {
        Ok(()) => println!("        COMMIT"),
        Err(error) => {
            println!("        ERROR {}: {}", error.state, error.message);
            for (word, text) in [("DETAIL", &error.detail), ("HINT", &error.hint)] {
                if !text.is_empty() {
                    println!("        {word}: {text}");
                }
            }
        }
    }
}

fn retry(arena: &Arena, loser: &Session, update: &str, now: i64) -> Result<()> {
    println!("\nThe loser tries again, as with any 40001, and nothing is lost:\n");
    loser.run(&format!("BEGIN; {update}; COMMIT"))?;
    show(arena, 3, "SELECT name, days FROM city WHERE name = 'Lyon'")?;
    arena.expect("SELECT days FROM city WHERE name = 'Lyon'", &(now + 1).to_string())
}

fn stage_deadlock(arena: &Arena) -> Result<()> {
    title(5, "A deadlock across nodes is found at once, not by a timeout");
    let (one, two) = (arena.on(1)?, arena.on(2)?);
    let (first, second) = ("Basel", "Turin");
    let update = |name: &str| format!("UPDATE city SET days = days + 100 WHERE name = '{name}'");
    one.run(&format!("BEGIN; {}; {}", update(first), update(second)))?;
    two.run(&format!("BEGIN; {}; {}", update(second), update(first)))?;
    let start = Instant::now();
    let (x, y) = Arena::both(|| one.run("COMMIT").map(drop), || two.run("COMMIT").map(drop));
    let took = start.elapsed();
    println!("node 1> BEGIN; update Basel; update Turin; COMMIT   -- {}", word(&x));
    println!("node 2> BEGIN; update Turin; update Basel; COMMIT   -- {}", word(&y));
    println!(
        "        both were answered after {:.1} ms (deadlock_timeout is 1 s)",
        took.as_secs_f64() * 1000.0
    );
    ensure!(x.is_err() || y.is_err(), "both had the same rows and both committed");
    ensure!(took < Duration::from_secs(1), "it took {took:?}");
    for error in [x.err(), y.err()].into_iter().flatten() {
        ensure!(["40001", "40P01"].contains(&error.state.as_str()), "the loser got {error}");
    }
    Ok(())
}

fn word(outcome: &Result<(), SqlError>) -> String {
    outcome.as_ref().map_or_else(|error| format!("ERROR {}", error.state), |()| "COMMIT".into())
}

fn stage_load(arena: &Arena, dir: &Path) -> Result<()> {
    title(6, "pgbench on three nodes at once");
    pgbench_init(arena.cluster.node(2)?, 1, Duration::from_secs(120))
        .context("pgbench -i on node 2")?;
    println!("node 2> pgbench -i");
    let script = Script::three(100_000);
    let load = Load { script: &script, clients: &[4, 4, 4], seconds: 5 };
    let sample = load.run(&arena.cluster, &dir.join("load"))?;
    let commits = sample.latencies.len();
    println!("all>    pgbench -c 4 -T 5 -f tx3.sql   -- BEGIN, two updates, a select, COMMIT");
    println!(
        "        {commits} commits, {:.0} per second, {} tried again, {} failed\n",
        sample.tps, sample.retried, sample.failed
    );
    ensure!(sample.failed == 0 && commits > 0, "{} transactions failed for good", sample.failed);
    let mut table = Table::new(["node", "rows of pgbench_accounts"]);
    let mut sums = Vec::new();
    for node in &arena.cluster.nodes {
        let all = compare::checksums(node)?;
        let sum =
            all.get("public.pgbench_accounts").cloned().context("pgbench_accounts is gone")?;
        table.row([node.id.to_string(), sum]);
        sums.push(all);
    }
    println!("{}", table.text("        "));
    ensure!(sums.windows(2).all(|pair| pair[0] == pair[1]), "the nodes differ");
    arena.expect("SELECT sum(abalance) FROM pgbench_accounts", &(2 * commits).to_string())?;
    compare::everything(arena)?;
    println!("        Equal, each counts {} updates, and nothing is left prepared.", 2 * commits);
    Ok(())
}

/// How long the survivors may stand still, and how long the killed node may take to come back.
const STILL_AT_MOST: Duration = Duration::from_secs(5);
const BACK_WITHIN: Duration = Duration::from_secs(60);

/// Moves money, so that what is lost, doubled or half done shows in a sum.
const MOVE: &str = "UPDATE account SET balance = balance - 1 WHERE id = $ % 4; \
     UPDATE account SET balance = balance + 1 WHERE id = 4 + $ % 4";

fn stage_killed(arena: &Arena) -> Result<()> {
    title(7, "A server is killed with kill -9 in the middle of a load, and comes back under it");
    let accounts = "CREATE TABLE account(id int PRIMARY KEY, balance bigint)";
    let fill = "INSERT INTO account SELECT id, 0 FROM generate_series(0, 7) id";
    let journal = "CREATE TABLE journal(id int PRIMARY KEY)";
    for sql in [accounts, fill, journal] {
        show(arena, 1, sql)?;
    }
    println!(
        "\nall>    two clients on each node, again and again: take 1 from an account, give 1 to\n        another one, INSERT INTO journal, all in one transaction\n"
    );
    let plan = Plan { before: MOVE, ..Plan::new("journal", &[1, 2, 3]) };
    let (report, at) = under_load(arena, &plan, |load| kill_and_start(arena, load))?;
    let still = report.outage(&[1, 2], at.killed, at.went_on);
    println!(
        "\nNodes 1 and 2 stood still for {:.2} s, then they went on without node 3.\n\
         Node 3 missed {} transactions; {} more came in until it was a member again, {:.1} s after its\n\
         start and by itself. To take it in, nodes 1 and 2 stood still for {:.2} s. All write again.\n",
        still.as_secs_f64(),
        report.count(at.killed, at.started),
        report.count(at.started, at.online),
        (at.online - at.started).as_secs_f64(),
        report.outage(&[1, 2], at.started, at.all_write).as_secs_f64(),
    );
    ensure!(still < STILL_AT_MOST, "nodes 1 and 2 stood still for {still:?}");
    compare::everything(arena)?;
    report.witness.check(arena, "journal")?;
    let sums = "SELECT (SELECT count(*) FROM journal), (SELECT sum(balance) FROM account),
               (SELECT sum(balance) FROM account WHERE id > 3)";
    let mut table = Table::new(["node", "rows of journal", "sum of all balances", "moved"]);
    for id in arena.ids() {
        let answer = arena.ask(id, sums)?;
        table.row([id.to_string()].into_iter().chain(answer.split(',').map(str::to_owned)));
    }
    println!("{}", table.text("        "));
    let rows = arena.same("SELECT count(*) FROM journal")?;
    arena.expect(sums, &format!("{rows},0,{rows}"))?;
    println!(
        "Rows, checksums and definitions are equal everywhere. All {} transactions that were\n\
         acknowledged are there, and none of the {} that were refused.",
        report.witness.acknowledged(),
        report.witness.refused(),
    );
    Ok(())
}

/// When what happened.
struct Moments {
    killed: Instant,
    went_on: Instant,
    started: Instant,
    online: Instant,
    all_write: Instant,
}

fn kill_and_start(arena: &Arena, load: &Running) -> Result<Moments> {
    let node = arena.cluster.node(3)?;
    load.goes_on(&[1, 2, 3], 200, BACK_WITHIN)?;
    println!("$ cargo xtask cluster kill 3");
    let killed = Instant::now();
    node.kill()?;
    ensure!(node.life() == Life::Stopped, "node 3 is still alive");
    load.goes_on(&[1, 2], 500, BACK_WITHIN)?;
    let went_on = Instant::now();
    println!("$ cargo xtask cluster start 3");
    node.start()?;
    let started = Instant::now();
    until("node 3 is a member again", BACK_WITHIN, || {
        let status = arena.cluster.status(node);
        ensure!(status == "online", "node 3 is {status}");
        Ok(Some(()))
    })?;
    let online = Instant::now();
    load.goes_on(&[1, 2, 3], 100, BACK_WITHIN)?;
    Ok(Moments { killed, went_on, started, online, all_write: Instant::now() })
}

/// Short runs, taking turns.
fn stage_cost(arena: &Arena, dir: &Path) -> Result<()> {
    title(8, "What a commit costs beside one plain server on this machine");
    let plain = step("a plain server", || {
        let plain = baseline::plain(dir, &[])?;
        pgbench_init(plain.node(1)?, 1, Duration::from_secs(60))?;
        Ok(plain)
    })?;
    let mut table = Table::new([
        "one-row updates",
        "plain tps",
        "p50 ms",
        "cluster tps",
        "p50 ms",
        "cluster / plain",
    ]);
    let script = Script::update(100_000);
    for clients in [1, 8] {
        let (mut own, mut other) = (Vec::new(), Vec::new());
        for round in 0..3 {
            let clients = [clients];
            let load = Load { script: &script, clients: &clients, seconds: 2 };
            other.push(load.run(&plain, &dir.join(format!("cost-plain-{round}")))?);
            own.push(load.run(&arena.cluster, &dir.join(format!("cost-cluster-{round}")))?);
        }
        for samples in [&mut own, &mut other] {
            samples.sort_by(|a, b| a.tps.total_cmp(&b.tps));
        }
        let (own, other) = (&own[1], &other[1]);
        table.row([
            format!("{clients} client(s)"),
            format!("{:.0}", other.tps),
            format!("{:.2}", other.percentile(0.5)),
            format!("{:.0}", own.tps),
            format!("{:.2}", own.percentile(0.5)),
            format!("{:.2}", own.tps / other.tps),
        ]);
    }
    plain.destroy()?;
    println!("{}", table.text("        "));
    println!(
        "        Medians of three runs, taking turns. `cargo xtask bench` measures more, and beside\n        synchronous streaming replication, which also keeps three copies."
    );
    Ok(())
}
