//! What a node writes about transactions into its own write-ahead log, and how it is read again:
//! by the node itself when it restarts, and by peers that recover from it.
//!
//! Every record is a logical message; its prefix says which. All but `mtm-marker` and `mtm-user`
//! are non-transactional: they are in the log whatever becomes of a transaction. Layouts:
//!
//! ```text
//! mtm                see crate::announcement
//! mtm-marker         gid (17 bytes); transactional, belongs to the transaction it names
//! mtm-user           version u8 = 1 | gid | decided u8 | owner with its length u32 | operation;
//!                    transactional, belongs to the transaction it speaks of
//! mtm-user-prepared  version u8 = 1 | gid | local u32 | operation
//! mtm-abort          gid
//! mtm-installed      gid | abort accepted u8
//! mtm-open           version u8 = 1 | gid | xid u32 | rows, up to the end
//! mtm-closed         gid
//! mtm-parallel-safe  version u8 = 1 | generation u64 | n u32 | n times (gid | abort accepted u8)
//!                    | m u32 | m times (gid | local u32)
//! mtm-syncpoint      version u8 = 1 | 16 times u64
//! ```
//! Bytes that are not exactly one record are an error, never a guess.

use crate::announcement::{
    ABORT_PREFIX, Announcement, CLOSED_PREFIX, INSTALLED_PREFIX, MARKER_PREFIX, OPEN_PREFIX,
    PARALLEL_SAFE_PREFIX, PREFIX, SYNCPOINT_PREFIX, USER_PREFIX, USER_PREPARED_PREFIX,
};
use mtm_core::wire::{DecodeError, DecodeErrorKind, Reader, Writer};
use mtm_core::{GenNum, Gid, MAX_NODES, Xid};

const VERSION: u8 = 1;
/// Bytes of a gid and a flag.
const HELD_BYTES: usize = 18;
/// Bytes of a gid and a number of this server.
const USER_BYTES: usize = 21;

/// The bytes of a marker and of an acceptance of abort: the transaction's name alone.
pub fn gid_bytes(gid: &Gid) -> Vec<u8> {
    let mut out = Vec::with_capacity(HELD_BYTES - 1);
    gid.encode(&mut Writer::new(&mut out));
    out
}

/// Reads what [`gid_bytes`] wrote.
///
/// # Errors
/// When the bytes are not exactly one gid.
pub fn gid_from_bytes(bytes: &[u8]) -> Result<Gid, DecodeError> {
    let mut r = Reader::new(bytes);
    let gid = Gid::decode(&mut r)?;
    r.finish()?;
    Ok(gid)
}

fn flag(r: &mut Reader<'_>) -> Result<bool, DecodeError> {
    let range = r.error(DecodeErrorKind::Range("flag"));
    match r.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(range),
    }
}

fn version(r: &mut Reader<'_>, of: &'static str) -> Result<(), DecodeError> {
    let unknown = r.error(DecodeErrorKind::Unknown(of));
    if r.u8()? == VERSION { Ok(()) } else { Err(unknown) }
}

/// From here on the writer prepares nothing of earlier generations: who has decided everything
/// up to here, and holds what the writer held, lacks nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ParallelSafe {
    /// In this generation.
    pub num: GenNum,
    /// Others' transactions that the writer may still commit, and whether it accepted abort.
    pub held: Vec<(Gid, bool)>,
    /// Which of them are prepared under a user's name, and so are found in the log by their number
    /// there, 32 bits.
    pub users: Vec<(Gid, u32)>,
}

impl ParallelSafe {
    /// Appends the record's bytes.
    ///
    /// # Panics
    /// With 2^32 or more transactions, which no memory holds.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer::new(out);
        w.u8(VERSION);
        w.u64(self.num.0);
        w.u32(u32::try_from(self.held.len()).expect("the table of transactions is smaller"));
        for (gid, accepted) in &self.held {
            gid.encode(&mut w);
            w.u8(u8::from(*accepted));
        }
        w.u32(u32::try_from(self.users.len()).expect("the table of transactions is smaller"));
        for (gid, local) in &self.users {
            gid.encode(&mut w);
            w.u32(*local);
        }
    }

    /// Reads a record that fills `bytes`.
    ///
    /// # Errors
    /// When the bytes are not exactly one record of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        version(&mut r, "ParallelSafe version")?;
        let num = GenNum(r.u64()?);
        let n = r.u32()? as usize;
        if n > r.remaining() / HELD_BYTES {
            return Err(r.error(DecodeErrorKind::Truncated));
        }
        let one = |_| Ok((Gid::decode(&mut r)?, flag(&mut r)?));
        let held = (0..n).map(one).collect::<Result<_, _>>()?;
        let m = r.u32()? as usize;
        if m > r.remaining() / USER_BYTES {
            return Err(r.error(DecodeErrorKind::Truncated));
        }
        let one = |_| Ok((Gid::decode(&mut r)?, r.u32()?));
        let users = (0..m).map(one).collect::<Result<_, _>>()?;
        r.finish()?;
        Ok(Self { num, held, users })
    }
}

