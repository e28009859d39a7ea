//! Shared caches fed by list and watch.
//!
//! An [`Informer`] lists once, watches from there, and after a broken or ended watch goes on from the last version it saw;
//! only where that version is no longer held does it list anew, and then tells the difference as changes. Handlers are
//! called one change at a time, in order, by the informer's own task: they map an object to queue keys and return. As
//! queues hold each key once, nothing is ever buffered beyond the number of objects, and no handler can miss a change.
//! Cached objects come without their managed fields ([`Item::slim`]). What is seldom asked for is held as the text it came
//! as ([`Store`]), which in one process is the API server's own memory, and packed once nothing has changed for a while.

use crate::backoff::Backoff;
use crate::store::{Index, Kept, Store, key_of};
use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use gantry_api::kind::Kind;
use gantry_api::packed;
use gantry_client::{
    Api, Client, Error, Item, ListParams, MetadataApi, ObjectList, PartialObject, ResourceRef, WatchEvent, WatchParams,
    WatchStream,
};
use parking_lot::Mutex;
use std::any::{Any, TypeId};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Objects are listed in pages of this many, so that no single answer grows without bound.
const PAGE: u64 = 1000;

/// A change of one object, as its cache saw it. An object that took the place of another of its name, unseen, is told as two.
#[derive(Clone, Debug)]
pub enum Change<T> {
    /// Came into being or into view.
    Added(Arc<T>),
    /// Changed.
    Modified {
        /// Before.
        old: Arc<T>,
        /// After.
        new: Arc<T>,
    },
    /// Went away or out of view; its last known state.
    Deleted(Arc<T>),
}

impl<T> Change<T> {
    /// The object after the change (its last state where it was deleted).
    #[must_use]
    pub fn object(&self) -> &Arc<T> {
        match self {
            Change::Added(o) | Change::Deleted(o) | Change::Modified { new: o, .. } => o,
        }
    }

    /// The object before the change, where there was one and it remains.
    #[must_use]
    pub fn old(&self) -> Option<&Arc<T>> {
        match self {
            Change::Modified { old, .. } => Some(old),
            _ => None,
        }
    }
}

type Handler<T> = Box<dyn Fn(&Change<T>) + Send + Sync>;

/// Where an informer lists and watches.
#[async_trait]
trait Source<T>: Send + Sync {
    async fn list(&self, page: ListParams) -> Result<ObjectList<Kept<T>>, Error>;
    async fn watch(&self, from: WatchParams) -> Result<WatchStream<Kept<T>>, Error>;
    fn name(&self) -> String;
}

struct Typed<K> {
    api: Api<K>,
    field_selector: Option<String>,
    label_selector: Option<String>,
}

#[async_trait]
impl<K: Kind> Source<K> for Typed<K> {
    async fn list(&self, page: ListParams) -> Result<ObjectList<Kept<K>>, Error> {
        let selectors = ListParams {
            field_selector: self.field_selector.clone(),
            label_selector: self.label_selector.clone(),
            ..page
        };
        self.api.list_as(&selectors).await
    }
    async fn watch(&self, from: WatchParams) -> Result<WatchStream<Kept<K>>, Error> {
        let selectors = WatchParams {
            field_selector: self.field_selector.clone(),
            label_selector: self.label_selector.clone(),
            ..from
        };
        self.api.watch_as(&selectors).await
    }
    fn name(&self) -> String {
        K::INFO.qualified()
    }
}

/// Keeps a text of what is known of the object only: the text it came as is that of all its metadata.
fn slimmed(mut object: PartialObject) -> Kept<PartialObject> {
    object.slim();
    Kept { json: serde_json::to_vec(&object).ok().map(Bytes::from), object: Arc::new(object) }
}

#[async_trait]
impl Source<PartialObject> for MetadataApi {
    async fn list(&self, page: ListParams) -> Result<ObjectList<Kept<PartialObject>>, Error> {
        let list = MetadataApi::list(self, "", &page).await?;
        Ok(ObjectList {
            items: list.items.into_iter().map(slimmed).collect(),
            resource_version: list.resource_version,
            continue_token: list.continue_token,
        })
    }
    async fn watch(&self, from: WatchParams) -> Result<WatchStream<Kept<PartialObject>>, Error> {
        let events = MetadataApi::watch(self, &from).await?;
        Ok(events.map(|event| event.map(|e| e.map(slimmed))).boxed())
    }
    fn name(&self) -> String {
        self.resource().qualified()
    }
}

