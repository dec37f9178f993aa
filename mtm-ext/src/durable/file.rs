//! Small files that are replaced atomically.

use crate::pg::sqlrun;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

/// The directory of all of them, below the data directory.
const DIRECTORY: &str = "multimaster";

/// What is wrong with a file of the node, for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("file \"{file}\": {why}")]
pub struct Error {
    /// Which, below the data directory.
    pub file: String,
    /// What is wrong.
    pub why: String,
    /// What to do about it.
    pub hint: &'static str,
}

/// For files that are torn, foreign or gone.
const RESTORE: &str = "If this data directory is a copy of another node's or of an older state, do \
     not start it as this node: remove the node from the cluster and join it again. If the file \
     was damaged, restore it together with the whole data directory.";
const MAKE_ROOM: &str = "Check free space and permissions in the data directory.";

impl Error {
    fn of(file: &str, why: impl ToString, hint: &'static str) -> Self {
        Self { file: format!("{DIRECTORY}/{file}"), why: why.to_string(), hint }
    }

    /// The file is there but cannot be used.
    pub(super) fn unusable(file: &str, why: impl ToString) -> Self {
        Self::of(file, why, RESTORE)
    }

    /// The file is not there although it must be.
    pub(super) fn missing(file: &str) -> Self {
        Self::of(file, "it is missing", RESTORE)
    }

    /// Something about the log, which the file says where to begin to read.
    pub(super) fn log(file: &str, why: impl ToString) -> Self {
        const HINT: &str = "The write-ahead log that the file refers to is not there any more, so \
             this node cannot know what it had promised. Remove the node from the cluster and join \
             it again. Replication slot mtm_self keeps that log: do not drop it, and let \
             max_slot_wal_keep_size be unlimited.";
        Self::of(file, why, HINT)
    }

    /// Raises it as an ERROR.
    pub(super) fn raise(&self) -> ! {
        let code = pgrx::PgSqlErrorCode::ERRCODE_DATA_CORRUPTED;
        crate::report::error(code, format!("multimaster cannot go on: {self}"), "", self.hint)
    }
}

fn directory() -> PathBuf {
    sqlrun::data_directory().join(DIRECTORY)
}

/// The file's bytes; `None` if there is no such file.
pub(super) fn read(file: &str) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(directory().join(file)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::of(file, error, MAKE_ROOM)),
    }
}

/// Replaces the file. When this returns, the new content survives every crash; until then, the
/// old one or the new one does.
pub(super) fn write(file: &str, content: &[u8]) -> Result<(), Error> {
    try_write(file, content).map_err(|error| Error::of(file, error, MAKE_ROOM))
}

fn try_write(file: &str, content: &[u8]) -> io::Result<()> {
    let directory = directory();
    make(&directory)?;
    let (new, old) = (directory.join(format!("{file}.new")), directory.join(file));
    let mut out =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    out.write_all(content)?;
    out.sync_all()?;
    drop(out);
    fs::rename(&new, &old)?;
    File::open(&directory)?.sync_all()
}

fn make(directory: &PathBuf) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => File::open(sqlrun::data_directory())?.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes the file, durably; nothing if it is not there.
pub(super) fn remove(file: &str) -> Result<(), Error> {
    let removed = match fs::remove_file(directory().join(file)) {
        Ok(()) => File::open(directory()).and_then(|directory| directory.sync_all()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(|error| Error::of(file, error, MAKE_ROOM))
}
