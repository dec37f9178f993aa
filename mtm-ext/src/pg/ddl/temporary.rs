//! Whether a statement is about temporary objects, which no peer has.

use super::parse::{bytes, elements, qualified, strings, tag};
use pgrx::pg_sys::{self, NodeTag, ObjectType};
use std::ffi::CStr;

/// How much of a statement is about temporary objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Temporary {
    /// Nothing.
    Nothing,
    /// All of it: the statement is local.
    Everything,
    /// Some: this is the statement without them.
    Without(Vec<u8>),
    /// Some, in a statement we cannot split.
    Inseparable,
    /// It is about a permanent table whose definition is a temporary one's.
    Copied,
}

/// How much of a statement is about temporary objects.
///
/// # Safety
/// `stmt` is a utility statement of the parser, `text` its text.
pub(crate) unsafe fn temporary(stmt: *mut pg_sys::Node, text: &CStr) -> Temporary {
    // SAFETY: each arm reads the node as what its tag says.
    unsafe {
        match tag(stmt) {
            NodeTag::T_CreateStmt | NodeTag::T_CreateForeignTableStmt => {
                let stmt = stmt.cast::<pg_sys::CreateStmt>();
                if created(&*(*stmt).relation) {
                    Temporary::Everything
                } else if is_like_temporary(stmt) {
                    Temporary::Copied
                } else {
                    Temporary::Nothing
                }
            }
            NodeTag::T_CreateSeqStmt => {
                all(created(&*(*stmt.cast::<pg_sys::CreateSeqStmt>()).sequence))
            }
            NodeTag::T_CompositeTypeStmt => {
                all(created(&*(*stmt.cast::<pg_sys::CompositeTypeStmt>()).typevar))
            }
            NodeTag::T_CreateTableAsStmt => {
                all(created(&*(*(*stmt.cast::<pg_sys::CreateTableAsStmt>()).into).rel))
            }
            NodeTag::T_ViewStmt => all(view(stmt.cast(), text)),
            NodeTag::T_DropStmt => dropped(stmt.cast()),
            NodeTag::T_GrantStmt => granted(stmt.cast()),
            NodeTag::T_CreateStatsStmt => {
                let relations = (*stmt.cast::<pg_sys::CreateStatsStmt>()).relations;
                let found = elements::<pg_sys::Node>(relations).into_iter().any(|relation| {
                    tag(relation) == NodeTag::T_RangeVar && existing(relation.cast())
                });
                all(found)
            }
            NodeTag::T_CommentStmt => {
                let s = stmt.cast::<pg_sys::CommentStmt>();
                all(object((*s).objtype, (*s).object))
            }
            NodeTag::T_SecLabelStmt => {
                let s = stmt.cast::<pg_sys::SecLabelStmt>();
                all(object((*s).objtype, (*s).object))
            }
            _ => all(by_relation(stmt) || new_name(stmt).is_some_and(|names| creation(names))),
        }
    }
}

const fn all(temporary: bool) -> Temporary {
    if temporary { Temporary::Everything } else { Temporary::Nothing }
}

/// Whether a LIKE clause names a temporary table, or the table is of such a table's type.
unsafe fn is_like_temporary(stmt: *const pg_sys::CreateStmt) -> bool {
    // SAFETY: elements of a table are nodes; a LIKE clause has this layout.
    unsafe {
        let of = (*stmt).ofTypename;
        let elements = elements::<pg_sys::Node>((*stmt).tableElts);
        !of.is_null() && is_temporary_type((*of).names)
            || elements.into_iter().any(|element| {
                tag(element) == NodeTag::T_TableLikeClause
                    && existing((*element.cast::<pg_sys::TableLikeClause>()).relation)
            })
    }
}

/// Whether the type with this name is temporary.
unsafe fn is_temporary_type(names: *mut pg_sys::List) -> bool {
    // SAFETY: a list of String nodes; a look-up that raises no error for a missing type.
    unsafe {
        let name = pg_sys::makeTypeNameFromNameList(names);
        let found = pg_sys::LookupTypeNameOid(core::ptr::null_mut(), name, true);
        found != pg_sys::InvalidOid && pg_sys::isAnyTempNamespace(type_namespace(found))
    }
}

