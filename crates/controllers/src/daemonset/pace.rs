//! How often a DaemonSet is looked at. Each look goes over all nodes and all its pods: were each of so many nodes that join,
//! or pods that turn ready, to bring one, they would take time with the square of their number. So after a look that found
//! nothing to do the next one waits, the longer the more nodes there are: what changes meanwhile is seen in one.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// The rest for each node: many times what a look takes for it.
const REST: Duration = Duration::from_micros(50);
/// The longest rest.
const LONGEST: Duration = Duration::from_secs(1);

/// Until when DaemonSets rest, by key.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<BTreeMap<String, Instant>>);

impl Pace {
    /// For how long it still rests.
    pub(super) fn left(&self, key: &str) -> Option<Duration> {
        let mut resting = self.0.lock();
        let left = resting.get(key)?.saturating_duration_since(Instant::now());
        if left.is_zero() {
            resting.remove(key);
            return None;
        }
        Some(left)
    }

    /// It rests after a look at so many nodes that found nothing to do.
    pub(super) fn rest(&self, key: &str, nodes: usize) {
        let rest = REST.saturating_mul(u32::try_from(nodes).unwrap_or(u32::MAX)).min(LONGEST);
        if rest >= Duration::from_millis(1) {
            self.0.lock().insert(key.to_owned(), Instant::now() + rest);
        }
    }

    /// The DaemonSet is gone.
    pub(super) fn forget(&self, key: &str) {
        self.0.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_more_nodes_the_longer_and_few_not_at_all() {
        let pace = Pace::default();
        pace.rest("few", 19);
        assert_eq!(pace.left("few"), None);
        for (nodes, ms) in [(20, 1), (2_000, 100), (20_000, 1_000), (1_000_000, 1_000)] {
            pace.rest("many", nodes);
            assert_eq!(pace.left("many"), Some(Duration::from_millis(ms)), "{nodes}");
        }
        tokio::time::advance(LONGEST).await;
        assert_eq!(pace.left("many"), None);
        pace.rest("many", 20);
        pace.forget("many");
        assert_eq!(pace.left("many"), None);
    }
}
