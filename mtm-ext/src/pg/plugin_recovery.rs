//! The output plugin for a peer that recovers: every committed transaction of the cluster,
//! whoever's, at its commit record and with all that it changed.
//!
//! A transaction is one of the cluster's if it has a name: from the marker inside it, or from its
//! PREPARE. What is announced here and not committed is not news. At a ParallelSafe record, the
//! transactions that this node held prepared are replayed too, although they are undecided.
//!
//! Pieces of a transaction leave as they are made, so that one of any size needs little memory;
//! what they belong to is said after the last.

use super::pgflags as flags;
use super::plugin::{Context, PIECE_BYTES, Txn};
use super::plugin::{encode_row, plugin, send, take_ddl, take_marker, user_prepared, write};
use super::rows::Encoded;
use core::ffi::{CStr, c_char, c_int};
use mtm_core::{GenNum, Gid, Lsn};
use mtm_logrep::announcement::{
    Announcement, DDL_PREFIX, MARKER_PREFIX, PARALLEL_SAFE_PREFIX, PREFIX, SYNCPOINT_PREFIX,
    USER_PREFIX, USER_PREPARED_PREFIX,
};
use mtm_logrep::ddl::Rows;
use mtm_logrep::journal::{Forgotten, ParallelSafe, UserPrepared, UserWork};
use mtm_logrep::row::RowWriter;
use mtm_logrep::stream::StreamMessage;
use pgrx::{PgSqlErrorCode, ereport, pg_sys};

/// Length of the head of [`StreamMessage::ReplayPiece`].
const HEAD_BYTES: usize = 1;

/// The transaction being replayed.
#[derive(Debug)]
pub(super) struct Recovery {
    /// Only ParallelSafe of this generation says what was held; all if `None`.
    hold: Option<GenNum>,
    /// Pieces of it are under way.
    sent: bool,
    /// Why it cannot be sent; an error as soon as it is known to be one of the cluster's.
    failure: Option<String>,
    /// It is prepared: why it is replayed nevertheless.
    prepared: Option<Prepared>,
    /// A user's transaction that a record just read ends: its number.
    ends_users: Option<u32>,
}

/// Why a prepared transaction is replayed.
#[derive(Debug)]
enum Prepared {
    /// It was held, undecided, at ParallelSafe; and whether abort was accepted.
    Held(Gid, bool),
    /// It is user-prepared, which is the commit of what it says; the place of that.
    Users(UserPrepared, Lsn),
}

impl Prepared {
    const fn gid(&self) -> Gid {
        match self {
            Self::Held(gid, _) => *gid,
            Self::Users(prepared, _) => prepared.gid,
        }
    }
}

impl Recovery {
    pub(super) const fn new(hold: Option<GenNum>) -> Self {
        Self { hold, sent: false, failure: None, prepared: None, ends_users: None }
    }
}

