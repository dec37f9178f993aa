//! The atomics that rings and mailboxes are made of: the real ones, or loom's under
//! `--cfg loom`, so that the code the checker explores is the code that runs.

#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU64, Ordering};
#[cfg(loom)]
pub use loom::sync::atomic::{AtomicU64, Ordering};
