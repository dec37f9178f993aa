//! The network between nodes breaks: whoever is cut off from the majority neither writes nor reads
//! what may be old, the others go on, and all heal by themselves.
//!
//! These checks have a cluster of their own, whose nodes reach each other through proxies.

use super::arena::Arena;
use super::checks;
use crate::artefacts::Profile;
use crate::cluster::Kind;
use crate::host::{MAJOR, client};
use crate::server::{DATABASE, Life, Server};
use crate::session::{Session, SqlError};
use crate::torture::net::Way;
use crate::torture::servers::{Servers, Wanted};
use crate::wait::until;
use anyhow::{Context, Result, bail, ensure};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

checks!("partition":
    minority_refuses_clients,
    no_old_reads_when_one_is_cut_off,
    no_old_reads_of_what_one_has_acknowledged_that_is_cut_off,
    no_old_reads_when_one_is_not_heard,
    no_old_reads_after_a_freeze,
    one_pair_cut,
);

/// What has to happen does so within this time, on a busy machine, too.
const WITHIN: Duration = Duration::from_secs(60);
const STALLED: Way = Way { stalled: true, delay_ms: 0, jitter_ms: 0, loss_permille: 0 };

/// The cluster of one check; its servers end with it.
struct Net(Servers);

impl Net {
    fn start(a: &Arena) -> Result<Self> {
        ensure!(a.cluster.kind == Kind::Multimaster, "plain servers have no network");
        let dir = a.cluster.dir.with_extension("partition");
        crate::cluster::Cluster::clear(&dir)?;
        let wanted = Wanted {
            dir: &dir,
            nodes: 3,
            port: None,
            set: &a.cluster.settings,
            profile: Profile::Dev,
            seed: 1,
        };
        let library =
            a.cluster.dir.join(format!("tree/usr/lib/postgresql/{MAJOR}/lib/multimaster.so"));
        let net = Self(Servers::create_with(&wanted, &library)?);
        net.on(1)?.run("CREATE TABLE seen(id int PRIMARY KEY)")?;
        Ok(net)
    }

    fn node(&self, id: usize) -> Result<&Server> {
        self.0.cluster.node(id)
    }

    fn on(&self, id: usize) -> Result<Session, SqlError> {
        let node = &self.0.cluster.nodes[id - 1];
        node.connect().map(|session| session.patience(Duration::from_secs(20)))
    }

    /// Nothing arrives on these ways.
    fn cut(&self, ways: &[(usize, usize)]) {
        for &(from, to) in ways {
            self.0.net.set(from, to, STALLED);
        }
    }

    fn status(&self, id: usize) -> Result<String> {
        Ok(self.0.cluster.status(self.node(id)?))
    }

    /// Waits until a node says what it is.
    fn becomes(&self, id: usize, wanted: &[&str]) -> Result<()> {
        until(&format!("node {id} is {}", wanted.join(" or ")), WITHIN, || {
            let status = self.status(id)?;
            ensure!(wanted.contains(&status.as_str()), "node {id} is {status}");
            Ok(Some(()))
        })
    }

    /// Waits until all nodes are online, in one generation.
    fn all_online(&self) -> Result<()> {
        until("all nodes are online", WITHIN, || self.0.cluster.all_online().map(Some))
    }

    /// Waits until a node goes on with one other and without the third.
    fn one_is_left_out(&self, by: usize) -> Result<()> {
        until("somebody is left out", WITHIN, || {
            let members = "SELECT cardinality(gen_members) FROM mtm.status()";
            Ok((self.on(by)?.one(members)? == "2").then_some(()))
        })
    }

    /// Writes a row of this number on a node, until that succeeds.
    fn writes(&self, id: usize, row: i32) -> Result<()> {
        until(&format!("node {id} writes"), WITHIN, || {
            let sql = format!("INSERT INTO seen VALUES ({row}) ON CONFLICT DO NOTHING");
            self.on(id)?.run(&sql)?;
            Ok(Some(()))
        })
    }

