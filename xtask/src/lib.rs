//! The project's one command: it starts real clusters, shows them, tests them and measures them.
//!
//! Everything here drives stock `PostgreSQL` servers from outside, as a user would: through
//! `initdb`, `pg_ctl`, signals and SQL. Nothing in this crate knows how a commit works.
#![forbid(unsafe_code)]

pub mod artefacts;
pub mod baseline;
pub mod bench;
pub mod cli;
pub mod cluster;
pub mod demo;
pub mod host;
pub mod layers;
pub mod packages;
pub mod process;
pub mod server;
pub mod session;
pub mod soak;
pub mod suite;
pub mod table;
pub mod torture;
pub mod wait;
