//! Finding and signalling the processes of one server.
//!
//! A server's processes are known by their working directory, which is its data directory: that
//! finds children whose postmaster is already dead, and it can never hit somebody else's process.

use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::time::Duration;

/// Scheduling state of a process as `/proc` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Running or sleeping.
    Alive,
    /// Stopped by a signal.
    Frozen,
}

/// The live processes (zombies do not count) working in `data`.
#[must_use]
pub fn of_server(data: &Path) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut found: Vec<i32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            let here = std::fs::read_link(format!("/proc/{pid}/cwd"));
            here.is_ok_and(|cwd| cwd == data) && state(*pid).is_some() && is_postgres(*pid)
        })
        .collect();
    found.sort_unstable();
    found
}

fn is_postgres(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm"))
        .is_ok_and(|name| name.starts_with("postgres"))
}

/// The state of `pid`, or nothing if it is gone or only a zombie.
#[must_use]
pub fn state(pid: i32) -> Option<State> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let letter = stat.rsplit_once(") ")?.1.chars().next()?;
    match letter {
        'Z' | 'X' => None,
        'T' | 't' => Some(State::Frozen),
        _ => Some(State::Alive),
    }
}

/// Sends `signal` to every process of the server, again until none is left out: a postmaster that
/// has not got the signal yet may fork meanwhile.
pub fn signal_all(data: &Path, signal: Signal) -> Vec<i32> {
    let mut done = Vec::new();
    loop {
        let new: Vec<i32> = of_server(data).into_iter().filter(|pid| !done.contains(pid)).collect();
        if new.is_empty() {
            return done;
        }
        for pid in new {
            // A process that went away meanwhile needs no signal.
            let _ = kill(Pid::from_raw(pid), signal);
            done.push(pid);
        }
    }
}

/// Waits until `pids` are gone: not only dead, but collected by their parent. A dead process that
/// has not been collected still has its number, and a new postmaster takes it for a live one.
///
/// # Errors
/// When one is still alive after `limit`; dead ones that nobody collects are left behind.
pub fn wait_gone(pids: &[i32], limit: Duration) -> Result<()> {
    let there = |pid: &i32| Path::new(&format!("/proc/{pid}")).exists();
    let waited = crate::wait::until("all processes of the server are gone", limit, || {
        Ok((!pids.iter().any(there)).then_some(()))
    });
    if pids.iter().any(|pid| state(*pid).is_some()) { waited } else { Ok(()) }
}

/// Resident private memory of all processes of the server, in bytes.
#[must_use]
pub fn private_memory(data: &Path) -> u64 {
    of_server(data)
        .into_iter()
        .filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok())
        .map(|text| {
            let kilobytes =
                |line: &str| line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok());
            text.lines()
                .filter(|line| line.starts_with("Private_"))
                .filter_map(kilobytes)
                .sum::<u64>()
                * 1024
        })
        .sum()
}
