//! `pods/eviction`: deletion of a pod as far as its disruption budget allows.

use super::{Handler, Services, body};
use crate::admission::rounds::Rounds;
use crate::admission::{Attributes, Operation};
use crate::cluster::{Cluster, resource_of};
use crate::request::{HandlerResult, RequestContext};
use async_trait::async_trait;
use bytes::Bytes;
use gantry_api::Time;
use gantry_api::k8s_openapi::api::core::v1::{Pod, PodCondition};
use gantry_api::k8s_openapi::api::policy::v1::{Eviction, PodDisruptionBudget};
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    Condition, DeleteOptions, Preconditions, StatusCause,
};
use gantry_api::kind::{Object, downcast_mut};
use gantry_api::meta::labels::Selector;
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;

/// Evictions of one budget that the disruption controller may have yet to see.
const DISRUPTED_MAX: usize = 2000;
/// Conflicts an eviction outlasts while the pod changes under it.
const RETRIES: usize = 20;

pub(super) struct PodEviction;

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// A pod that does not run disrupts nothing when it goes.
fn needs_no_budget(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed" | "Pending") || pod.metadata.is_deleting()
}

fn refused(cause: String, retry_after_seconds: Option<i32>) -> ApiError {
    let message = "Cannot evict pod as it would violate the pod's disruption budget.";
    let mut e = ApiError::too_many_requests(message, 0);
    if let Some(d) = &mut e.details {
        d.retry_after_seconds = retry_after_seconds;
        d.causes =
            Some(vec![StatusCause { reason: Some("DisruptionBudget".into()), message: Some(cause), field: None }]);
    }
    e
}

fn still_processing(budget: &str) -> ApiError {
    refused(format!("The disruption budget {budget} is still being processed by the server."), Some(10))
}

/// Takes one disruption from the budget.
fn decrement(budget: &mut PodDisruptionBudget, pod: &str, now: &Time) -> Result<(), ApiError> {
    let name = budget.metadata.name().to_owned();
    let generation = budget.metadata.generation.unwrap_or(0);
    let status = budget.status.get_or_insert_default();
    if status.observed_generation.unwrap_or(0) < generation {
        return Err(still_processing(&name));
    }
    let forbidden = |why| Err(ApiError::forbidden("policy", "poddisruptionbudget", &name, why));
    let allowed = status.disruptions_allowed.unwrap_or(0);
    if allowed < 0 {
        return forbidden("pdb disruptions allowed is negative");
    }
    if status.disrupted_pods.as_ref().is_some_and(|d| d.len() > DISRUPTED_MAX) {
        return forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
    }
    if allowed == 0 {
        let (needs, has) = (status.desired_healthy.unwrap_or(0), status.current_healthy.unwrap_or(0));
        return Err(refused(
            format!("The disruption budget {name} needs {needs} healthy pods and has {has} currently"),
            None,
        ));
    }
    status.disruptions_allowed = Some(allowed - 1);
    if allowed == 1 {
        let condition = Condition {
            type_: "DisruptionAllowed".into(),
            status: "False".into(),
            reason: "InsufficientPods".into(),
            message: String::new(),
            observed_generation: status.observed_generation,
            last_transition_time: now.clone(),
        };
        let conditions = status.conditions.get_or_insert_default();
        match conditions.iter_mut().find(|c| c.type_ == condition.type_) {
            Some(c) if c.status == condition.status => {
                *c = Condition { last_transition_time: c.last_transition_time.clone(), ..condition };
            }
            Some(c) => *c = condition,
            None => conditions.push(condition),
        }
    }
    status.disrupted_pods.get_or_insert_default().insert(pod.to_owned(), now.clone());
    Ok(())
}

/// Budgets that select the pod.
async fn budgets_of(pod: &Pod, cluster: &Cluster) -> Result<Vec<PodDisruptionBudget>, ApiError> {
    let all = cluster.list::<PodDisruptionBudget>(pod.metadata.namespace()).await?;
    let selects = |b: &PodDisruptionBudget| {
        let selector = Selector::from_label_selector(b.spec.as_ref().and_then(|s| s.selector.as_ref()));
        // A selector that cannot be read selects nothing.
        selector.is_ok_and(|s| !s.selects_nothing() && s.matches_optional(pod.metadata.labels.as_ref()))
    };
    Ok(all.into_iter().filter(selects).collect())
}

/// One eviction under way.
struct Attempt<'a> {
    cluster: &'a Cluster,
    namespace: &'a str,
    name: &'a str,
    options: DeleteOptions,
    dry_run: bool,
}

