//! Where the time of a slow request went: annotations `apiserver.latency.k8s.io/…` of its last event.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Only requests that took longer are annotated, as upstream.
const SLOW: Duration = Duration::from_millis(500);
const PREFIX: &str = "apiserver.latency.k8s.io/";

/// A part of the way of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Finding out who asks.
    Authentication,
    /// Finding out whether the user may act as another.
    Impersonation,
    /// Waiting for others.
    QueueWait,
    /// Finding out whether the user may do it.
    Authorization,
    /// Asking mutating webhooks, all together.
    MutatingWebhooks,
    /// Asking validating webhooks, the slowest.
    ValidatingWebhooks,
    /// Storing.
    Storage,
}

impl Part {
    const fn key(self) -> &'static str {
        match self {
            Part::Authentication => "authentication",
            Part::Impersonation => "impersonation",
            Part::QueueWait => "apf-queue-wait",
            Part::Authorization => "authorization",
            Part::MutatingWebhooks => "mutating-webhook",
            Part::ValidatingWebhooks => "validating-webhook",
            Part::Storage => "etcd",
        }
    }
}

/// What is known of the time of a request.
pub(super) struct Times {
    began: Instant,
    parts: Mutex<BTreeMap<Part, Duration>>,
}

impl Times {
    /// The request has just come.
    pub(super) fn new() -> Self {
        Self { began: Instant::now(), parts: Mutex::default() }
    }

    /// Notes that a part took so long. What is done several times counts as often, but of what is done side by side the
    /// longest.
    pub(super) fn took(&self, part: Part, time: Duration) {
        let mut parts = self.parts.lock();
        let known = parts.entry(part).or_default();
        *known = match part {
            Part::ValidatingWebhooks | Part::Authorization | Part::QueueWait => time.max(*known),
            _ => *known + time,
        };
    }

    /// The annotations, if the request was slow.
    pub(super) fn annotations(&self) -> Vec<(String, String)> {
        let total = self.began.elapsed();
        let parts = self.parts.lock();
        if total <= SLOW || parts.is_empty() {
            return Vec::new();
        }
        let known = parts.iter().filter(|(_, time)| !time.is_zero()).map(|(part, time)| (part.key(), *time));
        known.chain([("total", total)]).map(|(key, time)| (format!("{PREFIX}{key}"), go_duration(time))).collect()
    }
}

/// A time as Go writes it: `1m0.5s`, `12.345678ms`.
#[must_use]
pub fn go_duration(time: Duration) -> String {
    let number = |whole: u64, fraction: u64, digits: usize| {
        let fraction = format!("{fraction:0digits$}");
        match fraction.trim_end_matches('0') {
            "" => whole.to_string(),
            rest => format!("{whole}.{rest}"),
        }
    };
    let nanos = u64::from(time.subsec_nanos());
    let seconds = time.as_secs();
    if seconds == 0 {
        return match nanos {
            0 => "0s".to_owned(),
            1..1_000 => format!("{nanos}ns"),
            1_000..1_000_000 => format!("{}µs", number(nanos / 1_000, nanos % 1_000, 3)),
            _ => format!("{}ms", number(nanos / 1_000_000, nanos % 1_000_000, 6)),
        };
    }
    let rest = number(seconds % 60, nanos, 9);
    match (seconds / 3600, seconds / 60 % 60) {
        (0, 0) => format!("{rest}s"),
        (0, minutes) => format!("{minutes}m{rest}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        let cases = [
            (0, "0s"),
            (17, "17ns"),
            (1_500, "1.5µs"),
            (12_345_678, "12.345678ms"),
            (500_000_000, "500ms"),
            (1_000_000_001, "1.000000001s"),
            (61_500_000_000, "1m1.5s"),
            (1_800_000_000_000, "30m0s"),
            (3_600_000_000_000, "1h0m0s"),
        ];
        for (nanos, want) in cases {
            assert_eq!(go_duration(Duration::from_nanos(nanos)), want);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_slow_requests_say_where_the_time_went() {
        let times = Times::new();
        let millis = Duration::from_millis;
        times.took(Part::MutatingWebhooks, millis(100));
        times.took(Part::MutatingWebhooks, millis(50));
        times.took(Part::ValidatingWebhooks, millis(70));
        times.took(Part::ValidatingWebhooks, millis(60));
        tokio::time::advance(millis(500)).await;
        assert_eq!(times.annotations(), []);
        tokio::time::advance(millis(1)).await;
        let told: Vec<String> = times.annotations().iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            told,
            [
                "apiserver.latency.k8s.io/mutating-webhook=150ms",
                "apiserver.latency.k8s.io/validating-webhook=70ms",
                "apiserver.latency.k8s.io/total=501ms"
            ]
        );
    }
}
