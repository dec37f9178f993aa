//! Connections to other nodes through libpq: conninfo, TLS, .pgpass and pg_hba.conf all apply.
//!
//! Every wait is a latch wait, so that a worker can be told to stop at any time. Who must not wait
//! at all opens its connections with [`super::opening::Opening`].

use super::proc::{self, Interest};
use core::sync::atomic::{AtomicU64, Ordering};
use pq_sys as pq;
use std::ffi::{CStr, CString};
use thiserror::Error;

/// What went wrong on a connection.
#[derive(Clone, Debug, Error)]
pub enum ConnError {
    /// No connection, or it broke.
    #[error("{0}")]
    Connection(String),
    /// The server answered with an error.
    #[error("{message}")]
    Server {
        /// Five characters.
        sqlstate: String,
        /// Primary message.
        message: String,
        /// Detail, may be empty.
        detail: String,
        /// Hint, may be empty.
        hint: String,
    },
}

/// Rows of text values; NULL is `None`.
pub type Rows = Vec<Vec<Option<String>>>;

/// One message of a COPY.
#[derive(Debug)]
pub enum CopyIn {
    /// A message.
    Data(Vec<u8>),
    /// None is there yet.
    WouldBlock,
    /// The other side ended the COPY.
    End,
}

/// A connection to another server.
#[derive(Debug)]
pub struct Conn {
    raw: *mut pq::PGconn,
    id: u64,
    /// How long an answer may take; `None` is for ever.
    patience_us: Option<u64>,
}

/// What libpq waits for while it connects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// To read.
    Read,
    /// To write.
    Write,
    /// For nothing: the connection is there.
    Done,
}

/// What there is of an answer.
pub(super) enum Answer {
    /// The next part of it, or its end.
    Part(Option<PgResult>),
    /// Nothing yet.
    Waits {
        /// The question has left entirely.
        sent: bool,
    },
}

/// Connections made by this process.
static MADE: AtomicU64 = AtomicU64::new(0);

impl Drop for Conn {
    fn drop(&mut self) {
        // SAFETY: `raw` came from PQconnectStartParams and is freed once.
        unsafe { pq::PQfinish(self.raw) }
    }
}

fn c(text: &str) -> Result<CString, ConnError> {
    CString::new(text)
        .map_err(|_| ConnError::Connection("a connection string contains a zero byte".to_owned()))
}

/// There is no connection when there should be one at the latest.
pub(super) fn timed_out() -> ConnError {
    ConnError::Connection("connection timed out".to_owned())
}

impl Conn {
    /// Connects. `extra` overrides the keywords of `conninfo`. `timeout_s` 0 is no limit.
    ///
    /// # Errors
    /// With libpq's text when there is no connection.
    pub fn connect(
        conninfo: &str,
        extra: &[(&str, &str)],
        timeout_s: i32,
    ) -> Result<Self, ConnError> {
        let mut conn = Self::start(conninfo, extra)?;
        conn.finish_connecting(timeout_s)?;
        Ok(conn)
    }

    /// Begins to connect. The socket is to be waited for as [`Step::Write`] says, then
    /// [`Self::step`] goes on.
    pub(super) fn start(conninfo: &str, extra: &[(&str, &str)]) -> Result<Self, ConnError> {
        let mut keys = vec![c("dbname")?];
        let mut values = vec![c(conninfo)?];
        for (key, value) in extra {
            keys.push(c(key)?);
            values.push(c(value)?);
        }
        let pointers = |strings: &[CString]| {
            let mut all: Vec<_> = strings.iter().map(|s| s.as_ptr()).collect();
            all.push(core::ptr::null());
            all
        };
        let (key_pointers, value_pointers) = (pointers(&keys), pointers(&values));
        // SAFETY: two null-terminated arrays of C strings of the same length; libpq copies them.
        let raw =
            unsafe { pq::PQconnectStartParams(key_pointers.as_ptr(), value_pointers.as_ptr(), 1) };
        if raw.is_null() {
            return Err(ConnError::Connection("out of memory".to_owned()));
        }
        let conn = Self { raw, id: MADE.fetch_add(1, Ordering::Relaxed), patience_us: None };
        // SAFETY: `raw` is a connection being made.
        if unsafe { pq::PQstatus(raw) } == pq::ConnStatusType::CONNECTION_BAD {
            return Err(conn.error());
        }
        Ok(conn)
    }

