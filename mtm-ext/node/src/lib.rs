//! What one node does with its machines, without PostgreSQL.
#![forbid(unsafe_code)]

pub mod message;
pub mod table;
