//! Deployments: roll changes of a pod template out over ReplicaSets, one per template.

mod plan;
mod progress;
mod revision;
mod scale;

pub use plan::{Inputs, RolloutPlan, plan};
pub use revision::{POD_TEMPLATE_HASH, REVISION, template_hash};

use crate::claiming::{claim_all, ensure_alive};
use crate::config::Setup;
use crate::pod_state;
use crate::replicas::is_namespace_terminating;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::meta::labels::Selector;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, DeleteParams, PostParams};
use gantry_reconcile::owner::controller_of;
use gantry_reconcile::store::key_of;
use gantry_reconcile::{
    Change, Controller, Error, EventRecorder, Index, Informer, Outcome, Queue, Store, runner, wait_synced,
};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use std::sync::Arc;
use tracing::debug;

const WORKERS: usize = 5;

/// What the controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&["apps", "extensions"], &["deployments"], &["get", "list", "update", "watch"]),
    Rule::new(&["apps", "extensions"], &["deployments/status"], &["update"]),
    Rule::new(&["apps", "extensions"], &["deployments/finalizers"], &["update"]),
    Rule::new(
        &["apps", "extensions"],
        &["replicasets"],
        &["create", "delete", "get", "list", "patch", "update", "watch"],
    ),
    Rule::new(&[""], &["pods"], &["get", "list", "update", "watch"]),
    EVENTS,
];

struct Deployments {
    deployments: Informer<Deployment>,
    sets_by_controller: Index<ReplicaSet>,
    pods_by_controller: Index<Pod>,
    setup: Setup,
    recorder: EventRecorder,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let deployments = setup.informers.get::<Deployment>();
    let sets = setup.informers.get::<ReplicaSet>();
    let pods = setup.informers.get::<Pod>();
    let sets_by_controller = sets.index("controller or orphans", |r: &ReplicaSet| {
        vec![match controller_of(&r.metadata) {
            Some(owner) => owner.uid.clone(),
            None => pod_state::orphans_of(r.metadata.namespace()),
        }]
    });
    let pods_by_controller = pods.index("controller", pod_state::by_controller);
    let queue = Queue::new(setup.name);
    watch(&deployments, &sets, &pods, &queue);
    if !wait_synced(&[&deployments, &sets, &pods], &setup.cancel).await {
        return;
    }
    let (recorder, cancel) = (setup.recorder("deployment-controller"), setup.cancel.clone());
    let controller = Arc::new(Deployments { deployments, sets_by_controller, pods_by_controller, setup, recorder });
    runner::run(controller, queue, WORKERS, cancel).await;
}

fn owner_of(deployments: &Store<Deployment>, set: &ReplicaSet) -> Option<Arc<Deployment>> {
    let r = controller_of(&set.metadata).filter(|r| r.kind == "Deployment")?;
    deployments.get(set.metadata.namespace(), &r.name).filter(|d| d.metadata.uid() == r.uid)
}

fn watch(deployments: &Informer<Deployment>, sets: &Informer<ReplicaSet>, pods: &Informer<Pod>, queue: &Queue) {
    let q = queue.clone();
    deployments.on_change(move |change| q.add(key_of(&**change.object())));

    let (q, all) = (queue.clone(), deployments.store().clone());
    sets.on_change(move |change| {
        let add_owner = |set: &ReplicaSet| {
            if let Some(d) = owner_of(&all, set) {
                q.add(key_of(&*d));
            }
        };
        let set = change.object();
        if let Some(old) = change.old() {
            let relabeled = old.metadata.labels != set.metadata.labels;
            let moved = controller_of(&old.metadata) != controller_of(&set.metadata);
            if moved {
                add_owner(old);
            }
            if controller_of(&set.metadata).is_none() && !moved && !relabeled {
                return;
            }
        }
        if controller_of(&set.metadata).is_some() {
            add_owner(set);
        } else if !matches!(change, Change::Deleted(_)) {
            for d in all.list_in(set.metadata.namespace()) {
                let selector = Selector::from_label_selector(Some(&d.spec.selector));
                if selector.is_ok_and(|s| !s.is_empty() && s.matches_optional(set.metadata.labels.as_ref())) {
                    q.add(key_of(&*d));
                }
            }
        }
    });

    // A Deployment that recreates waits for the last of its old pods.
    let (q, all, sets) = (queue.clone(), deployments.store().clone(), sets.store().clone());
    pods.on_change(move |change| {
        let pod = change.object();
        let ended = matches!(change, Change::Deleted(_)) || pod_state::is_finished(pod);
        let Some(r) = pod_state::controller(pod).filter(|r| ended && r.kind == "ReplicaSet") else { return };
        let Some(set) = sets.get(pod.metadata.namespace(), &r.name).filter(|s| s.metadata.uid() == r.uid) else {
            return;
        };
        if let Some(d) = owner_of(&all, &set)
            && plan::recreates(&d)
        {
            q.add(key_of(&*d));
        }
    });
}

#[async_trait]
impl Controller for Deployments {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(deployment) = self.deployments.store().by_key(key) else { return Ok(Outcome::done()) };
        let Ok(selector) = Selector::from_label_selector(Some(&deployment.spec.selector)) else {
            debug!(%key, "selector cannot be read");
            return Ok(Outcome::done());
        };
        if selector.is_empty() {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.warning(&*deployment, "SelectingAll", message);
            return Ok(Outcome::done());
        }
        let sets = self.claim(&deployment, &selector).await?;
        let running = |set: &ReplicaSet| {
            self.pods_by_controller.get(set.metadata.uid()).iter().any(|p| !pod_state::is_finished(p))
        };
        let inputs = |sets: Vec<ReplicaSet>| Inputs {
            deployment: &deployment,
            with_pods: sets.iter().filter(|s| running(s)).map(|s| s.metadata.uid().to_owned()).collect(),
            sets,
            now: self.setup.config.clock.time(),
        };
        let sets: Vec<ReplicaSet> = sets.iter().map(|s| (**s).clone()).collect();
        let mut plan = plan(inputs(sets.clone()));
        if plan.shrinks(&sets) {
            // In a cache that is behind a set still has the pods that it was made to give up a moment ago.
            plan = plan::plan(inputs(self.as_they_are(sets).await?));
        }
        self.execute(&deployment, &plan).await?;
        Ok(Outcome { requeue_after: plan.requeue_after })
    }
}

