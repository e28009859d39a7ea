//! DaemonSets: one pod on every node that fits, updated node by node.

mod backoff;
mod node;
mod pace;
mod plan;
mod revisions;

pub use node::{Demands, Fit, target};
pub use plan::{DaemonPlan, Inputs, by_node, fits, new_pod, plan, status};

use crate::claiming::{claim_all, ensure_alive_after_loss};
use crate::config::Setup;
use crate::history::History;
use crate::pod_state;
use crate::replicas::{is_namespace_terminating, watch};
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use backoff::FailedPods;
use futures::future::join_all;
use gantry_api::meta::labels::Selector;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, DeleteParams, PostParams};
use gantry_reconcile::owner::controller_of;
use gantry_reconcile::store::key_of;
use gantry_reconcile::{
    Change, Controller, Error, EventRecorder, Expectations, Index, Informer, Outcome, Queue, Store, runner, wait_synced,
};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use pace::Pace;
use parking_lot::Mutex;
use std::sync::Arc;
use tracing::debug;

/// No more pods than this are created or deleted in one go.
const BURST: usize = 250;
const WORKERS: usize = 2;

/// What the controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&["apps", "extensions"], &["daemonsets"], &["get", "list", "watch"]),
    Rule::new(&["apps", "extensions"], &["daemonsets/status"], &["update"]),
    Rule::new(&["apps", "extensions"], &["daemonsets/finalizers"], &["update"]),
    Rule::new(&[""], &["nodes"], &["list", "watch"]),
    Rule::new(&[""], &["pods"], &["create", "delete", "list", "patch", "watch"]),
    Rule::new(&["apps"], &["controllerrevisions"], &["create", "delete", "get", "list", "patch", "update", "watch"]),
    EVENTS,
];

struct DaemonSets {
    sets: Informer<DaemonSet>,
    nodes: Informer<Node>,
    pods_by_controller: Index<Pod>,
    history: History,
    expectations: Arc<Expectations>,
    failed: Mutex<FailedPods>,
    pace: Pace,
    setup: Setup,
    recorder: EventRecorder,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let sets = setup.informers.get::<DaemonSet>();
    let nodes = setup.informers.get::<Node>();
    let pods = setup.informers.get::<Pod>();
    let history = History::new(&setup);
    let pods_by_controller = pods.index("controller", pod_state::by_controller);
    let queue = Queue::new(setup.name);
    let expectations = Arc::new(Expectations::default());
    watch::register(&sets, &pods, &queue, &expectations, selector_of);
    watch_nodes(&nodes, sets.store().clone(), queue.clone());
    watch_revisions(history.informer(), sets.store().clone(), queue.clone());
    if !wait_synced(&[&sets, &nodes, &pods, history.informer()], &setup.cancel).await {
        return;
    }
    let (recorder, cancel) = (setup.recorder("daemonset-controller"), setup.cancel.clone());
    let (failed, pace) = (Mutex::default(), Pace::default());
    let controller =
        Arc::new(DaemonSets { sets, nodes, pods_by_controller, history, expectations, failed, pace, setup, recorder });
    runner::run(controller, queue, WORKERS, cancel).await;
}

fn selector_of(ds: &DaemonSet) -> Result<Selector, String> {
    Selector::from_label_selector(Some(&ds.spec.selector))
}

/// A node concerns those DaemonSets to which it is not what it was.
fn watch_nodes(nodes: &Informer<Node>, sets: Store<DaemonSet>, queue: Queue) {
    nodes.on_change(move |change| {
        if change.old().is_some_and(|old| !node::concerns(old, change.object())) {
            return;
        }
        for ds in sets.list() {
            let demands = Demands::of(&ds);
            let now = demands.fit(change.object());
            let concerned = match change {
                Change::Added(_) | Change::Deleted(_) => now.should_run,
                Change::Modified { old, .. } => demands.fit(old) != now,
            };
            if concerned {
                queue.add(key_of(&*ds));
            }
        }
    });
}

