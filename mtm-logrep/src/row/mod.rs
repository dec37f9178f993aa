//! The rows of one transaction as bytes.
//!
//! A transaction travels as one self-contained blob: row messages one after another, each table
//! described once, on its first use. The blob owes nothing to any other blob, so that pieces of a
//! large transaction may be spilled, kept and replayed on their own. All of it is versioned by the
//! stream that carries it; numbers are big-endian or variable-length (7 bits a byte, low first).
//!
//! ```text
//! 'R' len:u32 table description                      gets the next number 0, 1, 2 ...
//! 'I' table:var  row                                 INSERT
//! 'U' table:var  '-' row | 'K' key row | 'O' row row UPDATE: old key or old row, then the new row
//! 'X' table:var  'K' key | 'O' row                   DELETE
//! 'T' flags:u8 n:var table:var...                    TRUNCATE (bit 0 cascade, bit 1 restart)
//! 'D' len:u32 bytes                                  DDL, opaque here
//! 'P' len:u32 bytes                                  a user's two-phase operation, opaque here
//! 'S' xid:u32                                        what follows belongs to this subtransaction
//! row, key: n:var, then n values:
//!   0 NULL | 1 unchanged | (2 len + 2):var bytes, binary | (2 len + 3):var bytes, text
//! ```
//!
//! A row has a value for each described column, a key one for each column flagged as key.
//!
//! Never here: what the bytes of a value mean, and anything that would need PostgreSQL.

mod read;
mod relation;
mod write;

#[cfg(test)]
mod tests;

pub use read::{RowReader, Tables, Tuple, Values};
pub use relation::{Column, ColumnType, Columns, Relation, ReplicaIdentity};
pub use write::{RowWriter, TupleWriter, write_relation};

/// One step of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowMessage<'a> {
    /// Describes a table; later messages name it by its number, counted from 0.
    Relation(Relation<'a>),
    /// A new row.
    Insert {
        /// Number of the table.
        table: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A changed row.
    Update {
        /// Number of the table.
        table: u32,
        /// How to find it, when its key in `new` does not say it.
        old: Option<Old<'a>>,
        /// The row as it is now.
        new: Tuple<'a>,
    },
    /// A removed row.
    Delete {
        /// Number of the table.
        table: u32,
        /// How to find it.
        old: Old<'a>,
    },
    /// Emptied tables.
    Truncate {
        /// Numbers of the tables.
        tables: Tables<'a>,
        /// The statement said CASCADE.
        cascade: bool,
        /// The statement said RESTART IDENTITY.
        restart: bool,
    },
    /// A schema change, written and read elsewhere.
    Ddl(&'a [u8]),
    /// What the transaction does to a user's two-phase transaction, written and read elsewhere.
    User(&'a [u8]),
    /// The following messages belong to this subtransaction.
    Subxact(u32),
}

/// How a row is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Old<'a> {
    /// By the columns flagged as key.
    Key(Tuple<'a>),
    /// By all columns.
    Row(Tuple<'a>),
}

/// A column's value as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// NULL.
    Null,
    /// Stored out of line and not changed; the receiver keeps its own.
    Unchanged,
    /// What the type's binary send function gives.
    Binary(&'a [u8]),
    /// What the type's output function gives.
    Text(&'a [u8]),
}

mod tag {
    pub(super) const RELATION: u8 = b'R';
    pub(super) const INSERT: u8 = b'I';
    pub(super) const UPDATE: u8 = b'U';
    pub(super) const DELETE: u8 = b'X';
    pub(super) const TRUNCATE: u8 = b'T';
    pub(super) const DDL: u8 = b'D';
    pub(super) const USER: u8 = b'P';
    pub(super) const SUBXACT: u8 = b'S';
    pub(super) const NO_OLD: u8 = b'-';
    pub(super) const OLD_KEY: u8 = b'K';
    pub(super) const OLD_ROW: u8 = b'O';
    pub(super) const CASCADE: u8 = 1;
    pub(super) const RESTART: u8 = 2;
}
