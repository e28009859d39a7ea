//! Exponential back-off.

use std::time::Duration;

/// Delays that double from a base up to a cap.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// Delays `base`, `2·base`, `4·base`, … up to `cap`.
    #[must_use]
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, failures: 0 }
    }

    /// Counts a failure and returns how long to wait.
    pub fn next_delay(&mut self) -> Duration {
        let d = nth_delay(self.base, self.cap, self.failures);
        self.failures = self.failures.saturating_add(1);
        d
    }

    /// Forgets the failures.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// `base · 2^n`, at most `cap`.
#[must_use]
pub fn nth_delay(base: Duration, cap: Duration, n: u32) -> Duration {
    base.checked_mul(1u32.checked_shl(n).unwrap_or(u32::MAX)).map_or(cap, |d| d.min(cap))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_cap() {
        let mut b = Backoff::new(Duration::from_millis(5), Duration::from_millis(35));
        let got: Vec<u128> = (0..5).map(|_| b.next_delay().as_millis()).collect();
        assert_eq!(got, [5, 10, 20, 35, 35]);
        b.reset();
        assert_eq!(b.next_delay().as_millis(), 5);
        assert_eq!(nth_delay(Duration::from_secs(1), Duration::from_secs(9), 4000), Duration::from_secs(9));
    }
}
