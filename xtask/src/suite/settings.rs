//! `mtm.init_cluster()` says everything that is wrong at once, leaves nothing behind, and works
//! when it is mended. On servers of its own, beside the cluster.

use super::arena::Arena;
use super::checks;
use crate::cluster::{Kind, create_database};
use crate::host::give_to_server;
use crate::server::{DATABASE, Server, free_ports, succeed};
use crate::session::{Session, SqlError};
use crate::wait::until;
use anyhow::{Context, Result, ensure};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

checks!("settings":
    extension_wants_to_be_preloaded,
    every_wrong_setting_at_once,
    peers_that_cannot_be_nodes,
    undone_when_it_fails_late,
    shortfalls_at_start_are_logged,
);

type Settings<'a> = &'a [(&'a str, &'a str)];

/// Three servers that are no cluster yet; gone when dropped.
struct Trio {
    servers: Vec<Server>,
    dir: PathBuf,
}

impl Drop for Trio {
    fn drop(&mut self) {
        for server in &self.servers {
            let _ = server.kill();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Trio {
    /// Starts them with these settings on top of the right ones.
    fn start(a: &Arena, extra: [Settings<'_>; 3]) -> Result<Self> {
        let dir = a.cluster.dir.join("others");
        std::fs::create_dir_all(&dir)?;
        give_to_server(&dir)?;
        let port = free_ports(a.cluster.node(1)?.port + 5, 3, false)?;
        let place = |(id, port): (usize, u16)| Server::new(id, &dir.join(id.to_string()), port);
        let servers = (1..=3).zip(port..).map(place).collect();
        let trio = Self { servers, dir };
        let first = &trio.servers[0];
        first.initdb()?;
        for server in &trio.servers[1..] {
            server.make_home()?;
            let mut copy = Command::new("cp");
            copy.arg("-a").arg(&first.data).arg(&server.data);
            succeed(copy, "cp")?;
        }
        for (server, extra) in trio.servers.iter().zip(extra) {
            server.configure(&a.cluster.node_settings(server)?)?;
            server.configure(&owned(extra))?;
            server.start()?;
            create_database(server)?;
        }
        Ok(trio)
    }

    fn on(&self, id: usize) -> Result<Session> {
        Ok(self.servers[id - 1].connect()?.patience(Duration::from_secs(60)))
    }

    fn mend(&self, id: usize, settings: Settings<'_>) -> Result<()> {
        let server = &self.servers[id - 1];
        server.configure(&owned(settings))?;
        server.stop()?;
        server.start()
    }

    fn peers(&self) -> Vec<String> {
        self.servers[1..].iter().map(Server::conninfo).collect()
    }

    fn init(&self, peers: &[String]) -> Result<(), SqlError> {
        let session = self.servers[0].connect()?.patience(Duration::from_secs(60));
        session
            .run("SET client_min_messages = warning; CREATE EXTENSION IF NOT EXISTS multimaster")?;
        session.run(&call(&self.servers[0].conninfo(), peers)).map(drop)
    }

    fn refused(&self, peers: &[String]) -> Result<SqlError> {
        match self.init(peers) {
            Ok(()) => anyhow::bail!("a cluster was made of servers that cannot be one"),
            Err(error) => Ok(error),
        }
    }

    /// There is no trace of the attempt on any server that runs.
    fn nothing_left(&self) -> Result<()> {
        for server in &self.servers {
            let session = server.connect_as(DATABASE, "mtm_admin")?;
            let left = session.one(
                "SELECT (SELECT count(*) FROM pg_replication_slots) || ' slots, ' ||
                        (SELECT count(*) FROM pg_ls_dir('.') f WHERE f LIKE 'multimaster%') || ' files, ' ||
                        (SELECT count(*) FROM pg_prepared_xacts) || ' prepared'",
            )?;
            ensure!(left == "0 slots, 0 files, 0 prepared", "server {}: {left}", server.id);
            let extension =
                session.one("SELECT count(*) FROM pg_extension WHERE extname = 'multimaster'")?;
            ensure!(server.id == 1 || extension == "0", "server {} kept the extension", server.id);
        }
        Ok(())
    }

    /// A cluster is made, and writes travel.
    fn works(&self) -> Result<()> {
        self.init(&self.peers()).context("a second init")?;
        for server in &self.servers {
            until("the node is online", Duration::from_secs(60), || {
                let status = server.connect()?.one("SELECT status FROM mtm.status()")?;
                Ok((status == "online").then_some(()))
            })?;
        }
        self.on(2)?.run("CREATE TABLE proof(id serial PRIMARY KEY, v int)")?;
        for server in &self.servers {
            server.connect()?.run("INSERT INTO proof(v) VALUES (1)")?;
        }
        let count = self.on(3)?.one("SELECT count(*) FROM proof")?;
        ensure!(count == "3", "{count} of 3 rows arrived");
        Ok(())
    }
}

fn owned(settings: Settings<'_>) -> Vec<(String, String)> {
    settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn call(own: &str, peers: &[String]) -> String {
    let peers: Vec<_> = peers.iter().map(|peer| format!("'{peer}'")).collect();
    format!("SELECT mtm.init_cluster('{own}', ARRAY[{}]::text[])", peers.join(", "))
}

/// All of these are in the error's detail.
fn says(error: &SqlError, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(error.detail.contains(part), "no word of {part:?} in {error}\n{}", error.detail);
    }
    Ok(())
}

fn skip(a: &Arena) -> bool {
    a.cluster.kind != Kind::Multimaster
}

fn extension_wants_to_be_preloaded(a: &Arena) -> Result<()> {
    if skip(a) {
        return Ok(());
    }
    let trio = Trio::start(a, [&[("shared_preload_libraries", "")], &[], &[]])?;
    let error = trio.on(1)?.refused("CREATE EXTENSION multimaster")?;
    ensure!(
        error.message.contains("shared_preload_libraries") && error.hint.contains("restart"),
        "{error}"
    );
    trio.mend(1, &[("shared_preload_libraries", "multimaster")])?;
    trio.on(1)?.run("CREATE EXTENSION multimaster")?;
    // The library is gone again, the extension is not: no crash, the same hint.
    trio.mend(1, &[("shared_preload_libraries", "")])?;
    for query in
        ["SELECT * FROM mtm.status()", "SELECT * FROM mtm.nodes()", "SELECT mtm.alter_sequences()"]
    {
        let error = trio.on(1)?.refused(query)?;
        ensure!(error.hint.contains("shared_preload_libraries"), "{query}: {error}");
    }
    trio.on(1)?.run("DROP EXTENSION multimaster")?;
    Ok(())
}

fn every_wrong_setting_at_once(a: &Arena) -> Result<()> {
    if skip(a) {
        return Ok(());
    }
    let wrong: Settings<'_> = &[
        ("wal_level", "replica"),
        ("max_prepared_transactions", "7"),
        ("max_worker_processes", "8"),
        ("max_wal_senders", "2"),
        ("max_replication_slots", "1"),
        ("output_plugin_libraries", "pgoutput"),
    ];
    let unloaded: Settings<'_> = &[
        ("shared_preload_libraries", "auto_explain"),
        ("wal_level", "minimal"),
        ("max_wal_senders", "0"),
    ];
    let trio = Trio::start(a, [&[("max_worker_processes", "207")], wrong, unloaded])?;
    let error = trio.refused(&trio.peers())?;
    ensure!(error.state == "55000" && error.message.contains("nothing was changed"), "{error}");
    says(
        &error,
        &[
            "node 1: max_worker_processes is 207, must be at least 208",
            "node 2: wal_level is \"replica\", must be \"logical\"",
            "node 2: max_prepared_transactions is 7, must be at least 200",
            "node 2: max_worker_processes is 8, must be at least 208",
            "node 2: max_wal_senders is 2, must be at least 3",
            "node 2: max_replication_slots is 1, must be at least 3",
            "node 2: output_plugin_libraries is \"pgoutput\", must list multimaster: \"pgoutput, multimaster\"",
            "node 3: shared_preload_libraries is \"auto_explain\", must list multimaster first: \"multimaster, auto_explain\"",
            "node 3: wal_level is \"minimal\"",
            "node 3: max_wal_senders is 0",
        ],
    )?;
    ensure!(error.hint.contains("restart") && error.hint.contains("again"), "{}", error.hint);
    trio.nothing_left()?;
    trio.mend(1, &[("max_worker_processes", "208")])?;
    let right: Settings<'_> = &[
        ("wal_level", "logical"),
        ("max_prepared_transactions", "200"),
        ("max_worker_processes", "208"),
        ("max_wal_senders", "3"),
        ("max_replication_slots", "3"),
        ("output_plugin_libraries", "pgoutput, multimaster"),
    ];
    trio.mend(2, right)?;
    trio.mend(
        3,
        &[
            ("shared_preload_libraries", "multimaster, auto_explain"),
            ("wal_level", "logical"),
            ("max_wal_senders", "3"),
        ],
    )?;
    trio.works()
}

fn replace_hba(server: &Server, text: &str) -> Result<()> {
    std::fs::write(server.data.join("pg_hba.conf"), text)?;
    server.connect_as(DATABASE, "mtm_admin")?.run("SELECT pg_reload_conf()")?;
    Ok(())
}

fn peers_that_cannot_be_nodes(a: &Arena) -> Result<()> {
    if skip(a) {
        return Ok(());
    }
    let trio = Trio::start(a, [&[], &[], &[]])?;
    let [two, three] = [1, 2].map(|i| trio.servers[i].conninfo());
    let own = trio.servers[0].conninfo();
    // One of a kind each, all in one message.
    let nobody = "host=127.0.0.1 port=1 dbname=mtm user=mtm".to_owned();
    let member = a.cluster.node(1)?.conninfo();
    trio.on(2)?.run("CREATE ROLE plain LOGIN")?;
    let plain = two.replace("user=mtm", "user=plain");
    let nowhere = two.replace("dbname=mtm", "dbname=nowhere");
    let twice = three.replace("dbname=mtm", "dbname=postgres");
    let all = [nobody, member, plain, nowhere, three.clone(), twice, own.clone()];
    let error = trio.refused(&all)?;
    says(
        &error,
        &[
            "node 2: connection to server at \"127.0.0.1\", port 1 failed",
            "node 3: it belongs to a cluster already",
            "node 4: user \"plain\" must be a superuser",
            "database \"nowhere\" does not exist",
            "node 6 and node 7 are the same server",
            "node 1 and node 8 are the same server",
        ],
    )?;
    ensure!(error.hint.contains("mtm.drop_node()"), "{}", error.hint);
    trio.nothing_left()?;
    // How many.
    let session = trio.on(1)?;
    let error = session.refused(&call(&own, &[]))?;
    ensure!(error.message.contains("2 to 16 nodes, not 1") && error.state == "22023", "{error}");
    let many: Vec<_> = (0..16).map(|_| two.clone()).collect();
    let error = session.refused(&call(&own, &many))?;
    ensure!(error.message.contains("2 to 16 nodes, not 17"), "{error}");
    for id in [-1, 0, 3, 17, 300] {
        let sql = format!("SELECT mtm.prepare_node('1', {id}, ARRAY['a', 'b'])");
        let error = session.refused(&sql)?;
        ensure!(error.message.contains("out of range"), "node {id}: {error}");
    }
    // The first argument must be this node.
    let error = session.refused(&call(&two, core::slice::from_ref(&three)))?;
    says(&error, &["my_conninfo does not lead to this server"])?;
    wrong_password(&trio)?;
    no_way_between_peers(&trio)?;
    trio.works()
}

fn wrong_password(trio: &Trio) -> Result<()> {
    let server = &trio.servers[1];
    trio.on(2)?.run("CREATE ROLE secret SUPERUSER LOGIN PASSWORD 'right'")?;
    replace_hba(
        server,
        "host all secret 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n",
    )?;
    let with = |password: &str| {
        let conninfo = server.conninfo().replace("user=mtm", "user=secret") + password;
        [conninfo, trio.servers[2].conninfo()]
    };
    let error = trio.refused(&with(" password=wrong"))?;
    says(&error, &["node 2:", "password authentication failed for user \"secret\""])?;
    ensure!(
        error.hint.contains("pg_hba.conf") && error.hint.contains("password"),
        "{}",
        error.hint
    );
    let error = trio.refused(&with(""))?;
    says(&error, &["node 2:", "no password supplied"])?;
    trio.nothing_left()
}

/// A node cannot reach another one, which node 1 can.
fn no_way_between_peers(trio: &Trio) -> Result<()> {
    let server = &trio.servers[2];
    // Only node 1 has the password for node 3: a relative name is one in the data directory.
    trio.on(3)?.run("CREATE ROLE secret SUPERUSER LOGIN PASSWORD 'right'")?;
    replace_hba(
        server,
        "host all secret 127.0.0.1/32 scram-sha-256\nhost replication secret 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n",
    )?;
    let passwords = trio.servers[0].data.join("passwords");
    std::fs::write(&passwords, "*:*:*:secret:right\n")?;
    std::fs::set_permissions(&passwords, std::fs::Permissions::from_mode(0o600))?;
    give_to_server(&passwords)?;
    let third = server.conninfo().replace("user=mtm", "user=secret passfile=passwords");
    let error = trio.refused(&[trio.servers[1].conninfo(), third])?;
    says(&error, &["from node 2 to node 3:", "no password supplied"])?;
    trio.nothing_left()
}

/// One node fails in the middle of the last preparations: nothing remains, a second attempt works.
fn undone_when_it_fails_late(a: &Arena) -> Result<()> {
    if skip(a) {
        return Ok(());
    }
    let trio = Trio::start(a, [&[], &[], &[]])?;
    for id in [1, 2, 3] {
        trio.on(id)?.run("CREATE TABLE old(id serial, v int); INSERT INTO old(v) VALUES (1), (2); CREATE SEQUENCE fine START 7")?;
    }
    // No step of three nodes fits into this one.
    trio.on(3)?.run("CREATE SEQUENCE wide INCREMENT 6000000000000000000")?;
    let sequences = "SELECT string_agg(format('%s %s %s %s', sequencename, start_value, increment_by, last_value), ',' ORDER BY 1) FROM pg_sequences";
    let before = trio.on(2)?.one(sequences)?;
    let error = trio.refused(&trio.peers())?;
    says(&error, &["node 3: sequence \"wide\" cannot be shared"])?;
    trio.nothing_left()?;
    ensure!(trio.on(2)?.one(sequences)? == before, "sequences of server 2 were changed");
    trio.on(3)?.run("DROP SEQUENCE wide")?;
    // Cancelled while a slot waits for a transaction of somebody else.
    let busy = trio.on(2)?;
    busy.run("BEGIN; INSERT INTO old(v) VALUES (3)")?;
    let session = trio.on(1)?;
    session.run("SET statement_timeout = '2s'")?;
    let error = session.refused(&call(&trio.servers[0].conninfo(), &trio.peers()))?;
    ensure!(error.state == "57014", "{error}");
    busy.run("ROLLBACK")?;
    trio.nothing_left()?;
    trio.works()?;
    // Tables that were there before have an identity of rows now.
    trio.on(1)?.run(
        "UPDATE old SET v = v + 10; DELETE FROM old WHERE v = 12; INSERT INTO old(v) VALUES (5)",
    )?;
    for id in [1, 2, 3] {
        let rows = trio.on(id)?.one("SELECT string_agg(v::text, ',' ORDER BY v) FROM old")?;
        ensure!(rows == "5,11", "server {id} has {rows}");
    }
    let error = trio.on(2)?.refused("SELECT mtm.unconfigure_node()")?;
    ensure!(error.hint.contains("mtm.drop_node()"), "{error}");
    // It is a cluster now, so a third attempt is refused.
    let error = trio.refused(&trio.peers())?;
    says(
        &error,
        &[
            "node 1: it belongs to a cluster",
            "node 2: it belongs to a cluster",
            "node 3: it belongs",
        ],
    )
}

fn shortfalls_at_start_are_logged(a: &Arena) -> Result<()> {
    if skip(a) {
        return Ok(());
    }
    let trio = Trio::start(a, [&[], &[], &[]])?;
    trio.works()?;
    trio.mend(2, &[("max_worker_processes", "20")])?;
    until("the log names the setting", Duration::from_secs(20), || {
        let log = trio.servers[1].log_tail(100);
        Ok(log.contains("max_worker_processes is 20, must be at least 208").then_some(()))
    })
}
