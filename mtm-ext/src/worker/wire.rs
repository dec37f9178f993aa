//! Messages on a connection between nodes: frames of `mtm-dmq`, numbered and checksummed.

use mtm_dmq::frame::{FrameError, FrameReader, Kind, encode_frame};
use thiserror::Error;

/// Longest message between nodes, in bytes.
const MAX_MESSAGE: usize = 64 * 1024;

/// Why what came is not what the peer sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// No frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame is missing, or came twice.
    #[error("frame {found} came where frame {expected} should")]
    Sequence {
        /// The number that is next.
        expected: u64,
        /// The number that came.
        found: u64,
    },
    /// A frame that has no place here.
    #[error("frame of kind {0:?} came where a message should")]
    Kind(Kind),
}

/// The sending direction of one connection.
#[derive(Debug, Default)]
pub struct Outgoing {
    sent: u64,
    bytes: Vec<u8>,
}

impl Outgoing {
    /// Appends a message.
    pub fn push(&mut self, message: &[u8]) {
        self.sent += 1;
        encode_frame(Kind::Message, self.sent, message, &mut self.bytes);
    }

    /// Bytes that wait to be written.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Gives what is to be written next to `write` and forgets it.
    pub fn drain<R>(&mut self, write: impl FnOnce(&[u8]) -> R) -> Option<R> {
        if self.bytes.is_empty() {
            return None;
        }
        let result = write(&self.bytes);
        self.bytes.clear();
        Some(result)
    }
}

/// The receiving direction of one connection.
#[derive(Debug)]
pub struct Incoming {
    reader: FrameReader,
    received: u64,
}

impl Default for Incoming {
    fn default() -> Self {
        Self { reader: FrameReader::new(MAX_MESSAGE), received: 0 }
    }
}

impl Incoming {
    /// Takes bytes as they came.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.reader.feed(bytes);
    }

    /// The next message, if it is there.
    ///
    /// # Errors
    /// When bytes were lost, changed or made up; the connection is of no use any more.
    pub fn next(&mut self) -> Result<Option<&[u8]>, WireError> {
        let Some(frame) = self.reader.next_frame()? else { return Ok(None) };
        let expected = self.received + 1;
        if frame.kind != Kind::Message {
            return Err(WireError::Kind(frame.kind));
        }
        if frame.seq != expected {
            return Err(WireError::Sequence { expected, found: frame.seq });
        }
        self.received = expected;
        Ok(Some(frame.payload))
    }
}
