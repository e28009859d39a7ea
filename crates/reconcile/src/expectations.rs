//! Expectations: what a controller has done and its cache has not shown yet. While any are open the cache is known to be
//! stale and the controller must not act on counts.

use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// Expectations are given up after this long, in case a watch lost what they wait for.
const TIMEOUT: Duration = Duration::from_secs(5 * 60);

#[derive(Debug)]
struct Entry {
    creations: i64,
    deletions: BTreeSet<String>,
    at: Instant,
}

/// Open expectations by controller key.
#[derive(Debug, Default)]
pub struct Expectations(Mutex<BTreeMap<String, Entry>>);

impl Expectations {
    /// Sets what is expected for `key`: `creations` objects to appear and those with the names `deletions` to go.
    pub fn set(&self, key: &str, creations: usize, deletions: impl IntoIterator<Item = String>) {
        let entry = Entry {
            creations: i64::try_from(creations).unwrap_or(i64::MAX),
            deletions: deletions.into_iter().collect(),
            at: Instant::now(),
        };
        self.0.lock().insert(key.to_owned(), entry);
    }

    /// An object of `key` appeared, or will not because creating it failed.
    pub fn creation_observed(&self, key: &str) {
        if let Some(e) = self.0.lock().get_mut(key) {
            e.creations -= 1;
        }
    }

    /// The object `name` of `key` is going, or will not because deleting it failed.
    pub fn deletion_observed(&self, key: &str, name: &str) {
        if let Some(e) = self.0.lock().get_mut(key) {
            e.deletions.remove(name);
        }
    }

    /// Whether `name` of `key` is expected to go.
    #[must_use]
    pub fn is_going(&self, key: &str, name: &str) -> bool {
        self.0.lock().get(key).is_some_and(|e| e.deletions.contains(name) && e.at.elapsed() <= TIMEOUT)
    }

    /// Whether nothing is open for `key` (or it is open for so long that it is given up).
    #[must_use]
    pub fn satisfied(&self, key: &str) -> bool {
        self.0.lock().get(key).is_none_or(|e| (e.creations <= 0 && e.deletions.is_empty()) || e.at.elapsed() > TIMEOUT)
    }

    /// Forgets `key`, whose controller object is gone.
    pub fn forget(&self, key: &str) {
        self.0.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn satisfied_when_all_is_seen_or_time_is_up() {
        let e = Expectations::default();
        assert!(e.satisfied("k"));
        e.set("k", 2, ["x".to_owned()]);
        e.creation_observed("k");
        e.creation_observed("k");
        assert!(!e.satisfied("k"));
        e.deletion_observed("k", "other");
        assert!(!e.satisfied("k") && e.is_going("k", "x") && !e.is_going("k", "other"));
        e.deletion_observed("k", "x");
        assert!(e.satisfied("k") && !e.is_going("k", "x"));
        e.set("k", 1, []);
        tokio::time::advance(TIMEOUT + Duration::from_secs(1)).await;
        assert!(e.satisfied("k"));
    }
}
