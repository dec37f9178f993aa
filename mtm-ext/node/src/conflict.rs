//! Who gives way when two transactions of the cluster want the same row.
//!
//! Older wins: a younger transaction waits for an older one, an older one makes a younger one
//! that is still undecided on its own node give up. Waits then lead from young to old only, so
//! there is no cycle and no timeout (design section 3, point 5).

use mtm_core::Gid;

/// What becomes of a transaction that waits for another one's row.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verdict {
    /// The waiter is younger: it waits.
    Wait,
    /// The waiter is older: the holder's origin aborts the holder if it is not decided yet.
    AbortHolder,
}

/// Compares two announced transactions: generation, then transaction number, then origin.
pub fn judge(waiter: Gid, holder: Gid) -> Verdict {
    let age = |g: Gid| (g.generation, g.xid, g.origin);
    if age(waiter) < age(holder) { Verdict::AbortHolder } else { Verdict::Wait }
}
