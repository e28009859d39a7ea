//! Feeds the caches from the store.

use super::fresh::Fresh;
use super::{Applying, Entry, EventType, Selectable, WatchCache};
use crate::encryption::Encryption;
use crate::registry::unreadable::{undecodable, untransformable};
use arc_swap::ArcSwap;
use bytes::Bytes;
use gantry_api::kind::Resource;
use gantry_api::meta::status::ApiError;
use gantry_store::{Event, KeyValue, Range, Store, StoreError, WatchBatch};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Where all objects are stored.
pub const REGISTRY: &str = "/registry/";
/// Objects read from the store at a time while loading.
const LOAD_PAGE: usize = 1000;

/// The caches do not follow the store any more, and for want of what was written since cannot answer. With the cause.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("watch caches do not follow the store any more: {0}")]
pub struct Halted(pub String);

impl From<Halted> for ApiError {
    fn from(halted: Halted) -> Self {
        Self::internal(halted)
    }
}

/// The revision all caches have taken in.
#[derive(Default)]
pub struct Applied {
    revision: AtomicU64,
    changed: Notify,
    /// A cache with many objects has changed.
    much: Notify,
    /// Why there will be no further one.
    halted: OnceLock<String>,
}

impl Applied {
    /// The revision.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    fn advance(&self, revision: u64) {
        self.revision.fetch_max(revision, Ordering::AcqRel);
        self.changed.notify_waiters();
    }

    /// A cache holds much, and not only of what it held before.
    pub(super) fn note_much(&self) {
        self.much.notify_one();
    }

    /// Resolves once that was noted since the last time.
    pub(super) async fn changed_much(&self) {
        self.much.notified().await;
    }

    /// Nothing more will be applied. The first cause stays.
    fn halt(&self, cause: &str) {
        self.halted.get_or_init(|| cause.to_owned());
        self.changed.notify_waiters();
    }

    /// Resolves once `revision` has been applied.
    ///
    /// # Errors
    /// Where it will never be.
    pub async fn reached(&self, revision: u64) -> Result<(), Halted> {
        while self.get() < revision {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            // In this order: what was applied before the end counts.
            let halted = self.halted.get();
            if self.get() >= revision {
                break;
            }
            if let Some(cause) = halted {
                return Err(Halted(cause.clone()));
            }
            changed.await;
        }
        Ok(())
    }
}

type ByKey = HashMap<String, Arc<Vec<Arc<WatchCache>>>>;

/// From now on these resources, and no others, are served from the objects stored under a key.
struct Replace {
    key: String,
    resources: Vec<&'static dyn Resource>,
    done: oneshot::Sender<Result<(), StoreError>>,
}

/// All watch caches and the task that feeds them.
pub struct Dispatcher {
    pub(super) store: Arc<dyn Store>,
    encryption: Encryption,
    applied: Arc<Applied>,
    /// By `<group>/<plural>` of the key; two served resources may share stored objects.
    by_key: ArcSwap<ByKey>,
    /// Changes of what is served, for the one task that feeds the caches.
    replace: mpsc::UnboundedSender<Replace>,
    replaced: Mutex<Option<mpsc::UnboundedReceiver<Replace>>>,
    following: AtomicBool,
    /// What is known of objects on their way to the store, so that the one task that feeds the caches need not decode them
    /// again. By address of the value, which is kept alive so that no other can have the same.
    written: Mutex<HashMap<usize, (Bytes, Announced)>>,
}

/// What the caches need of an object that is about to be written.
pub struct Announced {
    /// What selectors look at.
    pub selectable: Selectable,
    /// The object itself, where somebody takes it so.
    pub fresh: Option<Fresh>,
}

/// Writes under way for which [`Dispatcher::announce`] keeps something; beyond, objects are decoded when they come back.
const ANNOUNCED_MAX: usize = 4096;

/// `/registry/<group-or-core>/<plural>/`.
#[must_use]
pub fn prefix_of(resource: &dyn Resource) -> String {
    let info = resource.info();
    let group = if info.storage_group.is_empty() { "core" } else { info.storage_group };
    format!("{REGISTRY}{group}/{}/", info.plural)
}

