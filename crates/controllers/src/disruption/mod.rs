//! PodDisruptionBudgets: how many pods may be disrupted right now; and disruptions announced that never came.

mod plan;

pub use plan::{Expected, Managed, compute, expected};

use crate::config::Setup;
use crate::pod_state;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::meta::labels::Selector;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, Patch, PatchParams, PostParams};
use gantry_reconcile::store::key_of;
use gantry_reconcile::{Controller, Error, EventRecorder, Informer, Outcome, Queue, runner, wait_synced};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A pod announced as disrupted but still there after this long counts again (`DeletionTimeout`).
const DELETION_TIMEOUT: Duration = Duration::from_secs(120);

/// What this controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&["apps", "extensions"], &["deployments", "replicasets"], &["get", "list", "watch"]),
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
    if !wait_synced(&[&budgets, &pods, &deployments, &replica_sets, &controllers], &setup.cancel).await {
        return;
    }
    let stale = tokio::spawn(clear_stale_targets(setup.clone(), pods.clone()));
    let (recorder, cancel) = (setup.recorder("controllermanager"), setup.cancel.clone());
    let controller = Disruption { budgets, pods, deployments, replica_sets, controllers, setup, recorder };
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
        let managed = self.managed(&pods);
        if !managed.unmanaged.is_empty() && plan::needs_scale(&budget) {
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
    fn managed(&self, pods: &[Arc<Pod>]) -> Managed {
        let mut scales: BTreeMap<String, i32> = BTreeMap::new();
        let mut managed = Managed::default();
        for pod in pods {
            let namespace = pod.metadata.namespace();
            let Some(owner) = pod_state::controller(pod) else {
                managed.unmanaged.push(pod.metadata.name().to_owned());
                continue;
            };
            let found = match owner.kind.as_str() {
                "ReplicaSet" => {
                    self.replica_sets.get(namespace, &owner.name).filter(|r| r.metadata.uid() == owner.uid).map(|set| {
                        let above = gantry_reconcile::owner::controller_of(&set.metadata)
                            .filter(|o| o.kind == "Deployment")
                            .and_then(|o| {
                                self.deployments.get(namespace, &o.name).filter(|d| d.metadata.uid() == o.uid)
                            });
                        match above {
                            Some(d) => (d.metadata.uid().to_owned(), d.spec.replicas.unwrap_or(1)),
                            None => (set.metadata.uid().to_owned(), set.spec.replicas.unwrap_or(1)),
                        }
                    })
                }
                "ReplicationController" => self
                    .controllers
                    .get(namespace, &owner.name)
                    .filter(|c| c.metadata.uid() == owner.uid)
                    .map(|c| (c.metadata.uid().to_owned(), c.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1))),
                _ => None,
            };
            match found {
                Some((uid, replicas)) => {
                    scales.insert(uid, replicas);
                }
                None => managed.unmanaged.push(pod.metadata.name().to_owned()),
            }
        }
        managed.scale = scales.values().sum();
        managed
    }
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
    let condition = pod_state::condition(pod, "DisruptionTarget").filter(|c| c.status == "True")?;
    let since = condition.last_transition_time.as_ref()?.0.as_second();
    let timeout = i64::try_from(DELETION_TIMEOUT.as_secs()).unwrap_or(i64::MAX);
    Some(now.map_or(timeout, |now| since + timeout - now))
}
