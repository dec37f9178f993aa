//! How long to wait before the next attempt to connect.

/// Doubling delays with jitter from a seed: one seed, one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Backoff {
    min_us: u64,
    max_us: u64,
    failures: u32,
    random: u64,
}

impl Backoff {
    pub(crate) const fn new(min_us: u64, max_us: u64, seed: u64) -> Self {
        Self {
            min_us,
            max_us: if max_us < min_us { min_us } else { max_us },
            failures: 0,
            random: seed,
        }
    }

    /// The delay after one more failure: between half of the doubled delay and all of it, and
    /// never outside of the limits. Nodes that lost each other at once do not come back at once.
    pub(crate) fn after_failure(&mut self) -> u64 {
        let doubled = self.min_us.saturating_mul(1 << self.failures.min(32)).min(self.max_us);
        self.failures = self.failures.saturating_add(1);
        let least = (doubled / 2).max(self.min_us);
        least + self.next_random() % (doubled - least + 1)
    }

    pub(crate) const fn reset(&mut self) {
        self.failures = 0;
    }

    pub(crate) const fn failures(&self) -> u32 {
        self.failures
    }

    pub(crate) const fn max_us(&self) -> u64 {
        self.max_us
    }

    /// SplitMix64 (Steele, Lea and Flood 2014).
    const fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn delays_grow_within_their_limits(min in 1u64..1_000, max in 1u64..1_000_000, seed: u64) {
            let mut backoff = Backoff::new(min, max, seed);
            let max = max.max(min);
            prop_assert_eq!(backoff.after_failure(), min);
            let mut expected = min;
            for _ in 0..70 {
                expected = (expected * 2).min(max);
                let delay = backoff.after_failure();
                prop_assert!(delay >= (expected / 2).max(min) && delay <= expected);
            }
            backoff.reset();
            prop_assert_eq!(backoff.after_failure(), min);
        }
    }

    #[test]
    fn the_seed_decides_and_seeds_differ() {
        let delays = |seed| {
            let mut backoff = Backoff::new(50_000, 2_000_000, seed);
            (0..10).map(|_| backoff.after_failure()).collect::<Vec<_>>()
        };
        assert_eq!(delays(1), delays(1));
        assert_ne!(delays(1), delays(2));
    }
}
