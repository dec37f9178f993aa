//! PostgreSQL 15.

use core::ffi::{c_char, c_int};
use pgrx::pg_sys;

/// The old and the new tuple of a decoded change; null where there is none.
///
/// # Safety
/// `change` must be an INSERT, UPDATE or DELETE that logical decoding has given.
pub unsafe fn change_tuples(
    change: *mut pg_sys::ReorderBufferChange,
) -> (pg_sys::HeapTuple, pg_sys::HeapTuple) {
    // SAFETY: for such a change `tp` is the union's live member, and its tuples live as long as it.
    unsafe {
        let tp = (*change).data.tp;
        let tuple = |buf: *mut pg_sys::ReorderBufferTupleBuf| match buf.is_null() {
            true => core::ptr::null_mut(),
            false => &raw mut (*buf).tuple,
        };
        (tuple(tp.oldtuple), tuple(tp.newtuple))
    }
}

/// Tells the executor which columns of its first table an UPDATE sets.
///
/// # Safety
/// `estate` must be live, with a range table of its own.
pub unsafe fn set_updated_columns(estate: *mut pg_sys::EState, columns: *mut pg_sys::Bitmapset) {
    // SAFETY: the range table's first cell is a RangeTblEntry.
    unsafe {
        let cells = (*(*estate).es_range_table).elements;
        let entry = (*cells).ptr_value.cast::<pg_sys::RangeTblEntry>();
        (*entry).updatedCols = columns;
    }
}

/// The range table of one table.
///
/// # Safety
/// `estate` must be live, `entry` too.
pub unsafe fn init_range_table(estate: *mut pg_sys::EState, entry: *mut pg_sys::RangeTblEntry) {
    // SAFETY: a list of one range table entry is what the function wants.
    unsafe {
        let cell = pg_sys::ListCell { ptr_value: entry.cast() };
        pg_sys::ExecInitRangeTable(estate, pg_sys::list_make1_impl(pg_sys::NodeTag::T_List, cell));
    }
}

/// Runs BEFORE UPDATE row triggers; false when they say to do nothing.
///
/// # Safety
/// As `ExecBRUpdateTriggers`.
pub unsafe fn before_update(
    estate: *mut pg_sys::EState,
    epq: *mut pg_sys::EPQState,
    relinfo: *mut pg_sys::ResultRelInfo,
    tid: pg_sys::ItemPointer,
    slot: *mut pg_sys::TupleTableSlot,
) -> bool {
    let none = core::ptr::null_mut();
    // SAFETY: the caller's promise.
    unsafe { pg_sys::ExecBRUpdateTriggers(estate, epq, relinfo, tid, none, slot, none.cast()) }
}

/// Runs BEFORE DELETE row triggers; false when they say to do nothing.
///
/// # Safety
/// As `ExecBRDeleteTriggers`.
pub unsafe fn before_delete(
    estate: *mut pg_sys::EState,
    epq: *mut pg_sys::EPQState,
    relinfo: *mut pg_sys::ResultRelInfo,
    tid: pg_sys::ItemPointer,
) -> bool {
    let none = core::ptr::null_mut();
    // SAFETY: the caller's promise.
    unsafe { pg_sys::ExecBRDeleteTriggers(estate, epq, relinfo, tid, none, none.cast()) }
}

/// Which indexes a new version of a row needs entries in.
pub type IndexUpdate = bool;

/// Replaces a row; does not wait when `wait` is false and somebody holds it.
///
/// # Safety
/// As `table_tuple_update`.
pub unsafe fn update(
    rel: pg_sys::Relation,
    tid: pg_sys::ItemPointer,
    slot: *mut pg_sys::TupleTableSlot,
    wait: bool,
    failure: &mut pg_sys::TM_FailureData,
    indexes: &mut IndexUpdate,
) -> pg_sys::TM_Result::Type {
    let none = core::ptr::null_mut();
    let mut mode = pg_sys::LockTupleMode::LockTupleExclusive;
    // SAFETY: the caller's promise; the heap needs no snapshot without a crosscheck.
    unsafe {
        let cid = pg_sys::GetCurrentCommandId(true);
        pg_sys::table_tuple_update(
            rel, tid, slot, cid, none, none, wait, failure, &mut mode, indexes,
        )
    }
}

/// Makes the index entries of a new row, or of a new version of one.
///
/// # Safety
/// As `ExecInsertIndexTuples`.
pub unsafe fn insert_index_entries(
    relinfo: *mut pg_sys::ResultRelInfo,
    slot: *mut pg_sys::TupleTableSlot,
    estate: *mut pg_sys::EState,
    update: Option<IndexUpdate>,
) -> *mut pg_sys::List {
    let none = core::ptr::null_mut();
    if update == Some(false) {
        return none;
    }
    // SAFETY: the caller's promise.
    unsafe {
        pg_sys::ExecInsertIndexTuples(
            relinfo,
            slot,
            estate,
            update.is_some(),
            false,
            none.cast(),
            none,
        )
    }
}

/// Whether commits are to wait for synchronous standbys.
///
/// # Safety
/// `control` must be the server's control block of walsenders.
pub unsafe fn sync_standbys_defined(control: *const pg_sys::WalSndCtlData) -> bool {
    /// `SYNC_STANDBY_DEFINED` of `replication/walsender_private.h`.
    const DEFINED: u8 = 1 << 1;
    // SAFETY: the caller's promise; a byte is read at once.
    unsafe { (&raw const (*control).sync_standbys_status).read_volatile() & DEFINED != 0 }
}