/// The schema of a type.
fn type_namespace(of: pg_sys::Oid) -> pg_sys::Oid {
    let key = pg_sys::Datum::from(of);
    // SAFETY: a cache look-up, released below; a row of pg_type has this layout.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::TYPEOID as i32;
        let row = pg_sys::SearchSysCache1(cache, key);
        if row.is_null() {
            return pg_sys::InvalidOid;
        }
        let schema = (*pg_sys::GETSTRUCT(row).cast::<pg_sys::FormData_pg_type>()).typnamespace;
        pg_sys::ReleaseSysCache(row);
        schema
    }
}

/// Statements about one existing relation or object.
unsafe fn by_relation(stmt: *mut pg_sys::Node) -> bool {
    // SAFETY: each arm reads the node as what its tag says.
    unsafe {
        match tag(stmt) {
            NodeTag::T_IndexStmt => existing((*stmt.cast::<pg_sys::IndexStmt>()).relation),
            NodeTag::T_AlterTableStmt => {
                existing((*stmt.cast::<pg_sys::AlterTableStmt>()).relation)
            }
            NodeTag::T_AlterSeqStmt => existing((*stmt.cast::<pg_sys::AlterSeqStmt>()).sequence),
            NodeTag::T_CreateTrigStmt => {
                existing((*stmt.cast::<pg_sys::CreateTrigStmt>()).relation)
            }
            NodeTag::T_RuleStmt => existing((*stmt.cast::<pg_sys::RuleStmt>()).relation),
            NodeTag::T_CreatePolicyStmt => {
                existing((*stmt.cast::<pg_sys::CreatePolicyStmt>()).table)
            }
            NodeTag::T_AlterPolicyStmt => existing((*stmt.cast::<pg_sys::AlterPolicyStmt>()).table),
            NodeTag::T_RefreshMatViewStmt => {
                existing((*stmt.cast::<pg_sys::RefreshMatViewStmt>()).relation)
            }
            NodeTag::T_AlterObjectDependsStmt => {
                existing((*stmt.cast::<pg_sys::AlterObjectDependsStmt>()).relation)
            }
            NodeTag::T_AlterEnumStmt => {
                is_temporary_type((*stmt.cast::<pg_sys::AlterEnumStmt>()).typeName)
            }
            NodeTag::T_AlterDomainStmt => {
                is_temporary_type((*stmt.cast::<pg_sys::AlterDomainStmt>()).typeName)
            }
            NodeTag::T_AlterTypeStmt => {
                is_temporary_type((*stmt.cast::<pg_sys::AlterTypeStmt>()).typeName)
            }
            NodeTag::T_AlterFunctionStmt => {
                let s = stmt.cast::<pg_sys::AlterFunctionStmt>();
                object((*s).objtype, (*s).func.cast())
            }
            NodeTag::T_AlterOperatorStmt => {
                let operator = (*stmt.cast::<pg_sys::AlterOperatorStmt>()).opername;
                object(ObjectType::OBJECT_OPERATOR, operator.cast())
            }
            NodeTag::T_RenameStmt => {
                let s = stmt.cast::<pg_sys::RenameStmt>();
                existing((*s).relation) || object((*s).renameType, (*s).object)
            }
            NodeTag::T_AlterObjectSchemaStmt => {
                let s = stmt.cast::<pg_sys::AlterObjectSchemaStmt>();
                existing((*s).relation) || object((*s).objectType, (*s).object)
            }
            NodeTag::T_AlterOwnerStmt => {
                let s = stmt.cast::<pg_sys::AlterOwnerStmt>();
                existing((*s).relation) || object((*s).objectType, (*s).object)
            }
            _ => false,
        }
    }
}

/// The name that a CREATE statement gives to something that is no relation.
unsafe fn new_name(stmt: *mut pg_sys::Node) -> Option<*mut pg_sys::List> {
    // SAFETY: each arm reads the node as what its tag says.
    unsafe {
        match tag(stmt) {
            NodeTag::T_CreateFunctionStmt => {
                Some((*stmt.cast::<pg_sys::CreateFunctionStmt>()).funcname)
            }
            NodeTag::T_CreateEnumStmt => Some((*stmt.cast::<pg_sys::CreateEnumStmt>()).typeName),
            NodeTag::T_CreateRangeStmt => Some((*stmt.cast::<pg_sys::CreateRangeStmt>()).typeName),
            NodeTag::T_CreateDomainStmt => {
                Some((*stmt.cast::<pg_sys::CreateDomainStmt>()).domainname)
            }
            NodeTag::T_DefineStmt => Some((*stmt.cast::<pg_sys::DefineStmt>()).defnames),
            _ => None,
        }
    }
}

