//! PostgreSQL functions that pgrx does not bind, as their headers declare them.

use core::ffi::{c_char, c_int};
use pgrx::pg_sys;
use pgrx::prelude::pg_guard;

#[pg_guard]
unsafe extern "C-unwind" {
    /// `replication/message.h` (15 and 16).
    pub fn LogLogicalMessage(
        prefix: *const c_char,
        message: *const c_char,
        size: usize,
        transactional: bool,
    ) -> pg_sys::XLogRecPtr;

    /// `access/twophase.h`.
    pub fn FinishPreparedTransaction(gid: *const c_char, is_commit: bool);

    /// `access/twophase.h`; the result is for [`StartPrepare`] alone.
    pub fn MarkAsPreparing(
        xid: pg_sys::TransactionId,
        gid: *const c_char,
        prepared_at: pg_sys::TimestampTz,
        owner: pg_sys::Oid,
        databaseid: pg_sys::Oid,
    ) -> *mut core::ffi::c_void;
    /// `access/twophase.h`.
    pub fn StartPrepare(gxact: *mut core::ffi::c_void);
    /// `access/twophase.h`.
    pub fn AtAbort_Twophase();
    /// `storage/lock.h`.
    pub fn AtPrepare_Locks();
    /// `utils/relmapper.h`.
    pub fn AtPrepare_RelationMap();

    /// `storage/predicate.h`.
    pub fn PreCommit_CheckForSerializationFailure();

    /// `commands/async.h`.
    pub fn AtPrepare_Notify();

    /// `catalog/pg_inherits.h`: a table and all that inherit from it.
    pub fn find_all_inheritors(
        parent: pg_sys::Oid,
        lock: pg_sys::LOCKMODE,
        parents: *mut *mut pg_sys::List,
    ) -> *mut pg_sys::List;

    /// `storage/pmsignal.h`.
    pub fn PostmasterIsAliveInternal() -> bool;

    /// `libpq/libpq.h`.
    pub fn pq_startmsgread();
    /// `libpq/libpq.h`.
    pub fn pq_endmsgread();
    /// `libpq/libpq.h`.
    pub fn pq_getbyte() -> c_int;
    /// `libpq/libpq.h`: 1 with a byte, 0 if none is there, negative when the client has gone.
    pub fn pq_getbyte_if_available(byte: *mut u8) -> c_int;
    /// `libpq/libpq.h`.
    pub fn pq_buffer_has_data() -> bool;
    /// `libpq/libpq.h`.
    pub fn pq_getmessage(s: pg_sys::StringInfo, maxlen: c_int) -> c_int;
}

/// `access/xlogutils.h`: what `read_local_xlog_page_no_wait` tells.
#[derive(Debug, Default)]
#[repr(C)]
pub struct ReadLocalXLogPageNoWaitPrivate {
    /// There is no more.
    pub end_of_wal: bool,
}

/// `libpq/libpq.h`: the methods of the client connection.
#[repr(C)]
pub struct PQcommMethods {
    pub comm_reset: Option<unsafe extern "C-unwind" fn()>,
    pub flush: Option<unsafe extern "C-unwind" fn() -> c_int>,
    pub flush_if_writable: Option<unsafe extern "C-unwind" fn() -> c_int>,
    pub is_send_pending: Option<unsafe extern "C-unwind" fn() -> bool>,
    pub putmessage: Option<unsafe extern "C-unwind" fn(c_char, *const c_char, usize) -> c_int>,
    pub putmessage_noblock: Option<unsafe extern "C-unwind" fn(c_char, *const c_char, usize)>,
}

unsafe extern "C-unwind" {
    /// `access/xlogutils.h`: a reader's callback, here only for its address.
    pub fn read_local_xlog_page_no_wait(
        state: *mut pg_sys::XLogReaderState,
        target_page: pg_sys::XLogRecPtr,
        requested: c_int,
        target_record: pg_sys::XLogRecPtr,
        page: *mut c_char,
    ) -> c_int;
    /// `access/xlogutils.h`: likewise.
    pub fn wal_segment_open(
        state: *mut pg_sys::XLogReaderState,
        segment: pg_sys::XLogSegNo,
        timeline: *mut pg_sys::TimeLineID,
    );
    /// `access/xlogutils.h`: likewise.
    pub fn wal_segment_close(state: *mut pg_sys::XLogReaderState);
    /// `tcop/tcopprot.h`: a signal handler.
    pub fn die(signal: c_int);
    /// `postmaster/interrupt.h`: a signal handler.
    pub fn SignalHandlerForConfigReload(signal: c_int);
}

unsafe extern "C" {
    /// `access/twophase.h`.
    pub static max_prepared_xacts: c_int;
    /// `libpq/libpq.h`: the client's socket, the latch and the postmaster, in a backend.
    pub static FeBeWaitSet: *mut pg_sys::WaitEventSet;
    /// `libpq/libpq.h`.
    pub static PqCommMethods: *const PQcommMethods;
    /// `libpq/auth.h`.
    pub static mut ClientAuthentication_hook: Option<ClientAuthentication>;
}

/// `libpq/auth.h`: called when a client has proved who it is, or has failed to.
pub type ClientAuthentication = unsafe extern "C-unwind" fn(*mut super::compat::Port, c_int);

/// Settings of this class that nobody defined are refused from now on. At library load.
pub fn reserve_settings(class: &core::ffi::CStr) {
    // SAFETY: a C string, copied.
    unsafe { pg_sys::MarkGUCPrefixReserved(class.as_ptr()) }
}
