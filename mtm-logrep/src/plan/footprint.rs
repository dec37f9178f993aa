//! What a transaction touches, so far as conflicts go.

use crate::row::{
    Column, ColumnType, Old, Relation, ReplicaIdentity, RowMessage, RowReader, Tuple, Value,
};
use mtm_core::wire::{DecodeError, DecodeErrorKind};
use smallvec::SmallVec;
use std::collections::BTreeSet;

/// Rows, tables or everything. Names are hashes: two that meet by accident only wait for nothing.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Footprint {
    rows: BTreeSet<(u64, u64)>,
    /// Rows that must stay as they are; none of `rows`.
    reads: BTreeSet<(u64, u64)>,
    tables: BTreeSet<u64>,
    everything: bool,
}

/// How conflicts on a table are found.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Conflicts {
    /// By the columns flagged as key: nothing else in the table is unique, and equal keys have
    /// equal bytes ([`equality_is_bytewise`]).
    ByKey,
    /// Any two transactions that touch the table conflict.
    ByTable,
    /// Whoever touches the table conflicts with all others: its triggers may do anything.
    Everything,
}

/// A table that rows of another one refer to.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Parent {
    /// Its [`table_hash`].
    pub table: u64,
    /// Places in the referring row of what the parent's row has as its key, in the order of the
    /// parent's columns. Empty if that is not known: then the whole table is meant.
    pub columns: Vec<usize>,
}

/// What must be known of a table on this node to find conflicts.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Rules {
    /// Within the table.
    pub conflicts: Conflicts,
    /// What its rows refer to. A row needs its parents to stay.
    pub parents: Vec<Parent>,
    /// [`table_hash`] of each table whose rows refer to this one. Who takes a row away meets all
    /// of them: which rows referred to it, nobody says.
    pub children: Vec<u64>,
}

impl From<Conflicts> for Rules {
    fn from(conflicts: Conflicts) -> Self {
        Self { conflicts, parents: Vec::new(), children: Vec::new() }
    }
}

/// So many rows of one transaction are remembered one by one.
const ROWS_MAX: usize = 10_000;

impl Footprint {
    /// Touches nothing.
    pub const fn new() -> Self {
        Self {
            rows: BTreeSet::new(),
            reads: BTreeSet::new(),
            tables: BTreeSet::new(),
            everything: false,
        }
    }

    /// Touches everything.
    pub fn everything() -> Self {
        Self { everything: true, ..Self::new() }
    }

    /// Touches a row.
    pub fn touch_row(&mut self, table: u64, row: u64) {
        if !self.everything && !self.tables.contains(&table) {
            self.reads.remove(&(table, row));
            self.rows.insert((table, row));
            self.stay_small(table);
        }
    }

    /// Needs a row to stay as it is. Others may need the same.
    pub fn read_row(&mut self, table: u64, row: u64) {
        let known = self.tables.contains(&table) || self.rows.contains(&(table, row));
        if !self.everything && !known {
            self.reads.insert((table, row));
            self.stay_small(table);
        }
    }

    fn stay_small(&mut self, table: u64) {
        if self.rows.len() + self.reads.len() > ROWS_MAX {
            self.touch_table(table);
        }
    }

    /// Touches a whole table.
    pub fn touch_table(&mut self, table: u64) {
        if !self.everything && self.tables.insert(table) {
            self.rows.retain(|(of, _)| *of != table);
            self.reads.retain(|(of, _)| *of != table);
        }
    }

    /// Touches everything: a schema change.
    pub fn touch_everything(&mut self) {
        self.rows.clear();
        self.reads.clear();
        self.tables.clear();
        self.everything = true;
    }

    /// Whether it touches everything.
    pub const fn is_everything(&self) -> bool {
        self.everything
    }

    /// Single rows, in tables that are not touched as a whole.
    pub fn rows(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.rows.iter().copied()
    }

    /// Rows that must stay, in tables that are not touched as a whole; none of them is touched.
    pub fn reads(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.reads.iter().copied()
    }

