//! What travels about DDL: statements with their context, and positions of sequences.
//!
//! Payload of the transactional logical messages with [`PREFIX`]. Text is in the encoding of the
//! database, so it is bytes here.
//!
//! ```text
//! version u8 = 1 | kind u8 | body
//! kind 1 statement: rows u8 | flags u16 | transaction time i64 | statement time i64
//!                   | session user | current user | security context u32 | text
//!                   | number of settings u16 | (name | value)*
//! kind 2 sequence:  schema | name | last value i64 | is called u8
//! kind 3 end:       nothing
//! kind 4 unchecked: nothing
//! kind 5 floor:     schema | name | last value i64 | strict u8
//! ```
//! Names and texts are a length (u32) and bytes. A version above ours is refused: nodes of one
//! cluster run one version.

use mtm_core::wire::{DecodeError, DecodeErrorKind, Reader, Writer};

/// Prefix of the logical messages.
pub const PREFIX: &str = "mtm-ddl";

const VERSION: u8 = 1;

/// What becomes of the row changes that the log holds between a statement and its [`Message::End`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rows {
    /// Rows travel as always; what a rewrite of a table writes anew does not. No end follows.
    Ordinary,
    /// The rows of rewritten tables travel too, as insertions into the table itself.
    WithRewritten,
    /// No rows travel: whoever executes the statement makes them.
    None,
}

/// What an executing node must do differently from the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Flags(u16);

impl Flags {
    /// Nothing special.
    pub const NONE: Self = Self(0);
    /// Create the relation without running its query; the rows follow.
    pub const NO_DATA: Self = Self(1);
    /// Mark the materialized view as populated; the rows follow.
    pub const POPULATED: Self = Self(1 << 1);
    /// Empty a table before the statement rewrites it; the rows follow.
    pub const EMPTY_REWRITTEN: Self = Self(1 << 2);
    /// Leave out CONCURRENTLY.
    pub const NOT_CONCURRENTLY: Self = Self(1 << 3);
    /// Empty the materialized view instead of running its query; the rows follow.
    pub const REFILL: Self = Self(1 << 4);
    /// Triggers fire as on the origin, since no rows travel.
    pub const FIRE_TRIGGERS: Self = Self(1 << 5);
    /// What is to be dropped may be missing: a failed CREATE INDEX CONCURRENTLY left it on the
    /// origin alone.
    pub const MISSING_OK: Self = Self(1 << 6);
    const ALL: u16 = (1 << 7) - 1;

    /// Both sets.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is in this set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A statement and what it depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// What becomes of row changes until the end.
    pub rows: Rows,
    /// What to do differently.
    pub flags: Flags,
    /// Start of the transaction, microseconds since 2000-01-01 UTC.
    pub transaction_time: i64,
    /// Start of the client's statement, likewise.
    pub statement_time: i64,
    /// `session_user`.
    pub session_user: Vec<u8>,
    /// `current_user`.
    pub current_user: Vec<u8>,
    /// The server's security context bits.
    pub security_context: u32,
    /// The statement, and nothing else of the query string.
    pub text: Vec<u8>,
    /// Settings that differ from what a new session has, with their values.
    pub settings: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Execute this.
    Statement(Statement),
    /// All nodes continue this sequence from here, each with its own values.
    Sequence {
        /// Schema.
        schema: Vec<u8>,
        /// Name.
        name: Vec<u8>,
        /// `last_value`.
        last: i64,
        /// `is_called`.
        called: bool,
    },
    /// No node hands out values of this sequence up to `last` any more.
    Floor {
        /// Schema.
        schema: Vec<u8>,
        /// Name.
        name: Vec<u8>,
        /// The last value, in the direction of the sequence.
        last: i64,
        /// A node that has handed out later ones refuses the transaction.
        strict: bool,
    },
    /// Rows travel as always again. For who reads the log, not for who executes.
    End,
    /// The transaction's rows were stored with `session_replication_role = replica`: nobody is to
    /// check its foreign keys or deferrable constraints.
    Unchecked,
}

impl Message {
    /// The bytes of the message.
    ///
    /// # Panics
    /// With more than 65,535 settings.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut w = Writer::new(&mut out);
        w.u8(VERSION);
        match self {
            Self::Statement(s) => {
                w.u8(1);
                encode_statement(s, &mut w);
            }
            Self::Sequence { schema, name, last, called } => {
                w.u8(2);
                w.bytes(schema);
                w.bytes(name);
                w.u64(last.cast_unsigned());
                w.u8(u8::from(*called));
            }
            Self::End => w.u8(3),
            Self::Unchecked => w.u8(4),
            Self::Floor { schema, name, last, strict } => {
                w.u8(5);
                w.bytes(schema);
                w.bytes(name);
                w.u64(last.cast_unsigned());
                w.u8(u8::from(*strict));
            }
        }
        out
    }

    /// Reads the bytes of a message.
    ///
    /// # Errors
    /// When they are not exactly one message of our version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let version = r.error(DecodeErrorKind::Unknown("version of DDL message"));
        if r.u8()? != VERSION {
            return Err(version);
        }
        let unknown = r.error(DecodeErrorKind::Unknown("kind of DDL message"));
        let message = match r.u8()? {
            1 => Self::Statement(decode_statement(&mut r)?),
            2 => {
                let (schema, name) = (r.bytes()?.to_vec(), r.bytes()?.to_vec());
                let last = r.u64()?.cast_signed();
                Self::Sequence { schema, name, last, called: bool(&mut r)? }
            }
            3 => Self::End,
            4 => Self::Unchecked,
            5 => {
                let (schema, name) = (r.bytes()?.to_vec(), r.bytes()?.to_vec());
                let last = r.u64()?.cast_signed();
                Self::Floor { schema, name, last, strict: bool(&mut r)? }
            }
            _ => return Err(unknown),
        };
        r.finish()?;
        Ok(message)
    }
}

