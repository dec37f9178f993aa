//! How values of a type travel.
//!
//! Binary is what the type's send function would give. For the commonest built-in types that is so
//! simple that both sides do it themselves. A send function of an array, a record or a range may
//! put OIDs of contained types among the bytes: such a value travels in binary only when all of
//! these are built in, because users' types have other OIDs on other nodes. Text is always right.

use core::ffi::CStr;

use mtm_logrep::row::ColumnType;
use pgrx::pg_sys::{self, Oid};

use super::stamp::Stamp;

/// What is done to a value of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// A number of so many bytes, passed by value, sent in network order.
    Fixed(u8),
    /// Bytes of any length, sent as they are.
    Bytes,
    /// Whatever the send and receive functions do.
    Function,
}

/// First OID that may differ between nodes.
const FIRST_USER_OID: u32 = pg_sys::FirstNormalObjectId;

pub(super) fn is_built_in(oid: Oid) -> bool {
    oid.to_u32() < FIRST_USER_OID
}

/// The shape of a built-in type.
pub(super) fn shape(typid: Oid) -> Shape {
    match typid {
        pg_sys::BOOLOID | pg_sys::CHAROID => Shape::Fixed(1),
        pg_sys::INT2OID => Shape::Fixed(2),
        pg_sys::INT4OID
        | pg_sys::OIDOID
        | pg_sys::XIDOID
        | pg_sys::CIDOID
        | pg_sys::FLOAT4OID
        | pg_sys::DATEOID => Shape::Fixed(4),
        pg_sys::INT8OID
        | pg_sys::FLOAT8OID
        | pg_sys::MONEYOID
        | pg_sys::TIMEOID
        | pg_sys::TIMESTAMPOID
        | pg_sys::TIMESTAMPTZOID
        | pg_sys::XID8OID
        | pg_sys::PG_LSNOID => Shape::Fixed(8),
        pg_sys::BYTEAOID
        | pg_sys::TEXTOID
        | pg_sys::JSONOID
        | pg_sys::XMLOID
        | pg_sys::BPCHAROID
        | pg_sys::VARCHAROID => Shape::Bytes,
        _ => Shape::Function,
    }
}

/// Whether values of a column of this type travel in binary. What is asked of the catalogs is
/// noted in `stamp`.
///
/// # Safety
/// Inside a transaction, or in an output plugin's callback.
pub(super) unsafe fn goes_binary(typid: Oid, stamp: &mut Stamp, depth: u32) -> bool {
    if !is_built_in(typid) {
        stamp.depends_on_types();
    }
    if depth > 8 {
        return false;
    }
    // SAFETY: catalog lookups, allowed by the caller's promise.
    unsafe {
        match pg_sys::get_typtype(typid) as u8 {
            pg_sys::TYPTYPE_BASE => {
                let element = pg_sys::get_element_type(typid);
                if element != pg_sys::InvalidOid {
                    is_built_in(element) && goes_binary(element, stamp, depth + 1)
                } else {
                    is_built_in(typid) && !names_an_object(typid) && has_send(typid)
                }
            }
            pg_sys::TYPTYPE_DOMAIN => {
                let base = pg_sys::getBaseType(typid);
                // An XML value's bytes are copied, not parsed, which its receive function would do.
                base != pg_sys::XMLOID && goes_binary(base, stamp, depth + 1)
            }
            pg_sys::TYPTYPE_RANGE => {
                goes_binary(pg_sys::get_range_subtype(typid), stamp, depth + 1)
            }
            pg_sys::TYPTYPE_MULTIRANGE => {
                goes_binary(pg_sys::get_multirange_range(typid), stamp, depth + 1)
            }
            pg_sys::TYPTYPE_COMPOSITE => composite_goes_binary(typid, stamp, depth),
            _ => false,
        }
    }
}

