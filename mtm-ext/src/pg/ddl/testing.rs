//! A way in for tests of this module alone.

/// Applies a payload as an apply worker would.
#[pgrx::pg_extern]
fn mtm_ddl_apply(payload: &[u8]) {
    super::apply(payload);
}
