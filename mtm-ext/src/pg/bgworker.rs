//! Background workers: registering them, their life, and errors.

use super::proc;
use core::ffi::{c_char, c_int};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use pgrx::pg_sys::panic::CaughtError;
use pgrx::{PgTryBuilder, pg_sys};

/// Whether the library is being loaded through `shared_preload_libraries`.
pub fn preloading() -> bool {
    // SAFETY: a plain variable.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Keeps Rust's backtraces out of users' error messages, whatever the server inherited.
pub fn quiet_backtraces() {
    // SAFETY: in _PG_init of the single-threaded postmaster.
    unsafe { std::env::remove_var("RUST_BACKTRACE") }
}

/// What a worker is; its number goes into `bgw_main_arg`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Starts the others.
    Monitor,
    /// Sends messages to all peers.
    Sender,
    /// Keeps the machine's clock and durable record.
    Campaigner,
    /// Finishes what nobody else does.
    Resolver,
    /// Watches over this node's own fitness.
    Health,
    /// Receives the stream of the node with this number.
    Receiver(u8),
    /// Applies; works in this slot.
    Applier(u16),
}

impl Kind {
    const fn to_arg(self) -> usize {
        match self {
            Self::Monitor => 1,
            Self::Sender => 2,
            Self::Resolver => 3,
            Self::Campaigner => 6,
            Self::Health => 7,
            Self::Receiver(node) => 4 | (node as usize) << 8,
            Self::Applier(slot) => 5 | (slot as usize) << 8,
        }
    }

    const fn from_arg(arg: usize) -> Option<Self> {
        Some(match arg & 0xff {
            1 => Self::Monitor,
            2 => Self::Sender,
            3 => Self::Resolver,
            4 => Self::Receiver((arg >> 8) as u8),
            6 => Self::Campaigner,
            7 => Self::Health,
            5 => Self::Applier((arg >> 8) as u16),
            _ => return None,
        })
    }

    /// A number of its own for every worker.
    pub const fn number(self) -> usize {
        self.to_arg()
    }

    fn names(self) -> (String, &'static str) {
        match self {
            Self::Monitor => ("mtm-monitor".into(), "mtm-monitor"),
            Self::Sender => ("mtm-dmq-sender".into(), "mtm-dmq-sender"),
            Self::Campaigner => ("mtm-campaigner".into(), "mtm-campaigner"),
            Self::Resolver => ("mtm-resolver".into(), "mtm-resolver"),
            Self::Health => ("mtm-health".into(), "mtm-health"),
            Self::Receiver(node) => (format!("mtm-logrep-receiver {node}"), "mtm-logrep-receiver"),
            Self::Applier(slot) => {
                (format!("mtm-logrep-receiver-dynworker {slot}"), "mtm-logrep-receiver-dynworker")
            }
        }
    }
}

fn put(target: &mut [c_char], text: &str) {
    for (place, byte) in target.iter_mut().zip(text.bytes().chain([0])) {
        *place = byte as c_char;
    }
}

fn describe(kind: Kind, restart_s: c_int) -> pg_sys::BackgroundWorker {
    let mut worker = pg_sys::BackgroundWorker::default();
    let (name, kind_name) = kind.names();
    put(&mut worker.bgw_name, &name);
    put(&mut worker.bgw_type, kind_name);
    put(&mut worker.bgw_library_name, "multimaster");
    put(&mut worker.bgw_function_name, "mtm_worker_main");
    worker.bgw_flags = pg_sys::BGWORKER_SHMEM_ACCESS as c_int
        | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION as c_int;
    worker.bgw_start_time = pg_sys::BgWorkerStartTime::BgWorkerStart_RecoveryFinished;
    worker.bgw_restart_time = restart_s;
    worker.bgw_main_arg = pg_sys::Datum::from(kind.to_arg());
    worker.bgw_notify_pid = proc::my_pid();
    worker
}

/// Registers the one worker that PostgreSQL itself starts and restarts.
pub fn register_static(kind: Kind) {
    let mut worker = describe(kind, 1);
    worker.bgw_notify_pid = 0;
    // SAFETY: in _PG_init under shared_preload_libraries; the structure is copied.
    unsafe { pg_sys::RegisterBackgroundWorker(&raw mut worker) };
}

/// A started worker.
#[derive(Debug)]
pub struct Handle(*mut pg_sys::BackgroundWorkerHandle);

