//! Transactions on their way from a receiver to an apply worker: in memory while small, in a file
//! of length-prefixed pieces when large. Memory stays bounded on both sides.
//!
//! Files live in a directory of their own among the server's temporary files, which PostgreSQL
//! empties at its start and leaves out of base backups. The file of a transaction whose pieces
//! came before its announcement ends with the subtransactions that count:
//!
//! ```text
//! len:u32 piece ...   child:u32 ...   length of all pieces:u64
//! ```

use crate::guc;
use crate::pg::{segment, sqlrun};
use core::cell::Cell;
use mtm_core::wire::{DecodeError, Reader, Writer};
use mtm_core::{Gid, NodeId};
use mtm_logrep::stream::Children;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

/// Largest transaction that goes through an apply worker's ring.
const MAX_IN_RING: usize = segment::RING_BYTES / 4;

const INLINE: u8 = b'T';
const FILE: u8 = b'F';
const EARLY: u8 = b'E';

thread_local! {
    /// Number of this receiver's next file.
    static NEXT: Cell<u64> = const { Cell::new(1) };
}

fn directory() -> PathBuf {
    sqlrun::data_directory().join("base/pgsql_tmp/pgsql_tmp_mtm")
}

/// Name of a spill file: no two transactions ever share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    origin: NodeId,
    number: u64,
}

impl Name {
    fn next(origin: NodeId) -> Self {
        let number = NEXT.get();
        NEXT.set(number + 1);
        Self { origin, number }
    }

    fn path(self) -> PathBuf {
        directory().join(format!("{}-{}", self.origin, self.number))
    }

    /// Removes the file, if it is still there.
    pub fn remove(self) {
        // A file that stays is removed at the receiver's next start.
        let _ = fs::remove_file(self.path());
    }
}

/// Whether files can be written: writes one, makes it durable and removes it.
///
/// # Errors
/// When they cannot.
pub fn probe() -> io::Result<()> {
    let path = directory().join("probe");
    let result = File::create(&path).and_then(|mut file| {
        file.write_all(&[0; 1 << 20])?;
        file.sync_all()
    });
    // Also what was written in part.
    let removed = fs::remove_file(&path);
    result.and(removed)
}

/// Removes what an earlier receiver has left of this origin's transactions.
///
/// # Errors
/// When the directory cannot be made or read.
pub fn clean(origin: NodeId) -> io::Result<()> {
    fs::create_dir_all(directory())?;
    let prefix = format!("{origin}-");
    for entry in fs::read_dir(directory())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A file being written. One that cannot be written takes no more and says why at the end; it is
/// removed unless it was handed on.
struct Writing {
    name: Name,
    file: Option<BufWriter<File>>,
    length: u64,
    failure: Option<io::Error>,
    handed_on: bool,
}

impl Writing {
    fn create(origin: NodeId) -> Self {
        let name = Name::next(origin);
        let (file, failure) = match File::create(name.path()) {
            Ok(file) => (Some(BufWriter::with_capacity(1 << 16, file)), None),
            Err(error) => (None, Some(error)),
        };
        Self { name, file, length: 0, failure, handed_on: false }
    }

    fn note(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            self.failure = Some(error);
            self.file = None;
            // A full disk should not stay full of what nobody will read.
            self.name.remove();
        }
    }

    fn piece(&mut self, payload: &[u8]) {
        let Some(file) = self.file.as_mut().filter(|_| !payload.is_empty()) else { return };
        let result = u32::try_from(payload.len()).map_err(io::Error::other).and_then(|length| {
            file.write_all(&length.to_be_bytes())?;
            file.write_all(payload)
        });
        self.length += 4 + payload.len() as u64;
        self.note(result);
    }

    fn raw(&mut self, bytes: &[u8]) {
        if let Some(file) = &mut self.file {
            let result = file.write_all(bytes);
            self.note(result);
        }
    }

    fn finish(mut self) -> io::Result<Name> {
        if let Some(file) = &mut self.file {
            let result = file.flush();
            self.note(result);
        }
        match self.failure.take() {
            Some(error) => Err(error),
            None => {
                self.handed_on = true;
                Ok(self.name)
            }
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if !self.handed_on {
            self.name.remove();
        }
    }
}

/// An announced transaction being received.
pub struct Incoming {
    /// Its name.
    pub gid: Gid,
    memory: Vec<u8>,
    file: Option<Writing>,
}

impl Incoming {
    /// Nothing received yet.
    pub const fn new(gid: Gid) -> Self {
        Self { gid, memory: Vec::new(), file: None }
    }

    /// Takes a piece.
    pub fn push(&mut self, payload: &[u8]) {
        let threshold = guc::TRANS_SPILL_THRESHOLD.get().unsigned_abs() as usize * 1024;
        let limit = threshold.min(MAX_IN_RING);
        if self.file.is_none() && self.memory.len() + payload.len() > limit {
            let mut file = Writing::create(self.gid.origin);
            file.piece(&core::mem::take(&mut self.memory));
            self.file = Some(file);
        }
        match &mut self.file {
            Some(file) => file.piece(payload),
            None => self.memory.extend_from_slice(payload),
        }
    }

    /// Ends the transaction: the task for an apply worker.
    ///
    /// # Errors
    /// When its file could not be written.
    pub fn finish(self) -> io::Result<Task> {
        let gid = self.gid;
        Ok(match self.file {
            Some(file) => Task::in_file(FILE, gid, file.finish()?),
            None => Task::inline(gid, &self.memory),
        })
    }
}

/// A transaction in progress on its origin, being received.
pub struct EarlyIncoming {
    file: Writing,
    pieces: u32,
}

impl EarlyIncoming {
    /// Nothing received yet.
    pub fn new(origin: NodeId) -> Self {
        Self { file: Writing::create(origin), pieces: 0 }
    }

    /// Takes a piece.
    pub fn push(&mut self, payload: &[u8]) {
        self.pieces += 1;
        self.file.piece(payload);
    }

    /// How many pieces have come.
    pub const fn pieces(&self) -> u32 {
        self.pieces
    }

    /// It is announced, with `xid` as its number on its origin: the task for an apply worker.
    ///
    /// # Errors
    /// When its file could not be written.
    pub fn finish(mut self, gid: Gid, xid: u32, children: Children<'_>) -> io::Result<Task> {
        let length = self.file.length;
        self.file.raw(children.bytes());
        self.file.raw(&length.to_be_bytes());
        let mut task = Task::in_file(EARLY, gid, self.file.finish()?);
        Writer::new(&mut task.bytes).u32(xid);
        Ok(task)
    }
}

/// A received transaction, as it goes through an apply worker's ring.
pub struct Task {
    /// Its name.
    pub gid: Gid,
    /// What [`decode`] reads.
    pub bytes: Vec<u8>,
    /// Where its rows are, if not in the bytes.
    pub file: Option<Name>,
}

impl Task {
    fn head(kind: u8, gid: Gid, room: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(room + 32);
        let mut w = Writer::new(&mut bytes);
        w.u8(kind);
        gid.encode(&mut w);
        bytes
    }

    /// A transaction with these row messages.
    pub fn inline(gid: Gid, rows: &[u8]) -> Self {
        let mut bytes = Self::head(INLINE, gid, rows.len());
        bytes.extend_from_slice(rows);
        Self { gid, bytes, file: None }
    }

    fn in_file(kind: u8, gid: Gid, name: Name) -> Self {
        let mut bytes = Self::head(kind, gid, 8);
        Writer::new(&mut bytes).u64(name.number);
        Self { gid, bytes, file: Some(name) }
    }

    /// Nobody will apply it.
    pub fn discard(self) {
        if let Some(file) = self.file {
            file.remove();
        }
    }
}

/// Row messages of a received transaction.
#[derive(Clone, Copy)]
pub enum Rows<'a> {
    /// All of them.
    Memory(&'a [u8]),
    /// In a file: pieces of one blob.
    File(Name),
    /// In a file: blobs of their own, of which only those of the transaction with this number on
    /// its origin and of some subtransactions count.
    Early(Name, u32),
}

impl Rows<'_> {
    /// Nobody needs them any more.
    pub fn remove(self) {
        match self {
            Self::Memory(_) => {}
            Self::File(name) | Self::Early(name, _) => name.remove(),
        }
    }
}

