//! Nodes die, freeze and come back while clients write: the others go on, nothing that was
//! acknowledged is lost, and whoever was away heals by itself.

use super::arena::Arena;
use super::checks;
use super::load::{Plan, under_load};
use crate::server::DATABASE;
use crate::wait::until;
use anyhow::{Context, Result, ensure};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

checks!("failover":
    one_killed_under_load,
    one_frozen_under_load,
    all_killed_under_load,
    acknowledged_is_seen_after_all_were_killed,
    away_for_long,
    killed_while_it_recovers,
    origin_killed_in_commit,
    workers_terminated,
    nobody_is_left_out_of_a_busy_machine,
);

/// The survivors go on within this time, on a busy machine, too; how long it really took is
/// printed. The default heartbeat timeout is 2 s.
pub(super) const GO_ON_WITHIN: Duration = Duration::from_secs(15);
/// Who comes back is online by itself within this time.
const BACK_WITHIN: Duration = Duration::from_secs(60);

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// Waits until all nodes are online by themselves, in one generation.
pub(super) fn all_online(a: &Arena) -> Result<()> {
    until("all nodes are online by themselves", BACK_WITHIN, || a.cluster.all_online().map(Some))
}

/// Every node is online, agrees with the others and has nothing left to decide.
pub(super) fn all_is_well(a: &Arena, table: &str) -> Result<()> {
    all_online(a)?;
    super::compare::nothing_prepared(a)?;
    for id in a.ids() {
        until(&format!("nothing is undecided on node {id}"), BACK_WITHIN, || {
            let left = a.ask(id, "SELECT gid, waits_for, waits_for_nodes FROM mtm.undecided")?;
            ensure!(left.is_empty(), "undecided: {left}");
            Ok(Some(()))
        })?;
    }
    a.same(&format!("SELECT count(*), sum(id::bigint) FROM {table}"))?;
    a.can_write()
}

fn one_killed_under_load(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE f_kill(id int PRIMARY KEY)")?;
    let (report, (killed, went_on, started, online)) =
        under_load(a, &Plan::new("f_kill", &[1, 2, 3]), |load| {
            load.goes_on(&[1, 2, 3], 50, GO_ON_WITHIN)?;
            let killed = Instant::now();
            a.cluster.node(3)?.kill()?;
            load.goes_on(&[1, 2], 200, GO_ON_WITHIN)?;
            let went_on = Instant::now();
            a.cluster.node(3)?.start()?;
            let started = Instant::now();
            all_online(a)?;
            let online = Instant::now();
            load.goes_on(&[1, 2, 3], 50, GO_ON_WITHIN)?;
            Ok((killed, went_on, started, online))
        })?;
    println!(
        "    survivors without an acknowledged write: {}; started to online: {}, meanwhile {}",
        seconds(report.outage(&[1, 2], killed, went_on)),
        seconds(online - started),
        seconds(report.outage(&[1, 2], went_on, online)),
    );
    all_is_well(a, "f_kill")?;
    report.witness.check(a, "f_kill")
}

fn one_frozen_under_load(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE f_freeze(id int PRIMARY KEY)")?;
    let (report, (frozen, went_on, thawed, online)) =
        under_load(a, &Plan::new("f_freeze", &[1, 2, 3]), |load| {
            load.goes_on(&[1, 2, 3], 50, GO_ON_WITHIN)?;
            let frozen = Instant::now();
            a.cluster.node(3)?.freeze();
            let waited = load.goes_on(&[1, 2], 200, GO_ON_WITHIN);
            let went_on = Instant::now();
            a.cluster.node(3)?.thaw();
            waited?;
            all_online(a)?;
            let online = Instant::now();
            load.goes_on(&[1, 2, 3], 50, GO_ON_WITHIN)?;
            Ok((frozen, went_on, went_on, online))
        })?;
    println!(
        "    survivors without an acknowledged write: {}; thawed to online: {}",
        seconds(report.outage(&[1, 2], frozen, went_on)),
        seconds(online - thawed),
    );
    let without =
        a.ask(1, "SELECT count(*) > 0 FROM mtm.generations WHERE NOT 3 = ANY (members)")?;
    ensure!(without == "t", "node 3 was never left out");
    all_is_well(a, "f_freeze")?;
    report.witness.check(a, "f_freeze")
}