/// Starts a worker that is not restarted; `None` when `max_worker_processes` is reached.
pub fn start(kind: Kind) -> Option<Handle> {
    let mut worker = describe(kind, pg_sys::BGW_NEVER_RESTART);
    let mut handle = core::ptr::null_mut();
    // SAFETY: the structure is copied; the handle is allocated in TopMemoryContext here so that
    // it lives as long as this process.
    unsafe {
        let previous = pg_sys::CurrentMemoryContext;
        pg_sys::CurrentMemoryContext = pg_sys::TopMemoryContext;
        let started = pg_sys::RegisterDynamicBackgroundWorker(&raw mut worker, &raw mut handle);
        pg_sys::CurrentMemoryContext = previous;
        started.then_some(Handle(handle))
    }
}

impl Handle {
    /// Whether the worker has ended.
    pub fn has_ended(&self) -> bool {
        let mut pid = 0;
        // SAFETY: the handle came from RegisterDynamicBackgroundWorker and is freed only by drop.
        let status = unsafe { pg_sys::GetBackgroundWorkerPid(self.0, &raw mut pid) };
        status == pg_sys::BgwHandleStatus::BGWH_STOPPED
    }

    /// Asks the worker to end.
    pub fn terminate(&self) {
        // SAFETY: as above.
        unsafe { pg_sys::TerminateBackgroundWorker(self.0) }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: allocated by RegisterDynamicBackgroundWorker, freed once.
        unsafe { pg_sys::pfree(self.0.cast()) }
    }
}

/// Entry point of every worker.
#[pgrx::pg_guard]
#[unsafe(no_mangle)]
extern "C-unwind" fn mtm_worker_main(arg: pg_sys::Datum) {
    // SAFETY: the usual beginning of a background worker; `die` and the reload handler only set
    // flags and the latch.
    unsafe {
        pg_sys::pqsignal(pg_sys::SIGTERM as c_int, Some(super::sys::die));
        pg_sys::pqsignal(pg_sys::SIGHUP as c_int, Some(super::sys::SignalHandlerForConfigReload));
        pg_sys::BackgroundWorkerUnblockSignals();
    }
    let kind = Kind::from_arg(arg.value()).expect("we register only known kinds");
    crate::worker::run(kind);
}

/// Makes this worker one that `pg_stat_activity` shows, without a database.
pub fn connect() {
    // SAFETY: once, at the beginning of a worker registered with a database connection; names may
    // be null.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnection(core::ptr::null(), core::ptr::null(), 0);
    }
}

/// Connects this worker to the replicated database as the bootstrap superuser.
pub fn connect_to_database(database: u32) {
    // SAFETY: once, at the beginning of a worker registered with a database connection.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnectionByOid(
            pg_sys::Oid::from(database),
            pg_sys::InvalidOid,
            0,
        );
    }
}

/// Sets a setting for the life of this process.
pub fn set_config(name: &core::ffi::CStr, value: &core::ffi::CStr) {
    // SAFETY: both are C strings; a wrong name raises an ERROR.
    unsafe {
        pg_sys::SetConfigOption(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_OVERRIDE,
        );
    }
}