    /// Goes on connecting. Only when the socket is ready: libpq takes one that is still on its way
    /// for connected.
    pub(super) fn step(&mut self) -> Result<Step, ConnError> {
        // SAFETY: a connection being made.
        match unsafe { pq::PQconnectPoll(self.raw) } {
            pq::PostgresPollingStatusType::PGRES_POLLING_READING => Ok(Step::Read),
            pq::PostgresPollingStatusType::PGRES_POLLING_WRITING => Ok(Step::Write),
            pq::PostgresPollingStatusType::PGRES_POLLING_OK => {
                self.set_nonblocking()?;
                Ok(Step::Done)
            }
            _ => Err(self.error()),
        }
    }

    fn finish_connecting(&mut self, timeout_s: i32) -> Result<(), ConnError> {
        let limit_us = match timeout_s {
            ..=0 => None,
            s => Some(s.max(2).unsigned_abs() as u64 * 1_000_000),
        };
        let start = proc::now();
        let mut write = true;
        loop {
            let interest = Interest { fd: self.fd(), read: !write, write };
            let left = limit_us.map(|us| us.saturating_sub(proc::now().since(start)));
            if left == Some(0) {
                return Err(timed_out());
            }
            let woken = proc::wait(Some(interest), left);
            proc::check_interrupts();
            if !woken.socket {
                continue;
            }
            match self.step()? {
                Step::Read => write = false,
                Step::Write => write = true,
                Step::Done => return Ok(()),
            }
        }
    }

    fn set_nonblocking(&mut self) -> Result<(), ConnError> {
        // SAFETY: an open connection.
        if unsafe { pq::PQsetnonblocking(self.raw, 1) } == 0 { Ok(()) } else { Err(self.error()) }
    }

    /// Names this connection among all that this process makes.
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Takes another name: what was found out about the socket holds no more.
    pub(super) fn rename(&mut self) {
        self.id = MADE.fetch_add(1, Ordering::Relaxed);
    }

    /// Lets an answer take so long and no longer; `None` is for ever. A connection on which one
    /// did not come in time is of no use any more.
    pub const fn limit_waits(&mut self, us: Option<u64>) {
        self.patience_us = us;
    }

    /// The socket.
    pub fn fd(&self) -> i32 {
        // SAFETY: `raw` lives as long as `self`.
        unsafe { pq::PQsocket(self.raw) }
    }

    fn error(&self) -> ConnError {
        // SAFETY: libpq returns a C string owned by the connection.
        let text = unsafe { CStr::from_ptr(pq::PQerrorMessage(self.raw)) };
        ConnError::Connection(text.to_string_lossy().trim().to_owned())
    }