fn all_killed_under_load(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE f_all(id int PRIMARY KEY)")?;
    let (report, back) = under_load(a, &Plan::new("f_all", &[1, 2, 3]), |load| {
        load.goes_on(&[1, 2, 3], 50, GO_ON_WITHIN)?;
        a.cluster.each(crate::server::Server::kill)?;
        a.cluster.each(crate::server::Server::start)?;
        let started = Instant::now();
        all_online(a)?;
        let back = started.elapsed();
        load.goes_on(&[1, 2, 3], 50, GO_ON_WITHIN)?;
        Ok(back)
    })?;
    println!("    all online {} after their start", seconds(back));
    all_is_well(a, "f_all")?;
    report.witness.check(a, "f_all")
}

/// What was acknowledged just before all servers were killed, nobody misses who is answered after
/// their start.
fn acknowledged_is_seen_after_all_were_killed(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE f_seen(id int PRIMARY KEY)")?;
    let mut acknowledged: Vec<String> = Vec::new();
    for round in 0..6 {
        all_online(a)?;
        let sessions = a.ids().into_iter().map(|id| Ok((id, a.on(id)?)));
        let sessions = sessions.collect::<Result<Vec<_>>>()?;
        acknowledged.extend(std::thread::scope(|scope| {
            let writers: Vec<_> = sessions
                .iter()
                .map(|(id, session)| {
                    let row = (round * 10 + id).to_string();
                    let sql = format!("INSERT INTO f_seen VALUES ({row})");
                    scope.spawn(move || session.run(&sql).is_ok().then_some(row))
                })
                .collect();
            let rows = writers.into_iter().map(|w| w.join().expect("no panic in a writer"));
            rows.flatten().collect::<Vec<_>>()
        }));
        let (n, rows) = (acknowledged.len(), acknowledged.join(", "));
        let seen = format!("SELECT count(*) FROM f_seen WHERE id IN ({rows})");
        a.cluster.each(crate::server::Server::kill)?;
        a.cluster.each(crate::server::Server::start)?;
        a.cluster.each(|server| {
            until("it answers", GO_ON_WITHIN, || {
                let session = server.connect()?;
                Ok(Some(session.one(&seen)?.parse::<usize>()?))
            })
            .and_then(|seen| {
                ensure!(seen == n, "node {} shows {seen} rows of {n}", server.id);
                Ok(())
            })
        })?;
    }
    ensure!(acknowledged.len() >= 6, "only {} were acknowledged", acknowledged.len());
    // The members of the last start may still be changing.
    until("all is well", BACK_WITHIN, || all_is_well(a, "f_seen").map(Some))
}

/// A node misses thousands of transactions and takes them over while more come in.
fn away_for_long(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE f_long(id int PRIMARY KEY)")?;
    let plan =
        Plan { clients: 8, pause: Duration::from_millis(10), ..Plan::new("f_long", &[1, 2]) };
    let (report, (killed, started, online)) = under_load(a, &plan, |load| {
        load.goes_on(&[1, 2], 50, GO_ON_WITHIN)?;
        let killed = Instant::now();
        a.cluster.node(3)?.kill()?;
        load.goes_on(&[1, 2], 1_200, Duration::from_secs(120))?;
        let started = Instant::now();
        a.cluster.node(3)?.start()?;
        all_online(a)?;
        let online = Instant::now();
        load.goes_on(&[1, 2], 100, GO_ON_WITHIN)?;
        Ok((killed, started, online))
    })?;
    let (missed, during) = (report.count(killed, started), report.count(started, online));
    ensure!(missed >= 2_000, "only {missed} transactions were missed");
    println!(
        "    {missed} transactions missed, {during} more while it came back; start to online: {}",
        seconds(online - started),
    );
    all_is_well(a, "f_long")?;
    report.witness.check(a, "f_long")
}

