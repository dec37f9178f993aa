//! A client's two-phase transactions: prepared on one node, ended from any, as a transaction
//! manager does that survives its servers.

use super::clients::{Client, Failure, PATIENCE, at_commit};
use super::servers::Servers;
use crate::server::{DATABASE, Server};
use crate::session::{Session, SqlError};
use crate::wait::until;
use anyhow::Result;
use std::time::{Duration, Instant};

/// How long a client cares about a PREPARE that was not answered, and of which a node knows nothing.
const UNCERTAIN: Duration = Duration::from_secs(4);
/// `undefined_object`: no prepared transaction has this name.
const NO_SUCH: &str = "42704";

/// The name under which the transfer with this token is prepared.
fn name(token: u64) -> String {
    format!("torture-{token}")
}

/// Whether the error leaves open what has happened.
fn is_open(error: &SqlError) -> bool {
    error.state.is_empty() || error.state.starts_with("08")
}

impl Client<'_> {
    /// PREPARE TRANSACTION, and the second phase wherever it is done first. The client's own
    /// transaction is at its end.
    pub(super) fn two_phases(&mut self, session: &Session, token: u64) -> Result<(), Failure> {
        let name = name(token);
        match session.run(&format!("PREPARE TRANSACTION '{name}'")) {
            Ok(_) => {}
            Err(error) if is_open(&error) => return Err(self.give_up(&name, error)),
            Err(error) => return Err(at_commit(error)),
        }
        let commit = !self.dice.once_in(5);
        let end = if commit { "COMMIT" } else { "ROLLBACK" };
        let sql = format!("{end} PREPARED '{name}'");
        let deadline = Instant::now() + PATIENCE;
        let mut open = None;
        // Its own session first, in most cases.
        let mut result =
            if self.dice.once_in(3) { self.elsewhere(&sql) } else { session.run(&sql).map(drop) };
        loop {
            match result {
                Ok(()) => break,
                Err(error) if error.state == NO_SUCH => {
                    if open.is_none() {
                        self.orders.wrong(format!("{sql}: {error}, which was prepared"));
                    }
                    break;
                }
                Err(error) if is_open(&error) => open = Some(error),
                Err(_) => {}
            }
            if Instant::now() > deadline {
                let error = open.unwrap_or_else(|| lost("the second phase was never done"));
                return Err(at_commit(error));
            }
            std::thread::sleep(Duration::from_millis(self.dice.between(50, 250)));
            result = self.elsewhere(&sql);
        }
        if commit { Ok(()) } else { Err(at_commit(rolled_back())) }
    }

    /// Runs one statement on some node.
    fn elsewhere(&mut self, sql: &str) -> Result<(), SqlError> {
        let at = self.dice.below(self.nodes.len() as u64);
        let server: &Server = &self.nodes[usize::try_from(at).expect("a node")];
        let session = server.connect_as(DATABASE, "torture")?;
        session.patience(PATIENCE / 3).run(sql).map(drop)
    }

    /// Nobody said whether it is prepared: rolls it back if it is. Who leaves it would leave its
    /// locks, too, so a cluster that does not answer is asked again.
    fn give_up(&mut self, name: &str, error: SqlError) -> Failure {
        let start = Instant::now();
        let mut not_there = None;
        let is_over = |since: &Option<Instant>| {
            since.is_some_and(|since| since.elapsed() > UNCERTAIN) || start.elapsed() > 2 * PATIENCE
        };
        while !is_over(&not_there) {
            match self.elsewhere(&format!("ROLLBACK PREPARED '{name}'")) {
                Ok(()) => return at_commit(rolled_back()),
                // It may still be on its way.
                Err(error) if error.state == NO_SUCH => {
                    not_there.get_or_insert_with(Instant::now);
                }
                Err(_) => {}
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        at_commit(error)
    }
}

/// The client itself wanted it so.
fn rolled_back() -> SqlError {
    SqlError { state: "40000".to_owned(), ..lost("rolled back by its client") }
}

fn lost(message: &str) -> SqlError {
    SqlError {
        state: String::new(),
        message: message.to_owned(),
        detail: String::new(),
        hint: String::new(),
    }
}

/// Rolls back what clients could not end. For quiet points.
///
/// # Errors
/// When something cannot be rolled back within `limit`.
pub(super) fn clean(servers: &Servers, limit: Duration) -> Result<()> {
    let node = &servers.cluster.nodes[0];
    until("what clients have left prepared is rolled back", limit, || {
        let session = node.connect_as(DATABASE, "probe")?;
        let left = session
            .run("SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE gid LIKE 'torture-%'")?;
        for gid in left.into_iter().flatten().flatten() {
            session.run(&format!("ROLLBACK PREPARED '{gid}'"))?;
        }
        Ok(Some(()))
    })
}
