//! What happens inside users' transactions.

pub mod commit;

/// Installs the hooks. Only in `_PG_init` under `shared_preload_libraries`.
pub fn init() {}

/// Whether rows of this table stay on this node.
pub fn is_local(_relation: pgrx::pg_sys::Oid) -> bool {
    false
}

/// Executes a captured statement of another node.
pub fn apply_ddl(_payload: &[u8]) {
    pgrx::error!("DDL from another node cannot be applied by this version");
}