impl Dispatcher {
    /// Empty caches for every stored resource.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        encryption: Encryption,
        resources: impl Iterator<Item = &'static dyn Resource>,
    ) -> Self {
        let applied = Arc::new(Applied::default());
        let mut by_key: HashMap<String, Vec<Arc<WatchCache>>> = HashMap::new();
        for resource in resources.filter(|r| !r.info().virtual_only) {
            let prefix = prefix_of(resource);
            let key = prefix[REGISTRY.len()..prefix.len() - 1].to_owned();
            let transformer = encryption.of(resource);
            let cache = WatchCache::new(resource, prefix, applied.clone(), transformer);
            by_key.entry(key).or_default().push(Arc::new(cache));
        }
        let by_key: ByKey = by_key.into_iter().map(|(key, caches)| (key, Arc::new(caches))).collect();
        let (replace, replaced) = mpsc::unbounded_channel();
        Self {
            store,
            encryption,
            applied,
            by_key: ArcSwap::from_pointee(by_key),
            replace,
            replaced: Mutex::new(Some(replaced)),
            following: AtomicBool::new(false),
            written: Mutex::default(),
        }
    }

    /// The caches, in the order of their keys: where all their watches end, it matters to simulations which end first.
    #[must_use]
    pub fn caches(&self) -> Vec<Arc<WatchCache>> {
        let by_key = self.by_key.load();
        let mut caches: Vec<Arc<WatchCache>> = by_key.values().flat_map(|caches| caches.iter().cloned()).collect();
        caches.sort_by(|a, b| a.prefix().cmp(b.prefix()));
        caches
    }

    /// Replaces the caches of a key (`<group>/<plural>`) by new ones of these resources, filled with what is stored. Watches
    /// of the old ones end. Done by the task that feeds the caches, between two changes.
    ///
    /// # Errors
    /// Where the store cannot be read, or the caches do not follow it any more.
    pub async fn replace(&self, key: &str, resources: Vec<&'static dyn Resource>) -> Result<(), StoreError> {
        let (done, answer) = oneshot::channel();
        let sent = self.replace.send(Replace { key: key.to_owned(), resources, done });
        sent.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    /// Looks again at what could not be decrypted. Where it can be now, the caches that lack it are replaced.
    ///
    /// # Errors
    /// Where the store cannot be read, or the caches do not follow it any more.
    pub async fn reread(&self) -> Result<bool, StoreError> {
        let mut replaced = false;
        for (key, caches) in self.by_key.load_full().iter() {
            for cache in caches.iter() {
                if self.readable_again(cache).await? {
                    self.replace(key, caches.iter().map(|c| c.resource).collect()).await?;
                    replaced = true;
                    break;
                }
            }
        }
        Ok(replaced)
    }

    async fn readable_again(&self, cache: &WatchCache) -> Result<bool, StoreError> {
        for path in cache.unreadable_paths() {
            let key = format!("{}{path}", cache.prefix());
            if let Some(kv) = self.store.get(key.as_bytes()).await? {
                cache.transformer.prepare(&kv.value).await;
                if let Ok((json, _)) = cache.transformer.open(&kv.key, &kv.value)
                    && cache.resource.decode(&json).is_ok()
                {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    async fn take_replacement(&self, key: &str, resources: Vec<&'static dyn Resource>) -> Result<(), StoreError> {
        let new = |r: &'static dyn Resource| {
            Arc::new(WatchCache::new(r, prefix_of(r), self.applied.clone(), self.encryption.of(r)))
        };
        let caches: Vec<Arc<WatchCache>> = resources.into_iter().map(new).collect();
        if !caches.is_empty() {
            self.fill(key, &caches, self.applied.get()).await?;
        }
        let mut by_key = ByKey::clone(&self.by_key.load());
        let old = match caches.is_empty() {
            true => by_key.remove(key),
            false => by_key.insert(key.to_owned(), Arc::new(caches)),
        };
        self.by_key.store(Arc::new(by_key));
        for cache in old.iter().flat_map(|caches| caches.iter()) {
            cache.close_watchers();
        }
        Ok(())
    }

    /// Tells what the caches will need of a value that is about to be written.
    pub fn announce(&self, value: &Bytes, announced: Announced) {
        let mut written = self.written.lock();
        if written.len() < ANNOUNCED_MAX {
            written.insert(value.as_ptr().addr(), (value.clone(), announced));
        }
    }

    /// Takes back what was announced for a value that was not written, or finds it for one that was.
    pub fn announced(&self, value: &Bytes) -> Option<Announced> {
        self.written.lock().remove(&value.as_ptr().addr()).map(|(_, announced)| announced)
    }

    /// Whether the caches are filled and follow the store.
    #[must_use]
    pub fn is_following(&self) -> bool {
        self.following.load(Ordering::Acquire)
    }

    /// How far the caches have come.
    #[must_use]
    pub fn applied(&self) -> &Arc<Applied> {
        &self.applied
    }

    /// Fills the caches with what is stored, and then feeds them in a task of its own until `stop`.
    ///
    /// # Errors
    /// Where the store cannot be read or holds an object that cannot be decoded.
    pub async fn start(self: &Arc<Self>, stop: CancellationToken) -> Result<(), StoreError> {
        let revision = self.store.revision();
        let watch = self.store.watch(Bytes::from_static(REGISTRY.as_bytes()), Some(revision + 1)).await?;
        for (key, caches) in self.by_key.load().iter() {
            self.fill(key, caches, revision).await?;
        }
        self.applied.advance(revision);
        self.following.store(true, Ordering::Release);
        let replaced = self.replaced.lock().take();
        if let Some(replaced) = replaced {
            tokio::spawn(self.clone().pack(stop.clone()));
            tokio::spawn(self.clone().run(watch, replaced, stop));
        }
        Ok(())
    }

    /// Fills new caches with what is stored under their key at `revision`.
    async fn fill(&self, key: &str, caches: &[Arc<WatchCache>], revision: u64) -> Result<(), StoreError> {
        let prefix = format!("{REGISTRY}{key}/");
        let mut entries: Vec<Vec<Entry>> = caches.iter().map(|_| Vec::new()).collect();
        let mut start = None;
        loop {
            let range = Range {
                prefix: prefix.clone().into(),
                start: start.take(),
                limit: LOAD_PAGE,
                revision: Some(revision),
            };
            let page = self.store.range(range).await?;
            for kv in &page.items {
                for (cache, entries) in caches.iter().zip(&mut entries) {
                    cache.transformer.prepare(&kv.value).await;
                    entries.extend(entry_of(cache, kv, None).and_then(|applying| applying.entry));
                }
            }
            match page.items.last() {
                Some(last) if page.more => {
                    let mut next = last.key.to_vec();
                    next.push(0);
                    start = Some(next.into());
                }
                _ => break,
            }
        }
        for (cache, entries) in caches.iter().zip(entries) {
            cache.load(entries, revision);
        }
        Ok(())
    }

    async fn run(
        self: Arc<Self>,
        mut watch: Box<dyn gantry_store::Watch>,
        mut replaced: mpsc::UnboundedReceiver<Replace>,
        stop: CancellationToken,
    ) {
        // However this ends, nobody waits for what will not come.
        let following = Following(&self);
        let cause = loop {
            // In order: an unordered choice draws lots, and two runs from one seed would end differently.
            let batch = tokio::select! {
                biased;
                () = stop.cancelled() => break "the server has stopped".to_owned(),
                Some(Replace { key, resources, done }) = replaced.recv() => {
                    // Whoever asked may be gone; what is served changes all the same.
                    let _ = done.send(self.take_replacement(&key, resources).await);
                    continue;
                }
                batch = watch.next() => batch,
            };
            match batch {
                Ok(batch) => {
                    self.take(&batch);
                    self.applied.advance(batch.revision);
                }
                Err(StoreError::WatcherTooSlow) => {
                    // What was missed is still in the store's history unless compacted; resume where we are.
                    let from = self.applied.get() + 1;
                    match self.store.watch(Bytes::from_static(REGISTRY.as_bytes()), Some(from)).await {
                        Ok(resumed) => watch = resumed,
                        Err(e) => {
                            tracing::error!(error = %e, from, "watch caches cannot follow the store any more");
                            break e.to_string();
                        }
                    }
                }
                Err(e) => {
                    if !stop.is_cancelled() {
                        tracing::error!(error = %e, "watch caches cannot follow the store any more");
                    }
                    break e.to_string();
                }
            }
        };
        self.applied.halt(&cause);
        drop(following);
    }

    fn take(&self, batch: &WatchBatch) {
        let by_key = self.by_key.load();
        let key_of = |event: &Event| -> Option<(&Arc<Vec<Arc<WatchCache>>>, usize)> {
            let key = std::str::from_utf8(&event.key).ok()?.strip_prefix(REGISTRY)?;
            let group = key.find('/')?;
            let plural = group + 1 + key[group + 1..].find('/')?;
            by_key.get(&key[..plural]).map(|caches| (caches, REGISTRY.len() + plural + 1))
        };
        // Changes of one transaction that touch one resource are applied together, so that no snapshot splits them.
        let mut done = vec![false; batch.events.len()];
        for (i, event) in batch.events.iter().enumerate() {
            if done[i] {
                continue;
            }
            let Some((caches, prefix)) = key_of(event) else { continue };
            let mut together = vec![event];
            for (j, other) in batch.events.iter().enumerate().skip(i + 1) {
                if key_of(other).is_some_and(|(c, _)| Arc::ptr_eq(c, caches)) {
                    together.push(other);
                    done[j] = true;
                }
            }
            for cache in caches.iter() {
                let changes = together.iter().filter_map(|event| {
                    let announced = event.value.as_ref().and_then(|kv| self.announced(&kv.value));
                    change_of(cache, event, prefix, announced)
                });
                cache.apply(batch.revision, changes);
            }
        }
    }
}

/// While the task that feeds the caches runs.
struct Following<'a>(&'a Dispatcher);

impl Drop for Following<'_> {
    fn drop(&mut self) {
        self.0.following.store(false, Ordering::Release);
        self.0.applied.halt("the task that feeds them has failed");
        for cache in self.0.caches() {
            cache.close_watchers();
        }
    }
}

fn change_of(cache: &WatchCache, event: &Event, prefix: usize, announced: Option<Announced>) -> Option<Applying> {
    match &event.value {
        None => {
            let path = String::from_utf8_lossy(&event.key[prefix..]).into_owned();
            Some(Applying { path, entry: None, fresh: None })
        }
        Some(kv) => entry_of(cache, kv, announced),
    }
}

/// An object as the cache holds it. What cannot be decrypted or decoded is told to the cache.
fn entry_of(cache: &WatchCache, kv: &KeyValue, announced: Option<Announced>) -> Option<Applying> {
    let path = String::from_utf8_lossy(&kv.key[cache.prefix().len()..]).into_owned();
    let json = match cache.transformer.open(&kv.key, &kv.value) {
        Ok((json, _)) => json,
        Err(why) => {
            tracing::error!(key = %String::from_utf8_lossy(&kv.key), error = why, "stored object cannot be decrypted");
            cache.mark_unreadable(path, untransformable(why));
            return None;
        }
    };
    match decoded(cache, kv, &path, &json, announced) {
        Ok((entry, fresh)) => Some(Applying { path, entry: Some(entry), fresh }),
        Err(e) => {
            let key = String::from_utf8_lossy(&kv.key);
            tracing::error!(%key, error = %e, "stored object cannot be decoded");
            cache.mark_unreadable(path, undecodable(kv.mod_revision, e));
            None
        }
    }
}

fn decoded(
    cache: &WatchCache,
    kv: &KeyValue,
    path: &str,
    json: &Bytes,
    announced: Option<Announced>,
) -> Result<(Entry, Option<Fresh>), serde_json::Error> {
    let event = if kv.version == 1 { EventType::Added } else { EventType::Modified };
    let resource = cache.resource;
    // What is stored of a learned resource may lack defaults, or have what its schema does not know any more.
    let own =
        resource.learned().is_none() && json.get(1..).is_some_and(|v| v.starts_with(cache.type_prefix().as_bytes()));
    let entry = match announced.filter(|_| own) {
        Some(Announced { selectable, fresh }) => {
            let fresh = fresh.and_then(|fresh| fresh.at(kv.mod_revision));
            return Ok((Entry::new(path, event, json, kv.mod_revision, resource, selectable), fresh));
        }
        None => {
            let object = resource.decode(json)?;
            let selectable = Selectable::of(resource, object.as_ref());
            // An object written through another group or version that shares the storage is shown in this one's form.
            let foreign = if own { None } else { Some(object.to_json()) };
            let json = foreign.as_deref().unwrap_or(json);
            Entry::new(path, event, json, kv.mod_revision, resource, selectable)
        }
    };
    Ok((entry, None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::entropy::Entropy;
    use gantry_store::{MemoryStore, Range, RangeResult, Revision, Txn, TxnOutcome, Watch, Write};
    use std::time::Duration;

    /// Its watches fail once `broken` says why; everything else goes on.
    #[derive(Default)]
    struct Failing {
        inner: MemoryStore,
        broken: Arc<Mutex<Option<StoreError>>>,
        told: Arc<Notify>,
    }

    struct FailingWatch(Box<dyn Watch>, Arc<Mutex<Option<StoreError>>>, Arc<Notify>);

    #[async_trait::async_trait]
    impl Watch for FailingWatch {
        async fn next(&mut self) -> Result<WatchBatch, StoreError> {
            let batch = tokio::select! {
                biased;
                () = self.2.notified() => None,
                batch = self.0.next() => Some(batch),
            };
            match (self.1.lock().clone(), batch) {
                (None, Some(batch)) => batch,
                (why, _) => Err(why.unwrap_or(StoreError::Closed)),
            }
        }
    }

    #[async_trait::async_trait]
    impl Store for Failing {
        async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
            self.inner.txn(txn).await
        }
        async fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, StoreError> {
            self.inner.get(key).await
        }
        async fn range(&self, range: Range) -> Result<RangeResult, StoreError> {
            self.inner.range(range).await
        }
        async fn watch(&self, prefix: Bytes, from: Option<Revision>) -> Result<Box<dyn Watch>, StoreError> {
            let inner = self.inner.watch(prefix, from).await?;
            Ok(Box::new(FailingWatch(inner, self.broken.clone(), self.told.clone())))
        }
        fn revision(&self) -> Revision {
            self.inner.revision()
        }
        async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
            self.inner.compact(revision).await
        }
        fn size_bytes(&self) -> u64 {
            self.inner.size_bytes()
        }
    }

    async fn put(store: &Failing, key: &str) -> Revision {
        let object = Bytes::from_static(b"{\"metadata\":{\"name\":\"a\",\"namespace\":\"n\"}}");
        let writes = vec![Write::Put(format!("{REGISTRY}{key}").into(), object)];
        match store.txn(Txn { compares: Vec::new(), writes }).await.unwrap() {
            TxnOutcome::Applied(revision) => revision,
            failed @ TxnOutcome::Failed(_) => panic!("{failed:?}"),
        }
    }

    #[tokio::test]
    async fn nobody_waits_for_what_will_not_come() {
        let store = Arc::new(Failing::default());
        let pods = gantry_api::kinds::find("", "v1", "pods").unwrap();
        let plain = Encryption::none(Entropy::seeded(1));
        let dispatcher = Arc::new(Dispatcher::new(store.clone(), plain, std::iter::once(pods)));
        dispatcher.start(CancellationToken::new()).await.unwrap();
        let first = put(&store, "core/pods/n/a").await;
        dispatcher.applied().reached(first).await.unwrap();
        assert!(dispatcher.is_following());

        let waiting = {
            let applied = dispatcher.applied().clone();
            tokio::spawn(async move { applied.reached(first + 1).await })
        };
        *store.broken.lock() = Some(StoreError::Backend("disk on fire".into()));
        store.told.notify_one();
        let halted = tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap().unwrap().unwrap_err();
        let why = "watch caches do not follow the store any more: store backend: disk on fire";
        assert_eq!(halted.to_string(), why);
        assert!(!dispatcher.is_following());

        // Later comers are told as well; what was applied before is there.
        let second = put(&store, "core/pods/n/b").await;
        assert_eq!(dispatcher.applied().reached(second).await, Err(halted.clone()));
        assert_eq!(dispatcher.applied().reached(first).await, Ok(()));
        let told = ApiError::from(halted);
        assert_eq!((told.code, told.message), (500, format!("Internal error occurred: {why}")));
    }
}
