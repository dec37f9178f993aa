//! What of a statement goes to the peers.

use super::parse::{bytes, c_text, elements, own_text, parse_one, tag};
use super::temporary::{Temporary, temporary};
use super::{context, emit, mark_replicable, role, table_as};
use crate::hook::ddl::{Scope, scope};
use crate::report;
use mtm_logrep::ddl::{Flags, Message, Rows, Statement};
use pgrx::PgSqlErrorCode;
use pgrx::pg_sys::{self, AlterTableType, NodeTag};
use std::ffi::{CStr, c_char};

/// What must still be said after a captured statement has run.
#[derive(Clone, Debug)]
pub(crate) enum Captured {
    /// Nothing.
    Nothing,
    /// That it has ended.
    End,
    /// The statement itself. What runs CONCURRENTLY commits in between and must not have a
    /// transaction number before; its last transaction, which makes the index valid or removes
    /// it, takes the statement to the peers.
    Whole(Box<Statement>),
}

/// What to send of a statement.
struct Shipment {
    text: Vec<u8>,
    rows: Rows,
    flags: Flags,
}

/// Announces a statement that is about to run, if it goes to the peers.
///
/// # Safety
/// The arguments are what the server handed to the utility hook.
pub(crate) unsafe fn before(
    pstmt: *const pg_sys::PlannedStmt,
    query: *const c_char,
) -> Option<Captured> {
    // SAFETY: a utility statement has a node.
    let stmt = unsafe { (*pstmt).utilityStmt };
    // SAFETY: as above.
    let text = || unsafe { own_text(pstmt, query) };
    // SAFETY: as above.
    if let Some((inner, text)) = unsafe { explained(stmt, text) } {
        // SAFETY: the inner statement is analysed.
        return unsafe { announce(inner, text) };
    }
    // SAFETY: as above.
    match scope(unsafe { command_tag(stmt) }) {
        Scope::Local => None,
        Scope::Rows => {
            mark_replicable();
            None
        }
        // SAFETY: as above.
        Scope::Everywhere if unsafe { local_by_content(stmt) } => None,
        // SAFETY: as above.
        Scope::Everywhere => unsafe { announce(stmt, text()) },
    }
}

/// Says what is to be said after the statement has run.
pub(crate) fn after(captured: Captured) {
    match captured {
        Captured::Nothing => {}
        Captured::End => emit(&Message::End),
        Captured::Whole(statement) => {
            mark_replicable();
            emit(&Message::Statement(*statement));
        }
    }
}

unsafe fn announce(stmt: *mut pg_sys::Node, text: Vec<u8>) -> Option<Captured> {
    // SAFETY: as the caller promises.
    let shipment = unsafe { shipment(stmt, text) }?;
    let identity = context::identity();
    let (transaction_time, statement_time) = context::times();
    let statement = Statement {
        rows: shipment.rows,
        flags: shipment.flags,
        transaction_time,
        statement_time,
        session_user: identity.session_user,
        current_user: identity.current_user,
        security_context: identity.security_context,
        text: shipment.text,
        settings: context::settings(),
    };
    if statement.flags.has(Flags::NOT_CONCURRENTLY) {
        return Some(Captured::Whole(Box::new(statement)));
    }
    let ends = statement.rows != Rows::Ordinary;
    mark_replicable();
    emit(&Message::Statement(statement));
    Some(if ends { Captured::End } else { Captured::Nothing })
}

