//! Which transactions meet on a table: what its indexes, foreign keys and triggers say of that.

use std::collections::HashMap;
use std::ffi::CStr;

use mtm_logrep::plan::{Conflicts, Parent, Rules, equality_is_bytewise, table_hash};
use mtm_logrep::row::{Column, ColumnType, Relation};
use pgrx::pg_sys::{self, Oid};

use super::stamp::Stamp;
use super::types;
use crate::pg::sys;

/// What is known of described tables, as long as it holds.
#[derive(Default)]
pub struct Catalog {
    known: HashMap<Box<[u8]>, (Stamp, Rules)>,
}

impl core::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Catalog").field("known", &self.known.len()).finish()
    }
}

impl Catalog {
    /// The rules of a described table.
    ///
    /// To be called inside a transaction. Raises an ERROR when a lock on the table cannot be had.
    pub fn rules(&mut self, relation: &Relation<'_>) -> Rules {
        if let Some((stamp, rules)) = self.known.get(relation.bytes())
            && stamp.holds()
        {
            return rules.clone();
        }
        // SAFETY: inside a transaction, as the caller promises.
        let (stamp, rules) = unsafe { look(relation) };
        self.known.insert(relation.bytes().into(), (stamp, rules.clone()));
        rules
    }
}

/// # Safety
/// Inside a transaction.
unsafe fn look(relation: &Relation<'_>) -> (Stamp, Rules) {
    let lock = pg_sys::AccessShareLock as i32;
    // SAFETY: the table is open and locked while its relation cache entry is read.
    unsafe {
        let relid = super::target::find(relation, lock);
        let mut stamp = Stamp::begin(relid);
        let rel = match relid {
            // Whoever applies it says what is wrong.
            pg_sys::InvalidOid => core::ptr::null_mut(),
            _ => pg_sys::try_table_open(relid, lock),
        };
        if rel.is_null() {
            return (stamp, Conflicts::Everything.into());
        }
        let rules = Rules {
            conflicts: conflicts(rel, relation),
            parents: parents(rel, relation, &mut stamp),
            children: children(rel, &mut stamp),
        };
        pg_sys::table_close(rel, lock);
        stamp.seal();
        (stamp, rules)
    }
}

/// # Safety
/// `rel` is open; inside a transaction.
unsafe fn conflicts(rel: pg_sys::Relation, relation: &Relation<'_>) -> Conflicts {
    // SAFETY: the caller's promise.
    unsafe {
        let fires = |t: &pg_sys::Trigger| {
            [pg_sys::TRIGGER_FIRES_ALWAYS, pg_sys::TRIGGER_FIRES_ON_REPLICA]
                .contains(&(t.tgenabled as u8))
        };
        if triggers(rel).any(fires) {
            return Conflicts::Everything;
        }
        let key = key_columns(rel, relation);
        let Some(key) = key.filter(|key| !key.is_empty()) else { return Conflicts::ByTable };
        match indexes(rel).into_iter().all(|index| agrees(index, &key)) {
            true => Conflicts::ByKey,
            false => Conflicts::ByTable,
        }
    }
}

/// Numbers of the columns flagged as key, in their order, if equal values have equal bytes.
///
/// # Safety
/// As [`conflicts`].
unsafe fn key_columns(rel: pg_sys::Relation, relation: &Relation<'_>) -> Option<Vec<i16>> {
    let bytewise = |column: &Column<'_>| match column.of {
        // Under a collation that `agrees` looks at.
        ColumnType::BuiltIn(oid) => {
            equality_is_bytewise(oid) || [pg_sys::TEXTOID, pg_sys::VARCHAROID].contains(&oid.into())
        }
        ColumnType::Named { .. } => false,
    };
    let mut key: Vec<i16> = Vec::new();
    for column in relation.columns().filter(|column| column.key) {
        if !bytewise(&column) {
            return None;
        }
        // SAFETY: the caller's promise.
        key.push(unsafe { number_of(rel, column.name) }?);
    }
    key.sort_unstable();
    Some(key)
}

