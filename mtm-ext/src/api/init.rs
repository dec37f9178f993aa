//! `mtm.init_cluster`: checks every node, then makes the cluster, or leaves everything as it was.
//!
//! 1. Every server is asked what it is ([`requirements`]); nothing is written. All that is wrong
//!    anywhere is reported at once.
//! 2. The extension is created where it is missing, and every node connects to every other one.
//! 3. Slots; then sequences, replica identities and a pending configuration, in one transaction
//!    per node; then the nodes take part. Whatever fails on the way is taken back.

use super::requirements::{self, Facts, Problem};
use crate::guc;
use crate::pg::bgworker::{self, Caught};
use crate::pg::conn::{Conn, ConnError, Rows};
use crate::pg::{sqlrun, xact};
use crate::report;
use core::panic::AssertUnwindSafe;
use pgrx::prelude::*;

/// A server to be.
struct Node {
    id: usize,
    conninfo: String,
    conn: Conn,
    facts: Facts,
    /// Whether we created the extension there.
    created: bool,
}

/// What is wrong, and what to do about it.
#[derive(Default)]
struct Problems {
    lines: Vec<String>,
    settings: bool,
    members: bool,
    connections: bool,
}

impl Problems {
    fn add(&mut self, node: usize, problem: &Problem) {
        match problem {
            Problem::Setting(_) => self.settings = true,
            Problem::Member => self.members = true,
            Problem::Other(_) => {}
        }
        self.lines.push(format!("node {node}: {}", problem.text()));
    }

    fn unreachable(&mut self, node: usize, error: &ConnError) {
        self.connections = true;
        self.lines.push(format!("node {node}: {error}"));
    }

    fn other(&mut self, line: String) {
        self.lines.push(line);
    }

    /// Raises an ERROR if anything is wrong.
    fn check(&self) {
        if self.lines.is_empty() {
            return;
        }
        let mut hints =
            vec!["Node 1 is my_conninfo, the others are numbered as in peers_conninfo."];
        if self.settings {
            hints.push("Change the settings in postgresql.conf of these nodes and restart them.");
        }
        if self.connections {
            hints.push(
                "Check the connection strings, pg_hba.conf (each node must let all others \
                 connect) and the password files of the account that runs the servers.",
            );
        }
        if self.members {
            hints.push(
                "Take a node out of its cluster with mtm.drop_node() there; if that cluster was \
                 never completed, with SELECT mtm.unconfigure_node() on the node itself.",
            );
        }
        hints.push("Then run mtm.init_cluster() again.");
        fail(&self.lines.join("\n"), &hints.join(" "));
    }
}

fn fail(detail: &str, hint: &str) -> ! {
    report::error(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        "could not create the cluster; nothing was changed",
        detail,
        hint,
    )
}

/// Makes a cluster of this node and its peers.
#[pg_extern]
fn init_cluster(my_conninfo: &str, peers_conninfo: Vec<String>) {
    super::require_preload();
    super::require_superuser("create a multimaster cluster");
    if xact::full_xid().is_some() {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_ACTIVE_SQL_TRANSACTION,
            "mtm.init_cluster() cannot run in a transaction that has written"
        );
    }
    let mut conninfos = vec![my_conninfo.to_owned()];
    conninfos.extend(peers_conninfo);
    check_number(conninfos.len());
    let mut nodes = check_all(&conninfos);
    // An ERROR, such as a cancellation, must not leave anything behind either.
    let made = bgworker::catching(AssertUnwindSafe(|| make(&mut nodes)));
    if let Ok(Ok(without_key)) = made {
        return warn_without_key(&without_key);
    }
    undo(&mut nodes);
    match made {
        Ok(Ok(_)) => unreachable!("handled above"),
        Ok(Err(Failure::Node(node, error))) => {
            let detail = match &error {
                ConnError::Server { detail, .. } if !detail.is_empty() => format!("\n{detail}"),
                _ => String::new(),
            };
            fail(&format!("node {node}: {error}{detail}"), "")
        }
        Ok(Err(Failure::Problems(problems))) => problems.check(),
        Err(caught) => rethrow(&caught),
    }
}

