//! The record that announces a transaction in its origin's write-ahead log.
//!
//! It is a non-transactional logical message with the prefix [`PREFIX`], written from PRE_COMMIT
//! while the transaction is still in progress. Its flush is the origin's own vote.
//!
//! Layout (version 2): version byte, gid (17 bytes), the origin's number of the transaction (8),
//! number of children (4), children (4 each).

use mtm_core::wire::{DecodeError, DecodeErrorKind, Reader, Writer};
use mtm_core::{Gid, LocalXid};

/// Prefix of the announcement.
pub const PREFIX: &str = "mtm";
/// Prefix of the transactional marker that gives the transaction a base snapshot and its name:
/// the content is a gid in wire form.
pub const MARKER_PREFIX: &str = "mtm-marker";
/// Prefix of captured DDL, transactional.
pub const DDL_PREFIX: &str = "mtm-ddl";
/// Prefix of what a transaction does to a user's two-phase transaction, transactional: see
/// [`crate::journal::UserWork`].
pub const USER_PREFIX: &str = "mtm-user";
/// Prefix of the note that a user's transaction is user-prepared: see
/// [`crate::journal::UserPrepared`].
pub const USER_PREPARED_PREFIX: &str = "mtm-user-prepared";
/// Prefix of a durable acceptance of abort; the content is a gid in wire form.
pub const ABORT_PREFIX: &str = "mtm-abort";
/// Prefix of ParallelSafe: see [`crate::journal::ParallelSafe`].
pub const PARALLEL_SAFE_PREFIX: &str = "mtm-parallel-safe";
/// Prefix of what a node has finished and forgotten: see [`crate::journal::Forgotten`].
pub const SYNCPOINT_PREFIX: &str = "mtm-syncpoint";
/// Prefix of what recovery installed: see [`crate::journal::Installed`].
pub const INSTALLED_PREFIX: &str = "mtm-installed";
/// Prefix of a promise to commit what is applied and not prepared: see [`crate::journal::Open`].
pub const OPEN_PREFIX: &str = "mtm-open";
/// Prefix of the end of such a promise other than by a commit; the content is a gid in wire form.
pub const CLOSED_PREFIX: &str = "mtm-closed";

const VERSION: u8 = 2;

/// A transaction that is about to commit if all members agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The transaction.
    pub gid: Gid,
    /// Its number in the origin's server, under which the log has its changes.
    pub xid: LocalXid,
    /// Its committed subtransactions, 32-bit as in the log.
    pub children: Vec<u32>,
}

impl Announcement {
    /// Appends the record's bytes.
    ///
    /// # Panics
    /// With 2^32 or more children, which PostgreSQL cannot have.
    pub fn encode(
        gid: &Gid,
        xid: LocalXid,
        children: impl ExactSizeIterator<Item = u32>,
        out: &mut Vec<u8>,
    ) {
        let mut w = Writer::new(out);
        w.u8(VERSION);
        gid.encode(&mut w);
        w.u64(xid.0);
        w.u32(u32::try_from(children.len()).expect("xids are 32-bit"));
        for child in children {
            w.u32(child);
        }
    }

    /// Reads a record that fills `bytes`.
    ///
    /// # Errors
    /// When the bytes are not exactly one announcement of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let unknown = r.error(DecodeErrorKind::Unknown("announcement version"));
        if r.u8()? != VERSION {
            return Err(unknown);
        }
        let gid = Gid::decode(&mut r)?;
        let xid = LocalXid(r.u64()?);
        let n = r.u32()? as usize;
        if n > r.remaining() / 4 {
            return Err(r.error(DecodeErrorKind::Truncated));
        }
        let children = (0..n).map(|_| r.u32()).collect::<Result<_, _>>()?;
        r.finish()?;
        Ok(Self { gid, xid, children })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mtm_core::{GenNum, NodeId, Xid};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trips(number: u64, xid: u64, children: Vec<u32>) {
            let gid = Gid { origin: NodeId::new(3).unwrap(), xid: Xid(number), generation: GenNum(2) };
            let (mut bytes, xid) = (Vec::new(), LocalXid(xid));
            Announcement::encode(&gid, xid, children.iter().copied(), &mut bytes);
            prop_assert!(Announcement::decode(&bytes[..bytes.len() - 1]).is_err());
            prop_assert_eq!(Announcement::decode(&bytes), Ok(Announcement { gid, xid, children }));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Announcement::decode(&bytes);
        }
    }
}
