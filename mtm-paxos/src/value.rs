//! What is agreed on.

use crate::commit::Decree;
use core::fmt;
use core::hash::Hash;
use mtm_core::wire::{DecodeError, DecodeErrorKind, Reader, Writer};

/// What one instance decides: anything that can be copied and compared.
pub trait Value: Clone + Eq + Hash + fmt::Debug {}

impl<V: Clone + Eq + Hash + fmt::Debug> Value for V {}

/// A value with bytes of its own, which messages and records need; the machines do not.
pub trait WireValue: Value {
    /// Appends the value's bytes.
    fn encode(&self, w: &mut Writer<'_>);

    /// Reads the value's bytes, and no more.
    ///
    /// # Errors
    /// When they are not a value.
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError>;
}

impl WireValue for Vec<u8> {
    fn encode(&self, w: &mut Writer<'_>) {
        w.bytes(self);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        r.bytes().map(<[u8]>::to_vec)
    }
}

impl WireValue for u64 {
    fn encode(&self, w: &mut Writer<'_>) {
        w.u64(*self);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        r.u64()
    }
}

impl WireValue for Decree {
    fn encode(&self, w: &mut Writer<'_>) {
        w.u8(match self {
            Self::Commit => b'C',
            Self::Abort => b'A',
        });
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let unknown = r.error(DecodeErrorKind::Unknown("decree"));
        match r.u8()? {
            b'C' => Ok(Self::Commit),
            b'A' => Ok(Self::Abort),
            _ => Err(unknown),
        }
    }
}