fn rethrow(caught: &Caught) -> ! {
    let state = core::str::from_utf8(&caught.sqlstate).unwrap_or("XX000");
    bgworker::raise(state, &caught.message, "The cluster was not created; nothing was changed.")
}

fn check_number(n: usize) {
    let most = usize::from(mtm_core::MAX_NODES);
    if !(2..=most).contains(&n) {
        report::error(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("a cluster has 2 to {most} nodes, not {n}"),
            "",
            "Give the connection strings of all other nodes as the second argument.",
        );
    }
}

fn warn_without_key(tables: &[String]) {
    if !tables.is_empty() {
        report::warning(
            format!("{} table(s) have no primary key: {}", tables.len(), tables.join(", ")),
            "",
            "Their whole rows identify changes on other nodes, which is slow. Add primary keys.",
        );
    }
}

/// Connects to every server and checks all of them before anything is changed.
fn check_all(conninfos: &[String]) -> Vec<Node> {
    let mut problems = Problems::default();
    let mut nodes = Vec::new();
    for (i, conninfo) in conninfos.iter().enumerate() {
        match ask(i + 1, conninfo) {
            Ok(node) => nodes.push(node),
            Err(Refusal::Connection(error)) => problems.unreachable(i + 1, &error),
            Err(Refusal::Other(why)) => problems.other(format!("node {}: {why}", i + 1)),
        }
    }
    compare(&nodes, conninfos.len(), &mut problems);
    problems.check();
    for node in &mut nodes {
        if let Err(error) = replication(&node.conninfo) {
            problems.unreachable(node.id, &error);
        }
    }
    problems.check();
    nodes
}

enum Refusal {
    Connection(ConnError),
    Other(String),
}

impl From<ConnError> for Refusal {
    fn from(error: ConnError) -> Self {
        Self::Connection(error)
    }
}

fn ask(id: usize, conninfo: &str) -> Result<Node, Refusal> {
    if conninfo.len() > crate::pg::shmem::MAX_CONNINFO {
        let most = crate::pg::shmem::MAX_CONNINFO;
        let text = format!("the connection string is longer than {most} bytes");
        return Err(Refusal::Other(text));
    }
    let mut conn = connect(conninfo, &[])?;
    let superuser =
        "SELECT rolsuper, rolname FROM pg_catalog.pg_roles WHERE rolname = current_user";
    let role = conn.query(superuser, &[])?;
    let column = |i: usize| role.first().and_then(|row| row.get(i)).cloned().flatten();
    if column(0).as_deref() != Some("t") {
        let name = column(1).unwrap_or_default();
        let text = format!("user \"{name}\" must be a superuser there, as nodes connect with it");
        return Err(Refusal::Other(text));
    }
    let rows = conn.query(&requirements::query(), &[])?;
    let facts = rows.first().and_then(|row| Facts::from_row(row));
    let facts = facts.ok_or_else(|| Refusal::Other("unexpected answer".to_owned()))?;
    Ok(Node { id, conninfo: conninfo.to_owned(), conn, facts, created: false })
}

fn connect(conninfo: &str, extra: &[(&str, &str)]) -> Result<Conn, ConnError> {
    let mut keywords = vec![("application_name", crate::cluster::ADMIN)];
    keywords.extend_from_slice(extra);
    let mut conn = Conn::connect(conninfo, &keywords, guc::CONNECT_TIMEOUT.get().max(10))?;
    if extra.is_empty() {
        conn.query("SET client_min_messages = error; SET search_path = pg_catalog", &[])?;
    }
    Ok(conn)
}

/// The stream of changes needs a connection of its own kind.
fn replication(conninfo: &str) -> Result<(), ConnError> {
    connect(conninfo, &[("replication", "database")])?.query("IDENTIFY_SYSTEM", &[]).map(|_| ())
}

