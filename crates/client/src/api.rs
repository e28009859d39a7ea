//! Typed access to one kind: [`Api<K>`].

use crate::query::Query;
use crate::{Client, Error, Item};
use bytes::Bytes;
use futures::stream::BoxStream;
use gantry_api::kind::Kind;
use http::Method;
use serde_json::{Value, json};
use std::marker::PhantomData;

/// Access to objects of kind `K`, in one namespace or in all.
#[derive(Clone)]
pub struct Api<K> {
    client: Client,
    namespace: Option<String>,
    kind: PhantomData<fn() -> K>,
}

/// Parameters of list and deletecollection.
#[derive(Clone, Debug, Default)]
pub struct ListParams {
    /// Label selector, query-string syntax.
    pub label_selector: Option<String>,
    /// Field selector, query-string syntax.
    pub field_selector: Option<String>,
    /// Page size, 0 for all at once.
    pub limit: u64,
    /// Continue token of the previous page.
    pub continue_token: Option<String>,
    /// `resourceVersion` to read at (`0` = any cached).
    pub resource_version: Option<String>,
}

/// Parameters of watch.
#[derive(Clone, Debug, Default)]
pub struct WatchParams {
    /// Label selector.
    pub label_selector: Option<String>,
    /// Field selector.
    pub field_selector: Option<String>,
    /// Start after this version; empty or `0` starts with synthetic ADDED events.
    pub resource_version: String,
    /// Server ends the watch after this many seconds.
    pub timeout_seconds: Option<u64>,
    /// Ask for bookmarks.
    pub bookmarks: bool,
    /// Stream the initial list as ADDED events, ended by an annotated bookmark (KEP-3157).
    pub send_initial_events: bool,
}

/// Parameters of create, update.
#[derive(Clone, Debug, Default)]
pub struct PostParams {
    /// Do not persist.
    pub dry_run: bool,
    /// For bindings: only where the node still has room.
    pub if_fits: Option<IfFits>,
    /// Field manager; the client's component name where absent.
    pub field_manager: Option<String>,
}

/// What a binding was decided on. The server compares what the node has left with what the pod asks for where somebody
/// else has bound a pod to it since.
#[derive(Clone, Debug, Default)]
pub struct IfFits {
    /// Who decided: a name that nobody else has.
    pub by: String,
    /// The version of all pods up to which was seen what happened; 0 to have it compared in any case.
    pub seen: u64,
}

/// Parameters of patch.
#[derive(Clone, Debug, Default)]
pub struct PatchParams {
    /// Do not persist.
    pub dry_run: bool,
    /// Field manager; required for apply (component name where absent).
    pub field_manager: Option<String>,
    /// Take over conflicting fields (apply only).
    pub force: bool,
}

/// Body of a patch.
#[derive(Clone, Debug)]
pub enum Patch {
    /// RFC 6902.
    Json(Value),
    /// RFC 7386.
    Merge(Value),
    /// Strategic merge.
    Strategic(Value),
    /// Server-side apply.
    Apply(Value),
}

/// Parameters of delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteParams {
    /// Seconds to wait for termination; 0 deletes at once.
    pub grace_period_seconds: Option<i64>,
    /// `Background`, `Foreground` or `Orphan`.
    pub propagation_policy: Option<String>,
    /// Only where the object has this UID.
    pub precondition_uid: Option<String>,
    /// Only where the object has this resourceVersion.
    pub precondition_resource_version: Option<String>,
    /// Do not persist.
    pub dry_run: bool,
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct ObjectList<K> {
    /// The objects.
    pub items: Vec<K>,
    /// The version the list is of.
    pub resource_version: String,
    /// Token for the next page, empty at the end.
    pub continue_token: String,
}

/// One event of a watch.
#[derive(Clone, Debug)]
pub enum WatchEvent<K> {
    /// Came into being (or into view).
    Added(K),
    /// Changed.
    Modified(K),
    /// Went away (or out of view); its last state.
    Deleted(K),
    /// All changes up to this version have been sent; `initial_events_end` marks the end of the initial list.
    Bookmark {
        /// The version.
        resource_version: String,
        /// Whether it ends the initial events.
        initial_events_end: bool,
    },
}

