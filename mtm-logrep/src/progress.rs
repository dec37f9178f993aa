//! How far one origin's stream is finished here.
//!
//! Transactions begin in the order of their announcements and end in any order. The
//! low-watermark is the position up to which *everything* that was announced is finished: it is
//! what may be confirmed to the origin, and what a syncpoint waits for. It never goes back.

use mtm_core::Lsn;
use std::collections::BTreeSet;

/// Progress of one origin's stream.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Progress {
    open: BTreeSet<Lsn>,
    received: Lsn,
    finished: Lsn,
    begun: Lsn,
}

impl Progress {
    /// Everything up to `finished` was finished before.
    pub const fn new(finished: Lsn) -> Self {
        Self { open: BTreeSet::new(), received: finished, finished, begun: finished }
    }

    /// A transaction announced at `lsn` (the end of its announcement) is being worked on. False if
    /// that position is finished or open already: it came again.
    pub fn begin(&mut self, lsn: Lsn) -> bool {
        if lsn <= self.finished {
            return false;
        }
        let new = self.open.insert(lsn);
        self.begun = self.begun.max(lsn);
        self.receive(lsn);
        new
    }

    /// The stream has reached `lsn`, and nothing that was announced before it is still to come.
    pub fn receive(&mut self, lsn: Lsn) {
        self.received = self.received.max(lsn);
        self.advance();
    }

    /// The transaction announced at `lsn` is committed, rolled back or never to be prepared, and
    /// that is durable. True if it was open.
    pub fn finish(&mut self, lsn: Lsn) -> bool {
        let was = self.open.remove(&lsn);
        self.advance();
        was
    }

    /// The stream broke and will begin again above [`Progress::finished`]. What is open stays so.
    pub const fn restart(&mut self) -> Lsn {
        self.received = self.finished;
        self.finished
    }

    /// How far the stream was read.
    pub const fn received(&self) -> Lsn {
        self.received
    }

    /// The low-watermark: everything announced up to here is finished.
    pub const fn finished(&self) -> Lsn {
        self.finished
    }

    /// Upper bound of what was begun: `W` of a syncpoint for this origin.
    pub const fn begun(&self) -> Lsn {
        self.begun
    }

    /// How many transactions are open.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    fn advance(&mut self) {
        // Announcements end behind their first byte, so the position before an open one's end is
        // above everything that was announced before it.
        let mark = self.open.first().map_or(self.received, |lsn| Lsn(lsn.0 - 1).min(self.received));
        self.finished = self.finished.max(mark);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_open_transaction_holds_the_watermark() {
        let mut p = Progress::new(Lsn(100));
        assert!(p.begin(Lsn(200)) && p.begin(Lsn(300)));
        p.receive(Lsn(400));
        assert_eq!(p.finished(), Lsn(199));
        p.finish(Lsn(300));
        assert_eq!(p.finished(), Lsn(199));
        p.finish(Lsn(200));
        assert_eq!((p.finished(), p.begun()), (Lsn(400), Lsn(300)));
        assert!(!p.begin(Lsn(300)), "it came again");
    }

    #[test]
    fn after_a_break_nothing_counts_as_received_that_was_not_finished() {
        let mut p = Progress::new(Lsn(0));
        p.begin(Lsn(10));
        p.receive(Lsn(50));
        assert_eq!(p.restart(), Lsn(9));
        p.finish(Lsn(10));
        assert_eq!(p.finished(), Lsn(9), "what lies between will come again");
        assert!(p.begin(Lsn(10)), "and so will this");
    }

    proptest! {
        /// Any order of ends, breaks anywhere, against the plain words: nothing at or below the
        /// watermark is unfinished, it never goes back, and at the end it is the end.
        #[test]
        fn the_watermark_is_below_everything_unfinished(
            gaps in prop::collection::vec(1u64..5, 1..40),
            order in prop::collection::vec((any::<prop::sample::Index>(), 0u8..10), 0..200),
        ) {
            let all: Vec<Lsn> = gaps.iter().scan(0, |at, gap| { *at += gap; Some(Lsn(*at)) }).collect();
            let (mut p, mut next, mut done, mut open) = (Progress::new(Lsn(0)), 0, BTreeSet::new(), Vec::new());
            for (which, what) in order {
                let before = p.finished();
                match what {
                    0 => {
                        let from = p.restart();
                        next = all.iter().position(|lsn| *lsn > from).unwrap_or(all.len());
                    }
                    1..6 if next < all.len() => {
                        // What is finished and comes again is finished at once.
                        if p.begin(all[next]) {
                            if done.contains(&all[next]) { p.finish(all[next]); } else { open.push(all[next]); }
                        }
                        next += 1;
                    }
                    _ if !open.is_empty() => {
                        let lsn = open.swap_remove(which.index(open.len()));
                        done.insert(lsn);
                        p.finish(lsn);
                    }
                    _ => {}
                }
                prop_assert!(p.finished() >= before);
                prop_assert!(all.iter().filter(|lsn| **lsn <= p.finished()).all(|lsn| done.contains(lsn)));
            }
            while next < all.len() {
                p.begin(all[next]);
                next += 1;
            }
            all.iter().for_each(|lsn| { p.finish(*lsn); });
            prop_assert_eq!((p.finished(), p.open()), (*all.last().unwrap(), 0));
        }
    }
}
