//! Deletes what is in a namespace that is going, and then lets it go.

use crate::config::Setup;
use crate::discovery::{Discovered, discover};
use crate::pod_state;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::Time;
use gantry_api::kind::Kind;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, DeleteParams, ListParams, MetadataApi, PartialObject, PostParams, resource_path};
use gantry_reconcile::{Change, Controller, Error, Informer, Outcome, Queue, runner, wait_synced};
use http::Method;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, Pod};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 5;
/// The namespace's own finalizer, in `spec.finalizers`.
const FINALIZER: &str = "kubernetes";
/// How long to wait for objects that wait for someone else's finalizer.
const FINALIZER_ESTIMATE: i64 = 15;

/// What the controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&[""], &["namespaces"], &["delete", "get", "list", "watch"]),
    Rule::new(&[""], &["namespaces/finalize", "namespaces/status"], &["update"]),
    Rule::new(&["*"], &["*"], &["delete", "deletecollection", "get", "list"]),
    EVENTS,
];

struct Namespaces {
    namespaces: Informer<Namespace>,
    setup: Setup,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let namespaces = setup.informers.get::<Namespace>();
    let pods = setup.informers.get::<Pod>();
    let queue = Queue::new(setup.name);
    let q = queue.clone();
    namespaces.on_change(move |change| {
        if change.object().metadata.deletion_timestamp.is_some() && !matches!(change, Change::Deleted(_)) {
            q.add(change.object().metadata.name().to_owned());
        }
    });
    // Pods take their time to end; the last one brings the namespace back at once.
    let (q, all) = (queue.clone(), namespaces.store().clone());
    pods.on_change(move |change| {
        if let Change::Deleted(pod) = change
            && all.get("", pod.metadata.namespace()).is_some_and(|n| n.metadata.deletion_timestamp.is_some())
        {
            q.add(pod.metadata.namespace().to_owned());
        }
    });
    if !wait_synced(&[&namespaces], &setup.cancel).await {
        return;
    }
    let cancel = setup.cancel.clone();
    runner::run(Arc::new(Namespaces { namespaces, setup }), queue, WORKERS, cancel).await;
}

/// What was found while a namespace's content was deleted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// Group versions that could not be discovered, with the reason.
    pub undiscovered: Vec<(String, String)>,
    /// What could not be deleted.
    pub failures: Vec<String>,
    /// Objects that remain, by resource.
    pub remaining: BTreeMap<String, usize>,
    /// Objects that remain, by finalizer.
    pub finalizers: BTreeMap<String, usize>,
    /// Seconds until it may be worth looking again.
    pub estimate: i64,
}

impl Progress {
    /// Notes objects that remain in the resource `qualified`.
    pub fn note(&mut self, qualified: &str, objects: &[PartialObject], estimate: i64) {
        if objects.is_empty() {
            return;
        }
        *self.remaining.entry(qualified.to_owned()).or_default() += objects.len();
        for f in objects.iter().flat_map(|o| o.metadata.finalizers_or_empty()) {
            *self.finalizers.entry(f.clone()).or_default() += 1;
        }
        self.estimate = self.estimate.max(estimate);
    }

    fn is_finished(&self) -> bool {
        self.undiscovered.is_empty() && self.failures.is_empty() && self.remaining.is_empty()
    }

    /// The five conditions, as (type, status, reason, message).
    #[must_use]
    pub fn conditions(&self) -> [(&'static str, bool, &'static str, String); 5] {
        let list = |counts: &BTreeMap<String, usize>, middle: &str| {
            counts.iter().map(|(k, n)| format!("{k} {middle} {n} resource instances")).collect::<Vec<_>>().join(", ")
        };
        let discovery = if self.undiscovered.is_empty() {
            (false, "ResourcesDiscovered", "All resources successfully discovered".to_owned())
        } else {
            let why: Vec<String> = self.undiscovered.iter().map(|(g, e)| format!("{g}: {e}")).collect();
            let n = self.undiscovered.len();
            let m = format!(
                "Discovery failed for some groups, {n} failing: unable to retrieve the complete list of server APIs: {}",
                why.join(", ")
            );
            (true, "DiscoveryFailed", m)
        };
        let deletion = if self.failures.is_empty() {
            let m = "All content successfully deleted, may be waiting on finalization";
            (false, "ContentDeleted", m.to_owned())
        } else {
            let n = self.failures.len();
            let m = format!("Failed to delete all resource types, {n} remaining: {}", self.failures.join(", "));
            (true, "ContentDeletionFailed", m)
        };
        let remaining = if self.remaining.is_empty() {
            (false, "ContentRemoved", "All content successfully removed".to_owned())
        } else {
            let m = format!("Some resources are remaining: {}", list(&self.remaining, "has"));
            (true, "SomeResourcesRemain", m)
        };
        let finalizers = if self.finalizers.is_empty() {
            (false, "ContentHasNoFinalizers", "All content-preserving finalizers finished".to_owned())
        } else {
            let m = format!("Some content in the namespace has finalizers remaining: {}", list(&self.finalizers, "in"));
            (true, "SomeFinalizersRemain", m)
        };
        let parsed = "All legacy kube types successfully parsed".to_owned();
        [
            ("NamespaceDeletionDiscoveryFailure", discovery.0, discovery.1, discovery.2),
            ("NamespaceDeletionGroupVersionParsingFailure", false, "ParsedGroupVersions", parsed),
            ("NamespaceDeletionContentFailure", deletion.0, deletion.1, deletion.2),
            ("NamespaceContentRemaining", remaining.0, remaining.1, remaining.2),
            ("NamespaceFinalizersRemaining", finalizers.0, finalizers.1, finalizers.2),
        ]
    }
}