    /// Sends what is buffered; `true` when nothing is left to send.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn flush(&mut self) -> Result<bool, ConnError> {
        // SAFETY: an open connection.
        match unsafe { pq::PQflush(self.raw) } {
            0 => Ok(true),
            1 => Ok(false),
            _ => Err(self.error()),
        }
    }

    /// Takes in what has arrived.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn consume(&mut self) -> Result<(), ConnError> {
        // SAFETY: an open connection.
        if unsafe { pq::PQconsumeInput(self.raw) } == 1 { Ok(()) } else { Err(self.error()) }
    }

    /// What there is of the answer to what was sent; [`Self::consume`] takes in more.
    pub(super) fn answer(&mut self) -> Result<Answer, ConnError> {
        let sent = self.flush()?;
        // SAFETY: an open connection.
        if unsafe { pq::PQisBusy(self.raw) } != 0 {
            return Ok(Answer::Waits { sent });
        }
        // SAFETY: not busy, so this does not block.
        let raw = unsafe { pq::PQgetResult(self.raw) };
        Ok(Answer::Part((!raw.is_null()).then_some(PgResult { raw })))
    }

    fn next_result(&mut self) -> Result<Option<PgResult>, ConnError> {
        let start = proc::now();
        loop {
            let sent = match self.answer()? {
                Answer::Part(result) => return Ok(result),
                Answer::Waits { sent } => sent,
            };
            let left = self.patience_us.map(|us| us.saturating_sub(proc::now().since(start)));
            if let (Some(0), Some(us)) = (left, self.patience_us) {
                let why = format!("no answer within {} s", us / 1_000_000);
                return Err(ConnError::Connection(why));
            }
            proc::wait(Some(Interest { fd: self.fd(), read: true, write: !sent }), left);
            proc::check_interrupts();
            self.consume()?;
        }
    }

    /// Sends a statement without parameters, as far as the socket takes it.
    pub(super) fn send(&mut self, sql: &str) -> Result<(), ConnError> {
        let sql = c(sql)?;
        // SAFETY: an open connection; libpq copies the text.
        if unsafe { pq::PQsendQuery(self.raw, sql.as_ptr()) } == 0 {
            return Err(self.error());
        }
        Ok(())
    }

    /// Stops whatever an interrupted [`Self::query`] left running, so that the next one may begin.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn abandon(&mut self) -> Result<(), ConnError> {
        // SAFETY: an open connection; the request is freed at once. It is sent to the server on
        // a connection of its own, which takes a moment.
        unsafe {
            let request = pq::PQgetCancel(self.raw);
            if !request.is_null() {
                let mut why: [core::ffi::c_char; 256] = [0; 256];
                pq::PQcancel(request, why.as_mut_ptr(), why.len() as i32);
                pq::PQfreeCancel(request);
            }
        }
        while self.next_result()?.is_some() {}
        Ok(())
    }

    /// Runs one statement with text parameters and returns its rows.
    ///
    /// # Errors
    /// When the connection breaks or the server refuses.
    pub fn query(&mut self, sql: &str, params: &[&str]) -> Result<Rows, ConnError> {
        let sql = c(sql)?;
        let params = params.iter().map(|p| c(p)).collect::<Result<Vec<_>, _>>()?;
        let pointers: Vec<_> = params.iter().map(|p| p.as_ptr()).collect();
        // SAFETY: strings outlive the call, which copies them.
        let sent = unsafe {
            if params.is_empty() {
                pq::PQsendQuery(self.raw, sql.as_ptr())
            } else {
                pq::PQsendQueryParams(
                    self.raw,
                    sql.as_ptr(),
                    params.len() as i32,
                    core::ptr::null(),
                    pointers.as_ptr(),
                    core::ptr::null(),
                    core::ptr::null(),
                    0,
                )
            }
        };
        if sent == 0 {
            return Err(self.error());
        }
        let mut rows = Vec::new();
        let mut failure = None;
        while let Some(result) = self.next_result()? {
            match result.is_good() {
                Ok(()) if result.status() == pq::ExecStatusType::PGRES_TUPLES_OK => {
                    rows = result.rows();
                }
                Ok(()) => {}
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(rows), Err)
    }

    /// Runs a statement that begins a COPY of either kind.
    ///
    /// # Errors
    /// When the connection breaks or the server refuses.
    pub fn start_copy(&mut self, sql: &str) -> Result<(), ConnError> {
        self.send(sql)?;
        begins_copy(self.next_result()?)
    }

    /// Takes the next message of a COPY, if it has arrived.
    ///
    /// # Errors
    /// When the connection breaks or the server ends the COPY with an error.
    pub fn copy_data(&mut self) -> Result<CopyIn, ConnError> {
        let mut buffer = core::ptr::null_mut();
        // SAFETY: libpq allocates the buffer, which is copied and freed at once.
        let got = unsafe { pq::PQgetCopyData(self.raw, &raw mut buffer, 1) };
        match got {
            0 => Ok(CopyIn::WouldBlock),
            -1 => match self.next_result()? {
                Some(result) if result.status() == pq::ExecStatusType::PGRES_FATAL_ERROR => {
                    Err(result.error())
                }
                _ => Ok(CopyIn::End),
            },
            n if n > 0 => {
                // SAFETY: `n` bytes are at `buffer`.
                let data = unsafe {
                    let data =
                        core::slice::from_raw_parts(buffer.cast::<u8>(), n as usize).to_vec();
                    pq::PQfreemem(buffer.cast());
                    data
                };
                Ok(CopyIn::Data(data))
            }
            _ => Err(self.error()),
        }
    }

    /// Buffers a message of a COPY; [`Self::flush`] sends it.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn put_copy_data(&mut self, data: &[u8]) -> Result<(), ConnError> {
        // SAFETY: libpq copies the bytes.
        let put = unsafe { pq::PQputCopyData(self.raw, data.as_ptr().cast(), data.len() as i32) };
        if put == 1 { Ok(()) } else { Err(self.error()) }
    }

    /// `text` as a quoted identifier, for replication commands, which take no parameters.
    ///
    /// # Errors
    /// When the text is not valid in the connection's encoding.
    pub fn identifier(&self, text: &str) -> Result<String, ConnError> {
        let text = c(text)?;
        // SAFETY: the returned string is libpq's and freed here.
        unsafe {
            let quoted = pq::PQescapeIdentifier(self.raw, text.as_ptr(), text.as_bytes().len());
            if quoted.is_null() {
                return Err(self.error());
            }
            let owned = CStr::from_ptr(quoted).to_string_lossy().into_owned();
            pq::PQfreemem(quoted.cast());
            Ok(owned)
        }
    }
}

