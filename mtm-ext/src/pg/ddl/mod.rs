//! DDL: captured on its origin as text with its context, executed on the peers.
//!
//! A captured statement is announced by a transactional logical message *before* it runs, so it
//! stands in the log in order with the rows around it and vanishes with its subtransaction.
//! Statements inside functions, DO blocks and event triggers are captured where they run; what
//! the server itself derives from a statement (elements of CREATE SCHEMA, the sequence of a
//! serial column, the script of an extension) is not, since the peers derive it again.
//!
//! Rows that a statement makes are shipped, never computed twice: see `mtm_logrep::ddl::Rows`.

mod apply;
mod capture;
mod context;
mod hook;
mod local;
mod message;
mod missing;
pub(crate) mod parse;
mod prepared;
mod relations;
mod remote;
mod rewrite;
mod role;
mod session;
mod setval;
mod table_as;
mod temporary;

pub(crate) use apply::apply;
pub(crate) use hook::init;
pub(crate) use local::{is_local, make_local};
pub(crate) use message::{emit, note_unchecked};
pub(crate) use missing::set as set_missing_value;
pub(crate) use relations::Touched;
pub(crate) use session::{mark_replicable, replicates, share};

/// As [`identify_rows`] for all tables of the database. Returns the names of those that needed it.
pub(crate) fn identify_all_rows() -> Vec<String> {
    let tables = pgrx::Spi::connect(|client| {
        let rows = client.select(TABLES, None, &[])?;
        rows.map(|row| Ok((row.get::<pgrx::pg_sys::Oid>(1)?, row.get::<String>(2)?)))
            .collect::<Result<Vec<_>, pgrx::spi::Error>>()
    });
    let tables = tables.unwrap_or_else(|e| pgrx::error!("tables of the database: {e}"));
    let mut needed = Vec::new();
    for (table, name) in tables {
        let Some((table, name)) = table.zip(name) else { continue };
        // SAFETY: inside a transaction that uses no table.
        if unsafe { crate::pg::rows::ensure_replica_identity(table) } {
            needed.push(name);
        }
    }
    needed
}

const TABLES: &str = "SELECT oid, oid::pg_catalog.regclass::text FROM pg_catalog.pg_class \
     WHERE relkind IN ('r', 'm') AND relpersistence = 'p' AND oid >= 16384 ORDER BY 2";

/// Tables among these that nothing identifies rows of get REPLICA IDENTITY FULL, on every node by
/// itself: PostgreSQL would log no old row for them, and nobody could tell which one was meant.
fn identify_rows(relations: &[pgrx::pg_sys::Oid], warn: bool) {
    for &relation in
        relations.iter().filter(|relation| crate::pg::xact::is_logged_table(**relation))
    {
        // SAFETY: after the statement, inside its transaction.
        if unsafe { crate::pg::rows::ensure_replica_identity(relation) } && warn {
            let name = crate::pg::sqlrun::relation_name(relation);
            let (detail, hint) = if crate::guc::IGNORE_TABLES_WITHOUT_PK.get() {
                let detail = "Its rows stay on the node where they are written, as \
                     \"multimaster.ignore_tables_without_pk\" says.";
                (detail, "Add a primary key to replicate it.")
            } else {
                let detail = "Its whole rows identify changes on other nodes, which is slow.";
                (detail, "Add a primary key.")
            };
            crate::report::warning(format!("table \"{name}\" has no primary key"), detail, hint);
        }
    }
}
