//! The servers under test: a cluster whose nodes reach each other through the proxies.

use super::net::Network;
use crate::artefacts::{self, Profile};
use crate::cluster::{Cluster, Kind, Order};
use crate::host::as_server;
use crate::server::{DATABASE, Life, Server, succeed};
use crate::wait::{step, until};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The cluster and its network.
#[derive(Debug)]
pub struct Servers {
    /// The servers.
    pub cluster: Cluster,
    /// What is between them.
    pub net: Network,
}

/// What a run needs to know to start them.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Where.
    pub dir: &'a Path,
    /// How many.
    pub nodes: usize,
    /// The first node's port.
    pub port: Option<u16>,
    /// Settings for every node.
    pub set: &'a [(String, String)],
    /// How to compile the extension.
    pub profile: Profile,
    /// For what the network draws.
    pub seed: u64,
}

impl Servers {
    /// Creates the cluster.
    ///
    /// # Errors
    /// When it does not come online.
    pub fn create(wanted: &Wanted<'_>) -> Result<Self> {
        Self::create_with(wanted, &artefacts::build(wanted.profile)?)
    }

    /// Creates the cluster with a library that was built before.
    ///
    /// # Errors
    /// When it does not come online.
    pub fn create_with(wanted: &Wanted<'_>, library: &Path) -> Result<Self> {
        // Plain servers first: they become nodes when the proxies to their ports are there.
        let mut cluster = Cluster::create(&Order {
            kind: Kind::Plain,
            nodes: wanted.nodes,
            dir: wanted.dir.to_path_buf(),
            port: wanted.port,
            set: wanted.set.to_vec(),
            profile: wanted.profile,
        })?;
        cluster.stop_all()?;
        cluster.kind = Kind::Multimaster;
        artefacts::stage(library, &cluster.dir.join("tree"))?;
        let ports: Vec<u16> = cluster.nodes.iter().map(|node| node.port).collect();
        let servers = Self { net: Network::start(&ports, wanted.seed)?, cluster };
        step("nodes connected through proxies", || servers.unite())?;
        Ok(servers)
    }

    fn unite(&self) -> Result<()> {
        for node in &self.cluster.nodes {
            self.write_services(node, |to| self.net.port(node.id, to))?;
            node.configure(&self.cluster.node_settings(node)?)?;
        }
        self.start_all()?;
        let conninfos: Vec<String> =
            self.cluster.nodes.iter().map(|node| format!("'service=node_{}'", node.id)).collect();
        let session = self.cluster.session(1)?;
        session.run("CREATE EXTENSION multimaster")?;
        session
            .run(&format!(
                "SELECT mtm.init_cluster({}, ARRAY[{}]::text[])",
                conninfos[0],
                conninfos[1..].join(", ")
            ))
            .context("mtm.init_cluster()")?;
        self.cluster.wait_online()
    }

    fn services(&self, node: &Server) -> PathBuf {
        node.data.with_file_name("services.conf")
    }

    fn write_services(&self, node: &Server, port: impl Fn(usize) -> u16) -> Result<()> {
        let text: String = self
            .cluster
            .nodes
            .iter()
            .map(|to| {
                format!(
                    "[node_{}]\nhost=127.0.0.1\nport={}\ndbname={DATABASE}\nuser={DATABASE}\n",
                    to.id,
                    port(to.id)
                )
            })
            .collect();
        let file = self.services(node);
        std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Lets the nodes find each other without the proxies, which end with this process.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn connect_directly(&self) -> Result<()> {
        for node in &self.cluster.nodes {
            let port = |to: usize| self.cluster.nodes[to - 1].port;
            self.write_services(node, port)?;
        }
        Ok(())
    }

    /// Starts a node that knows the others by its own list of services.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn start(&self, node: &Server) -> Result<()> {
        if node.life() != Life::Stopped {
            return Ok(());
        }
        let mut command = as_server("pg_ctl")?;
        command.env("PGSERVICEFILE", self.services(node));
        command.arg("-D").arg(&node.data).arg("-l").arg(&node.log);
        command.args(["-w", "-t", "120", "start"]);
        succeed(command, "pg_ctl start").with_context(|| {
            format!("node {} does not start; its log ends:\n{}", node.id, node.log_tail(20))
        })
    }

    /// Starts what is stopped, all at once.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start_all(&self) -> Result<()> {
        std::thread::scope(|scope| {
            let nodes = self.cluster.nodes.iter();
            let threads: Vec<_> = nodes.map(|node| scope.spawn(move || self.start(node))).collect();
            threads.into_iter().try_for_each(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }

    /// Waits until every node says it is online and takes a write, all by themselves.
    ///
    /// # Errors
    /// When that takes longer than `limit`, with what the nodes say.
    pub fn wait_rejoined(&self, limit: Duration) -> Result<()> {
        for node in &self.cluster.nodes {
            until(&format!("node {} is online and writes", node.id), limit, || {
                let status = self.cluster.status(node);
                ensure!(status == "online", "node {} is {status}", node.id);
                let session = node.connect_as(DATABASE, "probe")?.patience(Duration::from_secs(5));
                let id = node.id;
                session.run(&format!("UPDATE probes SET n = n + 1 WHERE node = {id}"))?;
                Ok(Some(()))
            })?;
        }
        Ok(())
    }

    /// Waits until no client's transaction runs and nothing is prepared anywhere.
    ///
    /// # Errors
    /// With what is left after `limit`.
    pub fn wait_quiet(&self, limit: Duration) -> Result<()> {
        for node in &self.cluster.nodes {
            until(&format!("node {} is quiet", node.id), limit, || {
                let session = node.connect_as(DATABASE, "probe")?;
                let left = session.one(
                    "SELECT string_agg(what, ', ') FROM (
                       SELECT format('prepared %s since %s', gid, prepared) AS what
                         FROM pg_prepared_xacts
                       UNION ALL
                       SELECT format('client %s in %s (%s)', pid, query, wait_event)
                         FROM pg_stat_activity WHERE application_name = 'torture') AS l",
                )?;
                ensure!(left.is_empty(), "left on node {}: {left}", node.id);
                Ok(Some(()))
            })?;
        }
        Ok(())
    }
}
