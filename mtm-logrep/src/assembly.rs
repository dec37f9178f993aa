//! Which pieces of a stream make one transaction, and when it leaves memory.
//!
//! Pieces of an announced transaction are adjacent in its origin's stream ([`crate::stream`]).
//! A stream may break between any two and begin again earlier. This decides what to do with each
//! piece; the bytes themselves stay with the driver.

use mtm_core::{Gid, Lsn};

/// What to do with a piece.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Take {
    /// It belongs to nothing that began here: leave it.
    Ignore,
    /// Keep it in memory.
    Keep,
    /// Write what is kept to a file, then this; from now on [`Take::Append`].
    Spill,
    /// Write it to the file.
    Append,
}

/// What to do with a piece, and whether the transaction is whole with it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Step {
    /// Forget this transaction, whose end never came, and its file.
    pub abandon: Option<Gid>,
    /// What to do with the piece.
    pub take: Take,
    /// The transaction is whole: hand it on.
    pub whole: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Current {
    gid: Gid,
    lsn: Lsn,
    bytes: u64,
    spilled: bool,
}

/// The transaction that is arriving.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Assembly {
    threshold: u64,
    current: Option<Current>,
}

impl Assembly {
    /// Transactions of more than `threshold` bytes leave memory.
    pub const fn new(threshold: u64) -> Self {
        Self { threshold, current: None }
    }

    /// The transaction that is arriving, if one is.
    pub fn current(&self) -> Option<Gid> {
        self.current.map(|current| current.gid)
    }

    /// A piece of `len` bytes.
    pub fn piece(&mut self, gid: Gid, lsn: Lsn, (first, last): (bool, bool), len: usize) -> Step {
        let mut abandon = None;
        if first {
            // The same transaction again is a stream that began again: its file starts anew, too.
            abandon = self.interrupted();
            self.current = Some(Current { gid, lsn, bytes: 0, spilled: false });
        }
        let Some(current) = self.current.as_mut().filter(|c| c.gid == gid && c.lsn == lsn) else {
            return Step { abandon: self.interrupted(), take: Take::Ignore, whole: false };
        };
        current.bytes = current.bytes.saturating_add(len as u64);
        let take = match (current.spilled, current.bytes > self.threshold) {
            (true, _) => Take::Append,
            (false, true) => Take::Spill,
            (false, false) => Take::Keep,
        };
        current.spilled |= take == Take::Spill;
        if last {
            self.current = None;
        }
        Step { abandon, take, whole: last }
    }

    /// Anything else came, or the stream broke: what was arriving will begin again.
    pub fn interrupted(&mut self) -> Option<Gid> {
        self.current.take().map(|current| current.gid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mtm_core::{GenNum, NodeId, Xid};
    use proptest::prelude::*;

    fn gid(xid: u64) -> Gid {
        Gid { origin: NodeId::new(1).unwrap(), xid: Xid(xid), generation: GenNum(1) }
    }

    proptest! {
        /// A stream of transactions that breaks anywhere and goes back anywhere: what is handed on
        /// is whole, unaltered, and every transaction is handed on after the last break.
        #[test]
        fn only_whole_transactions_are_handed_on(
            sizes in prop::collection::vec(prop::collection::vec(0usize..50, 1..6), 1..6),
            breaks in prop::collection::vec((0usize..40, 0usize..6), 0..6),
            threshold in 0u64..120,
        ) {
            let mut assembly = Assembly::new(threshold);
            let (mut memory, mut file) = (Vec::new(), Vec::new());
            let mut whole = Vec::new();
            let mut stretches: Vec<(usize, usize)> = Vec::new();
            let mut from = 0;
            for (pieces, back_to) in breaks {
                stretches.push((from, pieces));
                from = back_to.min(sizes.len() - 1).min(from);
            }
            stretches.push((from, usize::MAX));
            for (from, limit) in stretches {
                whole.retain(|(n, _): &(usize, Vec<usize>)| *n < from);
                let pieces = (from..sizes.len()).flat_map(|n| (0..sizes[n].len()).map(move |i| (n, i)));
                for (n, i) in pieces.take(limit) {
                    let flags = (i == 0, i + 1 == sizes[n].len());
                    let at = Lsn(n as u64 + 1);
                    let step = assembly.piece(gid(n as u64), at, flags, sizes[n][i]);
                    if i == 0 { memory.clear(); file.clear(); }
                    match step.take {
                        Take::Ignore => prop_assert!(false, "the stream is in order"),
                        Take::Keep => memory.push(sizes[n][i]),
                        Take::Spill => { file.append(&mut memory); file.push(sizes[n][i]); }
                        Take::Append => file.push(sizes[n][i]),
                    }
                    prop_assert!(memory.iter().sum::<usize>() as u64 <= threshold);
                    prop_assert!(file.is_empty() || memory.is_empty());
                    if step.whole {
                        whole.push((n, if file.is_empty() { memory.clone() } else { file.clone() }));
                    }
                }
                if assembly.interrupted().is_some() { memory.clear(); file.clear(); }
            }
            let all: Vec<_> = sizes.iter().cloned().enumerate().collect();
            prop_assert_eq!(whole, all);
        }
    }

    #[test]
    fn a_piece_of_something_else_ends_what_was_arriving() {
        let mut assembly = Assembly::new(100);
        assembly.piece(gid(1), Lsn(1), (true, false), 10);
        let step = assembly.piece(gid(2), Lsn(2), (false, true), 10);
        assert_eq!(step, Step { abandon: Some(gid(1)), take: Take::Ignore, whole: false });
        let step = assembly.piece(gid(1), Lsn(1), (false, true), 10);
        assert_eq!(step, Step { abandon: None, take: Take::Ignore, whole: false });
    }

    #[test]
    fn a_transaction_that_begins_again_is_abandoned_first() {
        let mut assembly = Assembly::new(5);
        assembly.piece(gid(1), Lsn(1), (true, false), 10);
        let step = assembly.piece(gid(1), Lsn(1), (true, false), 3);
        assert_eq!(step, Step { abandon: Some(gid(1)), take: Take::Keep, whole: false });
    }
}
