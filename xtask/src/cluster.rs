//! A group of servers in one directory: a multimaster cluster, or a baseline to compare with.
//!
//! ```text
//! D/cluster.json          what was started, with ports, process ids and settings
//! D/tree/                 the extension as the servers load it
//! D/node1/data            data directory
//! D/node1/postgres.log    the server's log
//! D/s/                    Unix sockets
//! ```

use crate::artefacts::{self, Profile};
use crate::host::give_to_server;
use crate::server::{DATABASE, Life, Server, free_ports};
use crate::session::Session;
use crate::wait::{step, until};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

const STATE_FILE: &str = "cluster.json";
/// How long a new cluster may take until every node is online.
const ONLINE_WITHIN: Duration = Duration::from_secs(60);

/// What the servers are to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Nodes of a multimaster cluster.
    Multimaster,
    /// One ordinary server.
    Plain,
    /// A primary and synchronous standbys at `remote_apply`.
    Streaming,
}

/// What to start.
#[derive(Debug, Clone)]
pub struct Order {
    /// What the servers are to each other.
    pub kind: Kind,
    /// How many servers.
    pub nodes: usize,
    /// Where.
    pub dir: PathBuf,
    /// The first port, if it matters.
    pub port: Option<u16>,
    /// Settings on top of ours.
    pub set: Vec<(String, String)>,
    /// How to compile the extension.
    pub profile: Profile,
}

/// Servers, as written to the state file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cluster {
    /// What the servers are to each other.
    pub kind: Kind,
    /// The directory everything is in.
    pub dir: PathBuf,
    /// The servers' version.
    pub version: String,
    /// Settings that were asked for.
    pub settings: Vec<(String, String)>,
    /// The servers, in order of their numbers.
    pub nodes: Vec<Server>,
    /// Whether all of them were made and are what they should be to each other.
    pub complete: bool,
}

impl Cluster {
    /// Creates the servers, starts them and makes them what they are to be to each other.
    ///
    /// # Errors
    /// When the directory is in use, a port is taken, or anything on the way fails.
    pub fn create(order: &Order) -> Result<Self> {
        let library = match order.kind {
            Kind::Multimaster => Some(artefacts::build(order.profile)?),
            Kind::Plain | Kind::Streaming => {
                crate::packages::ensure()?;
                None
            }
        };
        let mut cluster = Self::lay_out(order)?;
        cluster.save()?;
        if let Err(error) = cluster.make(library.as_deref()) {
            // Nothing half made keeps running; its files stay to be looked at.
            for server in &cluster.nodes {
                server.kill()?;
            }
            return Err(error);
        }
        cluster.complete = true;
        cluster.save()?;
        Ok(cluster)
    }

    fn make(&mut self, library: Option<&Path>) -> Result<()> {
        if let Some(library) = library {
            artefacts::stage(library, &self.dir.join("tree"))?;
        }
        match self.kind {
            Kind::Streaming => self.create_streaming(),
            Kind::Plain => self.create_equal(),
            Kind::Multimaster => {
                self.create_equal()?;
                self.unite()
            }
        }
    }

