//! The cluster's configuration as this node keeps it: one small text file in the data directory,
//! checksummed and replaced atomically. A torn or foreign file is an error, never a guess.

use crate::pg::{shmem, sqlrun};
use core::sync::atomic::Ordering;
use mtm_core::{NodeId, NodeSet};
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

const FILE: &str = "multimaster.conf.state";
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

    /// Makes the configuration durable.
    ///
    /// # Errors
    /// When the data directory cannot be written.
    pub fn save(&self) -> io::Result<()> {
        let body = self.body();
        let temporary = path().with_extension("new");
        let mut file = fs::File::create(&temporary)?;
        write!(file, "{body}checksum {}\n", checksum(&body))?;
        file.sync_all()?;
        fs::rename(&temporary, path())?;
        fs::File::open(sqlrun::data_directory())?.sync_all()
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
        header.generation.store(1, Ordering::Relaxed);
        header.configured.store(1, Ordering::Release);
    }
}

fn checksum(body: &str) -> u64 {
    // FNV-1a: enough to tell a torn file from a whole one.
    body.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn path() -> PathBuf {
    sqlrun::data_directory().join(FILE)
}

/// Whether this data directory belongs to a cluster.
pub fn exists() -> bool {
    path().exists()
}

/// Removes the configuration, after a failed `init_cluster`.
///
/// # Errors
/// When the file cannot be removed.
pub fn remove() -> io::Result<()> {
    match fs::remove_file(path()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Reads the configuration at server start and publishes it.
pub fn load() {
    match fs::read_to_string(path()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            pgrx::ereport!(
                ERROR,
                pgrx::PgSqlErrorCode::ERRCODE_IO_ERROR,
                format!("could not read \"{FILE}\": {error}")
            );
        }
        Ok(text) => match Config::parse(&text) {
            Some(config) => config.publish(),
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
