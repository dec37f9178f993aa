//! The only unsafe code: PostgreSQL seen from Rust.
pub mod compat;
pub mod rows;
