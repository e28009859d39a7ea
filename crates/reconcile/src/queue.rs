//! A work queue that holds each key once, works on each key in one place at a time, delays and backs off.

use crate::backoff::nth_delay;
use parking_lot::Mutex;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Debug;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Counters of a queue, under the names Kubernetes' metrics have (`workqueue_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Keys waiting now (`workqueue_depth`).
    pub depth: usize,
    /// Keys added so far (`workqueue_adds_total`).
    pub adds: u64,
    /// Keys added with back-off so far (`workqueue_retries_total`).
    pub retries: u64,
    /// For how long all that is being worked on has been (`workqueue_unfinished_work_seconds`).
    pub unfinished: Duration,
    /// The longest of it (`workqueue_longest_running_processor_seconds`).
    pub longest: Duration,
}

/// How long keys wait and are worked on; clones are one.
#[derive(Clone, Debug)]
pub struct Times {
    /// `workqueue_queue_duration_seconds`.
    pub waited: Histogram,
    /// `workqueue_work_duration_seconds`.
    pub worked: Histogram,
}

impl Times {
    fn new() -> Self {
        let buckets = || exponential_buckets(10e-9, 10.0, 10);
        Self { waited: Histogram::new(buckets()), worked: Histogram::new(buckets()) }
    }
}

trait Counted: Send + Sync {
    fn told(&self) -> (&'static str, QueueStats, Times);
}

/// Every queue of the process, for its metrics.
static QUEUES: Mutex<Vec<Weak<dyn Counted>>> = Mutex::new(Vec::new());

/// Names, counters and times of all queues of the process that are in use, in the order they were made.
#[must_use]
pub fn all_stats() -> Vec<(&'static str, QueueStats, Times)> {
    let queues: Vec<_> = QUEUES.lock().iter().filter_map(Weak::upgrade).collect();
    queues.iter().map(|q| q.told()).collect()
}

struct State<T> {
    ready: VecDeque<T>,
    /// Keys that wait, and since when.
    dirty: BTreeMap<T, Instant>,
    /// Keys that are worked on, and since when.
    processing: BTreeMap<T, Instant>,
    delayed: BTreeMap<T, Instant>,
    by_time: BTreeSet<(Instant, T)>,
    failures: BTreeMap<T, u32>,
    closed: bool,
    adds: u64,
    retries: u64,
}

struct Shared<T> {
    name: &'static str,
    times: Times,
    base: Duration,
    cap: Duration,
    state: Mutex<State<T>>,
    wake: Notify,
}

/// See the module. Cheap to clone; all clones are one queue.
pub struct Queue<T = String>(Arc<Shared<T>>);

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Ord + Clone + Debug + Send + 'static> Counted for Shared<T> {
    fn told(&self) -> (&'static str, QueueStats, Times) {
        (self.name, self.stats(), self.times.clone())
    }
}

impl<T: Ord + Clone> Shared<T> {
    fn stats(&self) -> QueueStats {
        let s = self.state.lock();
        let (depth, adds, retries) = (s.ready.len(), s.adds, s.retries);
        let now = Instant::now();
        let at_work = || s.processing.values().map(|since| now.saturating_duration_since(*since));
        QueueStats { depth, adds, retries, unfinished: at_work().sum(), longest: at_work().max().unwrap_or_default() }
    }
}

