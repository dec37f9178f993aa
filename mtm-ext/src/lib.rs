//! The PostgreSQL extension `multimaster`: translation between PostgreSQL and the machines of the
//! pure crates. If a branch depends on the state of the protocol, it belongs there.
#![deny(unsafe_code)]
#![allow(
    unreachable_pub,
    reason = "a cdylib has no Rust users; `pub` means its module's interface"
)]

mod api;
mod cluster;
mod config;
mod dmq;
mod durable;
mod ffi;
mod guc;
mod health;
mod hook;
mod machine;
mod pg;
mod report;
mod users;
mod worker;

pgrx::pg_module_magic!();

/// Called by PostgreSQL when the library is loaded.
#[allow(unsafe_code, reason = "PostgreSQL finds this function by its name")]
#[pgrx::pg_guard]
extern "C-unwind" fn _PG_init() {
    if !pg::bgworker::preloading() {
        // CREATE EXTENSION and walsenders of another configuration get a hint, not a crash.
        return;
    }
    pg::bgworker::quiet_backtraces();
    guc::init();
    pg::shmem::init();
    pg::xact::init();
    pg::ddl::init();
    hook::init();
    worker::init();
}
