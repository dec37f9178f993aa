//! Processes of this server: latches, pids, clocks, interrupts.

use core::ffi::{c_int, c_long};
use mtm_core::Instant;
use pgrx::pg_sys;

/// Number of a process' slot in PostgreSQL's process array; names its latch.
pub type ProcNo = i32;

/// No process.
pub const NO_PROC: ProcNo = -1;

/// This process' slot, or `NO_PROC` before it has one.
pub fn my_procno() -> ProcNo {
    // SAFETY: MyProc is null or points to this process' own PGPROC in shared memory.
    unsafe { pg_sys::MyProc.as_ref().map_or(NO_PROC, |proc| proc.pgprocno) }
}

/// This process' pid.
pub fn my_pid() -> i32 {
    // SAFETY: a plain variable, set at process start.
    unsafe { pg_sys::MyProcPid }
}

/// Sets the latch of the process in this slot. A latch of a slot that has a new owner meanwhile
/// wakes that owner for nothing, which every latch user must bear.
pub fn wake(procno: ProcNo) {
    // SAFETY: allProcs has allProcCount elements for the life of the server and every element's
    // latch is initialised at start; SetLatch may be called by anyone on a shared latch.
    unsafe {
        let header = pg_sys::ProcGlobal;
        if procno >= 0 && (procno as u32) < (*header).allProcCount {
            pg_sys::SetLatch(&raw mut (*(*header).allProcs.add(procno as usize)).procLatch);
        }
    }
}

/// Pid of the process in this slot, 0 if there is none.
pub fn pid_of(procno: ProcNo) -> i32 {
    // SAFETY: as in `wake`; an int is read at once.
    unsafe {
        let header = pg_sys::ProcGlobal;
        if procno >= 0 && (procno as u32) < (*header).allProcCount {
            (&raw const (*(*header).allProcs.add(procno as usize)).pid).read_volatile()
        } else {
            0
        }
    }
}

/// Why [`wait`] returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Woken {
    /// Somebody set the latch; it is reset already.
    pub latch: bool,
    /// The socket has data, is writable or is closed.
    pub socket: bool,
}

/// What to wait for on a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interest {
    /// The socket's file descriptor.
    pub fd: c_int,
    /// Wait until it is readable.
    pub read: bool,
    /// Wait until it is writable.
    pub write: bool,
}

/// Waits for this process' latch, a socket, or `timeout_us`; exits if the postmaster is dead.
/// Timeouts are rounded up to milliseconds. Interrupts are the caller's duty.
pub fn wait(interest: Option<Interest>, timeout_us: Option<u64>) -> Woken {
    let mut events = (pg_sys::WL_LATCH_SET | pg_sys::WL_EXIT_ON_PM_DEATH) as c_int;
    let mut timeout: c_long = -1;
    if let Some(us) = timeout_us {
        events |= pg_sys::WL_TIMEOUT as c_int;
        timeout = c_long::try_from(us.div_ceil(1000)).unwrap_or(c_long::MAX);
    }
    let extension = pg_sys::PG_WAIT_EXTENSION;
    // SAFETY: MyLatch is this process' latch; the descriptor is open while `interest` is used.
    let got = unsafe {
        match interest {
            None => pg_sys::WaitLatch(pg_sys::MyLatch, events, timeout, extension),
            Some(socket) => {
                events |= if socket.read { pg_sys::WL_SOCKET_READABLE as c_int } else { 0 };
                events |= if socket.write { pg_sys::WL_SOCKET_WRITEABLE as c_int } else { 0 };
                pg_sys::WaitLatchOrSocket(pg_sys::MyLatch, events, socket.fd, timeout, extension)
            }
        }
    } as u32;
    let latch = got & pg_sys::WL_LATCH_SET != 0;
    if latch {
        // SAFETY: our own latch.
        unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
    }
    let socket = got & (pg_sys::WL_SOCKET_READABLE | pg_sys::WL_SOCKET_WRITEABLE) != 0;
    Woken { latch, socket }
}

/// Whether a socket is ready for what is to be waited for, or is broken.
pub fn is_ready(interest: Interest) -> bool {
    let read = if interest.read { libc::POLLIN } else { 0 };
    let write = if interest.write { libc::POLLOUT } else { 0 };
    let mut socket = libc::pollfd { fd: interest.fd, events: read | write, revents: 0 };
    // SAFETY: one element is given, and written to; it does not wait.
    unsafe { libc::poll(&raw mut socket, 1, 0) > 0 }
}