/// The namespace with phase `Terminating` and the conditions of `progress`; None where nothing changes.
#[must_use]
pub fn with_status(namespace: &Namespace, progress: &Progress, now: &Time) -> Option<Namespace> {
    let mut changed = namespace.clone();
    let status = changed.status.get_or_insert_default();
    status.phase = Some("Terminating".into());
    let conditions = status.conditions.get_or_insert_default();
    for (r#type, on, reason, message) in progress.conditions() {
        let value = if on { "True" } else { "False" };
        let fresh = NamespaceCondition {
            type_: r#type.to_owned(),
            status: value.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(now.clone()),
        };
        match conditions.iter_mut().find(|c| c.type_ == r#type) {
            Some(c) if c.status == value && c.reason == fresh.reason && c.message == fresh.message => {}
            Some(c) => {
                let since =
                    if c.status == value { c.last_transition_time.clone() } else { fresh.last_transition_time.clone() };
                *c = NamespaceCondition { last_transition_time: since, ..fresh };
            }
            None => conditions.push(fresh),
        }
    }
    (changed.status != namespace.status).then_some(changed)
}

#[async_trait]
impl Controller for Namespaces {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(namespace) = self.namespaces.get("", key) else { return Ok(Outcome::done()) };
        let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.clone()).unwrap_or_default();
        if namespace.metadata.deletion_timestamp.is_none() || finalizers.is_empty() {
            return Ok(Outcome::done());
        }
        let api = Api::<Namespace>::all(self.setup.client.clone());
        let mut namespace = (*namespace).clone();
        if namespace.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Terminating") {
            namespace.status.get_or_insert_default().phase = Some("Terminating".into());
            namespace = match api.update_status(&PostParams::default(), &namespace).await {
                Ok(n) => n,
                Err(e) if e.is("NotFound") => return Ok(Outcome::done()),
                Err(e) => return Err(Error::api(format!("update status of namespace {key}"), e)),
            };
        }
        let progress = self.delete_content(key).await?;
        if let Some(changed) = with_status(&namespace, &progress, &self.setup.config.clock.time()) {
            namespace = match api.update_status(&PostParams::default(), &changed).await {
                Ok(n) => n,
                Err(e) if e.is("NotFound") => return Ok(Outcome::done()),
                Err(e) => return Err(Error::api(format!("update status of namespace {key}"), e)),
            };
        }
        if progress.is_finished() {
            self.finalize(&namespace, finalizers).await?;
            return Ok(Outcome::done());
        }
        if let Some(first) = progress.failures.first().or(progress.undiscovered.first().map(|(_, e)| e)) {
            return Err(Error::Other(format!("namespace {key}: {first}")));
        }
        Ok(Outcome::after(Duration::from_secs(u64::try_from(progress.estimate / 2 + 1).unwrap_or(1))))
    }
}

impl Namespaces {
    /// Asks for the deletion of everything in the namespace: pods first, then, when they are gone, the rest, on which
    /// pods may depend to end well.
    async fn delete_content(&self, name: &str) -> Result<Progress, Error> {
        let discovery = discover(&self.setup.client).await;
        let discovery = discovery.map_err(|e| Error::api("discover resources", e))?;
        let mut progress = Progress { undiscovered: discovery.failures, ..Default::default() };
        let (pods, others): (Vec<Discovered>, Vec<Discovered>) = discovery
            .resources
            .into_iter()
            .filter(|d| d.resource.namespaced && d.answers(&["delete", "list"]))
            .partition(|d| d.resource.group.is_empty() && d.resource.plural == "pods");
        for resources in [pods, others] {
            for d in resources {
                self.delete_all(name, &d, &mut progress).await;
            }
            if !progress.remaining.is_empty() {
                break;
            }
        }
        Ok(progress)
    }

