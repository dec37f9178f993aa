//! Where clients pass: logins, statements and queries. What may pass, [`crate::hook::access`] says.

use super::compat::Port;
use super::{proc, sys, xact};
use crate::hook::access::{self, About};
use crate::pg::chain;
use core::ffi::{CStr, c_char, c_int};
use pgrx::pg_sys::{self, NodeTag};

static mut PREVIOUS_LOGIN: Option<sys::ClientAuthentication> = None;
static mut PREVIOUS_UTILITY: pg_sys::ProcessUtility_hook_type = None;
static mut PREVIOUS_RUN: pg_sys::ExecutorRun_hook_type = None;
static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;

/// Functions of schema `mtm` that look at the cluster and at nothing else. They take no arguments.
const LOOKING: [&CStr; 5] =
    [c"status", c"nodes", c"generation_history", c"unfinished", c"recovery_progress"];

/// Installs the hooks. Only in `_PG_init` under `shared_preload_libraries`, after all others of
/// ours, so that these come first.
pub fn init() {
    // SAFETY: _PG_init runs in the single-threaded postmaster; hooks are chained.
    unsafe {
        PREVIOUS_LOGIN = sys::ClientAuthentication_hook;
        sys::ClientAuthentication_hook = Some(authenticated);
        PREVIOUS_UTILITY = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(utility);
        PREVIOUS_RUN = pg_sys::ExecutorRun_hook;
        pg_sys::ExecutorRun_hook = Some(run);
        PREVIOUS_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(startup);
    }
}

/// Before the first client can come, it is known whether this node belongs to a cluster.
#[pgrx::pg_guard]
extern "C-unwind" fn startup() {
    // SAFETY: called by the postmaster after shared memory exists, or by a server in single-user
    // mode, which is no node.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP {
            crate::ffi::pg_guard_ffi_boundary(|| previous());
        }
        if pg_sys::IsPostmasterEnvironment {
            crate::config::load();
        }
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn authenticated(port: *mut Port, status: c_int) {
    // SAFETY: the server's arguments; the boundary turns errors of other hooks into panics.
    unsafe {
        if let Some(previous) = PREVIOUS_LOGIN {
            crate::ffi::pg_guard_ffi_boundary(|| previous(port, status));
        }
        if status == pg_sys::STATUS_OK as c_int && !pg_sys::am_walsender {
            let name = text((*port).application_name);
            let database = (*port).database_name.cast_const();
            access::login(&name, || database_oid(database));
        }
    }
}

/// Text of a C string; empty for null.
unsafe fn text(chars: *const c_char) -> String {
    if chars.is_null() {
        return String::new();
    }
    // SAFETY: the caller's C string.
    unsafe { CStr::from_ptr(chars) }.to_string_lossy().into_owned()
}

/// Number of the database of this name; 0 if there is none.
///
/// # Safety
/// While a client logs in: in the transaction in which the server looks up its role.
unsafe fn database_oid(name: *const c_char) -> u32 {
    // SAFETY: as the server itself finds the database a moment later: no catalogs but the shared
    // ones are open yet, and their indexes only if they came from the relation cache's file.
    unsafe {
        let mut key = pg_sys::ScanKeyData::default();
        pg_sys::ScanKeyInit(
            &raw mut key,
            pg_sys::Anum_pg_database_datname as i16,
            pg_sys::BTEqualStrategyNumber as u16,
            pg_sys::Oid::from(pg_sys::F_NAMEEQ),
            pg_sys::Datum::from(name),
        );
        let lock = pg_sys::AccessShareLock as i32;
        let relation = pg_sys::table_open(pg_sys::DatabaseRelationId, lock);
        let scan = pg_sys::systable_beginscan(
            relation,
            pg_sys::Oid::from(pg_sys::DatabaseNameIndexId),
            pg_sys::criticalSharedRelcachesBuilt,
            core::ptr::null_mut(),
            1,
            &raw mut key,
        );
        let tuple = pg_sys::systable_getnext(scan);
        let oid = match tuple.is_null() {
            true => 0,
            false => {
                let row = pg_sys::heap_tuple_get_struct::<pg_sys::FormData_pg_database>(tuple);
                (*row).oid.to_u32()
            }
        };
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, lock);
        oid
    }
}

#[allow(clippy::too_many_arguments, reason = "the server's signature")]
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn utility(
    pstmt: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    query_env: *mut pg_sys::QueryEnvironment,
    dest: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: the server's argument.
    access::statement(|| unsafe { about_statement((*pstmt).utilityStmt) });
    // SAFETY: the server's arguments.
    unsafe {
        chain::utility(
            PREVIOUS_UTILITY,
            pstmt,
            query,
            read_only_tree,
            context,
            params,
            query_env,
            dest,
            completion,
        );
    }
}

/// What a utility statement is about; what runs a query passes [`run`], too.
unsafe fn about_statement(stmt: *const pg_sys::Node) -> About {
    // SAFETY: a utility statement.
    match unsafe { (*stmt).type_ } {
        NodeTag::T_TransactionStmt | NodeTag::T_VariableSetStmt | NodeTag::T_VariableShowStmt => {
            About::Session
        }
        NodeTag::T_DiscardStmt
        | NodeTag::T_PrepareStmt
        | NodeTag::T_ExecuteStmt
        | NodeTag::T_DeallocateStmt
        | NodeTag::T_DeclareCursorStmt
        | NodeTag::T_ClosePortalStmt
        | NodeTag::T_ExplainStmt
        | NodeTag::T_UnlistenStmt => About::Cluster,
        _ => About::Data,
    }
}