impl Attempt<'_> {
    async fn pod(&self) -> Result<Pod, ApiError> {
        let found = self.cluster.get_latest::<Pod>(self.namespace, self.name).await?;
        found.ok_or_else(|| ApiError::not_found("", "pods", self.name))
    }

    fn version_given(&self) -> bool {
        self.options.preconditions.as_ref().is_some_and(|p| p.resource_version.is_some())
    }

    /// Deletes the pod; `at_version` only as it was seen.
    async fn delete(&self, at_version: Option<&Pod>) -> Result<(), ApiError> {
        let mut options = self.options.clone();
        if let Some(pod) = at_version
            && !self.version_given()
        {
            let preconditions = options.preconditions.get_or_insert_with(Preconditions::default);
            preconditions.resource_version = Some(pod.metadata.resource_version().to_owned());
        }
        let resource = resource_of::<Pod>();
        self.cluster.objects.delete(resource, self.namespace, self.name, &options, self.dry_run).await
    }

    /// Notes in the pod why it goes, and deletes it.
    async fn mark_and_delete(&self, as_seen: Option<&Pod>) -> Result<(), ApiError> {
        if let (Some(seen), false) = (as_seen, self.version_given()) {
            let now = self.pod().await?;
            if now.metadata.resource_version() != seen.metadata.resource_version() {
                return Err(ApiError::modified("", "pods", self.name));
            }
        }
        if self.version_given() || self.dry_run {
            return self.delete(as_seen).await;
        }
        let time = self.cluster.clock.time();
        let mut change = |object: &mut dyn Object| {
            if let Some(pod) = downcast_mut::<Pod>(object) {
                mark(pod, &time);
            }
            Ok(())
        };
        let resource = resource_of::<Pod>();
        self.cluster.objects.guaranteed_update(resource, self.namespace, self.name, false, &mut change).await?;
        self.delete(None).await
    }

    async fn run(&self) -> Result<(), ApiError> {
        let mut pod = self.pod().await?;
        for attempt in 0.. {
            if !needs_no_budget(&pod) {
                break;
            }
            // A pending pod must not start, unseen, between the look at it and its deletion.
            let strict = phase(&pod) == "Pending" && !pod.metadata.is_deleting();
            match self.mark_and_delete(strict.then_some(&pod)).await {
                Err(e) if e.is("Conflict") && !self.version_given() && attempt < RETRIES => pod = self.pod().await?,
                other => return other,
            }
        }
        let budgets = budgets_of(&pod, self.cluster).await?;
        let budget = match budgets.as_slice() {
            [] => return self.mark_and_delete(None).await,
            [one] => one,
            _ => {
                let message =
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
                return Err(ApiError::new(500, "", message));
            }
        };
        let name = budget.metadata.name();
        if !is_ready(&pod) {
            let policy = budget.spec.as_ref().and_then(|s| s.unhealthy_pod_eviction_policy.as_deref());
            let status = budget.status.as_ref();
            let current = status.and_then(|s| s.current_healthy).unwrap_or(0);
            let desired = status.and_then(|s| s.desired_healthy).unwrap_or(0);
            let spare = current >= desired && desired > 0;
            if policy == Some("AlwaysAllow") || spare {
                // It must not have become ready meanwhile.
                return match self.mark_and_delete(Some(&pod)).await {
                    Err(e) if e.is("Conflict") && !self.version_given() => Err(still_processing(name)),
                    other => other,
                };
            }
        }
        let now = self.cluster.clock.time();
        let mut change = |object: &mut dyn Object| match downcast_mut::<PodDisruptionBudget>(object) {
            Some(budget) => decrement(budget, self.name, &now),
            None => Err(ApiError::internal("the budget is no PodDisruptionBudget")),
        };
        let resource = resource_of::<PodDisruptionBudget>();
        self.cluster.objects.guaranteed_update(resource, self.namespace, name, self.dry_run, &mut change).await?;
        self.mark_and_delete(None).await
    }
}

fn mark(pod: &mut Pod, now: &Time) {
    let condition = PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        reason: Some("EvictionByEvictionAPI".into()),
        message: Some("Eviction API: evicting".into()),
        last_transition_time: Some(now.clone()),
        observed_generation: pod.metadata.generation,
        ..Default::default()
    };
    let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
    match conditions.iter_mut().find(|c| c.type_ == condition.type_) {
        Some(c) if c.status == "True" => {}
        Some(c) => *c = condition,
        None => conditions.push(condition),
    }
}

#[async_trait]
impl Handler for PodEviction {
    fn target(&self) -> (&'static str, &'static str, &'static str, &'static str) {
        ("", "v1", "pods", "eviction")
    }