struct Shared<T> {
    source: Box<dyn Source<T>>,
    store: Store<T>,
    handlers: Mutex<Vec<Handler<T>>>,
    /// Cancelled once the first list has been told. (A watch channel would wake those who wait in random order.)
    synced: CancellationToken,
    changes: watch::Sender<u64>,
    /// See [`Informer::version`].
    version: AtomicU64,
    watch_seconds: u64,
}

/// A cache of one kind, kept up to date by a watch. Cheap to clone; all clones are one cache.
pub struct Informer<T>(Arc<Shared<T>>);

impl<T> Clone for Informer<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Item> Informer<T> {
    fn new(source: Box<dyn Source<T>>, watch_seconds: u64) -> Self {
        Self(Arc::new(Shared {
            source,
            store: Store::default(),
            handlers: Mutex::new(Vec::new()),
            synced: CancellationToken::new(),
            changes: watch::Sender::new(0),
            version: AtomicU64::new(0),
            watch_seconds,
        }))
    }

    /// The cache.
    #[must_use]
    pub fn store(&self) -> &Store<T> {
        &self.0.store
    }

    /// The cached object of this name. `namespace` is empty for cluster-scoped kinds.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<T>> {
        self.0.store.get(namespace, name)
    }

    /// All cached objects, in key order.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<T>> {
        self.0.store.list()
    }

    /// See [`Store::index`].
    pub fn index(&self, name: &'static str, of: impl Fn(&T) -> Vec<String> + Send + Sync + 'static) -> Index<T> {
        self.0.store.index(name, of)
    }

    /// Calls `handler` for every object cached now (as added) and then for every change, in order. It runs in the
    /// informer's task: it must be quick, must not block and must not register handlers on the same informer.
    pub fn on_change(&self, handler: impl Fn(&Change<T>) + Send + Sync + 'static) {
        let mut handlers = self.0.handlers.lock();
        for object in self.0.store.list() {
            handler(&Change::Added(object));
        }
        handlers.push(Box::new(handler));
    }

    /// A counter that moves with every change, for those who rebuild from the whole cache.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// The version up to which handlers have been told of every change; 0 before the first list, and where the server's
    /// versions are no numbers.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.0.version.load(Ordering::Acquire)
    }

    fn told_up_to(&self, version: &str) {
        self.0.version.store(version.parse().unwrap_or(0), Ordering::Release);
    }

    fn apply(&self, changes: impl FnOnce(&Store<T>) -> [Option<Change<T>>; 2]) {
        let handlers = self.0.handlers.lock();
        let changes = changes(&self.0.store);
        if changes.iter().all(Option::is_none) {
            return;
        }
        for change in changes.iter().flatten() {
            for handler in &*handlers {
                handler(change);
            }
        }
        drop(handlers);
        self.0.changes.send_modify(|n| *n += 1);
    }

    fn put(&self, kept: Kept<T>) {
        let Kept { object, json } = kept;
        self.apply(|store| {
            let Some(old) = store.put_with(object.clone(), json) else { return [Some(Change::Added(object)), None] };
            let (before, after) = (old.metadata(), object.metadata());
            if before.uid != after.uid {
                // What happened between two lists: one object went, and another of its name came.
                return [Some(Change::Deleted(old)), Some(Change::Added(object))];
            }
            let same = before.resource_version == after.resource_version && before.resource_version.is_some();
            [(!same).then_some(Change::Modified { old, new: object }), None]
        });
    }

    fn remove(&self, key: &str, last: Option<Arc<T>>) {
        self.apply(|store| {
            let known = store.take(key);
            [last.or(known).map(Change::Deleted), None]
        });
    }

    /// Lists everything and tells the difference; returns the version.
    async fn relist(&self) -> Result<String, Error> {
        let mut page = ListParams { limit: PAGE, ..Default::default() };
        let mut seen = BTreeSet::new();
        loop {
            let list = self.0.source.list(page.clone()).await?;
            for object in list.items {
                seen.insert(key_of(&*object.object));
                self.put(object);
            }
            if list.continue_token.is_empty() {
                for key in self.0.store.keys() {
                    if !seen.contains(&key) {
                        self.remove(&key, None);
                    }
                }
                return Ok(list.resource_version);
            }
            page.continue_token = Some(list.continue_token);
        }
    }

    /// Watches from `version` until the watch ends, moving `version` along.
    async fn follow(&self, version: &mut String, progress: &mut bool) -> Result<(), Error> {
        let params = WatchParams {
            resource_version: version.clone(),
            timeout_seconds: Some(self.0.watch_seconds),
            bookmarks: true,
            ..Default::default()
        };
        let mut stream = self.0.source.watch(params).await?;
        while let Some(event) = stream.next().await {
            let seen = |o: &Kept<T>, v: &mut String| {
                if let Some(rv) = &o.object.metadata().resource_version {
                    v.clone_from(rv);
                }
            };
            match event? {
                WatchEvent::Added(o) | WatchEvent::Modified(o) => {
                    seen(&o, version);
                    self.put(o);
                }
                WatchEvent::Deleted(o) => {
                    seen(&o, version);
                    self.remove(&key_of(&*o.object), Some(o.object));
                }
                WatchEvent::Bookmark { resource_version, .. } => *version = resource_version,
            }
            self.told_up_to(version);
            *progress = true;
        }
        Ok(())
    }

    async fn run(self, cancel: CancellationToken) {
        let name = self.0.source.name();
        let mut backoff = Backoff::new(Duration::from_millis(800), Duration::from_secs(30));
        let work = async {
            loop {
                let mut version = match self.relist().await {
                    Ok(v) => v,
                    Err(e) if e.is("NotFound") => {
                        // A kind that is not served has no objects. It may be served again.
                        debug!(resource = %name, "not served");
                        for key in self.0.store.keys() {
                            self.remove(&key, None);
                        }
                        tokio::time::sleep(backoff.next_delay()).await;
                        continue;
                    }
                    Err(e) => {
                        warn!(resource = %name, error = %e, "cannot list");
                        tokio::time::sleep(backoff.next_delay()).await;
                        continue;
                    }
                };
                self.told_up_to(&version);
                self.0.synced.cancel();
                backoff.reset();
                loop {
                    let mut progress = false;
                    let end = self.follow(&mut version, &mut progress).await;
                    if progress {
                        backoff.reset();
                    }
                    match end {
                        Err(e) if e.is_expired() => {
                            debug!(resource = %name, %version, "version no longer held, listing anew");
                            break;
                        }
                        Err(e @ Error::Decode { .. }) => {
                            // The stream cannot be resumed past what cannot be read; listing shows whether it is still there.
                            warn!(resource = %name, error = %e, "cannot read watch");
                            tokio::time::sleep(backoff.next_delay()).await;
                            break;
                        }
                        Err(e) if e.is("NotFound") => {
                            debug!(resource = %name, "not served any more");
                            break;
                        }
                        Err(e) => {
                            warn!(resource = %name, error = %e, "watch broke");
                            tokio::time::sleep(backoff.next_delay()).await;
                        }
                        Ok(()) if progress => {}
                        Ok(()) => tokio::time::sleep(backoff.next_delay()).await,
                    }
                }
            }
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            () = work => {}
            () = packed::rest(|| self.0.store.changed_much(), || self.0.store.pack()) => {}
        }
    }
}