fn compare(nodes: &[Node], n: usize, problems: &mut Problems) {
    let own = own_place();
    let n = i64::try_from(n).unwrap_or(i64::MAX);
    let connections = |node: &Node| node.facts.settings.max_connections;
    for (i, node) in nodes.iter().enumerate() {
        let others = nodes.iter().filter(|other| other.id != node.id);
        // Nodes that could not be asked are taken to be like this one.
        let unknown = n - i64::try_from(nodes.len()).unwrap_or(n);
        let peers = others.map(connections).sum::<i64>() + unknown * connections(node);
        for problem in requirements::problems(&node.facts, n, peers) {
            problems.add(node.id, &problem);
        }
        let twin = nodes[..i].iter().find(|other| other.facts.server == node.facts.server);
        if let Some(twin) = twin {
            problems.other(format!("node {} and node {} are the same server", twin.id, node.id));
        }
        let Some((server, database, major, encoding)) = &own else {
            continue;
        };
        if node.id == 1 && (&node.facts.server, &node.facts.database) != (server, database) {
            let line = "node 1: my_conninfo does not lead to this server and database";
            problems.other(line.to_owned());
        }
        if node.facts.major != *major {
            problems.other(format!(
                "node {}: it runs PostgreSQL {}, must be {major} like this node",
                node.id, node.facts.major
            ));
        }
        if &node.facts.encoding != encoding {
            problems.other(format!(
                "node {}: its database is encoded in {}, must be {encoding} like this one",
                node.id, node.facts.encoding
            ));
        }
    }
}

/// Server, database, version and encoding of this session.
fn own_place() -> Option<(String, String, i32, String)> {
    // Not Spi::get_one: it assigns a transaction number, for whose end slots would wait.
    let row = Spi::connect(|client| {
        let query = format!(
            "SELECT {}, pg_catalog.current_database()::text, \
             pg_catalog.current_setting('server_version_num')::int / 10000, \
             pg_catalog.getdatabaseencoding()::text",
            requirements::SERVER
        );
        let rows = client.select(query.as_str(), Some(1), &[])?;
        let row = rows.first();
        let text = |i| row.get::<String>(i);
        Ok::<_, spi::Error>((text(1)?, text(2)?, row.get::<i32>(3)?, text(4)?))
    });
    let (server, database, major, encoding) = row.ok()?;
    Some((server?, database?, major?, encoding?))
}

/// Why the cluster could not be made although every server seemed ready.
enum Failure {
    Node(usize, ConnError),
    Problems(Problems),
}

fn at(node: usize) -> impl Fn(ConnError) -> Failure {
    move |error| Failure::Node(node, error)
}

/// Runs a statement on every node.
fn on_each(
    nodes: &mut [Node],
    sql: &str,
    params: impl Fn(&Node) -> Vec<String>,
) -> Result<Vec<Rows>, Failure> {
    let one = |node: &mut Node| {
        let params = params(node);
        let params: Vec<_> = params.iter().map(String::as_str).collect();
        node.conn.query(sql, &params).map_err(at(node.id))
    };
    nodes.iter_mut().map(one).collect()
}

/// Makes the cluster. Returns the tables of this node that have no primary key.
fn make(nodes: &mut [Node]) -> Result<Vec<String>, Failure> {
    for node in nodes.iter_mut().filter(|node| !node.facts.created) {
        node.created = true;
        let done = node.conn.query("CREATE EXTENSION multimaster", &[]);
        done.map_err(at(node.id))?;
    }
    check_paths(nodes)?;
    // Left by an attempt that was interrupted together with its server.
    on_each(nodes, DROP_SLOTS, |_| Vec::new())?;
    let peers: Vec<usize> = nodes.iter().map(|node| node.id).collect();
    for node in nodes.iter_mut() {
        for peer in peers.iter().filter(|peer| **peer != node.id) {
            let create = "SELECT pg_catalog.pg_create_logical_replication_slot(\
                          $1, 'multimaster', false, true)";
            let done = node.conn.query(create, &[&format!("mtm_slot_{peer}")]);
            done.map_err(at(node.id))?;
        }
    }
    on_each(nodes, "BEGIN", |_| Vec::new())?;
    let without_key = prepare(nodes)?;
    on_each(nodes, "COMMIT", |_| Vec::new())?;
    on_each(nodes, "SELECT mtm.activate_node()", |_| Vec::new())?;
    Ok(without_key)
}