/// Whether an answer is the beginning of a COPY.
pub(super) fn begins_copy(result: Option<PgResult>) -> Result<(), ConnError> {
    let unexpected = || ConnError::Connection("the server did not begin a COPY".to_owned());
    let result = result.ok_or_else(unexpected)?;
    match result.status() {
        pq::ExecStatusType::PGRES_COPY_BOTH | pq::ExecStatusType::PGRES_COPY_IN => Ok(()),
        pq::ExecStatusType::PGRES_FATAL_ERROR => Err(result.error()),
        _ => Err(unexpected()),
    }
}

/// Part of an answer.
pub(super) struct PgResult {
    raw: *mut pq::PGresult,
}

impl Drop for PgResult {
    fn drop(&mut self) {
        // SAFETY: freed once.
        unsafe { pq::PQclear(self.raw) }
    }
}

impl PgResult {
    fn status(&self) -> pq::ExecStatusType {
        // SAFETY: `raw` lives as long as `self`.
        unsafe { pq::PQresultStatus(self.raw) }
    }

    /// Whether the statement was carried out.
    pub(super) fn is_good(&self) -> Result<(), ConnError> {
        match self.status() {
            pq::ExecStatusType::PGRES_TUPLES_OK
            | pq::ExecStatusType::PGRES_COMMAND_OK
            | pq::ExecStatusType::PGRES_EMPTY_QUERY => Ok(()),
            _ => Err(self.error()),
        }
    }

    fn field(&self, code: u8) -> String {
        // SAFETY: null or a C string owned by the result.
        unsafe {
            let text = pq::PQresultErrorField(self.raw, i32::from(code));
            if text.is_null() {
                String::new()
            } else {
                CStr::from_ptr(text).to_string_lossy().into_owned()
            }
        }
    }

    fn error(&self) -> ConnError {
        ConnError::Server {
            sqlstate: self.field(pq::PG_DIAG_SQLSTATE),
            message: self.field(pq::PG_DIAG_MESSAGE_PRIMARY),
            detail: self.field(pq::PG_DIAG_MESSAGE_DETAIL),
            hint: self.field(pq::PG_DIAG_MESSAGE_HINT),
        }
    }

    fn rows(&self) -> Rows {
        // SAFETY: row and column numbers are within the result's; values are C strings.
        unsafe {
            (0..pq::PQntuples(self.raw))
                .map(|row| {
                    (0..pq::PQnfields(self.raw))
                        .map(|column| {
                            if pq::PQgetisnull(self.raw, row, column) == 1 {
                                return None;
                            }
                            let value = CStr::from_ptr(pq::PQgetvalue(self.raw, row, column));
                            Some(value.to_string_lossy().into_owned())
                        })
                        .collect()
                })
                .collect()
        }
    }
}
