//! Chance for tests of random clusters, the same from the same seed.

use gantry_api::entropy::Entropy;

pub struct Dice(pub Entropy);

impl Dice {
    pub fn below(&self, n: u64) -> u64 {
        self.0.below(n)
    }

    pub fn one_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a>(&self, of: &[&'a str]) -> &'a str {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
}
