//! Clients: each does one transaction after the other on its node and records how it ended.

use super::dice::Dice;
use super::history::{Body, Level, Op, Outcome, Record, Recorder, Step};
use crate::server::{DATABASE, Server};
use crate::session::{Session, SqlError};
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Accounts in the bank.
pub const ACCOUNTS: usize = 20;
/// What each holds at the beginning.
pub const BALANCE: i64 = 1000;
/// Lists in use at a time.
const LISTS: u64 = 6;
/// Appends until the next lists are taken: lists do not grow for ever.
const APPENDS: u64 = 240;
/// No answer for that long is no answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
/// Between transactions; a saturated machine would only make every fault look the same.
const PAUSE_MS: u64 = 8;

/// What the clients are to do.
#[derive(Debug, Default)]
pub struct Orders {
    state: AtomicU8,
    resting: AtomicUsize,
    tokens: AtomicU64,
    appends: AtomicU64,
    keys: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

const RUN: u8 = 0;
const REST: u8 = 1;
const STOP: u8 = 2;

impl Orders {
    /// Work.
    pub fn run(&self) {
        self.state.store(RUN, Ordering::SeqCst);
    }

    /// Finish what is under way, disconnect and wait.
    pub fn rest(&self) {
        self.state.store(REST, Ordering::SeqCst);
    }

    /// End.
    pub fn stop(&self) {
        self.state.store(STOP, Ordering::SeqCst);
    }

    /// How many clients are resting.
    #[must_use]
    pub fn resting(&self) -> usize {
        self.resting.load(Ordering::SeqCst)
    }