impl<T: Ord + Clone + Debug + Send + 'static> Queue<T> {
    /// A queue whose per-key back-off goes from 5 ms to 1000 s.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self::with_backoff(name, Duration::from_millis(5), Duration::from_secs(1000))
    }

    /// A queue with its own back-off.
    #[must_use]
    pub fn with_backoff(name: &'static str, base: Duration, cap: Duration) -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: BTreeMap::new(),
            processing: BTreeMap::new(),
            delayed: BTreeMap::new(),
            by_time: BTreeSet::new(),
            failures: BTreeMap::new(),
            closed: false,
            adds: 0,
            retries: 0,
        };
        let (state, wake) = (Mutex::new(state), Notify::new());
        let shared = Arc::new(Shared { name, times: Times::new(), base, cap, state, wake });
        let counted: Arc<dyn Counted> = shared.clone();
        let mut queues = QUEUES.lock();
        queues.retain(|q| q.strong_count() > 0);
        queues.push(Arc::downgrade(&counted));
        drop(queues);
        Self(shared)
    }

    /// The queue's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.name
    }

    /// Adds a key now. A key already waiting is not added again; one being worked on comes back when that is done.
    pub fn add(&self, key: T) {
        let mut s = self.0.state.lock();
        s.add(key);
        drop(s);
        self.0.wake.notify_one();
    }

    /// Adds a key after a while; where it is delayed already, the earlier time holds.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let at = Instant::now() + delay;
        let mut s = self.0.state.lock();
        if s.closed {
            return;
        }
        if let Some(known) = s.delayed.get(&key).copied() {
            if known <= at {
                return;
            }
            s.by_time.remove(&(known, key.clone()));
        }
        s.delayed.insert(key.clone(), at);
        s.by_time.insert((at, key));
        drop(s);
        self.0.wake.notify_one();
    }

    /// Adds a key after its back-off, which grows with each call until [`Queue::forget`].
    pub fn add_rate_limited(&self, key: T) {
        let mut s = self.0.state.lock();
        let n = s.failures.entry(key.clone()).or_default();
        let delay = nth_delay(self.0.base, self.0.cap, *n);
        *n = n.saturating_add(1);
        s.retries += 1;
        drop(s);
        self.add_after(key, delay);
    }

    /// Forgets a key's failures.
    pub fn forget(&self, key: &T) {
        self.0.state.lock().failures.remove(key);
    }

    /// How often a key has been added with back-off since it was last forgotten.
    #[must_use]
    pub fn failures(&self, key: &T) -> u32 {
        self.0.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// Takes the next key, waiting for one; None once the queue is closed. [`Queue::done`] must follow.
    pub async fn get(&self) -> Option<T> {
        loop {
            let next = {
                let mut s = self.0.state.lock();
                let now = Instant::now();
                while let Some((at, _)) = s.by_time.first() {
                    if *at > now {
                        break;
                    }
                    let (_, key) = s.by_time.pop_first().expect("looked at above");
                    s.delayed.remove(&key);
                    s.add(key);
                }
                if let Some(key) = s.ready.pop_front() {
                    if let Some(since) = s.dirty.remove(&key) {
                        self.0.times.waited.observe(now.saturating_duration_since(since).as_secs_f64());
                    }
                    s.processing.insert(key.clone(), now);
                    if !s.ready.is_empty() {
                        // One permit stands for any number of additions: pass it on.
                        self.0.wake.notify_one();
                    }
                    return Some(key);
                }
                if s.closed {
                    self.0.wake.notify_one();
                    return None;
                }
                s.by_time.first().map(|(at, _)| *at)
            };
            match next {
                None => self.0.wake.notified().await,
                Some(at) => tokio::select! {
                biased;
                        () = self.0.wake.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    },
            }
        }
    }

    /// Ends work on a key.
    pub fn done(&self, key: &T) {
        let mut s = self.0.state.lock();
        if let Some(since) = s.processing.remove(key) {
            self.0.times.worked.observe(since.elapsed().as_secs_f64());
        }
        if s.dirty.contains_key(key) {
            s.ready.push_back(key.clone());
            drop(s);
            self.0.wake.notify_one();
        }
    }

    /// Takes no more keys; what is ready is still handed out, what is delayed is dropped.
    pub fn close(&self) {
        let mut s = self.0.state.lock();
        s.closed = true;
        s.delayed.clear();
        s.by_time.clear();
        drop(s);
        self.0.wake.notify_one();
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> QueueStats {
        self.0.stats()
    }
}

impl<T: Ord + Clone> State<T> {
    fn add(&mut self, key: T) {
        if self.closed || self.dirty.contains_key(&key) {
            return;
        }
        self.dirty.insert(key.clone(), Instant::now());
        self.adds += 1;
        if !self.processing.contains_key(&key) {
            self.ready.push_back(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_once_and_returns_after_work_where_it_changed_meanwhile() {
        let q = Queue::new("t");
        q.add("a");
        q.add("a");
        q.add("b");
        assert_eq!(q.stats().depth, 2);
        assert_eq!(q.get().await, Some("a"));
        q.add("a");
        assert_eq!(q.get().await, Some("b"));
        assert_eq!(q.stats().depth, 0, "a is being worked on");
        q.done(&"a");
        assert_eq!(q.get().await, Some("a"));
        q.done(&"a");
        q.close();
        assert_eq!(q.get().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn delays_are_kept_and_the_earlier_one_wins() {
        let q = Queue::new("t");
        let start = Instant::now();
        q.add_after("late", Duration::from_secs(10));
        q.add_after("late", Duration::from_secs(20));
        q.add_after("early", Duration::from_secs(1));
        assert_eq!(q.get().await, Some("early"));
        assert_eq!(start.elapsed().as_secs(), 1);
        assert_eq!(q.get().await, Some("late"));
        assert_eq!(start.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn back_off_doubles_until_forgotten() {
        let q = Queue::new("t");
        let mut waits = Vec::new();
        for _ in 0..4 {
            let start = Instant::now();
            q.add_rate_limited("a");
            q.get().await;
            q.done(&"a");
            waits.push(start.elapsed().as_millis());
        }
        assert_eq!(waits, [5, 10, 20, 40]);
        assert_eq!(q.failures(&"a"), 4);
        q.forget(&"a");
        assert_eq!(q.failures(&"a"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn several_workers_share_all_keys() {
        let q: Queue<u32> = Queue::new("t");
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let q = q.clone();
                tokio::spawn(async move {
                    let mut n = 0;
                    while let Some(k) = q.get().await {
                        n += 1;
                        tokio::task::yield_now().await;
                        q.done(&k);
                    }
                    n
                })
            })
            .collect();
        (0..100).for_each(|k| q.add(k));
        tokio::time::sleep(Duration::from_secs(1)).await;
        q.close();
        let mut total = 0;
        for w in workers {
            total += w.await.unwrap();
        }
        assert_eq!(total, 100);
    }
}
