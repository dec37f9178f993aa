//! What a node must not forget about generations, as bytes on disk.
//!
//! ```text
//! offset  bytes  content
//!      0      4  "MTMg"
//!      4      2  version, 1
//!      6      1  node
//!      7      8  cluster (an identifier no other cluster has)
//!     15      8  last_vote
//!     23      1  voted_for, 0 = nobody
//!     24      8  last_online_in
//!     32     26  current elected generation
//!     58      4  CRC-32 of everything before
//! ```
//! A reader accepts exactly the versions it knows. A torn, short, foreign or newer file is an
//! error with a name, never a guess.

use crate::generation::Elected;
use mtm_core::wire::{DecodeError, DecodeErrorKind, Reader, Writer};
use mtm_core::{GenNum, NodeId, NodeSet};

const MAGIC: &[u8; 4] = b"MTMg";
const VERSION: u16 = 1;

/// Durable state of a [`Membership`](crate::Membership).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Record {
    /// Whose record it is.
    pub node: NodeId,
    /// Which cluster it belongs to.
    pub cluster: u64,
    /// Highest generation number voted for or switched to (TLA+ `lastVote`).
    pub last_vote: GenNum,
    /// Whose proposal got that vote, if it was a vote.
    pub voted_for: Option<NodeId>,
    /// Last generation in which this node was ONLINE (TLA+ `lastOnline`).
    pub last_online_in: GenNum,
    /// The generation this node is in (TLA+ `curGen`).
    pub current: Elected,
}

/// Why a state file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// Not a generation state file at all.
    #[error("not a generation state file")]
    NotARecord,
    /// Written by a version this one does not know.
    #[error("generation state file has version {0}, this version reads {VERSION}")]
    Version(u16),
    /// The checksum does not match: a torn write or a damaged disk.
    #[error("generation state file is torn or damaged")]
    Torn,
    /// The file of another node, for example copied with its data directory.
    #[error("generation state file belongs to node {0}")]
    OtherNode(NodeId),
    /// The file of another cluster.
    #[error("generation state file belongs to another cluster")]
    OtherCluster,
    /// The checksum matches but the content does not make sense.
    #[error("generation state file is malformed: {0}")]
    Malformed(DecodeError),
}

impl Record {
    /// A node of a cluster that starts with generation 1, everyone ONLINE.
    pub const fn initial(node: NodeId, cluster: u64, nodes: NodeSet) -> Self {
        Self {
            node,
            cluster,
            last_vote: GenNum(1),
            voted_for: None,
            last_online_in: GenNum(1),
            current: Elected::initial(nodes),
        }
    }

    /// A node that joins later: it knows the generation that configured it and was never ONLINE.
    pub const fn joining(node: NodeId, cluster: u64, current: Elected) -> Self {
        let last_vote = current.generation.num;
        Self { node, cluster, last_vote, voted_for: None, last_online_in: GenNum(0), current }
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(62);
        let mut w = Writer::new(&mut out);
        w.raw(MAGIC);
        w.u16(VERSION);
        w.u8(self.node.get());
        w.u64(self.cluster);
        w.u64(self.last_vote.0);
        w.u8(self.voted_for.map_or(0, NodeId::get));
        w.u64(self.last_online_in.0);
        self.current.encode(&mut w);
        let crc = crc32fast::hash(&out);
        Writer::new(&mut out).u32(crc);
        out
    }

    /// Reads the file of `node` in `cluster`.
    ///
    /// # Errors
    /// When it is torn, foreign or of another version.
    pub fn from_bytes(bytes: &[u8], node: NodeId, cluster: u64) -> Result<Self, RecordError> {
        if bytes.len() < 10 || !bytes.starts_with(MAGIC) {
            return Err(RecordError::NotARecord);
        }
        let version = u16::from_be_bytes([bytes[4], bytes[5]]);
        let (body, crc) = bytes.split_at(bytes.len() - 4);
        if crc != crc32fast::hash(body).to_be_bytes() {
            return Err(RecordError::Torn);
        }
        if version != VERSION {
            return Err(RecordError::Version(version));
        }
        let record = Self::decode(&mut Reader::new(&body[6..])).map_err(RecordError::Malformed)?;
        if record.cluster != cluster {
            return Err(RecordError::OtherCluster);
        }
        if record.node != node {
            return Err(RecordError::OtherNode(record.node));
        }
        Ok(record)
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let node = r.node()?;
        let cluster = r.u64()?;
        let last_vote = GenNum(r.u64()?);
        let before = r.error(DecodeErrorKind::Range("node number"));
        let voted_for = match r.u8()? {
            0 => None,
            id => Some(NodeId::new(id).ok_or(before)?),
        };
        let record = Self {
            node,
            cluster,
            last_vote,
            voted_for,
            last_online_in: GenNum(r.u64()?),
            current: Elected::decode(r)?,
        };
        r.finish()?;
        Ok(record)
    }
}
