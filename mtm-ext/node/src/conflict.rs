//! Who gives way when two transactions of the cluster want the same row.
//!
//! All nodes put announced transactions in one order. One that comes later waits for one that
//! comes earlier; one that comes earlier makes a later one that is still undecided on its own node
//! give up. Waits then lead one way only, so there is no cycle and no timeout (design section 3,
//! point 5).
//!
//! The order must be fair: were it that of the transaction numbers, the node with the lowest ones
//! would win for ever, since each node counts for itself.

use mtm_core::Gid;

/// What becomes of a transaction that waits for another one's row.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verdict {
    /// The holder comes first: the waiter waits.
    Wait,
    /// The waiter comes first: the holder's origin aborts the holder if it is not decided yet.
    AbortHolder,
}

/// Compares two announced transactions.
pub fn judge(waiter: Gid, holder: Gid) -> Verdict {
    if wins(&waiter, &holder) { Verdict::AbortHolder } else { Verdict::Wait }
}

/// Whether `a` comes before `b`: the older generation, then a mixed number that favours no node
/// for long. The rest only makes the order total.
pub fn wins(a: &Gid, b: &Gid) -> bool {
    let key = |gid: &Gid| {
        let mixed = (gid.xid.0 ^ u64::from(gid.origin.get()) << 48)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .rotate_left(29);
        (gid.generation, mixed, gid.origin, gid.xid)
    };
    key(a) < key(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mtm_core::{GenNum, NodeId, Xid};
    use proptest::prelude::*;

    fn gid(node: u8, xid: u64, generation: u64) -> Gid {
        let origin = NodeId::new(node).unwrap();
        Gid { origin, xid: Xid(xid), generation: GenNum(generation) }
    }

    fn any_gid() -> impl Strategy<Value = Gid> {
        (1u8..=4, prop_oneof![0u64..20, any::<u64>()], 1u64..4).prop_map(|(n, x, g)| gid(n, x, g))
    }

    proptest! {
        #[test]
        fn the_order_is_total(a in any_gid(), b in any_gid(), c in any_gid()) {
            prop_assert_eq!(a != b, wins(&a, &b) != wins(&b, &a));
            prop_assert!(!(wins(&a, &b) && wins(&b, &c)) || wins(&a, &c));
            prop_assert!(!wins(&a, &a));
        }

        /// However each of them comes to wait for the next one (specs/adr/0117).
        #[test]
        fn a_circle_has_one_who_is_later(
            circle in proptest::collection::hash_set(any_gid(), 2..9),
        ) {
            let circle: Vec<Gid> = circle.into_iter().collect();
            let next = circle.iter().cycle().skip(1);
            let mut pairs = circle.iter().zip(next);
            prop_assert!(pairs.any(|(waiter, holder)| judge(*waiter, *holder) == Verdict::Wait));
        }
    }

    #[test]
    fn the_older_generation_comes_first() {
        assert!((0..1_000).all(|x| wins(&gid(2, x, 4), &gid(1, x + 7, 5))));
    }

    /// Whatever lead one node's counter has, each node wins about half of its conflicts.
    #[test]
    fn no_node_is_favoured() {
        for lead in [0, 1, 700, 1_000_000, 1 << 33] {
            for node in 2..=16 {
                let won = (0..2_000u64)
                    .filter(|x| wins(&gid(1, 5_000 + x, 1), &gid(node, 5_000 + lead + x * 3, 1)))
                    .count();
                assert!((700..=1_300).contains(&won), "lead {lead}, node {node}: {won} of 2000");
            }
        }
    }
}
