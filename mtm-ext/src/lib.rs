//! The PostgreSQL extension `multimaster`.
mod ffi;
mod pg;

pgrx::pg_module_magic!();
