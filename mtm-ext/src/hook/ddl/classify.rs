//! Where a utility statement acts.

/// Where a utility statement acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// On this node only; what it does to rows travels as rows.
    Local,
    /// It changes rows, and the log says which.
    Rows,
    /// On every node.
    Everywhere,
}

/// Statements that act on one node, by the server's command tag. Whatever is not here goes to
/// every node: an unknown statement that fails on a peer is seen, one that is missing there is not.
const LOCAL: &[&str] = &[
    // Transactions, sessions and cursors.
    "BEGIN",
    "START TRANSACTION",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT",
    "RELEASE",
    "PREPARE TRANSACTION",
    "COMMIT PREPARED",
    "ROLLBACK PREPARED",
    "SET",
    "RESET",
    "SHOW",
    "SET CONSTRAINTS",
    "DISCARD",
    "DISCARD ALL",
    "DISCARD PLANS",
    "DISCARD SEQUENCES",
    "DISCARD TEMP",
    "PREPARE",
    "EXECUTE",
    "DEALLOCATE",
    "DEALLOCATE ALL",
    "DECLARE CURSOR",
    "CLOSE",
    "CLOSE CURSOR",
    "CLOSE CURSOR ALL",
    "FETCH",
    "MOVE",
    "LISTEN",
    "UNLISTEN",
    "NOTIFY",
    "LOAD",
    "LOCK TABLE",
    "EXPLAIN",
    // What they execute is captured, statement by statement and row by row.
    "DO",
    "CALL",
    "COPY",
    "COPY FROM",
    // Maintenance of one server's files.
    "VACUUM",
    "ANALYZE",
    "CLUSTER",
    "REINDEX",
    "CHECKPOINT",
    "ALTER SYSTEM",
    "CREATE DATABASE",
    "DROP DATABASE",
    "CREATE TABLESPACE",
    "ALTER TABLESPACE",
    "DROP TABLESPACE",
    // A subscription owns a slot on its publisher and pulls rows: one node does it for all.
    "CREATE SUBSCRIPTION",
    "ALTER SUBSCRIPTION",
    "DROP SUBSCRIPTION",
];

/// Where a statement with this command tag acts.
pub(crate) fn scope(tag: &str) -> Scope {
    if tag == "TRUNCATE TABLE" {
        Scope::Rows
    } else if LOCAL.contains(&tag) {
        Scope::Local
    } else {
        Scope::Everywhere
    }
}