/// EXPLAIN ANALYZE of a statement that creates a relation, as that statement.
unsafe fn explained(
    stmt: *mut pg_sys::Node,
    text: impl FnOnce() -> Vec<u8>,
) -> Option<(*mut pg_sys::Node, Vec<u8>)> {
    // SAFETY: a utility statement.
    if unsafe { tag(stmt) } != NodeTag::T_ExplainStmt {
        return None;
    }
    // SAFETY: analysed, so what it explains is a Query.
    let (query, options) = unsafe {
        let explain = stmt.cast::<pg_sys::ExplainStmt>();
        ((*explain).query.cast::<pg_sys::Query>(), (*explain).options)
    };
    // SAFETY: NULL or a node.
    let inner = unsafe { (*query).utilityStmt };
    // SAFETY: as above.
    if unsafe { tag(inner) } != NodeTag::T_CreateTableAsStmt {
        return None;
    }
    // SAFETY: options are DefElem nodes with zero-terminated names.
    let runs = unsafe { elements::<pg_sys::DefElem>(options) }.into_iter().any(|option| unsafe {
        bytes((*option).defname) == b"analyze" && pg_sys::defGetBoolean(option)
    });
    let text = text();
    let start = text.to_ascii_lowercase().windows(6).position(|six| six == b"create").unwrap_or(0);
    runs.then(|| (inner, text[start..].to_vec()))
}

/// The server's name for the kind of a statement.
unsafe fn command_tag(stmt: *mut pg_sys::Node) -> &'static str {
    // SAFETY: a utility statement; the server's names are constants in ASCII.
    let name = unsafe { CStr::from_ptr(pg_sys::GetCommandTagName(pg_sys::CreateCommandTag(stmt))) };
    name.to_str().unwrap_or("")
}

/// Statements of a global kind about something that is on one node only.
unsafe fn local_by_content(stmt: *mut pg_sys::Node) -> bool {
    // SAFETY: each arm reads the node as what its tag says.
    unsafe {
        match tag(stmt) {
            NodeTag::T_AlterDatabaseStmt => {
                let alter = stmt.cast::<pg_sys::AlterDatabaseStmt>();
                let moves = elements::<pg_sys::DefElem>((*alter).options)
                    .into_iter()
                    .any(|option| bytes((*option).defname) == b"tablespace");
                moves || other_database((*alter).dbname)
            }
            NodeTag::T_AlterDatabaseRefreshCollStmt => true,
            NodeTag::T_AlterDatabaseSetStmt => {
                other_database((*stmt.cast::<pg_sys::AlterDatabaseSetStmt>()).dbname)
            }
            NodeTag::T_RenameStmt => {
                (*stmt.cast::<pg_sys::RenameStmt>()).renameType
                    == pg_sys::ObjectType::OBJECT_DATABASE
            }
            NodeTag::T_CommentStmt => {
                is_large_object((*stmt.cast::<pg_sys::CommentStmt>()).objtype)
            }
            NodeTag::T_SecLabelStmt => {
                is_large_object((*stmt.cast::<pg_sys::SecLabelStmt>()).objtype)
            }
            NodeTag::T_GrantStmt => is_large_object((*stmt.cast::<pg_sys::GrantStmt>()).objtype),
            NodeTag::T_AlterOwnerStmt => {
                is_large_object((*stmt.cast::<pg_sys::AlterOwnerStmt>()).objectType)
            }
            NodeTag::T_CreateExtensionStmt => {
                is_ours((*stmt.cast::<pg_sys::CreateExtensionStmt>()).extname)
            }
            NodeTag::T_AlterExtensionStmt => {
                is_ours((*stmt.cast::<pg_sys::AlterExtensionStmt>()).extname)
            }
            NodeTag::T_DropStmt => {
                let drop = stmt.cast::<pg_sys::DropStmt>();
                (*drop).removeType == pg_sys::ObjectType::OBJECT_EXTENSION
                    && super::parse::strings((*drop).objects).iter().any(|n| n == b"multimaster")
            }
            NodeTag::T_CreateTableAsStmt => {
                let create = stmt.cast::<pg_sys::CreateTableAsStmt>();
                (*create).if_not_exists && exists((*(*create).into).rel)
            }
            _ => false,
        }
    }
}

/// Large objects are on one node only.
const fn is_large_object(kind: pg_sys::ObjectType::Type) -> bool {
    kind == pg_sys::ObjectType::OBJECT_LARGEOBJECT
}

