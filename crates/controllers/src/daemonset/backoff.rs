//! How long to wait before a node's failed pod is replaced, so that controller and node do not chase each other.

use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(15 * 60);

#[derive(Clone, Copy, Debug)]
struct Entry {
    delay: Duration,
    last: Timestamp,
}

/// Delays by node, per DaemonSet and generation: a changed DaemonSet starts afresh.
#[derive(Debug, Default)]
pub struct FailedPods(BTreeMap<(String, i64), BTreeMap<String, Entry>>);

fn since(last: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(last)).unwrap_or_default()
}

impl FailedPods {
    /// How long a failed pod on this node must still wait.
    #[must_use]
    pub fn left(&self, uid: &str, generation: i64, node: &str, now: Timestamp) -> Option<Duration> {
        let entry = self.0.get(&(uid.to_owned(), generation))?.get(node)?;
        entry.delay.checked_sub(since(entry.last, now)).filter(|d| !d.is_zero())
    }

    /// A failed pod on this node is replaced now.
    pub fn replaced(&mut self, uid: &str, generation: i64, node: &str, now: Timestamp) {
        // Of earlier generations nobody asks again.
        self.0.retain(|(u, g), _| u != uid || *g == generation);
        let nodes = self.0.entry((uid.to_owned(), generation)).or_default();
        // Forgotten after twice the longest delay.
        nodes.retain(|_, e| since(e.last, now) <= LONGEST * 2);
        let entry = nodes.entry(node.to_owned());
        let entry =
            entry.and_modify(|e| e.delay = (e.delay * 2).min(LONGEST)).or_insert(Entry { delay: FIRST, last: now });
        entry.last = now;
    }

    /// The DaemonSet is gone.
    pub fn forget(&mut self, uid: &str) {
        self.0.retain(|(u, _), _| u != uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn delays_double_and_are_forgotten() {
        let mut b = FailedPods::default();
        assert_eq!(b.left("u", 1, "n", at(0)), None);
        b.replaced("u", 1, "n", at(0));
        assert_eq!(b.left("u", 1, "n", at(0)), Some(FIRST));
        assert_eq!(b.left("u", 1, "n", at(1)), None);
        b.replaced("u", 1, "n", at(1));
        assert_eq!(b.left("u", 1, "n", at(1)), Some(FIRST * 2));
        assert_eq!(b.left("u", 1, "m", at(1)), None);
        assert_eq!(b.left("u", 2, "n", at(1)), None, "another generation");
        for _ in 0..20 {
            b.replaced("u", 1, "n", at(2));
        }
        assert_eq!(b.left("u", 1, "n", at(2)), Some(LONGEST));
        b.replaced("u", 1, "n", at(3 + 30 * 60));
        assert_eq!(b.left("u", 1, "n", at(3 + 30 * 60)), Some(FIRST));
        b.replaced("u", 2, "n", at(4 + 30 * 60));
        assert_eq!(b.left("u", 1, "n", at(4 + 30 * 60)), None);
        b.forget("u");
        assert!(b.0.is_empty());
    }
}