/// Revisions that others change or delete are put right. One that appears with a controller is that controller's deed.
fn watch_revisions(revisions: &Informer<ControllerRevision>, sets: Store<DaemonSet>, queue: Queue) {
    revisions.on_change(move |change| {
        let revision = change.object();
        let namespace = revision.metadata.namespace();
        let add_owner = |r: &ControllerRevision| {
            let Some(owner) = controller_of(&r.metadata).filter(|o| o.kind == "DaemonSet") else { return };
            if let Some(ds) = sets.get(namespace, &owner.name).filter(|d| d.metadata.uid() == owner.uid) {
                queue.add(key_of(&*ds));
            }
        };
        if let Some(old) = change.old()
            && controller_of(&old.metadata) != controller_of(&revision.metadata)
        {
            add_owner(old);
        }
        if controller_of(&revision.metadata).is_some() {
            if !matches!(change, Change::Added(_)) {
                add_owner(revision);
            }
        } else if !matches!(change, Change::Deleted(_)) {
            for ds in sets.list_in(namespace) {
                if selector_of(&ds).is_ok_and(|s| s.matches_optional(revision.metadata.labels.as_ref())) {
                    queue.add(key_of(&*ds));
                }
            }
        }
    });
}

#[async_trait]
impl Controller for DaemonSets {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(ds) = self.sets.store().by_key(key) else {
            self.expectations.forget(key);
            self.pace.forget(key);
            return Ok(Outcome::done());
        };
        let Ok(selector) = selector_of(&ds) else {
            debug!(%key, "selector cannot be read");
            return Ok(Outcome::done());
        };
        if selector.is_empty() {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.recorder.warning(&*ds, "SelectingAll", message);
            return Ok(Outcome::done());
        }
        if ds.metadata.deletion_timestamp.is_some() {
            // Its revisions may be gone already: what would be told of its pods would not be true.
            self.failed.lock().forget(ds.metadata.uid());
            return Ok(Outcome::done());
        }
        if let Some(rest) = self.pace.left(key) {
            return Ok(Outcome::after(rest));
        }
        let satisfied = self.expectations.satisfied(key);
        let pods = self.claim(&ds, &selector).await?;
        let revisions = self.revisions(&ds, &selector, &pods).await?;
        let nodes = self.nodes.list();
        let (fits, placed) = (fits(&ds, &nodes), by_node(&pods));
        let now = self.setup.config.clock.now();
        let (uid, generation) = (ds.metadata.uid(), observed_generation(&ds));
        let wait = |node: &str| self.failed.lock().left(uid, generation, node, now);
        let inputs = Inputs { ds: &ds, fits: &fits, pods: &placed, hash: revisions.hash(), wait: &wait, now };
        let (mut want, again) = status(&inputs);
        let (mut done, mut requeue_after, mut idle) = (Ok(()), None, false);
        if satisfied {
            let plan = plan(&inputs);
            requeue_after = plan.requeue_after;
            idle = plan.create.is_empty() && plan.delete.is_empty();
            if !plan.create.is_empty() {
                let count = |s: &DaemonSetStatus| s.current_number_scheduled + s.number_misscheduled;
                let fewer = ds.status.as_ref().is_some_and(|told| count(told) > count(&want))
                    || pods.iter().any(|p| p.metadata.is_deleting());
                ensure_alive_after_loss(&self.setup.client, &*ds, &self.expectations, fewer).await?;
            }
            done = self.execute(&ds, key, &plan, revisions.hash()).await;
            if done.is_ok() {
                done = self.clean_up(&ds, &revisions.old, &pods).await;
            }
            want.observed_generation = ds.metadata.generation;
        }
        let told = self.write_status(&ds, want).await;
        done?;
        told?;
        if idle {
            self.pace.rest(key, nodes.len());
        }
        let open = self.expectations.left(key);
        Ok(Outcome { requeue_after: requeue_after.into_iter().chain(again).chain(open).min() })
    }
}

fn observed_generation(ds: &DaemonSet) -> i64 {
    ds.status.as_ref().and_then(|s| s.observed_generation).unwrap_or(0)
}

impl DaemonSets {
    fn pods_api(&self, ds: &DaemonSet) -> Api<Pod> {
        Api::namespaced(self.setup.client.clone(), ds.metadata.namespace())
    }

    async fn claim(&self, ds: &Arc<DaemonSet>, selector: &Selector) -> Result<Vec<Arc<Pod>>, Error> {
        let mut candidates = self.pods_by_controller.get(ds.metadata.uid());
        candidates.extend(self.pods_by_controller.get(&pod_state::orphans_of(ds.metadata.namespace())));
        let ours = |p: &Pod| selector.matches_optional(p.metadata.labels.as_ref());
        claim_all(&self.setup.client, &**ds, candidates, ours).await
    }

