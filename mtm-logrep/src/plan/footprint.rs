//! What a transaction touches, so far as conflicts go.

use crate::row::{
    Column, ColumnType, Old, Relation, ReplicaIdentity, RowMessage, RowReader, Tuple,
};
use mtm_core::wire::{DecodeError, DecodeErrorKind};
use std::collections::BTreeSet;

/// Rows, tables or everything. Names are hashes: two that meet by accident only wait for nothing.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Footprint {
    rows: BTreeSet<(u64, u64)>,
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
}

/// So many rows of one transaction are remembered one by one.
const ROWS_MAX: usize = 10_000;

impl Footprint {
    /// Touches nothing.
    pub const fn new() -> Self {
        Self { rows: BTreeSet::new(), tables: BTreeSet::new(), everything: false }
    }

    /// Touches a row.
    pub fn touch_row(&mut self, table: u64, row: u64) {
        if !self.everything && !self.tables.contains(&table) {
            self.rows.insert((table, row));
            if self.rows.len() > ROWS_MAX {
                self.touch_table(table);
            }
        }
    }

    /// Touches a whole table.
    pub fn touch_table(&mut self, table: u64) {
        if !self.everything {
            self.rows.retain(|(of, _)| *of != table);
            self.tables.insert(table);
        }
    }

    /// Touches everything: a schema change.
    pub fn touch_everything(&mut self) {
        self.rows.clear();
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

    /// Whole tables.
    pub fn tables(&self) -> impl Iterator<Item = u64> + '_ {
        self.tables.iter().copied()
    }

    /// Whether two transactions must keep their order.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        let whole = |a: &Self, b: &Self| {
            a.tables.iter().any(|t| b.tables.contains(t) || b.rows.iter().any(|(of, _)| of == t))
        };
        self.everything
            || other.everything
            || whole(self, other)
            || whole(other, self)
            || !self.rows.is_disjoint(&other.rows)
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
    rows: RowReader<'_>,
    mut how: impl FnMut(&Relation<'_>) -> Conflicts,
) -> Result<Footprint, DecodeError> {
    let mut footprint = Footprint::new();
    let mut tables: Vec<TableShape> = Vec::new();
    let mut reader = rows;
    while let Some(message) = reader.next() {
        let at = DecodeError { offset: reader.offset(), kind: DecodeErrorKind::Range("row") };
        let known = |table: u32| tables.get(table as usize).ok_or(at);
        match message? {
            RowMessage::Relation(relation) => tables.push(TableShape::of(&relation, &mut how)),
            RowMessage::Insert { table, new } => known(table)?.touch(&mut footprint, new, false),
            RowMessage::Update { table, old, new } => {
                let shape = known(table)?;
                shape.touch(&mut footprint, new, false);
                if let Some(old) = old {
                    shape.touch_old(&mut footprint, old);
                }
            }
            RowMessage::Delete { table, old } => known(table)?.touch_old(&mut footprint, old),
            RowMessage::Truncate { tables: truncated, cascade, .. } => {
                for table in truncated.iter() {
                    footprint.touch_table(known(table)?.hash);
                }
                if cascade {
                    footprint.touch_everything();
                }
            }
            RowMessage::Ddl(_) => footprint.touch_everything(),
            // Names are held apart from rows.
            RowMessage::Subxact(_) | RowMessage::User(_) => {}
        }
    }
    Ok(footprint)
}

/// What must be known of a table to name its rows.
struct TableShape {
    hash: u64,
    /// Positions of the key's columns, `None` if the table is one whole.
    key: Option<Vec<usize>>,
}

impl TableShape {
    fn of(relation: &Relation<'_>, how: &mut impl FnMut(&Relation<'_>) -> Conflicts) -> Self {
        let mut hash = Hash::new();
        hash.part(relation.schema());
        hash.part(relation.name());
        let keyed = match relation.identity() {
            ReplicaIdentity::Default | ReplicaIdentity::Index => true,
            ReplicaIdentity::Full | ReplicaIdentity::Nothing => false,
        };
        let of_key = |(i, column): (usize, Column<'_>)| column.key.then_some(i);
        let key: Vec<usize> = relation.columns().enumerate().filter_map(of_key).collect();
        let by_key = keyed && !key.is_empty() && how(relation) == Conflicts::ByKey;
        Self { hash: hash.done(), key: by_key.then_some(key) }
    }

    fn touch_old(&self, footprint: &mut Footprint, old: Old<'_>) {
        match old {
            Old::Key(key) => self.touch(footprint, key, true),
            Old::Row(row) => self.touch(footprint, row, false),
        }
    }

    /// A row has a value for each column, a key only for those of the key.
    fn touch(&self, footprint: &mut Footprint, row: Tuple<'_>, is_key: bool) {
        let Some(key) = &self.key else { return footprint.touch_table(self.hash) };
        let mut hash = Hash::new();
        let (mut found, mut unknown) = (0, false);
        for (i, value) in row.values().enumerate() {
            if is_key || key.contains(&i) {
                found += 1;
                match value {
                    crate::row::Value::Binary(bytes) | crate::row::Value::Text(bytes) => {
                        hash.part(bytes);
                    }
                    crate::row::Value::Null => hash.part(b"\0null"),
                    crate::row::Value::Unchanged => unknown = true,
                }
            }
        }
        if unknown || found != key.len() {
            footprint.touch_table(self.hash);
        } else {
            footprint.touch_row(self.hash, hash.done());
        }
    }
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
        footprint(RowReader::new(bytes), |_| Conflicts::ByKey).unwrap()
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
            let _ = footprint(RowReader::new(&bytes), |_| Conflicts::ByKey);
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
            footprint(RowReader::new(&bytes), |_| Conflicts::ByTable).unwrap()
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
