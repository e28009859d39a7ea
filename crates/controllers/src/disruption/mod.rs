//! PodDisruptionBudgets: how many pods may be disrupted right now; and disruptions announced that never came.

mod plan;

pub use plan::{Expected, Managed, compute, expected};

use crate::config::Setup;
use crate::horizontal_pod_autoscaler::target::Targets;
use crate::pod_state;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::OwnerReference;
use gantry_api::meta::labels::Selector;
use gantry_api::meta::object::{Meta, split_api_version};
use gantry_client::{Api, Patch, PatchParams, PostParams};
use gantry_reconcile::owner::controller_of;
use gantry_reconcile::store::key_of;
use gantry_reconcile::{Controller, Error, EventRecorder, Informer, Outcome, Queue, Synced, runner, wait_synced};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, PodCondition, ReplicationController};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A pod announced as disrupted but still there after this long counts again (`DeletionTimeout`).
const DELETION_TIMEOUT: Duration = Duration::from_secs(120);

/// What this controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&["apps", "extensions"], &["deployments", "replicasets"], &["get", "list", "watch"]),
    Rule::new(&["apps"], &["statefulsets"], &["get", "list", "watch"]),
    Rule::new(&["*"], &["*/scale"], &["get"]),
    Rule::new(&[""], &["replicationcontrollers"], &["get", "list", "watch"]),
    Rule::new(&["policy"], &["poddisruptionbudgets"], &["get", "list", "watch"]),
    Rule::new(&["policy"], &["poddisruptionbudgets/status"], &["update"]),
    Rule::new(&[""], &["pods"], &["get", "list", "watch"]),
    Rule::new(&[""], &["pods/status"], &["patch", "update"]),
    EVENTS,
];

struct Disruption {
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    deployments: Informer<Deployment>,
    replica_sets: Informer<ReplicaSet>,
    controllers: Informer<ReplicationController>,
    stateful_sets: Informer<StatefulSet>,
    targets: Targets,
    setup: Setup,
    recorder: EventRecorder,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let informers = &setup.informers;
    let budgets = informers.get::<PodDisruptionBudget>();
    let pods = informers.get::<Pod>();
    let deployments = informers.get::<Deployment>();
    let replica_sets = informers.get::<ReplicaSet>();
    let controllers = informers.get::<ReplicationController>();
    let stateful_sets = informers.get::<StatefulSet>();
    let queue = Queue::new(setup.name);
    let keys = queue.clone();
    budgets.on_change(move |change| keys.add(key_of(change.object().as_ref())));
    let (keys, all) = (queue.clone(), budgets.clone());
    pods.on_change(move |change| {
        for pod in [Some(change.object()), change.old()].into_iter().flatten() {
            for budget in all.store().list_in(pod.metadata.namespace()) {
                if selector(&budget).matches_optional(pod.metadata.labels.as_ref()) {
                    keys.add(key_of(budget.as_ref()));
                }
            }
        }
    });
    let (keys, all) = (queue.clone(), budgets.clone());
    stateful_sets.on_change(move |change| {
        let replicas = |s: &StatefulSet| s.spec.replicas;
        if change.old().is_none_or(|old| replicas(old) != replicas(change.object())) {
            for budget in all.store().list_in(change.object().metadata.namespace()) {
                keys.add(key_of(budget.as_ref()));
            }
        }
    });
    // The scale of a Deployment changes before its pods do.
    let (keys, all) = (queue.clone(), budgets.clone());
    deployments.on_change(move |change| {
        let scaled = change.old().is_none_or(|old| old.spec.replicas != change.object().spec.replicas);
        if scaled {
            for budget in all.store().list_in(change.object().metadata.namespace()) {
                keys.add(key_of(budget.as_ref()));
            }
        }
    });
    let synced = [&budgets as &dyn Synced, &pods, &deployments, &replica_sets, &controllers, &stateful_sets];
    if !wait_synced(&synced, &setup.cancel).await {
        return;
    }
    let stale = tokio::spawn(clear_stale_targets(setup.clone(), pods.clone()));
    let (recorder, cancel) = (setup.recorder("controllermanager"), setup.cancel.clone());
    let targets = Targets::new(setup.client.clone());
    let controller =
        Disruption { budgets, pods, deployments, replica_sets, controllers, stateful_sets, targets, setup, recorder };
    runner::run(Arc::new(controller), queue, 2, cancel).await;
    stale.abort();
}

/// An absent selector selects nothing, an empty one everything.
fn selector(budget: &PodDisruptionBudget) -> Selector {
    match budget.spec.as_ref().and_then(|s| s.selector.as_ref()) {
        Some(s) => Selector::from_label_selector(Some(s)).unwrap_or_else(|_| Selector::nothing()),
        None => Selector::nothing(),
    }
}

