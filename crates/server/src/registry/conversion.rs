//! Objects of definitions whose versions a webhook converts. The caches hold them as they were stored; what a request is
//! shown, it is shown in its version, made when it is first asked for and kept beside the object in the cache. So a webhook
//! that is down fails the requests that need it, and nothing else.

use super::Registry;
use crate::crd;
use crate::watch_cache::{Entry, Event, EventType, Selectable, Selection, Snapshot};
use gantry_api::kind::{Object, Resource};
use gantry_api::meta::labels::Selector;
use gantry_api::meta::status::ApiError;
use serde_json::Value;
use std::sync::Arc;

/// Whether a webhook may have to be asked before an object of the resource can be shown.
pub(super) fn is_converted(resource: &dyn Resource) -> bool {
    crd::custom(resource).is_some_and(|c| c.converter().is_some())
}

/// What of a selection holds for an object in any version: its labels and fields may differ.
pub(super) fn of_any_version(selection: &Selection) -> Selection {
    Selection { labels: Selector::default(), fields: Vec::new(), ..selection.clone() }
}

impl Registry {
    /// A decoded object in the version of its resource.
    pub(super) async fn in_own_version(
        &self,
        resource: &dyn Resource,
        object: Box<dyn Object>,
    ) -> Result<Box<dyn Object>, ApiError> {
        let Some(custom) = crd::custom(resource).filter(|_| is_converted(resource)) else { return Ok(object) };
        let value = object.to_value();
        if value["apiVersion"] == resource.info().api_version() {
            return Ok(object);
        }
        let made = custom.convert(vec![value], &self.cluster()).await?;
        made.into_iter().next().ok_or_else(|| ApiError::internal("the conversion made nothing"))
    }

    /// An object as it is to be stored.
    pub(super) async fn encode(&self, resource: &dyn Resource, object: &dyn Object) -> Result<Vec<u8>, ApiError> {
        match crd::custom(resource).filter(|_| is_converted(resource)) {
            Some(custom) => custom.encode(object, &self.cluster()).await,
            None => Ok(resource.to_stored(object)),
        }
    }

    /// Cached objects in the version of their resource.
    pub(super) async fn shown(
        &self,
        resource: &dyn Resource,
        mut entries: Vec<Arc<Entry>>,
    ) -> Result<Vec<Arc<Entry>>, ApiError> {
        let Some(custom) = crd::custom(resource) else { return Ok(entries) };
        let waiting: Vec<Arc<Entry>> =
            entries.iter().filter(|e| e.is_foreign() && e.converted().is_none()).cloned().collect();
        if !waiting.is_empty() {
            let mut objects = Vec::with_capacity(waiting.len());
            for entry in &waiting {
                let mut object: Value = serde_json::from_slice(&entry.json()).map_err(ApiError::internal)?;
                if let Some(metadata) = object["metadata"].as_object_mut() {
                    metadata.remove("resourceVersion");
                }
                objects.push(object);
            }
            let made = custom.convert(objects, &self.cluster()).await?;
            for (entry, object) in waiting.iter().zip(made) {
                let selectable = Selectable::of(resource, object.as_ref());
                let (path, revision) = (entry.path(), entry.revision);
                entry.keep_converted(Entry::new(
                    path,
                    entry.event(),
                    &object.to_json(),
                    revision,
                    resource,
                    selectable,
                ));
            }
        }
        for entry in &mut entries {
            if let Some(converted) = entry.converted().cloned() {
                *entry = converted;
            }
        }
        Ok(entries)
    }

    /// A snapshot with its objects in the version of their resource.
    pub(super) async fn shown_snapshot(
        &self,
        resource: &dyn Resource,
        snapshot: Snapshot,
    ) -> Result<Snapshot, ApiError> {
        if !is_converted(resource) || !snapshot.iter_after("", "").any(|e| e.is_foreign()) {
            return Ok(snapshot);
        }
        let entries = snapshot.iter_after("", "").cloned().collect();
        Ok(Snapshot::of(self.shown(resource, entries).await?, snapshot.revision))
    }

    /// A change with both states in the version of their resource.
    pub(super) async fn shown_event(&self, resource: &dyn Resource, event: &Event) -> Result<Arc<Event>, ApiError> {
        let previous = match &event.previous {
            Some(previous) => self.shown(resource, vec![previous.clone()]).await?.pop(),
            None => None,
        };
        let entry = match (&previous, event.entry.event()) {
            // The last state at a later revision.
            (Some(previous), EventType::Deleted) => Arc::new(previous.tombstone(event.revision())),
            _ => self.shown(resource, vec![event.entry.clone()]).await?.pop().unwrap_or_else(|| event.entry.clone()),
        };
        Ok(Arc::new(Event::new(entry, previous)))
    }
}