/// Makes this stream one for a recovering peer.
///
/// # Safety
/// Within the startup callback.
pub(super) unsafe fn take_over(ctx: Context) {
    // SAFETY: core reads both before each use, and has read neither yet. Without streaming, what
    // does not fit into memory goes to disk and nothing of it is replayed before its commit.
    unsafe {
        if !(*(*ctx).slot).data.two_phase {
            ereport!(
                ERROR,
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "mode recovery needs a replication slot that decodes two-phase transactions"
            );
        }
        (*ctx).streaming = false;
        let callbacks = &mut (*ctx).callbacks;
        callbacks.begin_cb = Some(begin);
        callbacks.change_cb = Some(change);
        callbacks.truncate_cb = Some(truncate);
        callbacks.commit_cb = Some(commit);
        callbacks.message_cb = Some(message);
        callbacks.filter_by_origin_cb = Some(filter_by_origin);
        callbacks.filter_prepare_cb = Some(filter_prepare);
        callbacks.begin_prepare_cb = Some(begin_prepare);
        callbacks.prepare_cb = Some(prepare);
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn filter_by_origin(_ctx: Context, _origin: pg_sys::RepOriginId) -> bool {
    false
}

/// Every transaction is replayed at its commit; a prepared one is named, so that it is found at
/// ParallelSafe.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn filter_prepare(
    ctx: Context,
    xid: pg_sys::TransactionId,
    gid: *const c_char,
) -> bool {
    // SAFETY: within a callback, with its arguments.
    unsafe {
        let gid = CStr::from_ptr(gid).to_str().ok().and_then(|text| text.parse::<Gid>().ok());
        let Some(gid) = gid else {
            // A user's: what it says is committed where it is noted to be user-prepared. That it
            // is prepared or ended is another operation's doing.
            plugin(ctx).recovery.ends_users = Some(xid.into_inner());
            return true;
        };
        if let Some(txn) = flags::find((*ctx).reorder, |txn| (*txn).xid == xid) {
            flags::set_name((*ctx).reorder, txn, &gid);
        }
    }
    true
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn begin(ctx: Context, _txn: Txn) {
    // SAFETY: within a callback.
    unsafe { start(ctx) }
}

/// # Safety
/// Within a callback.
unsafe fn start(ctx: Context) {
    // SAFETY: the caller's promise.
    let plugin = unsafe { plugin(ctx) };
    plugin.encoder.begin_transaction();
    plugin.rows = Rows::Ordinary;
    plugin.recovery.sent = false;
    plugin.recovery.failure = None;
    plugin.buffer.clear();
    StreamMessage::ReplayPiece { payload: &[] }.encode(&mut plugin.buffer);
}

/// Sends what is buffered, if there is enough of it.
///
/// # Safety
/// Within a callback.
unsafe fn send_pieces(ctx: Context, at_least: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let plugin = plugin(ctx);
        if plugin.buffer.len() >= at_least {
            plugin.recovery.sent = true;
            write(ctx, &plugin.buffer);
            plugin.buffer.truncate(HEAD_BYTES);
        }
    }
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
        if plugin.recovery.failure.is_some() {
            return;
        }
        match encode_row(plugin, plugin.rows, relation, change) {
            Ok(Encoded::Appended) => send_pieces(ctx, PIECE_BYTES),
            Ok(Encoded::Skipped) => {}
            Err(error) => plugin.recovery.failure = Some(error.to_string()),
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
        if plugin.rows != Rows::None && plugin.recovery.failure.is_none() {
            let relations = core::slice::from_raw_parts(relations, n as usize);
            plugin.encoder.encode_truncate(relations, change, &mut plugin.buffer);
            send_pieces(ctx, PIECE_BYTES);
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
        let prefix = CStr::from_ptr(prefix).to_str().unwrap_or_default();
        let content = core::slice::from_raw_parts(content.cast::<u8>(), size);
        match prefix {
            DDL_PREFIX if transactional => {
                take_ddl(plugin(ctx), content);
                send_pieces(ctx, PIECE_BYTES);
            }
            USER_PREFIX if transactional => {
                RowWriter::new(&mut plugin(ctx).buffer).user(content);
                send_pieces(ctx, PIECE_BYTES);
            }
            USER_PREPARED_PREFIX if !transactional => {
                users_prepared(ctx, Lsn(lsn), user_prepared(content));
            }
            MARKER_PREFIX if transactional => take_marker(ctx, txn, content),
            PARALLEL_SAFE_PREFIX if !transactional => parallel_safe(ctx, Lsn(lsn), content),
            SYNCPOINT_PREFIX if !transactional => syncpoint(ctx, Lsn(lsn), content),
            PREFIX if !transactional => announced(ctx, Lsn(lsn), content),
            _ => {}
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn commit(ctx: Context, txn: Txn, _lsn: pg_sys::XLogRecPtr) {
    // SAFETY: within a callback, with its arguments.
    unsafe {
        if plugin(ctx).recovery.prepared.is_some() {
            // Core is to keep it: this was not its commit.
            flags::mark_prepared(txn);
            return finish_prepared(ctx);
        }
        if plugin(ctx).recovery.ends_users == Some((*txn).xid.into_inner()) {
            return discard(ctx);
        }
        let lsn = Lsn((*txn).end_lsn);
        let Some(gid) = flags::name(txn) else { return discard(ctx) };
        if flags::was_sent(txn) {
            return send(ctx, &StreamMessage::ReplayPrepared { gid, lsn });
        }
        fail_if_incomplete(ctx, &gid);
        send_pieces(ctx, HEAD_BYTES + 1);
        send(ctx, &StreamMessage::Replay { gid, lsn });
    }
}

/// Nobody else's transaction: takes back what was sent of it.
///
/// # Safety
/// Within a callback.
unsafe fn discard(ctx: Context) {
    // SAFETY: the caller's promise.
    unsafe {
        if plugin(ctx).recovery.sent {
            send(ctx, &StreamMessage::ReplayDiscard);
        }
    }
}

/// # Safety
/// Within a callback.
unsafe fn fail_if_incomplete(ctx: Context, gid: &Gid) {
    // SAFETY: the caller's promise.
    if let Some(why) = unsafe { plugin(ctx).recovery.failure.take() } {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("could not send committed transaction {gid} to a recovering node: {why}"),
            "The node cannot be brought up to date from this log; it must be added anew."
        );
    }
}

/// # Safety
/// Within the callback of a non-transactional message.
unsafe fn announced(ctx: Context, lsn: Lsn, content: &[u8]) {
    match Announcement::decode(content) {
        Ok(announcement) => {
            let gid = announcement.gid;
            if crate::pg::shmem::header().me() == Some(gid.origin) {
                // SAFETY: the caller's promise.
                unsafe { send(ctx, &StreamMessage::Announced { gid, lsn }) }
            }
        }
        Err(error) => pgrx::error!("malformed announcement in the log: {error}"),
    }
}

/// # Safety
/// Within the callback of a non-transactional message.
unsafe fn syncpoint(ctx: Context, lsn: Lsn, content: &[u8]) {
    match Forgotten::decode(content) {
        // SAFETY: the caller's promise.
        Ok(Forgotten { below }) => unsafe { send(ctx, &StreamMessage::Syncpoint { lsn, below }) },
        Err(error) => pgrx::error!("malformed syncpoint in the log: {error}"),
    }
}

/// # Safety
/// Within the callback of a non-transactional message.
unsafe fn parallel_safe(ctx: Context, lsn: Lsn, content: &[u8]) {
    let safe = match ParallelSafe::decode(content) {
        Ok(safe) => safe,
        Err(error) => pgrx::error!("malformed ParallelSafe in the log: {error}"),
    };
    // SAFETY: the caller's promise.
    unsafe {
        if plugin(ctx).recovery.hold.is_some_and(|num| num != safe.num) {
            return;
        }
        for (gid, accepted_abort) in safe.held {
            let local = safe.users.iter().find(|(user, _)| *user == gid).map(|(_, local)| *local);
            let is_it = |txn: Txn| match local {
                Some(local) => (*txn).xid.into_inner() == local,
                None => flags::name(txn).or_else(|| flags::marker(txn)) == Some(gid),
            };
            let has_it = |txn| is_it(txn) && !flags::was_sent(txn);
            match flags::find((*ctx).reorder, has_it) {
                Some(txn) => replay_prepared(ctx, txn, Prepared::Held(gid, accepted_abort), lsn),
                None => send(ctx, &StreamMessage::HeldElsewhere { gid, accepted_abort }),
            }
        }
        send(ctx, &StreamMessage::ParallelSafe { num: safe.num, lsn });
    }
}

/// A user's transaction is user-prepared: its first operation is committed.
///
/// # Safety
/// Within the callback of a non-transactional message.
unsafe fn users_prepared(ctx: Context, lsn: Lsn, prepared: UserPrepared) {
    let UserPrepared { gid, local, .. } = prepared;
    // SAFETY: the caller's promise.
    unsafe {
        let has_it = |txn: Txn| (*txn).xid.into_inner() == local && !flags::was_sent(txn);
        match flags::find((*ctx).reorder, has_it) {
            Some(txn) => replay_prepared(ctx, txn, Prepared::Users(prepared, lsn), lsn),
            None => send(ctx, &StreamMessage::ReplayPrepared { gid, lsn }),
        }
    }
}

/// Replays a prepared transaction.
///
/// # Safety
/// Within the callback of a non-transactional message, whose end is `lsn`; `txn` is a prepared
/// transaction of the context's reorder buffer.
unsafe fn replay_prepared(ctx: Context, txn: Txn, prepared: Prepared, lsn: Lsn) {
    // SAFETY: the caller's promise; the reorder buffer calls begin_prepare, change, message,
    // truncate and prepare or commit on the way.
    unsafe {
        let (reorder, xid) = ((*ctx).reorder, (*txn).xid);
        // Core has dropped those that were rolled back; all others are part of it since PREPARE.
        for child in flags::subtransactions(txn) {
            let child = pg_sys::TransactionId::from(child);
            pg_sys::ReorderBufferCommitChild(reorder, xid, child, lsn.0, lsn.0);
        }
        let context = pg_sys::CurrentMemoryContext;
        let now = pg_sys::GetCurrentTimestamp();
        pg_sys::ReorderBufferRememberPrepareInfo(reorder, xid, lsn.0, lsn.0, now, 0, 0);
        flags::mark_subtransactions_prepared(txn);
        flags::forget_name(txn);
        let text = prepared.gid().to_string();
        let text = std::ffi::CString::new(text).expect("a gid has no zero byte");
        plugin(ctx).recovery.prepared = Some(prepared);
        pg_sys::ReorderBufferPrepare(reorder, xid, text.as_ptr().cast_mut());
        pg_sys::CurrentMemoryContext = context;
        flags::clear_prepared(txn);
        flags::note_sent(txn);
        if plugin(ctx).recovery.prepared.is_some() {
            // Nothing was changed: core has called nobody.
            start(ctx);
            finish_prepared(ctx);
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn begin_prepare(ctx: Context, txn: Txn) {
    // SAFETY: within a callback, with its arguments.
    unsafe {
        start(ctx);
        if !flags::has_catalog_changes(txn) {
            // It may have been rolled back since. What it changed can be read nevertheless, as it
            // did not touch what tells how: core need not look.
            flags::clear_prepared(txn);
        }
    }
}

/// The end of a prepared transaction that changed the schema.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn prepare(ctx: Context, txn: Txn, _lsn: pg_sys::XLogRecPtr) {
    // SAFETY: within a callback, with its arguments.
    unsafe {
        if !flags::was_any_aborted_concurrently(txn) {
            return finish_prepared(ctx);
        }
        match plugin(ctx).recovery.prepared.take() {
            None => discard(ctx),
            Some(Prepared::Held(gid, accepted_abort)) => {
                discard(ctx);
                send(ctx, &StreamMessage::HeldGone { gid, accepted_abort });
            }
            // Its user has rolled it back since: nobody will ever see its rows, but the name is in
            // use until the operation that ended it comes.
            Some(Prepared::Users(UserPrepared { gid, operation, .. }, lsn)) => {
                discard(ctx);
                start(ctx);
                let mut work = Vec::new();
                UserWork { gid, decided: true, owner: String::new(), operation }.encode(&mut work);
                RowWriter::new(&mut plugin(ctx).buffer).user(&work);
                send_pieces(ctx, HEAD_BYTES + 1);
                send(ctx, &StreamMessage::Replay { gid, lsn });
            }
        }
    }
}

/// # Safety
/// Within a callback.
unsafe fn finish_prepared(ctx: Context) {
    // SAFETY: the caller's promise.
    unsafe {
        let Some(prepared) = plugin(ctx).recovery.prepared.take() else { return };
        fail_if_incomplete(ctx, &prepared.gid());
        send_pieces(ctx, HEAD_BYTES + 1);
        match prepared {
            Prepared::Held(gid, accepted_abort) => {
                send(ctx, &StreamMessage::Held { gid, accepted_abort });
            }
            Prepared::Users(UserPrepared { gid, .. }, lsn) => {
                send(ctx, &StreamMessage::Replay { gid, lsn });
            }
        }
    }
}