unsafe fn is_ours(extension: *const c_char) -> bool {
    // SAFETY: a zero-terminated name.
    unsafe { bytes(extension) == b"multimaster" }
}

unsafe fn other_database(name: *const c_char) -> bool {
    // SAFETY: both are zero-terminated; our database exists.
    unsafe { bytes(name) != bytes(pg_sys::get_database_name(pg_sys::MyDatabaseId)) }
}

unsafe fn exists(relation: *const pg_sys::RangeVar) -> bool {
    // SAFETY: as the caller promises.
    unsafe { look_up(relation) != pg_sys::InvalidOid }
}

unsafe fn look_up(relation: *const pg_sys::RangeVar) -> pg_sys::Oid {
    let flags = pg_sys::RVROption::RVR_MISSING_OK;
    // SAFETY: a look-up without lock.
    unsafe {
        pg_sys::RangeVarGetRelidExtended(
            relation,
            pg_sys::NoLock as i32,
            flags,
            None,
            core::ptr::null_mut(),
        )
    }
}

/// What to send of a statement; nothing when it is about temporary objects only.
unsafe fn shipment(stmt: *mut pg_sys::Node, text: Vec<u8>) -> Option<Shipment> {
    // SAFETY: a utility statement.
    let text = unsafe { role::text(stmt) }.unwrap_or(text);
    let c = c_text(&text);
    // SAFETY: a utility statement and its text.
    let text = match unsafe { temporary(stmt, &c) } {
        Temporary::Nothing => text,
        Temporary::Everything => return None,
        Temporary::Without(text) => text,
        Temporary::Inseparable => refuse_mixture(),
        Temporary::Copied => refuse_copy(),
    };
    // SAFETY: each arm reads the node as what its tag says.
    let (rows, flags) = unsafe {
        match tag(stmt) {
            NodeTag::T_CreateTableAsStmt => {
                let create = stmt.cast::<pg_sys::CreateTableAsStmt>();
                if (*create).objtype == pg_sys::ObjectType::OBJECT_TABLE {
                    let text = table_as::definition(create);
                    return Some(Shipment { text, rows: Rows::Ordinary, flags: Flags::NONE });
                }
                let no_data = (*(*create).into).skipData;
                let filled = Flags::NO_DATA.with(Flags::POPULATED);
                (Rows::Ordinary, if no_data { Flags::NONE } else { filled })
            }
            NodeTag::T_RefreshMatViewStmt => {
                let refresh = stmt.cast::<pg_sys::RefreshMatViewStmt>();
                match ((*refresh).skipData, (*refresh).concurrent) {
                    (true, _) => (Rows::Ordinary, Flags::NONE),
                    // Its changes are ordinary rows.
                    (false, true) => {
                        mark_replicable();
                        return None;
                    }
                    (false, false) => (Rows::WithRewritten, Flags::REFILL),
                }
            }
            NodeTag::T_AlterTableStmt => alter_table(stmt.cast()),
            NodeTag::T_CreateExtensionStmt | NodeTag::T_AlterExtensionStmt => {
                (Rows::None, Flags::FIRE_TRIGGERS)
            }
            NodeTag::T_IndexStmt if (*stmt.cast::<pg_sys::IndexStmt>()).concurrent => {
                (Rows::Ordinary, Flags::NOT_CONCURRENTLY)
            }
            NodeTag::T_DropStmt => (Rows::Ordinary, drop_flags(stmt.cast())),
            _ => (Rows::Ordinary, Flags::NONE),
        }
    };
    // SAFETY: a utility statement.
    unsafe { check_text(stmt, &text) };
    Some(Shipment { text, rows, flags })
}