impl<K> WatchEvent<K> {
    /// The same event of the object in another form.
    pub fn map<T>(self, of: impl FnOnce(K) -> T) -> WatchEvent<T> {
        match self {
            WatchEvent::Added(k) => WatchEvent::Added(of(k)),
            WatchEvent::Modified(k) => WatchEvent::Modified(of(k)),
            WatchEvent::Deleted(k) => WatchEvent::Deleted(of(k)),
            WatchEvent::Bookmark { resource_version, initial_events_end } => {
                WatchEvent::Bookmark { resource_version, initial_events_end }
            }
        }
    }
}

/// A watch's events; ends when the server ends it. A failure is the last item.
pub type WatchStream<K> = BoxStream<'static, Result<WatchEvent<K>, Error>>;

impl Patch {
    /// The media type and the document.
    #[must_use]
    pub fn parts(&self) -> (&'static str, &Value) {
        match self {
            Patch::Json(v) => ("application/json-patch+json", v),
            Patch::Merge(v) => ("application/merge-patch+json", v),
            Patch::Strategic(v) => ("application/strategic-merge-patch+json", v),
            Patch::Apply(v) => ("application/apply-patch+yaml", v),
        }
    }
}

impl PostParams {
    pub(crate) fn query(&self) -> Query {
        let mut q = Query::default();
        if self.dry_run {
            q.push("dryRun", "All");
        }
        if let Some(IfFits { by, seen }) = &self.if_fits {
            q.push("ifFits", &seen.to_string());
            q.push("decidedBy", by);
        }
        q.push_some("fieldManager", self.field_manager.as_deref());
        q
    }
}

impl PatchParams {
    pub(crate) fn query(&self, patch: &Patch, component: &str) -> Query {
        let mut q = Query::default();
        if self.dry_run {
            q.push("dryRun", "All");
        }
        let apply = matches!(patch, Patch::Apply(_));
        q.push_some("fieldManager", self.field_manager.as_deref().or(apply.then_some(component)));
        if apply && self.force {
            q.push("force", "true");
        }
        q
    }
}

impl ListParams {
    pub(crate) fn query(&self) -> Query {
        let mut q = Query::default();
        q.push_some("labelSelector", self.label_selector.as_deref());
        q.push_some("fieldSelector", self.field_selector.as_deref());
        if self.limit > 0 {
            q.push("limit", &self.limit.to_string());
        }
        q.push_some("continue", self.continue_token.as_deref());
        q.push_some("resourceVersion", self.resource_version.as_deref());
        q
    }
}

impl WatchParams {
    pub(crate) fn query(&self) -> Query {
        let mut q = Query::default();
        q.push("watch", "true");
        q.push_some("labelSelector", self.label_selector.as_deref());
        q.push_some("fieldSelector", self.field_selector.as_deref());
        if !self.resource_version.is_empty() {
            q.push("resourceVersion", &self.resource_version);
        }
        if let Some(t) = self.timeout_seconds {
            q.push("timeoutSeconds", &t.to_string());
        }
        if self.bookmarks || self.send_initial_events {
            q.push("allowWatchBookmarks", "true");
        }
        if self.send_initial_events {
            q.push("sendInitialEvents", "true");
            q.push("resourceVersionMatch", "NotOlderThan");
        }
        q
    }
}

impl DeleteParams {
    /// The `DeleteOptions` body.
    #[must_use]
    pub fn body(&self) -> Value {
        let mut body = json!({"kind": "DeleteOptions", "apiVersion": "v1"});
        if let Some(g) = self.grace_period_seconds {
            body["gracePeriodSeconds"] = g.into();
        }
        if let Some(p) = &self.propagation_policy {
            body["propagationPolicy"] = p.as_str().into();
        }
        if let Some(u) = &self.precondition_uid {
            body["preconditions"]["uid"] = u.as_str().into();
        }
        if let Some(v) = &self.precondition_resource_version {
            body["preconditions"]["resourceVersion"] = v.as_str().into();
        }
        if self.dry_run {
            body["dryRun"] = json!(["All"]);
        }
        body
    }
}

pub(crate) fn encode(value: &Value) -> Bytes {
    Bytes::from(value.to_string())
}

/// What a delete answered.
#[derive(Clone, Debug)]
pub enum Deleted<K> {
    /// The object is gone.
    Gone,
    /// The object is on its way out (finalizers or a grace period hold it); its present state.
    Terminating(Box<K>),
}

