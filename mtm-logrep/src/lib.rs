//! Logical replication without PostgreSQL: the rows of a transaction as bytes.
#![forbid(unsafe_code)]

pub mod row;
