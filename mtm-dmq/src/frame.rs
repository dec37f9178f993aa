//! Frames: what one message looks like on a connection.
//!
//! ```text
//! byte  0  u32  length of the payload
//!       4  u8   version of this layout, 1
//!       5  u8   kind
//!       6  u16  zero
//!       8  u64  sequence number in its session and direction
//!      16  u32  CRC-32 of bytes 0..16 and of the payload
//!      20       payload
//! ```
//!
//! Numbers are big-endian. A reader of one version refuses every other: nodes of a cluster run
//! the same release, and a mixture must be noticed in the first frame. A stream in which one
//! frame is wrong has no next frame, so a [`FrameReader`] that found a fault keeps reporting it.

use core::ops::Range;
use mtm_core::wire::Writer;

#[cfg(all(test, not(loom)))]
mod tests;

/// Version of the layout.
pub const FRAME_VERSION: u8 = 1;
/// Length of what precedes the payload.
pub const FRAME_HEADER: usize = 20;
/// Largest payload that is ever encoded or accepted.
pub const MAX_PAYLOAD: usize = 1 << 20;

const AT_CHECKSUM: usize = 16;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Who opens the session; first frame of whoever connected.
    Hello = 1,
    /// The session is open; first frame of the other side.
    Accept = 2,
    /// The session is over or was never opened, and why.
    Reject = 3,
    /// The sender is alive, and what it sees.
    Heartbeat = 4,
    /// A heartbeat has arrived.
    Echo = 5,
    /// A message of the user's.
    Message = 6,
}

impl Kind {
    const fn from_wire(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Accept,
            3 => Self::Reject,
            4 => Self::Heartbeat,
            5 => Self::Echo,
            6 => Self::Message,
            _ => return None,
        })
    }
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The bytes end before the frame does.
    #[error("frame is truncated: {have} of {needed} bytes")]
    Truncated {
        /// Bytes there are.
        have: usize,
        /// Bytes there should be, as far as is known.
        needed: usize,
    },
    /// There are bytes after the frame.
    #[error("{extra} bytes after the end of a frame")]
    Trailing {
        /// How many.
        extra: usize,
    },
    /// The payload is larger than allowed.
    #[error("frame payload of {length} bytes, at most {max} are allowed")]
    Oversized {
        /// Length in the header.
        length: u32,
        /// What is allowed.
        max: usize,
    },
    /// Another version of the layout, or something else speaks here.
    #[error("frame has version {found}, this program knows {FRAME_VERSION}")]
    Version {
        /// Version in the header.
        found: u8,
    },
    /// The bytes are not those that were sent.
    #[error("frame checksum is {found:#010x}, its bytes give {computed:#010x}")]
    Checksum {
        /// Checksum in the header.
        found: u32,
        /// Checksum of the bytes.
        computed: u32,
    },
    /// A frame that is intact but that this version does not have.
    #[error("frame of unknown kind {found}")]
    Kind {
        /// Kind in the header.
        found: u8,
    },
    /// A frame that is intact but sets bits that this version does not have.
    #[error("frame with reserved bits {found:#06x}")]
    Reserved {
        /// What should be zero.
        found: u16,
    },
}

/// One frame, its payload still where it was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is for.
    pub kind: Kind,
    /// Its number in its session and direction.
    pub seq: u64,
    /// What it carries.
    pub payload: &'a [u8],
}

fn checksum(head: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(payload);
    hasher.finalize()
}

/// Appends a frame to `out`.
///
/// # Panics
/// When the payload is larger than [`MAX_PAYLOAD`].
pub fn encode_frame(kind: Kind, seq: u64, payload: &[u8], out: &mut Vec<u8>) {
    assert!(payload.len() <= MAX_PAYLOAD, "frame payload of {} bytes", payload.len());
    out.reserve(FRAME_HEADER + payload.len());
    let start = out.len();
    let mut w = Writer::new(out);
    w.u32(payload.len() as u32);
    w.u8(FRAME_VERSION);
    w.u8(kind as u8);
    w.u16(0);
    w.u64(seq);
    let checksum = checksum(&out[start..], payload);
    let mut w = Writer::new(out);
    w.u32(checksum);
    w.raw(payload);
}

/// Decodes bytes that are one complete frame and nothing else.
///
/// # Errors
/// When they are not.
pub fn decode_frame(bytes: &[u8]) -> Result<Frame<'_>, FrameError> {
    let (kind, seq, end) = match decode_head(bytes, MAX_PAYLOAD)? {
        Head::Complete { kind, seq, end } => (kind, seq, end),
        Head::Incomplete { needed } => {
            return Err(FrameError::Truncated { have: bytes.len(), needed });
        }
    };
    if end < bytes.len() {
        return Err(FrameError::Trailing { extra: bytes.len() - end });
    }
    Ok(Frame { kind, seq, payload: &bytes[FRAME_HEADER..] })
}