/// # Safety
/// As [`goes_binary`].
unsafe fn composite_goes_binary(typid: Oid, stamp: &mut Stamp, depth: u32) -> bool {
    // SAFETY: the descriptor is reference-counted and given back.
    unsafe {
        stamp.depends_on(pg_sys::get_typ_typrelid(typid));
        let desc = pg_sys::lookup_rowtype_tupdesc_copy(typid, -1);
        let all = attributes(desc)
            .iter()
            .filter(|a| !a.attisdropped)
            .all(|a| is_built_in(a.atttypid) && goes_binary(a.atttypid, stamp, depth + 1));
        pg_sys::FreeTupleDesc(desc);
        all
    }
}

/// The attributes of a descriptor.
///
/// # Safety
/// `desc` must live as long as what is returned is used.
pub(super) unsafe fn attributes<'a>(
    desc: pg_sys::TupleDesc,
) -> &'a [pg_sys::FormData_pg_attribute] {
    // SAFETY: a descriptor has natts attributes behind its head.
    unsafe { (*desc).attrs.as_slice((*desc).natts as usize) }
}

/// Types whose binary form is the OID of an object.
fn names_an_object(typid: Oid) -> bool {
    matches!(
        typid,
        pg_sys::REGPROCOID
            | pg_sys::REGPROCEDUREOID
            | pg_sys::REGOPEROID
            | pg_sys::REGOPERATOROID
            | pg_sys::REGCLASSOID
            | pg_sys::REGCOLLATIONOID
            | pg_sys::REGTYPEOID
            | pg_sys::REGROLEOID
            | pg_sys::REGNAMESPACEOID
            | pg_sys::REGCONFIGOID
            | pg_sys::REGDICTIONARYOID
    )
}

/// # Safety
/// As [`goes_binary`].
unsafe fn has_send(typid: Oid) -> bool {
    // SAFETY: a syscache entry is valid until it is released.
    unsafe {
        let tuple = type_tuple(typid);
        let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_type>();
        let both =
            (*form).typsend != pg_sys::InvalidOid && (*form).typreceive != pg_sys::InvalidOid;
        pg_sys::ReleaseSysCache(tuple);
        both
    }
}

/// # Safety
/// As [`goes_binary`]; the caller releases it.
unsafe fn type_tuple(typid: Oid) -> pg_sys::HeapTuple {
    // SAFETY: a syscache lookup.
    let tuple = unsafe {
        let id = pg_sys::SysCacheIdentifier::TYPEOID as i32;
        pg_sys::SearchSysCache1(id, pg_sys::Datum::from(typid))
    };
    assert!(!tuple.is_null(), "cache lookup failed for type {}", typid.to_u32());
    tuple
}

/// A type as the peers know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TypeName {
    BuiltIn(u32),
    Named { schema: Vec<u8>, name: Vec<u8> },
}

impl TypeName {
    /// The name of a type. An array is named after its element: the names of array types are
    /// made up by the server and may differ.
    ///
    /// # Safety
    /// As [`goes_binary`].
    pub(super) unsafe fn of(typid: Oid) -> Self {
        if is_built_in(typid) {
            return Self::BuiltIn(typid.to_u32());
        }
        // SAFETY: a syscache entry is valid until it is released.
        unsafe {
            let element = pg_sys::get_element_type(typid);
            let named = if element == pg_sys::InvalidOid { typid } else { element };
            let tuple = type_tuple(named);
            let form = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_type>();
            let mut name = CStr::from_ptr((*form).typname.data.as_ptr()).to_bytes().to_vec();
            let schema = schema_name((*form).typnamespace);
            pg_sys::ReleaseSysCache(tuple);
            if named != typid {
                name.extend_from_slice(b"[]");
            }
            Self::Named { schema, name }
        }
    }

    pub(super) fn as_column_type(&self) -> ColumnType<'_> {
        match self {
            Self::BuiltIn(oid) => ColumnType::BuiltIn(*oid),
            Self::Named { schema, name } => ColumnType::Named { schema, name },
        }
    }
}

/// The name of a schema; empty when it is gone.
///
/// # Safety
/// As [`goes_binary`].
pub(super) unsafe fn schema_name(oid: Oid) -> Vec<u8> {
    // SAFETY: the name is a copy in the current memory context.
    unsafe {
        let name = pg_sys::get_namespace_name(oid);
        if name.is_null() { Vec::new() } else { CStr::from_ptr(name).to_bytes().to_vec() }
    }
}
