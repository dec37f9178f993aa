//! Transactions on their way from a receiver to an apply worker: in memory while small, in a file
//! of length-prefixed pieces when large. Memory stays bounded on both sides.

use crate::guc;
use crate::pg::{segment, sqlrun};
use mtm_core::wire::{DecodeError, Reader, Writer};
use mtm_core::{Gid, NodeId};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::PathBuf;

/// Largest transaction that goes through an apply worker's ring.
const MAX_IN_RING: usize = segment::RING_BYTES / 4;

const INLINE: u8 = b'T';
const FILE: u8 = b'F';

fn directory() -> PathBuf {
    sqlrun::data_directory().join("pg_mtm_spill")
}

fn file_of(gid: &Gid) -> PathBuf {
    directory().join(gid.to_string())
}

/// Removes what a server that ended has left of this origin's transactions.
///
/// # Errors
/// When the directory cannot be made or read.
pub fn clean(origin: NodeId) -> io::Result<()> {
    fs::create_dir_all(directory())?;
    let prefix = format!("{}{origin}-", Gid::PREFIX);
    for entry in fs::read_dir(directory())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A transaction being received.
pub struct Incoming {
    /// Its name.
    pub gid: Gid,
    memory: Vec<u8>,
    file: Option<BufWriter<File>>,
}

impl Incoming {
    /// Nothing received yet.
    pub const fn new(gid: Gid) -> Self {
        Self { gid, memory: Vec::new(), file: None }
    }

    /// Takes a piece.
    ///
    /// # Errors
    /// When the spill file cannot be written.
    pub fn push(&mut self, payload: &[u8]) -> io::Result<()> {
        let threshold = guc::TRANS_SPILL_THRESHOLD.get().unsigned_abs() as usize * 1024;
        let limit = threshold.min(MAX_IN_RING);
        if self.file.is_none() && self.memory.len() + payload.len() > limit {
            self.file = Some(BufWriter::new(File::create(file_of(&self.gid))?));
            let memory = core::mem::take(&mut self.memory);
            self.write_piece(&memory)?;
        }
        if self.file.is_some() {
            self.write_piece(payload)
        } else {
            self.memory.extend_from_slice(payload);
            Ok(())
        }
    }

    fn write_piece(&mut self, payload: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        if payload.is_empty() {
            return Ok(());
        }
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        file.write_all(&length.to_be_bytes())?;
        file.write_all(payload)
    }

    /// Ends the transaction: the task for an apply worker.
    ///
    /// # Errors
    /// When the spill file cannot be written.
    pub fn finish(mut self) -> io::Result<Task> {
        let mut bytes = Vec::with_capacity(self.memory.len() + 32);
        let mut w = Writer::new(&mut bytes);
        w.u8(if self.file.is_some() { FILE } else { INLINE });
        self.gid.encode(&mut w);
        w.raw(&self.memory);
        if let Some(file) = &mut self.file {
            file.flush()?;
        }
        Ok(Task { gid: self.gid, bytes })
    }
}

/// A received transaction, as it goes through an apply worker's ring.
pub struct Task {
    /// Its name.
    pub gid: Gid,
    /// What [`Rows::decode`] reads.
    pub bytes: Vec<u8>,
}

/// Row messages of a received transaction.
pub enum Rows<'a> {
    /// All of them.
    Memory(&'a [u8]),
    /// In the transaction's spill file.
    File(Gid),
}

/// Reads a task.
///
/// # Errors
/// When the bytes are no task.
pub fn decode(bytes: &[u8]) -> Result<(Gid, Rows<'_>), DecodeError> {
    let mut r = Reader::new(bytes);
    let kind = r.u8()?;
    let gid = Gid::decode(&mut r)?;
    let rest = r.take(r.remaining())?;
    Ok((gid, if kind == FILE { Rows::File(gid) } else { Rows::Memory(rest) }))
}

/// Gives each piece of a spill file to `piece`.
///
/// # Errors
/// When the file cannot be read.
pub fn replay(gid: &Gid, mut piece: impl FnMut(&[u8])) -> io::Result<()> {
    let mut file = BufReader::with_capacity(1 << 17, File::open(file_of(gid))?);
    let mut length = [0u8; 4];
    let mut bytes = Vec::new();
    loop {
        match file.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        }
        bytes.resize(u32::from_be_bytes(length) as usize, 0);
        file.read_exact(&mut bytes)?;
        piece(&bytes);
    }
}

/// Removes a transaction's spill file, if it has one.
pub fn remove(gid: &Gid) {
    // A file that stays is removed at the next start.
    let _ = fs::remove_file(file_of(gid));
}
