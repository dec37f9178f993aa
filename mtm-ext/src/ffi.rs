//! What `#[pg_guard]` on an `extern` block expects to find in the crate that uses it.
pub(crate) use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
