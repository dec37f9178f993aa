//! The output plugin: announced transactions leave the log while they are still in progress.
//!
//! The announcement is a non-transactional message. On it the plugin makes the reorder buffer
//! replay the transaction as if it had been prepared there (design: "How a transaction commits",
//! section 1); the decision travels between nodes. At the COMMIT record only a mark is sent, so that
//! the peer knows up to where it has everything, whoever's it is.
//!
//! The name of a transaction lives in the reorder buffer, beside the transaction: from its
//! announcement, or from the marker inside it when that is seen first at the end.
//!
//! A peer that recovers asks for mode `recovery`: see [`plugin_recovery`].

use super::rows::{Encoded, RowEncoder, Unidentified};
use super::{pgflags as flags, plugin_marks, plugin_options, plugin_recovery, plugin_stream};
use core::ffi::{CStr, c_char, c_int};
use mtm_core::{Gid, Lsn};
use mtm_logrep::announcement::{
    Announcement, DDL_PREFIX, MARKER_PREFIX, PREFIX, USER_PREFIX, USER_PREPARED_PREFIX,
};
use mtm_logrep::ddl::{self, Rows};
use mtm_logrep::journal::{self, UserPrepared};
use mtm_logrep::row::RowWriter;
use mtm_logrep::stream::StreamMessage;
use pgrx::pg_sys;

/// A piece is sent when it has this many bytes.
pub(super) const PIECE_BYTES: usize = 64 * 1024;

/// What one walsender's plugin knows; hangs on the decoding context.
pub(super) struct Plugin {
    pub(super) encoder: RowEncoder,
    /// The announced transaction being replayed.
    pub(super) current: Option<Current>,
    /// What becomes of rows at this point of the transaction.
    pub(super) rows: Rows,
    /// The message being built.
    pub(super) buffer: Vec<u8>,
    /// Marks that wait for what comes next.
    pub(super) marks: plugin_marks::Marks,
    /// Transactions in progress.
    pub(super) streams: plugin_stream::Streams,
    /// The transaction that a recovering peer gets.
    pub(super) recovery: plugin_recovery::Recovery,
}

pub(super) struct Current {
    pub(super) gid: Gid,
    pub(super) lsn: Lsn,
    /// Its committed subtransactions.
    pub(super) children: Vec<u32>,
    first: bool,
    failed: bool,
}

/// Name PostgreSQL looks for in an output plugin's library.
///
/// # Safety
/// Called by PostgreSQL with a callback table to be filled.
#[pgrx::pg_guard]
#[unsafe(no_mangle)]
unsafe extern "C-unwind" fn _PG_output_plugin_init(callbacks: *mut pg_sys::OutputPluginCallbacks) {
    // SAFETY: the caller's promise.
    let callbacks = unsafe { &mut *callbacks };
    callbacks.startup_cb = Some(startup);
    callbacks.begin_cb = Some(ignore_begin);
    callbacks.change_cb = Some(change);
    callbacks.truncate_cb = Some(truncate);
    callbacks.commit_cb = Some(commit);
    callbacks.message_cb = Some(message);
    callbacks.filter_by_origin_cb = Some(filter_by_origin);
    callbacks.shutdown_cb = Some(shutdown);
    callbacks.filter_prepare_cb = Some(filter_prepare);
    callbacks.begin_prepare_cb = Some(begin_prepare);
    callbacks.prepare_cb = Some(prepare);
    callbacks.commit_prepared_cb = Some(ignore_end);
    callbacks.rollback_prepared_cb = Some(ignore_rollback_prepared);
    plugin_stream::register(callbacks);
}

pub(super) type Context = *mut pg_sys::LogicalDecodingContext;
pub(super) type Txn = *mut pg_sys::ReorderBufferTXN;

