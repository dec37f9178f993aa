//! What travels from one node's write-ahead log to its peers, and how it is taken in.
#![forbid(unsafe_code)]

pub mod announcement;
pub mod ddl;
pub mod early;
pub mod row;
pub mod stream;
