#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod announcement;
pub mod assembly;
pub mod ddl;
pub mod early;
pub mod journal;
pub mod plan;
pub mod position;
pub mod progress;
pub mod relation_cache;
pub mod row;
pub mod stream;
pub mod syncpoint;
