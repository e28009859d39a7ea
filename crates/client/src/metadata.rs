//! Access to the metadata of any resource, known only at run time: what the garbage collector and the namespace controller
//! work with. The server is asked for `PartialObjectMetadata`, so that specs and statuses are not carried.

use crate::api::{DeleteParams, ListParams, ObjectList, Patch, PatchParams, WatchParams, WatchStream, encode};
use crate::frames::Item;
use crate::{Client, Error};
use bytes::Bytes;
use gantry_api::ObjectMeta;
use gantry_api::kind::Object;
use http::Method;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const PARTIAL_OBJECT: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
const PARTIAL_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";

/// How the server calls an object of which it sends only the metadata.
const API_VERSION: &str = "meta.k8s.io/v1";
const KIND: &str = "PartialObjectMetadata";

/// An object of which only type and metadata are known.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartialObject {
    /// `PartialObjectMetadata`'s own, or the object's where the server does not know that form.
    #[serde(default)]
    pub api_version: String,
    /// See `api_version`.
    #[serde(default)]
    pub kind: String,
    /// Object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
}

impl Item for PartialObject {
    fn read(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
    fn received(object: Arc<dyn Object>, bytes: &[u8], _: &dyn Fn() -> Bytes) -> Option<Self> {
        let meta = object.meta();
        let metadata = ObjectMeta {
            creation_timestamp: meta.creation_timestamp.clone(),
            deletion_grace_period_seconds: meta.deletion_grace_period_seconds,
            deletion_timestamp: meta.deletion_timestamp.clone(),
            finalizers: meta.finalizers.clone(),
            generate_name: meta.generate_name.clone(),
            generation: meta.generation,
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            owner_references: meta.owner_references.clone(),
            resource_version: meta.resource_version.clone(),
            self_link: meta.self_link.clone(),
            uid: meta.uid.clone(),
            ..ObjectMeta::default()
        };
        let slim = Self { api_version: API_VERSION.to_owned(), kind: KIND.to_owned(), metadata };
        debug_assert!(
            Self::read(bytes).is_ok_and(|mut read| {
                read.slim();
                read.metadata == slim.metadata
            }),
            "what was handed over is not what was written"
        );
        Some(slim)
    }
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn slim(&mut self) {
        // What is cached of every object there is are owners, finalizers and times.
        self.metadata.managed_fields = None;
        self.metadata.labels = None;
        self.metadata.annotations = None;
    }
}

/// Names a resource at run time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceRef {
    /// API group, empty for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural path segment.
    pub plural: String,
    /// Kind.
    pub kind: String,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
}

impl ResourceRef {
    /// `v1` or `apps/v1`.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `pods` or `deployments.apps`.
    #[must_use]
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }
}

/// Metadata access to one resource.
#[derive(Clone)]
pub struct MetadataApi {
    client: Client,
    resource: ResourceRef,
}

impl MetadataApi {
    /// Access to `resource`.
    #[must_use]
    pub fn new(client: Client, resource: ResourceRef) -> Self {
        Self { client, resource }
    }

    /// What it gives access to.
    #[must_use]
    pub fn resource(&self) -> &ResourceRef {
        &self.resource
    }

    fn path(&self, namespace: &str, name: Option<&str>) -> String {
        let r = &self.resource;
        let ns = (r.namespaced && !namespace.is_empty()).then_some(namespace);
        crate::path::of(&r.group, &r.version, &r.plural, ns, name, None)
    }

    fn undecodable(&self, namespace: &str, name: &str, e: &serde_json::Error) -> Error {
        Error::Decode { what: format!("{} {namespace}/{name}", self.resource.qualified()), message: e.to_string() }
    }

    /// Reads one object's metadata. `namespace` is ignored for cluster-scoped resources.
    ///
    /// # Errors
    /// `NotFound` where there is none; see [`Error`].
    pub async fn get(&self, namespace: &str, name: &str) -> Result<PartialObject, Error> {
        let path = self.path(namespace, Some(name));
        let response = self.client.send(Method::GET, &path, None, Some(PARTIAL_OBJECT), Bytes::new()).await?;
        let bytes = crate::read(response).await?;
        PartialObject::read(&bytes).map_err(|e| self.undecodable(namespace, name, &e))
    }

    /// Lists metadata in `namespace`, or everywhere where it is empty.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list(&self, namespace: &str, params: &ListParams) -> Result<ObjectList<PartialObject>, Error> {
        let path = params.query().on(&self.path(namespace, None));
        let response = self.client.send(Method::GET, &path, None, Some(PARTIAL_LIST), Bytes::new()).await?;
        crate::frames::list(&crate::read(response).await?, &self.resource.plural)
    }

    /// Watches metadata in all namespaces.
    ///
    /// # Errors
    /// See [`crate::Api::watch`].
    pub async fn watch(&self, params: &WatchParams) -> Result<WatchStream<PartialObject>, Error> {
        let path = params.query().on(&self.path("", None));
        let response = self.client.open(Method::GET, &path, Some(PARTIAL_OBJECT), Bytes::new()).await?;
        Ok(crate::frames::watch(response, self.resource.plural.clone()))
    }

    /// Patches an object; its metadata is returned.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn patch(&self, namespace: &str, name: &str, patch: &Patch) -> Result<PartialObject, Error> {
        let params = PatchParams::default();
        let path = params.query(patch, self.client.component()).on(&self.path(namespace, Some(name)));
        let (media, document) = patch.parts();
        let response =
            self.client.send(Method::PATCH, &path, Some(media), Some(PARTIAL_OBJECT), encode(document)).await?;
        PartialObject::read(&crate::read(response).await?).map_err(|e| self.undecodable(namespace, name, &e))
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete(&self, namespace: &str, name: &str, params: &DeleteParams) -> Result<(), Error> {
        let path = self.path(namespace, Some(name));
        self.client.call(Method::DELETE, &path, Some("application/json"), encode(&params.body())).await?;
        Ok(())
    }

    /// Deletes all objects of a namespace that `select` finds.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_collection(
        &self,
        namespace: &str,
        params: &DeleteParams,
        select: &ListParams,
    ) -> Result<(), Error> {
        let path = select.query().on(&self.path(namespace, None));
        self.client.call(Method::DELETE, &path, Some("application/json"), encode(&params.body())).await?;
        Ok(())
    }
}
