//! Reading this server's own write-ahead log: our messages and how transactions ended.
//!
//! After a restart the node learns from it what it had promised. PostgreSQL's own reader does the
//! reading and checks every record; records of other kinds are dropped without being looked into.

use super::{proc, sys, xact};
use core::cell::Cell;
use core::ffi::CStr;
use core::panic::AssertUnwindSafe;
use mtm_core::Lsn;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::{PgSqlErrorCode, pg_sys};

/// What a log record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Item<'a> {
    /// A logical message of this database whose prefix begins with "mtm".
    Message {
        /// Number of the (sub)transaction that wrote it, 0 if it had none.
        xid: u32,
        /// Its prefix.
        prefix: &'a str,
        /// Its content.
        content: &'a [u8],
    },
    /// A transaction of this database was committed.
    Commit {
        /// Its number; for COMMIT PREPARED, the prepared transaction's.
        xid: u32,
        /// The name of the prepared transaction.
        gid: Option<&'a str>,
    },
    /// A transaction of this database was prepared.
    Prepare {
        /// Its number.
        xid: u32,
        /// Its name.
        gid: &'a str,
    },
}

/// How far the log was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scanned {
    /// Everything before this was read; a record begins here, or will.
    pub to: Lsn,
    /// How many records there were, of whatever kind.
    pub records: u64,
}

/// The log cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("could not read the write-ahead log at {at}: {why}")]
pub struct ScanError {
    /// Where.
    pub at: Lsn,
    /// Why, in PostgreSQL's words.
    pub why: String,
}

/// So many records are read between two looks at interrupts.
const PATIENCE: u64 = 1024;

/// Makes everything before `position`, an earlier [`super::wal::inserted`], durable.
pub fn flush_before(position: Lsn) {
    let in_page = position.0 % u64::from(pg_sys::XLOG_BLCKSZ);
    // A record that would begin right after a page's header: the log ends before that header, and
    // XLogFlush must not be asked for more than there is.
    let end = if in_page < PAGE_HEADER_MAX { position.0 - in_page } else { position.0 };
    super::message::flush(Lsn(end));
}

/// `SizeOfXLogLongPHD` and a byte: no record begins or ends before it except after the header.
const PAGE_HEADER_MAX: u64 = 41;

