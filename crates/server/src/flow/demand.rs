//! How many seats a level wants over time: the average, its spread and the peak of the last period, and a smoothed value
//! that rises at once and falls slowly (KEP-1040, "Seat borrowing").

use std::time::Duration;
use tokio::time::Instant;

/// How often seats move between levels.
pub const PERIOD: Duration = Duration::from_secs(10);
/// The part of the smoothed demand that is left after a period; half is forgotten after about five minutes.
const REMEMBERED: f64 = 0.977;

/// Demand for seats.
pub struct Demand {
    value: f64,
    since: Instant,
    /// Sums over the period: seconds, value × seconds, value² × seconds.
    seconds: f64,
    first: f64,
    second: f64,
    high: f64,
    /// The peak of the last period.
    pub peak: f64,
    /// Demand to be met, in seats.
    pub smoothed: f64,
}

impl Demand {
    /// No demand from now on.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { value: 0.0, since: now, seconds: 0.0, first: 0.0, second: 0.0, high: 0.0, peak: 0.0, smoothed: 0.0 }
    }

    fn integrate(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        self.since = now;
        self.seconds += passed;
        self.first += passed * self.value;
        self.second += passed * self.value * self.value;
    }

    /// So many seats are wanted from now on.
    pub fn set(&mut self, value: f64, now: Instant) {
        self.integrate(now);
        self.value = value;
        self.high = self.high.max(value);
    }

    /// Ends `periods` periods at once: the numbers of the time since the last call replace those before.
    pub fn end_period(&mut self, periods: f64, now: Instant) {
        self.integrate(now);
        let average = if self.seconds > 0.0 { self.first / self.seconds } else { self.value };
        let square = if self.seconds > 0.0 { self.second / self.seconds } else { self.value * self.value };
        let envelope = average + (square - average * average).max(0.0).sqrt();
        let left = REMEMBERED.powf(periods.max(1.0));
        self.smoothed = envelope.max(left * self.smoothed + (1.0 - left) * envelope);
        self.peak = self.high;
        (self.seconds, self.first, self.second, self.high) = (0.0, 0.0, 0.0, self.value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_at_once_and_falls_slowly() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut d = Demand::new(start);
        d.set(10.0, start);
        d.set(0.0, at(5));
        d.end_period(1.0, at(10));
        // Half the time ten, half the time none: five on average, and five off it.
        assert!((d.smoothed - 10.0).abs() < 1e-9 && d.peak >= 10.0, "{}", d.smoothed);
        d.end_period(1.0, at(20));
        assert!((d.smoothed - 9.77).abs() < 1e-9 && d.peak < 1e-9, "{}", d.smoothed);
        d.end_period(30.0, at(320));
        assert!(d.smoothed < 5.0 && d.smoothed > 4.0, "{}", d.smoothed);
    }
}
