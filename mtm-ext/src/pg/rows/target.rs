//! What a described table is on this node.

use core::ffi::CStr;

use mtm_logrep::row::{Relation, Value};
use pgrx::pg_sys::{self, Oid};

use super::error;
use super::plan::{function_info, memory_context};
use super::stamp::Stamp;
use super::types::{self, Shape, TypeName};

/// How one column's values become values here.
pub(super) struct TakeColumn {
    /// Its place in the local row.
    pub(super) at: usize,
    pub(super) attnum: i16,
    shape: Shape,
    typmod: i32,
    receive: Option<(pg_sys::FmgrInfo, Oid)>,
    input: (pg_sys::FmgrInfo, Oid),
}

/// A described table as it is here. Valid while its stamp holds.
pub(super) struct Target {
    pub(super) stamp: Stamp,
    pub(super) relid: Oid,
    context: pg_sys::MemoryContext,
    /// In the order of a row's values.
    pub(super) columns: Vec<TakeColumn>,
    /// Places in `columns` of what belongs to the key, in order.
    pub(super) keys: Vec<usize>,
}

impl Target {
    /// Finds the table, locked, and checks that it is as described. The caller opens it.
    ///
    /// # Safety
    /// Inside a transaction.
    pub(super) unsafe fn resolve(
        remote: &Relation<'_>,
        lock: pg_sys::LOCKMODE,
        parent: pg_sys::MemoryContext,
    ) -> Self {
        // SAFETY: catalog lookups; the relation stays locked.
        unsafe {
            let relid = find(remote, lock);
            if relid == pg_sys::InvalidOid {
                error::differs(remote.schema(), remote.name(), "it does not exist here");
            }
            let mut stamp = Stamp::begin(relid);
            let rel = pg_sys::table_open(relid, pg_sys::NoLock as i32);
            if (*(*rel).rd_rel).relkind as u8 != remote.kind() {
                error::differs(remote.schema(), remote.name(), "it is another kind of relation");
            }
            let context = memory_context(parent, c"mtm apply target");
            let (mut columns, mut keys) = (Vec::new(), Vec::new());
            let attributes = types::attributes((*rel).rd_att);
            for column in remote.columns() {
                let Some((at, att)) = attributes.iter().enumerate().find(|(_, a)| {
                    !a.attisdropped
                        && CStr::from_ptr(a.attname.data.as_ptr()).to_bytes() == column.name
                }) else {
                    missing_column(remote, column.name, "does not exist here");
                };
                if att.attgenerated != 0 && !column.key {
                    missing_column(remote, column.name, "is generated here");
                }
                if !types::is_built_in(att.atttypid) {
                    stamp.depends_on_types();
                }
                if TypeName::of(att.atttypid).as_column_type() != column.of {
                    missing_column(remote, column.name, "has another type here");
                }
                if column.key {
                    keys.push(columns.len());
                }
                columns.push(TakeColumn::new(at, att, context));
            }
            let travels = |at: &usize| attributes[*at].attgenerated == 0;
            let here = attributes.iter().filter(|a| !a.attisdropped && a.attgenerated == 0);
            if here.count() != columns.iter().filter(|c| travels(&c.at)).count() {
                error::differs(remote.schema(), remote.name(), "it has more columns here");
            }
            pg_sys::table_close(rel, pg_sys::NoLock as i32);
            stamp.seal();
            Self { stamp, relid, context, columns, keys }
        }
    }

    /// Frees what the target's functions remember.
    ///
    /// # Safety
    /// The parent context still exists.
    pub(super) unsafe fn free(self) {
        // SAFETY: the context was made for this target only.
        unsafe { pg_sys::MemoryContextDelete(self.context) }
    }
}

fn missing_column(remote: &Relation<'_>, column: &[u8], what: &str) -> ! {
    let how = format!("column \"{}\" {what}", String::from_utf8_lossy(column));
    error::differs(remote.schema(), remote.name(), &how)
}

/// The table's OID, `InvalidOid` if there is none; it is locked then.
///
/// # Safety
/// As [`Target::resolve`].
pub(super) unsafe fn find(remote: &Relation<'_>, lock: pg_sys::LOCKMODE) -> Oid {
    let schema = std::ffi::CString::new(remote.schema());
    let name = std::ffi::CString::new(remote.name());
    let (Ok(schema), Ok(name)) = (schema, name) else {
        error::malformed(&"a zero byte in a name");
    };
    // SAFETY: makeRangeVar keeps the strings only as long as they live here.
    unsafe {
        let range = pg_sys::makeRangeVar(schema.as_ptr().cast_mut(), name.as_ptr().cast_mut(), -1);
        let missing_ok = pg_sys::RVROption::RVR_MISSING_OK;
        pg_sys::RangeVarGetRelidExtended(range, lock, missing_ok, None, core::ptr::null_mut())
    }
}

