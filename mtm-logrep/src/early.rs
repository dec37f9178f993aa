//! A transaction whose changes leave its origin before it is announced.
//!
//! While it is in progress, any of its subtransactions may still be rolled back. Its rows travel
//! all the same and the receiver sorts them out ([`crate::stream::Children`]); but what one of its
//! statements says about later rows, and a row that cannot be shipped, must go with the
//! subtransaction they came from. This is the memory of both, on the origin.
//!
//! A subtransaction's changes lie between its begin and its end in the log, those of its own
//! subtransactions among them. So when one is gone, what it had set is undone by forgetting it.

use crate::ddl::Rows;

/// What the origin remembers of a transaction in progress whose changes are being sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Early {
    /// What statements said about later rows, with the (sub)transaction each belongs to, in the
    /// order of the log; the last one holds.
    said: Vec<(u32, Rows)>,
    failed: Option<(u32, String)>,
    pieces: u32,
}

impl Early {
    /// Nothing sent yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { said: Vec::new(), failed: None, pieces: 0 }
    }

    /// What becomes of the next rows.
    #[must_use]
    pub fn rows(&self) -> Rows {
        self.said.last().map_or(Rows::Ordinary, |(_, rows)| *rows)
    }

    /// A statement of this (sub)transaction says what becomes of later rows.
    pub fn say(&mut self, subxid: u32, rows: Rows) {
        if self.said.last().is_some_and(|(last, _)| *last == subxid) {
            self.said.pop();
        }
        if self.rows() != rows {
            self.said.push((subxid, rows));
        }
    }

    /// A change of this (sub)transaction cannot be shipped.
    pub fn fail(&mut self, subxid: u32, why: String) {
        self.failed.get_or_insert((subxid, why));
    }

    /// Why the transaction cannot be shipped; changes need not be sent while there is a reason.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failed.as_ref().map(|(_, why)| why.as_str())
    }

    /// Whether something depends on a subtransaction that may be gone.
    #[must_use]
    pub fn depends_on_others_than(&self, xid: u32) -> bool {
        let failed = self.failed.as_ref().map(|(subxid, _)| *subxid);
        self.said.iter().map(|(subxid, _)| *subxid).chain(failed).any(|subxid| subxid != xid)
    }

    /// Forgets what came from subtransactions that are gone.
    pub fn retain(&mut self, is_alive: impl Fn(u32) -> bool) {
        self.said.retain(|(subxid, _)| is_alive(*subxid));
        self.failed.take_if(|(subxid, _)| !is_alive(*subxid));
    }

    /// A piece is sent.
    pub const fn count_piece(&mut self) {
        self.pieces += 1;
    }

    /// How many pieces were sent.
    #[must_use]
    pub const fn pieces(&self) -> u32 {
        self.pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_statement_holds_and_its_end_undoes_it() {
        let mut early = Early::new();
        early.say(1, Rows::WithRewritten);
        assert_eq!(early.rows(), Rows::WithRewritten);
        early.say(1, Rows::Ordinary);
        assert_eq!(early, Early::new());
    }

    #[test]
    fn what_a_subtransaction_said_goes_with_it() {
        let mut early = Early::new();
        early.say(1, Rows::WithRewritten);
        early.say(2, Rows::None);
        assert!(early.depends_on_others_than(1));
        early.retain(|subxid| subxid == 1);
        assert_eq!(early.rows(), Rows::WithRewritten);
        assert!(!early.depends_on_others_than(1));
    }

    #[test]
    fn an_end_within_a_subtransaction_that_is_gone_does_not_count() {
        let mut early = Early::new();
        early.say(1, Rows::None);
        early.say(2, Rows::Ordinary);
        assert_eq!(early.rows(), Rows::Ordinary);
        early.retain(|subxid| subxid == 1);
        assert_eq!(early.rows(), Rows::None);
    }

    #[test]
    fn a_failure_goes_with_its_subtransaction_and_the_first_one_counts() {
        let mut early = Early::new();
        early.fail(7, "first".into());
        early.fail(8, "second".into());
        assert_eq!(early.failure(), Some("first"));
        early.retain(|subxid| subxid == 8);
        assert_eq!(early.failure(), None);
    }
}
