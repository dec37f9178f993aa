//! What can be wrong with a ring and with what is pushed into it.

/// Why words are no ring that this code can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// The words were never formatted as a ring.
    #[error("not a message ring")]
    NotARing,
    /// Another version of the layout.
    #[error("message ring has layout version {found}, this program knows {known}")]
    Version {
        /// The version in the words.
        found: u8,
        /// The version of this code.
        known: u8,
    },
    /// The ring was formatted in a slice of another length.
    #[error("message ring of {words} words was formatted for {formatted}")]
    Size {
        /// Length of the slice.
        words: usize,
        /// Length that the ring was formatted for.
        formatted: u64,
    },
}

/// Why a message was not pushed. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// No room now; there will be when the consumer has taken messages.
    #[error("message ring is full: {needed} bytes needed, {free} free")]
    Full {
        /// Bytes that the message takes, with header and padding.
        needed: usize,
        /// Bytes free now.
        free: usize,
    },
    /// No room ever.
    #[error("message takes {needed} bytes, the ring has {capacity}")]
    TooLarge {
        /// Bytes that the message takes, with header and padding.
        needed: usize,
        /// Bytes that the ring has.
        capacity: usize,
    },
    /// The ring is damaged.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
}

/// What the ring holds was not written by a producer that kept the rules: someone else wrote
/// into these words, or two producers did at once. Only `Ring::init` mends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Corrupt {
    /// The cursors cannot belong together.
    #[error("message ring is corrupt: impossible cursors {head:#x} and {tail:#x}")]
    Cursors {
        /// Where the consumer is.
        head: u64,
        /// Where the producer is.
        tail: u64,
    },
    /// A message is longer than what was pushed.
    #[error("message ring is corrupt: message of {length} bytes with {used} bytes in the ring")]
    Length {
        /// Length in the message's header.
        length: u32,
        /// Bytes between the cursors.
        used: usize,
    },
    /// A message has the wrong number.
    #[error("message ring is corrupt: message {found} where {expected} should be")]
    Number {
        /// Low half of the number that is next.
        expected: u32,
        /// What the header says.
        found: u32,
    },
}
