//! A hash table of transactions over borrowed slots, fit for shared memory.
//!
//! Open addressing with linear probing and backward-shift deletion: no pointers, no tombstones,
//! nothing allocated. The caller holds the lock that guards the slots.
//!
//! Some slots carry a word of a map of the places that are taken, so that going through a large
//! table with few entries costs little: of every group of 64 slots the first one, a bit per slot;
//! of every block of 64 groups the second one, a bit per group.

use mtm_core::Gid;

/// Bits of a word, slots of a group, groups of a block.
const WORD: usize = u64::BITS as usize;
const BLOCK: usize = WORD * WORD;

/// One place of the table. A slice of `FREE` places is an empty table.
#[derive(Clone, Copy, Debug)]
pub struct Slot<V> {
    entry: Option<(Gid, V)>,
    /// A word of the map; which one says the slot's place.
    map: u64,
}

impl<V> Slot<V> {
    /// A free place.
    pub const FREE: Self = Self { entry: None, map: 0 };
}

impl<V> Default for Slot<V> {
    fn default() -> Self {
        Self::FREE
    }
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

/// The numbers of the bits that are set, ascending.
fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let lowest = (word != 0).then(|| word.trailing_zeros() as usize);
        word &= word.wrapping_sub(1);
        lowest
    })
}

impl<'a, V: Copy> Table<'a, V> {
    /// Views these slots.
    pub const fn new(slots: &'a mut [Slot<V>]) -> Self {
        Self { slots }
    }

