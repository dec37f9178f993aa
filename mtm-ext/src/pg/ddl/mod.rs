//! DDL: captured on its origin as text with its context, executed on the peers.
//!
//! A captured statement is announced by a transactional logical message *before* it runs, so it
//! stands in the log in order with the rows around it and vanishes with its subtransaction.
//! Statements inside functions, DO blocks and event triggers are captured where they run; what
//! the server itself derives from a statement (elements of CREATE SCHEMA, the sequence of a
//! serial column, the script of an extension) is not, since the peers derive it again.
//!
//! Rows that a statement makes are shipped, never computed twice: see `mtm_logrep::ddl::Rows`.

mod apply;
mod capture;
mod context;
mod hook;
mod message;
pub(crate) mod parse;
mod prepared;
mod relations;
mod rewrite;
mod session;
mod setval;
mod table_as;
mod temporary;

pub(crate) use apply::apply;
pub(crate) use hook::init;
pub(crate) use message::emit;
pub(crate) use session::{mark_replicable, replicates, share};
