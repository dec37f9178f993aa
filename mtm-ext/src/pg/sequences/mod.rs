//! Sequences: every node hands out its own values, by the server's own `nextval`.
//!
//! The catalog of each node holds the node's share (start, step and, of a cycle, one limit); what
//! the user said stands in `mtm.sequence_definitions`, the same on all nodes. Neither is ever
//! replicated: every node derives its share from the same statement.

mod exchange;
mod place;

pub(crate) use exchange::{
    announce_used, apply_floor, before_alter, continue_behind, floors, identity_changes,
    identity_sources, like_identity, refuse_native_setval,
};

use crate::pg::ddl::{Touched, emit, mark_replicable, parse, replicates, share};
use mtm_core::NodeId;
use mtm_core::sequence::{Definition, Position, Share, TooNarrow};
use mtm_logrep::ddl::Message;
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use pgrx::spi::Spi;
use pgrx::{PgSqlErrorCode, ereport};

#[pgrx::pg_guard]
unsafe extern "C-unwind" {
    fn AlterSequence(
        pstate: *mut pg_sys::ParseState,
        stmt: *mut pg_sys::AlterSeqStmt,
    ) -> pg_sys::ObjectAddress;
}

/// A row of `pg_sequence`, which has no binding.
#[derive(Clone, Copy)]
#[repr(C)]
struct PgSequence {
    _relation: pg_sys::Oid,
    _type: pg_sys::Oid,
    start: i64,
    increment: i64,
    max: i64,
    min: i64,
    _cache: i64,
    cycle: bool,
}

/// The row of a sequence, which has no binding.
#[repr(C)]
struct PgSequenceData {
    last_value: i64,
    log_count: i64,
    is_called: bool,
}

/// What a user defined, and the share of it that was written into the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    user: Definition,
    share: Share,
}

impl Record {
    /// What the catalog says if nothing but us has changed it.
    fn in_catalog(&self) -> Option<Definition> {
        on_node(&self.user, self.share).ok()
    }
}

/// The node's part of a definition. A cycle too short for all nodes is nobody's: its values come
/// again and again anyway.
fn on_node(user: &Definition, share: Share) -> Result<Definition, TooNarrow> {
    match user.on_node(share) {
        Err(TooNarrow::Range { .. }) => Ok(*user),
        other => other,
    }
}

/// While this exists, the current user is the bootstrap superuser.
struct Superuser(pg_sys::Oid, i32);

impl Superuser {
    fn begin() -> Self {
        let (mut user, mut security) = (pg_sys::InvalidOid, 0);
        // SAFETY: both pointers are to our variables.
        unsafe { pg_sys::GetUserIdAndSecContext(&raw mut user, &raw mut security) };
        let local = security | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32;
        // SAFETY: that role always exists; restored on drop.
        unsafe { pg_sys::SetUserIdAndSecContext(pg_sys::Oid::from(10u32), local) };
        Self(user, security)
    }
}

impl Drop for Superuser {
    fn drop(&mut self) {
        // SAFETY: the values that were in force.
        unsafe { pg_sys::SetUserIdAndSecContext(self.0, self.1) };
    }
}

/// Gives a node its share of every permanent sequence of the database; this node's if nothing is
/// said.
pub(crate) fn adjust_all(of: Option<Share>) {
    let Some(share) = of.or_else(share) else { return };
    let _superuser = Superuser::begin();
    for relid in listed("SELECT seqrelid FROM pg_catalog.pg_sequence") {
        adjust(relid, share);
    }
}

/// Gives every sequence back the definition its user knows.
pub(crate) fn restore_all() {
    let _superuser = Superuser::begin();
    for relid in listed("SELECT sequence FROM mtm.sequence_definitions") {
        if is_permanent_sequence(relid) {
            restore(relid);
        }
    }
}

fn listed(query: &str) -> Vec<pg_sys::Oid> {
    let found = Spi::connect_mut(|client| {
        client.update(FORGET_DROPPED, None, &[])?;
        let rows = client.update(query, None, &[])?;
        rows.map(|row| row.get::<pg_sys::Oid>(1)).collect::<Result<Vec<_>, _>>()
    });
    found.unwrap_or_else(|e| ereport_spi(&e)).into_iter().flatten().collect()
}

