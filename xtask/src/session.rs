//! One client connection, with a limit on every wait and the server's errors kept whole.

use anyhow::{Context, Result, bail};
use futures_util::future::join_all;
use futures_util::stream::{StreamExt, poll_fn};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio_postgres::types::ToSql;
use tokio_postgres::{AsyncMessage, Client, NoTls, SimpleQueryMessage};

/// No statement of ours takes longer than this unless it says so.
const PATIENCE: Duration = Duration::from_secs(60);

/// Rows as text; `None` is NULL.
pub type Rows = Vec<Vec<Option<String>>>;

/// An error of the server, or the loss of the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlError {
    /// SQLSTATE; empty when the connection broke or the time was up.
    pub state: String,
    /// What went wrong.
    pub message: String,
    /// The DETAIL, if any.
    pub detail: String,
    /// The HINT, if any.
    pub hint: String,
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {}",
            if self.state.is_empty() { "no answer" } else { &self.state },
            self.message
        )?;
        if !self.detail.is_empty() {
            write!(f, " DETAIL: {}", self.detail)?;
        }
        if !self.hint.is_empty() {
            write!(f, " HINT: {}", self.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for SqlError {}

impl From<tokio_postgres::Error> for SqlError {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(db) => Self {
                state: db.code().code().to_owned(),
                message: db.message().to_owned(),
                detail: db.detail().unwrap_or_default().to_owned(),
                hint: db.hint().unwrap_or_default().to_owned(),
            },
            None => {
                let mut message = error.to_string();
                if let Some(source) = std::error::Error::source(&error) {
                    message = format!("{message}: {source}");
                }
                Self { state: String::new(), message, detail: String::new(), hint: String::new() }
            }
        }
    }
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).enable_all().build().expect("threads can be started")
    })
}

fn limited<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, SqlError> {
    runtime().block_on(async {
        match tokio::time::timeout(limit, work).await {
            Ok(answer) => answer.map_err(SqlError::from),
            Err(_) => Err(SqlError {
                state: String::new(),
                message: format!("no answer within {:.0} s", limit.as_secs_f64()),
                detail: String::new(),
                hint: String::new(),
            }),
        }
    })
}

/// A connection.
#[derive(Debug)]
pub struct Session {
    client: Client,
    heard: Arc<Mutex<Heard>>,
    limit: Duration,
}

/// What the server said unasked.
#[derive(Debug, Default, Clone)]
struct Heard {
    notices: Vec<String>,
    notifications: Vec<(String, String)>,
}

impl Session {
    /// Connects.
    ///
    /// # Errors
    /// The server's refusal, or no answer within 10 s.
    pub fn open(conninfo: &str) -> Result<Self, SqlError> {
        Self::open_within(conninfo, Duration::from_secs(10))
    }

    /// Connects, waiting no longer than `limit`.
    ///
    /// # Errors
    /// The server's refusal, or no answer.
    pub fn open_within(conninfo: &str, limit: Duration) -> Result<Self, SqlError> {
        let (client, mut connection) = limited(limit, tokio_postgres::connect(conninfo, NoTls))?;
        let heard = Arc::new(Mutex::new(Heard::default()));
        let ears = Arc::clone(&heard);
        runtime().spawn(async move {
            let mut messages = poll_fn(move |cx| connection.poll_message(cx));
            while let Some(Ok(message)) = messages.next().await {
                let mut heard = ears.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                match message {
                    AsyncMessage::Notice(notice) => {
                        heard.notices.push(format!("{}: {}", notice.severity(), notice.message()));
                    }
                    AsyncMessage::Notification(note) => {
                        heard.notifications.push((note.channel().into(), note.payload().into()));
                    }
                    _ => {}
                }
            }
        });
        Ok(Self { client, heard, limit: PATIENCE })
    }

