//! A table's description.
//!
//! ```text
//! oid:u32 kind:u8 identity:u8 schema:str name:str n:var, then n columns:
//!   flags:u8 (1 key, 2 type has a name) name:str typmod:u32
//!   type: oid:var of a built-in one, or schema:str name:str
//! str: len:var UTF-8 or whatever the database's encoding is
//! ```

use core::fmt;

use mtm_core::wire::{DecodeError, DecodeErrorKind, Reader};

use super::read::{COLUMNS_MAX, var};
use super::write;

/// What identifies a table's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key.
    Default,
    /// A chosen unique index.
    Index,
    /// The whole row.
    Full,
    /// Nothing.
    Nothing,
}

impl ReplicaIdentity {
    const ALL: [Self; 4] = [Self::Default, Self::Index, Self::Full, Self::Nothing];

    /// From the letter in `pg_class.relreplident`.
    pub fn from_letter(letter: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|i| i.letter() == letter)
    }

    /// The letter in `pg_class.relreplident`.
    pub const fn letter(self) -> u8 {
        match self {
            Self::Default => b'd',
            Self::Index => b'i',
            Self::Full => b'f',
            Self::Nothing => b'n',
        }
    }
}

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType<'a> {
    /// A built-in one has the same OID everywhere.
    BuiltIn(u32),
    /// Any other is known by its name.
    Named {
        /// Its schema.
        schema: &'a [u8],
        /// Its name.
        name: &'a [u8],
    },
}

/// A column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// Whether it belongs to the replica identity.
    pub key: bool,
    /// Its type.
    pub of: ColumnType<'a>,
    /// Its type modifier, -1 for none.
    pub typmod: i32,
}

/// A description, its bytes checked. Two tables are the same for a receiver when these are equal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Relation<'a> {
    bytes: &'a [u8],
    oid: u32,
    kind: u8,
    identity: ReplicaIdentity,
    schema: &'a [u8],
    name: &'a [u8],
    count: usize,
    columns_at: usize,
}

impl<'a> Relation<'a> {
    /// Checks and borrows a description.
    ///
    /// # Errors
    /// When it is not exactly one description.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let oid = r.u32()?;
        let kind = r.u8()?;
        let unknown = r.error(DecodeErrorKind::Unknown("replica identity"));
        let identity = ReplicaIdentity::from_letter(r.u8()?).ok_or(unknown)?;
        let schema = name(&mut r)?;
        let relname = name(&mut r)?;
        let wrong = r.error(DecodeErrorKind::Range("number of columns"));
        let count = var(&mut r)?;
        if count > COLUMNS_MAX {
            return Err(wrong);
        }
        let columns_at = r.offset();
        for _ in 0..count {
            column(&mut r)?;
        }
        r.finish()?;
        let count = count as usize;
        Ok(Self { bytes, oid, kind, identity, schema, name: relname, count, columns_at })
    }

    /// The description itself, good as a key for what was derived from it.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Its OID on the node it comes from.
    pub const fn oid(&self) -> u32 {
        self.oid
    }

    /// `pg_class.relkind`.
    pub const fn kind(&self) -> u8 {
        self.kind
    }

    /// What identifies its rows.
    pub const fn identity(&self) -> ReplicaIdentity {
        self.identity
    }

    /// Its schema.
    pub const fn schema(&self) -> &'a [u8] {
        self.schema
    }

    /// Its name.
    pub const fn name(&self) -> &'a [u8] {
        self.name
    }

    /// How many columns travel.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether no column travels.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The columns in the order of a row's values.
    pub fn columns(&self) -> Columns<'a> {
        Columns { reader: Reader::new(&self.bytes[self.columns_at..]) }
    }
}

impl fmt::Debug for Relation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relation")
            .field("oid", &self.oid)
            .field("kind", &char::from(self.kind))
            .field("identity", &self.identity)
            .field("schema", &String::from_utf8_lossy(self.schema))
            .field("name", &String::from_utf8_lossy(self.name))
            .field("columns", &self.columns().collect::<Vec<_>>())
            .finish()
    }
}

/// Iterates over the columns of a table.
#[derive(Clone, Debug)]
pub struct Columns<'a> {
    reader: Reader<'a>,
}

impl<'a> Iterator for Columns<'a> {
    type Item = Column<'a>;

    fn next(&mut self) -> Option<Column<'a>> {
        if self.reader.remaining() == 0 {
            return None;
        }
        column(&mut self.reader).ok()
    }
}

/// Writes a description.
pub fn write_relation<'c>(
    out: &mut Vec<u8>,
    oid: u32,
    kind: u8,
    identity: ReplicaIdentity,
    (schema, name): (&[u8], &[u8]),
    columns: impl ExactSizeIterator<Item = Column<'c>>,
) {
    out.extend_from_slice(&oid.to_be_bytes());
    out.extend_from_slice(&[kind, identity.letter()]);
    write_name(out, schema);
    write_name(out, name);
    write::var(out, columns.len() as u64);
    for column in columns {
        let named = matches!(column.of, ColumnType::Named { .. });
        out.push(u8::from(column.key) | u8::from(named) << 1);
        write_name(out, column.name);
        out.extend_from_slice(&column.typmod.to_be_bytes());
        match column.of {
            ColumnType::BuiltIn(oid) => write::var(out, u64::from(oid)),
            ColumnType::Named { schema, name } => {
                write_name(out, schema);
                write_name(out, name);
            }
        }
    }
}

fn column<'a>(r: &mut Reader<'a>) -> Result<Column<'a>, DecodeError> {
    let unknown = r.error(DecodeErrorKind::Unknown("column flag"));
    let flags = r.u8()?;
    if flags > 3 {
        return Err(unknown);
    }
    let column_name = name(r)?;
    let typmod = r.u32()?.cast_signed();
    let of = if flags & 2 != 0 {
        ColumnType::Named { schema: name(r)?, name: name(r)? }
    } else {
        let wrong = r.error(DecodeErrorKind::Range("type"));
        ColumnType::BuiltIn(u32::try_from(var(r)?).map_err(|_| wrong)?)
    };
    Ok(Column { name: column_name, key: flags & 1 != 0, of, typmod })
}

fn name<'a>(r: &mut Reader<'a>) -> Result<&'a [u8], DecodeError> {
    let truncated = r.error(DecodeErrorKind::Truncated);
    let len = usize::try_from(var(r)?).map_err(|_| truncated)?;
    r.take(len)
}

fn write_name(out: &mut Vec<u8>, name: &[u8]) {
    write::var(out, name.len() as u64);
    out.extend_from_slice(name);
}
