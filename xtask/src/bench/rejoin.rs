//! How fast a node that was away takes over what it missed, and when it is online again.
//!
//! Node 3 is killed, the others commit without it, it is started again. The same is done with one
//! process that replays and with several, on the same servers, in turns.

use super::{Options, pgbench_init};
use crate::artefacts::Profile;
use crate::cluster::{Cluster, Kind, Order};
use crate::host::client;
use crate::server::{DATABASE, Server};
use crate::session::Session;
use crate::table::Table;
use crate::wait::{step, until};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Clients on each of the two nodes that go on.
const CLIENTS: u32 = 8;
/// Long enough for anything that is waited for here.
const LIMIT: Duration = Duration::from_secs(600);

/// What is missed.
struct Workload {
    name: &'static str,
    /// For pgbench; `:client_id`, `:n` and `:node` make keys.
    script: &'static str,
    /// Transactions of each client.
    each: u32,
}

const ONE_ROW: Workload = Workload {
    name: "one row updated",
    script: "\\set aid random(1, 100000)\n\
             UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :aid;\n",
    each: 1_500,
};

const HUNDRED_ROWS: Workload = Workload {
    name: "100 rows inserted, index, foreign key",
    script: "\\set n :n + 1\n\
             \\set first ((:node * 100 + :client_id) * 100000 + :n) * 100\n\
             INSERT INTO rejoin_child SELECT :first + g, 1 + (:first + g * 7919) % 1000, md5(g::text) \
             FROM generate_series(0, 99) g;\n",
    each: 120,
};

/// What was seen.
struct Seen {
    missed: u64,
    replay: Duration,
    online: Duration,
}

/// Whether the options ask for this.
pub(super) fn is_wanted(options: &Options) -> bool {
    options.only.as_deref() == Some("rejoin")
}

/// Runs it and prints a table.
///
/// # Errors
/// When a server does not start, or the node does not come back.
pub(super) fn run(options: &Options, dir: &Path) -> Result<()> {
    let home = dir.join("rejoin");
    Cluster::clear(&home)?;
    let cluster = Cluster::create(&Order {
        kind: Kind::Multimaster,
        nodes: 3,
        dir: home,
        port: None,
        set: options.set.clone(),
        profile: Profile::choose(options.profile)?,
    })?;
    let scratch = dir.join("pgbench");
    std::fs::create_dir_all(&scratch)?;
    pgbench_init(cluster.node(1)?, 1, LIMIT)?;
    cluster.session(1)?.run(
        "CREATE TABLE rejoin_parent(id int PRIMARY KEY);
         INSERT INTO rejoin_parent SELECT generate_series(1, 1000);
         CREATE TABLE rejoin_child(id bigint PRIMARY KEY,
                                   parent int NOT NULL REFERENCES rejoin_parent, note text);
         CREATE INDEX ON rejoin_child(parent);
         CREATE TABLE rejoin_mark(n serial PRIMARY KEY)",
    )?;
    let heading = ["missed", "replayed by", "transactions", "s", "per s", "start to online, s"];
    let mut table = Table::new(heading);
    for workload in [&ONE_ROW, &HUNDRED_ROWS] {
        for workers in [0, 4] {
            let mut rates = Vec::new();
            for round in 0..options.rounds {
                let what = format!("{}, {workers} workers, round {}", workload.name, round + 1);
                rates.push(step(&what, || missed(&cluster, workload, workers, &scratch))?);
            }
            rates.sort_by_key(|rate| rate.replay);
            let seen = &rates[rates.len() / 2];
            let seconds = seen.replay.as_secs_f64();
            table.row([
                workload.name.to_owned(),
                by(workers),
                seen.missed.to_string(),
                format!("{seconds:.2}"),
                format!("{:.0}", f64::from(u32::try_from(seen.missed)?) / seconds),
                format!("{:.2}", seen.online.as_secs_f64()),
            ]);
        }
    }
    println!("{}", table.text(""));
    let online = step(&format!("a load of {} tps while it comes back", options.rate), || {
        under_load(&cluster, options, &scratch)
    })?;
    println!(
        "away for {} s under {} tps, which go on: online {:.2} s after its start",
        options.seconds,
        options.rate,
        online.as_secs_f64()
    );
    if !options.keep {
        cluster.destroy()?;
    }
    Ok(())
}

fn by(workers: u32) -> String {
    if workers == 0 { "one process".to_owned() } else { format!("up to {workers} workers") }
}

