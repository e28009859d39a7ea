//! Packs what rests in the caches.

use super::{Dispatcher, WatchCache};
use gantry_api::packed::{Packing, REST, WORTH_IT};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio_util::sync::CancellationToken;

/// What a cache knows of how it is used.
#[derive(Default)]
pub(super) struct Rest {
    /// Objects that lists have read since the last pass.
    read: AtomicUsize,
    /// The revision at the last pass: what is not newer has rested since.
    since: AtomicU64,
    packing: Mutex<Packing>,
}

impl WatchCache {
    /// Notes that a list is about to read so many objects. True where it is the second time since the last pass that as many
    /// are read as there are: then they are better kept as they are sent.
    pub fn is_read_often(&self, objects: usize) -> bool {
        let before = self.rest.read.fetch_add(objects, Ordering::Relaxed);
        let all = self.counts().0;
        let often = all >= WORTH_IT && before + objects >= 2 * all;
        if often {
            self.applied.note_much();
        }
        often
    }

    /// Packs what has not changed since the last pass, unless the whole is read often. False where nothing is left to do.
    async fn pack(&self) -> bool {
        let read = self.rest.read.swap(0, Ordering::Relaxed);
        let snapshot = self.snapshot();
        let since = self.rest.since.swap(snapshot.revision, Ordering::Relaxed);
        if snapshot.len() < WORTH_IT {
            return false;
        }
        if read >= 2 * snapshot.len() {
            return true;
        }
        let mut packing = std::mem::take(&mut *self.rest.packing.lock());
        let (mut fresh, mut batch) = (false, Vec::new());
        let mut entries = snapshot.iter_after("", "");
        loop {
            let entry = entries.next();
            if let Some(entry) = entry {
                let text = entry.text();
                if text.is_packed() {
                    continue;
                }
                if entry.revision > since {
                    fresh = true;
                    continue;
                }
                batch.push(entry);
                if !packing.note(batch.len() - 1, text) {
                    continue;
                }
            }
            for (number, text) in packing.pack().await {
                batch[number].hold(text);
            }
            batch.clear();
            if entry.is_none() {
                break;
            }
        }
        *self.rest.packing.lock() = packing;
        fresh
    }
}

impl Dispatcher {
    /// Packs what rests, from time to time while something changes, until `stop`.
    pub(super) async fn pack(self: Arc<Self>, stop: CancellationToken) {
        let work = async {
            loop {
                self.applied().changed_much().await;
                let mut more = true;
                while more {
                    tokio::time::sleep(REST).await;
                    more = false;
                    for cache in self.caches() {
                        more |= cache.pack().await;
                    }
                }
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = work => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{pod, pods, put};
    use super::super::{EventType, Next, Shown};
    use super::*;
    use bytes::Bytes;
    use gantry_api::meta::fields::FieldSelector;
    use gantry_api::meta::labels::Selector;

    /// Every object's frame, in order, and how many of them are packed.
    fn frames(cache: &WatchCache) -> (Vec<Bytes>, usize) {
        let snapshot = cache.snapshot();
        let packed = snapshot.iter_after("", "").filter(|e| e.text().is_packed()).count();
        (snapshot.iter_after("", "").map(|e| e.frame()).collect(), packed)
    }

    #[tokio::test]
    async fn what_rests_is_packed_and_what_is_read_often_is_not() {
        let cache = pods();
        let name = |n: u64| format!("some-deployment-{n:06}");
        for n in 1..WORTH_IT as u64 {
            put(&cache, n, EventType::Added, pod(&name(n), "a-node-of-some-name"));
        }
        assert!(!cache.pack().await && !cache.pack().await);
        assert_eq!(frames(&cache).1, 0, "too few");
        let count = WORTH_IT as u64 + 500;
        for n in WORTH_IT as u64..=count {
            put(&cache, n, EventType::Added, pod(&name(n), "a-node-of-some-name"));
        }
        tokio::time::timeout(REST, cache.applied.changed_much()).await.unwrap();
        assert!(cache.pack().await, "what is new does not rest yet");
        let (before, packed) = frames(&cache);
        assert!(packed < WORTH_IT, "{packed}");
        put(&cache, count + 1, EventType::Modified, pod(&name(7), "another-node"));
        assert!(cache.pack().await);
        let (after, packed) = frames(&cache);
        assert_eq!(packed, before.len() - 1);
        assert!(before.iter().zip(&after).enumerate().all(|(n, (a, b))| (n == 6) != (a == b)));
        let one = cache.get(&format!("ns/{}", name(9))).unwrap();
        let shown: serde_json::Value = serde_json::from_slice(&one.json()).unwrap();
        assert_eq!(shown["metadata"]["name"], name(9));
        assert!(one.frame().ends_with(&one.item_tail().iter().copied().chain(*b"}\n").collect::<Vec<_>>()));
        // Who resumes after a pause is told what was packed since.
        let everything = cache.selection("", Selector::everything(), &FieldSelector::default()).unwrap();
        let (_, late) = cache.subscribe(everything, Some(9)).unwrap();
        match late.try_next() {
            Some(Next::Event(event, Shown::AsIs)) => assert_eq!(event.frame(Shown::AsIs), before[9]),
            other => panic!("{other:?}"),
        }
        // Read twice between two passes, all of it is held as it is sent, until that stops.
        assert!(!cache.is_read_often(before.len()));
        assert!(cache.is_read_often(before.len()));
        for entry in cache.snapshot().iter_after("", "") {
            entry.unpack();
        }
        assert!(cache.pack().await);
        assert_eq!(frames(&cache), (after.clone(), 0));
        assert!(!cache.pack().await);
        assert_eq!(frames(&cache), (after, before.len()));
    }
}