impl<K: Kind> Api<K> {
    /// All namespaces (or a cluster-scoped kind).
    #[must_use]
    pub fn all(client: Client) -> Self {
        Self { client, namespace: None, kind: PhantomData }
    }

    /// One namespace.
    #[must_use]
    pub fn namespaced(client: Client, namespace: &str) -> Self {
        Self { client, namespace: Some(namespace.to_owned()), kind: PhantomData }
    }

    /// The client.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The namespace, if any.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The path of the collection (no name), an object (a name) or a subresource of it.
    #[must_use]
    pub fn path(&self, name: Option<&str>, subresource: Option<&str>) -> String {
        let i = K::INFO;
        let namespace = self.namespace.as_deref().filter(|_| i.namespaced);
        crate::path::of(i.group, i.version, i.plural, namespace, name, subresource)
    }

    fn what(&self, name: &str) -> String {
        match &self.namespace {
            Some(ns) => format!("{} {ns}/{name}", K::INFO.qualified()),
            None => format!("{} {name}", K::INFO.qualified()),
        }
    }

    fn decode<T: Kind>(&self, name: &str, bytes: &[u8]) -> Result<T, Error> {
        T::from_json(bytes).map_err(|e| Error::Decode { what: self.what(name), message: e.to_string() })
    }

    /// Reads one object.
    ///
    /// # Errors
    /// `NotFound` where there is none; see [`Error`].
    pub async fn get(&self, name: &str) -> Result<K, Error> {
        let bytes = self.client.call(Method::GET, &self.path(Some(name), None), None, Bytes::new()).await?;
        self.decode(name, &bytes)
    }

    /// Reads one object, None where there is none.
    ///
    /// # Errors
    /// See [`Error`]; `NotFound` is none.
    pub async fn get_opt(&self, name: &str) -> Result<Option<K>, Error> {
        match self.get(name).await {
            Ok(k) => Ok(Some(k)),
            Err(e) if e.is("NotFound") => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Reads one page (all objects where `limit` is 0).
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list(&self, params: &ListParams) -> Result<ObjectList<K>, Error> {
        self.list_as(params).await
    }

    /// [`Api::list`], each object read in another form.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_as<T: Item>(&self, params: &ListParams) -> Result<ObjectList<T>, Error> {
        let path = params.query().on(&self.path(None, None));
        let bytes = self.client.call(Method::GET, &path, None, Bytes::new()).await?;
        crate::frames::list(&bytes, K::INFO.plural)
    }

    /// Watches for changes.
    ///
    /// # Errors
    /// Where the watch could not be started; `Expired` or `Gone` where the version is no longer held.
    pub async fn watch(&self, params: &WatchParams) -> Result<WatchStream<K>, Error> {
        self.watch_as(params).await
    }

    /// [`Api::watch`], each object read in another form.
    ///
    /// # Errors
    /// As [`Api::watch`].
    pub async fn watch_as<T: Item>(&self, params: &WatchParams) -> Result<WatchStream<T>, Error> {
        let path = params.query().on(&self.path(None, None));
        let response = self.client.open(Method::GET, &path, None, Bytes::new()).await?;
        Ok(crate::frames::watch(response, K::INFO.plural.to_owned()))
    }

    /// Creates an object; the server's version of it is returned.
    ///
    /// # Errors
    /// `AlreadyExists`, `Invalid`, …; see [`Error`].
    pub async fn create(&self, params: &PostParams, object: &K) -> Result<K, Error> {
        let bytes = self.write(Method::POST, (None, None), params, object).await?;
        self.decode(object.meta().name.as_deref().unwrap_or("(generated)"), &bytes)
    }

    /// Replaces an object, under its own resourceVersion where it carries one.
    ///
    /// # Errors
    /// `Conflict` where it has changed since; see [`Error`].
    pub async fn update(&self, params: &PostParams, object: &K) -> Result<K, Error> {
        self.put(params, object, None).await
    }

    /// Replaces an object's status.
    ///
    /// # Errors
    /// `Conflict` where it has changed since; see [`Error`].
    pub async fn update_status(&self, params: &PostParams, object: &K) -> Result<K, Error> {
        self.put(params, object, Some("status")).await
    }

    async fn put(&self, params: &PostParams, object: &K, subresource: Option<&str>) -> Result<K, Error> {
        let name = object.meta().name.clone().unwrap_or_default();
        let bytes = self.write(Method::PUT, (Some(&name), subresource), params, object).await?;
        self.decode(&name, &bytes)
    }

    /// Sends `body` to the collection, an object or a subresource of it.
    async fn write<T: Kind>(
        &self,
        method: Method,
        (name, subresource): (Option<&str>, Option<&str>),
        params: &PostParams,
        body: &T,
    ) -> Result<Bytes, Error> {
        let path = params.query().on(&self.path(name, subresource));
        self.client.call(method, &path, Some("application/json"), body.to_json().into()).await
    }

    /// Patches an object.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn patch(&self, name: &str, params: &PatchParams, patch: &Patch) -> Result<K, Error> {
        self.patch_at(name, None, params, patch).await
    }

