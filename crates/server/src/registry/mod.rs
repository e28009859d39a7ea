//! The generic registry: reads from watch caches, writes through one ordered function, deletion with finalizers and grace.

mod conversion;
mod custom_body;
mod decoded;
pub mod delete;
mod device_access;
pub mod draft;
mod emptied;
pub mod expire;
pub mod hooks;
pub mod objects;
pub mod options;
pub mod read;
pub mod scale;
mod times;
pub(crate) mod unreadable;
mod versions;
pub mod watch;
pub mod write;

use crate::admission::Chain;
use crate::cluster::Cluster;
use crate::encryption::Encryption;
use crate::watch_cache::dispatch::prefix_of;
use crate::watch_cache::{Dispatcher, Halted, WatchCache, fresh};
use arc_swap::ArcSwap;
use bytes::Bytes;
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_api::kind::{Object, Resource, ResourceInfo};
use gantry_api::meta::status::ApiError;
use gantry_store::{KeyValue, Store, StoreError};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};
use unreadable::Unreadable;

/// Group, version and plural name.
type Gvr = (&'static str, &'static str, &'static str);

/// All served resources with their caches and the store behind them.
pub struct Registry {
    /// The store. Nothing outside the registry uses it.
    store: Arc<dyn Store>,
    /// How what is stored is encrypted.
    encryption: Encryption,
    /// The caches.
    dispatcher: Arc<Dispatcher>,
    /// Of what is in them, what the server's own parts have read lately.
    decoded: decoded::Decoded,
    /// The built-in kinds that are served.
    built_in: Vec<&'static dyn Resource>,
    /// Whether pods may refer to PodGroups.
    serves_pod_groups: bool,
    /// The caches by what they hold; those of custom resources come and go.
    caches: ArcSwap<HashMap<Gvr, Arc<WatchCache>>>,
    /// Time.
    pub clock: Clock,
    /// Chance.
    pub entropy: Entropy,
    admission: OnceLock<Arc<Chain>>,
    hooks: OnceLock<Vec<Arc<dyn hooks::Hook>>>,
    me: Weak<Registry>,
}

impl Registry {
    /// A registry over `store`; [`Registry::start`] fills its caches.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        encryption: Encryption,
        built_in: Vec<&'static dyn Resource>,
        clock: Clock,
        entropy: Entropy,
    ) -> Arc<Self> {
        let dispatcher = Arc::new(Dispatcher::new(store.clone(), encryption.clone(), built_in.iter().copied()));
        let caches = ArcSwap::from_pointee(by_gvr(&dispatcher));
        Arc::new_cyclic(|me| Self {
            store,
            encryption,
            dispatcher,
            decoded: decoded::Decoded::default(),
            serves_pod_groups: built_in
                .iter()
                .any(|r| (r.info().group, r.info().plural) == ("scheduling.k8s.io", "podgroups")),
            built_in,
            caches,
            clock,
            entropy,
            admission: OnceLock::new(),
            hooks: OnceLock::new(),
            me: me.clone(),
        })
    }

    /// Sets the plugins and hooks; they read the registry, so they are made after it.
    pub fn plug(&self, admission: Arc<Chain>, hooks: Vec<Arc<dyn hooks::Hook>>) {
        if self.admission.set(admission).is_err() || self.hooks.set(hooks).is_err() {
            tracing::error!("admission was set twice; the first stays");
        }
    }

    /// Fills the caches and keeps them current until `stop`.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub async fn start(&self, stop: tokio_util::sync::CancellationToken) -> Result<(), StoreError> {
        self.dispatcher.start(stop).await
    }

    /// The cache of a resource.
    ///
    /// # Errors
    /// 404 where the resource is not stored.
    pub fn cache(&self, resource: &dyn Resource) -> Result<Arc<WatchCache>, ApiError> {
        let i = resource.info();
        self.caches.load().get(&(i.group, i.version, i.plural)).cloned().ok_or_else(ApiError::no_such_path)
    }

    /// All caches.
    #[must_use]
    pub fn caches(&self) -> Vec<Arc<WatchCache>> {
        self.dispatcher.caches()
    }

    /// The served resource with this group, version and plural name, built in or learned.
    #[must_use]
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&'static dyn Resource> {
        // Most are stored; only reviews and their like have no cache.
        if let Some(cache) = self.caches.load().get(&(group, version, plural)) {
            return Some(cache.resource).filter(|r| is_served(*r));
        }
        let asked = |i: &ResourceInfo| i.group == group && i.version == version && i.plural == plural;
        self.built_in.iter().copied().find(|r| asked(r.info()))
    }

    /// The cache of a group, version and plural name, if objects are stored under it.
    #[must_use]
    pub fn cache_of(&self, group: &str, version: &str, plural: &str) -> Option<Arc<WatchCache>> {
        self.caches.load().get(&(group, version, plural)).cloned()
    }

    /// The built-in kinds that are served, in discovery's order within their group.
    #[must_use]
    pub fn built_in(&self) -> &[&'static dyn Resource] {
        &self.built_in
    }

    /// The resources served besides the built-in ones, by group, preferred version first.
    #[must_use]
    pub fn learned(&self) -> Vec<&'static dyn Resource> {
        let caches = self.caches.load();
        let mut out: Vec<_> =
            caches.values().map(|c| c.resource).filter(|r| r.learned().is_some() && is_served(*r)).collect();
        out.sort_by_cached_key(|r| {
            let i = r.info();
            (i.group, crate::crd::version_order(i.version), i.plural)
        });
        out
    }

    /// Serves these versions of the custom resource with this group and plural name, and no others; watches of it end, so
    /// that clients see what is served now.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub async fn serve(
        &self,
        group: &str,
        plural: &str,
        versions: Vec<&'static dyn Resource>,
    ) -> Result<(), StoreError> {
        self.dispatcher.replace(&format!("{group}/{plural}"), versions).await?;
        self.caches.store(Arc::new(by_gvr(&self.dispatcher)));
        Ok(())
    }

    /// How what is stored is encrypted.
    #[must_use]
    pub fn encryption(&self) -> &Encryption {
        &self.encryption
    }

    /// Shows what could not be decrypted and can be now; watches of its kind end, so that clients see it.
    ///
    /// # Errors
    /// Where the store cannot be read.
    pub async fn reread(&self) -> Result<(), StoreError> {
        if self.dispatcher.reread().await? {
            self.caches.store(Arc::new(by_gvr(&self.dispatcher)));
        }
        Ok(())
    }

    /// Whether the caches are filled and follow the store.
    #[must_use]
    pub fn is_following(&self) -> bool {
        self.dispatcher.is_following()
    }

    /// Bytes the store takes.
    #[must_use]
    pub fn store_size_bytes(&self) -> u64 {
        self.store.size_bytes()
    }

    /// The state of the cluster for the server's own parts.
    #[must_use]
    pub fn cluster(&self) -> Cluster {
        let me = self.me.upgrade().expect("the registry is alive while it is used");
        Cluster { objects: me, clock: self.clock, entropy: self.entropy.clone() }
    }

    /// The admission plugins.
    #[must_use]
    pub fn admission(&self) -> Arc<Chain> {
        self.admission.get().cloned().unwrap_or_default()
    }

    fn hooks_of(&self, info: &ResourceInfo) -> impl Iterator<Item = &Arc<dyn hooks::Hook>> {
        let target = (info.group, info.plural);
        self.hooks.get().into_iter().flatten().filter(move |h| h.resource() == target)
    }

    /// Resolves once the caches hold every write acknowledged so far.
    ///
    /// # Errors
    /// Where they never will, because they do not follow the store any more.
    pub async fn caught_up(&self) -> Result<(), Halted> {
        self.dispatcher.applied().reached(self.store.revision()).await
    }

    /// The revision of the last write.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.store.revision()
    }

    /// JSON as it is stored under a key.
    fn sealed(&self, resource: &dyn Resource, key: &str, json: &Bytes) -> Result<Bytes, ApiError> {
        self.encryption.of(resource).seal(key.as_bytes(), json).map_err(ApiError::internal)
    }

    /// Refuses to read a collection of which not everything can be read: it would look as if that were not there.
    fn check_readable(&self, resource: &dyn Resource, namespace: &str) -> Result<(), ApiError> {
        let unreadable = self.cache(resource)?.unreadable_in(namespace, unreadable::NAMED_MAX);
        if unreadable.is_empty() { Ok(()) } else { Err(unreadable::of_collection(resource, &unreadable)) }
    }

    /// The stored object, as it is now and not as the cache has it.
    async fn stored(&self, resource: &dyn Resource, namespace: &str, name: &str) -> Result<Option<Stored>, ApiError> {
        match self.look_up(resource, &key_of(resource, namespace, name)).await? {
            None => Ok(None),
            Some(Ok(stored)) => self.shown_in_own_version(resource, stored).await.map(Some),
            Some(Err(unreadable)) => Err(ApiError::internal(unreadable.why)),
        }
    }

    async fn shown_in_own_version(&self, resource: &dyn Resource, mut stored: Stored) -> Result<Stored, ApiError> {
        stored.object = self.in_own_version(resource, stored.object).await?;
        Ok(stored)
    }

    /// What is stored under a key as it is now, in the version it is stored in, or why it cannot be read.
    async fn look_up(
        &self,
        resource: &dyn Resource,
        key: &str,
    ) -> Result<Option<Result<Stored, Unreadable>>, ApiError> {
        let Some(mut kv) = self.store.get(key.as_bytes()).await.map_err(|e| store_error(key, &e))? else {
            return Ok(None);
        };
        let revision = kv.mod_revision;
        let transformer = self.encryption.of(resource);
        transformer.prepare(&kv.value).await;
        let stale = match transformer.open(&kv.key, &kv.value) {
            Ok((value, stale)) => {
                kv.value = value;
                stale
            }
            Err(why) => return Ok(Some(Err(Unreadable { revision, why: unreadable::untransformable(why) }))),
        };
        if let Some(object) = self.just_written(resource, &kv) {
            return Ok(Some(Ok(Stored { kv, object, stale })));
        }
        let decoded = Stored::decode(resource, kv, stale);
        Ok(Some(decoded.map_err(|e| Unreadable { revision, why: unreadable::undecodable(revision, e) })))
    }

    /// The object that a record holds, where that is one of the last writes and was not read yet.
    fn just_written(&self, resource: &dyn Resource, kv: &KeyValue) -> Option<Box<dyn Object>> {
        let cache = self.cache(resource).ok()?;
        let path = kv.key.strip_prefix(cache.prefix().as_bytes())?;
        let object = cache.fresh(std::str::from_utf8(path).ok()?, kv.mod_revision)?;
        debug_assert!(fresh::is_read_from(object.as_ref(), &kv.value), "what was kept is not what was written");
        Some(object)
    }
}