const FORGET_DROPPED: &str = "DELETE FROM mtm.sequence_definitions d WHERE NOT EXISTS \
    (SELECT FROM pg_catalog.pg_sequence s WHERE s.seqrelid = d.sequence)";

/// Gives this node its share of the sequences among relations that a statement touched.
///
/// With `announce`, peers learn which values a new sequence has handed out during the statement.
pub(crate) fn adjust_touched(touched: &Touched, announce: bool) {
    let Some(share) = share() else { return };
    for &relid in &touched.all {
        if !is_permanent_sequence(relid) {
            continue;
        }
        let _superuser = Superuser::begin();
        let Some(at) = adjust(relid, share) else { continue };
        if announce && at.called && touched.created.contains(&relid) {
            emit_position(relid, at);
        }
    }
}

/// Gives the sequence back the definition its user knows, until it is adjusted again.
pub(crate) fn open(relid: pg_sys::Oid) {
    if share().is_none() || !is_alterable(relid) {
        return;
    }
    let _superuser = Superuser::begin();
    restore(relid);
}

fn restore(relid: pg_sys::Oid) {
    lock(relid);
    let Some(record) = recorded(relid) else { return };
    if record.in_catalog() == Some(definition(relid)) {
        alter(relid, &record.user, None);
    }
    run("DELETE FROM mtm.sequence_definitions WHERE sequence = $1", &[relid.into()]);
}

/// Adjusts one sequence. Returns where it stood.
fn adjust(relid: pg_sys::Oid, share: Share) -> Option<Position> {
    if !is_permanent_sequence(relid) {
        return None;
    }
    lock(relid);
    let (catalog, at, record) = (definition(relid), place::read(relid), recorded(relid));
    let user = match record {
        Some(record) if record.in_catalog() == Some(catalog) => record.user,
        _ => catalog,
    };
    let mine = on_node(&user, share).unwrap_or_else(|e| refuse(relid, &e));
    let shared = mine != user || share.stride() == 1;
    let to = if shared { user.position(share, at) } else { at };
    if mine != catalog || to != at {
        alter(relid, &mine, (to != at).then_some(to));
    }
    if record != Some(Record { user, share }) {
        remember(relid, &user, share);
    }
    Some(at)
}

/// All nodes continue the sequence from here: this node's part of it.
pub(crate) fn set_named(schema: &[u8], name: &[u8], at: Position) {
    let relid = find(schema, name);
    let _superuser = Superuser::begin();
    set(relid, at);
}

/// A sequence that a peer has named.
fn find(schema: &[u8], name: &[u8]) -> pg_sys::Oid {
    let (c_schema, c_name) = (parse::c_text(schema), parse::c_text(name));
    // SAFETY: raises an error for an unknown schema.
    let namespace = unsafe { pg_sys::get_namespace_oid(c_schema.as_ptr(), false) };
    // SAFETY: a cache look-up.
    let relid = unsafe { pg_sys::get_relname_relid(c_name.as_ptr(), namespace) };
    if !is_permanent_sequence(relid) {
        let name = String::from_utf8_lossy(name);
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
            format!("sequence \"{name}\" does not exist")
        );
    }
    relid
}

/// A relation's number; 0 if there is none.
///
/// # Safety
/// `relation` is a valid RangeVar.
pub(crate) unsafe fn look_up(relation: *const pg_sys::RangeVar) -> pg_sys::Oid {
    // SAFETY: as the caller promises; no lock.
    unsafe {
        pg_sys::RangeVarGetRelidExtended(
            relation,
            pg_sys::NoLock as i32,
            pg_sys::RVROption::RVR_MISSING_OK,
            None,
            core::ptr::null_mut(),
        )
    }
}

/// The definition after an ALTER with these options, as far as classes depend on it; `None` if
/// it says where to continue, or does not change anything of that.
///
/// # Safety
/// `options` is a list of DefElem nodes as the parser makes them.
unsafe fn alter_classes(old: &Definition, options: *mut pg_sys::List) -> Option<Definition> {
    let mut new = *old;
    // SAFETY: as the caller promises.
    for option in unsafe { parse::elements::<pg_sys::DefElem>(options) } {
        // SAFETY: as above; wrong values raise the statement's own error.
        unsafe {
            let has_value = !(*option).arg.is_null();
            match &parse::bytes((*option).defname)[..] {
                b"restart" => return None,
                b"increment" if has_value => new.increment = pg_sys::defGetInt64(option),
                b"start" if has_value => new.start = pg_sys::defGetInt64(option),
                _ => {}
            }
        }
    }
    (new != *old && new.increment != 0).then_some(new)
}