/// The plugin of this context.
///
/// # Safety
/// `ctx` went through `startup` and the result is not kept beyond the callback.
pub(super) unsafe fn plugin<'a>(ctx: Context) -> &'a mut Plugin {
    // SAFETY: `startup` stored a leaked box there; callbacks do not overlap, except `message`,
    // which makes the reorder buffer call others and holds no reference meanwhile.
    unsafe { &mut *(*ctx).output_plugin_private.cast::<Plugin>() }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn startup(
    ctx: Context,
    options: *mut pg_sys::OutputPluginOptions,
    is_init: bool,
) {
    // SAFETY: PostgreSQL's arguments; the box is freed in `shutdown`.
    unsafe {
        let wanted = plugin_options::read((*ctx).output_plugin_options);
        (*options).output_type = pg_sys::OutputPluginOutputType::OUTPUT_PLUGIN_BINARY_OUTPUT;
        // ALTER TABLE with values that only this node knows ships the rewritten rows.
        (*options).receive_rewrites = true;
        let binary = crate::guc::BINARY_BASETYPES.get();
        let plugin = Plugin {
            encoder: RowEncoder::new((*ctx).context, binary, crate::hook::is_local),
            current: None,
            rows: Rows::Ordinary,
            buffer: Vec::with_capacity(1024),
            marks: plugin_marks::Marks::default(),
            streams: plugin_stream::Streams::default(),
            recovery: plugin_recovery::Recovery::new(wanted.hold),
        };
        if wanted.recovery {
            plugin_recovery::take_over(ctx);
        } else if !is_init {
            // A recovering peer must be woken for commit records; this one need not be.
            super::walwake::register_stream();
        }
        if !wanted.recovery {
            plugin_stream::bound_memory();
        }
        (*ctx).output_plugin_private = Box::into_raw(Box::new(plugin)).cast();
        if !wanted.recovery && !is_init {
            plugin_marks::collect(ctx);
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn shutdown(ctx: Context) {
    // SAFETY: `startup` stored a leaked box there, freed once.
    unsafe {
        let plugin = (*ctx).output_plugin_private.cast::<Plugin>();
        if !plugin.is_null() {
            drop(Box::from_raw(plugin));
            (*ctx).output_plugin_private = core::ptr::null_mut();
        }
    }
}

/// Rows written for other nodes carry their number; ends of transactions carry
/// `DoNotReplicateId`; what this node does itself carries nothing.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn filter_by_origin(_ctx: Context, origin: pg_sys::RepOriginId) -> bool {
    origin != 0 && origin != super::xact::DO_NOT_REPLICATE
}

/// PREPARE records say nothing new: peers' transactions are not ours to send, and users' were
/// announced before.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn filter_prepare(
    _ctx: Context,
    _xid: pg_sys::TransactionId,
    _gid: *const c_char,
) -> bool {
    true
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn ignore_begin(_ctx: Context, _txn: Txn) {}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn ignore_end(_ctx: Context, _txn: Txn, _lsn: pg_sys::XLogRecPtr) {}

/// A commit record of this node, or of a transaction that it applied.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn commit(ctx: Context, txn: Txn, _lsn: pg_sys::XLogRecPtr) {
    // SAFETY: within a callback, with its arguments.
    unsafe { mark_commit(ctx, txn) }
}

/// Tells that the transaction is committed, if it is one of the cluster's.
///
/// # Safety
/// Within the callback of a commit record, with its transaction.
pub(super) unsafe fn mark_commit(ctx: Context, txn: Txn) {
    // SAFETY: the caller's promise; core has noted the end of the commit record.
    unsafe {
        if let Some(gid) = flags::name(txn) {
            plugin_marks::mark(ctx, gid, Lsn((*txn).end_lsn));
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn ignore_rollback_prepared(
    _ctx: Context,
    _txn: Txn,
    _end: pg_sys::XLogRecPtr,
    _time: pg_sys::TimestampTz,
) {
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn begin_prepare(ctx: Context, _txn: Txn) {
    // SAFETY: within a callback.
    let plugin = unsafe { plugin(ctx) };
    plugin.encoder.begin_transaction();
    plugin.rows = Rows::Ordinary;
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn change(
    ctx: Context,
    _txn: Txn,
    relation: pg_sys::Relation,
    change: *mut pg_sys::ReorderBufferChange,
) {
    // SAFETY: within a callback, with its arguments.
    unsafe {
        let plugin = plugin(ctx);
        if plugin.current.as_ref().is_none_or(|current| current.failed) {
            return;
        }
        match encode_row(plugin, plugin.rows, relation, change) {
            Ok(Encoded::Appended) if plugin.buffer.len() >= PIECE_BYTES => send_piece(ctx, false),
            Ok(_) => {}
            Err(error) => send_unshippable(ctx, &error.to_string()),
        }
    }
}

/// Appends a row's change, if rows travel at this point of the transaction.
///
/// # Safety
/// Within a callback, with its arguments.
pub(super) unsafe fn encode_row(
    plugin: &mut Plugin,
    rows: Rows,
    relation: pg_sys::Relation,
    change: *mut pg_sys::ReorderBufferChange,
) -> Result<Encoded, Unidentified> {
    // SAFETY: the caller's promise.
    unsafe {
        let rewritten = (*(*relation).rd_rel).relrewrite;
        match (rows, rewritten != pg_sys::InvalidOid) {
            (Rows::None, _) | (Rows::Ordinary, true) => Ok(Encoded::Skipped),
            (_, false) => plugin.encoder.encode_change(relation, change, &mut plugin.buffer),
            (Rows::WithRewritten, true) => {
                // The table itself: it has the new columns already.
                let table = pg_sys::RelationIdGetRelation(rewritten);
                let encoded = plugin.encoder.encode_change(table, change, &mut plugin.buffer);
                pg_sys::RelationClose(table);
                encoded
            }
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn truncate(
    ctx: Context,
    _txn: Txn,
    n: c_int,
    relations: *mut pg_sys::Relation,
    change: *mut pg_sys::ReorderBufferChange,
) {
    // SAFETY: within a callback, with its arguments: `n` relations.
    unsafe {
        let plugin = plugin(ctx);
        if plugin.rows == Rows::None {
            return;
        }
        if plugin.current.as_ref().is_some_and(|current| !current.failed) {
            let relations = core::slice::from_raw_parts(relations, n as usize);
            plugin.encoder.encode_truncate(relations, change, &mut plugin.buffer);
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn prepare(ctx: Context, txn: Txn, _lsn: pg_sys::XLogRecPtr) {
    // SAFETY: within a callback, with its arguments.
    unsafe {
        let Some(current) = &plugin(ctx).current else { return };
        let (gid, lsn, failed) = (current.gid, current.lsn, current.failed);
        if failed {
            return;
        }
        if flags::was_aborted_concurrently(txn) {
            // Rows may be missing: this must never be prepared.
            send_unavailable(ctx, gid, lsn);
        } else {
            send_piece(ctx, true);
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn message(
    ctx: Context,
    txn: Txn,
    lsn: pg_sys::XLogRecPtr,
    transactional: bool,
    prefix: *const c_char,
    size: usize,
    content: *const c_char,
) {
    // SAFETY: within a callback, with its arguments: a C string and `size` bytes.
    unsafe {
        let prefix = CStr::from_ptr(prefix).to_bytes();
        let content = core::slice::from_raw_parts(content.cast::<u8>(), size);
        if transactional && prefix == DDL_PREFIX.as_bytes() {
            let plugin = plugin(ctx);
            if plugin.current.as_ref().is_some_and(|current| !current.failed) {
                take_ddl(plugin, content);
            }
        } else if transactional && prefix == USER_PREFIX.as_bytes() {
            let plugin = plugin(ctx);
            if plugin.current.as_ref().is_some_and(|current| !current.failed) {
                RowWriter::new(&mut plugin.buffer).user(content);
            }
        } else if !transactional && prefix == USER_PREPARED_PREFIX.as_bytes() {
            // The commit record of a first operation.
            let gid = user_prepared(content).gid;
            send(ctx, &StreamMessage::CommitMark { gid, lsn: Lsn(lsn) });
        } else if transactional && prefix == MARKER_PREFIX.as_bytes() {
            take_marker(ctx, txn, content);
        } else if !transactional && prefix == PREFIX.as_bytes() {
            match Announcement::decode(content) {
                Ok(announcement) => replay(ctx, txn, lsn, &announcement),
                Err(error) => pgrx::error!("malformed announcement in the log: {error}"),
            }
        }
    }
}

/// Appends a message about DDL, if it travels, and heeds what it says of the rows to come.
pub(super) fn take_ddl(plugin: &mut Plugin, content: &[u8]) {
    match ddl::peek(content) {
        Ok((rows, travels)) => {
            plugin.rows = rows.unwrap_or(plugin.rows);
            if travels {
                RowWriter::new(&mut plugin.buffer).ddl(content);
            }
        }
        Err(error) => pgrx::error!("malformed DDL message in the log: {error}"),
    }
}

/// Reads the note that a user's transaction is user-prepared.
pub(super) fn user_prepared(content: &[u8]) -> UserPrepared {
    match UserPrepared::decode(content) {
        Ok(prepared) => prepared,
        Err(error) => pgrx::error!("malformed note of a prepared transaction in the log: {error}"),
    }
}

/// Notes the name that a transaction carries inside itself.
///
/// # Safety
/// Within the callback of a transactional message, with its arguments.
pub(super) unsafe fn take_marker(ctx: Context, txn: Txn, content: &[u8]) {
    // Older logs have markers without a name.
    if content.is_empty() {
        return;
    }
    match journal::gid_from_bytes(content) {
        // SAFETY: the caller's promise.
        Ok(gid) => unsafe { flags::set_name((*ctx).reorder, txn, &gid) },
        Err(error) => pgrx::error!("malformed marker in the log: {error}"),
    }
}

/// Replays an announced transaction as if it were prepared here.
///
/// # Safety
/// Within the message callback.
unsafe fn replay(ctx: Context, txn: Txn, lsn: pg_sys::XLogRecPtr, announced: &Announcement) {
    let gid = announced.gid;
    let xid = pg_sys::TransactionId::from(announced.xid.short());
    if crate::pg::shmem::header().me() != Some(gid.origin) {
        return; // written before this data directory became another node
    }
    // SAFETY: within the message callback; `txn` is the announcing transaction. The reorder
    // buffer calls begin_prepare, change, message, truncate and prepare on the way.
    unsafe {
        if txn.is_null() || (*txn).xid != xid {
            pgrx::error!("announcement of {gid} in transaction {:?}", txn.as_ref().map(|t| t.xid));
        }
        super::walwake::position_is_known();
        let reorder = (*ctx).reorder;
        for child in &announced.children {
            let child = pg_sys::TransactionId::from(*child);
            pg_sys::ReorderBufferCommitChild(reorder, xid, child, lsn, lsn);
        }
        if !pg_sys::TransactionIdIsInProgress(xid) {
            // Rolled back; or committed, and then this peer has prepared it long ago: as long as
            // there is one generation, nothing commits without every member's durable PREPARE.
            // So a stream that begins again never brings a finished transaction twice.
            plugin_stream::drop_early(ctx, xid.into_inner());
            send_unavailable(ctx, gid, Lsn(lsn));
            return;
        }
        let context = pg_sys::CurrentMemoryContext;
        let now = pg_sys::GetCurrentTimestamp();
        if !pg_sys::ReorderBufferRememberPrepareInfo(reorder, xid, lsn, lsn, now, 0, 0) {
            return;
        }
        flags::mark_subtransactions_prepared(txn);
        // Core names it anew, for as long as it lives here.
        flags::forget_name(txn);
        start_piece(ctx, announced, Lsn(lsn));
        let text = std::ffi::CString::new(gid.to_string()).expect("a gid has no zero byte");
        pg_sys::ReorderBufferPrepare(reorder, xid, text.as_ptr().cast_mut());
        let plugin = plugin(ctx);
        plugin.current = None;
        plugin.buffer.clear();
        flags::clear_prepared(txn);
        pg_sys::CurrentMemoryContext = context;
    }
}

/// # Safety
/// Within a callback.
unsafe fn start_piece(ctx: Context, announced: &Announcement, lsn: Lsn) {
    // SAFETY: the caller's promise.
    let plugin = unsafe { plugin(ctx) };
    let (gid, children) = (announced.gid, announced.children.clone());
    plugin.current = Some(Current { gid, lsn, children, first: true, failed: false });
    plugin.buffer.clear();
    let head = StreamMessage::Piece { gid, lsn, first: true, last: false, payload: &[] };
    head.encode(&mut plugin.buffer);
}

/// Offset of the flags in the header that `start_piece` and `send_piece` write.
const FLAGS_AT: usize = 1 + 17 + 8;

/// Sends what is buffered and begins the next piece.
///
/// # Safety
/// Within a callback, with a current transaction.
unsafe fn send_piece(ctx: Context, last: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        let plugin = plugin(ctx);
        let Some(current) = &mut plugin.current else { return };
        let (gid, lsn, first) = (current.gid, current.lsn, current.first);
        current.first = false;
        let mut head = Vec::with_capacity(FLAGS_AT + 1);
        StreamMessage::Piece { gid, lsn, first, last, payload: &[] }.encode(&mut head);
        plugin.buffer[FLAGS_AT] = head[FLAGS_AT];
        write(ctx, &plugin.buffer);
        plugin.buffer.truncate(FLAGS_AT + 1);
    }
}

/// # Safety
/// Within a callback.
pub(super) unsafe fn send_unavailable(ctx: Context, gid: Gid, lsn: Lsn) {
    // SAFETY: the caller's promise.
    unsafe { send(ctx, &StreamMessage::Unavailable { gid, lsn }) }
}

/// # Safety
/// Within a callback, with a current transaction.
unsafe fn send_unshippable(ctx: Context, why: &str) {
    // SAFETY: the caller's promise.
    unsafe {
        let Some(current) = &mut plugin(ctx).current else { return };
        current.failed = true;
        send(ctx, &StreamMessage::Unshippable { gid: current.gid, lsn: current.lsn, why });
    }
}

/// Sends one message of the stream.
///
/// # Safety
/// Within a callback.
pub(super) unsafe fn send(ctx: Context, message: &StreamMessage<'_>) {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    // SAFETY: the caller's promise.
    unsafe { write(ctx, &bytes) }
}

/// Sends the bytes of one message of the stream, or none, behind the marks that wait.
///
/// # Safety
/// Within a callback.
pub(super) unsafe fn write(ctx: Context, bytes: &[u8]) {
    // SAFETY: the caller's promise; the bytes are copied into the context's buffer.
    unsafe {
        pg_sys::OutputPluginPrepareWrite(ctx, true);
        let marks = &mut plugin(ctx).marks;
        for part in [marks.bytes(), bytes] {
            pg_sys::appendBinaryStringInfo((*ctx).out, part.as_ptr().cast(), part.len() as c_int);
        }
        marks.clear();
        pg_sys::OutputPluginWrite(ctx, true);
    }
}
