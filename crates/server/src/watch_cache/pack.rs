//! Packs what rests in the caches.

use super::{Dispatcher, Entry, EventType, WatchCache};
use gantry_api::packed::{self, Packing, WORTH_IT};
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
    /// Bytes of all that was held at the end of the last pass.
    bytes: AtomicUsize,
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
        let past = self.past(since);
        let mut fresh = false;
        let mut rests = |entry: &Arc<Entry>| {
            let text = entry.text();
            if text.is_packed() || entry.is_unlike_others() {
                return None;
            }
            fresh |= entry.revision > since;
            (entry.revision <= since).then(|| (entry.clone(), text))
        };
        let mut entries = snapshot.iter_after("", "").chain(&past);
        let mut packing = std::mem::take(&mut *self.rest.packing.lock());
        let next = |most| entries.by_ref().filter_map(&mut rests).take(most).collect::<Vec<_>>();
        let hold = |entry: Arc<Entry>, smaller| match smaller {
            Some(text) => entry.hold(text),
            None => entry.note_unlike_others(),
        };
        packing.pack(next, |tried| tried.into_iter().for_each(|(entry, smaller)| hold(entry, smaller))).await;
        *self.rest.packing.lock() = packing;
        self.rest.bytes.store(snapshot.iter_after("", "").chain(&past).map(|e| e.held()).sum(), Ordering::Relaxed);
        fresh
    }

    /// States that are no more but in the ring, of changes up to a revision. What was made of those for watchers of some of
    /// the objects is thrown away: these had it long since.
    fn past(&self, since: u64) -> Vec<Arc<Entry>> {
        let state = self.state.read();
        let rest = state.ring.iter().take_while(|event| event.revision() <= since);
        rest.flat_map(|event| {
            event.forget();
            let last = (event.entry.event() == EventType::Deleted).then(|| event.entry.clone());
            event.previous.clone().into_iter().chain(last)
        })
        .collect()
    }

    /// Bytes that the objects take, and what they were before as far as it is still told; of many as they were when it was
    /// last looked for what rests.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self.snapshot() {
            few if few.len() < WORTH_IT => few.iter_after("", "").map(|e| e.held()).sum(),
            _ => self.rest.bytes.load(Ordering::Relaxed),
        }
    }
}

impl Dispatcher {
    /// Packs what rests, from time to time while something changes, until `stop`.
    pub(super) async fn pack(self: Arc<Self>, stop: CancellationToken) {
        let applied = Mutex::new((0, 0));
        let pass = || async {
            let (before_last, last) = *applied.lock();
            *applied.lock() = (last, self.applied().get());
            // These caches have it all, and only they ask for what was before: shortly after, while they are filled.
            if let Err(error) = self.store.compact(before_last).await {
                tracing::warn!(%error, "the store does not forget what was");
            }
            let mut more = false;
            for cache in self.caches() {
                more |= cache.pack().await;
            }
            more
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = packed::rest(|| self.applied().changed_much(), pass) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{pod, pods, put};
    use super::super::{Next, Shown};
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
        tokio::time::timeout(packed::REST, cache.applied.changed_much()).await.unwrap();
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
        // So is the state before, which only those are told of who look at some of the objects.
        let left = FieldSelector::parse("spec.nodeName=a-node-of-some-name").unwrap();
        let left = cache.selection("", Selector::everything(), &left).unwrap();
        let (_, left) = cache.subscribe(left, Some(count)).unwrap();
        let Some(Next::Event(event, Shown::Deleted)) = left.try_next() else { panic!("it left the selection") };
        let frame = event.frame(Shown::Deleted);
        assert!(event.previous.as_ref().unwrap().text().is_packed() && frame.starts_with(b"{\"type\":\"DELETED\""));
        assert_eq!(
            (cache.past(count + 1).len(), event.reframed.lock().len()),
            (1, 0),
            "it is encoded when it is asked for"
        );
        assert_eq!(event.frame(Shown::Deleted), frame);
        assert!(cache.bytes() < before.iter().map(Bytes::len).sum(), "{} bytes", cache.bytes());
    }
}