    /// Changes how long a statement may take before this side gives up.
    #[must_use]
    pub const fn patience(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs statements in the simple protocol; the rows of the last one that returned any.
    ///
    /// # Errors
    /// The server's error.
    pub fn run(&self, sql: &str) -> Result<Rows, SqlError> {
        let messages = limited(self.limit, self.client.simple_query(sql))?;
        let mut rows = Rows::new();
        for message in messages {
            match message {
                SimpleQueryMessage::RowDescription(_) => rows.clear(),
                SimpleQueryMessage::Row(row) => {
                    rows.push((0..row.len()).map(|i| row.get(i).map(ToOwned::to_owned)).collect());
                }
                _ => {}
            }
        }
        Ok(rows)
    }

    /// Column names and rows of one query in the simple protocol.
    ///
    /// # Errors
    /// The server's error.
    pub fn query(&self, sql: &str) -> Result<(Vec<String>, Rows), SqlError> {
        let messages = limited(self.limit, self.client.simple_query(sql))?;
        let (mut names, mut rows) = (Vec::new(), Rows::new());
        for message in messages {
            match message {
                SimpleQueryMessage::RowDescription(columns) => {
                    rows.clear();
                    names = columns.iter().map(|column| column.name().to_owned()).collect();
                }
                SimpleQueryMessage::Row(row) => {
                    rows.push((0..row.len()).map(|i| row.get(i).map(ToOwned::to_owned)).collect());
                }
                _ => {}
            }
        }
        Ok((names, rows))
    }

    /// The first column of the first row as text; empty for NULL or no row.
    ///
    /// # Errors
    /// The server's error.
    pub fn one(&self, sql: &str) -> Result<String, SqlError> {
        let rows = self.run(sql)?;
        Ok(rows
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().next().flatten())
            .unwrap_or_default())
    }

    /// Runs one statement in the extended protocol; the number of rows it changed.
    ///
    /// # Errors
    /// The server's error.
    pub fn execute(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<u64, SqlError> {
        limited(self.limit, self.client.execute(sql, parameters))
    }

    /// Prepares `sql` once and executes it for every parameter without waiting in between: an
    /// extended-protocol pipeline.
    ///
    /// # Errors
    /// The first error of any of them.
    pub fn pipeline(&self, sql: &str, parameters: &[i32]) -> Result<u64, SqlError> {
        limited(self.limit, async {
            let statement = self.client.prepare(sql).await?;
            let all = parameters.iter().map(|p| {
                let statement = statement.clone();
                async move { self.client.execute(&statement, &[p]).await }
            });
            let mut changed = 0;
            for answer in join_all(all).await {
                changed += answer?;
            }
            Ok(changed)
        })
    }

    /// Sends `data` through `COPY ... FROM STDIN`.
    ///
    /// # Errors
    /// The server's error.
    pub fn copy_in(&self, sql: &str, data: &str) -> Result<u64, SqlError> {
        let data = data.to_owned();
        limited(self.limit, async {
            let sink = self.client.copy_in(sql).await?;
            let mut sink = std::pin::pin!(sink);
            let bytes = std::io::Cursor::new(data.into_bytes());
            futures_util::SinkExt::send(&mut sink, bytes).await?;
            sink.finish().await
        })
    }

    /// Expects `sql` to fail, and returns how.
    ///
    /// # Errors
    /// When it succeeds.
    pub fn refused(&self, sql: &str) -> Result<SqlError> {
        match self.run(sql) {
            Ok(_) => bail!("succeeded, but should have failed: {sql}"),
            Err(error) => Ok(error),
        }
    }

    /// The process id of the backend that serves this session.
    ///
    /// # Errors
    /// The server's error.
    pub fn backend(&self) -> Result<i32> {
        self.one("SELECT pg_backend_pid()")?.parse().context("pg_backend_pid is no number")
    }

    /// A handle that can cancel whatever the session is doing.
    #[must_use]
    pub fn canceller(&self) -> Canceller {
        Canceller(self.client.cancel_token())
    }

    /// Notices and warnings heard since the last call.
    #[must_use]
    pub fn notices(&self) -> Vec<String> {
        let mut heard = self.heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        std::mem::take(&mut heard.notices)
    }

    /// Notifications (channel, payload) heard since the last call.
    #[must_use]
    pub fn notifications(&self) -> Vec<(String, String)> {
        let mut heard = self.heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        std::mem::take(&mut heard.notifications)
    }
}

/// Cancels a session's running statement.
#[derive(Clone)]
pub struct Canceller(tokio_postgres::CancelToken);

impl fmt::Debug for Canceller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Canceller")
    }
}

impl Canceller {
    /// Sends the cancel request.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub fn cancel(&self) -> Result<(), SqlError> {
        limited(Duration::from_secs(10), self.0.cancel_query(NoTls))
    }
}