/// Waits for this process' latch or `timeout_us`; `false` if the postmaster is dead. For a
/// transaction that is committed but not yet out of COMMIT: ending the process there would try to
/// abort it, which PostgreSQL answers with a PANIC, and the client would take it for a failure.
pub fn wait_committed(timeout_us: u64) -> bool {
    let events = pg_sys::WL_LATCH_SET | pg_sys::WL_POSTMASTER_DEATH | pg_sys::WL_TIMEOUT;
    let timeout = c_long::try_from(timeout_us.div_ceil(1000)).unwrap_or(c_long::MAX);
    // SAFETY: MyLatch is this process' own latch.
    let got = unsafe {
        let extension = pg_sys::PG_WAIT_EXTENSION;
        pg_sys::WaitLatch(pg_sys::MyLatch, events as c_int, timeout, extension)
    } as u32;
    if got & pg_sys::WL_LATCH_SET != 0 {
        // SAFETY: our own latch.
        unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
    }
    got & pg_sys::WL_POSTMASTER_DEATH == 0
}

/// `CHECK_FOR_INTERRUPTS()`.
pub fn check_interrupts() {
    pgrx::check_for_interrupts!();
}

/// Whether a termination of this process waits to be handled.
pub fn is_terminated() -> bool {
    // SAFETY: a sig_atomic_t flag set by a signal handler.
    unsafe { (&raw const pg_sys::ProcDiePending).read_volatile() != 0 }
}

/// Ends the connection as soon as that is possible, and lets its client hear nothing more: as the
/// server does when a wait for a synchronous standby ends early. Elsewhere than in a client's
/// backend nobody waits for an answer, and nothing happens.
pub fn withhold_answer() {
    // SAFETY: plain variables of this process; a termination is handled at the next safe place.
    unsafe {
        if pg_sys::MyBackendType == pg_sys::BackendType::B_BACKEND {
            pg_sys::whereToSendOutput = pg_sys::CommandDest::DestNone;
            (&raw mut pg_sys::ProcDiePending).write_volatile(1);
            (&raw mut pg_sys::InterruptPending).write_volatile(1);
        }
    }
}

/// Whether a cancel or a termination of this process waits to be handled.
pub fn interrupted() -> bool {
    // SAFETY: sig_atomic_t flags set by signal handlers.
    unsafe {
        (&raw const pg_sys::QueryCancelPending).read_volatile() != 0
            || (&raw const pg_sys::ProcDiePending).read_volatile() != 0
    }
}

/// Whether this process was told to end.
pub fn is_to_end() -> bool {
    // SAFETY: a sig_atomic_t flag set by a signal handler.
    unsafe { (&raw const pg_sys::ProcDiePending).read_volatile() != 0 }
}

/// Whether the server still has its postmaster.
pub fn postmaster_is_alive() -> bool {
    // SAFETY: looks at a pipe that the postmaster holds open as long as it lives.
    unsafe { super::sys::PostmasterIsAliveInternal() }
}

/// Forgets a pending cancel that was meant for work that is over.
fn forget_cancel() {
    // SAFETY: a sig_atomic_t flag of this process.
    unsafe { (&raw mut pg_sys::QueryCancelPending).write_volatile(0) }
}

/// From here on cancels of this process wait, until [`allow_cancel`]; also to be called after an
/// ERROR, which forgets it.
pub fn hold_cancel() {
    // SAFETY: a counter of this process, read where interrupts are handled.
    unsafe { pg_sys::QueryCancelHoldoffCount = 1 }
}

/// Ends what [`hold_cancel`] began. A cancel that came meanwhile is forgotten.
pub fn allow_cancel() {
    forget_cancel();
    // SAFETY: as above.
    unsafe { pg_sys::QueryCancelHoldoffCount = 0 }
}

/// Cancels what the process in this slot is doing, as `pg_cancel_backend` does.
pub fn cancel(procno: ProcNo) {
    let pid = pid_of(procno);
    if pid > 0 {
        // SAFETY: a signal to a process of this server, read from its slot.
        unsafe { libc::kill(pid, libc::SIGINT) };
    }
}

/// Monotonic time, the same for all processes of this machine.
pub fn now() -> Instant {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to the given structure only; this clock always exists on Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut ts) };
    Instant(ts.tv_sec as u64 * 1_000_000 + ts.tv_nsec as u64 / 1000)
}

/// Ends the process in this slot, as `pg_terminate_backend` does.
pub fn terminate(procno: ProcNo) {
    let pid = pid_of(procno);
    if pid > 0 {
        // SAFETY: a signal to a process of this server, read from its slot.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
}
