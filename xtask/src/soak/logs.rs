//! What the nodes have logged.

use crate::suite::arena::Arena;
use crate::table::Table;
use std::collections::BTreeMap;

/// What a load like this makes a server say, as beginnings of messages.
const EXPECTED: &[&str] = &[
    // Two nodes or two clients want the same row or lock: the client is told to try again.
    "ERROR: could not serialize access due to",
    "ERROR: deadlock detected",
    // The same, where it was found by an apply worker; its transaction's client was told.
    "ERROR: canceling statement due to user request",
    "ERROR: insert or update on table \"soak_child\" violates foreign key",
    "ERROR: update or delete on table \"soak_parent\" violates foreign key",
    // The clients roll back after every error, whether it was in a transaction block or not.
    "WARNING: there is no transaction in progress",
    // Once per table.
    "WARNING: table \"soak_nokey\" has no primary key",
    "WARNING: table \"soak_as\" has no primary key",
];

/// Lengths of the nodes' logs.
pub(super) fn lengths(arena: &Arena) -> Vec<u64> {
    let length = |log| std::fs::metadata(log).map_or(0, |metadata| metadata.len());
    arena.cluster.nodes.iter().map(|node| length(&node.log)).collect()
}

/// Prints each kind of message that was logged since, and returns the unexpected ones.
pub(super) fn report(arena: &Arena, from: &[u64]) -> Vec<String> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for (node, from) in arena.cluster.nodes.iter().zip(from) {
        let bytes = std::fs::read(&node.log).unwrap_or_default();
        let from = usize::try_from(*from).unwrap_or(0).min(bytes.len());
        for line in String::from_utf8_lossy(&bytes[from..]).lines() {
            if let Some(message) = remarkable(line) {
                *counts.entry(message).or_default() += 1;
            }
        }
    }
    let mut table = Table::new(["logged", "expected", "message"]);
    let mut unexpected = Vec::new();
    for (message, count) in &counts {
        let is_expected = EXPECTED.iter().any(|begin| message.starts_with(begin));
        let word = if is_expected { "yes" } else { "no" };
        table.row([count.to_string(), word.to_owned(), message.clone()]);
        if !is_expected {
            unexpected.push(format!("logged {count} times: {message}"));
        }
    }
    if !counts.is_empty() {
        println!("\n{}", table.text(""));
    }
    unexpected
}

/// The message of a line that tells of trouble, without what differs from one to the next.
fn remarkable(line: &str) -> Option<String> {
    let (level, at) = ["WARNING", "ERROR", "FATAL", "PANIC", "LOG"]
        .iter()
        .filter_map(|level| Some((*level, line.find(&format!(" {level}:  "))?)))
        .min_by_key(|(_, at)| *at)?;
    let message = &line[at + level.len() + 4..];
    let ours = message.starts_with("multimaster:") || message.contains("mtm-");
    let crash = message.contains("terminated by signal");
    (level != "LOG" || ours || crash).then(|| format!("{level}: {}", without_numbers(message)))
}

/// The text with every number written as N.
pub(super) fn without_numbers(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.trim().chars() {
        if !c.is_ascii_digit() {
            out.push(c);
        } else if !out.ends_with('N') {
            out.push('N');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_a_kind_are_one() {
        let line = "2026-01-02 03:04:05.678 UTC [99] app ERROR:  node 3 lost MTM-1-77-1";
        assert_eq!(remarkable(line).as_deref(), Some("ERROR: node N lost MTM-N-N-N"));
        assert_eq!(remarkable("2026 UTC [9] LOG:  checkpoint starting: time"), None);
        assert!(remarkable("2026 UTC [9] LOG:  multimaster: the stream broke").is_some());
        assert_eq!(remarkable("2026 UTC [9] STATEMENT:  SELECT 1"), None);
    }
}