impl Deployments {
    fn api(&self, d: &Deployment) -> Api<Deployment> {
        Api::namespaced(self.setup.client.clone(), d.metadata.namespace())
    }

    fn sets_api(&self, d: &Deployment) -> Api<ReplicaSet> {
        Api::namespaced(self.setup.client.clone(), d.metadata.namespace())
    }

    async fn claim(&self, d: &Arc<Deployment>, selector: &Selector) -> Result<Vec<Arc<ReplicaSet>>, Error> {
        let mut candidates = self.sets_by_controller.get(d.metadata.uid());
        candidates.extend(self.sets_by_controller.get(&pod_state::orphans_of(d.metadata.namespace())));
        let matches = |set: &ReplicaSet| selector.matches_optional(set.metadata.labels.as_ref());
        claim_all(&self.setup.client, &**d, candidates, matches).await
    }

    /// The same ReplicaSets as the server has them, where they have pods or are to have some.
    async fn as_they_are(&self, sets: Vec<ReplicaSet>) -> Result<Vec<ReplicaSet>, Error> {
        let mut all = Vec::new();
        for set in sets {
            if set.spec.replicas == Some(0) && set.status.as_ref().is_none_or(|s| s.replicas == 0) {
                all.push(set);
                continue;
            }
            let api = Api::<ReplicaSet>::namespaced(self.setup.client.clone(), set.metadata.namespace());
            let there = api.get_opt(set.metadata.name()).await;
            let there = there.map_err(|e| Error::api(format!("get replicaset {}", set.metadata.key()), e))?;
            all.extend(there.filter(|there| there.metadata.uid == set.metadata.uid));
        }
        Ok(all)
    }

    async fn execute(&self, d: &Arc<Deployment>, plan: &RolloutPlan) -> Result<(), Error> {
        let api = self.sets_api(d);
        if let Some(set) = &plan.create {
            self.create(d, plan, &api, set).await?;
        }
        for set in &plan.updates {
            api.update(&PostParams::default(), set)
                .await
                .map_err(|e| Error::api(format!("update replicaset {}", set.metadata.key()), e))?;
            self.announce(d, plan, set);
        }
        for set in &plan.deletes {
            let params = DeleteParams { precondition_uid: set.metadata.uid.clone(), ..Default::default() };
            match api.delete(set.metadata.name(), &params).await {
                Ok(_) => {}
                Err(e) if e.is("NotFound") => {}
                Err(e) => return Err(Error::api(format!("delete replicaset {}", set.metadata.key()), e)),
            }
        }
        if let Some(changed) = &plan.status {
            self.write_status(changed).await?;
        }
        Ok(())
    }

    fn announce(&self, d: &Arc<Deployment>, plan: &RolloutPlan, set: &ReplicaSet) {
        for (_, message) in plan.scaled.iter().filter(|(name, _)| name == set.metadata.name()) {
            self.recorder.normal(&**d, "ScalingReplicaSet", message);
        }
    }

    async fn write_status(&self, changed: &Deployment) -> Result<(), Error> {
        match self.api(changed).update_status(&PostParams::default(), changed).await {
            Ok(_) => Ok(()),
            Err(e) if e.is("NotFound") => Ok(()),
            Err(e) => Err(Error::api(format!("update status of deployment {}", changed.metadata.key()), e)),
        }
    }

    async fn create(
        &self,
        d: &Arc<Deployment>,
        plan: &RolloutPlan,
        api: &Api<ReplicaSet>,
        set: &ReplicaSet,
    ) -> Result<(), Error> {
        if d.status.as_ref().is_some_and(|s| s.observed_generation.is_some()) {
            // It may be made in the place of one that goes with its Deployment.
            ensure_alive(&self.setup.client, &**d).await?;
        }
        let error = match api.create(&PostParams::default(), set).await {
            Ok(_) => {
                self.announce(d, plan, set);
                return Ok(());
            }
            Err(e) => e,
        };
        let action = || format!("create replicaset {}", set.metadata.key());
        if error.is("AlreadyExists") {
            let there = api.get_opt(set.metadata.name()).await.map_err(|e| Error::api(action(), e))?;
            let ours = there.as_ref().is_some_and(|t| {
                gantry_reconcile::owner::is_controlled_by(&t.metadata, d.metadata.uid())
                    && revision::same_template(t, &d.spec.template)
            });
            if ours {
                // The cache had not shown it yet.
                return Ok(());
            }
            let mut changed = (**d).clone();
            let count = changed.status.get_or_insert_default().collision_count.get_or_insert(0);
            *count += 1;
            self.write_status(&changed).await?;
            return Err(Error::api(action(), error));
        }
        if !is_namespace_terminating(&error) {
            let message = format!("Failed to create new replica set \"{}\": {error}", set.metadata.name());
            if let Some(changed) = progress::creation_failed(d, &message, self.setup.config.clock.time()) {
                self.write_status(&changed).await?;
            }
            self.recorder.warning(&**d, progress::CREATE_ERROR, &message);
        }
        Err(Error::api(action(), error))
    }
}

#[cfg(test)]
mod tests;
