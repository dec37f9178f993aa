//! `mtm.init_cluster`: checks every node, then makes the cluster, or leaves everything as it was.

use crate::config;
use crate::guc;
use crate::pg::conn::{Conn, ConnError};
use crate::pg::{sqlrun, xact};
use pgrx::prelude::*;

/// Settings of this node that fall short for a cluster of `n` nodes, one line each, and other
/// reasons why it cannot join.
#[pg_extern]
fn check_node(n: i32) -> Vec<String> {
    let workers = guc::MAX_WORKERS.get();
    let mut problems = Vec::new();
    if sqlrun::setting(c"wal_level") != "logical" {
        problems.push("wal_level must be \"logical\"".to_owned());
    }
    let connections = number(c"max_connections");
    for (name, text, need) in [
        (c"max_prepared_transactions", "max_prepared_transactions", connections * (n - 1)),
        (c"max_worker_processes", "max_worker_processes", (n - 1) * (workers + 1) + 5),
        (c"max_wal_senders", "max_wal_senders", n),
        (c"max_replication_slots", "max_replication_slots", n),
    ] {
        let have = number(name);
        if have < need {
            problems.push(format!("{text} is {have}, must be at least {need}"));
        }
    }
    let libraries = sqlrun::setting(c"output_plugin_libraries");
    let known = sqlrun::server_version() >= 150_019;
    let listed = libraries.split(',').any(|l| l.trim().trim_matches('"') == "multimaster");
    if known && !listed {
        problems.push("output_plugin_libraries must list \"multimaster\"".to_owned());
    }
    if config::exists() {
        problems.push("the node belongs to a cluster already".to_owned());
    }
    problems
}

fn number(name: &core::ffi::CStr) -> i32 {
    sqlrun::setting(name).parse().unwrap_or(0)
}

/// Takes this node out of a cluster that could not be completed. For `mtm.init_cluster` only.
#[pg_extern]
fn unconfigure_node() {
    if !sqlrun::is_superuser() {
        pgrx::error!("must be superuser");
    }
    if let Err(error) = config::remove() {
        pgrx::warning!("could not remove the cluster's configuration: {error}");
    }
}

struct Node {
    id: usize,
    conn: Conn,
}

/// Makes a cluster of this node and its peers.
#[pg_extern]
fn init_cluster(my_conninfo: &str, peers_conninfo: Vec<String>) {
    if !sqlrun::is_superuser() {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "must be superuser to create a multimaster cluster"
        );
    }
    if xact::full_xid().is_some() {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
            "mtm.init_cluster() cannot run in a transaction that has written"
        );
    }
    let mut conninfos = vec![my_conninfo.to_owned()];
    conninfos.extend(peers_conninfo);
    let mut nodes = check_all(&conninfos);
    let cluster_id = sqlrun::random_u64().to_string();
    if let Err((node, error)) = make(&mut nodes, &cluster_id, &conninfos) {
        undo(&mut nodes);
        fail(vec![format!("node {node}: {error}")]);
    }
}

fn fail(problems: Vec<String>) -> ! {
    ereport!(
        ERROR,
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        "could not create the cluster; nothing was changed",
        problems.join("\n")
    );
    unreachable!("an ERROR does not return")
}

/// Connects to every node and checks all of them before anything is changed.
fn check_all(conninfos: &[String]) -> Vec<Node> {
    let n = conninfos.len();
    let mut problems = Vec::new();
    if !(2..=usize::from(mtm_core::MAX_NODES)).contains(&n) {
        fail(vec![format!("a cluster has 2 to {} nodes, not {n}", mtm_core::MAX_NODES)]);
    }
    let mut nodes = Vec::new();
    for (i, conninfo) in conninfos.iter().enumerate() {
        match check_one(conninfo, n) {
            Ok((conn, identity, found)) => {
                problems.extend(found.into_iter().map(|p| format!("node {}: {p}", i + 1)));
                nodes.push((identity, Node { id: i + 1, conn }));
            }
            Err(error) => problems.push(format!("node {}: {error}", i + 1)),
        }
    }
    for (a, (identity, node)) in nodes.iter().enumerate() {
        if let Some((_, other)) = nodes[..a].iter().find(|(i, _)| i.0 == identity.0) {
            problems.push(format!("node {} and node {} are the same server", other.id, node.id));
        }
        if identity.1 != sqlrun::server_version() / 10_000 {
            problems.push(format!("node {}: PostgreSQL {}, but node 1 has {}", node.id,
                identity.1, sqlrun::server_version() / 10_000));
        }
    }
    match nodes.first() {
        Some((identity, _)) if identity.0 != own_identity() => {
            problems.push("my_conninfo does not lead to this server and database".to_owned());
        }
        _ => {}
    }
    if !problems.is_empty() {
        fail(problems);
    }
    nodes.into_iter().map(|(_, node)| node).collect()
}

