//! Waiting for this process' latch and several sockets, with the kernel's registration kept from
//! one wait to the next.

use super::conn::Conn;
use super::proc::Woken;
use core::ffi::{c_int, c_long};
use pgrx::pg_sys;

/// What to wait for on a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Watch {
    /// Names the connection: a descriptor may be that of another connection meanwhile.
    id: u64,
    fd: c_int,
    read: bool,
    write: bool,
}

impl Watch {
    /// Waits until `conn` is readable or writable, as said.
    pub fn new(conn: &Conn, read: bool, write: bool) -> Self {
        Self { id: conn.id(), fd: conn.fd(), read, write }
    }

    const fn events(&self) -> u32 {
        (if self.read { pg_sys::WL_SOCKET_READABLE } else { 0 })
            | (if self.write { pg_sys::WL_SOCKET_WRITEABLE } else { 0 })
    }
}

const READABLE: u32 = pg_sys::WL_SOCKET_READABLE;

/// The latch, the postmaster, and sockets.
#[derive(Debug)]
pub struct WaitSet {
    raw: *mut pg_sys::WaitEventSet,
    watched: Vec<Watch>,
    positions: Vec<c_int>,
    /// By connection watched: the last wait found it readable.
    readable: Vec<bool>,
    /// How often in a row nothing was said of any connection.
    blind: u32,
}

/// After so many times connections are read without being asked for: a latch that is set already
/// ends a wait before it looks at any.
const BLIND: u32 = 4;

impl Default for WaitSet {
    fn default() -> Self {
        Self {
            raw: core::ptr::null_mut(),
            watched: Vec::new(),
            positions: Vec::new(),
            readable: Vec::new(),
            blind: 0,
        }
    }
}

impl Drop for WaitSet {
    fn drop(&mut self) {
        self.free();
    }
}

impl WaitSet {
    fn free(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: made by `rebuild` and freed once.
            unsafe { pg_sys::FreeWaitEventSet(self.raw) };
            self.raw = core::ptr::null_mut();
        }
    }

    fn rebuild(&mut self, watches: &[Watch]) {
        self.free();
        let latch = pg_sys::WL_LATCH_SET;
        // SAFETY: a set with room for the latch, the postmaster and every socket, in memory that
        // lives as long as the process; MyLatch is this process' own; descriptors are open.
        unsafe {
            let n = 2 + watches.len() as c_int;
            self.raw = pg_sys::CreateWaitEventSet(pg_sys::TopMemoryContext, n);
            let add = |events: u32, fd: c_int, latch: *mut pg_sys::Latch| {
                pg_sys::AddWaitEventToSet(self.raw, events, fd, latch, core::ptr::null_mut())
            };
            add(latch, pg_sys::PGINVALID_SOCKET, pg_sys::MyLatch);
            add(pg_sys::WL_EXIT_ON_PM_DEATH, pg_sys::PGINVALID_SOCKET, core::ptr::null_mut());
            self.positions =
                watches.iter().map(|w| add(w.events(), w.fd, core::ptr::null_mut())).collect();
        }
        self.watched = watches.to_vec();
    }

    fn set(&mut self, watches: &[Watch]) {
        let same = |(a, b): (&Watch, &Watch)| (a.id, a.fd) == (b.id, b.fd);
        let kept = !self.raw.is_null()
            && self.watched.len() == watches.len()
            && self.watched.iter().zip(watches).all(same);
        if !kept {
            return self.rebuild(watches);
        }
        for (i, watch) in watches.iter().enumerate() {
            if self.watched[i] != *watch {
                // SAFETY: a position that AddWaitEventToSet gave for this set.
                unsafe {
                    pg_sys::ModifyWaitEvent(
                        self.raw,
                        self.positions[i],
                        watch.events(),
                        core::ptr::null_mut(),
                    );
                }
                self.watched[i] = *watch;
            }
        }
    }

    /// Whether reading from a connection may bring something: not if the last wait was to say so
    /// and did not.
    pub fn may_read(&self, conn: &Conn) -> bool {
        let at = self.watched.iter().position(|watch| watch.id == conn.id() && watch.read);
        self.blind >= BLIND || at.is_none_or(|at| self.readable[at])
    }

    /// Instead of a wait, when there is work.
    pub fn pass(&mut self) {
        self.blind = if self.blind >= BLIND { 0 } else { self.blind + 1 };
        self.readable.fill(false);
    }

    /// Waits as [`super::proc::wait`] does. A connection that waits for nothing must not be given.
    pub fn wait(&mut self, watches: &[Watch], timeout_us: Option<u64>) -> Woken {
        self.set(watches);
        self.readable.clear();
        self.readable.resize(watches.len(), false);
        let timeout = match timeout_us {
            Some(us) => c_long::try_from(us.div_ceil(1000)).unwrap_or(c_long::MAX),
            None => -1,
        };
        let mut events = [pg_sys::WaitEvent::default(); 8];
        // SAFETY: the set is live, and the array has as many elements as said.
        let got = unsafe {
            pg_sys::WaitEventSetWait(
                self.raw,
                timeout,
                events.as_mut_ptr(),
                events.len() as c_int,
                pg_sys::PG_WAIT_EXTENSION,
            )
        };
        let seen = events[..got.max(0) as usize].iter().fold(0, |all, e| all | e.events);
        let latch = seen & pg_sys::WL_LATCH_SET != 0;
        if latch {
            // SAFETY: our own latch.
            unsafe { pg_sys::ResetLatch(pg_sys::MyLatch) };
        }
        let socket = seen & (READABLE | pg_sys::WL_SOCKET_WRITEABLE) != 0;
        if latch && !socket {
            self.pass();
        } else {
            self.blind = 0;
        }
        for event in events[..got.max(0) as usize].iter().filter(|e| e.events & READABLE != 0) {
            if let Some(at) = self.positions.iter().position(|position| *position == event.pos) {
                self.readable[at] = true;
            }
        }
        Woken { latch, socket }
    }
}