    async fn delete_all(&self, namespace: &str, d: &Discovered, progress: &mut Progress) {
        let api = MetadataApi::new(self.setup.client.clone(), d.resource.clone());
        let background = DeleteParams { propagation_policy: Some("Background".into()), ..Default::default() };
        let everything = ListParams::default();
        let qualified = d.resource.qualified();
        let gone = |e: &gantry_client::Error| e.is("NotFound") || e.is("MethodNotAllowed");
        let mut in_bulk = false;
        if d.answers(&["deletecollection"]) {
            match api.delete_collection(namespace, &background, &everything).await {
                Ok(()) => in_bulk = true,
                Err(e) if gone(&e) => {}
                Err(e) => {
                    progress.failures.push(format!("unexpected error deleting {qualified}: {e}"));
                    return;
                }
            }
        }
        let list = match api.list(namespace, &everything).await {
            Ok(list) => list.items,
            Err(e) if gone(&e) => return,
            Err(e) => {
                progress.failures.push(format!("unexpected error listing {qualified}: {e}"));
                return;
            }
        };
        let mut left = Vec::new();
        for object in list {
            let name = object.metadata.name();
            if !in_bulk && object.metadata.deletion_timestamp.is_none() {
                match api.delete(namespace, name, &background).await {
                    Ok(()) => {}
                    Err(e) if gone(&e) => continue,
                    Err(e) => progress.failures.push(format!("unexpected error deleting {qualified} {name}: {e}")),
                }
            }
            left.push(object);
        }
        progress.note(&qualified, &left, self.estimate(namespace, d, &left));
    }

    /// Seconds until the objects may be gone: the longest grace period still running, or a guess.
    fn estimate(&self, namespace: &str, d: &Discovered, left: &[PartialObject]) -> i64 {
        let now = self.setup.config.clock.now();
        if d.resource.plural != "pods" {
            return FINALIZER_ESTIMATE;
        }
        let pods = self.setup.informers.get::<Pod>();
        left.iter()
            .filter_map(|o| {
                if let Some(t) = &o.metadata.deletion_timestamp {
                    return Some(pod_state::seconds_between(now, t.0).max(1));
                }
                pods.get(namespace, o.metadata.name())?.spec.as_ref()?.termination_grace_period_seconds
            })
            .max()
            .unwrap_or(FINALIZER_ESTIMATE)
    }

    async fn finalize(&self, namespace: &Namespace, finalizers: Vec<String>) -> Result<(), Error> {
        let name = namespace.metadata.name();
        let mut changed = namespace.clone();
        let rest: Vec<String> = finalizers.into_iter().filter(|f| f != FINALIZER).collect();
        changed.spec.get_or_insert_default().finalizers = Some(rest);
        let path = resource_path("", "v1", "namespaces", None, Some(name), Some("finalize"));
        let body = changed.to_json().into();
        match self.setup.client.call(Method::PUT, &path, Some("application/json"), body).await {
            Ok(_) => Ok(()),
            Err(e) if e.is("NotFound") => Ok(()),
            Err(e) => Err(Error::api(format!("finalize namespace {name}"), e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(finalizers: &[&str]) -> PartialObject {
        let mut o = PartialObject::default();
        o.metadata.finalizers = Some(finalizers.iter().map(|f| (*f).to_owned()).collect());
        o
    }

    #[test]
    fn conditions_tell_what_remains() {
        let mut p = Progress::default();
        p.note("pods", &[object(&[]), object(&["x/y"])], 30);
        p.note("configmaps", &[object(&["x/y"])], 15);
        assert_eq!(p.estimate, 30);
        let c = p.conditions();
        assert_eq!(
            c[3].3,
            "Some resources are remaining: configmaps has 1 resource instances, pods has 2 resource instances"
        );
        assert_eq!(c[4].3, "Some content in the namespace has finalizers remaining: x/y in 2 resource instances");
        assert!(!c[0].1 && !c[2].1 && c[3].1 && c[4].1);
        assert!(Progress::default().conditions().iter().all(|c| !c.1));
    }

    #[test]
    fn status_changes_only_where_something_did() {
        let now = Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
        let ns = Namespace::from_value(json!({"metadata": {"name": "n"}, "status": {"phase": "Active"}})).unwrap();
        let one = with_status(&ns, &Progress::default(), &now).unwrap();
        assert_eq!(one.status.as_ref().unwrap().phase.as_deref(), Some("Terminating"));
        assert_eq!(one.status.as_ref().unwrap().conditions.as_ref().unwrap().len(), 5);
        assert!(with_status(&one, &Progress::default(), &now).is_none());
        let failed = Progress { failures: vec!["no".into()], ..Default::default() };
        assert!(with_status(&one, &failed, &now).is_some());
    }
}
