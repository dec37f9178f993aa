//! What a node must remember across a restart and cannot read in its own write-ahead log, as the
//! bytes of a file.
//!
//! All numbers are big-endian.
//!
//! ```text
//! offset  bytes  field
//!      0      4  "MTMt"
//!      4      2  version, 3
//!      6      1  this node
//!      7      8  cluster
//!     15      8  start: the log says everything else from here on
//!     23    128  forgotten, by origin
//!    151      8  number of the next own announcement
//!    159      4  n
//!    163   n*26  gid, what was found, number in this server (0 unless only announced)
//!      -      4  m
//!      -      -  m users' transactions: first gid, number in this server (4), where it stands (1):
//!                n undecided, u user-prepared, c or r held by a second operation that commits or
//!                rolls back, whose gid follows; length of the name (1), name
//!      -      4  CRC-32 of everything before
//! ```
//! A torn, short, foreign or newer file is an error with a name, never a guess.

use crate::user::{Name, Stage};
use crate::{Below, Found};
use mtm_core::wire::{DecodeError, DecodeErrorKind, Reader, Writer};
use mtm_core::{Gid, LocalXid, Lsn, MAX_NODES, NodeId, Xid};
use mtm_paxos::commit::Decree;

const MAGIC: &[u8; 4] = b"MTMt";
const VERSION: u16 = 3;
/// Of one remembered transaction.
const ITEM_BYTES: usize = 26;
const FIXED_BYTES: usize = 171;
/// At least so many for one user's transaction.
const USER_BYTES: usize = 23;

/// What a restart begins with.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Checkpoint {
    /// Whose it is.
    pub node: NodeId,
    /// Which cluster it belongs to.
    pub cluster: u64,
    /// What happened later is in this node's log from here on.
    pub start: Lsn,
    /// [`Node::forgotten`](crate::Node::forgotten).
    pub forgotten: Below,
    /// [`Node::next_number`](crate::Node::next_number).
    pub next: Xid,
    /// [`Node::remembered`](crate::Node::remembered).
    pub remembered: Vec<(Gid, Found)>,
    /// Users' two-phase transactions at the same moment.
    pub users: Vec<SavedUser>,
}

/// A user's two-phase transaction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SavedUser {
    /// Its first operation.
    pub first: Gid,
    /// The user's name for it.
    pub name: Name,
    /// Its number in this server.
    pub local: u32,
    /// Where it stands.
    pub stage: Stage,
}

impl SavedUser {
    fn encode(&self, w: &mut Writer<'_>) {
        self.first.encode(w);
        w.u32(self.local);
        match self.stage {
            Stage::Preparing => w.u8(b'n'),
            Stage::Prepared => w.u8(b'u'),
            Stage::Finishing { second, decree } => {
                w.u8(if decree == Decree::Commit { b'c' } else { b'r' });
                second.encode(w);
            }
        }
        self.name.encode(w);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (first, local) = (Gid::decode(r)?, r.u32()?);
        let unknown = r.error(DecodeErrorKind::Unknown("stage of a user's transaction"));
        let stage = match r.u8()? {
            b'n' => Stage::Preparing,
            b'u' => Stage::Prepared,
            b'c' => Stage::Finishing { second: Gid::decode(r)?, decree: Decree::Commit },
            b'r' => Stage::Finishing { second: Gid::decode(r)?, decree: Decree::Abort },
            _ => return Err(unknown),
        };
        Ok(Self { first, name: Name::decode(r)?, local, stage })
    }
}

/// Why a checkpoint's bytes cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// Something else.
    #[error("it is no list of transactions")]
    NotACheckpoint,
    /// Written by a version this one does not know.
    #[error("it has version {0}, this version reads {VERSION}")]
    Version(u16),
    /// The checksum does not match: a torn write or a damaged disk.
    #[error("it is torn or damaged")]
    Torn,
    /// Another node's, for example copied with its data directory.
    #[error("it belongs to node {0}")]
    OtherNode(NodeId),
    /// Another cluster's.
    #[error("it belongs to another cluster")]
    OtherCluster,
    /// The checksum matches but the content does not make sense.
    #[error("it is malformed: {0}")]
    Malformed(DecodeError),
}

const WORDS: [(u8, Found); 6] = [
    (b'P', Found::Prepared),
    (b'x', Found::AbortAccepted { prepared: false }),
    (b'X', Found::AbortAccepted { prepared: true }),
    (b'C', Found::Committed),
    (b'A', Found::Aborted),
    (b'n', Found::AnnouncedOnly { local: LocalXid(0) }),
];

