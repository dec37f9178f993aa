//! What a check has in its hands: the cluster and short ways to ask all nodes.

use crate::cluster::{Cluster, Order};
use crate::server::Life;
use crate::session::{Rows, Session, SqlError};
use anyhow::{Context, Result, bail, ensure};
use std::sync::Mutex;
use std::time::Duration;

/// The cluster under test.
#[derive(Debug)]
pub struct Arena {
    /// The cluster.
    pub cluster: Cluster,
    /// Lengths of the nodes' logs when the running check began.
    marks: Mutex<Vec<u64>>,
}

impl Arena {
    /// Takes a running cluster.
    #[must_use]
    pub const fn new(cluster: Cluster) -> Self {
        Self { cluster, marks: Mutex::new(Vec::new()) }
    }

    /// Numbers of all nodes.
    #[must_use]
    pub fn ids(&self) -> Vec<usize> {
        self.cluster.nodes.iter().map(|node| node.id).collect()
    }

    /// A new session on a node.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn on(&self, id: usize) -> Result<Session> {
        self.cluster.session(id)
    }

    /// Runs statements in a session of their own on a node.
    ///
    /// # Errors
    /// With the node and the statement.
    pub fn run(&self, id: usize, sql: &str) -> Result<Rows> {
        let session = self.on(id)?;
        session.run(sql).with_context(|| format!("on node {id}: {}", shorten(sql)))
    }

    /// The answer to `query` in one line: columns joined by `,`, rows by `;`, NULL as `~`.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn ask(&self, id: usize, query: &str) -> Result<String> {
        Ok(flat(&self.run(id, query)?))
    }

    /// Asks all nodes at this very moment; they must agree.
    ///
    /// # Errors
    /// With the answers, when they differ.
    pub fn same(&self, query: &str) -> Result<String> {
        let mut answers = Vec::new();
        for id in self.ids() {
            answers.push((id, self.ask(id, query)?));
        }
        let first = answers[0].1.clone();
        if answers.iter().all(|(_, answer)| *answer == first) {
            return Ok(first);
        }
        let all: Vec<String> = answers
            .iter()
            .map(|(id, answer)| format!("\n  node {id}: {}", shorten(answer)))
            .collect();
        bail!("the nodes differ on {}{}", shorten(query), all.concat())
    }

    /// Asks all nodes at this very moment; all must give the expected answer.
    ///
    /// # Errors
    /// When they do not.
    pub fn expect(&self, query: &str, expected: &str) -> Result<()> {
        let answer = self.same(query)?;
        ensure!(
            answer == expected,
            "{query}\n  expected {expected}\n  but got  {}",
            shorten(&answer)
        );
        Ok(())
    }

    /// Does two things at the same time.
    ///
    /// # Errors
    /// Never by itself; a panic goes through.
    pub fn both<A: Send, B: Send>(
        one: impl FnOnce() -> A + Send,
        two: impl FnOnce() -> B + Send,
    ) -> (A, B) {
        std::thread::scope(|scope| {
            let thread = scope.spawn(one);
            let second = two();
            let first = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (first, second)
        })
    }

    /// Writes and reads back on every node.
    ///
    /// # Errors
    /// When a node cannot write.
    pub fn can_write(&self) -> Result<()> {
        for id in self.ids() {
            let session = self.on(id)?.patience(Duration::from_secs(10));
            session
                .run(
                    "CREATE TABLE IF NOT EXISTS public.pulse(node int PRIMARY KEY, beat bigint);
                     SET client_min_messages = warning",
                )
                .and_then(|_| {
                    session.run(&format!(
                        "INSERT INTO public.pulse VALUES ({id}, 1)
                         ON CONFLICT (node) DO UPDATE SET beat = pulse.beat + 1"
                    ))
                })
                .with_context(|| format!("node {id} cannot write"))?;
        }
        Ok(())
    }

    /// Makes the cluster usable again after a failed check: as it is if it can write, restarted
    /// if it cannot, a new one if nothing else helps.
    ///
    /// # Errors
    /// When not even a new cluster starts.
    pub fn recover(&mut self, order: &Order) -> Result<()> {
        for node in &self.cluster.nodes {
            match node.life() {
                Life::Frozen => node.thaw(),
                Life::Stopped => drop(node.start()),
                Life::Running => {}
            }
        }
        self.roll_back_users_prepared();
        if self.can_write().is_ok() {
            return Ok(());
        }
        println!("    the cluster cannot write any more: restarting it");
        self.cluster.each(crate::server::Server::kill)?;
        let restarted = self.cluster.each(crate::server::Server::start);
        if restarted
            .and_then(|()| self.cluster.wait_online())
            .and_then(|()| self.can_write())
            .is_ok()
        {
            return Ok(());
        }
        println!("    that does not help: a new cluster");
        for node in &self.cluster.nodes {
            let kept = self.cluster.dir.with_extension(format!("node{}.log", node.id));
            let _ = std::fs::copy(&node.log, &kept);
            println!("    old log: {}", kept.display());
        }
        Cluster::clear(&self.cluster.dir)?;
        self.cluster = Cluster::create(order)?;
        Ok(())
    }

    /// A failed check may have left its own two-phase transactions; they are not ours to keep.
    fn roll_back_users_prepared(&self) {
        for id in self.ids() {
            let Ok(session) = self.on(id) else { continue };
            let found = session.run("SELECT gid FROM pg_prepared_xacts WHERE gid LIKE 'user-%'");
            for gid in found.into_iter().flatten().flatten().flatten() {
                let _ = session.run(&format!("ROLLBACK PREPARED '{gid}'"));
            }
        }
    }

    /// Remembers where the logs end now.
    pub fn mark_logs(&self, _check: &str) {
        let lengths = self
            .cluster
            .nodes
            .iter()
            .map(|node| std::fs::metadata(&node.log).map_or(0, |m| m.len()));
        *self.marks.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = lengths.collect();
    }

    /// The remarkable lines the nodes have logged since the mark.
    #[must_use]
    pub fn log_extract(&self) -> String {
        let marks = self.marks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let mut out = String::new();
        for (node, mark) in self.cluster.nodes.iter().zip(marks) {
            let bytes = std::fs::read(&node.log).unwrap_or_default();
            let from = usize::try_from(mark).unwrap_or(0).min(bytes.len());
            let text = String::from_utf8_lossy(&bytes[from..]).into_owned();
            let remarkable = |line: &&str| {
                ["ERROR", "FATAL", "PANIC", "WARNING", "DETAIL", "TRAP", "terminated"]
                    .iter()
                    .any(|word| line.contains(word))
            };
            let lines: Vec<&str> = text.lines().filter(remarkable).collect();
            for line in &lines[lines.len().saturating_sub(8)..] {
                out += &format!("    node {} log: {}\n", node.id, shorten(line));
            }
        }
        out
    }
}

/// Rows in one line: columns joined by `,`, rows by `;`, NULL as `~`.
#[must_use]
pub fn flat(rows: &Rows) -> String {
    let cell = |cell: &Option<String>| cell.clone().unwrap_or_else(|| "~".into());
    let row = |row: &Vec<Option<String>>| row.iter().map(cell).collect::<Vec<_>>().join(",");
    rows.iter().map(row).collect::<Vec<_>>().join(";")
}

/// A text short enough for a message.
#[must_use]
pub fn shorten(text: &str) -> String {
    let one_line: Vec<&str> = text.split_whitespace().collect();
    let text = one_line.join(" ");
    if text.chars().count() <= 300 {
        text
    } else {
        format!("{} ...", text.chars().take(300).collect::<String>())
    }
}

/// Whether an error means "try the transaction again".
#[must_use]
pub fn is_retryable(error: &SqlError) -> bool {
    error.state == "40001" || error.state == "40P01"
}