    /// Whole tables.
    pub fn tables(&self) -> impl Iterator<Item = u64> + '_ {
        self.tables.iter().copied()
    }

    /// Whether two transactions must keep their order.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        let whole = |a: &Self, b: &Self| {
            let in_table = |t: &u64| b.rows().chain(b.reads()).any(|(of, _)| of == *t);
            a.tables.iter().any(|t| b.tables.contains(t) || in_table(t))
        };
        self.everything
            || other.everything
            || whole(self, other)
            || whole(other, self)
            || !self.rows.is_disjoint(&other.rows)
            || !self.rows.is_disjoint(&other.reads)
            || !self.reads.is_disjoint(&other.rows)
    }
}

/// Whether equal values of a built-in type have equal bytes on the wire. Not so: numeric (1.0 and
/// 1.00), floats (0 and -0), char(n), intervals; text only under a deterministic collation, which
/// the caller knows.
pub const fn equality_is_bytewise(type_oid: u32) -> bool {
    // bool, bytea, "char", name, int8, int2, int4, oid, date, timestamp, timestamptz, uuid
    matches!(type_oid, 16..=21 | 23 | 26 | 1082 | 1114 | 1184 | 2950)
}

/// What the rows of a transaction touch. `how` knows the local table of a description; a table
/// whose rows have no key is one whole, whatever it says.
///
/// # Errors
/// When the rows are malformed.
pub fn footprint(
    rows: &[u8],
    how: impl FnMut(&Relation<'_>) -> Rules,
) -> Result<Footprint, DecodeError> {
    let mut tracer = Tracer::new();
    tracer.part(rows, how)?;
    Ok(tracer.finish())
}

/// Finds what a transaction touches, from one part of its rows after the other.
#[derive(Clone, Debug, Default)]
pub struct Tracer {
    footprint: Footprint,
    tables: Vec<TableShape>,
}

impl Tracer {
    /// Nothing read yet.
    pub const fn new() -> Self {
        Self { footprint: Footprint::new(), tables: Vec::new() }
    }

    /// What has been found.
    pub fn finish(self) -> Footprint {
        self.footprint
    }

    /// Takes a part of the rows, cut between messages. `how` is as for [`footprint`].
    ///
    /// # Errors
    /// When the rows are malformed.
    pub fn part(
        &mut self,
        part: &[u8],
        mut how: impl FnMut(&Relation<'_>) -> Rules,
    ) -> Result<(), DecodeError> {
        let Self { footprint, tables } = self;
        let mut reader = RowReader::resume(part, tables.len() as u32);
        while let Some(message) = reader.next() {
            let at = DecodeError { offset: reader.offset(), kind: DecodeErrorKind::Range("row") };
            let known = |table: u32| tables.get(table as usize).ok_or(at);
            match message? {
                RowMessage::Relation(relation) => {
                    let shape = TableShape::of(&relation, &mut how);
                    if shape.rules.conflicts == Conflicts::Everything {
                        footprint.touch_everything();
                    }
                    tables.push(shape);
                }
                RowMessage::Insert { table, new } => known(table)?.stored(footprint, new),
                RowMessage::Update { table, old, new } => {
                    known(table)?.stored(footprint, new);
                    known(table)?.replaced(footprint, old);
                }
                RowMessage::Delete { table, old } => known(table)?.removed(footprint, old),
                RowMessage::Truncate { tables: truncated, cascade, .. } => {
                    for table in truncated.iter() {
                        known(table)?.emptied(footprint);
                    }
                    if cascade {
                        footprint.touch_everything();
                    }
                }
                RowMessage::Ddl(_) => footprint.touch_everything(),
                RowMessage::Subxact(_) => {}
                // What it does to a user's transaction, and to the rows of that, is not among its rows.
                RowMessage::User(_) => footprint.touch_everything(),
            }
        }
        Ok(())
    }
}

/// The name of a table in a footprint.
pub fn table_hash(schema: &[u8], name: &[u8]) -> u64 {
    let mut hash = Hash::new();
    hash.part(schema);
    hash.part(name);
    hash.done()
}

/// What must be known of a table to name its rows.
#[derive(Clone, Debug)]
struct TableShape {
    hash: u64,
    /// Positions of the key's columns, `None` if the table is one whole.
    key: Option<Vec<usize>>,
    rules: Rules,
}

impl TableShape {
    fn of(relation: &Relation<'_>, how: &mut impl FnMut(&Relation<'_>) -> Rules) -> Self {
        let keyed = match relation.identity() {
            ReplicaIdentity::Default | ReplicaIdentity::Index => true,
            ReplicaIdentity::Full | ReplicaIdentity::Nothing => false,
        };
        let of_key = |(i, column): (usize, Column<'_>)| column.key.then_some(i);
        let key: Vec<usize> = relation.columns().enumerate().filter_map(of_key).collect();
        let rules = how(relation);
        let by_key = keyed && !key.is_empty() && rules.conflicts == Conflicts::ByKey;
        let hash = table_hash(relation.schema(), relation.name());
        Self { hash, key: by_key.then_some(key), rules }
    }

    fn stored(&self, footprint: &mut Footprint, new: Tuple<'_>) {
        self.touch(footprint, new, false);
        for parent in &self.rules.parents {
            match hash_of(new, |i| parent.columns.iter().position(|at| *at == i)) {
                // A row that refers to nothing.
                Found::Null => {}
                Found::All(row, n) if n > 0 && n == parent.columns.len() => {
                    footprint.read_row(parent.table, row);
                }
                Found::All(..) | Found::Unknown => footprint.touch_table(parent.table),
            }
        }
    }

    fn replaced(&self, footprint: &mut Footprint, old: Option<Old<'_>>) {
        match old {
            Some(old) => self.removed(footprint, old),
            // Whether what others refer to has changed is not known of a table without key.
            None if self.key.is_none() => self.meet_children(footprint),
            None => {}
        }
    }

    fn removed(&self, footprint: &mut Footprint, old: Old<'_>) {
        match old {
            Old::Key(key) => self.touch(footprint, key, true),
            Old::Row(row) => self.touch(footprint, row, false),
        }
        self.meet_children(footprint);
    }

    fn emptied(&self, footprint: &mut Footprint) {
        footprint.touch_table(self.hash);
        self.meet_children(footprint);
    }

    fn meet_children(&self, footprint: &mut Footprint) {
        self.rules.children.iter().for_each(|child| footprint.touch_table(*child));
    }

    /// A row has a value for each column, a key only for those of the key.
    fn touch(&self, footprint: &mut Footprint, row: Tuple<'_>, is_key: bool) {
        let Some(key) = &self.key else { return footprint.touch_table(self.hash) };
        let place = |i| if is_key { Some(i) } else { key.iter().position(|at| *at == i) };
        match hash_of(row, place) {
            Found::All(row, n) if n == key.len() => footprint.touch_row(self.hash, row),
            Found::All(..) | Found::Null | Found::Unknown => footprint.touch_table(self.hash),
        }
    }
}

/// What some columns of a row hold.
enum Found {
    /// The hash of so many values.
    All(u64, usize),
    /// One of them is NULL.
    Null,
    /// One of them does not travel.
    Unknown,
}

/// The hash of the columns that have a place, in the order of their places.
fn hash_of(row: Tuple<'_>, place: impl Fn(usize) -> Option<usize>) -> Found {
    let mut values: SmallVec<[(usize, &[u8]); 4]> = SmallVec::new();
    let mut null = false;
    for (i, value) in row.values().enumerate() {
        let Some(place) = place(i) else { continue };
        match value {
            Value::Binary(bytes) | Value::Text(bytes) => values.push((place, bytes)),
            Value::Null => null = true,
            Value::Unchanged => return Found::Unknown,
        }
    }
    if null {
        return Found::Null;
    }
    values.sort_unstable_by_key(|(place, _)| *place);
    let mut hash = Hash::new();
    values.iter().for_each(|(_, bytes)| hash.part(bytes));
    Found::All(hash.done(), values.len())
}

/// FNV-1a over parts with their lengths, then mixed.
struct Hash(u64);

impl Hash {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn part(&mut self, bytes: &[u8]) {
        for byte in (bytes.len() as u32).to_be_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    const fn done(&self) -> u64 {
        mtm_core::Rng::new(self.0).draw()
    }
}

/// Whether every key column of a description is of a built-in type whose equality is bytewise.
impl Relation<'_> {
    /// Whether equal keys of this table have equal bytes, as far as its types say.
    pub fn key_is_bytewise(&self) -> bool {
        self.columns().filter(|column| column.key).all(|column| match column.of {
            ColumnType::BuiltIn(oid) => equality_is_bytewise(oid),
            ColumnType::Named { .. } => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::{RowWriter, write_relation};
    use proptest::prelude::*;

    const INT4: u32 = 23;

    fn description(name: &[u8], identity: ReplicaIdentity) -> Vec<u8> {
        let column = |name, key| Column { name, key, of: ColumnType::BuiltIn(INT4), typmod: -1 };
        let columns = [column(b"a".as_slice(), false), column(b"id", true)];
        let mut out = Vec::new();
        write_relation(&mut out, 1, b'r', identity, (b"public", name), columns.into_iter());
        out
    }

    /// A transaction that inserts, changes or deletes these rows of `t`.
    fn transaction(changes: &[(u8, i32)], identity: ReplicaIdentity) -> Vec<u8> {
        let mut out = Vec::new();
        let mut w = RowWriter::new(&mut out);
        w.described(&description(b"t", identity));
        for (what, id) in changes {
            let id = id.to_be_bytes();
            match what {
                0 => {
                    let mut row = w.insert(0, 2);
                    row.null();
                    row.binary(&id);
                }
                1 => {
                    w.update(0);
                    w.no_old();
                    let mut row = w.tuple(2);
                    row.unchanged();
                    row.binary(&id);
                }
                _ => {
                    w.delete(0);
                    w.key(1).binary(&id);
                }
            }
        }
        out
    }

    fn of(bytes: &[u8]) -> Footprint {
        footprint(bytes, |_| Conflicts::ByKey.into()).unwrap()
    }

    proptest! {
        #[test]
        fn transactions_conflict_when_they_share_a_key(
            a in prop::collection::vec((0u8..3, -5i32..5), 1..5),
            b in prop::collection::vec((0u8..3, -5i32..5), 1..5),
        ) {
            let share = a.iter().any(|(_, id)| b.iter().any(|(_, other)| id == other));
            let of = |changes: &[_]| of(&transaction(changes, ReplicaIdentity::Default));
            prop_assert_eq!(of(&a).conflicts_with(&of(&b)), share);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = footprint(&bytes, |_| Conflicts::ByKey.into());
        }
    }

    #[test]
    fn a_table_without_key_is_one_whole() {
        for identity in [ReplicaIdentity::Full, ReplicaIdentity::Nothing] {
            let (a, b) =
                (of(&transaction(&[(0, 1)], identity)), of(&transaction(&[(0, 2)], identity)));
            assert!(a.conflicts_with(&b));
        }
        let by_table = |id| {
            let bytes = transaction(&[(0, id)], ReplicaIdentity::Default);
            footprint(&bytes, |_| Conflicts::ByTable.into()).unwrap()
        };
        assert!(by_table(1).conflicts_with(&by_table(2)));
    }

    #[test]
    fn a_changed_key_touches_both_rows() {
        let mut out = Vec::new();
        let mut w = RowWriter::new(&mut out);
        w.described(&description(b"t", ReplicaIdentity::Default));
        w.update(0);
        w.key(1).binary(&1i32.to_be_bytes());
        let mut row = w.tuple(2);
        row.null();
        row.binary(&2i32.to_be_bytes());
        drop(row);
        let moved = of(&out);
        for id in [1, 2] {
            assert!(moved.conflicts_with(&of(&transaction(&[(0, id)], ReplicaIdentity::Default))));
        }
        assert!(!moved.conflicts_with(&of(&transaction(&[(0, 3)], ReplicaIdentity::Default))));
    }

    /// Table `c` refers with its first column to the key of table `t`.
    fn family(bytes: &[u8]) -> Footprint {
        let hash = |name: &[u8]| table_hash(b"public", name);
        footprint(bytes, |relation| match relation.name() {
            b"t" => Rules { children: vec![hash(b"c")], ..Conflicts::ByKey.into() },
            _ => {
                let parent = Parent { table: hash(b"t"), columns: vec![0] };
                Rules { parents: vec![parent], ..Conflicts::ByKey.into() }
            }
        })
        .unwrap()
    }

    /// A new row of `c`, which may refer to a row of `t`.
    fn child(id: i32, parent: Option<i32>) -> Footprint {
        let mut out = Vec::new();
        let mut w = RowWriter::new(&mut out);
        w.described(&description(b"c", ReplicaIdentity::Default));
        let mut row = w.insert(0, 2);
        match parent {
            Some(parent) => row.binary(&parent.to_be_bytes()),
            None => row.null(),
        }
        row.binary(&id.to_be_bytes());
        drop(row);
        family(&out)
    }

    #[test]
    fn a_row_comes_after_its_parent_and_before_its_end() {
        let of = |what, id| family(&transaction(&[(what, id)], ReplicaIdentity::Default));
        assert!(child(1, Some(7)).conflicts_with(&of(0, 7)), "the parent comes");
        assert!(child(1, Some(7)).conflicts_with(&of(1, 7)), "the parent changes");
        assert!(!child(1, Some(7)).conflicts_with(&of(0, 8)), "somebody else comes");
        assert!(!child(1, Some(7)).conflicts_with(&child(2, Some(7))), "brothers");
        assert!(!child(1, None).conflicts_with(&of(0, 7)), "an orphan");
        assert!(child(1, Some(7)).conflicts_with(&of(2, 8)), "whose children, nobody says");
    }

    #[test]
    fn a_table_with_triggers_may_touch_everything() {
        let bytes = transaction(&[(0, 1)], ReplicaIdentity::Default);
        assert!(footprint(&bytes, |_| Conflicts::Everything.into()).unwrap().is_everything());
    }

    #[test]
    fn parts_are_as_good_as_the_whole() {
        let bytes = transaction(&[(0, 1), (2, 2)], ReplicaIdentity::Default);
        let head = transaction(&[(0, 1)], ReplicaIdentity::Default).len();
        let mut tracer = Tracer::new();
        for part in [&bytes[..head], &bytes[head..]] {
            tracer.part(part, |_| Conflicts::ByKey.into()).unwrap();
        }
        assert_eq!(tracer.finish(), of(&bytes));
    }

    #[test]
    fn truncate_touches_the_table_and_ddl_everything() {
        let mut out = Vec::new();
        let mut w = RowWriter::new(&mut out);
        w.described(&description(b"t", ReplicaIdentity::Default));
        w.truncate(&[0], false, false);
        assert!(of(&out).conflicts_with(&of(&transaction(&[(2, 9)], ReplicaIdentity::Default))));
        let mut ddl = Vec::new();
        RowWriter::new(&mut ddl).ddl(b"create table u()");
        assert!(of(&ddl).is_everything() && of(&ddl).conflicts_with(&Footprint::new()));
    }

    #[test]
    fn a_huge_transaction_touches_its_table() {
        let mut huge = Footprint::new();
        (0..=ROWS_MAX as u64).for_each(|row| huge.touch_row(1, row));
        assert_eq!((huge.rows().count(), huge.tables().count()), (0, 1));
    }

    #[test]
    fn numerics_and_texts_have_no_bytewise_equality() {
        for oid in [1700, 700, 701, 25, 1042, 1043, 1186] {
            assert!(!equality_is_bytewise(oid));
        }
        assert!(equality_is_bytewise(INT4) && equality_is_bytewise(2950));
    }
}
