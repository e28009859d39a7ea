//! What the server's own parts (authorizers, admission plugins, subresource handlers) may read: typed objects from the watch
//! caches, and writes that go through the registry under the server's own identity.

use async_trait::async_trait;
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_api::kind::{Kind, Object, Resource};
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use std::any::Any;
use std::sync::Arc;

/// Objects as the watch caches hold them now. Implemented by the registry.
#[async_trait]
pub trait ObjectSource: Send + Sync {
    /// The object in the cache, decoded; None where there is none. `linearizable` waits until the cache has seen every
    /// write acknowledged before the call.
    async fn get(
        &self,
        resource: &'static dyn Resource,
        namespace: &str,
        name: &str,
        linearizable: bool,
    ) -> Result<Option<Arc<dyn Object>>, ApiError>;
    /// All objects of a namespace, or of all where empty.
    async fn list(&self, resource: &'static dyn Resource, namespace: &str) -> Result<Vec<Arc<dyn Object>>, ApiError>;
    /// The objects of a namespace, or of all where empty, whose selectable field has this value.
    async fn list_by_field(
        &self,
        resource: &'static dyn Resource,
        namespace: &str,
        field: &str,
        value: &str,
    ) -> Result<Vec<Arc<dyn Object>>, ApiError> {
        let mut found = self.list(resource, namespace).await?;
        found.retain(|o| resource.selectable_fields(o.as_ref()).iter().any(|(f, v)| *f == field && v == value));
        Ok(found)
    }
    /// The values of these labels of an object, without decoding it where that can be; None where there is none.
    async fn labels(
        &self,
        resource: &'static dyn Resource,
        namespace: &str,
        name: &str,
        keys: &[&str],
    ) -> Result<Option<Vec<Option<String>>>, ApiError> {
        let found = self.get(resource, namespace, name, false).await?;
        Ok(found.map(|o| keys.iter().map(|key| o.meta().label(key).map(str::to_owned)).collect()))
    }
    /// The resources served.
    fn served(&self) -> Vec<&'static dyn Resource> {
        gantry_api::kinds::ALL.to_vec()
    }
    /// Other views (groups or versions) of the objects of a resource.
    fn views_of(&self, resource: &dyn Resource) -> Vec<&'static dyn Resource> {
        let own = resource.info();
        let mut found = self.served();
        found.retain(|r| {
            let i = r.info();
            let same = i.storage_group == own.storage_group && i.plural == own.plural;
            same && (i.group, i.version) != (own.group, own.version)
        });
        found
    }
    /// A counter that changes whenever an object of the resource changed; for caches derived from objects (RBAC rules).
    fn generation(&self, resource: &'static dyn Resource) -> u64;
    /// Reads, changes and writes an object until no conflict is left, through validation but without admission. `change`
    /// gets a mutable object of this resource and returns an error to give up. Returns the stored object.
    async fn guaranteed_update(
        &self,
        resource: &'static dyn Resource,
        namespace: &str,
        name: &str,
        dry_run: bool,
        change: &mut (dyn for<'o> FnMut(&'o mut dyn Object) -> Result<(), ApiError> + Send),
    ) -> Result<Arc<dyn Object>, ApiError>;
    /// Creates an object as the server itself (no admission).
    async fn create(
        &self,
        resource: &'static dyn Resource,
        object: Box<dyn Object>,
    ) -> Result<Arc<dyn Object>, ApiError>;
    /// Deletes an object at once or gracefully, as the delete verb does, with these options.
    async fn delete(
        &self,
        resource: &'static dyn Resource,
        namespace: &str,
        name: &str,
        options: &gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions,
        dry_run: bool,
    ) -> Result<(), ApiError>;
}

/// Handle to the cluster's state for the server's own parts. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    /// Cached objects.
    pub objects: Arc<dyn ObjectSource>,
    /// Time.
    pub clock: Clock,
    /// Chance.
    pub entropy: Entropy,
}

/// The registered resource of kind `K`.
#[must_use]
pub fn resource_of<K: Kind>() -> &'static dyn Resource {
    gantry_api::kinds::find(K::INFO.group, K::INFO.version, K::INFO.plural)
        .unwrap_or_else(|| panic!("{} is not in kinds::ALL", K::INFO.kind))
}

fn typed<K: Kind>(object: Arc<dyn Object>) -> Option<Arc<K>> {
    let object: Arc<dyn Any + Send + Sync> = object;
    object.downcast().ok()
}

impl Cluster {
    /// A typed object from the cache.
    ///
    /// # Errors
    /// Where the cache is not ready.
    pub async fn get<K: Kind>(&self, namespace: &str, name: &str) -> Result<Option<K>, ApiError> {
        let found = self.objects.get(resource_of::<K>(), namespace, name, false).await?;
        Ok(found.and_then(|o| gantry_api::kind::downcast::<K>(o.as_ref()).cloned()))
    }

    /// A typed object as the cache has it or, where that has none, has it after every write acknowledged before the call.
    /// Not a copy: for what is read with every write.
    ///
    /// # Errors
    /// Where the cache is not ready.
    pub async fn shared<K: Kind>(&self, namespace: &str, name: &str) -> Result<Option<Arc<K>>, ApiError> {
        let resource = resource_of::<K>();
        let mut found = self.objects.get(resource, namespace, name, false).await?;
        if found.is_none() {
            found = self.objects.get(resource, namespace, name, true).await?;
        }
        Ok(found.and_then(typed))
    }

    /// All typed objects of a namespace, or of all where empty; not copies.
    ///
    /// # Errors
    /// Where the cache is not ready.
    pub async fn list_shared<K: Kind>(&self, namespace: &str) -> Result<Vec<Arc<K>>, ApiError> {
        let found = self.objects.list(resource_of::<K>(), namespace).await?;
        Ok(found.into_iter().filter_map(typed).collect())
    }

    /// The values of these labels of an object from the cache.
    ///
    /// # Errors
    /// Where the cache is not ready.
    pub async fn labels<K: Kind>(
        &self,
        namespace: &str,
        name: &str,
        keys: &[&str],
    ) -> Result<Option<Vec<Option<String>>>, ApiError> {
        self.objects.labels(resource_of::<K>(), namespace, name, keys).await
    }

    /// A typed object, no older than any write acknowledged before the call.
    ///
    /// # Errors
    /// Where the cache is not ready.
    pub async fn get_latest<K: Kind>(&self, namespace: &str, name: &str) -> Result<Option<K>, ApiError> {
        let found = self.objects.get(resource_of::<K>(), namespace, name, true).await?;
        Ok(found.and_then(|o| gantry_api::kind::downcast::<K>(o.as_ref()).cloned()))
    }

    /// All typed objects of a namespace, or of all where empty.
    ///
    /// # Errors
    /// Where the cache is not ready.
    pub async fn list<K: Kind>(&self, namespace: &str) -> Result<Vec<K>, ApiError> {
        let found = self.objects.list(resource_of::<K>(), namespace).await?;
        Ok(found.iter().filter_map(|o| gantry_api::kind::downcast::<K>(o.as_ref()).cloned()).collect())
    }
}
