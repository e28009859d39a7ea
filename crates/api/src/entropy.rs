//! Chance that comes in from outside: one seeded generator handed to everything that needs randomness.

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use std::sync::Arc;

/// The letters and digits Kubernetes appends to `generateName` (no vowels, no easily confused digits).
const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

const HEX: &[u8; 16] = b"0123456789abcdef";

/// A shared, seeded source of randomness. Cheap to clone; all clones draw from one sequence.
#[derive(Clone)]
pub struct Entropy(Arc<Mutex<StdRng>>);

impl Entropy {
    /// A reproducible source: the same seed gives the same sequence.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))))
    }

    /// A source seeded from 256 bits of the operating system's randomness, fit for tokens.
    #[must_use]
    pub fn from_seed_bytes(seed: [u8; 32]) -> Self {
        Self(Arc::new(Mutex::new(StdRng::from_seed(seed))))
    }

    /// A random version-4 UUID in the usual hyphenated form, as used for `metadata.uid`.
    #[must_use]
    pub fn uuid(&self) -> String {
        let mut b = [0u8; 16];
        self.fill(&mut b);
        b[6] = (b[6] & 0x0f) | 0x40;
        b[8] = (b[8] & 0x3f) | 0x80;
        // By hand: every request has one.
        let mut text = String::with_capacity(36);
        for (at, byte) in b.into_iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            for digit in [byte >> 4, byte & 0x0f] {
                text.push(char::from(HEX[usize::from(digit)]));
            }
        }
        text
    }

    /// `length` characters of the alphabet Kubernetes uses for generated names.
    #[must_use]
    pub fn suffix(&self, length: usize) -> String {
        let mut rng = self.0.lock();
        (0..length).map(|_| char::from(SUFFIX_ALPHABET[rng.random_range(0..SUFFIX_ALPHABET.len())])).collect()
    }

    /// Fills `out` with random bytes.
    pub fn fill(&self, out: &mut [u8]) {
        self.0.lock().fill_bytes(out);
    }

    /// A uniform number in `0..bound`; 0 where `bound` is 0.
    #[must_use]
    pub fn below(&self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.0.lock().random_range(0..bound) }
    }

    /// A uniform number in `[0, 1)`.
    #[must_use]
    pub fn fraction(&self) -> f64 {
        self.0.lock().random::<f64>()
    }
}

impl std::fmt::Debug for Entropy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Entropy")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_of_version_four() {
        let entropy = Entropy::seeded(7);
        let (first, second) = (entropy.uuid(), entropy.uuid());
        assert_ne!(first, second);
        for uuid in [first, second] {
            let groups: Vec<&str> = uuid.split('-').collect();
            assert_eq!(groups.iter().map(|g| g.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12], "{uuid}");
            assert!(groups.concat().chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')), "{uuid}");
            assert!(groups[2].starts_with('4') && matches!(groups[3].as_bytes()[0], b'8'..=b'b'), "{uuid}");
        }
    }
}
