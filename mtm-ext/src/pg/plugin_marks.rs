//! Marks of commits, collected so that several travel together, or with what comes next anyway: a
//! packet for each would wake the peer's receiver for nothing but that.
//!
//! A peer that knows of no unfinished mark confirms up to wherever it was told that this walsender
//! has read (duty 29). So a mark leaves before any other message of the stream, and before the
//! walsender tells its place by itself: it does so where it reads the log, when it must look how
//! far that goes, right before it waits. Hence marks leave at each such look. It asks for answers,
//! naming its place, also between two records; those places do not count: see
//! [`mtm_logrep::stream::Keepalive::marked`]. When the server shuts down it only asks, and ends
//! when its peer has confirmed all: then the place is told here.

use super::plugin::{Context, plugin, write};
use super::walwake;
use core::ffi::{c_char, c_int};
use mtm_core::{Gid, Lsn};
use mtm_logrep::stream::{MARK_BYTES, StreamMessage};
use pgrx::pg_sys;

/// So many marks leave at the latest.
const MOST: usize = 64;

/// Marks that wait.
#[derive(Default)]
pub(super) struct Marks {
    bytes: Vec<u8>,
    /// The walsender's own way to read the log; without one no mark waits.
    read: pg_sys::XLogPageReadCB,
    /// The last place told.
    told: Lsn,
}

impl Marks {
    /// Those that wait; they leave with the caller's message.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// They have left.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
    }
}

/// From here on marks of this stream wait for company, if a walsender reads it.
///
/// # Safety
/// Within the startup callback of a context that will be read from, after its plugin is there.
pub(super) unsafe fn collect(ctx: Context) {
    // SAFETY: the caller's promise; the reader and its private data, the context, are there before
    // the plugin is started, and nothing was read yet. Both end together.
    unsafe {
        if pg_sys::am_walsender {
            let routine = &mut (*(*ctx).reader).routine;
            plugin(ctx).marks.read = routine.page_read.replace(read_page);
        }
    }
}

/// Tells that a transaction is committed, soon.
///
/// # Safety
/// Within a callback.
pub(super) unsafe fn mark(ctx: Context, gid: Gid, lsn: Lsn) {
    // SAFETY: the caller's promise.
    unsafe {
        let marks = &mut plugin(ctx).marks;
        StreamMessage::CommitMark { gid, lsn }.encode(&mut marks.bytes);
        // A function of SQL takes what is written at its end, also in a walsender.
        let to_sql = !(*ctx).output_writer_private.is_null();
        if marks.read.is_none() || to_sql || marks.bytes.len() >= MOST * MARK_BYTES {
            write(ctx, &[]);
        }
    }
}

/// Reads a page of the log, or more of it; what waits leaves before.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn read_page(
    reader: *mut pg_sys::XLogReaderState,
    page: pg_sys::XLogRecPtr,
    length: c_int,
    record: pg_sys::XLogRecPtr,
    buffer: *mut c_char,
) -> c_int {
    // SAFETY: the reader of a context that `collect` saw, with the arguments of its callback. No
    // callback of the plugin runs meanwhile, so that nothing else is being written; the boundary
    // turns the server's errors into panics.
    unsafe {
        let ctx = (*reader).private_data.cast::<pg_sys::LogicalDecodingContext>();
        if !plugin(ctx).marks.bytes.is_empty() {
            write_between(ctx, &[]);
            walwake::position_is_known();
        }
        let Some(read) = plugin(ctx).marks.read else { return -1 };
        let got = crate::ffi::pg_guard_ffi_boundary(|| read(reader, page, length, record, buffer));
        if got < 0 {
            tell_place(ctx, Lsn((*reader).EndRecPtr));
        }
        got
    }
}

/// There is nothing to read, and nothing to wait for: the server shuts down.
///
/// # Safety
/// Where the log is read, with the end of the last record.
unsafe fn tell_place(ctx: Context, lsn: Lsn) {
    // SAFETY: the caller's promise.
    unsafe {
        let marks = &mut plugin(ctx).marks;
        if core::mem::replace(&mut marks.told, lsn) != lsn {
            let mut bytes = Vec::new();
            StreamMessage::Place { lsn }.encode(&mut bytes);
            write_between(ctx, &bytes);
        }
    }
}

/// Sends what waits, and a message, between two records.
///
/// # Safety
/// Where the log is read.
unsafe fn write_between(ctx: Context, bytes: &[u8]) {
    // SAFETY: the caller's promise: no callback runs for which something else is being written.
    unsafe {
        (*ctx).accept_writes = true;
        (*ctx).write_location = (*(*ctx).reader).EndRecPtr;
        (*ctx).write_xid = pg_sys::InvalidTransactionId;
        write(ctx, bytes);
        (*ctx).accept_writes = false;
    }
}
