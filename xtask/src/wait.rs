//! Waiting with a deadline, and showing that something is going on.

use anyhow::{Result, bail};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Asks `probe` until it answers with a value.
///
/// # Errors
/// After `limit`, with what `probe` said last.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let answer = probe();
        if let Ok(Some(value)) = answer {
            return Ok(value);
        }
        if start.elapsed() > limit {
            match answer {
                Err(error) => {
                    return Err(
                        error.context(format!("not within {:.0} s: {what}", limit.as_secs_f64()))
                    );
                }
                Ok(_) => bail!("not within {:.0} s: {what}", limit.as_secs_f64()),
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Does one step of a longer job and says on standard error how long it took.
///
/// # Errors
/// What `job` says.
pub fn step<T>(what: &str, job: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let mut out = std::io::stderr();
    let live = out.is_terminal();
    let mark = |out: &mut std::io::Stderr, text: String| {
        let _ = write!(out, "{text}");
        let _ = out.flush();
    };
    if live {
        mark(&mut out, format!("  .. {what}"));
    }
    let result = job();
    let word = if result.is_ok() { "ok" } else { "!!" };
    let lead = if live { "\r" } else { "" };
    mark(&mut out, format!("{lead}  {word} {what} ({:.1} s)\n", start.elapsed().as_secs_f64()));
    result
}
