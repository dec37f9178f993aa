//! Writing rows.

use super::{Relation, relation, tag};

/// Appends row messages to a blob.
#[derive(Debug)]
pub struct RowWriter<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> RowWriter<'a> {
    /// Appends to `out`.
    pub const fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }

    /// Describes a table, which gets the next number of this blob.
    pub fn relation(&mut self, relation: &Relation<'_>) {
        self.described(relation.bytes());
    }

    /// As [`Self::relation`], from bytes that [`write_relation`] made.
    pub fn described(&mut self, description: &[u8]) {
        self.out.push(tag::RELATION);
        sized(self.out, description);
    }

    /// An INSERT of the row that the returned writer is given.
    pub fn insert(&mut self, table: u32, columns: usize) -> TupleWriter<'_> {
        self.out.push(tag::INSERT);
        var(self.out, u64::from(table));
        TupleWriter::new(self.out, columns)
    }

    /// Starts an UPDATE; [`Self::key`] or [`Self::row`] or [`Self::no_old`], then [`Self::tuple`].
    pub fn update(&mut self, table: u32) {
        self.out.push(tag::UPDATE);
        var(self.out, u64::from(table));
    }

    /// Starts a DELETE; [`Self::key`] or [`Self::row`] follows.
    pub fn delete(&mut self, table: u32) {
        self.out.push(tag::DELETE);
        var(self.out, u64::from(table));
    }

    /// The new row says itself which one it replaces.
    pub fn no_old(&mut self) {
        self.out.push(tag::NO_OLD);
    }

    /// The old key.
    pub fn key(&mut self, columns: usize) -> TupleWriter<'_> {
        self.out.push(tag::OLD_KEY);
        TupleWriter::new(self.out, columns)
    }

    /// The old row.
    pub fn row(&mut self, columns: usize) -> TupleWriter<'_> {
        self.out.push(tag::OLD_ROW);
        TupleWriter::new(self.out, columns)
    }

    /// The new row of an UPDATE.
    pub fn tuple(&mut self, columns: usize) -> TupleWriter<'_> {
        TupleWriter::new(self.out, columns)
    }

    /// A TRUNCATE.
    pub fn truncate(&mut self, tables: &[u32], cascade: bool, restart: bool) {
        let cascade = if cascade { tag::CASCADE } else { 0 };
        let restart = if restart { tag::RESTART } else { 0 };
        self.out.extend_from_slice(&[tag::TRUNCATE, cascade | restart]);
        var(self.out, tables.len() as u64);
        for table in tables {
            var(self.out, u64::from(*table));
        }
    }

    /// A schema change.
    pub fn ddl(&mut self, bytes: &[u8]) {
        self.out.push(tag::DDL);
        sized(self.out, bytes);
    }

    /// What the transaction does to a user's two-phase transaction.
    pub fn user(&mut self, bytes: &[u8]) {
        self.out.push(tag::USER);
        sized(self.out, bytes);
    }

    /// What follows belongs to this subtransaction.
    pub fn subxact(&mut self, xid: u32) {
        self.out.push(tag::SUBXACT);
        self.out.extend_from_slice(&xid.to_be_bytes());
    }
}

/// Appends one row's values; as many as were promised must be given.
#[derive(Debug)]
pub struct TupleWriter<'a> {
    out: &'a mut Vec<u8>,
    left: usize,
}

impl<'a> TupleWriter<'a> {
    fn new(out: &'a mut Vec<u8>, columns: usize) -> Self {
        var(out, columns as u64);
        Self { out, left: columns }
    }

    fn head(&mut self, head: u64) {
        debug_assert!(self.left > 0, "more values than promised");
        self.left = self.left.saturating_sub(1);
        var(self.out, head);
    }

    /// A NULL.
    pub fn null(&mut self) {
        self.head(0);
    }

    /// An unchanged value that is stored out of line.
    pub fn unchanged(&mut self) {
        self.head(1);
    }

    /// A value in binary.
    pub fn binary(&mut self, bytes: &[u8]) {
        self.head(bytes.len() as u64 * 2 + 2);
        self.out.extend_from_slice(bytes);
    }

    /// A value as text.
    pub fn text(&mut self, bytes: &[u8]) {
        self.head(bytes.len() as u64 * 2 + 3);
        self.out.extend_from_slice(bytes);
    }
}

impl Drop for TupleWriter<'_> {
    fn drop(&mut self) {
        debug_assert!(self.left == 0 || std::thread::panicking(), "fewer values than promised");
    }
}

/// Appends a number, 7 bits a byte, low bits first.
pub(super) fn var(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn sized(out: &mut Vec<u8>, bytes: &[u8]) {
    let len = u32::try_from(bytes.len()).expect("PostgreSQL has nothing of 4 GiB in memory");
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(bytes);
}

pub use relation::write_relation;