enum Head {
    Complete { kind: Kind, seq: u64, end: usize },
    Incomplete { needed: usize },
}

/// Checks the frame at the start of `bytes`. A wrong version or length is found before the rest
/// is there. Which fault is found does not depend on how the bytes were cut.
fn decode_head(bytes: &[u8], max_payload: usize) -> Result<Head, FrameError> {
    let Some((&[l0, l1, l2, l3, found], rest)) = bytes.split_first_chunk() else {
        return Ok(Head::Incomplete { needed: FRAME_HEADER });
    };
    if found != FRAME_VERSION {
        return Err(FrameError::Version { found });
    }
    let length = u32::from_be_bytes([l0, l1, l2, l3]);
    if length as usize > max_payload {
        return Err(FrameError::Oversized { length, max: max_payload });
    }
    let needed = FRAME_HEADER + length as usize;
    if bytes.len() < needed {
        return Ok(Head::Incomplete { needed });
    }
    let Some((&[kind, reserved0, reserved1], rest)) = rest.split_first_chunk() else {
        return Ok(Head::Incomplete { needed });
    };
    let Some((seq, rest)) = rest.split_first_chunk() else {
        return Ok(Head::Incomplete { needed });
    };
    let Some((found, _)) = rest.split_first_chunk() else {
        return Ok(Head::Incomplete { needed });
    };
    let found = u32::from_be_bytes(*found);
    let computed = checksum(&bytes[..AT_CHECKSUM], &bytes[FRAME_HEADER..needed]);
    if found != computed {
        return Err(FrameError::Checksum { found, computed });
    }
    let reserved = u16::from_be_bytes([reserved0, reserved1]);
    if reserved != 0 {
        return Err(FrameError::Reserved { found: reserved });
    }
    let kind = Kind::from_wire(kind).ok_or(FrameError::Kind { found: kind })?;
    Ok(Head::Complete { kind, seq: u64::from_be_bytes(*seq), end: needed })
}

/// Finds frames in a stream that arrives in chunks of any size.
///
/// If every frame is taken before the next chunk comes, no more than one chunk and one
/// incomplete frame are held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameReader {
    buffer: Vec<u8>,
    /// What precedes was handed out.
    taken: usize,
    max_payload: usize,
    fault: Option<FrameError>,
}

impl FrameReader {
    /// A reader at the start of a stream. Payloads above `max_payload` are a fault;
    /// [`MAX_PAYLOAD`] always holds.
    pub fn new(max_payload: usize) -> Self {
        let max_payload = max_payload.min(MAX_PAYLOAD);
        Self { buffer: Vec::new(), taken: 0, max_payload, fault: None }
    }

    /// Takes what was received. After a fault there is no use for it and it is dropped.
    pub fn feed(&mut self, chunk: &[u8]) {
        if self.fault.is_some() {
            return;
        }
        if self.taken > 0 {
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
        self.buffer.extend_from_slice(chunk);
    }

    /// The next frame, if it has arrived completely.
    ///
    /// # Errors
    /// When the stream holds something else; from then on always the same error.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let next = self.next_span()?;
        Ok(next.map(|span| Frame {
            kind: span.kind,
            seq: span.seq,
            payload: &self.buffer[span.payload],
        }))
    }

    /// As [`next_frame`](Self::next_frame), but says where the payload is.
    pub(crate) fn next_span(&mut self) -> Result<Option<Span>, FrameError> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        match decode_head(&self.buffer[self.taken..], self.max_payload) {
            Ok(Head::Complete { kind, seq, end }) => {
                let start = self.taken;
                self.taken += end;
                Ok(Some(Span { kind, seq, payload: start + FRAME_HEADER..self.taken }))
            }
            Ok(Head::Incomplete { .. }) => Ok(None),
            Err(fault) => {
                self.fault = Some(fault);
                self.buffer = Vec::new();
                self.taken = 0;
                Err(fault)
            }
        }
    }

    /// The payload that [`next_span`](Self::next_span) has just found.
    pub(crate) fn payload(&self, span: &Span) -> &[u8] {
        &self.buffer[span.payload.clone()]
    }

    /// Bytes received and not handed out in a frame.
    pub const fn pending(&self) -> usize {
        self.buffer.len() - self.taken
    }
}

/// A frame whose payload lies in the reader's buffer.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) kind: Kind,
    pub(crate) seq: u64,
    payload: Range<usize>,
}