/// Whether this new relation will be temporary.
fn created(relation: &pg_sys::RangeVar) -> bool {
    if relation.relpersistence == pg_sys::RELPERSISTENCE_TEMP as i8 {
        return true;
    }
    // SAFETY: the node is valid; an unknown schema raises the error the statement would raise.
    let namespace = unsafe { pg_sys::RangeVarGetCreationNamespace(relation) };
    // SAFETY: reads a variable of the session.
    unsafe { pg_sys::isTempNamespace(namespace) }
}

/// Whether something with this new name will be temporary.
unsafe fn creation(names: *mut pg_sys::List) -> bool {
    let mut last = core::ptr::null_mut();
    // SAFETY: a list of String nodes; an unknown schema raises the statement's own error.
    let namespace = unsafe { pg_sys::QualifiedNameGetCreationNamespace(names, &raw mut last) };
    // SAFETY: reads a variable of the session.
    unsafe { pg_sys::isTempNamespace(namespace) }
}

/// Whether this existing relation is temporary; false if there is none.
unsafe fn existing(relation: *const pg_sys::RangeVar) -> bool {
    if relation.is_null() {
        return false;
    }
    let flags = pg_sys::RVROption::RVR_MISSING_OK;
    // SAFETY: a look-up without lock; the statement itself locks and looks again.
    let relid = unsafe {
        pg_sys::RangeVarGetRelidExtended(
            relation,
            pg_sys::NoLock as i32,
            flags,
            None,
            core::ptr::null_mut(),
        )
    };
    // SAFETY: the relation was found a moment ago; if it is gone its persistence is 0.
    relid != pg_sys::InvalidOid && unsafe { is_temporary(relid) }
}

unsafe fn is_temporary(relid: pg_sys::Oid) -> bool {
    // SAFETY: a cache look-up.
    let namespace = unsafe { pg_sys::get_rel_namespace(relid) };
    // SAFETY: reads a variable of the session.
    unsafe { pg_sys::isAnyTempNamespace(namespace) }
}

/// Whether this object of COMMENT, ALTER and the like is or belongs to something temporary.
unsafe fn object(kind: ObjectType::Type, object: *mut pg_sys::Node) -> bool {
    // SAFETY: each arm reads the node as the parser makes it for that kind.
    unsafe {
        match tag(object) {
            NodeTag::T_List => {
                let names = object.cast::<pg_sys::List>();
                if strings(names).first().is_some_and(|schema| schema == b"pg_temp") {
                    return true;
                }
                match kind {
                    ObjectType::OBJECT_TABLE
                    | ObjectType::OBJECT_INDEX
                    | ObjectType::OBJECT_SEQUENCE
                    | ObjectType::OBJECT_VIEW
                    | ObjectType::OBJECT_MATVIEW
                    | ObjectType::OBJECT_FOREIGN_TABLE => named(names, 0),
                    ObjectType::OBJECT_COLUMN
                    | ObjectType::OBJECT_TRIGGER
                    | ObjectType::OBJECT_RULE
                    | ObjectType::OBJECT_POLICY
                    | ObjectType::OBJECT_TABCONSTRAINT => named(names, 1),
                    ObjectType::OBJECT_TYPE | ObjectType::OBJECT_DOMAIN => is_temporary_type(names),
                    _ => false,
                }
            }
            NodeTag::T_TypeName => is_temporary_type((*object.cast::<pg_sys::TypeName>()).names),
            NodeTag::T_ObjectWithArgs => {
                let names = (*object.cast::<pg_sys::ObjectWithArgs>()).objname;
                strings(names).first().is_some_and(|schema| schema == b"pg_temp")
            }
            _ => false,
        }
    }
}

/// Whether the relation with this name, of which the last `inner` parts name something in it, is
/// temporary.
unsafe fn named(names: *mut pg_sys::List, inner: i32) -> bool {
    // SAFETY: a list of String nodes.
    let keep = unsafe { (*names).length } - inner;
    if !(1..=3).contains(&keep) {
        return false;
    }
    // SAFETY: the copy may be cut; the server reads it as a name of one to three parts.
    unsafe {
        let copy = pg_sys::list_truncate(pg_sys::list_copy(names), keep);
        existing(pg_sys::makeRangeVarFromNameList(copy))
    }
}