/// Reads the log from `from`, where a record begins, to what is durable now.
///
/// # Errors
/// When a part of the log is missing or damaged, or no record begins at `from`.
pub fn scan(from: Lsn, mut each: impl FnMut(Item<'_>)) -> Result<Scanned, ScanError> {
    let scanned = Cell::new(Scanned { to: from, records: 0 });
    let failed = |why| ScanError { at: scanned.get().to, why };
    let read = AssertUnwindSafe(|| read_all(&scanned, &mut each));
    // The reader raises an ERROR for a missing file, and has nothing to roll back then.
    pgrx::PgTryBuilder::new(|| { read }())
        .catch_when(PgSqlErrorCode::ERRCODE_UNDEFINED_FILE, |caught| Err(message_of(&caught)))
        .execute()
        .map_err(failed)?;
    Ok(scanned.get())
}

fn read_all(scanned: &Cell<Scanned>, each: &mut impl FnMut(Item<'_>)) -> Result<(), String> {
    let database = xact::my_database();
    // SAFETY: recovery is over when backends and workers run; no timeline is asked for.
    let end = Lsn(unsafe { pg_sys::GetFlushRecPtr(core::ptr::null_mut()) });
    let Scanned { mut to, mut records } = scanned.get();
    if to.0 >= end.0 + PAGE_HEADER_MAX {
        return Err(format!("the log ends at {end}, before it: a part of it was lost"));
    }
    let mut reader = Reader::new(to);
    while to < end {
        if records % PATIENCE == 0 {
            proc::check_interrupts();
        }
        let Some(record) = reader.next()? else { break };
        to = record.end;
        records += 1;
        scanned.set(Scanned { to, records });
        record.interpret(database, each);
    }
    Ok(())
}

fn message_of(caught: &CaughtError) -> String {
    let report = match caught {
        CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => report,
        CaughtError::RustPanic { ereport, .. } => ereport,
    };
    report.message().to_owned()
}

/// PostgreSQL's reader of its log.
struct Reader {
    state: *mut pg_sys::XLogReaderState,
    /// What `read_local_xlog_page_no_wait` sets; on the heap, since `state` points to it.
    at_end: *mut sys::ReadLocalXLogPageNoWaitPrivate,
}

impl Reader {
    fn new(from: Lsn) -> Self {
        let at_end = Box::into_raw(Box::new(sys::ReadLocalXLogPageNoWaitPrivate::default()));
        let mut routine = pg_sys::XLogReaderRoutine {
            page_read: Some(sys::read_local_xlog_page_no_wait),
            segment_open: Some(sys::wal_segment_open),
            segment_close: Some(sys::wal_segment_close),
        };
        // SAFETY: the callbacks are PostgreSQL's own for a running server; the routine is copied
        // and the private data lives as long as the reader.
        let state = unsafe {
            pg_sys::XLogReaderAllocate(
                pg_sys::wal_segment_size,
                core::ptr::null(),
                &raw mut routine,
                at_end.cast(),
            )
        };
        let reader = Self { state, at_end };
        assert!(!state.is_null(), "out of memory for reading the write-ahead log");
        // SAFETY: the reader is valid; it checks the record that it finds there.
        unsafe { pg_sys::XLogBeginRead(state, from.0) }
        reader
    }

    /// The next record, `None` at the end of what is durable.
    fn next(&mut self) -> Result<Option<Record<'_>>, String> {
        let mut error = core::ptr::null_mut();
        // SAFETY: the reader and its private data are valid; `error` is set to null or to a C
        // string of the reader.
        unsafe {
            if !pg_sys::XLogReadRecord(self.state, &raw mut error).is_null() {
                return Ok(Some(self.current()));
            }
            if (*self.at_end).end_of_wal {
                return Ok(None);
            }
            if error.is_null() {
                return Err("there is no record".to_owned());
            }
            Err(CStr::from_ptr(error).to_string_lossy().into_owned())
        }
    }

    fn current(&self) -> Record<'_> {
        // SAFETY: after a successful read `record` is valid until the next one, and its main data
        // has that many bytes.
        unsafe {
            let record = &*(*self.state).record;
            let data = if record.main_data_len == 0 {
                &[]
            } else {
                let start = record.main_data.cast::<u8>().cast_const();
                core::slice::from_raw_parts(start, record.main_data_len as usize)
            };
            Record {
                end: Lsn((*self.state).EndRecPtr),
                kind: record.header.xl_rmid,
                info: record.header.xl_info,
                xid: record.header.xl_xid.into_inner(),
                data,
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`, freed once; the private data after the reader.
        unsafe {
            if !self.state.is_null() {
                pg_sys::XLogReaderFree(self.state);
            }
            drop(Box::from_raw(self.at_end));
        }
    }
}

/// A record, valid until the next one is read.
struct Record<'a> {
    end: Lsn,
    kind: u8,
    info: u8,
    xid: u32,
    data: &'a [u8],
}

impl Record<'_> {
    fn interpret(&self, database: u32, each: &mut impl FnMut(Item<'_>)) {
        match u32::from(self.kind) {
            pg_sys::RmgrIds::RM_LOGICALMSG_ID => {
                if let Some(item) = self.message(database) {
                    each(item);
                }
            }
            pg_sys::RmgrIds::RM_XACT_ID => self.transaction(database, each),
            _ => {}
        }
    }

    /// `xl_logical_message`: database, whether transactional, two lengths, prefix with a zero
    /// byte, content.
    fn message(&self, database: u32) -> Option<Item<'_>> {
        let word = |at: usize| {
            let bytes = self.data.get(at..at + 8)?.try_into().ok()?;
            usize::try_from(u64::from_ne_bytes(bytes)).ok()
        };
        let of = u32::from_ne_bytes(self.data.get(..4)?.try_into().ok()?);
        let (prefix_size, size, payload) = (word(8)?, word(16)?, self.data.get(24..)?);
        if of != database || !payload.starts_with(b"mtm") {
            return None;
        }
        let prefix = CStr::from_bytes_with_nul(payload.get(..prefix_size)?).ok()?;
        let content = payload.get(prefix_size..prefix_size.checked_add(size)?)?;
        Some(Item::Message { xid: self.xid, prefix: prefix.to_str().ok()?, content })
    }

    fn transaction(&self, database: u32, each: &mut impl FnMut(Item<'_>)) {
        let data = self.data.as_ptr().cast_mut();
        let mut parsed = pg_sys::xl_xact_parsed_commit::default();
        let what = u32::from(self.info) & pg_sys::XLOG_XACT_OPMASK;
        // SAFETY: the data of a record of this kind, whose checksum the reader has checked; what
        // is parsed is read before the next record.
        unsafe {
            match what {
                pg_sys::XLOG_XACT_COMMIT | pg_sys::XLOG_XACT_COMMIT_PREPARED => {
                    pg_sys::ParseCommitRecord(self.info, data.cast(), &raw mut parsed);
                }
                pg_sys::XLOG_XACT_PREPARE => {
                    pg_sys::ParsePrepareRecord(self.info, data.cast(), &raw mut parsed);
                }
                _ => return,
            }
        }
        if parsed.dbId.to_u32() != database {
            return;
        }
        let gid = text_of(&parsed.twophase_gid);
        let prepared_xid = parsed.twophase_xid.into_inner();
        each(match what {
            pg_sys::XLOG_XACT_COMMIT => Item::Commit { xid: self.xid, gid: None },
            pg_sys::XLOG_XACT_COMMIT_PREPARED => {
                Item::Commit { xid: prepared_xid, gid: Some(gid).filter(|gid| !gid.is_empty()) }
            }
            _ => Item::Prepare { xid: prepared_xid, gid },
        });
    }
}

/// A C string in an array; empty if it is no text.
fn text_of(chars: &[core::ffi::c_char]) -> &str {
    // SAFETY: c_char and u8 have one layout.
    let bytes = unsafe { core::slice::from_raw_parts(chars.as_ptr().cast::<u8>(), chars.len()) };
    CStr::from_bytes_until_nul(bytes).ok().and_then(|text| text.to_str().ok()).unwrap_or_default()
}

/// Whether the commit log still knows about this transaction. What it has dropped ended long ago.
pub fn is_recent(xid: mtm_core::LocalXid) -> bool {
    // SAFETY: reads a number of shared memory at once. It only grows, when VACUUM truncates the
    // commit log, which it does far behind everything that anybody still waits for.
    let (next, oldest) = unsafe {
        let next = pg_sys::ReadNextFullTransactionId().value;
        (next, (*pg_sys::ShmemVariableCache).oldestClogXid.into_inner())
    };
    // Fewer than 2^31 lie between the two.
    let oldest = next.saturating_sub(u64::from((next as u32).wrapping_sub(oldest)));
    xid.0 >= oldest
}

/// Whether this process is in a transaction in which SQL may run.
pub fn in_transaction() -> bool {
    // SAFETY: reads the state of this process.
    unsafe { pg_sys::IsTransactionState() }
}