const fn tag(found: Found) -> u8 {
    match found {
        Found::Prepared => b'P',
        Found::AbortAccepted { prepared: false } => b'x',
        Found::AbortAccepted { prepared: true } => b'X',
        Found::Committed => b'C',
        Found::Aborted => b'A',
        Found::AnnouncedOnly { .. } => b'n',
    }
}

const fn local(found: Found) -> LocalXid {
    match found {
        Found::AnnouncedOnly { local } => local,
        _ => LocalXid(0),
    }
}

impl Checkpoint {
    /// Of a node that has seen no transaction yet.
    pub const fn first(node: NodeId, cluster: u64, start: Lsn) -> Self {
        let forgotten = [Xid(0); MAX_NODES as usize];
        let next = Xid(1);
        Self { node, cluster, start, forgotten, next, remembered: Vec::new(), users: Vec::new() }
    }

    /// The file's bytes.
    ///
    /// # Panics
    /// With 2^32 or more transactions, which no memory holds.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FIXED_BYTES + ITEM_BYTES * self.remembered.len());
        let mut w = Writer::new(&mut out);
        w.raw(MAGIC);
        w.u16(VERSION);
        w.u8(self.node.get());
        w.u64(self.cluster);
        w.u64(self.start.0);
        for xid in &self.forgotten {
            w.u64(xid.0);
        }
        w.u64(self.next.0);
        w.u32(u32::try_from(self.remembered.len()).expect("the table is smaller"));
        for (gid, found) in &self.remembered {
            gid.encode(&mut w);
            w.u8(tag(*found));
            w.u64(local(*found).0);
        }
        w.u32(u32::try_from(self.users.len()).expect("the table is smaller"));
        self.users.iter().for_each(|user| user.encode(&mut w));
        let crc = crc32fast::hash(&out);
        Writer::new(&mut out).u32(crc);
        out
    }

    /// Reads the file of `node` in `cluster`.
    ///
    /// # Errors
    /// When it is torn, foreign or of another version.
    pub fn from_bytes(bytes: &[u8], node: NodeId, cluster: u64) -> Result<Self, CheckpointError> {
        if bytes.len() < 10 || !bytes.starts_with(MAGIC) {
            return Err(CheckpointError::NotACheckpoint);
        }
        let (body, crc) = bytes.split_at(bytes.len() - 4);
        if crc != crc32fast::hash(body).to_be_bytes() {
            return Err(CheckpointError::Torn);
        }
        let version = u16::from_be_bytes([bytes[4], bytes[5]]);
        if version != VERSION {
            return Err(CheckpointError::Version(version));
        }
        let read = Self::decode(&body[6..]).map_err(CheckpointError::Malformed)?;
        if read.cluster != cluster {
            return Err(CheckpointError::OtherCluster);
        }
        if read.node != node {
            return Err(CheckpointError::OtherNode(read.node));
        }
        Ok(read)
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let (node, cluster, start) = (r.node()?, r.u64()?, Lsn(r.u64()?));
        let mut read = Self::first(node, cluster, start);
        for xid in &mut read.forgotten {
            *xid = Xid(r.u64()?);
        }
        read.next = Xid(r.u64()?);
        let n = r.u32()? as usize;
        if n > r.remaining() / ITEM_BYTES {
            return Err(r.error(DecodeErrorKind::Truncated));
        }
        read.remembered.reserve_exact(n);
        for _ in 0..n {
            let gid = Gid::decode(&mut r)?;
            let unknown = r.error(DecodeErrorKind::Unknown("word about a transaction"));
            let word = r.u8()?;
            let known = WORDS.iter().find(|(tag, _)| *tag == word).ok_or(unknown)?;
            let misplaced = r.error(DecodeErrorKind::Range("number of an announced transaction"));
            let number = LocalXid(r.u64()?);
            let found = match known.1 {
                Found::AnnouncedOnly { .. } => Found::AnnouncedOnly { local: number },
                _ if number != LocalXid(0) => return Err(misplaced),
                found => found,
            };
            read.remembered.push((gid, found));
        }
        let m = r.u32()? as usize;
        if m > r.remaining() / USER_BYTES {
            return Err(r.error(DecodeErrorKind::Truncated));
        }
        read.users = (0..m).map(|_| SavedUser::decode(&mut r)).collect::<Result<_, _>>()?;
        r.finish()?;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mtm_core::GenNum;
    use proptest::prelude::*;

    fn node(n: u8) -> NodeId {
        NodeId::new(n).unwrap()
    }

    fn any_checkpoint() -> impl Strategy<Value = Checkpoint> {
        let gid = (1u8..=16, any::<u64>(), any::<u64>()).prop_map(|(n, x, g)| Gid {
            origin: node(n),
            xid: Xid(x),
            generation: GenNum(g),
        });
        let stage = prop_oneof![
            Just(Stage::Preparing),
            Just(Stage::Prepared),
            (gid.clone(), any::<bool>()).prop_map(|(second, yes)| {
                let decree = if yes { Decree::Commit } else { Decree::Abort };
                Stage::Finishing { second, decree }
            }),
        ];
        let name = prop::collection::vec(any::<u8>(), 0..9);
        let user =
            (gid.clone(), name, any::<u32>(), stage).prop_map(|(first, name, local, stage)| {
                SavedUser { first, name: Name::new(&name).unwrap(), local, stage }
            });
        let users = prop::collection::vec(user, 0..4);
        let item = (gid, 0..WORDS.len(), any::<u64>()).prop_map(|(gid, word, number)| {
            let found = match WORDS[word].1 {
                Found::AnnouncedOnly { .. } => Found::AnnouncedOnly { local: LocalXid(number) },
                found => found,
            };
            (gid, found)
        });
        let below = prop::array::uniform16(any::<u64>().prop_map(Xid));
        let numbers = (any::<u64>(), any::<u64>(), any::<u64>());
        (1u8..=16, numbers, below, prop::collection::vec(item, 0..20), users).prop_map(
            |(n, (cluster, start, next), forgotten, remembered, users)| Checkpoint {
                node: node(n),
                cluster,
                start: Lsn(start),
                forgotten,
                next: Xid(next),
                remembered,
                users,
            },
        )
    }

    proptest! {
        #[test]
        fn checkpoints_round_trip(c in any_checkpoint()) {
            let bytes = c.to_bytes();
            let least = FIXED_BYTES + ITEM_BYTES * c.remembered.len() + USER_BYTES * c.users.len();
            prop_assert!(bytes.len() == least || !c.users.is_empty() && bytes.len() > least);
            let (node, cluster) = (c.node, c.cluster);
            prop_assert_eq!(Checkpoint::from_bytes(&bytes, node, cluster), Ok(c));
        }

        #[test]
        fn a_torn_file_is_an_error(c in any_checkpoint(), cut in any::<prop::sample::Index>()) {
            let bytes = c.to_bytes();
            let torn = &bytes[..cut.index(bytes.len())];
            prop_assert!(Checkpoint::from_bytes(torn, c.node, c.cluster).is_err());
        }

        #[test]
        fn a_damaged_bit_is_an_error(c in any_checkpoint(), at in any::<prop::sample::Index>()) {
            let mut bytes = c.to_bytes();
            let bit = at.index(8 * bytes.len());
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Checkpoint::from_bytes(&bytes, c.node, c.cluster).is_err());
        }

        #[test]
        fn a_longer_file_is_an_error(c in any_checkpoint(), more in prop::collection::vec(any::<u8>(), 1..9)) {
            let bytes = [c.to_bytes(), more].concat();
            prop_assert!(Checkpoint::from_bytes(&bytes, c.node, c.cluster).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(tail: Vec<u8>) {
            let _ = Checkpoint::from_bytes(&tail, node(1), 1);
            // With the right head and checksum, so that the rest is looked at.
            let mut bytes = [MAGIC.as_slice(), &[0, 3], &tail].concat();
            let crc = crc32fast::hash(&bytes);
            bytes.extend_from_slice(&crc.to_be_bytes());
            if let Ok(c) = Checkpoint::from_bytes(&bytes, node(1), 1) {
                prop_assert_eq!(c.to_bytes(), bytes);
            }
        }
    }

    #[test]
    fn foreign_files_are_named() {
        let bytes = Checkpoint::first(node(2), 7, Lsn(9)).to_bytes();
        let read = |n, cluster| Checkpoint::from_bytes(&bytes, node(n), cluster).err();
        assert_eq!(read(2, 8), Some(CheckpointError::OtherCluster));
        assert_eq!(read(1, 7), Some(CheckpointError::OtherNode(node(2))));
        assert_eq!(read(2, 7), None);
        let mut newer = bytes.clone();
        newer[5] = 4;
        let body = newer.len() - 4;
        let crc = crc32fast::hash(&newer[..body]).to_be_bytes();
        newer[body..].copy_from_slice(&crc);
        let read = Checkpoint::from_bytes(&newer, node(2), 7);
        assert_eq!(read, Err(CheckpointError::Version(4)));
    }

    #[test]
    fn every_word_has_one_tag() {
        for (byte, found) in WORDS {
            assert_eq!(tag(found), byte);
        }
    }
}
