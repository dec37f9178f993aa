//! The output plugin for large transactions: their changes leave the log while they are still
//! being made, a small part at a time, so that the announcement has little left to send and the
//! small transactions of others find the walsender free.
//!
//! Nothing is decided or applied before the announcement. Peers keep what they get apart and learn
//! at the announcement which subtransactions count; what is rolled back before is dropped.

use super::pgflags as flags;
use super::plugin::{Context, PIECE_BYTES, Plugin, Txn};
use super::plugin::{encode_row, mark_commit, plugin, send, send_unavailable, take_marker, write};
use super::rows::Encoded;
use core::ffi::{CStr, c_char, c_int};
use mtm_logrep::announcement::{DDL_PREFIX, MARKER_PREFIX, USER_PREFIX};
use mtm_logrep::ddl::{self, Rows};
use mtm_logrep::early::Early;
use mtm_logrep::row::RowWriter;
use mtm_logrep::stream::{Children, StreamMessage};
use pgrx::pg_sys;
use std::collections::BTreeMap;

/// kB of changes that wait in a walsender before the largest transaction's are sent: small enough
/// for a part to be sent in a few milliseconds, large enough for ordinary transactions to wait for
/// their announcement.
const PART_KB: c_int = 2048;

/// Length of the head of [`StreamMessage::Early`].
const HEAD_BYTES: usize = 5;

/// The transactions in progress of which something was sent.
#[derive(Default)]
pub(super) struct Streams {
    all: BTreeMap<u32, Early>,
    /// The one of which a part is being sent.
    current: u32,
    /// The (sub)transaction that the message being built speaks of; 0 is none.
    speaks_of: u32,
}

impl Streams {
    fn current(&mut self) -> &mut Early {
        self.all.entry(self.current).or_default()
    }
}

/// Adds the callbacks of transactions in progress.
pub(super) fn register(callbacks: &mut pg_sys::OutputPluginCallbacks) {
    callbacks.stream_start_cb = Some(stream_start);
    callbacks.stream_stop_cb = Some(stream_stop);
    callbacks.stream_abort_cb = Some(stream_abort);
    callbacks.stream_prepare_cb = Some(stream_prepare);
    callbacks.stream_commit_cb = Some(stream_commit);
    callbacks.stream_change_cb = Some(stream_change);
    callbacks.stream_message_cb = Some(stream_message);
    callbacks.stream_truncate_cb = Some(stream_truncate);
}

/// Lets this walsender send large transactions in small parts; a smaller setting stays.
pub(super) fn bound_memory() {
    // SAFETY: a setting that any session may change, set by its documented name.
    unsafe {
        if pg_sys::logical_decoding_work_mem > PART_KB {
            let value = std::ffi::CString::new(PART_KB.to_string()).expect("digits");
            let context = pg_sys::GucContext::PGC_USERSET;
            let source = pg_sys::GucSource::PGC_S_SESSION;
            let name = c"logical_decoding_work_mem";
            pg_sys::SetConfigOption(name.as_ptr(), value.as_ptr(), context, source);
        }
    }
}

/// Begins a message of the current transaction.
fn begin(plugin: &mut Plugin) {
    plugin.buffer.clear();
    let xid = plugin.streams.current;
    StreamMessage::Early { xid, payload: &[] }.encode(&mut plugin.buffer);
    plugin.encoder.begin_transaction();
    plugin.streams.speaks_of = 0;
}

/// What is appended next belongs to this (sub)transaction.
fn speak_of(plugin: &mut Plugin, subxid: u32) {
    if plugin.streams.speaks_of != subxid {
        plugin.streams.speaks_of = subxid;
        RowWriter::new(&mut plugin.buffer).subxact(subxid);
    }
}

/// Undoes [`speak_of`] when nothing followed.
fn take_back(plugin: &mut Plugin, (length, speaks_of): (usize, u32)) {
    plugin.buffer.truncate(length);
    plugin.streams.speaks_of = speaks_of;
}

