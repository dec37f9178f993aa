//! Passwords: a role must have the same verifier on every node, and each server would salt its own.
//!
//! So the origin computes it before the statement runs, and what travels is the statement with the
//! verifier in place of the password, written anew from its tree.

use super::parse::{bytes, elements, literal, quoted, tag};
use pgrx::pg_sys::{self, NodeTag};
use std::ffi::c_char;

/// A copy of the statement with a verifier in place of the password; `None` when it has no
/// password to be hashed.
///
/// # Safety
/// `pstmt` is the statement given to the utility hook.
pub(super) unsafe fn with_verifier(
    pstmt: *mut pg_sys::PlannedStmt,
) -> Option<*mut pg_sys::PlannedStmt> {
    // SAFETY: the caller's promise.
    unsafe {
        plain_password((*pstmt).utilityStmt)?;
        let copy: *mut pg_sys::PlannedStmt = pg_sys::copyObjectImpl(pstmt.cast()).cast();
        let stmt = (*copy).utilityStmt;
        let (name, password) = (role_name(stmt)?, plain_password(stmt)?);
        let text = (*password).sval;
        // A library that checks passwords wants to see this one; the server will show it ours.
        if let Some(check) = pg_sys::check_password_hook {
            let kind = pg_sys::PasswordType::PASSWORD_TYPE_PLAINTEXT;
            let forever = pg_sys::Datum::from(0);
            crate::ffi::pg_guard_ffi_boundary(|| check(name, text, kind, forever, true));
        }
        let kind = pg_sys::Password_encryption as pg_sys::PasswordType::Type;
        (*password).sval = pg_sys::encrypt_password(kind, name, text);
        Some(copy)
    }
}

/// The text of a statement that sets a password, from its tree; `None` for any other.
///
/// # Safety
/// `stmt` is a utility statement.
pub(super) unsafe fn text(stmt: *mut pg_sys::Node) -> Option<Vec<u8>> {
    // SAFETY: the caller's promise; the parser made the options.
    unsafe {
        let options = options(stmt)?;
        elements::<pg_sys::DefElem>(options)
            .into_iter()
            .find(|option| bytes((**option).defname) == b"password" && !(**option).arg.is_null())?;
        let mut text = match tag(stmt) {
            NodeTag::T_CreateRoleStmt => {
                let stmt = stmt.cast::<pg_sys::CreateRoleStmt>();
                // USER differs from ROLE in one default.
                let user = (*stmt).stmt_type == pg_sys::RoleStmtType::ROLESTMT_USER;
                let kind: &[u8] = if user { b"CREATE USER " } else { b"CREATE ROLE " };
                [kind, &quoted(&bytes((*stmt).role))].concat()
            }
            _ => {
                let role = (*stmt.cast::<pg_sys::AlterRoleStmt>()).role;
                [b"ALTER ROLE ", &role_spec(role)[..]].concat()
            }
        };
        for one in elements::<pg_sys::DefElem>(options) {
            text.push(b' ');
            text.extend_from_slice(&option(one));
        }
        Some(text)
    }
}

unsafe fn options(stmt: *mut pg_sys::Node) -> Option<*mut pg_sys::List> {
    // SAFETY: each arm reads the node as what its tag says.
    unsafe {
        match tag(stmt) {
            NodeTag::T_CreateRoleStmt => Some((*stmt.cast::<pg_sys::CreateRoleStmt>()).options),
            NodeTag::T_AlterRoleStmt => Some((*stmt.cast::<pg_sys::AlterRoleStmt>()).options),
            _ => None,
        }
    }
}

unsafe fn role_name(stmt: *mut pg_sys::Node) -> Option<*const c_char> {
    // SAFETY: as above; an unknown role raises the error that the statement would raise.
    unsafe {
        match tag(stmt) {
            NodeTag::T_CreateRoleStmt => {
                Some((*stmt.cast::<pg_sys::CreateRoleStmt>()).role.cast_const())
            }
            NodeTag::T_AlterRoleStmt => {
                let role = (*stmt.cast::<pg_sys::AlterRoleStmt>()).role;
                Some(pg_sys::get_rolespec_name(role).cast_const())
            }
            _ => None,
        }
    }
}