/// Something whose first list has or has not arrived.
#[async_trait]
pub trait Synced: Send + Sync {
    /// Whether the first list has been cached and handed to the handlers.
    fn has_synced(&self) -> bool;
    /// Returns once [`Synced::has_synced`].
    async fn synced(&self);
}

#[async_trait]
impl<T: Item> Synced for Informer<T> {
    fn has_synced(&self) -> bool {
        self.0.synced.is_cancelled()
    }
    async fn synced(&self) {
        self.0.synced.cancelled().await;
    }
}

/// Waits for all of `informers`; false where `cancel` came first.
pub async fn wait_synced(informers: &[&dyn Synced], cancel: &CancellationToken) -> bool {
    let all = async {
        for i in informers {
            i.synced().await;
        }
    };
    tokio::select! {
            biased;
        () = cancel.cancelled() => false,
        () = all => true,
    }
}

type InformerKey = (TypeId, String, String);

struct Registry {
    client: Client,
    state: Mutex<RegistryState>,
}

#[derive(Default)]
struct RegistryState {
    by_kind: HashMap<InformerKey, Box<dyn Any + Send>>,
    all: Vec<Arc<dyn Synced>>,
    waiting: Vec<Box<dyn FnOnce(CancellationToken) -> BoxFuture<'static, ()> + Send>>,
    started: Option<CancellationToken>,
}

