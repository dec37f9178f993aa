//! What an acceptor must not forget, and the wall between it and the messages that rest on it.
//!
//! ```text
//! offset  bytes  content
//!      0      4  "MTMp"
//!      4      2  version, 1
//!      6      1  node
//!      7      1  1 if a ballot is promised, else 0
//!      8      9  promised ballot, only if there is one
//!      .      1  1 if a value is accepted, else 0
//!      .      9  its ballot, only if there is one
//!      .      .  the value, only if there is one
//!     -4      4  CRC-32 of everything before
//! ```
//! A reader accepts exactly the versions it knows. A torn, short or foreign record is an error
//! with a name, never a guess.

use crate::message::{decode_accepted, decode_ballot, encode_accepted, encode_ballot};
use crate::{Outgoing, Value, WireValue};
use mtm_core::wire::{DecodeError, DecodeErrorKind, Reader, Writer};
use mtm_core::{Ballot, NodeId};

const MAGIC: &[u8; 4] = b"MTMp";
const VERSION: u16 = 1;

/// Durable state of one node in one instance.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct AcceptorRecord<V> {
    /// Nothing below this is taken part in any more.
    pub promised: Option<Ballot>,
    /// What was accepted last.
    pub accepted: Option<(Ballot, V)>,
}

impl<V> Default for AcceptorRecord<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V> AcceptorRecord<V> {
    /// Nothing promised, nothing accepted: a node that has never heard of the instance.
    pub const fn new() -> Self {
        Self { promised: None, accepted: None }
    }
}

/// A record, and messages that may leave only when it is on disk.
///
/// The messages cannot be had without [`Flush::on_disk`]: whoever calls it says that the record
/// (or a later one of the same node and instance) survives every crash.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[must_use = "its messages are lost with it"]
pub struct Flush<V> {
    record: AcceptorRecord<V>,
    sends: Vec<Outgoing<V>>,
}

impl<V: Value> Flush<V> {
    pub(crate) const fn new(record: AcceptorRecord<V>, sends: Vec<Outgoing<V>>) -> Self {
        Self { record, sends }
    }

    /// What must be durable.
    pub const fn record(&self) -> &AcceptorRecord<V> {
        &self.record
    }

    /// The record is durable: these messages may leave.
    pub fn on_disk(self) -> Vec<Outgoing<V>> {
        self.sends
    }
}

/// Why a record cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Not a record of an acceptor at all.
    #[error("not an acceptor's record")]
    NotARecord,
    /// Written by a version this one does not know.
    #[error("acceptor's record has version {0}, this version reads {VERSION}")]
    Version(u16),
    /// The checksum does not match: a torn write or a damaged disk.
    #[error("acceptor's record is torn or damaged")]
    Torn,
    /// The record of another node, for example copied with its data directory.
    #[error("acceptor's record belongs to node {0}")]
    OtherNode(NodeId),
    /// The checksum matches but the content does not make sense.
    #[error("acceptor's record is malformed: {0}")]
    Malformed(DecodeError),
}

impl<V: WireValue> AcceptorRecord<V> {
    /// The record's bytes, as `node`'s.
    pub fn to_bytes(&self, node: NodeId) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        let mut w = Writer::new(&mut out);
        w.raw(MAGIC);
        w.u16(VERSION);
        w.u8(node.get());
        w.u8(u8::from(self.promised.is_some()));
        if let Some(ballot) = self.promised {
            encode_ballot(ballot, &mut w);
        }
        encode_accepted(self.accepted.as_ref(), &mut w);
        let crc = crc32fast::hash(&out);
        Writer::new(&mut out).u32(crc);
        out
    }

    /// Reads the record of `node`.
    ///
    /// # Errors
    /// When it is torn, foreign or of another version.
    pub fn from_bytes(bytes: &[u8], node: NodeId) -> Result<Self, RecordError> {
        if bytes.len() < 10 || !bytes.starts_with(MAGIC) {
            return Err(RecordError::NotARecord);
        }
        let (body, crc) = bytes.split_at(bytes.len() - 4);
        if crc != crc32fast::hash(body).to_be_bytes() {
            return Err(RecordError::Torn);
        }
        let mut r = Reader::new(body);
        let malformed = RecordError::Malformed;
        r.take(MAGIC.len()).map_err(malformed)?;
        let version = r.u16().map_err(malformed)?;
        if version != VERSION {
            return Err(RecordError::Version(version));
        }
        let owner = r.node().map_err(malformed)?;
        if owner != node {
            return Err(RecordError::OtherNode(owner));
        }
        Self::decode(&mut r).map_err(malformed)
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let unknown = r.error(DecodeErrorKind::Range("presence of a promise"));
        let promised = match r.u8()? {
            0 => None,
            1 => Some(decode_ballot(r)?),
            _ => return Err(unknown),
        };
        let accepted = decode_accepted(r)?;
        r.finish()?;
        Ok(Self { promised, accepted })
    }
}