impl TakeColumn {
    /// # Safety
    /// As [`Target::resolve`].
    unsafe fn new(
        at: usize,
        att: &pg_sys::FormData_pg_attribute,
        context: pg_sys::MemoryContext,
    ) -> Self {
        // SAFETY: catalog lookups; the functions' memory is the target's.
        unsafe {
            let (mut input, mut io) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
            pg_sys::getTypeInputInfo(att.atttypid, &mut input, &mut io);
            let input = (function_info(input, context), io);
            Self {
                at,
                attnum: att.attnum,
                shape: types::shape(att.atttypid),
                typmod: att.atttypmod,
                receive: None,
                input,
            }
        }
    }

    /// A value as it is stored here, allocated in the current memory context; None for NULL.
    /// `scratch` is an initialized buffer of the caller's.
    ///
    /// # Safety
    /// Inside a transaction, with an active snapshot.
    pub(super) unsafe fn take(
        &mut self,
        typid: Oid,
        value: Value<'_>,
        scratch: pg_sys::StringInfo,
        context: pg_sys::MemoryContext,
    ) -> Option<pg_sys::Datum> {
        // SAFETY: functions get what they expect: a text ends with a zero byte in the buffer.
        unsafe {
            match value {
                Value::Null | Value::Unchanged => None,
                Value::Text(bytes) => {
                    if bytes.contains(&0) {
                        error::malformed(&"a zero byte in text");
                    }
                    fill(scratch, bytes);
                    let (function, io) = &mut self.input;
                    Some(pg_sys::InputFunctionCall(function, (*scratch).data, *io, self.typmod))
                }
                Value::Binary(bytes) => Some(match self.shape {
                    Shape::Fixed(width) => number(bytes, width),
                    Shape::Bytes => varlena(bytes),
                    Shape::Function => {
                        fill(scratch, bytes);
                        let (function, io) =
                            self.receive.get_or_insert_with(|| receive(typid, context));
                        let datum =
                            pg_sys::ReceiveFunctionCall(function, scratch, *io, self.typmod);
                        if (*scratch).cursor != (*scratch).len {
                            error::malformed(&"a value has bytes behind its end");
                        }
                        datum
                    }
                }),
            }
        }
    }
}

impl Target {
    /// Where this target's functions keep what they remember.
    pub(super) const fn context(&self) -> pg_sys::MemoryContext {
        self.context
    }
}

/// # Safety
/// As [`Target::resolve`].
unsafe fn receive(typid: Oid, context: pg_sys::MemoryContext) -> (pg_sys::FmgrInfo, Oid) {
    // SAFETY: a catalog lookup; it raises an error when the type has no such function.
    unsafe {
        let (mut function, mut io) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
        pg_sys::getTypeBinaryInputInfo(typid, &mut function, &mut io);
        (function_info(function, context), io)
    }
}

/// # Safety
/// `scratch` is an initialized buffer.
unsafe fn fill(scratch: pg_sys::StringInfo, bytes: &[u8]) {
    // SAFETY: appending ends the buffer with a zero byte.
    unsafe {
        pg_sys::resetStringInfo(scratch);
        let Ok(len) = i32::try_from(bytes.len()) else {
            error::malformed(&"a value of 2 GiB");
        };
        pg_sys::appendBinaryStringInfo(scratch, bytes.as_ptr().cast(), len);
    }
}

/// A number passed by value, as PostgreSQL widens it when it reads a row.
fn number(bytes: &[u8], width: u8) -> pg_sys::Datum {
    let wide = match (width, bytes) {
        (1, [b]) => b.cast_signed() as isize,
        (2, &[a, b]) => i16::from_be_bytes([a, b]) as isize,
        (4, &[a, b, c, d]) => i32::from_be_bytes([a, b, c, d]) as isize,
        (8, bytes) => match bytes.try_into() {
            Ok(eight) => i64::from_be_bytes(eight) as isize,
            Err(_) => error::malformed(&"a number of another size"),
        },
        _ => error::malformed(&"a number of another size"),
    };
    pg_sys::Datum::from(wide.cast_unsigned())
}

const _: () = assert!(size_of::<pg_sys::Datum>() == 8, "8-byte numbers are passed by value");

/// # Safety
/// The current memory context is live.
unsafe fn varlena(bytes: &[u8]) -> pg_sys::Datum {
    const HEADER: usize = pg_sys::VARHDRSZ;
    // SAFETY: palloc gives as much as is written, or raises an error.
    unsafe {
        let size = bytes.len() + HEADER;
        let to = pg_sys::palloc(size).cast::<u8>();
        let Ok(len) = i32::try_from(size) else {
            error::malformed(&"a value of 2 GiB");
        };
        pgrx::varlena::set_varsize_4b(to.cast(), len);
        core::ptr::copy_nonoverlapping(bytes.as_ptr(), to.add(HEADER), bytes.len());
        pg_sys::Datum::from(to)
    }
}