/// What a node has taken over before it dies again is neither lost nor taken over twice.
fn killed_while_it_recovers(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE f_again(id int PRIMARY KEY)")?;
    a.run(1, "CREATE TABLE f_sum(id int PRIMARY KEY, n int)")?;
    a.run(1, "INSERT INTO f_sum SELECT g, 0 FROM generate_series(0, 15) g")?;
    let plan = Plan {
        before: "UPDATE f_sum SET n = n + 1 WHERE id = $",
        clients: 4,
        ..Plan::new("f_again", &[1, 2])
    };
    let (report, ()) = under_load(a, &plan, |load| {
        a.cluster.node(3)?.kill()?;
        load.goes_on(&[1, 2], 500, Duration::from_secs(60))?;
        for _ in 0..3 {
            a.cluster.node(3)?.start()?;
            until("recovery has begun, or is over", BACK_WITHIN, || {
                let session = a.cluster.node(3)?.connect_as(DATABASE, "mtm_admin")?;
                let row = session.one("SELECT count(*) FROM mtm.recovery")?;
                let status = session.one("SELECT status FROM mtm.status()")?;
                Ok((row == "1" || status == "online").then_some(()))
            })?;
            a.cluster.node(3)?.kill()?;
            load.goes_on(&[1, 2], 50, GO_ON_WITHIN)?;
        }
        a.cluster.node(3)?.start()?;
        all_online(a)
    })?;
    all_is_well(a, "f_again")?;
    report.witness.check(a, "f_again")?;
    // A counter tells a transaction that was replayed twice from one that was replayed once.
    let rows = a.same("SELECT count(*) FROM f_again")?;
    a.expect("SELECT sum(n) FROM f_sum", &rows)
}

/// What a dead origin left undecided is settled by the others: no lock stays.
fn origin_killed_in_commit(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE f_origin(id int PRIMARY KEY)")?;
    a.run(1, "CREATE TABLE f_hot(id int PRIMARY KEY, n int)")?;
    a.run(1, "INSERT INTO f_hot SELECT g, 0 FROM generate_series(0, 15) g")?;
    let plan = Plan {
        before: "UPDATE f_hot SET n = n + 1 WHERE id = $",
        clients: 16,
        ..Plan::new("f_origin", &[1])
    };
    let (report, settled) = under_load(a, &plan, |load| {
        load.goes_on(&[1], 200, GO_ON_WITHIN)?;
        let before = a.ask(2, "SELECT max(num) FROM mtm.generations")?;
        a.cluster.node(1)?.kill()?;
        let mut settled = 0.0_f64;
        for id in [2, 3] {
            settled = settled.max(settled_after(a, id, &before)?);
            let session = a.cluster.node(id)?.connect().context("after the origin's death")?;
            session.run("SET lock_timeout = '5s'; UPDATE f_hot SET n = n WHERE true")?;
        }
        a.cluster.node(1)?.start()?;
        all_online(a)?;
        Ok(settled)
    })?;
    println!("    settled {settled:.2} s after the new generation began");
    ensure!(settled < 3.0, "locks of a dead origin stayed for {settled:.2} s");
    all_is_well(a, "f_origin")?;
    report.witness.check(a, "f_origin")?;
    let rows = a.same("SELECT count(*) FROM f_origin")?;
    a.expect("SELECT sum(n) FROM f_hot", &rows)
}

/// How long after the beginning of a generation later than `before` nothing of node 1 is prepared
/// on node `id` any more, in seconds.
fn settled_after(a: &Arena, id: usize, before: &str) -> Result<f64> {
    let session = a.cluster.node(id)?.connect_as(DATABASE, "mtm_admin")?;
    let after = until("a new generation and nothing left of node 1", GO_ON_WITHIN, || {
        let left =
            session.one("SELECT count(*) FROM pg_prepared_xacts WHERE gid LIKE 'MTM-1-%'")?;
        let after = session.one(&format!(
            "SELECT extract(epoch FROM clock_timestamp() - min(since)) FROM mtm.generations
              WHERE num > {before}"
        ))?;
        ensure!(left == "0", "{left} transactions of node 1 are prepared on node {id}");
        Ok((!after.is_empty()).then_some(after))
    })?;
    Ok(after.parse()?)
}

