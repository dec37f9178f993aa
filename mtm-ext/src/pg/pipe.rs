//! A backend turned into a message pipe: the receiving end of a peer's sender.

use super::sys;
use pgrx::pg_sys;

/// Longest message taken from a peer, in bytes.
const MAX_MESSAGE: i32 = 64 * 1024;

/// Leaves the transaction that CALL runs in for one without a snapshot, so that a pipe that lives
/// for months does not hold back vacuum.
pub fn leave_snapshot() {
    // SAFETY: called from a procedure that CALL runs outside a transaction block; SPI_commit
    // raises an ERROR otherwise.
    unsafe {
        if pg_sys::SPI_connect_ext(pg_sys::SPI_OPT_NONATOMIC as i32) < 0 {
            pgrx::error!("SPI_connect_ext failed");
        }
        pg_sys::SPI_commit();
        pg_sys::SPI_finish();
    }
}

/// Tells the client to begin sending: CopyInResponse, binary, no columns.
pub fn begin() {
    // SAFETY: the ordinary way to send a protocol message from a backend.
    unsafe {
        let mut buffer = pg_sys::StringInfoData::default();
        pg_sys::pq_beginmessage(&raw mut buffer, b'G' as core::ffi::c_char);
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
    // SAFETY: the frontend protocol: a type byte, then a message of bounded length, which
    // pq_getmessage reads into a buffer of this memory context.
    unsafe {
        sys::pq_startmsgread();
        let kind = sys::pq_getbyte();
        if kind < 0 {
            return false;
        }
        let mut buffer = pg_sys::StringInfoData::default();
        pg_sys::initStringInfo(&raw mut buffer);
        if sys::pq_getmessage(&raw mut buffer, MAX_MESSAGE) != 0 {
            return false;
        }
        if kind == i32::from(b'd') {
            let bytes = core::slice::from_raw_parts(buffer.data.cast::<u8>(), buffer.len as usize);
            into.extend_from_slice(bytes);
        }
        pg_sys::pfree(buffer.data.cast());
        kind == i32::from(b'd')
    }
}

/// Runs `body` and then `after`, also when the process ends in between.
pub fn with_exit_hook(body: impl FnOnce(), after: fn()) {
    #[pgrx::pg_guard]
    unsafe extern "C-unwind" fn on_exit(_code: i32, arg: pg_sys::Datum) {
        // SAFETY: the datum is the function pointer passed below.
        let after: fn() = unsafe { core::mem::transmute::<usize, fn()>(arg.value()) };
        after();
    }
    let arg = pg_sys::Datum::from(after as usize);
    // SAFETY: before_shmem_exit callbacks run at process exit; cancelled when `body` is done.
    unsafe { pg_sys::before_shmem_exit(Some(on_exit), arg) };
    body();
    // SAFETY: the callback was registered last, as cancel_before_shmem_exit demands.
    unsafe { pg_sys::cancel_before_shmem_exit(Some(on_exit), arg) };
    after();
}
