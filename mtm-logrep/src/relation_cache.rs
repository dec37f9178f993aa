//! What a receiver derived from a table's description, kept for the next transaction.
//!
//! Every transaction describes its tables anew ([`crate::row`]), in bytes that are equal as long as
//! nothing about the table changed on the sender. Those bytes are the key, so a changed table is
//! simply another key. What changes on *this* node must be said with
//! [`RelationCache::forget_table`] or [`RelationCache::clear`].

use crate::row::Relation;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
struct Entry<T> {
    derived: T,
    /// Local identity of the table, for invalidation.
    local: u32,
    used: u64,
}

/// Maps descriptions to what was derived from them, at most so many.
#[derive(Clone, Debug)]
pub struct RelationCache<T> {
    entries: BTreeMap<Box<[u8]>, Entry<T>>,
    capacity: usize,
    clock: u64,
}

impl<T> RelationCache<T> {
    /// Keeps up to `capacity` tables, and at least one.
    pub fn new(capacity: usize) -> Self {
        Self { entries: BTreeMap::new(), capacity: capacity.max(1), clock: 0 }
    }

    /// How many tables are kept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What was derived from this description; if nothing was, `derive` does it and says which
    /// local table it is about. The table that was not used for longest makes room.
    ///
    /// # Errors
    /// When `derive` fails; nothing is kept then.
    pub fn get_or_derive<E>(
        &mut self,
        relation: &Relation<'_>,
        derive: impl FnOnce(&Relation<'_>) -> Result<(u32, T), E>,
    ) -> Result<&T, E> {
        self.clock += 1;
        if !self.entries.contains_key(relation.bytes()) {
            let (local, derived) = derive(relation)?;
            if self.entries.len() >= self.capacity {
                self.evict();
            }
            let entry = Entry { derived, local, used: self.clock };
            self.entries.insert(relation.bytes().into(), entry);
        }
        let entry = self.entries.get_mut(relation.bytes()).expect("it was there or was inserted");
        entry.used = self.clock;
        Ok(&entry.derived)
    }

    /// A local table changed, or is gone.
    pub fn forget_table(&mut self, local: u32) {
        self.entries.retain(|_, entry| entry.local != local);
    }

    /// Anything may have changed.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    fn evict(&mut self) {
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used);
        if let Some(key) = oldest.map(|(key, _)| key.clone()) {
            self.entries.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::{ReplicaIdentity, write_relation};
    use core::convert::Infallible;
    use proptest::prelude::*;

    fn description(oid: u32, version: u8) -> Vec<u8> {
        let (mut out, name) = (Vec::new(), [b'v', version]);
        let columns = core::iter::empty();
        write_relation(&mut out, oid, b'r', ReplicaIdentity::Default, (b"s", &name), columns);
        out
    }

    #[derive(Clone, Debug)]
    enum Do {
        Get(u32, u8),
        Forget(u32),
        Clear,
    }

    fn todo() -> impl Strategy<Value = Do> {
        prop_oneof![
            8 => (0u32..5, 0u8..3).prop_map(|(oid, version)| Do::Get(oid, version)),
            2 => (0u32..5).prop_map(Do::Forget),
            1 => Just(Do::Clear),
        ]
    }

    proptest! {
        /// Whatever is found is what would be derived now; what was just used is still there; what
        /// was forgotten is derived again.
        #[test]
        fn it_never_gives_what_is_out_of_date(todo in prop::collection::vec(todo(), 0..200), capacity in 1usize..6) {
            let mut cache = RelationCache::new(capacity);
            let mut epoch = [0u32; 5];
            let mut last = None;
            for step in todo {
                match step {
                    Do::Get(oid, version) => {
                        let bytes = description(oid, version);
                        let relation = Relation::parse(&bytes).unwrap();
                        let mut derived_now = false;
                        let now = (oid, version, epoch[oid as usize]);
                        let got = *cache
                            .get_or_derive(&relation, |_| {
                                derived_now = true;
                                Ok::<_, Infallible>((oid, now))
                            })
                            .unwrap();
                        prop_assert_eq!(got, now);
                        prop_assert!(!(derived_now && last == Some(now)), "it was used just before");
                        last = Some(now);
                    }
                    Do::Forget(oid) => {
                        epoch[oid as usize] += 1;
                        cache.forget_table(oid);
                    }
                    Do::Clear => {
                        epoch.iter_mut().for_each(|e| *e += 1);
                        cache.clear();
                        prop_assert!(cache.is_empty());
                    }
                }
                prop_assert!(cache.len() <= capacity);
            }
        }
    }

    #[test]
    fn the_table_that_was_not_used_for_longest_makes_room() {
        let mut cache = RelationCache::new(2);
        let mut derived = Vec::new();
        for oid in [1, 2, 1, 3, 1, 2] {
            let bytes = description(oid, 0);
            let relation = Relation::parse(&bytes).unwrap();
            cache
                .get_or_derive(&relation, |_| {
                    derived.push(oid);
                    Ok::<_, Infallible>((oid, ()))
                })
                .unwrap();
        }
        assert_eq!(derived, [1, 2, 3, 2]);
    }

    #[test]
    fn what_could_not_be_derived_is_not_kept() {
        let bytes = description(1, 0);
        let relation = Relation::parse(&bytes).unwrap();
        let mut cache = RelationCache::<()>::new(2);
        assert_eq!(cache.get_or_derive(&relation, |_| Err("no such table")), Err("no such table"));
        assert!(cache.is_empty());
    }
}
