//! Objects in memory, for tests of what reads the cluster through [`ObjectSource`].

use crate::cluster::{Cluster, ObjectSource};
use crate::config::ServerConfig;
use async_trait::async_trait;
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use gantry_api::kind::{Kind, Object, Resource};
use gantry_api::meta::status::ApiError;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

/// A configuration with keys and certificates of its own, made once per process.
pub fn config() -> &'static ServerConfig {
    static CONFIG: OnceLock<ServerConfig> = OnceLock::new();
    CONFIG.get_or_init(|| {
        let pair = || rcgen::KeyPair::generate().expect("a key");
        let key = pair();
        let cert = rcgen::CertificateParams::new(vec!["localhost".into()])
            .expect("a name")
            .self_signed(&key)
            .expect("a certificate");
        let admin = ("secret".into(), "admin".into(), "1".into(), vec!["system:masters".into()]);
        let (cert, signing_key) = (cert.pem(), pair().serialize_pem());
        let config = ServerConfig::in_process(&cert, &cert, &key.serialize_pem(), &signing_key);
        ServerConfig { static_tokens: vec![admin], ..config }
    })
}

type Key = (String, String, String);
/// Objects by qualified resource, namespace and name, and how often they changed.
type State = (BTreeMap<Key, Arc<dyn Object>>, u64);

/// A cluster of objects in memory.
#[derive(Default)]
pub struct MemoryObjects {
    state: Mutex<State>,
}

impl MemoryObjects {
    /// An empty cluster at a fixed time, and the objects to fill it through.
    pub fn cluster() -> (Cluster, Arc<Self>) {
        let objects = Arc::new(Self::default());
        let now = "2026-01-01T00:00:00Z".parse().expect("a valid time");
        let cluster = Cluster { objects: objects.clone(), clock: Clock::starting_at(now), entropy: Entropy::seeded(1) };
        (cluster, objects)
    }

    /// Decodes, defaults and keeps an object.
    pub fn put<K: Kind>(&self, value: serde_json::Value) -> K {
        let mut object = K::from_value(value).expect("an object of this kind");
        object.set_defaults();
        self.insert(&K::INFO.qualified(), Arc::new(object.clone()));
        object
    }

    fn insert(&self, resource: &str, object: Arc<dyn Object>) {
        let meta = object.meta();
        let key =
            (resource.to_owned(), meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
        let mut state = self.state.lock();
        state.0.insert(key, object);
        state.1 += 1;
    }
}

fn key(resource: &dyn Resource, namespace: &str, name: &str) -> Key {
    (resource.info().qualified(), namespace.to_owned(), name.to_owned())
}

#[async_trait]
impl ObjectSource for MemoryObjects {
    async fn get(
        &self,
        resource: &'static dyn Resource,
        namespace: &str,
        name: &str,
        _linearizable: bool,
    ) -> Result<Option<Arc<dyn Object>>, ApiError> {
        Ok(self.state.lock().0.get(&key(resource, namespace, name)).cloned())
    }

    async fn list(&self, resource: &'static dyn Resource, namespace: &str) -> Result<Vec<Arc<dyn Object>>, ApiError> {
        let wanted = resource.info().qualified();
        let state = self.state.lock();
        let found = state.0.iter().filter(|(k, _)| k.0 == wanted && (namespace.is_empty() || k.1 == namespace));
        Ok(found.map(|(_, o)| o.clone()).collect())
    }

    fn generation(&self, _resource: &'static dyn Resource) -> u64 {
        self.state.lock().1
    }

    async fn guaranteed_update(
        &self,
        resource: &'static dyn Resource,
        namespace: &str,
        name: &str,
        dry_run: bool,
        change: &mut (dyn for<'o> FnMut(&'o mut dyn Object) -> Result<(), ApiError> + Send),
    ) -> Result<Arc<dyn Object>, ApiError> {
        let info = resource.info();
        let not_found = || ApiError::not_found(info.group, info.plural, name);
        let current = self.get(resource, namespace, name, true).await?.ok_or_else(not_found)?;
        let mut next = current.boxed_clone();
        change(next.as_mut())?;
        let next: Arc<dyn Object> = next.into();
        if !dry_run {
            self.insert(&info.qualified(), next.clone());
        }
        Ok(next)
    }

    async fn create(
        &self,
        resource: &'static dyn Resource,
        object: Box<dyn Object>,
    ) -> Result<Arc<dyn Object>, ApiError> {
        let object: Arc<dyn Object> = object.into();
        let (info, meta) = (resource.info(), object.meta());
        let name = meta.name.clone().unwrap_or_default();
        let key = key(resource, meta.namespace.as_deref().unwrap_or_default(), &name);
        if self.state.lock().0.contains_key(&key) {
            return Err(ApiError::already_exists(info.group, info.plural, &name));
        }
        self.insert(&info.qualified(), object.clone());
        Ok(object)
    }

    async fn delete(
        &self,
        resource: &'static dyn Resource,
        namespace: &str,
        name: &str,
        _options: &DeleteOptions,
        dry_run: bool,
    ) -> Result<(), ApiError> {
        let info = resource.info();
        let mut state = self.state.lock();
        let k = key(resource, namespace, name);
        if !state.0.contains_key(&k) {
            return Err(ApiError::not_found(info.group, info.plural, name));
        }
        if !dry_run {
            state.0.remove(&k);
            state.1 += 1;
        }
        Ok(())
    }
}