/// The informers of one process and identity: each kind is cached once, whoever asks. Cheap to clone.
#[derive(Clone)]
pub struct Informers(Arc<Registry>);

impl Informers {
    /// Informers that list and watch through `client`.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self(Arc::new(Registry { client, state: Mutex::new(RegistryState::default()) }))
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.0.client
    }

    /// The cache of all objects of kind `K`. Begins when [`Informers::start`] is called, at once where it was before.
    #[must_use]
    pub fn get<K: Kind>(&self) -> Informer<K> {
        self.get_filtered(None, None)
    }

    /// The cache of those objects of kind `K` that the selectors (query-string syntax) find.
    #[must_use]
    pub fn get_filtered<K: Kind>(&self, field_selector: Option<&str>, label_selector: Option<&str>) -> Informer<K> {
        let key = (
            TypeId::of::<K>(),
            field_selector.unwrap_or_default().to_owned(),
            label_selector.unwrap_or_default().to_owned(),
        );
        self.obtain(key, || {
            Box::new(Typed::<K> {
                api: Api::all(self.0.client.clone()),
                field_selector: field_selector.map(str::to_owned),
                label_selector: label_selector.map(str::to_owned),
            })
        })
    }

    /// The cache of the metadata of a resource known at run time.
    #[must_use]
    pub fn metadata(&self, resource: &ResourceRef) -> Informer<PartialObject> {
        let key = (TypeId::of::<PartialObject>(), resource.qualified(), resource.version.clone());
        self.obtain(key, || Box::new(MetadataApi::new(self.0.client.clone(), resource.clone())))
    }

    fn obtain<T: Item>(&self, key: InformerKey, source: impl FnOnce() -> Box<dyn Source<T>>) -> Informer<T> {
        let mut state = self.0.state.lock();
        if let Some(known) = state.by_kind.get(&key) {
            return known.downcast_ref::<Informer<T>>().expect("the key holds the type").clone();
        }
        // Watches are renewed at different times, so that they do not all come back at once.
        let watch_seconds = 300 + (state.by_kind.len() as u64 * 37) % 300;
        let informer = Informer::new(source(), watch_seconds);
        state.by_kind.insert(key, Box::new(informer.clone()));
        state.all.push(Arc::new(informer.clone()));
        // Boxed, so that the runtime sees one type of task and not one for each kind.
        let run = informer.clone();
        let begin = move |cancel| run.run(cancel).boxed();
        match &state.started {
            Some(cancel) => {
                tokio::spawn(begin(cancel.clone()));
            }
            None => state.waiting.push(Box::new(begin)),
        }
        informer
    }

    /// Starts listing and watching, until `cancel`. Must be called inside a tokio runtime; calling again does nothing.
    pub fn start(&self, cancel: &CancellationToken) {
        let waiting = {
            let mut state = self.0.state.lock();
            if state.started.is_some() {
                return;
            }
            state.started = Some(cancel.clone());
            std::mem::take(&mut state.waiting)
        };
        for begin in waiting {
            tokio::spawn(begin(cancel.clone()));
        }
    }

    /// Waits until every informer asked for so far has its first list; false where `cancel` came first.
    pub async fn wait_synced(&self, cancel: &CancellationToken) -> bool {
        let all = self.0.state.lock().all.clone();
        let all: Vec<&dyn Synced> = all.iter().map(|s| &**s).collect();
        wait_synced(&all, cancel).await
    }
}

#[cfg(test)]
mod tests;