/// The number of a column.
///
/// # Safety
/// `rel` is open.
unsafe fn number_of(rel: pg_sys::Relation, name: &[u8]) -> Option<i16> {
    // SAFETY: the descriptor of an open table; a name is a C string.
    unsafe {
        types::attributes((*rel).rd_att)
            .iter()
            .find(|a| !a.attisdropped && CStr::from_ptr(a.attname.data.as_ptr()).to_bytes() == name)
            .map(|a| a.attnum)
    }
}

/// The open table's indexes.
///
/// # Safety
/// `rel` is open.
unsafe fn indexes(rel: pg_sys::Relation) -> Vec<Oid> {
    // SAFETY: a list of OIDs, a copy of ours.
    unsafe {
        let list = pg_sys::RelationGetIndexList(rel);
        let n = pg_sys::list_length(list) as usize;
        let all = (0..n).map(|i| (*(*list).elements.add(i)).oid_value).collect();
        pg_sys::list_free(list);
        all
    }
}

/// Whether this index lets rows with different keys live beside each other, in whatever order they
/// come, and takes only keys with equal bytes for the same.
///
/// # Safety
/// As [`conflicts`].
unsafe fn agrees(index: Oid, key: &[i16]) -> bool {
    let lock = pg_sys::AccessShareLock as i32;
    // SAFETY: an index of an open table; it has indnkeyatts operator families and collations.
    unsafe {
        let index = pg_sys::index_open(index, lock);
        let form = &*(*index).rd_index;
        let n = usize::from(form.indnkeyatts.unsigned_abs());
        let mut columns = form.indkey.values.as_slice(n).to_vec();
        columns.sort_unstable();
        let plain = (0..n).all(|i| {
            let collation = *(*index).rd_indcollation.add(i);
            types::is_built_in(*(*index).rd_opfamily.add(i))
                && (collation == pg_sys::InvalidOid
                    || pg_sys::get_collation_isdeterministic(collation))
        });
        let agrees = !form.indisexclusion
            && (!form.indisunique || (form.indimmediate && plain && columns == key));
        pg_sys::index_close(index, lock);
        agrees
    }
}

/// What the rows of an open table refer to.
///
/// # Safety
/// As [`conflicts`].
unsafe fn parents(
    rel: pg_sys::Relation,
    relation: &Relation<'_>,
    stamp: &mut Stamp,
) -> Vec<Parent> {
    // SAFETY: the list belongs to the relation cache; what is needed of it is copied before
    // anything else is looked up.
    unsafe {
        let list = pg_sys::RelationGetFKeyList(rel);
        let keys: Vec<(Oid, Vec<(i16, i16)>)> = (0..pg_sys::list_length(list) as usize)
            .map(|i| {
                let key =
                    &*(*(*list).elements.add(i)).ptr_value.cast::<pg_sys::ForeignKeyCacheInfo>();
                let n = key.nkeys as usize;
                let pairs = key.confkey[..n].iter().copied().zip(key.conkey[..n].iter().copied());
                (key.confrelid, pairs.collect())
            })
            .collect();
        let mut parents = Vec::new();
        for (parent, mut pairs) in keys {
            stamp.depends_on(parent);
            // A partitioned table has no rows; its partitions are in the list, too.
            let Some(table) = name_of_rows(parent) else { continue };
            // In the order of the parent's columns.
            pairs.sort_unstable();
            let columns = pairs.iter().map(|(theirs, ours)| {
                same_type(parent, *theirs, rel, *ours)
                    .then(|| place_of(rel, relation, *ours))
                    .flatten()
            });
            let columns: Option<Vec<usize>> = columns.collect();
            let theirs: Vec<i16> = pairs.iter().map(|(theirs, _)| *theirs).collect();
            let columns = columns.filter(|_| is_key(parent, &theirs)).unwrap_or_default();
            parents.push(Parent { table, columns });
        }
        parents
    }
}