/// Reads a task.
///
/// # Errors
/// When the bytes are no task.
pub fn decode(bytes: &[u8]) -> Result<(Gid, Rows<'_>), DecodeError> {
    let mut r = Reader::new(bytes);
    let kind = r.u8()?;
    let gid = Gid::decode(&mut r)?;
    if kind == INLINE {
        return Ok((gid, Rows::Memory(r.take(r.remaining())?)));
    }
    let name = Name { origin: gid.origin, number: r.u64()? };
    let rows = if kind == EARLY { Rows::Early(name, r.u32()?) } else { Rows::File(name) };
    r.finish()?;
    Ok((gid, rows))
}

/// Gives each piece of a spill file to `piece`.
///
/// # Errors
/// When the file cannot be read.
pub fn replay(name: Name, piece: impl FnMut(&[u8])) -> io::Result<()> {
    let file = File::open(name.path())?;
    let length = file.metadata()?.len();
    replay_from(&file, length, piece)
}

/// As [`replay`], for a transaction that came early: gives `children` the subtransactions that
/// count, then each piece.
///
/// # Errors
/// When the file cannot be read.
pub fn replay_early(name: Name, mut each: impl FnMut(Part<'_>)) -> io::Result<()> {
    let mut file = File::open(name.path())?;
    file.seek(SeekFrom::End(-8))?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_be_bytes(length);
    file.seek(SeekFrom::Start(length))?;
    let mut children = Vec::new();
    file.read_to_end(&mut children)?;
    let children = &children[..children.len().saturating_sub(8)];
    each(Part::Children(children));
    file.seek(SeekFrom::Start(0))?;
    replay_from(&file, length, |piece| each(Part::Piece(piece)))
}

/// Part of an early transaction's file.
pub enum Part<'a> {
    /// What [`Children::parse`] reads; comes once, first.
    Children(&'a [u8]),
    /// A piece.
    Piece(&'a [u8]),
}

fn replay_from(file: &File, mut left: u64, mut piece: impl FnMut(&[u8])) -> io::Result<()> {
    let mut file = BufReader::with_capacity(1 << 17, file);
    let mut length = [0u8; 4];
    let mut bytes = Vec::new();
    while left > 0 {
        file.read_exact(&mut length)?;
        bytes.resize(u32::from_be_bytes(length) as usize, 0);
        file.read_exact(&mut bytes)?;
        left = left.saturating_sub(4 + bytes.len() as u64);
        piece(&bytes);
    }
    Ok(())
}