/// What a reader of the log needs to know of a payload: what to do with the rows after it (as
/// before if nothing is said), and whether to hand the payload on. Everything else is for who
/// executes.
///
/// # Errors
/// When the payload is no message of our version.
pub fn peek(bytes: &[u8]) -> Result<(Option<Rows>, bool), DecodeError> {
    Ok(match Message::decode(bytes)? {
        Message::Statement(s) => (Some(s.rows), true),
        Message::Sequence { .. } | Message::Floor { .. } | Message::Unchecked => (None, true),
        Message::End => (Some(Rows::Ordinary), false),
    })
}

/// Whether the payload is [`Message::Unchecked`].
#[must_use]
pub fn is_unchecked(bytes: &[u8]) -> bool {
    matches!(Message::decode(bytes), Ok(Message::Unchecked))
}

fn encode_statement(s: &Statement, w: &mut Writer<'_>) {
    w.u8(match s.rows {
        Rows::Ordinary => 0,
        Rows::WithRewritten => 1,
        Rows::None => 2,
    });
    w.u16(s.flags.0);
    w.u64(s.transaction_time.cast_unsigned());
    w.u64(s.statement_time.cast_unsigned());
    w.bytes(&s.session_user);
    w.bytes(&s.current_user);
    w.u32(s.security_context);
    w.bytes(&s.text);
    w.u16(u16::try_from(s.settings.len()).expect("a server has some hundred settings"));
    for (name, value) in &s.settings {
        w.bytes(name);
        w.bytes(value);
    }
}

fn decode_statement(r: &mut Reader<'_>) -> Result<Statement, DecodeError> {
    let at = r.error(DecodeErrorKind::Unknown("rule for rows"));
    let rows = match r.u8()? {
        0 => Rows::Ordinary,
        1 => Rows::WithRewritten,
        2 => Rows::None,
        _ => return Err(at),
    };
    let at = r.error(DecodeErrorKind::Unknown("flag"));
    let flags = r.u16()?;
    if flags & !Flags::ALL != 0 {
        return Err(at);
    }
    let mut s = Statement {
        rows,
        flags: Flags(flags),
        transaction_time: r.u64()?.cast_signed(),
        statement_time: r.u64()?.cast_signed(),
        session_user: r.bytes()?.to_vec(),
        current_user: r.bytes()?.to_vec(),
        security_context: r.u32()?,
        text: r.bytes()?.to_vec(),
        settings: Vec::new(),
    };
    for _ in 0..r.u16()? {
        s.settings.push((r.bytes()?.to_vec(), r.bytes()?.to_vec()));
    }
    Ok(s)
}

fn bool(r: &mut Reader<'_>) -> Result<bool, DecodeError> {
    let at = r.error(DecodeErrorKind::Range("boolean"));
    match r.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        vec(any::<u8>(), 0..40)
    }

    fn statement() -> impl Strategy<Value = Message> {
        let rows = prop_oneof![Just(Rows::Ordinary), Just(Rows::WithRewritten), Just(Rows::None)];
        let times = (any::<i64>(), any::<i64>(), any::<u32>());
        let settings = vec((bytes(), bytes()), 0..5);
        (rows, 0..=Flags::ALL, times, (bytes(), bytes(), bytes()), settings).prop_map(
            |(rows, flags, times, texts, settings)| {
                Message::Statement(Statement {
                    rows,
                    flags: Flags(flags),
                    transaction_time: times.0,
                    statement_time: times.1,
                    security_context: times.2,
                    session_user: texts.0,
                    current_user: texts.1,
                    text: texts.2,
                    settings,
                })
            },
        )
    }

    fn message() -> impl Strategy<Value = Message> {
        let sequence = (bytes(), bytes(), any::<i64>(), any::<bool>()).prop_map(
            |(schema, name, last, called)| Message::Sequence { schema, name, last, called },
        );
        let floor = (bytes(), bytes(), any::<i64>(), any::<bool>())
            .prop_map(|(schema, name, last, strict)| Message::Floor { schema, name, last, strict });
        prop_oneof![statement(), sequence, floor, Just(Message::End), Just(Message::Unchecked)]
    }

    proptest! {
        #[test]
        fn messages_round_trip(m in message()) {
            prop_assert_eq!(Message::decode(&m.encode()), Ok(m));
        }

        #[test]
        fn a_cut_message_is_an_error(m in message(), cut in 1usize..80) {
            let bytes = m.encode();
            let keep = bytes.len().saturating_sub(cut);
            prop_assert!(Message::decode(&bytes[..keep]).is_err());
        }

        #[test]
        fn a_longer_message_is_an_error(m in message(), more: u8) {
            let mut bytes = m.encode();
            bytes.push(more);
            prop_assert!(Message::decode(&bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(tail: Vec<u8>, kind in 0u8..7) {
            let _ = Message::decode(&tail);
            let bytes = [&[VERSION, kind], tail.as_slice()].concat();
            if let Ok(m) = Message::decode(&bytes) {
                prop_assert_eq!(m.encode(), bytes);
            }
        }
    }
}
