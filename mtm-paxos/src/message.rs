//! Messages of one instance and their bytes.
//!
//! One tag byte, then the fields in the order of the variants, big-endian; a ballot is its round
//! (8 bytes) and its node (1 byte). Every message may be lost, doubled, delayed and reordered.
//! Which instance a message belongs to is for the driver to say.

use crate::{Value, WireValue};
use mtm_core::wire::{DecodeError, DecodeErrorKind, Reader, Writer};
use mtm_core::{Ballot, NodeSet};

/// What nodes tell each other.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Message<V> {
    /// The sender asks for a promise to take part in nothing below this ballot, its own.
    Phase1a {
        /// The ballot.
        ballot: Ballot,
    },
    /// The promise.
    Promise {
        /// The ballot that was asked for.
        ballot: Ballot,
        /// What the sender had accepted last.
        accepted: Option<(Ballot, V)>,
    },
    /// The sender asks to accept a value in this ballot, its own.
    Accept {
        /// The ballot.
        ballot: Ballot,
        /// The only value that was ever proposed in it.
        value: V,
    },
    /// The sender has accepted.
    Accepted {
        /// In this ballot.
        ballot: Ballot,
        /// This value.
        value: V,
    },
    /// The sender has promised a higher ballot to someone.
    Refused {
        /// What was asked for.
        ballot: Ballot,
        /// What it has promised.
        promised: Ballot,
    },
    /// The value is decided.
    Decided {
        /// The value.
        value: V,
    },
    /// The sender wants to know what is decided, and proposes nothing.
    Ask,
}

/// A message and who gets it. The sender itself may be among them: its message then is an input
/// like any other.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Outgoing<V> {
    /// Each of these nodes.
    pub to: NodeSet,
    /// Gets this message.
    pub message: Message<V>,
}

const PHASE1A: u8 = b'1';
const PROMISE: u8 = b'P';
const ACCEPT: u8 = b'2';
const ACCEPTED: u8 = b'A';
const REFUSED: u8 = b'N';
const DECIDED: u8 = b'D';
const ASK: u8 = b'Q';

pub(crate) fn encode_ballot(ballot: Ballot, w: &mut Writer<'_>) {
    w.u64(ballot.round);
    w.u8(ballot.node.get());
}

pub(crate) fn decode_ballot(r: &mut Reader<'_>) -> Result<Ballot, DecodeError> {
    Ok(Ballot { round: r.u64()?, node: r.node()? })
}

/// `accepted` of a promise and of a record: one byte says whether there is any.
pub(crate) fn encode_accepted<V: WireValue>(accepted: Option<&(Ballot, V)>, w: &mut Writer<'_>) {
    w.u8(u8::from(accepted.is_some()));
    if let Some((ballot, value)) = accepted {
        encode_ballot(*ballot, w);
        value.encode(w);
    }
}

pub(crate) fn decode_accepted<V: WireValue>(
    r: &mut Reader<'_>,
) -> Result<Option<(Ballot, V)>, DecodeError> {
    let unknown = r.error(DecodeErrorKind::Range("presence of a value"));
    match r.u8()? {
        0 => Ok(None),
        1 => Ok(Some((decode_ballot(r)?, V::decode(r)?))),
        _ => Err(unknown),
    }
}

impl<V: Value> Message<V> {
    /// The same message to `to`.
    pub const fn to(self, to: NodeSet) -> Outgoing<V> {
        Outgoing { to, message: self }
    }
}

impl<V: WireValue> Message<V> {
    /// Appends the message's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer::new(out);
        match self {
            Self::Phase1a { ballot } => {
                w.u8(PHASE1A);
                encode_ballot(*ballot, &mut w);
            }
            Self::Promise { ballot, accepted } => {
                w.u8(PROMISE);
                encode_ballot(*ballot, &mut w);
                encode_accepted(accepted.as_ref(), &mut w);
            }
            Self::Accept { ballot, value } => {
                w.u8(ACCEPT);
                encode_ballot(*ballot, &mut w);
                value.encode(&mut w);
            }
            Self::Accepted { ballot, value } => {
                w.u8(ACCEPTED);
                encode_ballot(*ballot, &mut w);
                value.encode(&mut w);
            }
            Self::Refused { ballot, promised } => {
                w.u8(REFUSED);
                encode_ballot(*ballot, &mut w);
                encode_ballot(*promised, &mut w);
            }
            Self::Decided { value } => {
                w.u8(DECIDED);
                value.encode(&mut w);
            }
            Self::Ask => w.u8(ASK),
        }
    }

    /// Reads one message that fills `bytes`.
    ///
    /// # Errors
    /// When the bytes are not exactly one message.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let unknown = r.error(DecodeErrorKind::Unknown("message tag"));
        let message = match r.u8()? {
            PHASE1A => Self::Phase1a { ballot: decode_ballot(&mut r)? },
            PROMISE => {
                Self::Promise { ballot: decode_ballot(&mut r)?, accepted: decode_accepted(&mut r)? }
            }
            ACCEPT => Self::Accept { ballot: decode_ballot(&mut r)?, value: V::decode(&mut r)? },
            ACCEPTED => {
                Self::Accepted { ballot: decode_ballot(&mut r)?, value: V::decode(&mut r)? }
            }
            REFUSED => {
                Self::Refused { ballot: decode_ballot(&mut r)?, promised: decode_ballot(&mut r)? }
            }
            DECIDED => Self::Decided { value: V::decode(&mut r)? },
            ASK => Self::Ask,
            _ => return Err(unknown),
        };
        r.finish()?;
        Ok(message)
    }
}
