//! Sees everything and knows what must be true (the invariants of `specs/tla/Multimaster.tla`).

use crate::database::Key;
use mtm_core::{GenNum, Gid};
use mtm_node::user::Operation;
use std::collections::{BTreeMap, BTreeSet};

/// What a client was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Told {
    Committed,
    Aborted,
    Unknown,
}

/// An invariant that did not hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// Its name in the specification.
    pub invariant: &'static str,
    /// What was seen.
    pub what: String,
}

impl Violation {
    /// The transaction it is about, if it names one.
    pub fn gid(&self) -> Option<Gid> {
        let word = self.what.split([' ', ',', ':', ')']).find(|w| w.starts_with("MTM-"))?;
        word.parse().ok()
    }
}

#[derive(Clone, Default, Debug)]
pub(crate) struct Oracle {
    /// Decided commits, with the lowest generation in which they were decided.
    pub(crate) commits: BTreeMap<Gid, GenNum>,
    pub(crate) aborts: BTreeSet<Gid>,
    pub(crate) told: BTreeMap<Gid, Told>,
    /// Commits of which clients were told when all members had them, and that some node lacks.
    pub(crate) acknowledged: BTreeSet<Gid>,
    /// Commits that some node has not committed durably yet.
    pub(crate) pending: BTreeSet<Gid>,
    /// What users' operations do, as they were announced.
    pub(crate) operations: BTreeMap<Gid, Operation>,
    /// The second operation that was decided, by the first one.
    pub(crate) seconds: BTreeMap<Gid, Gid>,
    /// The order in which rows were written.
    order: BTreeMap<Key, Vec<Gid>>,
    pub(crate) violation: Option<Violation>,
}

impl Oracle {
    pub(crate) fn violated(&mut self, invariant: &'static str, what: String) {
        if self.violation.is_none() {
            self.violation = Some(Violation { invariant, what });
        }
    }

    /// Commit was decided, in this generation.
    pub(crate) fn commit(&mut self, gid: Gid, num: GenNum) {
        if self.aborts.contains(&gid) {
            self.violated("Agreement", format!("{gid} is aborted and now committed in {num:?}"));
        }
        let known = self.commits.entry(gid).or_insert_with(|| {
            self.pending.insert(gid);
            num
        });
        *known = num.min(*known);
    }

    /// Abort was decided.
    pub(crate) fn abort(&mut self, gid: Gid) {
        if self.commits.contains_key(&gid) {
            self.violated("Agreement", format!("{gid} is committed and now aborted"));
        }
        self.aborts.insert(gid);
    }

    /// A client was told; the first word counts, except that "unknown" may become known.
    pub(crate) fn tell(&mut self, gid: Gid, told: Told) {
        let before = self.told.get(&gid).copied();
        match before {
            None | Some(Told::Unknown) => {
                self.told.insert(gid, told);
            }
            Some(Told::Committed | Told::Aborted) if told == Told::Unknown => {}
            Some(before) if before != told => {
                self.violated(
                    "AbortFinal",
                    format!("the client of {gid} was told {before:?}, then {told:?}"),
                );
            }
            Some(_) => {}
        }
    }

    /// A row of some node now ends with `gid`, its `at`th writer (from 0).
    pub(crate) fn written(&mut self, key: Key, at: usize, gid: Gid) {
        let order = self.order.entry(key).or_default();
        let known = order.get(at).copied();
        match known {
            None if at == order.len() => order.push(gid),
            Some(other) if other == gid => {}
            other => {
                self.violated(
                    "ConflictOrder",
                    format!("row {key}: writer {at} is {gid}, elsewhere {other:?}"),
                );
            }
        }
    }
}