/// The password of the statement, if the server would hash it. The empty one means none.
unsafe fn plain_password(stmt: *mut pg_sys::Node) -> Option<*mut pg_sys::String> {
    // SAFETY: the parser made the options; a password is NULL or a String node.
    unsafe {
        let options = elements::<pg_sys::DefElem>(options(stmt)?);
        let option = options.into_iter().find(|one| bytes((**one).defname) == b"password")?;
        let password = (*option).arg.cast::<pg_sys::String>();
        if password.is_null() || bytes((*password).sval).is_empty() {
            return None;
        }
        let kind = pg_sys::get_password_type((*password).sval);
        (kind == pg_sys::PasswordType::PASSWORD_TYPE_PLAINTEXT).then_some(password)
    }
}

unsafe fn role_spec(role: *mut pg_sys::RoleSpec) -> Vec<u8> {
    use pg_sys::RoleSpecType::{
        ROLESPEC_CURRENT_ROLE, ROLESPEC_CURRENT_USER, ROLESPEC_PUBLIC, ROLESPEC_SESSION_USER,
    };
    // SAFETY: the parser made it.
    let (kind, name) = unsafe { ((*role).roletype, bytes((*role).rolename)) };
    match kind {
        ROLESPEC_CURRENT_ROLE => b"CURRENT_ROLE".to_vec(),
        ROLESPEC_CURRENT_USER => b"CURRENT_USER".to_vec(),
        ROLESPEC_SESSION_USER => b"SESSION_USER".to_vec(),
        ROLESPEC_PUBLIC => b"PUBLIC".to_vec(),
        _ => quoted(&name),
    }
}

/// One option as it is written.
unsafe fn option(option: *mut pg_sys::DefElem) -> Vec<u8> {
    // SAFETY: the parser made the option; its argument is of the kind that its name says.
    unsafe {
        let (name, arg) = (bytes((*option).defname), (*option).arg);
        let flag = |on: &str| {
            let no = if pg_sys::defGetBoolean(option) { "" } else { "NO" };
            format!("{no}{on}").into_bytes()
        };
        let string = |word: &str| {
            let value = bytes((*arg.cast::<pg_sys::String>()).sval);
            [word.as_bytes(), b" ", &literal(&value)].concat()
        };
        let number = |word: &str| format!("{word} {}", pg_sys::defGetInt32(option)).into_bytes();
        let roles = |word: &str| {
            let roles = elements::<pg_sys::RoleSpec>(arg.cast());
            let roles = roles.into_iter().map(|role| role_spec(role)).collect::<Vec<_>>();
            [word.as_bytes(), b" ", &roles.join(&b", "[..])].concat()
        };
        match &name[..] {
            b"password" if arg.is_null() => b"PASSWORD NULL".to_vec(),
            b"password" => string("PASSWORD"),
            b"validUntil" => string("VALID UNTIL"),
            b"superuser" => flag("SUPERUSER"),
            b"inherit" => flag("INHERIT"),
            b"createrole" => flag("CREATEROLE"),
            b"createdb" => flag("CREATEDB"),
            b"canlogin" => flag("LOGIN"),
            b"isreplication" => flag("REPLICATION"),
            b"bypassrls" => flag("BYPASSRLS"),
            b"connectionlimit" => number("CONNECTION LIMIT"),
            b"sysid" => number("SYSID"),
            b"addroleto" => roles("IN ROLE"),
            b"rolemembers" => roles("ROLE"),
            b"adminmembers" => roles("ADMIN"),
            other => {
                let other = String::from_utf8_lossy(other);
                pgrx::error!("unknown option \"{other}\" of a role");
            }
        }
    }
}