/// Sets the position of this node so that the sequence as a whole stands at `at`.
fn set(relid: pg_sys::Oid, at: Position) {
    let user = recorded(relid).map_or_else(|| definition(relid), |record| record.user);
    let to = match share() {
        Some(share) if on_node(&user, share) != Ok(user) => user.position(share, at),
        _ => at,
    };
    native_setval(relid, to);
}

fn native_setval(relid: pg_sys::Oid, to: Position) {
    let args = [relid.into(), to.last.into(), to.called.into()];
    // SAFETY: the server's function with its three arguments, none NULL; it returns a bigint.
    unsafe {
        pgrx::direct_function_call::<i64>(pg_sys::setval3_oid, &args.map(Some::<pg_sys::Datum>))
    };
}

/// What `setval()` is directed to.
#[pgrx::pg_extern(name = "setval")]
fn mtm_setval2(sequence: pg_sys::Oid, value: i64) -> i64 {
    setval(sequence, Position { last: value, called: true })
}

/// What `setval()` with three arguments is directed to.
#[pgrx::pg_extern(name = "setval")]
fn mtm_setval3(sequence: pg_sys::Oid, value: i64, is_called: bool) -> i64 {
    setval(sequence, Position { last: value, called: is_called })
}

fn setval(sequence: pg_sys::Oid, at: Position) -> i64 {
    // Checks permission and limits, and sets what currval() returns.
    native_setval(sequence, at);
    if replicates() && is_permanent_sequence(sequence) {
        let _superuser = Superuser::begin();
        set(sequence, at);
        emit_position(sequence, at);
        mark_replicable();
    }
    at.last
}

fn emit_position(relid: pg_sys::Oid, at: Position) {
    let (schema, name) = names(relid);
    emit(&Message::Sequence { schema, name, last: at.last, called: at.called });
}

fn names(relid: pg_sys::Oid) -> (Vec<u8>, Vec<u8>) {
    // SAFETY: the relation is locked, so its schema and name exist; both are copies.
    unsafe {
        let schema = parse::bytes(pg_sys::get_namespace_name(pg_sys::get_rel_namespace(relid)));
        (schema, parse::bytes(pg_sys::get_rel_name(relid)))
    }
}

/// A relation's name with its schema, quoted where needed.
pub(crate) fn qualified_name(relid: pg_sys::Oid) -> Vec<u8> {
    let (schema, name) = names(relid);
    parse::qualified(&[schema, name])
}

/// Whether this is a sequence of ours that the current user may alter; otherwise the statement
/// itself says so in a moment, and nothing must have happened before.
fn is_alterable(relid: pg_sys::Oid) -> bool {
    // SAFETY: the sequence exists.
    is_permanent_sequence(relid) && unsafe { crate::pg::compat::owns_relation(relid) }
}

fn is_permanent_sequence(relid: pg_sys::Oid) -> bool {
    // SAFETY: a cache look-up; 0 when there is no such relation.
    let kind = unsafe { pg_sys::get_rel_relkind(relid) };
    if kind != pg_sys::RELKIND_SEQUENCE as i8 {
        return false;
    }
    // SAFETY: a cache look-up for an existing relation.
    let persistence = unsafe { pg_sys::get_rel_persistence(relid) };
    persistence != pg_sys::RELPERSISTENCE_TEMP as i8
}

/// Keeps others from taking values until the end of the transaction.
fn lock(relid: pg_sys::Oid) {
    // SAFETY: waits for the lock; an error is raised on a deadlock.
    unsafe { pg_sys::LockRelationOid(relid, pg_sys::ShareRowExclusiveLock as i32) };
}