/// What the catalog says of a foreign key.
#[derive(Debug, Clone)]
pub struct ForeignKeyRow {
    pub name: String,
    /// The referencing table and the referenced one.
    pub child: pg_sys::Oid,
    pub parent: pg_sys::Oid,
    /// The unique index of the referenced table.
    pub index: pg_sys::Oid,
    /// The foreign key that this one was derived from for a partition, or 0.
    pub of: pg_sys::Oid,
    pub child_columns: Vec<i16>,
    pub parent_columns: Vec<i16>,
    /// Operators parent = child, and parent = parent.
    pub parent_child: Vec<pg_sys::Oid>,
    pub parent_parent: Vec<pg_sys::Oid>,
}

/// A module, for `pg_guard` keeps no attribute for the function it makes.
#[expect(clippy::too_many_arguments, reason = "the server's signature")]
mod constraint {
    use core::ffi::c_int;
    use pgrx::{pg_guard, pg_sys};

    #[pg_guard]
    unsafe extern "C-unwind" {
        /// `catalog/pg_constraint.h`; the arrays have room for `INDEX_MAX_KEYS`.
        fn DeconstructFkConstraintRow(
            tuple: pg_sys::HeapTuple,
            count: *mut c_int,
            conkey: *mut i16,
            confkey: *mut i16,
            pf_eq_oprs: *mut pg_sys::Oid,
            pp_eq_oprs: *mut pg_sys::Oid,
            ff_eq_oprs: *mut pg_sys::Oid,
            set_columns_count: *mut c_int,
            set_columns: *mut i16,
        );
    }
}

/// Reads a foreign key; None if there is no such constraint (any more).
///
/// # Safety
/// Inside a transaction.
pub unsafe fn foreign_key(constraint: pg_sys::Oid) -> Option<ForeignKeyRow> {
    /// Columns of pg_constraint.
    const CONNAME: i16 = 2;
    const CONRELID: i16 = 8;
    const CONINDID: i16 = 10;
    const CONPARENTID: i16 = 11;
    const CONFRELID: i16 = 12;
    const MAX: usize = pg_sys::INDEX_MAX_KEYS as usize;
    // SAFETY: a catalog row, held until it is released; its columns have these numbers.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::CONSTROID as i32;
        let none = pg_sys::Datum::from(0);
        let tuple =
            pg_sys::SearchSysCache(cache, pg_sys::Datum::from(constraint), none, none, none);
        if tuple.is_null() {
            return None;
        }
        let attribute = |number: i16| {
            let mut null = false;
            pg_sys::SysCacheGetAttr(cache, tuple, number, &mut null)
        };
        let oid = |number| pg_sys::Oid::from(attribute(number).value() as u32);
        let name = core::ffi::CStr::from_ptr(attribute(CONNAME).cast_mut_ptr());
        let (mut count, mut unused) = (0, 0);
        let (mut conkey, mut confkey, mut set) = ([0_i16; MAX], [0_i16; MAX], [0_i16; MAX]);
        let mut operators = [[pg_sys::InvalidOid; MAX]; 3];
        let [pf, pp, ff] = &mut operators;
        constraint::DeconstructFkConstraintRow(
            tuple,
            &mut count,
            conkey.as_mut_ptr(),
            confkey.as_mut_ptr(),
            pf.as_mut_ptr(),
            pp.as_mut_ptr(),
            ff.as_mut_ptr(),
            &mut unused,
            set.as_mut_ptr(),
        );
        let count = count as usize;
        let row = ForeignKeyRow {
            name: name.to_string_lossy().into_owned(),
            child: oid(CONRELID),
            parent: oid(CONFRELID),
            index: oid(CONINDID),
            of: oid(CONPARENTID),
            child_columns: conkey[..count].to_vec(),
            parent_columns: confkey[..count].to_vec(),
            parent_child: pf[..count].to_vec(),
            parent_parent: pp[..count].to_vec(),
        };
        pg_sys::ReleaseSysCache(tuple);
        Some(row)
    }
}

/// Whether the current user owns a relation, or may do what its owner may.
///
/// # Safety
/// Inside a transaction; the relation exists.
pub unsafe fn owns_relation(relation: pg_sys::Oid) -> bool {
    // SAFETY: catalog look-ups.
    unsafe { pg_sys::pg_class_ownercheck(relation, pg_sys::GetUserId()) }
}

/// The file that holds a relation's main fork, as it stands in log records.
///
/// # Safety
/// `relation` is open.
pub unsafe fn file_of(relation: pg_sys::Relation) -> pg_sys::RelFileNode {
    // SAFETY: the caller's promise.
    unsafe { (*relation).rd_node }
}

/// `libpq/libpq-be.h`: a client's connection, up to the last field that we read.
#[repr(C)]
pub struct Port {
    sock: c_int,
    noblock: bool,
    proto: u32,
    addresses: [Address; 2],
    remote_host: *mut c_char,
    remote_hostname: *mut c_char,
    remote_hostname_resolv: c_int,
    remote_hostname_errcode: c_int,
    remote_port: *mut c_char,
    can_accept_connections: c_int,
    /// From the startup packet.
    pub database_name: *mut c_char,
    user_name: *mut c_char,
    cmdline_options: *mut c_char,
    guc_options: *mut pg_sys::List,
    /// From the startup packet; null if the client gave none.
    pub application_name: *mut c_char,
}

#[repr(C)]
struct Address {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}