/// What tells a running server from every other: its identifier, start and data directory.
const IDENTITY: &str = "SELECT s.system_identifier::text || ' ' || \
     extract(epoch FROM pg_catalog.pg_postmaster_start_time())::text || ' ' || \
     pg_catalog.current_database() || ' ' || pg_catalog.current_setting('data_directory') \
     FROM pg_catalog.pg_control_system() AS s";

fn own_identity() -> String {
    // Not Spi::get_one: it assigns a transaction number, for whose end slots would wait.
    let identity = Spi::connect(|client| {
        let rows = client.select(IDENTITY, Some(1), &[])?;
        rows.first().get_one::<String>()
    });
    identity.ok().flatten().unwrap_or_default()
}

type Checked = (Conn, (String, i32), Vec<String>);

fn check_one(conninfo: &str, n: usize) -> Result<Checked, ConnError> {
    if conninfo.len() > crate::pg::shmem::MAX_CONNINFO {
        return Err(ConnError::Connection("the connection string is too long".to_owned()));
    }
    let name = [("application_name", crate::cluster::ADMIN)];
    let timeout = guc::CONNECT_TIMEOUT.get().max(10);
    let mut conn = Conn::connect(conninfo, &name, timeout)?;
    conn.query("SET client_min_messages = warning", &[])?;
    conn.query("CREATE EXTENSION IF NOT EXISTS multimaster", &[])?;
    let identity = one(&conn.query(IDENTITY, &[])?);
    let problems = conn.query("SELECT pg_catalog.unnest(mtm.check_node($1))", &[&n.to_string()])?;
    let problems = problems.into_iter().filter_map(|row| row.into_iter().next().flatten());
    let version = conn.server_version() / 10_000;
    Ok((conn, (identity, version), problems.collect()))
}

fn one(rows: &[Vec<Option<String>>]) -> String {
    rows.first().and_then(|row| row.first()).cloned().flatten().unwrap_or_default()
}

fn make(
    nodes: &mut [Node],
    cluster_id: &str,
    conninfos: &[String],
) -> Result<(), (usize, ConnError)> {
    let n = nodes.len();
    for node in nodes.iter_mut() {
        for peer in (1..=n).filter(|peer| *peer != node.id) {
            node.conn
                .query(
                    "SELECT pg_catalog.pg_create_logical_replication_slot($1, 'multimaster', \
                     false, true)",
                    &[&format!("mtm_slot_{peer}")],
                )
                .map_err(|error| (node.id, error))?;
        }
    }
    for node in nodes.iter_mut() {
        let mut sql = String::from("SELECT mtm.configure_node($1, $2, ARRAY[");
        let places: Vec<String> = (0..n).map(|i| format!("${}", i + 3)).collect();
        sql.push_str(&places.join(", "));
        sql.push_str("]::text[])");
        let id = node.id.to_string();
        let mut params = vec![cluster_id, id.as_str()];
        params.extend(conninfos.iter().map(String::as_str));
        node.conn.query(&sql, &params).map_err(|error| (node.id, error))?;
    }
    for node in nodes.iter_mut() {
        node.conn
            .query("SELECT mtm.adjust_sequences()", &[])
            .map_err(|error| (node.id, error))?;
    }
    Ok(())
}

/// Gives this node its share of every sequence.
#[pg_extern]
fn adjust_sequences() {
    crate::pg::sequences::adjust_all();
}

/// Gives every node its share of every sequence.
#[pg_extern]
fn alter_sequences() -> bool {
    for node in crate::pg::shmem::header().configured_nodes() {
        let name = [("application_name", crate::cluster::ADMIN)];
        let conninfo = crate::pg::shmem::conninfo(node);
        let done = Conn::connect(&conninfo, &name, guc::CONNECT_TIMEOUT.get().max(10))
            .and_then(|mut conn| conn.query("SELECT mtm.adjust_sequences()", &[]));
        if let Err(error) = done {
            ereport!(
                ERROR,
                PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE,
                format!("could not adjust the sequences of node {node}: {error}"),
                "Run mtm.alter_sequences() again when all nodes are online."
            );
        }
    }
    true
}

/// Takes back what `make` did, as far as the nodes can be reached.
fn undo(nodes: &mut [Node]) {
    for node in nodes {
        let undone = node
            .conn
            .query("SELECT mtm.unconfigure_node()", &[])
            .and_then(|_| {
                node.conn.query(
                    "SELECT pg_catalog.pg_drop_replication_slot(slot_name) \
                     FROM pg_catalog.pg_replication_slots \
                     WHERE plugin = 'multimaster' AND slot_name ~ '^mtm_slot_[0-9]+$'",
                    &[],
                )
            });
        if let Err(error) = undone {
            pgrx::warning!("node {}: could not undo: {error}", node.id);
        }
    }
}