    /// Patches an object's status.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn patch_status(&self, name: &str, params: &PatchParams, patch: &Patch) -> Result<K, Error> {
        self.patch_at(name, Some("status"), params, patch).await
    }

    /// Patches a subresource that answers with the object itself (`status`, `ephemeralcontainers`, `resize`).
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn patch_subresource(
        &self,
        name: &str,
        subresource: &str,
        params: &PatchParams,
        patch: &Patch,
    ) -> Result<K, Error> {
        self.patch_at(name, Some(subresource), params, patch).await
    }

    async fn patch_at(&self, name: &str, sub: Option<&str>, params: &PatchParams, patch: &Patch) -> Result<K, Error> {
        let path = params.query(patch, self.client.component()).on(&self.path(Some(name), sub));
        let (media, document) = patch.parts();
        let bytes = self.client.call(Method::PATCH, &path, Some(media), encode(document)).await?;
        self.decode(name, &bytes)
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` where a precondition does not hold; see [`Error`].
    pub async fn delete(&self, name: &str, params: &DeleteParams) -> Result<Deleted<K>, Error> {
        let path = self.path(Some(name), None);
        let bytes = self.client.call(Method::DELETE, &path, Some("application/json"), encode(&params.body())).await?;
        if crate::frames::is_status(&bytes) {
            return Ok(Deleted::Gone);
        }
        Ok(Deleted::Terminating(Box::new(self.decode(name, &bytes)?)))
    }

    /// Deletes all objects that `select` finds.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_collection(&self, params: &DeleteParams, select: &ListParams) -> Result<(), Error> {
        let path = select.query().on(&self.path(None, None));
        self.client.call(Method::DELETE, &path, Some("application/json"), encode(&params.body())).await?;
        Ok(())
    }

    /// Reads a subresource that has its own kind (`scale`).
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get_subresource<T: Kind>(&self, name: &str, subresource: &str) -> Result<T, Error> {
        let path = self.path(Some(name), Some(subresource));
        let bytes = self.client.call(Method::GET, &path, None, Bytes::new()).await?;
        self.decode(name, &bytes)
    }

    /// Replaces a subresource that has its own kind (`scale`, a CSR's `approval`).
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn update_subresource<T: Kind>(
        &self,
        name: &str,
        subresource: &str,
        params: &PostParams,
        body: &T,
    ) -> Result<T, Error> {
        let bytes = self.write(Method::PUT, (Some(name), Some(subresource)), params, body).await?;
        self.decode(name, &bytes)
    }

    /// Posts to a subresource that answers with what was posted, filled in (`serviceaccounts/token`).
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create_subresource<T: Kind>(
        &self,
        name: &str,
        subresource: &str,
        params: &PostParams,
        body: &T,
    ) -> Result<T, Error> {
        let bytes = self.write(Method::POST, (Some(name), Some(subresource)), params, body).await?;
        self.decode(name, &bytes)
    }

    /// Posts to a subresource that answers with a `Status` (`pods/binding`, `pods/eviction`).
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn post_subresource<T: Kind>(
        &self,
        name: &str,
        subresource: &str,
        params: &PostParams,
        body: &T,
    ) -> Result<(), Error> {
        self.write(Method::POST, (Some(name), Some(subresource)), params, body).await?;
        Ok(())
    }
}
