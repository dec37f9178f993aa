//! Consensus on the outcome of one transaction.
#![forbid(unsafe_code)]

pub mod commit;
