//! `#[pg_guard]` on our own `extern` blocks expects this name in the crate.
pub(crate) use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