    /// All are online, write and have the same rows, by themselves.
    fn heals(&self) -> Result<()> {
        self.0.net.heal();
        self.all_online()?;
        for id in 1..=3 {
            self.writes(id, -i32::try_from(id)?)?;
        }
        let rows = |id| -> Result<String> {
            Ok(self.on(id)?.one("SELECT format('%s %s', count(*), sum(id::bigint)) FROM seen")?)
        };
        let (one, two, three) = (rows(1)?, rows(2)?, rows(3)?);
        ensure!(one == two && two == three, "the nodes differ: {one}, {two}, {three}");
        Ok(())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for node in &self.0.cluster.nodes {
            let _ = node.kill();
        }
    }
}

/// Runs `body` with a cluster of its own, which is kept when something is wrong.
fn with_net(a: &Arena, body: impl FnOnce(&Net) -> Result<()>) -> Result<()> {
    let net = Net::start(a)?;
    let dir = net.0.cluster.dir.clone();
    body(&net).and_then(|()| net.heals()).with_context(|| {
        let told = (1..=3).map(|id| {
            let node = &net.0.cluster.nodes[id - 1];
            let ask = || node.connect_as(DATABASE, "mtm_admin")?.run("SELECT * FROM mtm.status()");
            let status = ask().map_or_else(|e| e.to_string(), |rows| super::arena::flat(&rows));
            format!("\n  node {id}: {status}\n{}", node.log_tail(6))
        });
        format!("kept in {}{}", dir.display(), told.collect::<String>())
    })?;
    drop(net);
    crate::cluster::Cluster::clear(&dir)
}

/// How a client of a node that was cut off is turned away.
fn is_turned_away(what: &str, error: &SqlError) -> Result<()> {
    ensure!(error.state == "57P03", "{what}: {error}");
    ensure!(error.message.contains("node is not online"), "{what}: {error}");
    Ok(())
}

fn minority_refuses_clients(a: &Arena) -> Result<()> {
    with_net(a, |net| {
        let (session, in_transaction, broken) = (net.on(3)?, net.on(3)?, net.on(3)?);
        in_transaction.run("BEGIN; SELECT count(*) FROM seen")?;
        net.cut(&[(1, 3), (3, 1), (2, 3), (3, 2)]);
        net.writes(1, 1)?;
        net.writes(2, 2)?;
        // The majority has gone on: from here on no answer of node 3 may be an old one.
        for sql in ["SELECT count(*) FROM seen", "INSERT INTO seen VALUES (3)", "TABLE seen"] {
            is_turned_away(sql, &session.refused(sql)?)?;
        }
        is_turned_away("in a transaction", &in_transaction.refused("SELECT count(*) FROM seen")?)?;
        is_turned_away("at login", &net.on(3).err().context("a client was let in")?)?;
        net.becomes(3, &["isolated"])?;
        may_look(net, &session)?;
        moves_on(net)?;
        breaks_connections(net, &broken)?;
        net.heals()?;
        let rows = session.one("SELECT count(*) FROM seen WHERE id > 0")?;
        ensure!(rows == "2", "after the partition a session on node 3 sees {rows} rows");
        let end = in_transaction.run("ROLLBACK").map(drop);
        ensure!(end.is_ok(), "the transaction cannot be rolled back: {end:?}");
        Ok(())
    })
}

/// What can be had from a node that is cut off.
fn may_look(net: &Net, session: &Session) -> Result<()> {
    for sql in ["SELECT status FROM mtm.status()", "SELECT count(*) FROM mtm.nodes()"] {
        session.one(sql).with_context(|| format!("any session may ask: {sql}"))?;
    }
    let admin = net.node(3)?.connect_as(DATABASE, "mtm_admin")?;
    let rows = admin.one("SELECT count(*) FROM seen")?;
    ensure!(rows == "0", "mtm_admin sees {rows} rows on node 3, which has none");
    let reason = admin.one("SELECT reason FROM mtm.status()")?;
    ensure!(reason.contains("node 1") && reason.contains("node 2"), "reason: {reason}");
    let other = net.node(3)?.connect_as("postgres", "client")?;
    ensure!(other.one("SELECT 1")? == "1", "other databases are none of our business");
    Ok(())
}

