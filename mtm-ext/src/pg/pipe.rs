//! A backend turned into a message pipe: the receiving end of a peer's sender.

use super::sys;
use pgrx::pg_sys;

/// Longest message taken from a peer, in bytes.
const MAX_MESSAGE: i32 = 64 * 1024;

/// Runs `body` outside the transaction that CALL runs in: a pipe that lives for months holds
/// nothing back, and can end prepared transactions and report statistics like a worker.
pub fn outside_transaction(body: impl FnOnce()) {
    // SAFETY: called from a procedure that CALL runs outside a transaction block; SPI_commit
    // raises an ERROR otherwise. It leaves a transaction without snapshot and locks in which the
    // portal of the CALL goes on; that one is ended, and a new one is there when the procedure
    // returns. An ERROR in between finds no transaction, which the main loop's cleanup allows.
    unsafe {
        if pg_sys::SPI_connect_ext(pg_sys::SPI_OPT_NONATOMIC as i32) < 0 {
            pgrx::error!("SPI_connect_ext failed");
        }
        pg_sys::SPI_commit();
        pg_sys::SPI_finish();
        pg_sys::CommitTransactionCommand();
        body();
        pg_sys::StartTransactionCommand();
    }
}

/// Tells the client that both sides may send now: CopyBothResponse, binary, no columns.
pub fn begin() {
    // SAFETY: the ordinary way to send a protocol message from a backend.
    unsafe {
        let mut buffer = pg_sys::StringInfoData::default();
        pg_sys::pq_beginmessage(&raw mut buffer, b'W' as core::ffi::c_char);
        pg_sys::pq_sendbytes(&raw mut buffer, [1u8, 0, 0].as_ptr().cast(), 3);
        pg_sys::pq_endmessage(&raw mut buffer);
        if let Some(flush) = (*sys::PqCommMethods).flush {
            flush();
        }
    }
}

/// Waits for the next message; `false` when the client has gone or ended the pipe.
pub fn receive(into: &mut Vec<u8>) -> bool {
    into.clear();
    // SAFETY: as the main loop of a backend reads a message.
    unsafe {
        sys::pq_startmsgread();
        let kind = sys::pq_getbyte();
        kind >= 0 && take_message(kind as u8, into)
    }
}

/// What [`receive_now`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Received {
    /// A message.
    Message,
    /// None is there yet.
    Nothing,
    /// The client has gone or ended the pipe.
    End,
}

/// Takes the next message if it has begun to arrive.
pub fn receive_now(into: &mut Vec<u8>) -> Received {
    into.clear();
    let mut kind = 0;
    // SAFETY: as a walsender reads its client's messages.
    unsafe {
        sys::pq_startmsgread();
        match sys::pq_getbyte_if_available(&raw mut kind) {
            0 => {
                sys::pq_endmsgread();
                Received::Nothing
            }
            1 if take_message(kind, into) => Received::Message,
            _ => Received::End,
        }
    }
}

/// Reads the message that has begun with `kind`.
///
/// # Safety
/// Between pq_startmsgread and the message's length.
unsafe fn take_message(kind: u8, into: &mut Vec<u8>) -> bool {
    // SAFETY: the frontend protocol: after the type byte a message of bounded length, which
    // pq_getmessage reads into a buffer of this memory context.
    unsafe {
        let mut buffer = pg_sys::StringInfoData::default();
        pg_sys::initStringInfo(&raw mut buffer);
        if sys::pq_getmessage(&raw mut buffer, MAX_MESSAGE) != 0 {
            return false;
        }
        if kind == b'd' {
            let bytes = core::slice::from_raw_parts(buffer.data.cast::<u8>(), buffer.len as usize);
            into.extend_from_slice(bytes);
        }
        pg_sys::pfree(buffer.data.cast());
        kind == b'd'
    }
}

/// Waits for a message, this process' latch, or `timeout_us`.
pub fn wait(timeout_us: u64) {
    let timeout = core::ffi::c_long::try_from(timeout_us.div_ceil(1000));
    let mut event = pg_sys::WaitEvent::default();
    // SAFETY: the set that every backend with a client has, with the client's socket at the
    // position that is always the first; it also ends the process when the postmaster is dead.
    unsafe {
        let (set, readable) = (sys::FeBeWaitSet, pg_sys::WL_SOCKET_READABLE);
        pg_sys::ModifyWaitEvent(set, SOCKET, readable, core::ptr::null_mut());
        let timeout = timeout.unwrap_or(core::ffi::c_long::MAX);
        pg_sys::WaitEventSetWait(set, timeout, &raw mut event, 1, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
}

/// `FeBeWaitSetSocketPos`
const SOCKET: i32 = 0;

/// Sends a message to the client and does not wait for it.
pub fn send(bytes: &[u8]) {
    // SAFETY: the ordinary way to send a protocol message from a backend; the bytes are copied
    // into the connection's buffer, which is then flushed.
    unsafe {
        let methods = &*sys::PqCommMethods;
        if let (Some(put), Some(flush)) = (methods.putmessage, methods.flush) {
            put(b'd' as core::ffi::c_char, bytes.as_ptr().cast(), bytes.len());
            flush();
        }
    }
}

/// Whether more from the client is there already.
pub fn more_waiting() -> bool {
    let mut byte = 0u8;
    // SAFETY: the client's socket is open as long as the backend runs; one byte is looked at and
    // left there, without waiting.
    unsafe {
        sys::pq_buffer_has_data() || {
            // The socket is Port's first field in every version (`libpq/libpq-be.h`).
            let fd = *pg_sys::MyProcPort.cast::<core::ffi::c_int>();
            let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
            libc::recv(fd, (&raw mut byte).cast(), 1, flags) > 0
        }
    }
}

thread_local! {
    /// What is still to be done at this process' end.
    static AT_EXIT: core::cell::Cell<Option<fn()>> = const { core::cell::Cell::new(None) };
}

/// Runs `body` and then `after`, also when the process ends in between.
pub fn with_exit_hook(body: impl FnOnce(), after: fn()) {
    #[pgrx::pg_guard]
    unsafe extern "C-unwind" fn on_exit(_code: i32, _arg: pg_sys::Datum) {
        if let Some(after) = AT_EXIT.take() {
            after();
        }
    }
    AT_EXIT.set(Some(after));
    // SAFETY: before_shmem_exit callbacks run at process exit. It is never cancelled, which core
    // allows only while none was registered after it; a second run finds nothing to do.
    unsafe { pg_sys::before_shmem_exit(Some(on_exit), pg_sys::Datum::from(0)) };
    body();
    if let Some(after) = AT_EXIT.take() {
        after();
    }
}
