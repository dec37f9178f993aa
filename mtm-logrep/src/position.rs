//! How much of a peer's log is not needed any more: what its slot may confirm.
//!
//! A recovery from that peer begins at the confirmed place. So that must never lie behind the
//! commit, in the peer's log, of a transaction of whatever origin that is not durably committed
//! here (duty 29 of `mtm-node`'s driver).

use mtm_core::{Gid, Lsn};
use std::collections::VecDeque;

/// The place in one peer's stream.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Position {
    received: Lsn,
    confirmed: Lsn,
    /// Commits in the peer's log that are perhaps not durable here, in its order.
    marks: VecDeque<(Lsn, Gid)>,
}

impl Position {
    /// Everything up to `confirmed` is durable here.
    pub const fn new(confirmed: Lsn) -> Self {
        Self { received: confirmed, confirmed, marks: VecDeque::new() }
    }

    /// The stream has reached `lsn`; all commits before it were marked.
    pub fn reached(&mut self, lsn: Lsn) {
        self.received = self.received.max(lsn);
    }

    /// The peer has committed this transaction; the record ends at `lsn`.
    pub fn committed(&mut self, lsn: Lsn, gid: Gid) {
        self.reached(lsn);
        self.marks.push_back((lsn, gid));
    }

    /// The stream broke. It begins again at the confirmed place, and what came behind that comes
    /// again, with its marks.
    pub fn broke(&mut self) {
        self.marks.clear();
        self.received = self.confirmed;
    }

    /// Moves the confirmed place up to before the first commit that is not durable here. Beyond the
    /// last mark only if `idle`: nothing that has come waits for being dealt with.
    pub fn confirm(&mut self, idle: bool, mut is_durable: impl FnMut(&Gid) -> bool) {
        while let Some((lsn, gid)) = self.marks.front() {
            if !is_durable(gid) {
                return;
            }
            self.confirmed = self.confirmed.max(*lsn);
            self.marks.pop_front();
        }
        if idle {
            self.confirmed = self.confirmed.max(self.received);
        }
    }

    /// How far the stream was read.
    pub const fn received(&self) -> Lsn {
        self.received
    }

    /// Up to here nothing of the peer's log is needed any more.
    pub const fn confirmed(&self) -> Lsn {
        self.confirmed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mtm_core::{GenNum, NodeId, Xid};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn gid(n: u64) -> Gid {
        Gid { origin: NodeId::new(1).unwrap(), xid: Xid(n), generation: GenNum(1) }
    }

    proptest! {
        /// The peer's log has a commit at every second place; transactions become durable here in
        /// any order, and streams break at any time.
        #[test]
        fn no_commit_that_is_not_durable_is_behind_the_confirmed_place(
            steps in prop::collection::vec((0u8..8, 0u64..40), 1..200),
        ) {
            let (mut position, mut durable, mut at) = (Position::new(Lsn(0)), BTreeSet::new(), 0);
            for (what, n) in steps {
                match what {
                    0..=3 => {
                        at += 1;
                        match at % 2 {
                            0 => position.committed(Lsn(at), gid(at)),
                            _ => position.reached(Lsn(at)),
                        }
                    }
                    4 | 5 => drop(durable.insert(gid(n))),
                    6 => position.confirm(n % 2 == 0, |gid| durable.contains(gid)),
                    _ => {
                        position.broke();
                        at = position.confirmed().0;
                        prop_assert_eq!(position.received(), position.confirmed());
                    }
                }
                let lost = (1..=position.confirmed().0)
                    .find(|lsn| lsn % 2 == 0 && !durable.contains(&gid(*lsn)));
                prop_assert_eq!(lost, None);
            }
            // Nothing is held back for ever.
            position.confirm(true, |_| true);
            prop_assert_eq!(position.confirmed(), position.received());
        }
    }
}