/// What the catalog says.
fn definition(relid: pg_sys::Oid) -> Definition {
    let key = pg_sys::Datum::from(relid);
    // SAFETY: a cache look-up, released below.
    let row = unsafe { pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::SEQRELID as i32, key) };
    if row.is_null() {
        ereport!(ERROR, PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT, "sequence is gone");
    }
    // SAFETY: a row of pg_sequence has this layout.
    let form = unsafe { *pg_sys::GETSTRUCT(row).cast::<PgSequence>() };
    // SAFETY: taken above.
    unsafe { pg_sys::ReleaseSysCache(row) };
    Definition {
        start: form.start,
        increment: form.increment,
        min: form.min,
        max: form.max,
        cycle: form.cycle,
    }
}

/// Writes a definition, and a position if given, into catalog and sequence.
fn alter(relid: pg_sys::Oid, to: &Definition, at: Option<Position>) {
    let Definition { start, increment, min, max, .. } = to;
    let mut text = b"ALTER SEQUENCE ".to_vec();
    text.extend_from_slice(&qualified_name(relid));
    let options =
        format!(" INCREMENT BY {increment} MINVALUE {min} MAXVALUE {max} START WITH {start}");
    text.extend_from_slice(options.as_bytes());
    if let Some(at) = at {
        text.extend_from_slice(format!(" RESTART WITH {}", at.last).as_bytes());
    }
    let text = parse::c_text(&text);
    // SAFETY: the text outlives the tree, which is one ALTER SEQUENCE; the statement is not
    // executed as a utility, so neither event triggers nor our own hook see it.
    unsafe {
        let raw = parse::parse_one(&text).expect("one statement");
        let pstate = pg_sys::make_parsestate(core::ptr::null_mut());
        AlterSequence(pstate, (*raw).stmt.cast());
        pg_sys::free_parsestate(pstate);
        pg_sys::CommandCounterIncrement();
    }
    if let Some(at) = at.filter(|at| at.called) {
        native_setval(relid, at);
    }
}

/// What we wrote about the sequence.
fn recorded(relid: pg_sys::Oid) -> Option<Record> {
    let query = "SELECT node, stride, start, increment, min, max, cycle \
                 FROM mtm.sequence_definitions WHERE sequence = $1";
    let record = Spi::connect_mut(|client| {
        let mut rows = client.update(query, Some(1), &[relid.into()])?;
        let Some(row) = rows.next() else { return Ok(None) };
        let number = |i| row.get::<i64>(i).map(Option::unwrap_or_default);
        let small = |i| row.get::<i32>(i).map(Option::unwrap_or_default);
        let user = Definition {
            start: number(3)?,
            increment: number(4)?,
            min: number(5)?,
            max: number(6)?,
            cycle: row.get::<bool>(7)?.unwrap_or_default(),
        };
        let node = u8::try_from(small(1)?).ok().and_then(NodeId::new);
        let stride = u8::try_from(small(2)?).ok();
        let share = node.zip(stride).and_then(|(node, stride)| Share::new(node, stride));
        Ok::<_, pgrx::spi::Error>(share.map(|share| Record { user, share }))
    });
    record.unwrap_or_else(|e| ereport_spi(&e))
}

fn remember(relid: pg_sys::Oid, user: &Definition, share: Share) {
    let query = "INSERT INTO mtm.sequence_definitions \
                 (sequence, node, stride, start, increment, min, max, cycle) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
                 ON CONFLICT (sequence) DO UPDATE SET node = excluded.node, \
                 stride = excluded.stride, start = excluded.start, \
                 increment = excluded.increment, min = excluded.min, max = excluded.max, \
                 cycle = excluded.cycle";
    run(
        query,
        &[
            relid.into(),
            i32::from(share.node().get()).into(),
            i32::from(share.stride()).into(),
            user.start.into(),
            user.increment.into(),
            user.min.into(),
            user.max.into(),
            user.cycle.into(),
        ],
    );
}

fn run(query: &str, args: &[DatumWithOid<'_>]) {
    let done = Spi::connect_mut(|client| client.update(query, None, args).map(|_| ()));
    done.unwrap_or_else(|e| ereport_spi(&e));
}

fn ereport_spi(e: &pgrx::spi::Error) -> ! {
    ereport!(ERROR, PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, format!("sequences: {e}"));
}

fn refuse(relid: pg_sys::Oid, why: &TooNarrow) -> ! {
    let (_, name) = names(relid);
    let name = String::from_utf8_lossy(&name);
    ereport!(
        ERROR,
        PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
        format!("sequence \"{name}\" cannot be shared by the nodes of the cluster: {why}")
    );
}