    async fn handle(&self, request: RequestContext, bytes: Bytes, services: &Services) -> HandlerResult {
        body::only_create(&request)?;
        let (mut eviction, mut warnings) = body::decode::<Eviction>(&request, &bytes)?;
        let (namespace, name) = (request.info.namespace.clone(), request.info.name.clone());
        if eviction.metadata.name() != name {
            return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
        }
        let by_query = body::dry_run(&request)?;
        let options = eviction.delete_options.clone().unwrap_or_default();
        let by_body = options.dry_run.iter().flatten().any(|d| d == "All");
        let dry_run = by_query || by_body;
        let mut attributes = Attributes {
            operation: Operation::Create,
            resource: resource_of::<Pod>(),
            subresource: "eviction",
            namespace: &namespace,
            name: &name,
            user: &request.user,
            dry_run,
            object: Some(&mut eviction),
            old_object: None,
            options: serde_json::Value::Null,
            warnings: Vec::new(),
            rounds: Rounds::default(),
            held: Vec::new(),
        };
        services.admission.run(&mut attributes, &services.cluster).await?;
        warnings.append(&mut attributes.warnings);
        let attempt = Attempt { cluster: &services.cluster, namespace: &namespace, name: &name, options, dry_run };
        attempt.run().await?;
        body::success(&request, 201, &warnings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::memory_objects::MemoryObjects;
    use serde_json::{Value, json};

    async fn evict(objects: &MemoryObjects, cluster: &Cluster, pod: &str, dry_run: bool) -> Result<(), ApiError> {
        let _ = objects;
        let options = DeleteOptions::default();
        Attempt { cluster, namespace: "a", name: pod, options, dry_run }.run().await
    }

    fn put_pod(objects: &MemoryObjects, name: &str, phase: &str, ready: &str) {
        objects.put::<Pod>(json!({
            "metadata": {"name": name, "namespace": "a", "labels": {"app": "x"}, "resourceVersion": "1"},
            "spec": {"containers": []},
            "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}
        }));
    }

    fn put_budget(objects: &MemoryObjects, status: Value, policy: &str) {
        objects.put::<PodDisruptionBudget>(json!({
            "metadata": {"name": "b", "namespace": "a", "generation": 1},
            "spec": {"selector": {"matchLabels": {"app": "x"}}, "unhealthyPodEvictionPolicy": policy},
            "status": status
        }));
    }

    #[tokio::test]
    async fn a_budget_is_used_up() {
        let (cluster, objects) = MemoryObjects::cluster();
        for name in ["p1", "p2"] {
            put_pod(&objects, name, "Running", "True");
        }
        let status = json!({"observedGeneration": 1, "disruptionsAllowed": 1, "desiredHealthy": 1, "currentHealthy": 2, "expectedPods": 2});
        put_budget(&objects, status, "IfHealthyBudget");
        evict(&objects, &cluster, "p1", true).await.unwrap();
        evict(&objects, &cluster, "p1", false).await.unwrap();
        assert!(cluster.get::<Pod>("a", "p1").await.unwrap().is_none());
        let budget = cluster.get::<PodDisruptionBudget>("a", "b").await.unwrap().unwrap().status.unwrap();
        assert_eq!(budget.disruptions_allowed, Some(0));
        assert!(budget.disrupted_pods.unwrap().contains_key("p1"));
        let e = evict(&objects, &cluster, "p2", false).await.unwrap_err();
        assert_eq!(
            (e.code, e.message.as_str()),
            (429, "Cannot evict pod as it would violate the pod's disruption budget.")
        );
        let causes = e.details.unwrap().causes.unwrap();
        assert_eq!(causes[0].reason.as_deref(), Some("DisruptionBudget"));
        assert_eq!(
            causes[0].message.as_deref(),
            Some("The disruption budget b needs 1 healthy pods and has 2 currently")
        );
    }

    #[tokio::test]
    async fn pods_that_serve_nobody_go_at_once() {
        let none = json!({"observedGeneration": 1, "disruptionsAllowed": 0, "desiredHealthy": 3, "currentHealthy": 1});
        let cases = [
            ("Pending", "False", "IfHealthyBudget", true),
            ("Failed", "False", "IfHealthyBudget", true),
            ("Running", "False", "IfHealthyBudget", false),
            ("Running", "False", "AlwaysAllow", true),
            ("Running", "True", "AlwaysAllow", false),
        ];
        for (phase, ready, policy, goes) in cases {
            let (cluster, objects) = MemoryObjects::cluster();
            put_pod(&objects, "p", phase, ready);
            put_budget(&objects, none.clone(), policy);
            assert_eq!(evict(&objects, &cluster, "p", false).await.is_ok(), goes, "{phase} {ready} {policy}");
        }
    }

    #[tokio::test]
    async fn a_changed_budget_is_waited_for() {
        let (cluster, objects) = MemoryObjects::cluster();
        put_pod(&objects, "p", "Running", "True");
        put_budget(&objects, json!({"observedGeneration": 0, "disruptionsAllowed": 5}), "IfHealthyBudget");
        let e = evict(&objects, &cluster, "p", false).await.unwrap_err();
        assert_eq!(e.details.unwrap().retry_after_seconds, Some(10));
    }
}
