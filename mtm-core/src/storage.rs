//! What a machine needs of the storage its driver brings, and a check that it is so.
//!
//! No machine calls a storage: machines hand out records, and their messages only after the
//! record. The trait is for checks alone: implement it for your storage in a test, run [`check`],
//! then the `conformance` modules of the crates whose records you keep.

use crate::Rng;
use core::fmt;

/// One node's place for one record, as a test sees it.
///
/// A file that is written beside the old one, flushed and renamed will do; so will a row in a
/// database that commits durably.
pub trait Storage {
    /// What can go wrong.
    type Error: fmt::Debug;

    /// Replaces the record. When it returns, the record survives every crash.
    ///
    /// # Errors
    /// When it could not; the old record or the new one is there then.
    fn store(&mut self, record: &[u8]) -> Result<(), Self::Error>;

    /// Reads the record, `None` if there never was one.
    ///
    /// # Errors
    /// When it cannot be read.
    fn load(&mut self) -> Result<Option<Vec<u8>>, Self::Error>;

    /// The power fails and comes back. With `storing`, it fails in the middle of
    /// [`Storage::store`] of this record, at a moment that `rng` chooses: before, after, and
    /// wherever the storage has taken half a step.
    fn crash(&mut self, storing: Option<&[u8]>, rng: &mut Rng);
}

/// What a storage did wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// It failed.
    #[error("the storage failed in round {round}: {error}")]
    Failed {
        /// Which round of the check.
        round: u32,
        /// The storage's own error.
        error: String,
    },
    /// A new storage had a record.
    #[error("a new storage is not empty")]
    NotEmpty,
    /// It does not give back what it was given.
    #[error("round {round}: the record that was read is not the one that was stored")]
    Lost {
        /// Which round of the check.
        round: u32,
    },
    /// After a crash in the middle of a write neither the old record nor the new one was there.
    #[error(
        "round {round}: after a crash while writing, neither the old nor the new record is there"
    )]
    Torn {
        /// Which round of the check.
        round: u32,
    },
}

/// Checks that a new, empty `storage` keeps records over crashes, whole or not at all.
///
/// # Errors
/// When it does not.
pub fn check<S: Storage>(storage: &mut S, seed: u64) -> Result<(), Fault> {
    const ROUNDS: u32 = 300;
    let mut rng = Rng::new(seed);
    let mut current: Option<Vec<u8>> = None;
    if read(storage, 0)?.is_some() {
        return Err(Fault::NotEmpty);
    }
    for round in 0..ROUNDS {
        let record = random_record(&mut rng);
        match rng.below(3) {
            0 => storage.crash(None, &mut rng),
            1 => {
                storage.crash(Some(&record), &mut rng);
                let found = read(storage, round)?;
                if found != current && found.as_ref() != Some(&record) {
                    return Err(Fault::Torn { round });
                }
                current = found;
                continue;
            }
            _ => {
                storage.store(&record).map_err(|error| failed(round, error))?;
                current = Some(record);
                if rng.percent(50) {
                    storage.crash(None, &mut rng);
                }
            }
        }
        if read(storage, round)? != current {
            return Err(Fault::Lost { round });
        }
    }
    Ok(())
}

fn read<S: Storage>(storage: &mut S, round: u32) -> Result<Option<Vec<u8>>, Fault> {
    storage.load().map_err(|error| failed(round, error))
}

fn failed(round: u32, error: impl fmt::Debug) -> Fault {
    Fault::Failed { round, error: format!("{error:?}") }
}

fn random_record(rng: &mut Rng) -> Vec<u8> {
    let len = if rng.percent(10) { rng.below(20_000) } else { rng.below(200) };
    (0..len).map(|_| rng.draw() as u8).collect()
}

/// A storage in memory that can be told to break its promises: for the tests of checks.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage {
    record: Option<Vec<u8>>,
    durable: Option<Vec<u8>>,
    vice: Option<Vice>,
}

/// A promise to break.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Vice {
    /// A write returns before it is durable; a crash may lose it.
    ReturnsEarly,
    /// A crash in the middle of a write leaves a part of the new record.
    Tears,
    /// A crash may bring the record before the last one back.
    GoesBack,
}

impl MemoryStorage {
    /// One that keeps its promises.
    pub const fn new() -> Self {
        Self { record: None, durable: None, vice: None }
    }

    /// One that breaks one.
    pub const fn with(vice: Vice) -> Self {
        Self { record: None, durable: None, vice: Some(vice) }
    }
}

impl Storage for MemoryStorage {
    type Error = core::convert::Infallible;

    fn store(&mut self, record: &[u8]) -> Result<(), Self::Error> {
        self.durable = match self.vice {
            Some(Vice::ReturnsEarly | Vice::GoesBack) => self.record.take(),
            Some(Vice::Tears) | None => Some(record.to_vec()),
        };
        self.record = Some(record.to_vec());
        Ok(())
    }

    fn load(&mut self) -> Result<Option<Vec<u8>>, Self::Error> {
        Ok(self.record.clone())
    }

    fn crash(&mut self, storing: Option<&[u8]>, rng: &mut Rng) {
        match (self.vice, storing) {
            (Some(Vice::ReturnsEarly), _) => self.record = self.durable.clone(),
            (Some(Vice::GoesBack), _) if rng.percent(20) => self.record = self.durable.clone(),
            (Some(Vice::Tears), Some(new)) => {
                let kept = rng.below(new.len() as u64 + 1) as usize;
                self.record = Some(new[..kept].to_vec());
            }
            (_, Some(new)) if rng.percent(50) => self.record = Some(new.to_vec()),
            (_, None | Some(_)) => {}
        }
        self.durable = self.record.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_honest_storage_passes() {
        for seed in 0..20 {
            assert_eq!(check(&mut MemoryStorage::new(), seed), Ok(()));
        }
    }

    #[test]
    fn every_vice_is_found() {
        for seed in 0..20 {
            let found = |vice| check(&mut MemoryStorage::with(vice), seed);
            assert!(matches!(
                found(Vice::ReturnsEarly),
                Err(Fault::Lost { .. } | Fault::Torn { .. })
            ));
            assert!(matches!(found(Vice::GoesBack), Err(Fault::Lost { .. } | Fault::Torn { .. })));
            assert!(matches!(found(Vice::Tears), Err(Fault::Torn { .. })));
        }
    }

    #[test]
    fn a_used_storage_is_refused() {
        let mut used = MemoryStorage::new();
        assert_eq!(used.store(b"x"), Ok(()));
        assert_eq!(check(&mut used, 1), Err(Fault::NotEmpty));
    }
}