#[async_trait]
impl Controller for Disruption {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(budget) = self.budgets.store().by_key(key) else { return Ok(Outcome::done()) };
        let selector = selector(&budget);
        let pods: Vec<Arc<Pod>> = self
            .pods
            .store()
            .list_in(budget.metadata.namespace())
            .into_iter()
            .filter(|p| selector.matches_optional(p.metadata.labels.as_ref()))
            .collect();
        if pods.is_empty() {
            self.recorder.normal(budget.as_ref(), "NoPods", "No matching pods found");
        }
        let managed = if plan::needs_scale(&budget) { self.managed(&pods).await } else { Ok(Managed::default()) };
        let managed = match managed {
            Ok(managed) => managed,
            Err(why) => {
                let message = format!("Failed to calculate the number of expected pods: {why}");
                self.recorder.warning(budget.as_ref(), "CalculateExpectedPodCountFailed", &message);
                self.fail_safe(&budget, &why).await?;
                return Err(Error::Other(message));
            }
        };
        if !managed.unmanaged.is_empty() {
            let selector = shown(budget.spec.as_ref().and_then(|s| s.selector.as_ref()));
            let message = format!(
                "Pods selected by this PodDisruptionBudget (selector: {selector}) were found to be unmanaged. As a result, the \
                 status of the PDB cannot be calculated correctly, which may result in undefined behavior. To account for these \
                 pods please set \".spec.minAvailable\" field of the PDB to an integer value."
            );
            self.recorder.warning(budget.as_ref(), "UnmanagedPods", &message);
        }
        let clock = &self.setup.config.clock;
        let computed = compute(&budget, &pods, expected(&budget, &pods, &managed), clock.time(), DELETION_TIMEOUT);
        for name in &computed.overdue {
            if let Some(pod) = pods.iter().find(|p| p.metadata.name() == name) {
                let message = format!("Pod was expected by PDB {key} to be deleted but it wasn't");
                self.recorder.warning(pod.as_ref(), "NotDeleted", &message);
            }
        }
        if budget.status.as_ref() != Some(&computed.status) {
            let mut updated = (*budget).clone();
            updated.status = Some(computed.status);
            Api::<PodDisruptionBudget>::namespaced(self.setup.client.clone(), budget.metadata.namespace())
                .update_status(&PostParams::default(), &updated)
                .await
                .map_err(|e| Error::api(format!("update status of pod disruption budget {key}"), e))?;
        }
        Ok(computed.recheck.map_or_else(Outcome::done, Outcome::after))
    }
}

impl Disruption {
    /// The scales of the controllers behind the pods, each counted once.
    async fn managed(&self, pods: &[Arc<Pod>]) -> Result<Managed, String> {
        let mut scales: BTreeMap<String, i32> = BTreeMap::new();
        let mut managed = Managed::default();
        for pod in pods {
            let Some(owner) = pod_state::controller(pod) else {
                managed.unmanaged.push(pod.metadata.name().to_owned());
                continue;
            };
            if scales.contains_key(&owner.uid) {
                continue;
            }
            let Some((uid, replicas)) = self.scale_of(pod.metadata.namespace(), owner).await? else {
                return Err(format!("found no controllers for pod {:?}", pod.metadata.name()));
            };
            scales.insert(uid, replicas);
        }
        managed.scale = scales.values().sum();
        Ok(managed)
    }

