//! The generic registry: reads from watch caches, writes through one ordered function, deletion with finalizers and grace.

pub mod delete;
pub mod draft;
pub mod expire;
pub mod hooks;
pub mod objects;
pub mod options;
pub mod read;
pub mod scale;
pub mod watch;
pub mod write;

use crate::admission::Chain;
use crate::cluster::Cluster;
use crate::watch_cache::dispatch::prefix_of;
use crate::watch_cache::{Dispatcher, WatchCache};
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_api::kind::{Object, Resource, ResourceInfo};
use gantry_api::meta::status::ApiError;
use gantry_store::{KeyValue, Store, StoreError};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};

/// Group, version and plural name.
type Gvr = (&'static str, &'static str, &'static str);

/// All served resources with their caches and the store behind them.
pub struct Registry {
    /// The store. Nothing outside the registry uses it.
    store: Arc<dyn Store>,
    /// The caches.
    dispatcher: Arc<Dispatcher>,
    caches: HashMap<Gvr, Arc<WatchCache>>,
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
        resources: impl Iterator<Item = &'static dyn Resource>,
        clock: Clock,
        entropy: Entropy,
    ) -> Arc<Self> {
        let dispatcher = Arc::new(Dispatcher::new(store.clone(), resources));
        let caches = dispatcher
            .caches()
            .map(|c| {
                let info = c.resource.info();
                ((info.group, info.version, info.plural), c.clone())
            })
            .collect();
        Arc::new_cyclic(|me| Self {
            store,
            dispatcher,
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
    pub fn cache(&self, resource: &dyn Resource) -> Result<&Arc<WatchCache>, ApiError> {
        let i = resource.info();
        self.caches.get(&(i.group, i.version, i.plural)).ok_or_else(ApiError::no_such_path)
    }

    /// All caches.
    pub fn caches(&self) -> impl Iterator<Item = &Arc<WatchCache>> {
        self.dispatcher.caches()
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
    pub async fn caught_up(&self) -> u64 {
        let revision = self.store.revision();
        self.dispatcher.applied().reached(revision).await;
        revision
    }

    /// The revision of the last write.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.store.revision()
    }

    /// The stored object, as it is now and not as the cache has it.
    async fn stored(&self, resource: &dyn Resource, namespace: &str, name: &str) -> Result<Option<Stored>, ApiError> {
        let key = key_of(resource, namespace, name);
        let Some(kv) = self.store.get(key.as_bytes()).await.map_err(|e| store_error(&key, &e))? else {
            return Ok(None);
        };
        Ok(Some(Stored::decode(resource, kv)?))
    }
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
}

impl Stored {
    fn decode(resource: &dyn Resource, kv: KeyValue) -> Result<Self, ApiError> {
        let mut object = resource
            .decode(&kv.value)
            .map_err(|e| ApiError::internal(format!("stored object {}: {e}", String::from_utf8_lossy(&kv.key))))?;
        object.meta_mut().resource_version = Some(kv.mod_revision.to_string());
        Ok(Self { kv, object })
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
