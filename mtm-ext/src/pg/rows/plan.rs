//! How a table's rows are sent.

use core::ffi::CStr;

use mtm_logrep::row::{Column, ReplicaIdentity, write_relation};
use pgrx::pg_sys::{self, Oid};

use super::stamp::Stamp;
use super::types::{self, Shape, TypeName};

/// What is done to a value of one column.
pub(super) enum How {
    Fixed(u8),
    Bytes,
    /// The type's send function.
    Send(pg_sys::FmgrInfo),
    /// The type's output function.
    Output(pg_sys::FmgrInfo),
}

pub(super) struct SendColumn {
    /// Its place in the tuple.
    pub(super) at: usize,
    /// Whether it belongs to what identifies a row.
    pub(super) key: bool,
    pub(super) by_value: bool,
    pub(super) len: i16,
    pub(super) how: How,
}

/// What identifies a row of this table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// The columns flagged as key. The log has the old ones when they have changed.
    Key,
    /// As `Key`, but the log has the whole old row always.
    KeyOfFullRow,
    /// All columns.
    Row,
    /// Nothing.
    Nothing,
}

/// How a table's rows are sent. Valid while its stamp holds.
pub(super) struct SendPlan {
    pub(super) stamp: Stamp,
    /// Holds what functions remember; gone with the plan.
    context: pg_sys::MemoryContext,
    /// No peer wants these rows.
    pub(super) skip: bool,
    pub(super) identity: Identity,
    pub(super) columns: Vec<SendColumn>,
    pub(super) keys: usize,
    /// As the peers are told.
    pub(super) description: Vec<u8>,
    /// Transaction that has described it, and the number it has there.
    pub(super) described: (u64, u32),
}

impl SendPlan {
    /// # Safety
    /// In an output plugin's callback or a transaction; `relation` is open; `parent` lives longer
    /// than the plan or is deleted together with it.
    pub(super) unsafe fn build(
        relation: pg_sys::Relation,
        binary: bool,
        local: bool,
        parent: pg_sys::MemoryContext,
    ) -> Self {
        // SAFETY: reads an open relation's entry and the catalogs.
        unsafe {
            let relid = (*relation).rd_id;
            let mut stamp = Stamp::begin(relid);
            let context = memory_context(parent, c"mtm send plan");
            let class = &*(*relation).rd_rel;
            let schema = types::schema_name(class.relnamespace);
            let skip = local || !travels(relid, class, &schema);
            let mut plan = Self {
                stamp: Stamp::begin(relid),
                context,
                skip,
                identity: Identity::Nothing,
                columns: Vec::new(),
                keys: 0,
                description: Vec::new(),
                described: (0, 0),
            };
            if !skip {
                plan.fill(relation, &schema, binary, &mut stamp);
            }
            stamp.seal();
            plan.stamp = stamp;
            plan
        }
    }

    /// # Safety
    /// As [`Self::build`].
    unsafe fn fill(
        &mut self,
        relation: pg_sys::Relation,
        schema: &[u8],
        binary: bool,
        stamp: &mut Stamp,
    ) {
        // SAFETY: reads an open relation's entry and the catalogs.
        unsafe {
            let class = &*(*relation).rd_rel;
            let (identity, key) = identity(relation);
            self.identity = identity;
            let mut described = Vec::new();
            for (at, att) in types::attributes((*relation).rd_att).iter().enumerate() {
                let number = i32::from(att.attnum) - pg_sys::FirstLowInvalidHeapAttributeNumber;
                let key = pg_sys::bms_is_member(number, key);
                // Generated columns are computed where the row arrives; but first an old row must
                // be found.
                if att.attisdropped || att.attgenerated != 0 && !key {
                    continue;
                }
                let how = how(att.atttypid, binary, self.context, stamp);
                let (by_value, len) = (att.attbyval, att.attlen);
                self.columns.push(SendColumn { at, key, by_value, len, how });
                let name = CStr::from_ptr(att.attname.data.as_ptr()).to_bytes();
                if !types::is_built_in(att.atttypid) {
                    stamp.depends_on_types();
                }
                described.push((name, key, TypeName::of(att.atttypid), att.atttypmod));
            }
            self.keys = self.columns.iter().filter(|c| c.key).count();
            let letter = class.relreplident as u8;
            let told = ReplicaIdentity::from_letter(letter).unwrap_or(ReplicaIdentity::Nothing);
            let name = CStr::from_ptr(class.relname.data.as_ptr()).to_bytes();
            let columns = described.iter().map(|(name, key, of, typmod)| Column {
                name,
                key: *key,
                of: of.as_column_type(),
                typmod: *typmod,
            });
            let (oid, kind) = ((*relation).rd_id.to_u32(), class.relkind as u8);
            write_relation(&mut self.description, oid, kind, told, (schema, name), columns);
        }
    }

    /// Frees what the plan's functions remember.
    ///
    /// # Safety
    /// The parent context still exists.
    pub(super) unsafe fn free(self) {
        // SAFETY: the context was made for this plan only.
        unsafe { pg_sys::MemoryContextDelete(self.context) }
    }
}

