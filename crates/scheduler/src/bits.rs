//! A set of small numbers.

/// A set of interned things, a bit each. Grows as needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bits(Vec<u64>);

impl Bits {
    /// Those of the first `count` numbers that `wanted` wants.
    pub fn of(count: usize, wanted: impl Fn(usize) -> bool) -> Self {
        let mut out = Self(vec![0; count.div_ceil(64)]);
        (0..count).filter(|n| wanted(*n)).for_each(|n| out.set(n));
        out
    }

    /// Puts a number in.
    pub fn set(&mut self, number: usize) {
        let word = number / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (number % 64);
    }

    /// Whether a number is in.
    #[must_use]
    pub fn has(&self, number: usize) -> bool {
        self.0.get(number / 64).is_some_and(|w| w >> (number % 64) & 1 == 1)
    }

    /// Whether every number in it is in `other` too.
    #[must_use]
    pub fn within(&self, other: &Self) -> bool {
        self.0.iter().enumerate().all(|(i, w)| w & !other.0.get(i).copied().unwrap_or(0) == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets() {
        let even = Bits::of(200, |n| n % 2 == 0);
        assert!(even.has(0) && even.has(198) && !even.has(199) && !even.has(1000));
        let mut some = Bits::default();
        assert!(some.within(&even) && some.within(&Bits::default()));
        some.set(130);
        assert!(some.within(&even) && !some.within(&Bits::default()));
        some.set(131);
        assert!(!some.within(&even));
    }
}