    /// A client saw what must not be.
    pub fn wrong(&self, what: String) {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// What clients saw that must not be.
    #[must_use]
    pub fn seen_wrong(&self) -> Vec<String> {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A number nobody else gets.
    pub fn token(&self) -> u64 {
        self.tokens.fetch_add(1, Ordering::SeqCst) + 1
    }
}

/// Tables for the clients.
pub const TABLES: &str = "
    CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
    CREATE TABLE ledger (token bigint PRIMARY KEY, payer int, payee int, amount bigint);
    CREATE TABLE lists (key bigint PRIMARY KEY, value text NOT NULL);
    CREATE TABLE uniques (key bigint PRIMARY KEY, token bigint NOT NULL);
    CREATE TABLE probes (node int PRIMARY KEY, n int NOT NULL DEFAULT 0);
    INSERT INTO probes SELECT i FROM generate_series(1, 16) i;";

/// A client of one node.
#[derive(Debug)]
pub struct Client<'a> {
    /// Its number.
    pub number: u32,
    /// Where it works.
    pub server: &'a Server,
    /// All nodes.
    pub nodes: &'a [Server],
    /// What it is told to do.
    pub orders: &'a Orders,
    /// Where it writes down what happened.
    pub recorder: &'a Recorder,
    /// What it draws its choices from.
    pub dice: Dice,
    /// Its connection.
    pub session: Option<Session>,
}

/// Where a transaction failed.
pub(super) struct Failure {
    error: SqlError,
    /// COMMIT had been sent.
    committing: bool,
}

impl Failure {
    /// What the client may conclude. An error of the server is an answer; the classes 08 (and an
    /// answer that never came) say that the outcome is not known, but only once COMMIT was sent:
    /// before that nothing can have happened.
    fn outcome(&self) -> Outcome {
        let state = &self.error.state;
        let no_answer = state.is_empty() || state.starts_with("08");
        if no_answer && self.committing {
            Outcome::Unknown(format!("{state} {}", self.error.message))
        } else if state.is_empty() {
            Outcome::Refused("lost before COMMIT".into())
        } else {
            Outcome::Refused(state.clone())
        }
    }
}

/// A statement before COMMIT.
fn before(error: SqlError) -> Failure {
    Failure { error, committing: false }
}

/// COMMIT, or a statement that commits by itself.
pub(super) fn at_commit(error: SqlError) -> Failure {
    Failure { error, committing: true }
}

impl Client<'_> {
    /// Works until told to stop.
    pub fn work(mut self) {
        loop {
            match self.orders.state.load(Ordering::SeqCst) {
                RUN => self.one(),
                REST => {
                    self.session = None;
                    self.orders.resting.fetch_add(1, Ordering::SeqCst);
                    while self.orders.state.load(Ordering::SeqCst) == REST {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    self.orders.resting.fetch_sub(1, Ordering::SeqCst);
                }
                _ => return,
            }
        }
    }

    fn connect(&mut self) -> bool {
        if self.session.is_none() {
            let session = self.server.connect_as(DATABASE, "torture");
            self.session = session.ok().map(|session| session.patience(PATIENCE));
        }
        self.session.is_some()
    }

    fn one(&mut self) {
        if !self.connect() {
            std::thread::sleep(Duration::from_millis(self.dice.between(50, 150)));
            return;
        }
        let level = if self.dice.once_in(2) { Level::RepeatableRead } else { Level::ReadCommitted };
        let begin = self.recorder.now();
        let mut body = match self.dice.below(10) {
            0..=2 => self.transfer(),
            3 => Body::Sum { totals: Vec::new() },
            4..=7 => Body::List { steps: Vec::new() },
            _ => self.unique(),
        };
        let result = self.perform(level, &mut body);
        let end = self.recorder.now();
        let outcome = match &result {
            Ok(()) => Outcome::Acknowledged,
            Err(failure) => failure.outcome(),
        };
        self.recorder.add(Record::Op(Op {
            client: self.number,
            node: self.server.id,
            begin,
            end,
            level,
            outcome,
            body,
        }));
        let mut pause = self.dice.below(2 * PAUSE_MS);
        if let Err(failure) = result {
            self.recover(&failure);
            if failure.error.state != "40001" {
                pause += 30;
            }
        }
        std::thread::sleep(Duration::from_millis(pause));
    }

    fn transfer(&mut self) -> Body {
        let from = self.dice.below(ACCOUNTS as u64);
        let to = (from + 1 + self.dice.below(ACCOUNTS as u64 - 1)) % ACCOUNTS as u64;
        Body::Transfer {
            token: self.orders.token(),
            from: usize::try_from(from).expect("an account"),
            to: usize::try_from(to).expect("an account"),
            amount: i64::try_from(self.dice.between(1, 9)).expect("a digit"),
            two_phase: self.dice.once_in(4),
        }
    }

    /// Keys are drawn so that clients of several nodes want the same one at the same time.
    fn unique(&mut self) -> Body {
        let key = self.orders.keys.fetch_add(1, Ordering::SeqCst) / 2;
        Body::Unique { key, token: self.orders.token() }
    }

    fn perform(&mut self, level: Level, body: &mut Body) -> Result<(), Failure> {
        let session = self.session.take().expect("connected");
        let result = match body {
            Body::Unique { key, token } => {
                let sql = format!("INSERT INTO uniques VALUES ({key}, {token})");
                session.run(&sql).map(drop).map_err(at_commit)
            }
            Body::Transfer { token, two_phase: true, .. } => {
                let token = *token;
                begin(&session, level)
                    .and_then(|()| self.inside(&session, level, body))
                    .map_err(before)
                    .and_then(|()| self.two_phases(&session, token))
            }
            _ => transaction(&session, level, |session| self.inside(session, level, body)),
        };
        self.session = Some(session);
        result
    }

    fn inside(&mut self, session: &Session, level: Level, body: &mut Body) -> Result<(), SqlError> {
        match body {
            Body::Transfer { token, from, to, amount, .. } => {
                let pay =
                    format!("UPDATE accounts SET balance = balance - {amount} WHERE id = {from}");
                let get =
                    format!("UPDATE accounts SET balance = balance + {amount} WHERE id = {to}");
                session.run(&pay)?;
                session.run(&get)?;
                session
                    .run(&format!("INSERT INTO ledger VALUES ({token}, {from}, {to}, {amount})"))?;
            }
            Body::Sum { totals } => {
                let sum = "SELECT sum(balance) FROM accounts";
                totals.push(number(&session.one(sum)?));
                if level == Level::RepeatableRead {
                    // In one snapshot the halves fit together although others run between.
                    let half = |sign| format!("{sum} WHERE id % 2 {sign} 0");
                    let even = number(&session.one(&half("="))?);
                    let odd = number(&session.one(&half("<>"))?);
                    totals.push(even + odd);
                }
            }
            Body::List { steps } => {
                for _ in 0..self.dice.between(1, 4) {
                    self.list_step(session, steps)?;
                }
            }
            Body::Unique { .. } | Body::Schema { .. } => {}
        }
        Ok(())
    }

    fn list_step(&mut self, session: &Session, steps: &mut Vec<Step>) -> Result<(), SqlError> {
        let epoch = self.orders.appends.load(Ordering::SeqCst) / APPENDS;
        let key = epoch * LISTS + self.dice.below(LISTS);
        if self.dice.once_in(2) {
            self.orders.appends.fetch_add(1, Ordering::SeqCst);
            let value = self.orders.token();
            // Recorded whether it succeeds or not: the value would be nobody's otherwise.
            steps.push(Step::Append(key, value));
            session.run(&format!(
                "INSERT INTO lists AS l VALUES ({key}, '{value}')
                 ON CONFLICT (key) DO UPDATE SET value = l.value || ',' || excluded.value"
            ))?;
        } else {
            let sql = format!("SELECT value FROM lists WHERE key = {key}");
            let seen = super::state::list(&session.one(&sql)?);
            steps.push(Step::Read(key, seen));
        }
        Ok(())
    }

    /// Makes the connection usable again, or gives it up.
    fn recover(&mut self, failure: &Failure) {
        let usable = !failure.error.state.is_empty()
            && self.session.as_ref().is_some_and(|session| session.run("ROLLBACK").is_ok());
        if !usable {
            self.session = None;
        }
    }
}

fn number(text: &str) -> i64 {
    text.parse().unwrap_or(i64::MIN)
}

/// Runs `work` in a transaction.
fn transaction(
    session: &Session,
    level: Level,
    work: impl FnOnce(&Session) -> Result<(), SqlError>,
) -> Result<(), Failure> {
    begin(session, level).map_err(before)?;
    work(session).map_err(before)?;
    session.run("COMMIT").map(drop).map_err(at_commit)
}

fn begin(session: &Session, level: Level) -> Result<(), SqlError> {
    let name = match level {
        Level::ReadCommitted => "READ COMMITTED",
        Level::RepeatableRead => "REPEATABLE READ",
    };
    session.run(&format!("BEGIN ISOLATION LEVEL {name}")).map(drop)
}

/// Changes the schema under everybody's feet. Under load that often loses against rows, so it is
/// tried a few times; each try is a transaction of its own with its own names.
pub fn change_schema(server: &Server, recorder: &Recorder, orders: &Orders, dice: &mut Dice) {
    for _ in 0..5 {
        if try_schema(server, recorder, orders, dice) {
            return;
        }
    }
}

fn try_schema(server: &Server, recorder: &Recorder, orders: &Orders, dice: &mut Dice) -> bool {
    let Ok(session) = server.connect_as(DATABASE, "torture") else {
        return false;
    };
    let session = session.patience(PATIENCE);
    let number = orders.token();
    let table = format!("side_{number}");
    let also = match dice.below(5) {
        0 => format!("ALTER TABLE ledger ADD COLUMN extra_{number} int DEFAULT {number}"),
        1 => format!("CREATE INDEX ledger_{number} ON ledger (amount, payer)"),
        2 => format!("ALTER TABLE accounts ADD CONSTRAINT c_{number} CHECK (balance > -1000000)"),
        3 => format!("CREATE FUNCTION f_{number}() RETURNS int LANGUAGE sql AS 'SELECT {number}'"),
        _ => format!("INSERT INTO {table} SELECT i, 'row' FROM generate_series(1, 50) i"),
    };
    let begin = recorder.now();
    let result = transaction(&session, Level::ReadCommitted, |session| {
        session.run("SET LOCAL lock_timeout = '3s'")?;
        session.run(&format!("CREATE TABLE {table} (id int PRIMARY KEY, v text)"))?;
        session.run(&also)?;
        Ok(())
    });
    let outcome = match &result {
        Ok(()) => Outcome::Acknowledged,
        Err(failure) => failure.outcome(),
    };
    recorder.add(Record::Op(Op {
        client: 0,
        node: server.id,
        begin,
        end: recorder.now(),
        level: Level::ReadCommitted,
        outcome,
        body: Body::Schema { table },
    }));
    result.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(state: &str, committing: bool) -> Outcome {
        let error = SqlError {
            state: state.into(),
            message: "m".into(),
            detail: String::new(),
            hint: String::new(),
        };
        Failure { error, committing }.outcome()
    }

    #[test]
    fn only_a_commit_without_an_answer_is_unknown() {
        for state in ["", "08006", "08007"] {
            assert!(matches!(fails(state, true), Outcome::Unknown(_)));
            assert!(matches!(fails(state, false), Outcome::Refused(_)));
        }
        for state in ["40001", "57P03", "57P01", "23505"] {
            assert_eq!(fails(state, true), Outcome::Refused(state.into()));
        }
    }
}
