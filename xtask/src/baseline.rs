//! What a cluster is compared with, in the same run on the same machine.

use crate::artefacts::Profile;
use crate::cluster::{Cluster, Kind, Order};
use anyhow::Result;
use std::path::Path;

/// One ordinary server.
///
/// # Errors
/// When it cannot be started.
pub fn plain(dir: &Path, set: &[(String, String)]) -> Result<Cluster> {
    fresh(Kind::Plain, 1, &dir.join("plain"), set)
}

/// A primary with two synchronous standbys; a commit waits until both have applied it.
///
/// # Errors
/// When it cannot be started.
pub fn streaming(dir: &Path, set: &[(String, String)]) -> Result<Cluster> {
    fresh(Kind::Streaming, 3, &dir.join("streaming"), set)
}

fn fresh(kind: Kind, nodes: usize, dir: &Path, set: &[(String, String)]) -> Result<Cluster> {
    Cluster::clear(dir)?;
    let order = Order {
        kind,
        nodes,
        dir: dir.to_path_buf(),
        port: None,
        set: set.to_vec(),
        profile: Profile::Release,
    };
    Cluster::create(&order)
}