    async fn execute(&self, ds: &Arc<DaemonSet>, key: &str, plan: &DaemonPlan, hash: &str) -> Result<(), Error> {
        let now = self.setup.config.clock.now();
        for (pod, reason, message) in &plan.ended {
            if *reason == "FailedDaemonPod" {
                let node = target(pod).unwrap_or_default();
                self.failed.lock().replaced(ds.metadata.uid(), observed_generation(ds), node, now);
                self.recorder.warning(&**ds, reason, message);
            } else {
                self.recorder.normal(&**ds, reason, message);
            }
        }
        let create = &plan.create[..plan.create.len().min(BURST)];
        let delete = &plan.delete[..plan.delete.len().min(BURST)];
        self.expectations.set(key, create.len(), delete.iter().map(|p| key_of(&**p)));
        let api = self.pods_api(ds);
        let mut errors = Vec::new();
        // In batches of 1, 2, 4, …, so that what fails for all fails only a few times.
        let (mut left, mut size) = (create, 1);
        while !left.is_empty() && errors.is_empty() {
            let (batch, rest) = left.split_at(size.min(left.len()));
            let results = join_all(batch.iter().map(|node| self.create(ds, key, &api, node, hash))).await;
            errors.extend(results.into_iter().filter_map(Result::err));
            left = rest;
            size *= 2;
        }
        for _ in left {
            self.expectations.creation_observed(key);
        }
        let results = join_all(delete.iter().map(|pod| self.delete(ds, key, &api, pod))).await;
        errors.extend(results.into_iter().filter_map(Result::err));
        errors.truncate(1);
        Error::collect(errors)
    }

    async fn create(
        &self,
        ds: &Arc<DaemonSet>,
        key: &str,
        api: &Api<Pod>,
        node: &str,
        hash: &str,
    ) -> Result<(), Error> {
        match api.create(&PostParams::default(), &new_pod(ds, node, hash)).await {
            Ok(created) => {
                let message = format!("Created pod: {}", created.metadata.name());
                self.recorder.normal(&**ds, "SuccessfulCreate", &message);
                Ok(())
            }
            Err(e) => {
                self.expectations.creation_observed(key);
                if is_namespace_terminating(&e) {
                    // No pod can come into being there any more, and the DaemonSet goes with its namespace.
                    return Ok(());
                }
                self.recorder.warning(&**ds, "FailedCreate", &format!("Error creating: {e}"));
                Err(Error::api(format!("create pod for {key}"), e))
            }
        }
    }

    async fn delete(&self, ds: &Arc<DaemonSet>, key: &str, api: &Api<Pod>, pod: &Pod) -> Result<(), Error> {
        // One that is not ready goes before its turn: not if it is by now.
        let early = !pod_state::is_ready(pod);
        let params = DeleteParams {
            precondition_uid: pod.metadata.uid.clone(),
            precondition_resource_version: pod.metadata.resource_version.clone().filter(|_| early),
            ..Default::default()
        };
        match api.delete(pod.metadata.name(), &params).await {
            Ok(_) => {
                let message = format!("Deleted pod: {}", pod.metadata.name());
                self.recorder.normal(&**ds, "SuccessfulDelete", &message);
                Ok(())
            }
            Err(e) => {
                self.expectations.deletion_observed(key, &key_of(pod));
                if e.is("NotFound") || e.is("Conflict") {
                    // Gone already, replaced by another pod of that name, or not any more as it was: then its change,
                    // which the cache has not shown, brings the DaemonSet here again.
                    return Ok(());
                }
                self.recorder.warning(&**ds, "FailedDelete", &format!("Error deleting: {e}"));
                Err(Error::api(format!("delete pod {}", pod.metadata.key()), e))
            }
        }
    }

    async fn write_status(&self, ds: &DaemonSet, status: DaemonSetStatus) -> Result<(), Error> {
        if ds.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let mut changed = ds.clone();
        changed.status = Some(status);
        let api = Api::<DaemonSet>::namespaced(self.setup.client.clone(), ds.metadata.namespace());
        match api.update_status(&PostParams::default(), &changed).await {
            Ok(_) => Ok(()),
            Err(e) if e.is("NotFound") => Ok(()),
            Err(e) => Err(Error::api(format!("update status of daemonset {}", ds.metadata.key()), e)),
        }
    }
}

#[cfg(test)]
mod tests;
