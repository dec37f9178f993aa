//! Bounds-checked reading and writing of bytes. All numbers are big-endian.

use crate::NodeId;

/// Why bytes are not what they should be, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} at byte {offset}")]
pub struct DecodeError {
    /// Position from the start of the bytes.
    pub offset: usize,
    /// What is wrong there.
    pub kind: DecodeErrorKind,
}

/// What can be wrong with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeErrorKind {
    /// The bytes end too early.
    #[error("truncated")]
    Truncated,
    /// There are bytes after the end.
    #[error("trailing bytes")]
    Trailing,
    /// A number is out of its range.
    #[error("{0} out of range")]
    Range(&'static str),
    /// An unknown tag or version.
    #[error("unknown {0}")]
    Unknown(&'static str),
    /// Text is not UTF-8.
    #[error("not UTF-8")]
    Utf8,
    /// The checksum does not match.
    #[error("checksum mismatch")]
    Checksum,
}

/// Reads from bytes, never beyond them.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// A reader at the start of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Position from the start.
    pub const fn offset(&self) -> usize {
        self.at
    }

    /// How many bytes are left.
    pub const fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// An error of this kind, here.
    pub const fn error(&self, kind: DecodeErrorKind) -> DecodeError {
        DecodeError { offset: self.at, kind }
    }

    /// Takes `n` bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        if n > self.remaining() {
            return Err(self.error(DecodeErrorKind::Truncated));
        }
        let taken = &self.bytes[self.at..self.at + n];
        self.at += n;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// Takes one byte.
    ///
    /// # Errors
    /// When bytes are missing.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    /// Takes two bytes.
    ///
    /// # Errors
    /// When bytes are missing.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    /// Takes four bytes.
    ///
    /// # Errors
    /// When bytes are missing.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// Takes eight bytes.
    ///
    /// # Errors
    /// When bytes are missing.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// Takes a node number.
    ///
    /// # Errors
    /// When bytes are missing or it is out of range.
    pub fn node(&mut self) -> Result<NodeId, DecodeError> {
        let before = self.error(DecodeErrorKind::Range("node number"));
        NodeId::new(self.u8()?).ok_or(before)
    }

    /// Takes a 4-byte length and so many bytes.
    ///
    /// # Errors
    /// When bytes are missing.
    pub fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let start = self.at;
        let n = self.u32()? as usize;
        self.take(n).inspect_err(|_| self.at = start)
    }

    /// Takes a 4-byte length and so much text.
    ///
    /// # Errors
    /// When bytes are missing or no UTF-8.
    pub fn str(&mut self) -> Result<&'a str, DecodeError> {
        let at = self.error(DecodeErrorKind::Utf8);
        core::str::from_utf8(self.bytes()?).map_err(|_| at)
    }

    /// Declares the end.
    ///
    /// # Errors
    /// When there are more bytes.
    pub const fn finish(&self) -> Result<(), DecodeError> {
        if self.remaining() == 0 { Ok(()) } else { Err(self.error(DecodeErrorKind::Trailing)) }
    }
}

/// Appends to a byte vector.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    /// Appends to `out`.
    pub const fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }

    /// Appends a byte.
    pub fn u8(&mut self, v: u8) {
        self.out.push(v);
    }

    /// Appends two bytes.
    pub fn u16(&mut self, v: u16) {
        self.out.extend_from_slice(&v.to_be_bytes());
    }

    /// Appends four bytes.
    pub fn u32(&mut self, v: u32) {
        self.out.extend_from_slice(&v.to_be_bytes());
    }

    /// Appends eight bytes.
    pub fn u64(&mut self, v: u64) {
        self.out.extend_from_slice(&v.to_be_bytes());
    }

    /// Appends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Appends a 4-byte length and the bytes.
    ///
    /// # Panics
    /// When there are 4 GiB or more; PostgreSQL has no value of that size.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.u32(u32::try_from(bytes.len()).expect("a PostgreSQL value is below 1 GiB"));
        self.raw(bytes);
    }

    /// Appends a 4-byte length and the text.
    pub fn str(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn written_values_read_back(a: u8, b: u16, c: u32, d: u64, s: String) {
            let mut out = Vec::new();
            let mut w = Writer::new(&mut out);
            w.u8(a); w.u16(b); w.u32(c); w.u64(d); w.str(&s);
            let mut r = Reader::new(&out);
            prop_assert_eq!((r.u8(), r.u16(), r.u32(), r.u64(), r.str()), (Ok(a), Ok(b), Ok(c), Ok(d), Ok(s.as_str())));
            prop_assert_eq!(r.finish(), Ok(()));
        }

        #[test]
        fn truncation_is_an_error(s: Vec<u8>, cut in 0usize..64) {
            let mut out = Vec::new();
            Writer::new(&mut out).bytes(&s);
            let keep = out.len().saturating_sub(cut + 1);
            prop_assert_eq!(Reader::new(&out[..keep]).bytes().map_err(|e| e.kind), Err(DecodeErrorKind::Truncated));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let mut r = Reader::new(&bytes);
            let _ = (r.str(), r.node(), r.u64(), r.bytes(), r.finish());
        }
    }
}