/// A syncpoint: by origin, below which number the writer has finished everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Forgotten {
    /// By origin, as in `mtm_node::Below`.
    pub below: [Xid; MAX_NODES as usize],
}

impl Forgotten {
    /// Appends the record's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer::new(out);
        w.u8(VERSION);
        for xid in &self.below {
            w.u64(xid.0);
        }
    }

    /// Reads a record that fills `bytes`.
    ///
    /// # Errors
    /// When the bytes are not exactly one record of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        version(&mut r, "syncpoint version")?;
        let mut below = [Xid(0); MAX_NODES as usize];
        for xid in &mut below {
            *xid = Xid(r.u64()?);
        }
        r.finish()?;
        Ok(Self { below })
    }
}

/// Recovery holds this transaction as the donor held it: prepared, and abort accepted or not. It
/// replaces every earlier acceptance of that transaction in this log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Installed {
    /// The transaction.
    pub gid: Gid,
    /// The donor had accepted abort.
    pub accepted_abort: bool,
}

impl Installed {
    /// Appends the record's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer::new(out);
        self.gid.encode(&mut w);
        w.u8(u8::from(self.accepted_abort));
    }

    /// Reads a record that fills `bytes`.
    ///
    /// # Errors
    /// When the bytes are not exactly one record.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let installed = Self { gid: Gid::decode(&mut r)?, accepted_abort: flag(&mut r)? };
        r.finish()?;
        Ok(installed)
    }
}

/// The writer has applied a transaction of another node in a local transaction that is still open,
/// and promises to be able to commit it, as PREPARE would: the rows are here so that they can be
/// applied again after a crash. The promise ends with the commit of that local transaction, or
/// with a record [`Entry::Closed`]: it was rolled back, or a PREPARE takes its place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Open {
    /// The transaction.
    pub gid: Gid,
    /// Number of the local transaction, 32-bit as in the log.
    pub xid: u32,
    /// Its rows, as they came from its origin.
    pub rows: Vec<u8>,
}

impl Open {
    /// Appends the record's bytes.
    pub fn encode(gid: &Gid, xid: u32, rows: &[u8], out: &mut Vec<u8>) {
        let mut w = Writer::new(out);
        w.u8(VERSION);
        gid.encode(&mut w);
        w.u32(xid);
        w.raw(rows);
    }

    /// Reads a record that fills `bytes`.
    ///
    /// # Errors
    /// When the bytes do not begin as a record of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        version(&mut r, "open transaction's version")?;
        let (gid, xid) = (Gid::decode(&mut r)?, r.u32()?);
        let rows = r.take(r.remaining())?.to_vec();
        Ok(Self { gid, xid, rows })
    }
}

/// What a transaction of the cluster does to a user's two-phase transaction. Written after its
/// name is held on the writing node, and before the announcement, PREPARE or commit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UserWork {
    /// The transaction that does it.
    pub gid: Gid,
    /// It is decided before it is prepared here: on its origin, and in recovery. So what is found
    /// prepared with this is user-prepared.
    pub decided: bool,
    /// Who owns what is prepared; empty where nothing is.
    pub owner: String,
    /// The operation, written and read elsewhere.
    pub operation: Vec<u8>,
}

impl UserWork {
    /// Appends the record's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer::new(out);
        w.u8(VERSION);
        self.gid.encode(&mut w);
        w.u8(u8::from(self.decided));
        w.str(&self.owner);
        w.raw(&self.operation);
    }

    /// Reads a record that fills `bytes`.
    ///
    /// # Errors
    /// When the bytes are not exactly one record of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        version(&mut r, "user's work version")?;
        let (gid, decided) = (Gid::decode(&mut r)?, flag(&mut r)?);
        let owner = r.str()?.to_owned();
        Ok(Self { gid, decided, owner, operation: r.take(r.remaining())?.to_vec() })
    }
}

