//! The PostgreSQL extension `multimaster`.
pgrx::pg_module_magic!();
