//! Why a member refused a transaction, for the client.

/// Longest text of a refusal, in bytes; longer text is cut at a character.
pub const MAX_TEXT: usize = 480;

/// Why a member refused a transaction, in PostgreSQL's terms.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal<'a> {
    /// Five characters, `40001` say.
    pub sqlstate: [u8; 5],
    /// Primary message.
    pub message: &'a str,
    /// Detail, may be empty.
    pub detail: &'a str,
}
