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
    /// Version of the latest object that was created.
    newest: u64,
}

impl Entry {
    fn is_open(&self) -> bool {
        (self.creations > 0 || !self.deletions.is_empty()) && self.at.elapsed() <= TIMEOUT
    }
}

/// Open expectations by controller key, and who lost what it had.
#[derive(Debug, Default)]
pub struct Expectations {
    open: Mutex<BTreeMap<String, Entry>>,
    lost: Mutex<BTreeSet<String>>,
}

impl Expectations {
    /// Sets what is expected for `key`: `creations` objects to appear and those with the names `deletions` to go.
    pub fn set(&self, key: &str, creations: usize, deletions: impl IntoIterator<Item = String>) {
        let entry = Entry {
            creations: i64::try_from(creations).unwrap_or(i64::MAX),
            deletions: deletions.into_iter().collect(),
            at: Instant::now(),
            newest: 0,
        };
        self.open.lock().insert(key.to_owned(), entry);
    }

    /// An object of `key` appeared, or will not because creating it failed.
    pub fn creation_observed(&self, key: &str) {
        if let Some(e) = self.open.lock().get_mut(key) {
            e.creations -= 1;
        }
    }

    /// The object `name` of `key` is going, or will not because deleting it failed.
    pub fn deletion_observed(&self, key: &str, name: &str) {
        if let Some(e) = self.open.lock().get_mut(key) {
            e.deletions.remove(name);
        }
    }

    /// The object `name` of `key` is going. Where it was not expected to, `key` has lost it.
    pub fn went(&self, key: &str, name: &str) {
        let expected = self.open.lock().get_mut(key).is_some_and(|e| e.deletions.remove(name));
        if !expected {
            self.lost(key);
        }
    }

    /// `key` has lost something.
    pub fn lost(&self, key: &str) {
        self.lost.lock().insert(key.to_owned());
    }

    /// Whether `key` has lost something since this was last asked.
    #[must_use]
    pub fn take_lost(&self, key: &str) -> bool {
        self.lost.lock().remove(key)
    }

    /// Whether `name` of `key` is expected to go.
    #[must_use]
    pub fn is_going(&self, key: &str, name: &str) -> bool {
        self.open.lock().get(key).is_some_and(|e| e.deletions.contains(name) && e.at.elapsed() <= TIMEOUT)
    }

    /// An object of `key` was created and has this version now.
    pub fn created(&self, key: &str, version: Option<&str>) {
        let version = version.and_then(|v| v.parse().ok()).unwrap_or(u64::MAX);
        if let Some(e) = self.open.lock().get_mut(key) {
            e.newest = e.newest.max(version);
        }
    }

    /// The cache tells of everything up to this version: whoever was created by then has appeared, or has gone again
    /// unseen. To be called while nothing is being created for `key`.
    pub fn caught_up(&self, key: &str, version: u64) {
        if let Some(e) = self.open.lock().get_mut(key).filter(|e| e.newest <= version) {
            e.creations = 0;
        }
    }

    /// Whether nothing is open for `key` (or it is open for so long that it is given up).
    #[must_use]
    pub fn satisfied(&self, key: &str) -> bool {
        self.open.lock().get(key).is_none_or(|e| !e.is_open())
    }

    /// After how long what is open for `key` is given up; None where nothing is open. Who waits for it looks again then:
    /// of what a watch lost no event tells.
    #[must_use]
    pub fn left(&self, key: &str) -> Option<Duration> {
        let open = self.open.lock();
        let entry = open.get(key).filter(|e| e.is_open())?;
        Some(TIMEOUT.saturating_sub(entry.at.elapsed()) + Duration::from_millis(1))
    }

    /// Nothing is expected for `key` any more: what was to be done was not.
    pub fn give_up(&self, key: &str) {
        self.open.lock().remove(key);
    }

    /// Forgets `key`, whose controller object is gone.
    pub fn forget(&self, key: &str) {
        self.open.lock().remove(key);
        self.lost.lock().remove(key);
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

    #[test]
    fn what_goes_and_was_not_to_is_lost() {
        let e = Expectations::default();
        e.set("k", 1, ["x".to_owned()]);
        e.went("k", "x");
        assert!(!e.take_lost("k"));
        e.went("k", "y");
        e.went("other", "x");
        e.give_up("k");
        assert!(e.satisfied("k") && e.take_lost("k") && !e.take_lost("k"));
        e.lost("k");
        e.forget("k");
        assert!(!e.take_lost("k") && e.take_lost("other"));
    }

    #[tokio::test(start_paused = true)]
    async fn who_came_and_went_unseen_is_not_waited_for() {
        let e = Expectations::default();
        e.set("k", 2, []);
        e.created("k", Some("7"));
        e.created("k", Some("9"));
        e.creation_observed("k");
        e.caught_up("k", 8);
        assert!(!e.satisfied("k"), "the second may come yet");
        assert_eq!(e.left("k"), Some(TIMEOUT + Duration::from_millis(1)));
        e.caught_up("k", 9);
        assert!(e.satisfied("k") && e.left("k").is_none());
        e.set("k", 1, ["x".to_owned()]);
        e.created("k", None);
        e.caught_up("k", 1000);
        e.deletion_observed("k", "x");
        assert!(!e.satisfied("k"), "it has no version");
        tokio::time::advance(e.left("k").unwrap()).await;
        assert!(e.satisfied("k") && e.left("k").is_none());
    }
}
