//! Exponential back-off per container or image, as `flowcontrol.Backoff` keeps it.

use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// First delay after a second failure.
pub(crate) const INITIAL: Duration = Duration::from_secs(10);
/// Longest delay.
pub(crate) const MAX: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy)]
struct Entry {
    delay: Duration,
    updated: Instant,
}

/// Delays by key. A key that rested for twice the longest delay starts anew.
#[derive(Debug, Default)]
pub(crate) struct Backoffs(HashMap<String, Entry>);

impl Backoffs {
    fn current(&self, key: &str, at: Instant) -> Option<&Entry> {
        self.0.get(key).filter(|e| at.saturating_duration_since(e.updated) <= 2 * MAX)
    }

    /// When the next try is due, where that lies after `now`; the failure was at `failed`.
    pub(crate) fn until(&self, key: &str, failed: Instant, now: Instant) -> Option<Instant> {
        let due = failed + self.current(key, failed)?.delay;
        (due > now).then_some(due)
    }

    /// The delay in force.
    pub(crate) fn delay(&self, key: &str) -> Duration {
        self.0.get(key).map_or(Duration::ZERO, |e| e.delay)
    }

    /// Counts a try that follows a failure at `failed`: the next one waits longer.
    pub(crate) fn advance(&mut self, key: &str, failed: Instant, now: Instant) {
        let delay = self.current(key, failed).map_or(INITIAL, |e| (e.delay * 2).min(MAX));
        self.0.insert(key.to_owned(), Entry { delay, updated: now });
    }

    /// Forgets a key.
    pub(crate) fn reset(&mut self, key: &str) {
        self.0.remove(key);
    }
}

/// A delay as Go prints it: `10s`, `1m20s`, `5m0s`.
pub(crate) fn go_duration(d: Duration) -> String {
    let total = d.as_secs();
    let (h, m, s) = (total / 3600, total / 60 % 60, total % 60);
    if d.as_nanos() == 0 {
        return "0s".into();
    }
    if total == 0 {
        let ms = d.as_secs_f64() * 1e3;
        return if ms >= 1.0 { format!("{}ms", trim(ms, 3)) } else { format!("{}µs", trim(ms * 1e3, 3)) };
    }
    let fraction = d.subsec_millis();
    let seconds = match fraction {
        0 => s.to_string(),
        f => format!("{s}.{f:03}").trim_end_matches('0').to_owned(),
    };
    match (h, m) {
        (0, 0) => format!("{seconds}s"),
        (0, m) => format!("{m}m{seconds}s"),
        (h, m) => format!("{h}h{m}m{seconds}s"),
    }
}

fn trim(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn first_retry_is_immediate_then_doubles_to_five_minutes() {
        let mut b = Backoffs::default();
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..8 {
            let failed = now;
            let due = b.until("c", failed, now).unwrap_or(now);
            waits.push((due - failed).as_secs());
            now = due;
            b.advance("c", failed, now);
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
        // Ten minutes of good health later it starts anew.
        let failed = now + 2 * MAX + Duration::from_secs(1);
        assert_eq!(b.until("c", failed, failed), None);
    }

    #[test]
    fn delays_read_as_in_go() {
        for (ms, text) in [
            (10_000, "10s"),
            (80_000, "1m20s"),
            (300_000, "5m0s"),
            (1_500, "1.5s"),
            (25, "25ms"),
            (3_600_000, "1h0m0s"),
        ] {
            assert_eq!(go_duration(Duration::from_millis(ms)), text);
        }
    }
}