fn admin(server: &Server) -> Result<Session> {
    Ok(server.connect_as(DATABASE, "mtm_admin")?)
}

/// One absence of node 3.
fn missed(cluster: &Cluster, workload: &Workload, workers: u32, scratch: &Path) -> Result<Seen> {
    let away = cluster.node(3)?;
    cluster.session(1)?.run("TRUNCATE rejoin_child")?;
    let session = admin(away)?;
    session.run(&format!("ALTER SYSTEM SET multimaster.recovery_workers = {workers}"))?;
    // The server's own recovery from the crash is not what is measured.
    session.run("CHECKPOINT")?;
    drop(session);
    away.kill()?;
    writes_go_on(cluster)?;
    let count = ["-t".to_owned(), workload.each.to_string()];
    let running = [1, 2].map(|id| pgbench(cluster.node(id)?, workload.script, &count, scratch));
    let mut transactions = 0;
    for child in running {
        transactions += finish(child?)?;
    }
    let mark = cluster.session(1)?.one("INSERT INTO rejoin_mark DEFAULT VALUES RETURNING n")?;
    let started = Instant::now();
    away.start()?;
    let session = admin(away)?;
    until("recovery begins", LIMIT, || {
        let bytes = "SELECT count(*) FROM mtm.recovery_progress() WHERE bytes_replayed > 0";
        Ok((session.one(bytes)? == "1").then_some(()))
    })?;
    let begun = Instant::now();
    until("everything missed is there", LIMIT, || {
        let there = format!("SELECT count(*) FROM rejoin_mark WHERE n = {mark}");
        Ok((session.one(&there)? == "1").then_some(()))
    })?;
    let replay = begun.elapsed();
    is_online(cluster)?;
    Ok(Seen { missed: transactions, replay, online: started.elapsed() })
}

/// Node 3 is away and comes back while the same load goes on.
fn under_load(cluster: &Cluster, options: &Options, scratch: &Path) -> Result<Duration> {
    let away = cluster.node(3)?;
    away.kill()?;
    writes_go_on(cluster)?;
    let rate = f64::from(options.rate) / 2.0;
    let endless = ["-T".into(), "100000".into(), "-R".into(), format!("{rate:.0}")];
    let mut running = Vec::new();
    for id in [1, 2] {
        running.push(pgbench(cluster.node(id)?, ONE_ROW.script, &endless, scratch)?);
    }
    let result = (|| {
        std::thread::sleep(Duration::from_secs(u64::from(options.seconds)));
        let started = Instant::now();
        away.start()?;
        is_online(cluster)?;
        Ok(started.elapsed())
    })();
    for child in &mut running {
        ensure!(child.try_wait()?.is_none(), "a load ended by itself");
        child.kill()?;
        child.wait()?;
    }
    result
}

fn writes_go_on(cluster: &Cluster) -> Result<()> {
    until("the others go on", LIMIT, || {
        cluster.session(1)?.run("INSERT INTO rejoin_mark DEFAULT VALUES")?;
        Ok(Some(()))
    })
}

fn is_online(cluster: &Cluster) -> Result<()> {
    until("node 3 is online", LIMIT, || {
        Ok((cluster.status(cluster.node(3)?) == "online").then_some(()))
    })
}

fn pgbench(server: &Server, script: &str, how: &[String], scratch: &Path) -> Result<Child> {
    let file = scratch.join(format!("rejoin-{}.sql", server.id));
    std::fs::write(&file, script)?;
    let mut command = client("pgbench");
    command.args(["-h", "127.0.0.1", "-p", &server.port.to_string(), "-U", DATABASE, "-n"]);
    command.args(["-c", &CLIENTS.to_string(), "-j", "1", "--max-tries=1000"]).args(how);
    command.args(["-D", &format!("node={}", server.id), "-D", "n=0"]);
    command.arg("-f").arg(&file);
    command.env("PGDATABASE", DATABASE).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().context("cannot run pgbench")
}

/// Waits for pgbench; how many transactions it has committed.
fn finish(child: Child) -> Result<u64> {
    let out = child.wait_with_output().context("waiting for pgbench")?;
    let said = String::from_utf8_lossy(&out.stdout);
    ensure!(out.status.success(), "pgbench: {}", String::from_utf8_lossy(&out.stderr));
    let line = said.lines().find(|line| line.starts_with("number of transactions actually"));
    let number = line.and_then(|line| line.split(": ").nth(1)?.split('/').next()?.parse().ok());
    number.with_context(|| format!("no number in pgbench's output:\n{said}"))
}