    /// How many entries fit.
    pub const fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.groups().map(|group| self.slots[group].map.count_ones() as usize).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.groups().next().is_none()
    }

    fn home(&self, gid: &Gid) -> usize {
        (hash(gid) % self.slots.len() as u64) as usize
    }

    /// Where the word of a block is. The last block may be a single slot, whose two words are one:
    /// both are then "this slot is taken".
    fn block_word(&self, block: usize) -> usize {
        (block + 1).min(self.slots.len() - 1)
    }

    /// First slots of the groups with entries, ascending.
    fn groups(&self) -> impl Iterator<Item = usize> {
        (0..self.slots.len()).step_by(BLOCK).flat_map(|block| {
            bits(self.slots[self.block_word(block)].map).map(move |group| block + group * WORD)
        })
    }

    fn put(&mut self, at: usize, entry: (Gid, V)) {
        let (group, block) = (at - at % WORD, at - at % BLOCK);
        self.slots[at].entry = Some(entry);
        self.slots[group].map |= 1 << (at % WORD);
        let word = self.block_word(block);
        self.slots[word].map |= 1 << ((group - block) / WORD);
    }

    fn take(&mut self, at: usize) -> Option<(Gid, V)> {
        let (group, block) = (at - at % WORD, at - at % BLOCK);
        self.slots[group].map &= !(1 << (at % WORD));
        if self.slots[group].map == 0 {
            let word = self.block_word(block);
            self.slots[word].map &= !(1 << ((group - block) / WORD));
        }
        self.slots[at].entry.take()
    }

    /// The slot of `gid`, or the free slot where it would go; `None` if full and absent.
    fn find(&self, gid: &Gid) -> Option<usize> {
        let n = self.slots.len();
        let home = self.home(gid);
        (home..n).chain(0..home).find(|&at| match &self.slots[at].entry {
            None => true,
            Some((key, _)) => key == gid,
        })
    }

    /// The value of `gid`.
    pub fn get(&self, gid: &Gid) -> Option<&V> {
        let at = self.find(gid)?;
        self.slots[at].entry.as_ref().map(|(_, value)| value)
    }

    /// The value of `gid`.
    pub fn get_mut(&mut self, gid: &Gid) -> Option<&mut V> {
        let at = self.find(gid)?;
        self.slots[at].entry.as_mut().map(|(_, value)| value)
    }

    /// The value of `gid`, made by `make` if there is none.
    ///
    /// # Errors
    /// When there is no place.
    pub fn entry(&mut self, gid: Gid, make: impl FnOnce() -> V) -> Result<&mut V, TableFull> {
        let at = self.find(&gid).ok_or(TableFull)?;
        if self.slots[at].entry.is_none() {
            self.put(at, (gid, make()));
        }
        self.slots[at].entry.as_mut().map(|(_, value)| value).ok_or(TableFull)
    }

    /// Removes `gid`; true if it was there.
    pub fn remove(&mut self, gid: &Gid) -> bool {
        let Some(mut hole) = self.find(gid) else { return false };
        if self.slots[hole].entry.is_none() {
            return false;
        }
        let n = self.slots.len();
        self.take(hole);
        let mut at = (hole + 1) % n;
        while let Some((key, _)) = &self.slots[at].entry {
            let home = self.home(key);
            // An entry may fill the hole if its home is not between the hole and itself.
            if (at + n - home) % n >= (at + n - hole) % n
                && let Some(moved) = self.take(at)
            {
                self.put(hole, moved);
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
        self.groups()
            .flat_map(|group| bits(self.slots[group].map).map(move |bit| group + bit))
            .filter_map(|at| self.slots[at].entry.as_ref().map(|(gid, value)| (gid, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mtm_core::{GenNum, NodeId, Xid};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Ops = Vec<(u64, u8, u16)>;

    fn gid(xid: u64) -> Gid {
        Gid { origin: NodeId::new(1).unwrap(), xid: Xid(xid), generation: GenNum(1) }
    }

    /// Numbers `0..range` in a table of `places` slots, against a map.
    fn compare(places: usize, range: u64, ops: Ops) -> Result<(), TestCaseError> {
        let mut slots = vec![Slot::FREE; places];
        let mut table = Table::new(&mut slots);
        let mut model = BTreeMap::new();
        for (xid, op, value) in ops {
            let gid = gid(xid % range);
            match op {
                0 if table.get(&gid).is_none() && table.len() == places => {
                    prop_assert_eq!(table.entry(gid, || 0).err(), Some(TableFull));
                }
                0 => {
                    *table.entry(gid, || 0).unwrap() = value;
                    model.insert(gid, value);
                }
                1 => prop_assert_eq!(table.remove(&gid), model.remove(&gid).is_some()),
                _ => prop_assert_eq!(table.get_mut(&gid).copied(), model.get(&gid).copied()),
            }
            let all: BTreeMap<_, _> = table.iter().map(|(g, v)| (*g, *v)).collect();
            prop_assert_eq!(&all, &model);
            let (len, empty) = (table.len(), table.is_empty());
            prop_assert_eq!((len, empty), (model.len(), model.is_empty()));
        }
        let map: usize = slots.iter().filter(|slot| slot.entry.is_some()).count();
        prop_assert_eq!(map, model.len());
        Ok(())
    }

    fn ops(range: u64, n: usize) -> impl Strategy<Value = Ops> {
        prop::collection::vec((0..range, 0u8..3, any::<u16>()), 0..n)
    }

    proptest! {
        #[test]
        fn behaves_like_a_map(ops in ops(40, 300)) {
            compare(64, 40, ops)?;
        }

        /// Groups of which the last is not whole, entries that wrap around its end.
        #[test]
        fn behaves_like_a_map_over_groups(places in 1usize..400, ops in ops(1 << 20, 300)) {
            compare(places, places as u64, ops)?;
        }

        /// Nearly full: removal shifts entries over borders of groups.
        #[test]
        fn behaves_like_a_map_when_nearly_full(places in 120usize..140, ops in ops(1 << 20, 200)) {
            let fill = (0..places as u64 - 2).map(|xid| (xid, 0, 7));
            compare(places, 1 << 20, fill.chain(ops).collect())?;
        }

        /// Several blocks, also one of a single slot.
        #[test]
        fn behaves_like_a_map_over_blocks(more in 0usize..70, ops in ops(1 << 20, 60)) {
            compare(BLOCK + more, 1 << 20, ops.clone())?;
            compare(2 * BLOCK + 1, 30, ops)?;
        }
    }

    #[test]
    fn a_full_table_says_so() {
        let mut slots = vec![Slot::FREE; 4];
        let mut table = Table::new(&mut slots);
        for x in 0..4 {
            assert!(table.entry(gid(x), || x).is_ok());
        }
        assert_eq!(table.entry(gid(9), || 9).err(), Some(TableFull));
        assert!(table.remove(&gid(2)) && table.entry(gid(9), || 9).is_ok());
    }

    #[test]
    fn full_tables_of_every_size_are_gone_through() {
        for places in [1, 2, 63, 64, 65, 128, BLOCK, BLOCK + 1, BLOCK + 2] {
            let mut slots = vec![Slot::FREE; places];
            let mut table = Table::new(&mut slots);
            for x in 0..places as u64 {
                table.entry(gid(x), || x).unwrap();
            }
            assert_eq!((table.len(), table.iter().count()), (places, places));
            for x in 0..places as u64 {
                assert!(table.remove(&gid(x)));
            }
            assert!(table.is_empty() && slots.iter().all(|slot| slot.map == 0));
        }
    }
}
