//! Numbers that look random and follow from a seed.

/// SplitMix64 (Steele, Lea and Flood 2014): the same seed gives the same numbers everywhere.
///
/// For jitter and for tests, not for secrets. A machine that needs it gets the seed from its
/// driver.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Starts at `seed`; any number will do.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub const fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = self.0;
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 when the bound is 0 or 1.
    pub const fn below(&mut self, bound: u64) -> u64 {
        // The bias of the remainder is below bound / 2^64, which nobody here can notice.
        let drawn = self.draw();
        if bound == 0 { 0 } else { drawn % bound }
    }

    /// Whether an event of so many percent happens.
    pub const fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Another generator, whose numbers have nothing to do with the further ones of this.
    #[must_use]
    pub const fn split(&mut self) -> Self {
        Self(self.draw() ^ 0x5851_f42d_4c95_7f2d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_published_numbers() {
        let mut rng = Rng::new(1_234_567);
        let got = [rng.draw(), rng.draw(), rng.draw()];
        assert_eq!(
            got,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn bounds_hold_and_every_value_comes() {
        let mut rng = Rng::new(7);
        let mut seen = [0; 5];
        for _ in 0..1_000 {
            seen[rng.below(5) as usize] += 1;
        }
        assert!(seen.iter().all(|&n| n > 100), "{seen:?}");
        assert_eq!(rng.below(0), 0);
    }

    #[test]
    fn a_split_generator_goes_its_own_way() {
        let mut one = Rng::new(3);
        let mut other = one.split();
        assert_ne!([one.draw(), one.draw()], [other.draw(), other.draw()]);
    }
}