    /// The scale of a controller, from the caches or else from the server; of the Deployment above a ReplicaSet.
    async fn scale_of(&self, namespace: &str, owner: &OwnerReference) -> Result<Option<(String, i32)>, String> {
        let (group, _) = split_api_version(&owner.api_version);
        let known = match (group, owner.kind.as_str()) {
            ("apps" | "extensions", "ReplicaSet") => self.replica_set(namespace, owner),
            ("apps", "StatefulSet") => {
                let set = self.stateful_sets.get(namespace, &owner.name).filter(|s| s.metadata.uid() == owner.uid);
                set.map(|s| (owner.uid.clone(), s.spec.replicas.unwrap_or(1)))
            }
            ("", "ReplicationController") => {
                let found = self.controllers.get(namespace, &owner.name).filter(|c| c.metadata.uid() == owner.uid);
                found.map(|c| (owner.uid.clone(), c.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)))
            }
            _ => None,
        };
        if known.is_some() {
            return Ok(known);
        }
        let resource = self.targets.resolve(&owner.api_version, &owner.kind).await?;
        match self.targets.scale(&resource, namespace, &owner.name).await {
            Ok(scale) if scale.metadata.uid() != owner.uid => Ok(None),
            Ok(scale) => Ok(Some((owner.uid.clone(), scale.spec.and_then(|s| s.replicas).unwrap_or(0)))),
            // Either there is no such object, or none of its kind can be scaled.
            Err(e) if e.is("NotFound") => {
                if self.targets.has_scale(&resource).await.map_err(|e| e.to_string())? {
                    return Ok(None);
                }
                Err(format!("{} does not implement the scale subresource", resource.qualified()))
            }
            Err(e) => Err(e.to_string()),
        }
    }

    fn replica_set(&self, namespace: &str, owner: &OwnerReference) -> Option<(String, i32)> {
        let set = self.replica_sets.get(namespace, &owner.name).filter(|r| r.metadata.uid() == owner.uid)?;
        match controller_of(&set.metadata).filter(|o| o.kind == "Deployment") {
            None => Some((owner.uid.clone(), set.spec.replicas.unwrap_or(1))),
            Some(above) => {
                let found = self.deployments.get(namespace, &above.name).filter(|d| d.metadata.uid() == above.uid)?;
                Some((above.uid.clone(), found.spec.replicas.unwrap_or(1)))
            }
        }
    }

    /// Allows nothing, where it cannot be known what may be.
    async fn fail_safe(&self, budget: &PodDisruptionBudget, why: &str) -> Result<(), Error> {
        let mut failed = budget.clone();
        let now = self.setup.config.clock.time();
        failed.status = Some(plan::failed(budget.status.clone().unwrap_or_default(), why, now));
        if failed.status == budget.status {
            return Ok(());
        }
        let api = Api::<PodDisruptionBudget>::namespaced(self.setup.client.clone(), budget.metadata.namespace());
        let key = budget.metadata.key();
        let updated = api.update_status(&PostParams::default(), &failed).await;
        updated.map(drop).map_err(|e| Error::api(format!("update status of pod disruption budget {key}"), e))
    }
}

/// A selector as Go prints it.
fn shown(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else { return "nil".to_owned() };
    let labels = selector.match_labels.iter().flatten().map(|(k, v)| format!("{k}: {v},"));
    let one = |r: &LabelSelectorRequirement| {
        let values = r.values.iter().flatten().map(String::as_str).collect::<Vec<_>>().join(" ");
        format!("LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},", r.key, r.operator)
    };
    let expressions: String = selector.match_expressions.iter().flatten().map(one).collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}",
        labels.collect::<String>()
    )
}

/// Pods marked as about to be disrupted that were not: the mark is taken back.
async fn clear_stale_targets(setup: Setup, pods: Informer<Pod>) {
    let queue: Queue = Queue::new("stale-disruption-targets");
    let keys = queue.clone();
    pods.on_change(move |change| {
        if stale_in(change.object(), None).is_some() {
            keys.add_after(key_of(change.object().as_ref()), DELETION_TIMEOUT);
        }
    });
    while let Some(key) = queue.get().await {
        let now = setup.config.clock.time();
        if let Some(pod) = pods.store().by_key(&key)
            && let Some(left) = stale_in(&pod, Some(now.0.as_second()))
        {
            if left > 0 {
                queue.add_after(key.clone(), Duration::from_secs(left.unsigned_abs()));
            } else {
                let patch = Patch::Strategic(
                    json!({ "metadata": { "uid": pod.metadata.uid() }, "status": { "conditions": [
                        { "type": "DisruptionTarget", "status": "False", "lastProbeTime": null, "lastTransitionTime": now },
                    ]}}),
                );
                let api = Api::<Pod>::namespaced(setup.client.clone(), pod.metadata.namespace());
                match api.patch_status(pod.metadata.name(), &PatchParams::default(), &patch).await {
                    Ok(_) => queue.forget(&key),
                    Err(e) if e.is("NotFound") || e.is("Conflict") => queue.forget(&key),
                    Err(error) => {
                        tracing::warn!(pod = key, %error, "cannot take back a disruption mark; will retry");
                        queue.add_rate_limited(key.clone());
                    }
                }
            }
        }
        queue.done(&key);
    }
}

/// Seconds until the pod's disruption mark is stale (all of them where `now` is not given); `None` without such a mark.
fn stale_in(pod: &Pod, now: Option<i64>) -> Option<i64> {
    if pod_state::is_terminating(pod) || pod_state::is_finished(pod) {
        return None;
    }
    // What the node says it ends may take any time to end.
    let by_node = |c: &&PodCondition| c.reason.as_deref() == Some("TerminationByKubelet");
    let mark = pod_state::condition(pod, "DisruptionTarget").filter(|c| c.status == "True");
    let condition = mark.filter(|c| !by_node(c))?;
    let since = condition.last_transition_time.as_ref()?.0.as_second();
    let timeout = i64::try_from(DELETION_TIMEOUT.as_secs()).unwrap_or(i64::MAX);
    Some(now.map_or(timeout, |now| since + timeout - now))
}
