//! The registry as the server's own parts see it.

use super::decoded::LIST_MAX;
use super::{Registry, key_of, path_of, unreadable};
use crate::cluster::ObjectSource;
use crate::watch_cache::Entry;
use async_trait::async_trait;
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use gantry_api::kind::{Object, Resource};
use gantry_api::meta::status::ApiError;
use std::sync::Arc;

fn decode(resource: &dyn Resource, entry: &Entry) -> Result<Arc<dyn Object>, ApiError> {
    let object = resource
        .decode(&entry.json())
        .map_err(|e| ApiError::internal(format!("cached {} {}: {e}", resource.info().qualified(), entry.path())))?;
    Ok(object.into())
}

impl Registry {
    /// The object of an entry, remembered for whoever asks next. What a learned resource makes of an entry may change.
    fn decoded(&self, resource: &dyn Resource, entry: &Arc<Entry>) -> Result<Arc<dyn Object>, ApiError> {
        if resource.learned().is_some() {
            return decode(resource, entry);
        }
        if let Some(object) = self.decoded.get(entry) {
            return Ok(object);
        }
        let object = decode(resource, entry)?;
        self.decoded.put(entry, &object);
        Ok(object)
    }
}

#[async_trait]
impl ObjectSource for Registry {
    async fn get(
        &self,
        resource: &'static dyn Resource,
        namespace: &str,
        name: &str,
        linearizable: bool,
    ) -> Result<Option<Arc<dyn Object>>, ApiError> {
        let cache = self.cache(resource)?;
        if linearizable {
            self.caught_up().await?;
        }
        let path = path_of(resource, namespace, name);
        let Some(entry) = cache.get(&path) else {
            let why = cache.unreadable(&path);
            return why.map_or(Ok(None), |why| Err(unreadable::of_object(&key_of(resource, namespace, name), &why)));
        };
        let shown = self.shown(resource, vec![entry]).await?;
        shown.first().map(|e| self.decoded(resource, e)).transpose()
    }

    async fn labels(
        &self,
        resource: &'static dyn Resource,
        namespace: &str,
        name: &str,
        keys: &[&str],
    ) -> Result<Option<Vec<Option<String>>>, ApiError> {
        let cache = self.cache(resource)?;
        let path = path_of(resource, namespace, name);
        let Some(entry) = cache.get(&path) else {
            let why = cache.unreadable(&path);
            return why.map_or(Ok(None), |why| Err(unreadable::of_object(&key_of(resource, namespace, name), &why)));
        };
        Ok(Some(keys.iter().map(|key| entry.label(key).map(str::to_owned)).collect()))
    }

    async fn list(&self, resource: &'static dyn Resource, namespace: &str) -> Result<Vec<Arc<dyn Object>>, ApiError> {
        self.check_readable(resource, namespace)?;
        let snapshot = self.shown_snapshot(resource, self.cache(resource)?.snapshot()).await?;
        let found = || snapshot.iter_after(namespace, "");
        match found().nth(LIST_MAX) {
            None => found().map(|e| self.decoded(resource, e)).collect(),
            Some(_) => found().map(|e| decode(resource, e)).collect(),
        }
    }

    async fn list_by_field(
        &self,
        resource: &'static dyn Resource,
        namespace: &str,
        field: &str,
        value: &str,
    ) -> Result<Vec<Arc<dyn Object>>, ApiError> {
        let cache = self.cache(resource)?;
        let Some(index) = cache.field_names.iter().position(|f| *f == field) else { return Ok(Vec::new()) };
        let snapshot = self.shown_snapshot(resource, cache.snapshot()).await?;
        self.check_readable(resource, namespace)?;
        // Only what matches is decoded.
        snapshot.iter_after(namespace, "").filter(|e| e.field(index) == value).map(|e| decode(resource, e)).collect()
    }

    fn served(&self) -> Vec<&'static dyn Resource> {
        let mut served = Vec::new();
        for cache in self.caches() {
            served.push(cache.resource);
        }
        served
    }

    fn generation(&self, resource: &'static dyn Resource) -> u64 {
        self.cache(resource).map_or(0, |c| c.generation())
    }

    async fn guaranteed_update(
        &self,
        resource: &'static dyn Resource,
        namespace: &str,
        name: &str,
        dry_run: bool,
        change: &mut (dyn for<'o> FnMut(&'o mut dyn Object) -> Result<(), ApiError> + Send),
    ) -> Result<Arc<dyn Object>, ApiError> {
        Ok(self.update_as_server(resource, namespace, name, dry_run, change).await?.into())
    }

    async fn create(
        &self,
        resource: &'static dyn Resource,
        object: Box<dyn Object>,
    ) -> Result<Arc<dyn Object>, ApiError> {
        Ok(self.create_as_server(resource, object).await?.into())
    }

    async fn delete(
        &self,
        resource: &'static dyn Resource,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
        dry_run: bool,
    ) -> Result<(), ApiError> {
        Registry::delete(self, resource, namespace, name, options, dry_run, None).await.map(drop)
    }
}
