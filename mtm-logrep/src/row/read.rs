//! Reading rows, borrowing from the blob.

use mtm_core::wire::{DecodeError, DecodeErrorKind, Reader};

use super::{Old, Relation, RowMessage, Value, tag};

/// A row never has more columns than PostgreSQL allows.
pub(super) const COLUMNS_MAX: u64 = 1664;

/// Iterates over the messages of a blob. After an error it ends.
#[derive(Clone, Debug)]
pub struct RowReader<'a> {
    reader: Reader<'a>,
    tables: u32,
    failed: bool,
}

impl<'a> RowReader<'a> {
    /// Reads `blob` from its start.
    pub const fn new(blob: &'a [u8]) -> Self {
        Self::resume(blob, 0)
    }

    /// Reads a piece of a blob, in whose earlier pieces `tables` tables were described.
    pub const fn resume(piece: &'a [u8], tables: u32) -> Self {
        Self { reader: Reader::new(piece), tables, failed: false }
    }

    /// How far it has read.
    pub const fn offset(&self) -> usize {
        self.reader.offset()
    }

    fn table(&mut self) -> Result<u32, DecodeError> {
        let wrong = self.reader.error(DecodeErrorKind::Range("table number"));
        let table = var(&mut self.reader)?;
        match u32::try_from(table) {
            Ok(table) if table < self.tables => Ok(table),
            _ => Err(wrong),
        }
    }

    fn message(&mut self) -> Result<RowMessage<'a>, DecodeError> {
        let unknown = self.reader.error(DecodeErrorKind::Unknown("row message"));
        Ok(match self.reader.u8()? {
            tag::RELATION => {
                let relation = Relation::parse(self.reader.bytes()?)?;
                let full = self.reader.error(DecodeErrorKind::Range("number of tables"));
                self.tables = self.tables.checked_add(1).ok_or(full)?;
                RowMessage::Relation(relation)
            }
            tag::INSERT => RowMessage::Insert { table: self.table()?, new: self.tuple()? },
            tag::UPDATE => {
                let table = self.table()?;
                let old = self.old()?;
                RowMessage::Update { table, old, new: self.tuple()? }
            }
            tag::DELETE => {
                let table = self.table()?;
                let missing = self.reader.error(DecodeErrorKind::Range("old row"));
                RowMessage::Delete { table, old: self.old()?.ok_or(missing)? }
            }
            tag::TRUNCATE => self.truncate()?,
            tag::DDL => RowMessage::Ddl(self.reader.bytes()?),
            tag::USER => RowMessage::User(self.reader.bytes()?),
            tag::SUBXACT => RowMessage::Subxact(self.reader.u32()?),
            _ => return Err(unknown),
        })
    }

    fn old(&mut self) -> Result<Option<Old<'a>>, DecodeError> {
        let unknown = self.reader.error(DecodeErrorKind::Unknown("kind of old row"));
        match self.reader.u8()? {
            tag::NO_OLD => Ok(None),
            tag::OLD_KEY => Ok(Some(Old::Key(self.tuple()?))),
            tag::OLD_ROW => Ok(Some(Old::Row(self.tuple()?))),
            _ => Err(unknown),
        }
    }

    fn tuple(&mut self) -> Result<Tuple<'a>, DecodeError> {
        let wrong = self.reader.error(DecodeErrorKind::Range("number of columns"));
        let count = var(&mut self.reader)?;
        if count > COLUMNS_MAX {
            return Err(wrong);
        }
        let mut ahead = self.reader.clone();
        for _ in 0..count {
            value(&mut ahead)?;
        }
        let bytes = self.reader.take(ahead.offset() - self.reader.offset())?;
        Ok(Tuple { count: count as usize, bytes })
    }

    fn truncate(&mut self) -> Result<RowMessage<'a>, DecodeError> {
        let unknown = self.reader.error(DecodeErrorKind::Unknown("TRUNCATE flag"));
        let flags = self.reader.u8()?;
        if flags & !(tag::CASCADE | tag::RESTART) != 0 {
            return Err(unknown);
        }
        let count = var(&mut self.reader)?;
        let mut ahead = self.clone();
        for _ in 0..count {
            ahead.table()?;
        }
        let bytes = self.reader.take(ahead.offset() - self.offset())?;
        Ok(RowMessage::Truncate {
            tables: Tables { bytes },
            cascade: flags & tag::CASCADE != 0,
            restart: flags & tag::RESTART != 0,
        })
    }
}

impl<'a> Iterator for RowReader<'a> {
    type Item = Result<RowMessage<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.reader.remaining() == 0 {
            return None;
        }
        let message = self.message();
        self.failed = message.is_err();
        Some(message)
    }
}

/// The values of a row. Its bytes have been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple<'a> {
    count: usize,
    bytes: &'a [u8],
}

impl<'a> Tuple<'a> {
    /// How many values.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Its values, in order.
    pub const fn values(&self) -> Values<'a> {
        Values { reader: Reader::new(self.bytes) }
    }
}

/// Iterates over a row's values.
#[derive(Clone, Debug)]
pub struct Values<'a> {
    reader: Reader<'a>,
}

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        if self.reader.remaining() == 0 {
            return None;
        }
        value(&mut self.reader).ok()
    }
}

/// The numbers of truncated tables. Its bytes have been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tables<'a> {
    bytes: &'a [u8],
}

impl<'a> Tables<'a> {
    /// Iterates over them.
    pub fn iter(&self) -> impl Iterator<Item = u32> + use<'a> {
        let mut reader = Reader::new(self.bytes);
        core::iter::from_fn(move || {
            if reader.remaining() == 0 {
                return None;
            }
            var(&mut reader).ok().and_then(|n| u32::try_from(n).ok())
        })
    }
}

fn value<'a>(r: &mut Reader<'a>) -> Result<Value<'a>, DecodeError> {
    let head = var(r)?;
    Ok(match head {
        0 => Value::Null,
        1 => Value::Unchanged,
        _ => {
            let truncated = r.error(DecodeErrorKind::Truncated);
            let len = usize::try_from((head - 2) / 2).map_err(|_| truncated)?;
            let bytes = r.take(len)?;
            if head % 2 == 0 { Value::Binary(bytes) } else { Value::Text(bytes) }
        }
    })
}

/// Takes a number; each has exactly one form.
pub(super) fn var(r: &mut Reader<'_>) -> Result<u64, DecodeError> {
    let wrong = r.error(DecodeErrorKind::Range("variable-length number"));
    let mut n = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = r.u8()?;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits || (byte == 0 && shift > 0) {
            return Err(wrong);
        }
        n |= bits << shift;
        if byte < 0x80 {
            return Ok(n);
        }
    }
    Err(wrong)
}
