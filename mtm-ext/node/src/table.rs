//! A hash table of transactions over borrowed slots, fit for shared memory.
//!
//! Open addressing with linear probing and backward-shift deletion: no pointers, no tombstones,
//! nothing allocated. The caller holds the lock that guards the slots.

use mtm_core::Gid;

/// One place of the table. An all-`None` slice is an empty table.
#[derive(Clone, Copy, Debug, Default)]
pub struct Slot<V>(Option<(Gid, V)>);

impl<V> Slot<V> {
    /// A free place.
    pub const FREE: Self = Self(None);
}

/// The table is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("the table of transactions is full")]
pub struct TableFull;

/// A view of slots as a map from gid to `V`.
#[derive(Debug)]
pub struct Table<'a, V> {
    slots: &'a mut [Slot<V>],
}

fn hash(gid: &Gid) -> u64 {
    let seed = gid.xid.0 ^ (u64::from(gid.origin.get()) << 56) ^ (gid.generation.0 << 40);
    // Fibonacci hashing; the high bits are the mixed ones.
    seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(32)
}

impl<'a, V: Copy> Table<'a, V> {
    /// Views these slots.
    pub const fn new(slots: &'a mut [Slot<V>]) -> Self {
        Self { slots }
    }

    fn home(&self, gid: &Gid) -> usize {
        (hash(gid) % self.slots.len() as u64) as usize
    }

    /// The slot of `gid`, or the free slot where it would go; `None` if full and absent.
    fn find(&self, gid: &Gid) -> Option<usize> {
        let n = self.slots.len();
        let home = self.home(gid);
        (0..n).map(|i| (home + i) % n).find(|&at| match &self.slots[at].0 {
            None => true,
            Some((key, _)) => key == gid,
        })
    }

    /// The value of `gid`.
    pub fn get_mut(&mut self, gid: &Gid) -> Option<&mut V> {
        let at = self.find(gid)?;
        self.slots[at].0.as_mut().map(|(_, value)| value)
    }

    /// The value of `gid`, made by `make` if there is none.
    ///
    /// # Errors
    /// When there is no place.
    pub fn entry(&mut self, gid: Gid, make: impl FnOnce() -> V) -> Result<&mut V, TableFull> {
        let at = self.find(&gid).ok_or(TableFull)?;
        Ok(&mut self.slots[at].0.get_or_insert_with(|| (gid, make())).1)
    }

    /// Removes `gid`; true if it was there.
    pub fn remove(&mut self, gid: &Gid) -> bool {
        let Some(mut hole) = self.find(gid) else { return false };
        if self.slots[hole].0.is_none() {
            return false;
        }
        let n = self.slots.len();
        self.slots[hole].0 = None;
        let mut at = (hole + 1) % n;
        while let Some((key, _)) = &self.slots[at].0 {
            let home = self.home(key);
            // An entry may fill the hole if its home is not between the hole and itself.
            if (at + n - home) % n >= (at + n - hole) % n {
                self.slots[hole].0 = self.slots[at].0.take();
                hole = at;
            }
            at = (at + 1) % n;
        }
        true
    }

    /// Removes entries for which `keep` says no.
    pub fn retain(&mut self, mut keep: impl FnMut(&Gid, &V) -> bool) {
        let gone: Vec<Gid> =
            self.iter().filter(|(gid, value)| !keep(gid, value)).map(|(gid, _)| *gid).collect();
        for gid in gone {
            self.remove(&gid);
        }
    }

    /// All entries in no particular, but repeatable, order.
    pub fn iter(&self) -> impl Iterator<Item = (&Gid, &V)> {
        self.slots.iter().filter_map(|slot| slot.0.as_ref().map(|(gid, value)| (gid, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mtm_core::{GenNum, NodeId, Xid};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn behaves_like_a_map(ops in prop::collection::vec((0u64..40, 0u8..3, any::<u16>()), 0..300)) {
            let mut slots = vec![Slot::FREE; 64];
            let mut table = Table::new(&mut slots);
            let mut model = BTreeMap::new();
            for (xid, op, value) in ops {
                let gid = Gid { origin: NodeId::new(1).unwrap(), xid: Xid(xid), generation: GenNum(1) };
                match op {
                    0 => {
                        *table.entry(gid, || 0).unwrap() = value;
                        model.insert(gid, value);
                    }
                    1 => prop_assert_eq!(table.remove(&gid), model.remove(&gid).is_some()),
                    _ => prop_assert_eq!(table.get_mut(&gid).copied(), model.get(&gid).copied()),
                }
                let all: BTreeMap<_, _> = table.iter().map(|(g, v)| (*g, *v)).collect();
                prop_assert_eq!(&all, &model);
            }
        }
    }

    #[test]
    fn a_full_table_says_so() {
        let gid = |x| Gid { origin: NodeId::new(1).unwrap(), xid: Xid(x), generation: GenNum(1) };
        let mut slots = vec![Slot::FREE; 4];
        let mut table = Table::new(&mut slots);
        for x in 0..4 {
            assert!(table.entry(gid(x), || x).is_ok());
        }
        assert_eq!(table.entry(gid(9), || 9).err(), Some(TableFull));
        assert!(table.remove(&gid(2)) && table.entry(gid(9), || 9).is_ok());
    }
}