/// With the setting of that name, whoever asks something is disconnected.
fn breaks_connections(net: &Net, session: &Session) -> Result<()> {
    net.node(3)?.configure(&[("multimaster.break_connection".to_owned(), "on".to_owned())])?;
    let admin = net.node(3)?.connect_as(DATABASE, "mtm_admin")?;
    admin.run("SELECT pg_reload_conf()")?;
    until("a session that asks something ends", WITHIN, || {
        let error = session.refused("SELECT count(*) FROM seen")?;
        if error.state.is_empty() {
            return Ok(Some(()));
        }
        is_turned_away("break_connection", &error).map(|()| None)
    })?;
    ensure!(admin.one("SELECT 1")? == "1", "mtm_admin was disconnected, too");
    Ok(())
}

/// A client with several hosts finds one that serves it.
fn moves_on(net: &Net) -> Result<()> {
    let ports: Vec<String> =
        [3, 3, 1].iter().map(|&id: &usize| net.0.cluster.nodes[id - 1].port.to_string()).collect();
    let hosts = format!(
        "host=127.0.0.1,127.0.0.1,127.0.0.1 port={} dbname={DATABASE} user={DATABASE}",
        ports.join(",")
    );
    let output =
        client("psql").args(["-XAtc", "SHOW port", &hosts]).output().context("cannot run psql")?;
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(out.trim() == ports[2], "psql with a list of hosts got to {out:?}: {err}");
    Ok(())
}

/// What clients were told, and when.
#[derive(Default)]
struct Told {
    /// When which row was acknowledged; the numbers grow.
    acknowledged: Vec<(Instant, i32)>,
    /// When a read began, on which node, and the greatest number it found.
    read: Vec<(Instant, usize, i32)>,
    /// What no client should be told.
    strange: Vec<String>,
}

impl Told {
    /// Every read finds what was acknowledged before it began.
    fn no_old_reads(&self) -> Result<()> {
        for &(began, node, found) in &self.read {
            let before = self.acknowledged.partition_point(|(at, _)| *at < began);
            let newest = before.checked_sub(1).map(|last| self.acknowledged[last]);
            if let Some((at, row)) = newest.filter(|(_, row)| *row > found) {
                bail!(
                    "an old read: node {node} found {found}, though {row} had been acknowledged \
                     {} us before the read began",
                    began.duration_since(at).as_micros()
                );
            }
        }
        Ok(())
    }

    /// There was enough to look at, and nobody was told anything strange.
    fn is_plausible(&self, readers: &[usize]) -> Result<()> {
        ensure!(self.strange.is_empty(), "{}", self.strange.join("\n"));
        ensure!(self.acknowledged.len() > 10, "hardly anything was written");
        for node in readers {
            let reads = self.read.iter().filter(|(_, n, _)| n == node).count();
            ensure!(reads > 10, "only {reads} reads on node {node}");
        }
        Ok(())
    }

    /// Notes an answer that was none; whether the session is of use no more.
    fn failed(&mut self, node: usize, error: &SqlError) -> bool {
        let is_usual =
            error.state.is_empty() || ["57", "08", "40"].iter().any(|c| error.state.starts_with(c));
        if !is_usual {
            self.strange.push(format!("on node {node}: {error}"));
        }
        error.state.is_empty() || error.state.starts_with("57P")
    }
}