    fn lay_out(order: &Order) -> Result<Self> {
        if order.nodes == 0 || order.nodes > 16 {
            bail!("a cluster has 1 to 16 nodes, not {}", order.nodes);
        }
        let dir = std::path::absolute(&order.dir)?;
        if dir.join(STATE_FILE).exists() {
            bail!("there is already a cluster in {}", dir.display());
        }
        if std::fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some()) {
            bail!("{} is not empty and holds no cluster", dir.display());
        }
        std::fs::create_dir_all(dir.join("s"))
            .with_context(|| format!("cannot create {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        give_to_server(&dir.join("s"))?;
        let port = free_ports(order.port.unwrap_or(21001), order.nodes, order.port.is_some())?;
        let mut nodes = Vec::new();
        for (id, port) in (1..=order.nodes).zip(port..) {
            nodes.push(Server::new(id, &dir.join(format!("node{id}")), port));
        }
        let version = crate::host::server_version()?;
        Ok(Self {
            kind: order.kind,
            dir,
            version,
            settings: order.set.clone(),
            nodes,
            complete: false,
        })
    }

    /// Reads the cluster in `dir`.
    ///
    /// # Errors
    /// When there is none.
    pub fn load(dir: &Path) -> Result<Self> {
        let file = dir.join(STATE_FILE);
        let text = std::fs::read_to_string(&file).with_context(|| {
            format!("no cluster in {} (start one with `cargo xtask cluster up`)", dir.display())
        })?;
        serde_json::from_str(&text).with_context(|| format!("{} cannot be read", file.display()))
    }

    /// Writes the state file with the process ids of now.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.pid = node.postmaster();
        }
        let file = self.dir.join(STATE_FILE);
        let new = self.dir.join("cluster.json.new");
        std::fs::write(&new, serde_json::to_string_pretty(self)? + "\n")
            .and_then(|()| std::fs::rename(&new, &file))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// Node `id`.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, id: usize) -> Result<&Server> {
        let last = self.nodes.len();
        self.nodes
            .iter()
            .find(|node| node.id == id)
            .with_context(|| format!("no node {id}; there are 1 to {last}"))
    }

    /// A new session on node `id`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn session(&self, id: usize) -> Result<Session> {
        self.node(id)?.connect().with_context(|| format!("connecting to node {id}"))
    }

    /// Directory of the Unix sockets: below the cluster's own unless that makes the socket's name
    /// longer than the kernel allows.
    fn socket_directory(&self) -> PathBuf {
        let own = self.dir.join("s");
        if own.as_os_str().len() > 85 { PathBuf::from("/tmp") } else { own }
    }

    fn common_settings(&self) -> Vec<(String, String)> {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        vec![
            pair("listen_addresses", "127.0.0.1"),
            pair("unix_socket_directories", &self.socket_directory().display().to_string()),
            pair("max_connections", "100"),
            pair("log_line_prefix", "%m [%p] %q%a "),
            pair("timezone", "UTC"),
            pair("log_timezone", "UTC"),
        ]
    }

    /// Settings of a node of the cluster, as the manual gives them.
    ///
    /// # Errors
    /// When the server's program cannot be run.
    pub fn node_settings(&self, server: &Server) -> Result<Vec<(String, String)>> {
        let mut settings = self.common_settings();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        if self.kind == Kind::Multimaster {
            let workers = (self.nodes.len() * 101).max(250);
            settings.extend(artefacts::settings(&self.dir.join("tree")));
            settings.extend([
                pair("shared_preload_libraries", "multimaster"),
                pair("wal_level", "logical"),
                pair("max_prepared_transactions", &(self.nodes.len() * 100).to_string()),
                pair("max_wal_senders", "16"),
                pair("max_replication_slots", "32"),
                pair("max_worker_processes", &workers.to_string()),
                pair("wal_sender_timeout", "0"),
            ]);
            // Servers before 15.19 do not have this one.
            if let Some(list) = server.configured("output_plugin_libraries")? {
                settings.push(pair("output_plugin_libraries", &format!("{list}, multimaster")));
            }
        }
        settings.push(pair("port", &server.port.to_string()));
        settings.extend(self.settings.clone());
        Ok(settings)
    }

    /// Nodes that do not know each other yet.
    fn create_equal(&self) -> Result<()> {
        step(&format!("initdb for {} server(s)", self.nodes.len()), || {
            self.each(|server| {
                server.initdb()?;
                server.configure(&self.node_settings(server)?)
            })
        })?;
        step("starting", || {
            self.each(|server| {
                server.start()?;
                create_database(server)
            })
        })
    }

    fn create_streaming(&self) -> Result<()> {
        let (primary, standbys) = self.nodes.split_first().context("a cluster has nodes")?;
        step("primary", || {
            primary.initdb()?;
            primary.configure(&self.node_settings(primary)?)?;
            primary.start()?;
            create_database(primary)
        })?;
        step(&format!("{} synchronous standbys", standbys.len()), || {
            for server in standbys {
                server.clone_from(primary, &format!("standby{}", server.id))?;
                server.configure(&[("port".to_owned(), server.port.to_string())])?;
                server.start()?;
            }
            let session = primary.connect()?;
            let names = format!("{} (*)", standbys.len());
            session.run(&format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'"))?;
            session.run("ALTER SYSTEM SET synchronous_commit = 'remote_apply'")?;
            session.run("SELECT pg_reload_conf()")?;
            let count =
                "SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum')";
            until("all standbys are synchronous", ONLINE_WITHIN, || {
                Ok((session.one(count)? == standbys.len().to_string()).then_some(()))
            })
        })
    }

    /// Makes a multimaster cluster of the nodes and waits until all are online.
    fn unite(&self) -> Result<()> {
        step("mtm.init_cluster()", || {
            let (first, peers) = self.nodes.split_first().context("a cluster has nodes")?;
            let session = first.connect()?;
            session.run("CREATE EXTENSION multimaster").context("CREATE EXTENSION multimaster")?;
            let peers: Vec<String> =
                peers.iter().map(|peer| format!("'{}'", peer.conninfo())).collect();
            let call = format!(
                "SELECT mtm.init_cluster('{}', ARRAY[{}]::text[])",
                first.conninfo(),
                peers.join(", ")
            );
            session.run(&call).context("mtm.init_cluster()")?;
            Ok(())
        })
        .map_err(|error| self.with_logs(error))?;
        self.wait_online()
    }

    /// Waits until every node is online together with all others.
    ///
    /// # Errors
    /// With the end of the logs.
    pub fn wait_online(&self) -> Result<()> {
        if self.kind != Kind::Multimaster {
            return Ok(());
        }
        step("every node is online", || {
            until("every node is online", ONLINE_WITHIN, || self.all_online().map(Some))
        })
        .map_err(|error| self.with_logs(error))
    }

    /// That every node is online in one generation that has all of them as members. Nodes that
    /// are online one by one may be so in different generations: a restart can begin two, and
    /// who goes from the first into the second is in recovery for a moment.
    ///
    /// # Errors
    /// What is not so.
    pub fn all_online(&self) -> Result<()> {
        let words = "SELECT CASE WHEN status = 'online' AND gen_members_online = gen_configured
                            THEN 'online in generation ' || gen_num
                            ELSE concat(status, ' in generation ', gen_num, ' of ',
                                        gen_members::text, ': ', reason) END
                       FROM mtm.status()";
        let ask = |node: &Server| node.connect_as(DATABASE, "mtm_admin")?.one(words);
        let say = |node: &Server| ask(node).unwrap_or_else(|e| e.to_string());
        let all: Vec<String> = self.nodes.iter().map(say).collect();
        let together = all[0].starts_with("online in") && all.iter().all(|one| *one == all[0]);
        ensure!(together, "the nodes say: {}", all.join("; "));
        Ok(())
    }

    fn with_logs(&self, error: anyhow::Error) -> anyhow::Error {
        let logs: String = self
            .nodes
            .iter()
            .map(|node| {
                format!(
                    "\nnode {}, the end of {}:\n{}",
                    node.id,
                    node.log.display(),
                    node.log_tail(12)
                )
            })
            .collect();
        anyhow::anyhow!("{error:#}{logs}")
    }

    /// One word about a node: what `mtm.status()` says, or why it cannot be asked.
    #[must_use]
    pub fn status(&self, server: &Server) -> String {
        match server.life() {
            Life::Stopped => return "stopped".into(),
            Life::Frozen => return "frozen".into(),
            Life::Running => {}
        }
        let question = match self.kind {
            Kind::Multimaster => "SELECT status FROM mtm.status()",
            Kind::Plain | Kind::Streaming => {
                "SELECT CASE WHEN pg_is_in_recovery() THEN 'standby' ELSE 'running' END"
            }
        };
        let session = server.connect_as(DATABASE, "mtm_admin");
        match session.and_then(|session| session.one(question)) {
            Ok(status) => status,
            Err(error) => format!("unknown ({error})"),
        }
    }

    /// The line that tells people and programs how to reach a node.
    #[must_use]
    pub fn line(&self, server: &Server) -> String {
        format!("node {} {} status={}", server.id, server.conninfo(), self.status(server))
    }

    /// Builds again, replaces the staged files and starts what is stopped.
    ///
    /// # Errors
    /// When a node does not start or does not come online.
    pub fn start_all(&mut self, profile: Profile) -> Result<()> {
        if self.kind == Kind::Multimaster {
            artefacts::stage(&artefacts::build(profile)?, &self.dir.join("tree"))?;
        }
        step("starting", || self.each(Server::start))?;
        self.save()?;
        self.wait_online()
    }

    /// Stops every server; those that do not stop in time are killed.
    ///
    /// # Errors
    /// When a server cannot even be killed.
    pub fn stop_all(&mut self) -> Result<()> {
        self.each(|server| {
            if let Err(error) = server.stop() {
                eprintln!("{error:#}\nkilling node {}", server.id);
                server.kill()?;
            }
            Ok(())
        })?;
        self.save()
    }

    /// Stops every server and removes the directory.
    ///
    /// # Errors
    /// When that fails.
    pub fn destroy(mut self) -> Result<()> {
        for server in &self.nodes {
            server.kill()?;
        }
        self.save()?;
        std::fs::remove_dir_all(&self.dir)
            .with_context(|| format!("cannot remove {}", self.dir.display()))
    }

    /// Removes what an earlier run left in `dir`, if anything.
    ///
    /// # Errors
    /// When `dir` holds something else.
    pub fn clear(dir: &Path) -> Result<()> {
        if dir.join(STATE_FILE).exists() { Self::load(dir)?.destroy() } else { Ok(()) }
    }

    /// Does `work` for every server at the same time.
    ///
    /// # Errors
    /// The first error.
    pub fn each(&self, work: impl Fn(&Server) -> Result<()> + Sync) -> Result<()> {
        let work = &work;
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                self.nodes.iter().map(|server| scope.spawn(move || work(server))).collect();
            threads.into_iter().try_for_each(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }
}

/// Creates the database that is to be replicated.
///
/// # Errors
/// The server's refusal.
pub fn create_database(server: &Server) -> Result<()> {
    let session = server.connect_as("postgres", "xtask")?.patience(Duration::from_secs(60));
    session.run(&format!("CREATE DATABASE {DATABASE}"))?;
    // The user is named like the extension's schema; its tables belong into public all the same.
    session.run(&format!("ALTER DATABASE {DATABASE} SET search_path = public"))?;
    Ok(())
}
