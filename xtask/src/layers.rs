//! The layers of tests.
use anyhow::Result;
/// Options of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub struct Options {}
/// Runs them.
///
/// # Errors
/// When a test fails.
pub fn run(_options: &Options) -> Result<()> {
    anyhow::bail!("not written yet")
}
