//! The only unsafe code of the project: what PostgreSQL offers, behind safe functions.
//!
//! Every `SAFETY:` names the promise of PostgreSQL that is relied on. No other module may use
//! `unsafe`, and nothing here decides anything about the protocol.
#![allow(unsafe_code)]
#![allow(non_snake_case, reason = "functions of PostgreSQL keep their names")]

pub mod access;
pub mod bgworker;
mod chain;
pub mod compat;
pub mod conn;
pub mod ddl;
pub mod lockwait;
pub mod message;
pub mod opening;
pub mod pgflags;
pub mod pipe;
pub mod plugin;
mod plugin_marks;
mod plugin_options;
mod plugin_recovery;
mod plugin_stream;
pub mod proc;
pub mod rows;
pub mod segment;
pub mod sequences;
pub mod shmem;
pub mod sqlrun;
pub mod sys;
pub mod twophase;
pub mod waitset;
pub mod wal;
pub mod walscan;
pub mod walwake;
pub mod xact;