/// ALTER TABLE may rewrite a table with values that a peer would compute differently.
unsafe fn alter_table(stmt: *mut pg_sys::AlterTableStmt) -> (Rows, Flags) {
    let mut flags = Flags::NONE;
    let mut rows = Rows::Ordinary;
    // SAFETY: subcommands are AlterTableCmd nodes.
    for command in unsafe { elements::<pg_sys::AlterTableCmd>((*stmt).cmds) } {
        // SAFETY: as above.
        let (kind, def) = unsafe { ((*command).subtype, (*command).def) };
        // If no rewrite follows, asking for its rows costs nothing.
        let unpredictable = match kind {
            // A default, an identity, a serial or the default of a domain.
            AlterTableType::AT_AddColumn => true,
            AlterTableType::AT_AlterColumnType => {
                // SAFETY: the new type comes as a ColumnDef, its USING as a raw default.
                !unsafe { (*def.cast::<pg_sys::ColumnDef>()).raw_default }.is_null()
            }
            // The rows of an unlogged table are only here.
            AlterTableType::AT_SetLogged => true,
            _ => false,
        };
        if unpredictable {
            flags = flags.with(Flags::EMPTY_REWRITTEN);
            rows = Rows::WithRewritten;
        }
        if kind == AlterTableType::AT_DetachPartition {
            // SAFETY: the partition comes as a PartitionCmd.
            if unsafe { (*def.cast::<pg_sys::PartitionCmd>()).concurrent } {
                refuse_detach();
            }
        }
    }
    (rows, flags)
}

/// DROP INDEX may be concurrent, or about an index that only this node has.
unsafe fn drop_flags(stmt: *mut pg_sys::DropStmt) -> Flags {
    // SAFETY: a valid DropStmt.
    let (kind, concurrent, objects) =
        unsafe { ((*stmt).removeType, (*stmt).concurrent, (*stmt).objects) };
    let mut flags = if concurrent { Flags::NOT_CONCURRENTLY } else { Flags::NONE };
    if kind != pg_sys::ObjectType::OBJECT_INDEX {
        return flags;
    }
    // SAFETY: indexes are named by lists of String nodes.
    for names in unsafe { elements::<pg_sys::List>(objects) } {
        // SAFETY: as above.
        let relid = unsafe { look_up(pg_sys::makeRangeVarFromNameList(names)) };
        // SAFETY: cache look-ups; only an index has a row there.
        let failed = unsafe {
            pg_sys::get_rel_relkind(relid) == pg_sys::RELKIND_INDEX as i8
                && !pg_sys::get_index_isvalid(relid)
        };
        if failed {
            flags = flags.with(Flags::MISSING_OK);
        }
    }
    flags
}

fn refuse_detach() -> ! {
    report::error(
        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        "cannot replicate DETACH PARTITION CONCURRENTLY",
        "",
        "Use DETACH PARTITION without CONCURRENTLY.",
    )
}

/// The text must be what runs: another extension may have built the statement without one.
unsafe fn check_text(stmt: *const pg_sys::Node, text: &[u8]) {
    let c = c_text(text);
    // SAFETY: the text lives until the end of this function, longer than the tree is used.
    let parsed = unsafe { parse_one(&c) };
    // SAFETY: the parser's result is valid.
    let same = parsed.is_some_and(|raw| unsafe { tag((*raw).stmt) == tag(stmt) });
    if !same {
        report::error(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            "cannot replicate a statement whose text is not known",
            "An extension executes it without its text.",
            "Execute it on every node with application_name = mtm_admin.",
        );
    }
}

fn refuse_mixture() -> ! {
    report::error(
        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        "cannot replicate one statement about temporary and permanent objects",
        "",
        "Use one statement for the temporary and one for the permanent objects.",
    )
}

fn refuse_copy() -> ! {
    report::error(
        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        "cannot replicate a permanent table that is defined like a temporary one",
        "Other nodes do not have the temporary table.",
        "Use CREATE TABLE ... AS SELECT * FROM the temporary table WITH NO DATA.",
    )
}
