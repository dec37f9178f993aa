//! Bytes into words.

use super::WORD;
use crate::sync::{AtomicU64, Ordering};

/// Writes bytes into consecutive words of the ring, over its end if need be.
pub(super) struct WordWriter<'a> {
    data: &'a [AtomicU64],
    at: usize,
    partial: [u8; WORD],
    filled: usize,
}

impl<'a> WordWriter<'a> {
    pub(super) const fn new(data: &'a [AtomicU64], position: usize) -> Self {
        Self { data, at: position % data.len(), partial: [0; WORD], filled: 0 }
    }

    pub(super) fn word(&mut self, word: u64) {
        self.data[self.at].store(word, Ordering::Relaxed);
        self.at += 1;
        if self.at == self.data.len() {
            self.at = 0;
        }
    }

    pub(super) fn bytes(&mut self, mut bytes: &[u8]) {
        if self.filled > 0 {
            let (now, later) = bytes.split_at(bytes.len().min(WORD - self.filled));
            self.partial[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled < WORD {
                return;
            }
            self.flush();
        }
        let (whole, rest) = bytes.as_chunks::<WORD>();
        for word in whole {
            self.word(u64::from_ne_bytes(*word));
        }
        self.partial[..rest.len()].copy_from_slice(rest);
        self.filled = rest.len();
    }

    /// Writes the bytes that do not fill a word, padded with zeros.
    pub(super) fn flush(&mut self) {
        if self.filled > 0 {
            self.partial[self.filled..].fill(0);
            self.word(u64::from_ne_bytes(self.partial));
            self.filled = 0;
        }
    }
}