/// What this first operation did is committed here: its user's transaction is prepared, for as long
/// as he likes. In the writer's log this is the operation's commit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UserPrepared {
    /// The first operation.
    pub gid: Gid,
    /// The number in the writer's server, 32 bits as in the log, of what it has prepared.
    pub local: u32,
    /// It once more, so that a reader knows the name.
    pub operation: Vec<u8>,
}

impl UserPrepared {
    /// Appends the record's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut w = Writer::new(out);
        w.u8(VERSION);
        self.gid.encode(&mut w);
        w.u32(self.local);
        w.raw(&self.operation);
    }

    /// Reads a record that fills `bytes`.
    ///
    /// # Errors
    /// When the bytes are not exactly one record of a known version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        version(&mut r, "user-prepared version")?;
        let (gid, local) = (Gid::decode(&mut r)?, r.u32()?);
        Ok(Self { gid, local, operation: r.take(r.remaining())?.to_vec() })
    }
}

/// One of our messages in a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The writer's own transaction is about to commit.
    Announced(Announcement),
    /// The transaction to which this record belongs has this name.
    Marker(Gid),
    /// What the transaction to which this record belongs does to a user's.
    User(UserWork),
    /// A user's transaction is user-prepared.
    UserPrepared(UserPrepared),
    /// The writer accepts abort of the transaction.
    AbortAccepted(Gid),
    /// Recovery installed the transaction.
    Installed(Installed),
    /// The writer finished earlier generations.
    ParallelSafe(ParallelSafe),
    /// What the writer has finished and forgotten.
    Syncpoint(Forgotten),
    /// The writer keeps the transaction open.
    Open(Open),
    /// It does not any more.
    Closed(Gid),
}

impl Entry {
    /// Whether a message with this prefix is one of ours that speaks of transactions' fate: cheap,
    /// for readers that see many others.
    pub fn is_prefix(prefix: &str) -> bool {
        matches!(
            prefix,
            PREFIX
                | MARKER_PREFIX
                | USER_PREFIX
                | USER_PREPARED_PREFIX
                | ABORT_PREFIX
                | INSTALLED_PREFIX
                | PARALLEL_SAFE_PREFIX
                | SYNCPOINT_PREFIX
                | OPEN_PREFIX
                | CLOSED_PREFIX
        )
    }

