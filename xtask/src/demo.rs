//! The demonstration.
use anyhow::Result;
/// Options of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub struct Options {}
/// Runs the demonstration.
///
/// # Errors
/// When anything is not as it should be.
pub fn run(_options: &Options) -> Result<()> {
    anyhow::bail!("not written yet")
}
