//! A task that one process of a server has at a time, in one shared word.
//!
//! Whoever wants it and does not get it looks again later. It is let go of by its holder alone, so
//! that one who comes to its end late cannot take it from the next one, and at no time is a holder
//! unknown to the others: they find who it is, or nobody, and then nobody does anything.
//!
//! All-zero words are a task that nobody has.

use crate::sync::{AtomicU64, Ordering};

/// Who has the task.
#[derive(Debug)]
pub struct Holder(AtomicU64);

impl Holder {
    /// Nobody has it.
    #[must_use]
    pub fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Takes the task; `false` if somebody has it.
    pub fn take(&self, me: u32) -> bool {
        let word = u64::from(me) + 1;
        self.0.compare_exchange(0, word, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Lets go of the task; `false` if the caller did not have it.
    pub fn let_go(&self, me: u32) -> bool {
        let word = u64::from(me) + 1;
        self.0.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Who has it.
    pub fn get(&self) -> Option<u32> {
        let word = self.0.load(Ordering::Acquire);
        word.checked_sub(1).and_then(|holder| u32::try_from(holder).ok())
    }
}

impl Default for Holder {
    fn default() -> Self {
        Self::new()
    }
}
