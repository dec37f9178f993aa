//! What happens inside users' transactions.

pub mod commit;
pub mod ddl;

/// Installs the hooks. Only in `_PG_init` under `shared_preload_libraries`.
pub fn init() {}
