//! Relations that a statement created, altered or rewrote, as the server reports them.

use super::rewrite;
use pgrx::pg_sys;
use std::cell::RefCell;

thread_local! {
    /// Created or altered since the last [`take`].
    static TOUCHED: RefCell<Vec<pg_sys::Oid>> = const { RefCell::new(Vec::new()) };
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

/// Relations created or altered since the last call, each once. Some may be gone again.
pub(crate) fn take() -> Vec<pg_sys::Oid> {
    let mut relations = TOUCHED.take();
    relations.sort_unstable_by_key(|relation| relation.to_u32());
    relations.dedup();
    relations
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
    if class != pg_sys::RelationRelationId {
        return;
    }
    match access {
        pg_sys::ObjectAccessType::OAT_POST_CREATE if sub == 0 => {
            TOUCHED.with_borrow_mut(|touched| touched.push(object));
            rewrite::created(object);
        }
        pg_sys::ObjectAccessType::OAT_POST_ALTER => {
            TOUCHED.with_borrow_mut(|touched| touched.push(object));
        }
        _ => {}
    }
}
