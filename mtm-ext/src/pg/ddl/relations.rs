//! Relations that a statement created, altered or rewrote, as the server reports them.

use super::parse::bytes;
use super::rewrite;
use super::session::replicates;
use crate::pg::{shmem, xact};
use crate::report;
use core::sync::atomic::Ordering;
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;
use std::cell::RefCell;

thread_local! {
    /// Created or altered since the last [`take`].
    static TOUCHED: RefCell<Touched> = const { RefCell::new(Touched::NONE) };
}

/// Relations that statements created or altered. Some may be gone again.
#[derive(Debug)]
pub(crate) struct Touched {
    /// All of them, each once.
    pub(crate) all: Vec<pg_sys::Oid>,
    /// Those that are new.
    pub(crate) created: Vec<pg_sys::Oid>,
}

impl Touched {
    const NONE: Self = Self { all: Vec::new(), created: Vec::new() };
}

static mut PREVIOUS: pg_sys::object_access_hook_type = None;

/// Installs the hook.
pub(crate) fn init() {
    // SAFETY: at library load nothing runs beside us.
    unsafe {
        PREVIOUS = pg_sys::object_access_hook;
        pg_sys::object_access_hook = Some(object_access);
    }
}

/// What was created or altered since the last call.
pub(crate) fn take() -> Touched {
    let mut touched = TOUCHED.replace(Touched::NONE);
    touched.all.sort_unstable_by_key(|relation| relation.to_u32());
    touched.all.dedup();
    touched
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn object_access(
    access: pg_sys::ObjectAccessType::Type,
    class: pg_sys::Oid,
    object: pg_sys::Oid,
    sub: core::ffi::c_int,
    arg: *mut core::ffi::c_void,
) {
    // SAFETY: set once at load.
    if let Some(previous) = unsafe { PREVIOUS } {
        // SAFETY: the arguments are the server's; the boundary turns its errors into panics.
        unsafe {
            crate::ffi::pg_guard_ffi_boundary(|| previous(access, class, object, sub, arg));
        }
    }
    if access == pg_sys::ObjectAccessType::OAT_FUNCTION_EXECUTE {
        let setval = [pg_sys::F_SETVAL_REGCLASS_INT8, pg_sys::F_SETVAL_REGCLASS_INT8_BOOL];
        if setval.contains(&object.to_u32()) && replicates() {
            crate::pg::sequences::refuse_native_setval();
        }
        return;
    }
    if class != pg_sys::RelationRelationId {
        return others(access, class, object);
    }
    match access {
        pg_sys::ObjectAccessType::OAT_POST_CREATE if sub == 0 => {
            TOUCHED.with_borrow_mut(|touched| {
                touched.all.push(object);
                touched.created.push(object);
            });
            rewrite::created(object);
        }
        pg_sys::ObjectAccessType::OAT_POST_ALTER => {
            TOUCHED.with_borrow_mut(|touched| touched.all.push(object));
        }
        _ => {}
    }
}

/// OID of the catalog of large objects.
const LARGE_OBJECTS: u32 = 2613;

/// What concerns us of objects that are no relations.
fn others(access: pg_sys::ObjectAccessType::Type, class: pg_sys::Oid, object: pg_sys::Oid) {
    thread_local! {
        static TOLD: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    }
    let made = access == pg_sys::ObjectAccessType::OAT_POST_CREATE;
    if made && class.to_u32() == LARGE_OBJECTS && replicates() && !TOLD.replace(true) {
        report::warning(
            "large objects are not replicated",
            "This one is on this node only.",
            "Use a column of type bytea.",
        );
    }
    if access == pg_sys::ObjectAccessType::OAT_DROP && class == pg_sys::ExtensionRelationId {
        // SAFETY: a catalog look-up that returns a copy or NULL.
        let name = unsafe { bytes(pg_sys::get_extension_name(object)) };
        let header = shmem::header();
        let here = xact::my_database() == header.database.load(Ordering::Relaxed);
        if name == b"multimaster" && header.me().is_some() && here {
            report::error(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "cannot drop extension multimaster while the node belongs to a cluster",
                "",
                "Take the node out of the cluster with mtm.drop_node(), or remove multimaster from \
                 \"shared_preload_libraries\" and restart the server, before you drop it.",
            );
        }
    }
}
