//! What happens inside users' transactions.

pub mod access;
pub mod commit;
pub mod ddl;
pub mod twophase;

/// Installs the hooks. Only in `_PG_init` under `shared_preload_libraries`.
pub fn init() {
    crate::pg::access::init();
}

/// Whether rows of this table stay on this node.
pub fn is_local(relation: pgrx::pg_sys::Oid) -> bool {
    crate::pg::ddl::is_local(relation)
}

/// Executes a captured statement of another node.
pub fn apply_ddl(payload: &[u8]) {
    crate::pg::sqlrun::with_snapshot(|| crate::pg::ddl::apply(payload));
}