/// A client: asks `ask` of a session on a node again and again.
fn client_of(
    net: &Net,
    node: usize,
    stop: &AtomicBool,
    told: &Mutex<Told>,
    mut ask: impl FnMut(&Session) -> Result<(), SqlError>,
) {
    let mut session = None;
    while !stop.load(Ordering::Relaxed) {
        if session.is_none() {
            session = net.on(node).ok();
        }
        let Some(open) = &session else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        if let Err(error) = ask(open) {
            let mut told = told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if told.failed(node, &error) && error.state != "57P03" {
                session = None;
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Does `body` while one client writes on `writer` and others read on `readers`.
fn watched(
    net: &Net,
    writer: usize,
    readers: &[usize],
    body: impl FnOnce(&Mutex<Told>) -> Result<()>,
) -> Result<Told> {
    let (stop, told) = (AtomicBool::new(false), Mutex::new(Told::default()));
    let lock = || told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut row = 0;
            client_of(net, writer, &stop, &told, |session| {
                row += 1;
                session.run(&format!("INSERT INTO seen VALUES ({row})"))?;
                lock().acknowledged.push((Instant::now(), row));
                Ok(())
            });
        });
        for &node in readers {
            scope.spawn({
                let (stop, told) = (&stop, &told);
                move || {
                    client_of(net, node, stop, told, |session| {
                        let began = Instant::now();
                        let found = session.one("SELECT coalesce(max(id), 0) FROM seen")?;
                        let found = found.parse().unwrap_or(i32::MIN);
                        let mut told =
                            told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        told.read.push((began, node, found));
                        Ok(())
                    });
                }
            });
        }
        let result = more_writes(&told, 20).and_then(|()| body(&told));
        stop.store(true, Ordering::Relaxed);
        result
    })?;
    Ok(told.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// Waits until so many more rows were acknowledged.
fn more_writes(told: &Mutex<Told>, more: usize) -> Result<()> {
    let count =
        || told.lock().unwrap_or_else(std::sync::PoisonError::into_inner).acknowledged.len();
    let goal = count() + more;
    until(&format!("{more} more rows"), WITHIN, || Ok((count() >= goal).then_some(())))
}

/// Cuts some ways three times under watch; `left_out` is refused meanwhile.
fn cut_under_watch(
    net: &Net,
    ways: &[(usize, usize)],
    writer: usize,
    readers: &[usize],
) -> Result<Told> {
    let told = watched(net, writer, readers, |told| {
        for _ in 0..3 {
            net.cut(ways);
            more_writes(told, 1)?;
            net.one_is_left_out(writer)?;
            more_writes(told, 50)?;
            net.0.net.heal();
            net.all_online()?;
            more_writes(told, 20)?;
        }
        Ok(())
    })?;
    told.is_plausible(readers)?;
    Ok(told)
}

fn no_old_reads_when_one_is_cut_off(a: &Arena) -> Result<()> {
    with_net(a, |net| {
        cut_under_watch(net, &[(1, 3), (3, 1), (2, 3), (3, 2)], 1, &[3, 3])?.no_old_reads()
    })
}

/// What the others have not confirmed to node 3 before it was cut off, it does not acknowledge.
fn no_old_reads_of_what_one_has_acknowledged_that_is_cut_off(a: &Arena) -> Result<()> {
    with_net(a, |net| {
        let told = watched(net, 3, &[1, 1, 2, 2], |told| {
            for _ in 0..3 {
                net.cut(&[(1, 3), (3, 1), (2, 3), (3, 2)]);
                net.one_is_left_out(1)?;
                net.becomes(3, &["isolated"])?;
                net.0.net.heal();
                net.all_online()?;
                more_writes(told, 50)?;
            }
            Ok(())
        })?;
        told.is_plausible(&[1, 2])?;
        told.no_old_reads()
    })
}

/// Node 3 hears the others, who do not hear it.
fn no_old_reads_when_one_is_not_heard(a: &Arena) -> Result<()> {
    with_net(a, |net| cut_under_watch(net, &[(3, 1), (3, 2)], 1, &[3, 3])?.no_old_reads())
}

/// Whoever goes on after standing still finds signs of life in its sockets that are old.
fn no_old_reads_after_a_freeze(a: &Arena) -> Result<()> {
    with_net(a, |net| {
        let told = watched(net, 1, &[3, 3, 3, 3], |told| {
            for _ in 0..3 {
                net.node(3)?.freeze();
                let went_on = net.one_is_left_out(1).and_then(|()| more_writes(told, 50));
                net.node(3)?.thaw();
                went_on?;
                ensure!(net.node(3)?.life() == Life::Running, "node 3 does not go on");
                net.all_online()?;
                more_writes(told, 20)?;
            }
            Ok(())
        })?;
        told.is_plausible(&[3])?;
        told.no_old_reads()
    })
}

/// Nodes 1 and 2 cannot reach each other, node 3 reaches both: two that reach each other go on,
/// the third is left out, and all agree on which one that is. Node 3 has lent to both: it goes on
/// with one of them when the other one has given that back (specs/adr/0118).
fn one_pair_cut(a: &Arena) -> Result<()> {
    with_net(a, |net| cut_under_watch(net, &[(1, 2), (2, 1)], 3, &[1, 1, 2, 2])?.no_old_reads())
}