#[pgrx::pg_guard]
unsafe extern "C-unwind" fn run(
    desc: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
    once: bool,
) {
    // SAFETY: the server's argument.
    access::statement(|| match unsafe { only_looks((*desc).plannedstmt) } {
        true => About::Cluster,
        false => About::Data,
    });
    // SAFETY: the server's arguments.
    unsafe { chain::run(PREVIOUS_RUN, desc, direction, count, once) }
}

/// Whether a plan does nothing but look at the cluster through the functions and views of schema
/// `mtm`; catalogs and built-in functions may help.
unsafe fn only_looks(plan: *const pg_sys::PlannedStmt) -> bool {
    // SAFETY: a plan that is about to run, in a transaction; its lists hold what they are said to.
    unsafe {
        if (*plan).commandType != pg_sys::CmdType::CMD_SELECT
            || (*plan).hasModifyingCTE
            || !(*plan).rowMarks.is_null()
        {
            return false;
        }
        let schema = pg_sys::get_namespace_oid(c"mtm".as_ptr(), true);
        if schema == pg_sys::InvalidOid {
            return false;
        }
        // The planner notes all functions it met that are not built in, by the hashes under which
        // the system caches know them.
        let looking = LOOKING.map(|name| function_hash(name, schema));
        let mut called = cells((*plan).invalItems)
            .map(|cell| cell.ptr_value.cast::<pg_sys::PlanInvalItem>())
            .filter(|item| (**item).cacheId == pg_sys::SysCacheIdentifier::PROCOID as i32)
            .peekable();
        called.peek().is_some()
            && called.all(|item| looking.contains(&Some((*item).hashValue)))
            && cells((*plan).relationOids).all(|cell| is_view_or_catalog(cell.oid_value, schema))
    }
}

/// The cells of a list; none for null.
unsafe fn cells(list: *const pg_sys::List) -> impl Iterator<Item = pg_sys::ListCell> {
    // SAFETY: a list's elements array holds `length` cells.
    let n = if list.is_null() { 0 } else { unsafe { (*list).length as usize } };
    // SAFETY: as above.
    (0..n).map(move |i| unsafe { *(*list).elements.add(i) })
}

/// Under which hash the system cache knows a function of this name without arguments.
unsafe fn function_hash(name: &CStr, schema: pg_sys::Oid) -> Option<u32> {
    // SAFETY: syscache lookups inside a transaction.
    unsafe {
        let no_arguments = pg_sys::buildoidvector(core::ptr::null(), 0);
        let function = pg_sys::GetSysCacheOid(
            pg_sys::SysCacheIdentifier::PROCNAMEARGSNSP as i32,
            pg_sys::Anum_pg_proc_oid as i16,
            pg_sys::Datum::from(name.as_ptr()),
            pg_sys::Datum::from(no_arguments),
            pg_sys::Datum::from(schema),
            pg_sys::Datum::from(0),
        );
        let none = pg_sys::Datum::from(0);
        (function != pg_sys::InvalidOid).then(|| {
            let cache = pg_sys::SysCacheIdentifier::PROCOID as i32;
            pg_sys::GetSysCacheHashValue(cache, pg_sys::Datum::from(function), none, none, none)
        })
    }
}

unsafe fn is_view_or_catalog(relation: pg_sys::Oid, schema: pg_sys::Oid) -> bool {
    // SAFETY: syscache lookups inside a transaction.
    unsafe {
        let place = pg_sys::get_rel_namespace(relation);
        let is_view = || pg_sys::get_rel_relkind(relation) as u8 == pg_sys::RELKIND_VIEW;
        place == pg_sys::Oid::from(pg_sys::PG_CATALOG_NAMESPACE) || (place == schema && is_view())
    }
}

/// Whether this process serves a client, or somebody else's background worker: not one of ours,
/// not a parallel worker, not a walsender.
pub fn serves_client() -> bool {
    if !xact::is_ordinary_process() {
        return false;
    }
    // SAFETY: null or this worker's description, which lives as long as the process.
    unsafe {
        let worker = pg_sys::MyBgworkerEntry;
        worker.is_null() || CStr::from_ptr((*worker).bgw_library_name.as_ptr()) != c"multimaster"
    }
}

/// Whether this session is in a transaction block.
pub fn in_transaction_block() -> bool {
    // SAFETY: reads the state of this process' transaction.
    unsafe { pg_sys::IsTransactionBlock() }
}

/// Whether all statements of this transaction see what the first one saw.
pub fn keeps_its_snapshot() -> bool {
    // SAFETY: a plain variable of this process.
    unsafe { pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as c_int }
}

/// A number that this process' transaction does not share with its other ones, for long.
pub fn transaction() -> u32 {
    if proc::my_procno() == proc::NO_PROC {
        return 0;
    }
    // SAFETY: our own PGPROC; only we change the field.
    unsafe { (*pg_sys::MyProc).lxid }
}