/// Each of our background processes is started again when it is told to end, and the node stays a
/// member while that happens.
fn workers_terminated(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE f_worker(id int PRIMARY KEY)")?;
    let admin = a.cluster.node(2)?.connect_as(DATABASE, "mtm_admin")?;
    let kinds = admin.run(
        "SELECT DISTINCT backend_type FROM pg_stat_activity WHERE backend_type LIKE 'mtm-%'
         UNION SELECT 'walsender' UNION SELECT 'mtm_dmq' ORDER BY 1",
    )?;
    let kinds: Vec<String> = kinds.into_iter().flatten().flatten().collect();
    for kind in ["mtm-monitor", "mtm-campaigner", "mtm-resolver", "mtm-dmq-sender"] {
        ensure!(kinds.iter().any(|k| k == kind), "no {kind} among {kinds:?}");
    }
    let (report, ()) = under_load(a, &Plan::new("f_worker", &[1, 2, 3]), |load| {
        for kind in &kinds {
            let ended = admin.one(&format!(
                "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
                  WHERE '{kind}' IN (backend_type, application_name)"
            ))?;
            ensure!(ended != "0", "no {kind} to be ended");
            load.goes_on(&[1, 2, 3], 30, BACK_WITHIN)
                .with_context(|| format!("{kind} was terminated"))?;
        }
        Ok(())
    })?;
    all_is_well(a, "f_worker")?;
    report.witness.check(a, "f_worker")
}

/// How long the machine is kept busy.
const BUSY_FOR: Duration = Duration::from_secs(20);
/// Of these for every processor, beside the clients.
const BUSY_PROCESSES: usize = 6;

/// A process that never rests, in a session of its own so that it gets a share of its own.
struct Busy(Child);

impl Busy {
    fn start() -> Result<Self> {
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", "while :; do :; done"]).stdin(Stdio::null());
        Ok(Self(command.spawn().context("cannot run setsid")?))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// With the timeouts that the server comes with, a node that works, however slowly, is left out
/// by nobody: signs of life come from processes that wait for no disk, no lock and no other work.
fn nobody_is_left_out_of_a_busy_machine(a: &Arena) -> Result<()> {
    a.run(1, "CREATE TABLE f_busy(id int PRIMARY KEY)")?;
    a.run(1, "CREATE TABLE f_work(id int PRIMARY KEY, n int)")?;
    a.run(1, "INSERT INTO f_work SELECT g, 0 FROM generate_series(0, 63) g")?;
    all_is_well(a, "f_busy")?;
    a.expect("SHOW multimaster.heartbeat_recv_timeout", "2s")?;
    a.expect("SHOW multimaster.heartbeat_send_timeout", "200ms")?;
    let admins = a
        .ids()
        .into_iter()
        .map(|id| {
            let session = a.cluster.node(id)?.connect_as(DATABASE, "mtm_admin")?;
            Ok(session.patience(Duration::from_secs(60)))
        })
        .collect::<Result<Vec<_>>>()?;
    let look = |what: &str| -> Result<Vec<String>> {
        admins.iter().map(|admin| Ok(admin.one(what)?)).collect()
    };
    let generations = "SELECT format('%s, the last one %s', count(*), max(num))
                         FROM mtm.generations";
    let before = look(generations)?;
    // Each is online and hears the two others.
    let states = "SELECT format('%s, hears %s nodes', status, cardinality(connected))
                    FROM mtm.status()";
    let processors = std::thread::available_parallelism()?.get();
    let plan = Plan {
        before: "UPDATE f_work SET n = n + 1 WHERE id = $",
        clients: 8,
        ..Plan::new("f_busy", &[1, 2, 3])
    };
    let start = Instant::now();
    let (report, (looks, longest)) = under_load(a, &plan, |load| {
        let _busy =
            (0..BUSY_PROCESSES * processors).map(|_| Busy::start()).collect::<Result<Vec<_>>>()?;
        let (mut looks, mut longest) = (0, Duration::ZERO);
        while start.elapsed() < BUSY_FOR {
            let asked = Instant::now();
            let states = look(states)?;
            longest = longest.max(asked.elapsed());
            ensure!(states.iter().all(|state| state == "online, hears 2 nodes"), "{states:?}");
            looks += 1;
        }
        load.goes_on(&[1, 2, 3], 1, GO_ON_WITHIN)?;
        Ok((looks, longest))
    })?;
    let after = look(generations)?;
    println!(
        "    {} commits; all nodes asked {looks} times, which took {} at most",
        report.count(start, Instant::now()),
        seconds(longest),
    );
    ensure!(before == after, "generations: {before:?} before, {after:?} after");
    all_is_well(a, "f_busy")?;
    report.witness.check(a, "f_busy")
}