/// Whether rows of this table go to peers at all.
fn travels(relid: Oid, class: &pg_sys::FormData_pg_class, schema: &[u8]) -> bool {
    let kind = class.relkind as u8;
    // SAFETY: a NameData is a C string.
    let name = unsafe { CStr::from_ptr(class.relname.data.as_ptr()) }.to_bytes();
    // Materialized views are refreshed on one node, and their rows travel.
    (kind == pg_sys::RELKIND_RELATION || kind == pg_sys::RELKIND_MATVIEW)
        && class.relpersistence as u8 == pg_sys::RELPERSISTENCE_PERMANENT
        && class.relrewrite == pg_sys::InvalidOid
        && !types::is_built_in(relid)
        && !(schema == b"mtm" && OWN_TABLES.contains(&name))
}

/// Tables of the extension: every node has its own rows. Users may have tables in schema mtm too,
/// where a user of that name has the default search_path.
const OWN_TABLES: [&[u8]; 1] = [b"sequence_definitions"];

/// What identifies a row, and the columns of the key as PostgreSQL counts them in bitmaps.
///
/// # Safety
/// As [`SendPlan::build`].
unsafe fn identity(relation: pg_sys::Relation) -> (Identity, *mut pg_sys::Bitmapset) {
    // No lock may be taken on the way: the transaction that is decoded still holds its own, and
    // waits for us. RelationGetIndexAttrBitmap would lock the indexes.
    // SAFETY: the bitmaps are new ones in the current memory context.
    unsafe {
        if (*(*relation).rd_rel).relreplident as u8 == pg_sys::REPLICA_IDENTITY_FULL {
            let key = primary_key(relation);
            let identity = if key.is_null() { Identity::Row } else { Identity::KeyOfFullRow };
            return (identity, key);
        }
        let key = pg_sys::RelationGetIdentityKeyBitmap(relation);
        (if key.is_null() { Identity::Nothing } else { Identity::Key }, key)
    }
}

/// Columns of the primary key; null if there is none. Takes no lock.
///
/// # Safety
/// As [`SendPlan::build`].
unsafe fn primary_key(relation: pg_sys::Relation) -> *mut pg_sys::Bitmapset {
    let mut key = core::ptr::null_mut();
    // SAFETY: under the historic snapshot, with which the index is seen as it was; its pg_index
    // row has indnkeyatts key columns.
    unsafe {
        let oid = pg_sys::RelationGetPrimaryKeyIndex(relation);
        if oid == pg_sys::InvalidOid {
            return key;
        }
        let index = pg_sys::RelationIdGetRelation(oid);
        if index.is_null() {
            pgrx::error!("could not open relation with OID {}", oid.to_u32());
        }
        let form = (*index).rd_index;
        let columns = (&raw const (*form).indkey.values).cast::<i16>();
        for i in 0..usize::from((*form).indnkeyatts.unsigned_abs()) {
            let column = i32::from(columns.add(i).read_unaligned());
            key = pg_sys::bms_add_member(key, column - pg_sys::FirstLowInvalidHeapAttributeNumber);
        }
        pg_sys::RelationClose(index);
    }
    key
}

/// # Safety
/// As [`SendPlan::build`].
unsafe fn how(typid: Oid, binary: bool, context: pg_sys::MemoryContext, stamp: &mut Stamp) -> How {
    // SAFETY: catalog lookups; the functions' memory is the plan's.
    unsafe {
        let mut varlena = false;
        let mut function = pg_sys::InvalidOid;
        if binary && types::goes_binary(typid, stamp, 0) {
            let base = pg_sys::getBaseType(typid);
            match types::shape(base) {
                Shape::Fixed(width) => return How::Fixed(width),
                Shape::Bytes => return How::Bytes,
                Shape::Function => {}
            }
            pg_sys::getTypeBinaryOutputInfo(typid, &mut function, &mut varlena);
            How::Send(function_info(function, context))
        } else {
            pg_sys::getTypeOutputInfo(typid, &mut function, &mut varlena);
            How::Output(function_info(function, context))
        }
    }
}

/// # Safety
/// `function` exists; `context` outlives the result.
pub(super) unsafe fn function_info(
    function: Oid,
    context: pg_sys::MemoryContext,
) -> pg_sys::FmgrInfo {
    let mut info = pg_sys::FmgrInfo::default();
    // SAFETY: the caller's promise.
    unsafe { pg_sys::fmgr_info_cxt(function, &mut info, context) }
    info
}

/// A small memory context.
///
/// # Safety
/// `parent` is live.
pub(super) unsafe fn memory_context(
    parent: pg_sys::MemoryContext,
    name: &'static CStr,
) -> pg_sys::MemoryContext {
    // SAFETY: the name is static, as the allocator wants it.
    unsafe {
        pg_sys::AllocSetContextCreateInternal(
            parent,
            name.as_ptr(),
            pg_sys::ALLOCSET_SMALL_MINSIZE as usize,
            pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
        )
    }
}
