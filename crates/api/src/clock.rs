//! Wall-clock time that follows `tokio::time`, so that a paused runtime pauses it too.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// A clock that reads as a wall clock but advances with `tokio::time::Instant`.
///
/// Under paused time two runs from the same start read the same instants, which is what makes simulation
/// reproducible. Cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    base: Timestamp,
    origin: Instant,
}

impl Clock {
    /// A clock that reads `base` now. Must be called inside a tokio runtime whose time may be paused.
    #[must_use]
    pub fn starting_at(base: Timestamp) -> Self {
        Self { base, origin: Instant::now() }
    }

    /// The present moment, with full precision.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let elapsed = SignedDuration::try_from(self.origin.elapsed()).unwrap_or(SignedDuration::MAX);
        self.base.saturating_add(elapsed).unwrap_or(Timestamp::MAX)
    }

    /// The present moment as `metav1.Time`, truncated to whole seconds as the wire carries it.
    #[must_use]
    pub fn time(&self) -> Time {
        let now = self.now();
        Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
    }

    /// The present moment as `metav1.MicroTime`, truncated to microseconds as the wire carries it.
    #[must_use]
    pub fn micro_time(&self) -> MicroTime {
        let now = self.now();
        MicroTime(Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now))
    }
}