/// # Safety
/// Both columns exist.
unsafe fn same_type(parent: Oid, theirs: i16, rel: pg_sys::Relation, ours: i16) -> bool {
    // SAFETY: catalog lookups.
    unsafe { pg_sys::get_atttype(parent, theirs) == pg_sys::get_atttype((*rel).rd_id, ours) }
}

/// Where a row has the value of this column.
///
/// # Safety
/// `rel` is open.
unsafe fn place_of(rel: pg_sys::Relation, relation: &Relation<'_>, number: i16) -> Option<usize> {
    // SAFETY: the caller's promise.
    relation.columns().position(|column| unsafe { number_of(rel, column.name) } == Some(number))
}

/// Whether these columns are what the rows of this table are known by; if they are not, its
/// changes touch the whole table anyway.
///
/// # Safety
/// Inside a transaction; the table exists.
unsafe fn is_key(parent: Oid, columns: &[i16]) -> bool {
    let lock = pg_sys::AccessShareLock as i32;
    // SAFETY: the table is open and locked while its indexes are looked at.
    unsafe {
        let rel = pg_sys::try_table_open(parent, lock);
        if rel.is_null() {
            return false;
        }
        let mut index = pg_sys::RelationGetReplicaIndex(rel);
        if index == pg_sys::InvalidOid {
            index = pg_sys::RelationGetPrimaryKeyIndex(rel);
        }
        let is_key = index != pg_sys::InvalidOid && {
            let index = pg_sys::index_open(index, lock);
            let form = &*(*index).rd_index;
            let n = usize::from(form.indnkeyatts.unsigned_abs());
            let mut key = form.indkey.values.as_slice(n).to_vec();
            key.sort_unstable();
            pg_sys::index_close(index, lock);
            key == columns
        };
        pg_sys::table_close(rel, lock);
        is_key
    }
}

/// Tables whose rows refer to rows of this one.
///
/// # Safety
/// As [`conflicts`].
unsafe fn children(rel: pg_sys::Relation, stamp: &mut Stamp) -> Vec<u64> {
    // SAFETY: the caller's promise; the list of partitions is a copy of ours.
    unsafe {
        let mut all = Vec::new();
        let referring = |t: &pg_sys::Trigger| {
            let is_of_key = super::check::is_of_parent(t.tgfoid.to_u32());
            (t.tgisinternal && is_of_key).then_some(t.tgconstrrelid)
        };
        let tables: Vec<Oid> = triggers(rel).filter_map(referring).collect();
        for table in tables {
            let none = core::ptr::null_mut();
            let list = sys::find_all_inheritors(table, pg_sys::NoLock as i32, none);
            for i in 0..pg_sys::list_length(list) as usize {
                let child = (*(*list).elements.add(i)).oid_value;
                stamp.depends_on(child);
                all.extend(name_of_rows(child));
            }
        }
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// The name of a table in footprints; `None` if it has no rows of its own.
///
/// # Safety
/// Inside a transaction.
unsafe fn name_of_rows(relid: Oid) -> Option<u64> {
    // SAFETY: catalog lookups; the name is a copy in the current memory context.
    unsafe {
        let name = pg_sys::get_rel_name(relid);
        if name.is_null() || pg_sys::get_rel_relkind(relid) as u8 != pg_sys::RELKIND_RELATION {
            return None;
        }
        let schema = types::schema_name(pg_sys::get_rel_namespace(relid));
        Some(table_hash(&schema, CStr::from_ptr(name).to_bytes()))
    }
}

/// The open table's triggers.
///
/// # Safety
/// `rel` is open and stays so.
unsafe fn triggers<'a>(rel: pg_sys::Relation) -> impl Iterator<Item = &'a pg_sys::Trigger> {
    // SAFETY: a descriptor has so many triggers.
    unsafe {
        let all = match (*rel).trigdesc.as_ref() {
            Some(all) => core::slice::from_raw_parts(all.triggers, all.numtriggers as usize),
            None => &[],
        };
        all.iter()
    }
}
