//! The cluster's configuration as this node keeps it: one small text file in the data directory,
//! checksummed and replaced atomically. A torn or foreign file is an error, never a guess.

use crate::api::requirements::{self, Settings};
use crate::pg::{shmem, sqlrun};
use crate::report;
use core::sync::atomic::Ordering;
use mtm_core::{NodeId, NodeSet};
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

/// The file's name in the data directory.
pub const FILE: &str = "multimaster.conf.state";
/// The same before the node takes part.
const PENDING: &str = "multimaster.conf.state.new";
const HEAD: &str = "multimaster 1";

/// A node's view of its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Drawn at random when the cluster was made.
    pub cluster_id: u64,
    /// This node.
    pub me: NodeId,
    /// OID of the replicated database on this node.
    pub database: u32,
    /// Every node and how to connect to it.
    pub nodes: Vec<(NodeId, String)>,
}

impl Config {
    fn body(&self) -> String {
        let mut text = format!(
            "{HEAD}\ncluster {}\nme {}\ndatabase {}\n",
            self.cluster_id, self.me, self.database
        );
        for (node, conninfo) in &self.nodes {
            text.push_str(&format!("node {node} {}\n", conninfo.replace('\n', " ")));
        }
        text
    }

    fn parse(text: &str) -> Option<Self> {
        let (body, sum) = text.rsplit_once("checksum ")?;
        if sum.trim().parse() != Ok(checksum(body)) {
            return None;
        }
        let mut lines = body.lines();
        if lines.next()? != HEAD {
            return None;
        }
        let mut number = |key: &str| lines.next()?.strip_prefix(key)?.trim().parse::<u64>().ok();
        let cluster_id = number("cluster ")?;
        let me = NodeId::new(number("me ")?.try_into().ok()?)?;
        let database = number("database ")?.try_into().ok()?;
        let nodes = lines
            .map(|line| {
                let (id, conninfo) = line.strip_prefix("node ")?.split_once(' ')?;
                Some((NodeId::new(id.parse().ok()?)?, conninfo.to_owned()))
            })
            .collect::<Option<Vec<_>>>()?;
        Some(Self { cluster_id, me, database, nodes })
    }

    /// Makes the configuration durable, but not yet this node's: [`activate`] does that.
    ///
    /// # Errors
    /// When the data directory cannot be written.
    pub fn save_pending(&self) -> io::Result<()> {
        let body = self.body();
        let mut file = fs::File::create(path(PENDING))?;
        writeln!(file, "{body}checksum {}", checksum(&body))?;
        file.sync_all()
    }

    /// Makes the configuration known to all processes of this server.
    pub fn publish(&self) {
        let header = shmem::header();
        let mut nodes = NodeSet::EMPTY;
        for (node, conninfo) in &self.nodes {
            nodes.insert(*node);
            shmem::set_conninfo(*node, conninfo);
        }
        header.my_id.store(u32::from(self.me.get()), Ordering::Relaxed);
        header.database.store(self.database, Ordering::Relaxed);
        header.nodes.store(nodes.bits(), Ordering::Relaxed);
        header.cluster_id.store(self.cluster_id, Ordering::Relaxed);
        header.configured.store(1, Ordering::Release);
    }
}

fn checksum(body: &str) -> u64 {
    // FNV-1a: enough to tell a torn file from a whole one.
    body.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn path(file: &str) -> PathBuf {
    sqlrun::data_directory().join(file)
}

/// Whether this data directory belongs to a cluster.
pub fn exists() -> bool {
    path(FILE).exists()
}

/// The configuration that waits for [`activate`], if there is one.
///
/// # Errors
/// When it cannot be read or is damaged.
pub fn pending() -> io::Result<Option<Config>> {
    match fs::read_to_string(path(PENDING)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        Ok(text) => match Config::parse(&text) {
            Some(config) => Ok(Some(config)),
            None => Err(io::Error::new(io::ErrorKind::InvalidData, "it is damaged")),
        },
    }
}

/// Makes the pending configuration this node's.
///
/// # Errors
/// When there is none, or the data directory cannot be written.
pub fn activate() -> io::Result<()> {
    let text = fs::read_to_string(path(PENDING))?;
    let config = Config::parse(&text)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is damaged"))?;
    fs::rename(path(PENDING), path(FILE))?;
    fs::File::open(sqlrun::data_directory())?.sync_all()?;
    config.publish();
    Ok(())
}

/// Takes the node out of its cluster: removes the configuration, pending or not, and tells all
/// processes.
///
/// # Errors
/// When a file cannot be removed.
pub fn remove() -> io::Result<()> {
    for file in [PENDING, FILE] {
        match fs::remove_file(path(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::File::open(sqlrun::data_directory())?.sync_all()?;
    let header = shmem::header();
    header.configured.store(0, Ordering::Release);
    header.started.store(0, Ordering::Release);
    shmem::node(shmem::NodeState::end);
    header.nodes.store(0, Ordering::Relaxed);
    header.my_id.store(0, Ordering::Relaxed);
    header.cluster_id.store(0, Ordering::Relaxed);
    Ok(())
}

/// Reads the configuration at server start and publishes it.
pub fn load() {
    match fs::read_to_string(path(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            pgrx::ereport!(
                ERROR,
                pgrx::PgSqlErrorCode::ERRCODE_IO_ERROR,
                format!("could not read \"{FILE}\": {error}")
            );
        }
        Ok(text) => match Config::parse(&text) {
            Some(config) => {
                config.publish();
                warn_about_settings(config.nodes.len());
            }
            None => {
                pgrx::ereport!(
                    ERROR,
                    pgrx::PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
                    format!("\"{FILE}\" is damaged or of another version"),
                    "Restore the file from a backup of this data directory."
                );
            }
        },
    }
}

/// Settings may have been changed since the cluster was made. A server that can still start says
/// what will fail.
fn warn_about_settings(nodes: usize) {
    let number = |name| sqlrun::setting(name).parse().unwrap_or(0);
    let settings = Settings {
        wal_level: sqlrun::setting(c"wal_level"),
        max_connections: number(c"max_connections"),
        max_prepared_transactions: number(c"max_prepared_transactions"),
        max_worker_processes: number(c"max_worker_processes"),
        max_wal_senders: number(c"max_wal_senders"),
        max_replication_slots: number(c"max_replication_slots"),
        other_slots: 0,
        max_workers: number(c"multimaster.max_workers"),
        output_plugin_libraries: sqlrun::setting_if_known(c"output_plugin_libraries"),
    };
    let n = i64::try_from(nodes).unwrap_or(i64::MAX);
    let peers = (n - 1) * settings.max_connections;
    let short = requirements::shortfalls(&settings, n, peers);
    if !short.is_empty() {
        let lines: Vec<_> = short.iter().map(requirements::Problem::text).collect();
        report::warning(
            "settings of this node fall short of what its cluster needs",
            &lines.join("\n"),
            "Change them in postgresql.conf and restart the server.",
        );
    }
}