    /// Reads a message; `None` if its prefix is none of ours.
    ///
    /// # Errors
    /// When it is ours and its content is not exactly one record of a known version.
    pub fn decode(prefix: &str, content: &[u8]) -> Result<Option<Self>, DecodeError> {
        Ok(Some(match prefix {
            PREFIX => Self::Announced(Announcement::decode(content)?),
            MARKER_PREFIX => Self::Marker(gid_from_bytes(content)?),
            USER_PREFIX => Self::User(UserWork::decode(content)?),
            USER_PREPARED_PREFIX => Self::UserPrepared(UserPrepared::decode(content)?),
            ABORT_PREFIX => Self::AbortAccepted(gid_from_bytes(content)?),
            INSTALLED_PREFIX => Self::Installed(Installed::decode(content)?),
            PARALLEL_SAFE_PREFIX => Self::ParallelSafe(ParallelSafe::decode(content)?),
            SYNCPOINT_PREFIX => Self::Syncpoint(Forgotten::decode(content)?),
            OPEN_PREFIX => Self::Open(Open::decode(content)?),
            CLOSED_PREFIX => Self::Closed(gid_from_bytes(content)?),
            _ => return Ok(None),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mtm_core::{LocalXid, NodeId};
    use proptest::prelude::*;

    const PREFIXES: [&str; 10] = [
        PREFIX,
        MARKER_PREFIX,
        USER_PREFIX,
        USER_PREPARED_PREFIX,
        ABORT_PREFIX,
        INSTALLED_PREFIX,
        PARALLEL_SAFE_PREFIX,
        SYNCPOINT_PREFIX,
        OPEN_PREFIX,
        CLOSED_PREFIX,
    ];

    fn any_gid() -> impl Strategy<Value = Gid> {
        (1u8..=MAX_NODES, any::<u64>(), any::<u64>()).prop_map(|(n, x, g)| Gid {
            origin: NodeId::new(n).unwrap(),
            xid: Xid(x),
            generation: GenNum(g),
        })
    }

    fn any_entry() -> impl Strategy<Value = Entry> {
        let held = prop::collection::vec((any_gid(), any::<bool>()), 0..9);
        let users = prop::collection::vec((any_gid(), any::<u32>()), 0..9);
        let children = prop::collection::vec(any::<u32>(), 0..9);
        let below = prop::array::uniform16(any::<u64>().prop_map(Xid));
        prop_oneof![
            (any_gid(), any::<u64>(), children).prop_map(|(gid, xid, children)| {
                Entry::Announced(Announcement { gid, xid: LocalXid(xid), children })
            }),
            any_gid().prop_map(Entry::Marker),
            (any_gid(), any::<bool>(), "\\PC{0,20}", prop::collection::vec(any::<u8>(), 0..20))
                .prop_map(|(gid, decided, owner, operation)| {
                    Entry::User(UserWork { gid, decided, owner, operation })
                }),
            (any_gid(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..20))
                .prop_map(|(gid, local, operation)| UserPrepared { gid, local, operation })
                .prop_map(Entry::UserPrepared),
            any_gid().prop_map(Entry::AbortAccepted),
            (any_gid(), any::<bool>())
                .prop_map(|(gid, accepted_abort)| Installed { gid, accepted_abort })
                .prop_map(Entry::Installed),
            (any::<u64>(), held, users).prop_map(|(num, held, users)| {
                Entry::ParallelSafe(ParallelSafe { num: GenNum(num), held, users })
            }),
            below.prop_map(|below| Entry::Syncpoint(Forgotten { below })),
            (any_gid(), any::<u32>(), any::<Vec<u8>>())
                .prop_map(|(gid, xid, rows)| Entry::Open(Open { gid, xid, rows })),
            any_gid().prop_map(Entry::Closed),
        ]
    }

    fn bytes_of(entry: &Entry) -> (&'static str, Vec<u8>) {
        let mut out = Vec::new();
        let prefix = match entry {
            Entry::Announced(a) => {
                Announcement::encode(&a.gid, a.xid, a.children.iter().copied(), &mut out);
                PREFIX
            }
            Entry::Marker(gid) => return (MARKER_PREFIX, gid_bytes(gid)),
            Entry::User(work) => {
                work.encode(&mut out);
                USER_PREFIX
            }
            Entry::UserPrepared(prepared) => {
                prepared.encode(&mut out);
                USER_PREPARED_PREFIX
            }
            Entry::AbortAccepted(gid) => return (ABORT_PREFIX, gid_bytes(gid)),
            Entry::Installed(installed) => {
                installed.encode(&mut out);
                INSTALLED_PREFIX
            }
            Entry::ParallelSafe(safe) => {
                safe.encode(&mut out);
                PARALLEL_SAFE_PREFIX
            }
            Entry::Syncpoint(forgotten) => {
                forgotten.encode(&mut out);
                SYNCPOINT_PREFIX
            }
            Entry::Open(open) => {
                Open::encode(&open.gid, open.xid, &open.rows, &mut out);
                OPEN_PREFIX
            }
            Entry::Closed(gid) => return (CLOSED_PREFIX, gid_bytes(gid)),
        };
        (prefix, out)
    }

    proptest! {
        #[test]
        fn entries_round_trip_and_cut_or_longer_ones_are_errors(entry in any_entry()) {
            let (prefix, mut bytes) = bytes_of(&entry);
            prop_assert!(Entry::is_prefix(prefix));
            let decoded = Entry::decode(prefix, &bytes);
            prop_assert_eq!(decoded.as_ref(), Ok(&Some(entry.clone())));
            // An operation fills the rest, whatever it is.
            if matches!(entry, Entry::User(_) | Entry::UserPrepared(_)) {
                return Ok(());
            }
            // Rows are what is left; how long they are the log itself knows.
            let rows = if let Entry::Open(open) = &entry { Some(open.rows.len()) } else { None };
            for cut in 0..bytes.len() - rows.unwrap_or(0) {
                prop_assert!(Entry::decode(prefix, &bytes[..cut]).is_err());
            }
            bytes.push(0);
            prop_assert_eq!(Entry::decode(prefix, &bytes).is_err(), rows.is_none());
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_have_one_form(tail: Vec<u8>, which in 0..PREFIXES.len()) {
            let prefix = PREFIXES[which];
            for bytes in [tail.clone(), [&[VERSION], tail.as_slice()].concat()] {
                if let Ok(Some(entry)) = Entry::decode(prefix, &bytes) {
                    prop_assert_eq!(bytes_of(&entry), (prefix, bytes));
                }
            }
        }

        #[test]
        fn other_prefixes_are_not_ours(prefix in "[a-z-]{0,12}", content: Vec<u8>) {
            prop_assume!(!PREFIXES.contains(&prefix.as_str()));
            prop_assert!(!Entry::is_prefix(&prefix));
            prop_assert_eq!(Entry::decode(&prefix, &content), Ok(None));
        }
    }
}