/// Handles a stop request (by not returning) and a configuration reload.
pub fn handle_signals() {
    if asked_for_us().is_some_and(|us| us > END_US) {
        end_at_once();
    }
    if proc::is_to_end() {
        crate::worker::leave_nothing_open();
    }
    proc::check_interrupts();
    // SAFETY: a sig_atomic_t flag of this process; the main loop of a worker may reload.
    unsafe {
        if (&raw const pg_sys::ConfigReloadPending).read_volatile() != 0 {
            (&raw mut pg_sys::ConfigReloadPending).write_volatile(0);
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

/// Whether the first request to end is only noted.
static NOTES_END: AtomicBool = AtomicBool::new(false);
/// When this process was asked to end, monotonic us; 0 if it was not.
static ASKED_TO_END: AtomicU64 = AtomicU64::new(0);
/// A stopping server and its monitor may both ask, one after the other; who asks again later means it.
const AGAIN_US: u64 = 5_000_000;
/// What has not come to its end so long after that is ended as it is.
const END_US: u64 = 10_000_000;

unsafe extern "C-unwind" fn note_end(signal: c_int) {
    let now = proc::now().0;
    let first = ASKED_TO_END.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
    if first.is_err_and(|first| now.saturating_sub(first) > AGAIN_US) {
        // SAFETY: PostgreSQL's own handler, called from a handler.
        return unsafe { super::sys::die(signal) };
    }
    // SAFETY: errno is this thread's; a latch may be set from a handler.
    unsafe {
        let errno = *libc::__errno_location();
        pg_sys::SetLatch(pg_sys::MyLatch);
        *libc::__errno_location() = errno;
    }
}

/// From here on the first request to end is noted only, for [`is_asked_to_end`]: what this process
/// does must be brought to its end, if that is possible. A request some seconds later ends it as
/// any other process.
pub fn finish_before_end() {
    if !NOTES_END.swap(true, Ordering::Relaxed) {
        // SAFETY: a handler that does what handlers may do.
        unsafe { pg_sys::pqsignal(pg_sys::SIGTERM as c_int, Some(note_end)) };
    }
}

/// Whether this process is to end as soon as it can.
pub fn is_asked_to_end() -> bool {
    asked_for_us().is_some()
}

/// For how long it has been asked to end.
fn asked_for_us() -> Option<u64> {
    let since = ASKED_TO_END.load(Ordering::Relaxed);
    (since != 0).then(|| proc::now().0.saturating_sub(since))
}

/// Requests to end are heeded at once again, also one that was only noted.
pub fn end_at_once() {
    if NOTES_END.swap(false, Ordering::Relaxed) {
        // SAFETY: as in `mtm_worker_main`; a signal to this process itself.
        unsafe {
            pg_sys::pqsignal(pg_sys::SIGTERM as c_int, Some(super::sys::die));
            if is_asked_to_end() {
                libc::kill(libc::getpid(), libc::SIGTERM);
            }
        }
    }
}

/// Reports that this process waits for work.
pub fn report_idle() {
    // SAFETY: as above; a null text is none.
    unsafe {
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, core::ptr::null());
    }
}

/// Adds what this process has counted to the server's statistics, on which autovacuum relies. If
/// it is too early, the microseconds after which to call again.
pub fn report_statistics() -> Option<u64> {
    let now = proc::now();
    // The server takes the end of the last transaction for the present, so that after a pause it
    // would still be too early.
    let force = REPORT_AT.get().is_some_and(|at| at <= now);
    // SAFETY: outside a transaction, in a process with a database.
    let again_ms = unsafe {
        if pg_sys::IsTransactionOrTransactionBlock() {
            return None;
        }
        pg_sys::pgstat_report_stat(force)
    };
    let again_us = u64::try_from(again_ms).ok().filter(|ms| *ms > 0).map(|ms| ms * 1000);
    let due = again_us.map(|us| REPORT_AT.get().unwrap_or_else(|| now.plus_us(us)));
    REPORT_AT.set(due);
    due.map(|at| at.since(now).max(1000))
}

thread_local! {
    /// When what this process has counted is to be reported at the latest; nothing if all of it is.
    static REPORT_AT: core::cell::Cell<Option<mtm_core::Instant>> =
        const { core::cell::Cell::new(None) };
}

/// An ERROR, caught.
#[derive(Clone, Debug)]
pub struct Caught {
    /// Five characters.
    pub sqlstate: [u8; 5],
    /// Primary message.
    pub message: String,
    /// Detail, may be empty.
    pub detail: String,
}

/// Runs `body`, catching an ERROR. The transaction must be rolled back afterwards.
pub fn catching<R>(body: impl FnOnce() -> R + core::panic::UnwindSafe) -> Result<R, Caught> {
    PgTryBuilder::new(move || Ok(body()))
        .catch_others(|error| Err(describe_error(&error)))
        .execute()
}

fn describe_error(error: &CaughtError) -> Caught {
    let report = match error {
        CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => report,
        CaughtError::RustPanic { ereport, .. } => ereport,
    };
    Caught {
        sqlstate: unpack(report.sql_error_code()),
        message: report.message().to_owned(),
        detail: report.detail().unwrap_or_default().to_owned(),
    }
}

fn unpack(code: pgrx::PgSqlErrorCode) -> [u8; 5] {
    // SAFETY: returns a static buffer of five characters and a zero byte.
    let text = unsafe { core::ffi::CStr::from_ptr(pg_sys::unpack_sql_state(code as i32)) };
    text.to_bytes().try_into().unwrap_or(*b"XX000")
}

/// Raises an ERROR with a SQLSTATE that came from elsewhere.
pub fn raise(sqlstate: &str, message: &str, detail: &str) -> ! {
    let code = sqlstate.bytes().take(5).enumerate().fold(0i32, |code, (i, byte)| {
        code | (i32::from(byte.wrapping_sub(b'0')) & 0x3f) << (6 * i)
    });
    let code = pgrx::PgSqlErrorCode::from(code as isize);
    let (message, detail) = (message.to_owned(), detail.to_owned());
    pgrx::ereport!(ERROR, code, message, detail);
}