/// A version of a custom resource may be there for storage only.
fn is_served(resource: &dyn Resource) -> bool {
    crate::crd::custom(resource).is_none_or(crate::crd::CustomResource::is_served)
}

fn by_gvr(dispatcher: &Dispatcher) -> HashMap<Gvr, Arc<WatchCache>> {
    let gvr = |c: &WatchCache| {
        let i = c.resource.info();
        (i.group, i.version, i.plural)
    };
    dispatcher.caches().into_iter().map(|c| (gvr(&c), c)).collect()
}

/// The key of an object.
#[must_use]
pub fn key_of(resource: &dyn Resource, namespace: &str, name: &str) -> String {
    let mut key = prefix_of(resource);
    key.push_str(&path_of(resource, namespace, name));
    key
}

/// `namespace/name`, or the name alone at cluster scope.
#[must_use]
pub fn path_of(resource: &dyn Resource, namespace: &str, name: &str) -> String {
    if resource.info().namespaced { format!("{namespace}/{name}") } else { name.to_owned() }
}

/// An object with the store's record of it.
pub struct Stored {
    /// The record.
    pub kv: KeyValue,
    /// The object, with its resourceVersion.
    pub object: Box<dyn Object>,
    /// Whether it would be stored differently now: with another key, or encrypted at all.
    pub stale: bool,
}

impl Stored {
    fn decode(resource: &dyn Resource, kv: KeyValue, stale: bool) -> Result<Self, serde_json::Error> {
        let mut object = resource.decode(&kv.value)?;
        object.meta_mut().resource_version = Some(kv.mod_revision.to_string());
        Ok(Self { kv, object, stale })
    }
}

/// What a client is told of a failure of the store.
pub(crate) fn store_error(key: &str, error: &StoreError) -> ApiError {
    match error {
        StoreError::NoSpace { .. } | StoreError::Closed => {
            tracing::error!(key, error = %error, "store");
            ApiError::unavailable(format!("storage of {key}: {error}"))
        }
        _ => {
            tracing::error!(key, error = %error, "store");
            ApiError::internal(format!("storage of {key}: {error}"))
        }
    }
}