/// A view over temporary relations is temporary.
unsafe fn view(stmt: *mut pg_sys::ViewStmt, text: &CStr) -> bool {
    // SAFETY: a valid ViewStmt.
    if created(unsafe { &*(*stmt).view }) {
        return true;
    }
    // SAFETY: analysis may scribble on its input, so it gets a copy; a wrong query raises the
    // error that the statement would raise.
    unsafe {
        let mut raw = pgrx::PgBox::<pg_sys::RawStmt>::alloc_node(NodeTag::T_RawStmt);
        raw.stmt = pg_sys::copyObjectImpl((*stmt).query.cast()).cast();
        let none = core::ptr::null_mut();
        let query = pg_sys::parse_analyze_fixedparams(
            raw.as_ptr(),
            text.as_ptr(),
            core::ptr::null(),
            0,
            none,
        );
        pg_sys::isQueryUsingTempRelation(query)
    }
}

/// DROP of several relations may name both kinds.
unsafe fn dropped(stmt: *mut pg_sys::DropStmt) -> Temporary {
    // SAFETY: a valid DropStmt.
    let (kind, list) = unsafe { ((*stmt).removeType, (*stmt).objects) };
    // SAFETY: its objects are nodes.
    let objects = unsafe { elements::<pg_sys::Node>(list) };
    let (temporary, permanent): (Vec<_>, Vec<_>) =
        // SAFETY: the parser made them for this kind.
        objects.into_iter().partition(|&one| unsafe { object(kind, one) });
    if temporary.is_empty() {
        return Temporary::Nothing;
    }
    if permanent.is_empty() {
        return Temporary::Everything;
    }
    let what: &[u8] = match kind {
        ObjectType::OBJECT_TABLE => b"TABLE",
        ObjectType::OBJECT_INDEX => b"INDEX",
        ObjectType::OBJECT_SEQUENCE => b"SEQUENCE",
        ObjectType::OBJECT_VIEW => b"VIEW",
        ObjectType::OBJECT_MATVIEW => b"MATERIALIZED VIEW",
        ObjectType::OBJECT_FOREIGN_TABLE => b"FOREIGN TABLE",
        _ => return Temporary::Inseparable,
    };
    // SAFETY: relations are named by lists of String nodes.
    let names = permanent.iter().map(|&one| unsafe { qualified(&strings(one.cast())) });
    let names = names.collect::<Vec<_>>().join(&b", "[..]);
    // SAFETY: a valid DropStmt.
    let (missing_ok, behavior) = unsafe { ((*stmt).missing_ok, (*stmt).behavior) };
    let if_exists: &[u8] = if missing_ok { b"IF EXISTS " } else { b"" };
    let cascade: &[u8] =
        if behavior == pg_sys::DropBehavior::DROP_CASCADE { b" CASCADE" } else { b"" };
    Temporary::Without([b"DROP ", what, b" ", if_exists, &names, cascade].concat())
}

/// GRANT and REVOKE on objects.
unsafe fn granted(stmt: *mut pg_sys::GrantStmt) -> Temporary {
    // SAFETY: a valid GrantStmt.
    let (target, kind, list) = unsafe { ((*stmt).targtype, (*stmt).objtype, (*stmt).objects) };
    if target != pg_sys::GrantTargetType::ACL_TARGET_OBJECT {
        return Temporary::Nothing;
    }
    // SAFETY: relations are RangeVars, other objects with schemas lists of names or functions.
    let is_temporary = |one: *mut pg_sys::Node| unsafe {
        match tag(one) {
            NodeTag::T_RangeVar => existing(one.cast()),
            _ => object(kind, one),
        }
    };
    // SAFETY: objects are nodes.
    let objects = unsafe { elements::<pg_sys::Node>(list) };
    let n = objects.len();
    match objects.into_iter().filter(|one| is_temporary(*one)).count() {
        0 => Temporary::Nothing,
        all if all == n => Temporary::Everything,
        _ => Temporary::Inseparable,
    }
}

/// Bytes of a relation's qualified name as written.
///
/// # Safety
/// `relation` is a valid RangeVar.
pub(crate) unsafe fn written_name(relation: *const pg_sys::RangeVar) -> Vec<u8> {
    // SAFETY: as the caller promises.
    let (schema, name) = unsafe { (bytes((*relation).schemaname), bytes((*relation).relname)) };
    if schema.is_empty() { qualified(&[name]) } else { qualified(&[schema, name]) }
}