/// Sends what is buffered, if anything.
///
/// # Safety
/// Within a callback between `stream_start` and `stream_stop`.
unsafe fn send_part(ctx: Context) {
    // SAFETY: the caller's promise.
    unsafe {
        let plugin = plugin(ctx);
        if plugin.buffer.len() > HEAD_BYTES {
            plugin.streams.current().count_piece();
            write(ctx, &plugin.buffer);
        }
        begin(plugin);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn stream_start(ctx: Context, txn: Txn) {
    // SAFETY: within a callback, with its arguments.
    unsafe {
        let plugin = plugin(ctx);
        plugin.streams.current = (*txn).xid.into_inner();
        let xid = plugin.streams.current;
        let early = plugin.streams.current();
        if early.depends_on_others_than(xid) {
            // Core forgets a subtransaction at its abort record, before anything that follows it.
            let alive = flags::subtransactions(txn);
            early.retain(|subxid| subxid == xid || alive.contains(&subxid));
        }
        begin(plugin);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn stream_stop(ctx: Context, _txn: Txn) {
    // SAFETY: within a callback.
    unsafe {
        send_part(ctx);
        plugin(ctx).buffer.clear();
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn stream_change(
    ctx: Context,
    _txn: Txn,
    relation: pg_sys::Relation,
    change: *mut pg_sys::ReorderBufferChange,
) {
    // SAFETY: within a callback, with its arguments; a change belongs to a live transaction.
    unsafe {
        let plugin = plugin(ctx);
        let early = plugin.streams.current();
        let rows = early.rows();
        if early.failure().is_some() || rows == Rows::None {
            return;
        }
        let subxid = (*(*change).txn).xid.into_inner();
        let before = (plugin.buffer.len(), plugin.streams.speaks_of);
        speak_of(plugin, subxid);
        match encode_row(plugin, rows, relation, change) {
            Ok(Encoded::Appended) if plugin.buffer.len() >= PIECE_BYTES => send_part(ctx),
            Ok(Encoded::Appended) => {}
            // A table of this node alone is nothing to speak of.
            Ok(Encoded::Skipped) => take_back(plugin, before),
            Err(error) => {
                take_back(plugin, before);
                plugin.streams.current().fail(subxid, error.to_string());
            }
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn stream_truncate(
    ctx: Context,
    _txn: Txn,
    n: c_int,
    relations: *mut pg_sys::Relation,
    change: *mut pg_sys::ReorderBufferChange,
) {
    // SAFETY: within a callback, with its arguments: `n` relations.
    unsafe {
        let plugin = plugin(ctx);
        let early = plugin.streams.current();
        if early.failure().is_some() || early.rows() == Rows::None {
            return;
        }
        let before = (plugin.buffer.len(), plugin.streams.speaks_of);
        speak_of(plugin, (*(*change).txn).xid.into_inner());
        let relations = core::slice::from_raw_parts(relations, n as usize);
        let encoded = plugin.encoder.encode_truncate(relations, change, &mut plugin.buffer);
        if encoded == Encoded::Skipped {
            take_back(plugin, before);
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn stream_message(
    ctx: Context,
    txn: Txn,
    _lsn: pg_sys::XLogRecPtr,
    transactional: bool,
    prefix: *const c_char,
    size: usize,
    content: *const c_char,
) {
    // SAFETY: within a callback, with its arguments: a C string and `size` bytes.
    unsafe {
        let prefix = CStr::from_ptr(prefix).to_bytes();
        let content = core::slice::from_raw_parts(content.cast::<u8>(), size);
        if transactional && prefix == MARKER_PREFIX.as_bytes() {
            take_marker(ctx, txn, content);
        }
        let plugin = plugin(ctx);
        if transactional && prefix == USER_PREFIX.as_bytes() {
            // Written when all else is done, in no subtransaction.
            speak_of(plugin, (*txn).xid.into_inner());
            RowWriter::new(&mut plugin.buffer).user(content);
        }
        if !transactional || prefix != DDL_PREFIX.as_bytes() {
            return;
        }
        let subxid = speaker(txn);
        match ddl::peek(content) {
            Ok((rows, travels)) => {
                if let Some(rows) = rows {
                    plugin.streams.current().say(subxid, rows);
                }
                if travels {
                    speak_of(plugin, subxid);
                    RowWriter::new(&mut plugin.buffer).ddl(content);
                }
            }
            Err(error) => pgrx::error!("malformed DDL message in the log: {error}"),
        }
    }
}

/// The (sub)transaction of the message being streamed, which is not among the arguments.
///
/// # Safety
/// Within the callback of a streamed message of `txn`.
unsafe fn speaker(txn: Txn) -> u32 {
    // SAFETY: core sets the variable to the number of each change's own transaction, unless that
    // is committed; then all of it is and nothing is left to tell apart.
    unsafe {
        match pg_sys::CheckXidAlive {
            pg_sys::InvalidTransactionId => (*txn).xid.into_inner(),
            subxid => subxid.into_inner(),
        }
    }
}

/// A (sub)transaction is rolled back. Which subtransactions count is said at the announcement, and
/// after that the outcome travels between nodes: only a transaction never announced is news.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn stream_abort(ctx: Context, txn: Txn, _lsn: pg_sys::XLogRecPtr) {
    // SAFETY: within a callback, with its arguments.
    unsafe {
        if !flags::is_subtransaction(txn) {
            drop_early(ctx, (*txn).xid.into_inner());
        }
    }
}

/// A transaction that was committed: announced long ago, or never, because peers have no part in
/// it.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn stream_commit(ctx: Context, txn: Txn, _lsn: pg_sys::XLogRecPtr) {
    // SAFETY: within a callback, with its arguments.
    unsafe {
        drop_early(ctx, (*txn).xid.into_inner());
        mark_commit(ctx, txn);
    }
}

/// Nothing becomes of what was sent of it: it was rolled back unannounced, or its announcement
/// came too late.
///
/// # Safety
/// Within a callback.
pub(super) unsafe fn drop_early(ctx: Context, xid: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        if plugin(ctx).streams.all.remove(&xid).is_some() {
            send(ctx, &StreamMessage::EarlyAbort { xid });
        }
    }
}

/// The announcement of a transaction of which parts were sent, after the last part.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn stream_prepare(ctx: Context, txn: Txn, _lsn: pg_sys::XLogRecPtr) {
    // SAFETY: within a callback, with its arguments.
    unsafe {
        let xid = (*txn).xid.into_inner();
        let plugin = plugin(ctx);
        let early = plugin.streams.all.remove(&xid).unwrap_or_default();
        let Some(current) = &mut plugin.current else { return };
        let (gid, lsn) = (current.gid, current.lsn);
        if flags::was_any_aborted_concurrently(txn) {
            // Rows may be missing: this must never be prepared.
            send(ctx, &StreamMessage::EarlyAbort { xid });
            return send_unavailable(ctx, gid, lsn);
        }
        if let Some(why) = early.failure() {
            send(ctx, &StreamMessage::EarlyAbort { xid });
            return send(ctx, &StreamMessage::Unshippable { gid, lsn, why });
        }
        let mut children = Vec::new();
        Children::encode(core::mem::take(&mut current.children), &mut children);
        let children = Children::parse(&children).expect("just sorted");
        let pieces = early.pieces();
        send(ctx, &StreamMessage::EarlyDone { gid, xid, lsn, pieces, children });
    }
}
