//! Plans: what a reconciler decided, as data; and the executor that carries them out.

use crate::error::Error;
use crate::events::{EventRecorder, EventType};
use bytes::Bytes;
use gantry_api::kind::{Kind, ResourceInfo};
use gantry_client::{Client, DeleteParams, Patch, resource_path};
use http::Method;
use k8s_openapi::api::core::v1::ObjectReference;
use serde_json::Value;
use std::time::Duration;

/// The object a write is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// API group.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Plural path segment.
    pub plural: &'static str,
    /// Namespace, empty for cluster-scoped kinds.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Target {
    /// The object of kind `K` with this name.
    #[must_use]
    pub fn of<K: Kind>(namespace: &str, name: &str) -> Self {
        let ResourceInfo { group, version, plural, .. } = K::INFO;
        Self { group, version, plural, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The object itself.
    #[must_use]
    pub fn object<K: Kind>(object: &K) -> Self {
        let m = object.meta();
        Self::of::<K>(m.namespace.as_deref().unwrap_or_default(), m.name.as_deref().unwrap_or_default())
    }

    fn path(&self, named: bool, subresource: Option<&str>) -> String {
        let ns = (!self.namespace.is_empty()).then_some(self.namespace.as_str());
        resource_path(self.group, self.version, self.plural, ns, named.then_some(self.name.as_str()), subresource)
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.plural)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        if self.namespace.is_empty() {
            write!(f, " {}", self.name)
        } else {
            write!(f, " {}/{}", self.namespace, self.name)
        }
    }
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Create; that it exists already is an error.
    Create(Target, Value),
    /// Create; that it exists already is as good.
    Ensure(Target, Value),
    /// Replace, under the resourceVersion in the body.
    Update(Target, Value),
    /// Replace the status, under the resourceVersion in the body.
    UpdateStatus(Target, Value),
    /// Strategic merge patch of the object or a subresource. That it is gone is as good.
    Patch {
        /// What.
        target: Target,
        /// Where not the object itself.
        subresource: Option<&'static str>,
        /// The patch.
        patch: Value,
    },
    /// Delete; that it is gone already is as good.
    Delete {
        /// What.
        target: Target,
        /// Only this one.
        uid: Option<String>,
        /// Seconds of grace.
        grace_period_seconds: Option<i64>,
    },
    /// Record an event.
    Event {
        /// About what.
        about: Box<ObjectReference>,
        /// Normal or warning.
        r#type: EventType,
        /// Machine-readable reason.
        reason: &'static str,
        /// The sentence a person reads.
        message: String,
    },
}

impl Action {
    /// Create `object`.
    #[must_use]
    pub fn create<K: Kind>(object: &K) -> Self {
        Self::Create(Target::object(object), object.to_value())
    }
    /// Create `object` unless there is one.
    #[must_use]
    pub fn ensure<K: Kind>(object: &K) -> Self {
        Self::Ensure(Target::object(object), object.to_value())
    }
    /// Replace by `object`.
    #[must_use]
    pub fn update<K: Kind>(object: &K) -> Self {
        Self::Update(Target::object(object), object.to_value())
    }
    /// Replace the status by `object`'s.
    #[must_use]
    pub fn update_status<K: Kind>(object: &K) -> Self {
        Self::UpdateStatus(Target::object(object), object.to_value())
    }
    /// Patch `object`.
    #[must_use]
    pub fn patch<K: Kind>(object: &K, patch: Value) -> Self {
        Self::Patch { target: Target::object(object), subresource: None, patch }
    }
    /// Patch the status of `object`.
    #[must_use]
    pub fn patch_status<K: Kind>(object: &K, patch: Value) -> Self {
        Self::Patch { target: Target::object(object), subresource: Some("status"), patch }
    }
    /// Delete `object`, and no later one of the same name.
    #[must_use]
    pub fn delete<K: Kind>(object: &K) -> Self {
        Self::Delete { target: Target::object(object), uid: object.meta().uid.clone(), grace_period_seconds: None }
    }
    /// Record an event about `object`.
    #[must_use]
    pub fn event<K: Kind>(object: &K, r#type: EventType, reason: &'static str, message: String) -> Self {
        Self::Event { about: Box::new(crate::events::reference(object)), r#type, reason, message }
    }
}

/// Steps in the order they are taken, and when to come back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The steps.
    pub actions: Vec<Action>,
    /// Come back after this long.
    pub requeue_after: Option<Duration>,
}

impl Plan {
    /// Adds a step.
    pub fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// Asks to come back after `delay`; the earliest request holds.
    pub fn requeue(&mut self, delay: Duration) {
        self.requeue_after = Some(self.requeue_after.map_or(delay, |d| d.min(delay)));
    }

    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }
}

/// Carries out the steps one after the other, stopping at the first failure.
///
/// # Errors
/// The first failure, named after its step.
pub async fn execute(client: &Client, recorder: &EventRecorder, plan: &Plan) -> Result<(), Error> {
    for action in &plan.actions {
        execute_action(client, recorder, action).await?;
    }
    Ok(())
}

/// Carries out one step.
///
/// # Errors
/// The failure, named after the step.
pub async fn execute_action(client: &Client, recorder: &EventRecorder, action: &Action) -> Result<(), Error> {
    const JSON: Option<&str> = Some("application/json");
    let bytes = |v: &Value| Bytes::from(v.to_string());
    let ignore = |r: Result<Bytes, gantry_client::Error>, reason: &str| match r {
        Err(e) if !reason.is_empty() && e.is(reason) => Ok(()),
        other => other.map(drop),
    };
    let (verb, target, result) = match action {
        Action::Create(t, body) => {
            let r = client.call(Method::POST, &t.path(false, None), JSON, bytes(body)).await;
            ("create", t, ignore(r, ""))
        }
        Action::Ensure(t, body) => {
            let r = client.call(Method::POST, &t.path(false, None), JSON, bytes(body)).await;
            ("create", t, ignore(r, "AlreadyExists"))
        }
        Action::Update(t, body) => {
            let r = client.call(Method::PUT, &t.path(true, None), JSON, bytes(body)).await;
            ("update", t, ignore(r, ""))
        }
        Action::UpdateStatus(t, body) => {
            let r = client.call(Method::PUT, &t.path(true, Some("status")), JSON, bytes(body)).await;
            ("update status of", t, ignore(r, ""))
        }
        Action::Patch { target, subresource, patch } => {
            let patch = Patch::Strategic(patch.clone());
            let (media, document) = patch.parts();
            let path = target.path(true, *subresource);
            let r = client.call(Method::PATCH, &path, Some(media), bytes(document)).await;
            ("patch", target, ignore(r, "NotFound"))
        }
        Action::Delete { target, uid, grace_period_seconds } => {
            let params = DeleteParams {
                precondition_uid: uid.clone(),
                grace_period_seconds: *grace_period_seconds,
                ..Default::default()
            };
            let r = client.call(Method::DELETE, &target.path(true, None), JSON, bytes(&params.body())).await;
            ("delete", target, ignore(r, "NotFound"))
        }
        Action::Event { about, r#type, reason, message } => {
            recorder.record(about, *r#type, reason, message);
            return Ok(());
        }
    };
    result.map_err(|e| Error::api(format!("{verb} {target}"), e))
}
