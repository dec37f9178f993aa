//! Connections on their way: who has several, or other work, waits for none of them alone.
//!
//! Two things are libpq's own and still wait: it looks up host names, and with GSSAPI it asks for
//! credentials.

use super::conn::{Answer, Conn, ConnError, Step, begins_copy, timed_out};
use super::proc::{self, Interest};
use super::waitset::Watch;
use mtm_core::Instant;

/// How far a connection has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Connecting,
    /// The first statement was sent.
    Preparing,
    /// The statement that begins the COPY was sent.
    Starting,
}

/// A connection on its way to a COPY.
#[derive(Debug)]
pub struct Opening {
    conn: Conn,
    stage: Stage,
    /// Waits until the socket can be written to.
    write: bool,
    deadline: Instant,
    first: String,
    copy: String,
}

/// What has become of an [`Opening`].
#[derive(Debug)]
pub enum Progress {
    /// It is to be waited for and asked again.
    Waits(Opening),
    /// In COPY mode. No answer on it is ever waited for.
    Open(Conn),
}

impl Opening {
    /// Begins to connect. `extra` overrides the keywords of `conninfo`. The statement `first` is
    /// to succeed and `copy` to begin a COPY, all of it before `deadline`.
    ///
    /// # Errors
    /// With libpq's text when there is no hope of a connection.
    pub fn start(
        conninfo: &str,
        extra: &[(&str, &str)],
        deadline: Instant,
        first: &str,
        copy: &str,
    ) -> Result<Self, ConnError> {
        let mut conn = Conn::start(conninfo, extra)?;
        conn.limit_waits(Some(0));
        let (first, copy) = (first.to_owned(), copy.to_owned());
        Ok(Self { conn, stage: Stage::Connecting, write: true, deadline, first, copy })
    }

    /// Goes on as far as that is possible without waiting.
    ///
    /// # Errors
    /// When there is no connection, the server refuses, or the time is over.
    pub fn poll(mut self) -> Result<Progress, ConnError> {
        if self.advance()? {
            // What came behind the answer is in libpq's buffer, and the socket says nothing of it.
            self.conn.rename();
            return Ok(Progress::Open(self.conn));
        }
        if proc::now() >= self.deadline {
            return Err(timed_out());
        }
        Ok(Progress::Waits(self))
    }

    /// Until when to wait at the latest.
    pub const fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What to wait for.
    pub fn watch(&self) -> Watch {
        let Interest { read, write, .. } = self.interest();
        Watch::new(&self.conn, read, write)
    }

    fn interest(&self) -> Interest {
        let read = self.stage != Stage::Connecting || !self.write;
        Interest { fd: self.conn.fd(), read, write: self.write }
    }

    /// `true` when the COPY has begun.
    fn advance(&mut self) -> Result<bool, ConnError> {
        if self.stage == Stage::Connecting {
            // The caller may have been woken by something else.
            if !proc::is_ready(self.interest()) {
                return Ok(false);
            }
            let step = self.conn.step()?;
            // libpq may have closed the socket and made another one of the same number.
            self.conn.rename();
            self.write = step == Step::Write;
            if step != Step::Done {
                return Ok(false);
            }
            self.conn.send(&self.first)?;
            self.stage = Stage::Preparing;
        }
        self.conn.consume()?;
        loop {
            match (self.conn.answer()?, self.stage) {
                (Answer::Waits { sent }, _) => {
                    self.write = !sent;
                    return Ok(false);
                }
                (Answer::Part(Some(result)), Stage::Preparing) => result.is_good()?,
                (Answer::Part(None), Stage::Preparing) => {
                    self.conn.send(&self.copy)?;
                    self.stage = Stage::Starting;
                }
                (Answer::Part(result), _) => return begins_copy(result).map(|()| true),
            }
        }
    }
}
