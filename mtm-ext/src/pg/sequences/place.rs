//! Where a sequence stands: reading it beside others who take values, and moving it forward.
//!
//! `nextval` holds the relation's lock until its transaction ends, and the page's lock only while
//! it takes values. Whoever applies another node's transaction must not wait for the former: that
//! one may be waiting for this one's vote. So both functions here take the page's lock, as `nextval`
//! does itself.

use super::PgSequenceData;
use crate::pg::compat;
use mtm_core::sequence::Position;
use pgrx::pg_sys;

/// `XLOG_SEQ_LOG`.
const LOG: u8 = 0;

/// An open sequence with its only page locked.
struct Page {
    relation: pg_sys::Relation,
    buffer: pg_sys::Buffer,
    tuple: *mut pg_sys::HeapTupleHeaderData,
    len: u32,
}

impl Page {
    fn lock(relid: pg_sys::Oid, mode: u32) -> Self {
        // SAFETY: the lock that `nextval` takes; a sequence has one page with one normal item.
        unsafe {
            let relation = pg_sys::relation_open(relid, pg_sys::RowExclusiveLock as i32);
            let buffer = pg_sys::ReadBuffer(relation, 0);
            pg_sys::LockBuffer(buffer, mode as i32);
            let page = pg_sys::BufferGetPage(buffer);
            let item = pg_sys::PageGetItemId(page, 1);
            let tuple = pg_sys::PageGetItem(page, item).cast();
            Self { relation, buffer, tuple, len: (*item).lp_len() }
        }
    }

    fn data(&self) -> *mut PgSequenceData {
        // SAFETY: the item is a whole tuple; a sequence's row has this layout.
        unsafe { self.tuple.cast::<u8>().add(usize::from((*self.tuple).t_hoff)).cast() }
    }

    fn position(&self) -> Position {
        // SAFETY: the page is locked.
        unsafe { Position { last: (*self.data()).last_value, called: (*self.data()).is_called } }
    }

    fn unlock(self) {
        // SAFETY: locked and opened above; the relation's lock stays as with `nextval`.
        unsafe {
            pg_sys::UnlockReleaseBuffer(self.buffer);
            pg_sys::relation_close(self.relation, pg_sys::NoLock as i32);
        }
    }

    /// Writes a position to the page and into the log.
    fn write(&self, to: Position) {
        // SAFETY: the steps of `setval`, in its order, with the page locked exclusively: inside the
        // critical section nothing can fail but writing the log, which is a PANIC there as well.
        unsafe {
            pg_sys::CritSectionCount += 1;
            (*self.data()).last_value = to.last;
            (*self.data()).is_called = to.called;
            (*self.data()).log_count = 0;
            pg_sys::MarkBufferDirty(self.buffer);
            let class = (*self.relation).rd_rel;
            if (*class).relpersistence == pg_sys::RELPERSISTENCE_PERMANENT as i8 {
                let mut file = compat::file_of(self.relation);
                pg_sys::XLogBeginInsert();
                pg_sys::XLogRegisterBuffer(0, self.buffer, pg_sys::REGBUF_WILL_INIT as u8);
                pg_sys::XLogRegisterData((&raw mut file).cast(), size_of_val(&file) as i32);
                pg_sys::XLogRegisterData(self.tuple.cast(), self.len as i32);
                let at = pg_sys::XLogInsert(pg_sys::RmgrIds::RM_SEQ_ID as u8, LOG);
                let page = pg_sys::BufferGetPage(self.buffer).cast::<pg_sys::PageHeaderData>();
                (*page).pd_lsn.xlogid = (at >> 32) as u32;
                (*page).pd_lsn.xrecoff = at as u32;
            }
            pg_sys::CritSectionCount -= 1;
        }
    }
}

/// Where the sequence stands at this moment.
pub(super) fn read(relid: pg_sys::Oid) -> Position {
    let page = Page::lock(relid, pg_sys::BUFFER_LOCK_SHARE);
    let at = page.position();
    page.unlock();
    at
}

/// Moves the sequence to where `to` says; nobody takes a value meanwhile. `to` must not fail.
pub(super) fn advance(relid: pg_sys::Oid, to: impl FnOnce(Position) -> Position) {
    // SAFETY: a transaction that moves a sequence has a number, so that its end is logged.
    unsafe { pg_sys::GetTopTransactionId() };
    let page = Page::lock(relid, pg_sys::BUFFER_LOCK_EXCLUSIVE);
    let at = page.position();
    let to = to(at);
    if to != at {
        page.write(to);
    }
    page.unlock();
}