/// Lets every peer connect to every other node as its workers will.
fn check_paths(nodes: &mut [Node]) -> Result<(), Failure> {
    let mut problems = Problems::default();
    let places: Vec<_> = nodes
        .iter()
        .map(|node| (node.id, node.conninfo.clone(), node.facts.server.clone()))
        .collect();
    for node in nodes.iter_mut().filter(|node| node.id != 1) {
        for (id, conninfo, server) in places.iter().filter(|(id, ..)| *id != node.id) {
            let check = "SELECT mtm.check_connection($1, $2)";
            let answer = node.conn.query(check, &[conninfo, server]);
            let answer = answer.map_err(at(node.id))?;
            if let Some(why) = answer.into_iter().flatten().next().flatten() {
                problems.connections = true;
                problems.other(format!("from node {} to node {id}: {why}", node.id));
            }
        }
    }
    if problems.lines.is_empty() { Ok(()) } else { Err(Failure::Problems(problems)) }
}

fn prepare(nodes: &mut [Node]) -> Result<Vec<String>, Failure> {
    let cluster_id = sqlrun::random_u64().to_string();
    let conninfos: Vec<_> = nodes.iter().map(|node| node.conninfo.clone()).collect();
    let places: Vec<_> = (0..nodes.len()).map(|i| format!("${}", i + 3)).collect();
    let call = format!(
        "SELECT pg_catalog.unnest(mtm.prepare_node($1, $2, ARRAY[{}]::text[]))",
        places.join(", ")
    );
    let tables = on_each(nodes, &call, |node| {
        let mut params = vec![cluster_id.clone(), node.id.to_string()];
        params.extend(conninfos.iter().cloned());
        params
    })?;
    let own = tables.into_iter().next().unwrap_or_default();
    Ok(own.into_iter().flatten().flatten().collect())
}

const DROP_SLOTS: &str = "SELECT pg_catalog.pg_drop_replication_slot(slot_name) \
     FROM pg_catalog.pg_replication_slots \
     WHERE plugin = 'multimaster' AND slot_name ~ '^mtm_slot_[0-9]+$'";

/// Peers that have begun to stream are sent away first.
const FREE_SLOTS: &str = "SELECT pg_catalog.pg_terminate_backend(active_pid, 5000) \
     FROM pg_catalog.pg_replication_slots \
     WHERE plugin = 'multimaster' AND slot_name ~ '^mtm_slot_[0-9]+$' AND active";

/// Whether a peer answers at this address, to both kinds of connection.
///
/// For `mtm.init_cluster` only; returns what is wrong.
#[pg_extern]
fn check_connection(conninfo: &str, server: &str) -> Option<String> {
    super::require_superuser("connect nodes of a multimaster cluster");
    let found = connect(conninfo, &[]).and_then(|mut conn| {
        let rows = conn.query(&format!("SELECT {}", requirements::SERVER), &[])?;
        replication(conninfo)?;
        Ok(rows.into_iter().flatten().next().flatten())
    });
    match found {
        Ok(Some(found)) if found == server => None,
        Ok(_) => Some("the connection string leads to another server from there".to_owned()),
        Err(error) => Some(error.to_string()),
    }
}

/// Takes back what `make` did, as far as the nodes can be reached.
fn undo(nodes: &mut [Node]) {
    for node in nodes.iter_mut() {
        // Only an interrupted statement still runs; if the connection is broken, the next says so.
        let _ = node.conn.abandon();
    }
    let mut all = |what: &str, sql: &str, which: fn(&Node) -> bool| {
        for node in nodes.iter_mut().filter(|node| which(node)) {
            if let Err(error) = node.conn.query(sql, &[]) {
                pgrx::warning!("node {}: could not {what}: {error}", node.id);
            }
        }
    };
    all("roll back", "ROLLBACK", |_| true);
    all("remove the configuration", UNCONFIGURE, |_| true);
    all("stop streaming", FREE_SLOTS, |_| true);
    all("drop slots", DROP_SLOTS, |_| true);
    all("drop the extension", "DROP EXTENSION IF EXISTS multimaster", |node| node.created);
}

/// The extension may not be there yet.
const UNCONFIGURE: &str = "DO $$ BEGIN \
     IF EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'multimaster') THEN \
     PERFORM mtm.unconfigure_node(); END IF; END $$";
