//! ReplicaSets and ReplicationControllers: as many pods as asked for, no more and no fewer.

mod owner;
mod plan;
pub(crate) mod watch;

pub use owner::{Failure, ReplicaOwner, ReplicaStatus};
pub use plan::{Decision, decide, rank, status};

use crate::claiming::{ensure_alive, ensure_alive_after_loss};
use crate::config::Setup;
use crate::pod_state;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use futures::future::join_all;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, DeleteParams, PatchParams, PostParams};
use gantry_reconcile::owner::{Claim, adoption, claim, controller_reference, release};
use gantry_reconcile::store::key_of;
use gantry_reconcile::{
    Controller, Error, EventRecorder, Expectations, Index, Informer, Outcome, Queue, runner, wait_synced,
};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, ReplicationController};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tracing::debug;

/// No more pods than this are created or deleted in one go.
const BURST: usize = 500;
/// Workers per kind.
const WORKERS: usize = 5;

/// What the ReplicaSet controller may do.
pub const REPLICASET_RULES: &[Rule] = &[
    Rule::new(&["apps", "extensions"], &["replicasets"], &["get", "list", "update", "watch"]),
    Rule::new(&["apps", "extensions"], &["replicasets/status"], &["update"]),
    Rule::new(&["apps", "extensions"], &["replicasets/finalizers"], &["update"]),
    Rule::new(&[""], &["pods"], &["create", "delete", "list", "patch", "watch"]),
    EVENTS,
];

/// What the ReplicationController controller may do.
pub const REPLICATION_RULES: &[Rule] = &[
    Rule::new(&[""], &["replicationcontrollers"], &["get", "list", "update", "watch"]),
    Rule::new(&[""], &["replicationcontrollers/status"], &["update"]),
    Rule::new(&[""], &["replicationcontrollers/finalizers"], &["update"]),
    Rule::new(&[""], &["pods"], &["create", "delete", "list", "patch", "watch"]),
    EVENTS,
];

struct Replicas<O: ReplicaOwner> {
    owners: Informer<O>,
    siblings: Index<O>,
    pods: Informer<Pod>,
    pods_by_controller: Index<Pod>,
    expectations: Arc<Expectations>,
    setup: Setup,
    recorder: EventRecorder,
}

/// Runs the ReplicaSet controller.
pub async fn run_replicasets(setup: Setup) {
    start::<ReplicaSet>(setup, "replicaset-controller").await;
}

/// Runs the ReplicationController controller.
pub async fn run_replication_controllers(setup: Setup) {
    start::<ReplicationController>(setup, "replication-controller").await;
}

async fn start<O: ReplicaOwner>(setup: Setup, component: &str) {
    let owners = setup.informers.get::<O>();
    let pods = setup.informers.get::<Pod>();
    let siblings = owners.index("controller", |o: &O| {
        gantry_reconcile::owner::controller_of(o.meta()).map(|r| vec![r.uid.clone()]).unwrap_or_default()
    });
    let pods_by_controller = pods.index("controller", pod_state::by_controller);
    let queue = Queue::new(setup.name);
    let expectations = Arc::new(Expectations::default());
    watch::register(&owners, &pods, &queue, &expectations, O::selector);
    if !wait_synced(&[&owners, &pods], &setup.cancel).await {
        return;
    }
    let (recorder, cancel) = (setup.recorder(component), setup.cancel.clone());
    let controller = Arc::new(Replicas { owners, siblings, pods, pods_by_controller, expectations, setup, recorder });
    runner::run(controller, queue, WORKERS, cancel).await;
}

#[async_trait]
impl<O: ReplicaOwner> Controller for Replicas<O> {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(owner) = self.owners.store().by_key(key) else {
            self.expectations.forget(key);
            return Ok(Outcome::done());
        };
        self.expectations.caught_up(key, self.pods.version());
        let satisfied = self.expectations.satisfied(key);
        let Ok(selector) = owner.selector() else {
            // Validation keeps such a selector out; nothing can be done for one that came in anyway.
            debug!(%key, "selector cannot be read");
            return Ok(Outcome::done());
        };
        let (mut active, terminating) = self.claim(&owner, &selector).await?;
        let mut failure = None;
        let mut result = Ok(());
        if satisfied && owner.meta().deletion_timestamp.is_none() {
            let now = self.setup.config.clock.now();
            let decision = decide(&*owner, &active, &self.related(&owner), now, BURST);
            if decision.create > 0 {
                let told = usize::try_from(owner.status().replicas).unwrap_or(0);
                let fewer = terminating > 0 || told > active.len();
                ensure_alive_after_loss(&self.setup.client, &*owner, &self.expectations, fewer).await?;
            }
            result = self.act(&owner, key, &decision).await;
            if let Err(e) = &result {
                failure = Some(Failure { deleting: !decision.delete.is_empty(), message: e.to_string() });
            }
        }
        // What was made to go counts for nothing any more, whether the cache shows it or not.
        active.retain(|pod| !self.expectations.is_going(key, &key_of(&**pod)));
        let clock = &self.setup.config.clock;
        let want = status(&*owner, &active, terminating, failure, clock.time());
        let observed = self.write_status(&owner, &want).await;
        result?;
        observed?;
        let min_ready = owner.min_ready_seconds();
        if min_ready > 0 && want.ready == owner.replicas() && want.available != owner.replicas() {
            let wait = active
                .iter()
                .filter_map(|p| pod_state::ready_since(p))
                .map(|t| pod_state::time_left(t, i64::from(min_ready), clock.now()))
                .filter(|d| !d.is_zero())
                .min();
            return Ok(Outcome::after(wait.unwrap_or(Duration::from_secs(1))));
        }
        Ok(Outcome { requeue_after: self.expectations.left(key) })
    }
}

impl<O: ReplicaOwner> Replicas<O> {
    fn pods_api(&self, owner: &O) -> Api<Pod> {
        Api::namespaced(self.setup.client.clone(), owner.meta().namespace())
    }

    /// The owner's active pods, after adopting what matches and letting go what no longer does; and how many are going.
    async fn claim(
        &self,
        owner: &Arc<O>,
        selector: &gantry_api::meta::labels::Selector,
    ) -> Result<(Vec<Arc<Pod>>, i32), Error> {
        let meta = owner.meta();
        let mut candidates = self.pods_by_controller.get(meta.uid());
        candidates.extend(self.pods_by_controller.get(&pod_state::orphans_of(meta.namespace())));
        let api = self.pods_api(owner);
        let (mut active, mut terminating, mut errors, mut alive) = (Vec::new(), 0, Vec::new(), false);
        for pod in candidates {
            let matches = selector.matches_optional(pod.metadata.labels.as_ref());
            let decision = claim(meta, &pod.metadata, matches);
            if pod_state::is_terminating(&pod) && decision == Claim::Keep {
                terminating += 1;
            }
            if !pod_state::is_active(&pod) {
                continue;
            }
            let params = PatchParams::default();
            match decision {
                Claim::Ignore => {}
                Claim::Keep => active.push(pod),
                Claim::Adopt => {
                    if !alive {
                        ensure_alive(&self.setup.client, &**owner).await?;
                        alive = true;
                    }
                    match api.patch(pod.metadata.name(), &params, &adoption(&**owner, pod.metadata.uid())).await {
                        Ok(_) => active.push(pod),
                        Err(e) if e.is("NotFound") => {}
                        Err(e) => errors.push(Error::api(format!("adopt pod {}", pod.metadata.key()), e)),
                    }
                }
                Claim::Release => {
                    match api.patch(pod.metadata.name(), &params, &release(meta.uid(), pod.metadata.uid())).await {
                        Ok(_) => {}
                        // Gone, or a new pod of the same name: nothing to let go.
                        Err(e) if e.is("NotFound") || e.is("Invalid") => {}
                        Err(e) => errors.push(Error::api(format!("release pod {}", pod.metadata.key()), e)),
                    }
                }
            }
        }
        Error::collect(errors)?;
        Ok((active, terminating))
    }

    /// Active pods of all owners that share this one's controller (the ReplicaSets of one Deployment), counted by node.
    fn related(&self, owner: &O) -> BTreeMap<String, usize> {
        let siblings = match owner.meta().controller_of() {
            Some(r) => self.siblings.get(&r.uid).iter().map(|s| s.meta().uid().to_owned()).collect(),
            None => vec![owner.meta().uid().to_owned()],
        };
        let mut by_node = BTreeMap::new();
        for uid in siblings {
            for pod in self.pods_by_controller.get(&uid) {
                if pod_state::is_active(&pod) {
                    *by_node.entry(pod_state::node_name(&pod).to_owned()).or_default() += 1;
                }
            }
        }
        by_node
    }

    async fn act(&self, owner: &Arc<O>, key: &str, decision: &Decision) -> Result<(), Error> {
        if decision.create > 0 {
            self.expectations.set(key, decision.create, []);
            return self.create(owner, key, decision.create).await;
        }
        if decision.delete.is_empty() {
            return Ok(());
        }
        self.expectations.set(key, 0, decision.delete.iter().map(|p| key_of(&**p)));
        let api = self.pods_api(owner);
        let deletions = decision.delete.iter().map(|pod| self.delete(owner, key, &api, pod));
        let mut errors: Vec<Error> = join_all(deletions).await.into_iter().filter_map(Result::err).collect();
        errors.truncate(1);
        Error::collect(errors)
    }

    /// Creates pods in batches of 1, 2, 4, …, so that what fails for all fails only a few times.
    async fn create(&self, owner: &Arc<O>, key: &str, count: usize) -> Result<(), Error> {
        let api = self.pods_api(owner);
        let Some(pod) = pod_from_template(&**owner) else { return Ok(()) };
        let (mut left, mut batch) = (count, 1);
        while left > 0 {
            let size = batch.min(left);
            let results = join_all((0..size).map(|_| self.create_one(owner, key, &api, &pod))).await;
            left -= size;
            if let Some(error) = results.into_iter().find_map(Result::err) {
                for _ in 0..left {
                    self.expectations.creation_observed(key);
                }
                return Err(error);
            }
            batch *= 2;
        }
        Ok(())
    }

    async fn create_one(&self, owner: &Arc<O>, key: &str, api: &Api<Pod>, pod: &Pod) -> Result<(), Error> {
        match api.create(&PostParams::default(), pod).await {
            Ok(created) => {
                self.expectations.created(key, created.metadata.resource_version.as_deref());
                let message = format!("Created pod: {}", created.metadata.name());
                self.recorder.normal(&**owner, "SuccessfulCreate", &message);
                Ok(())
            }
            Err(e) => {
                self.expectations.creation_observed(key);
                if is_namespace_terminating(&e) {
                    // No pod can come into being there any more, and the owner goes with its namespace.
                    return Ok(());
                }
                self.recorder.warning(&**owner, "FailedCreate", &format!("Error creating: {e}"));
                Err(Error::api(format!("create pod for {key}"), e))
            }
        }
    }

    async fn delete(&self, owner: &Arc<O>, key: &str, api: &Api<Pod>, pod: &Pod) -> Result<(), Error> {
        // Where some stay, one is chosen because it is not ready: not if it is by now.
        let chosen = owner.replicas() > 0 && !pod_state::is_ready(pod);
        let params = DeleteParams {
            precondition_uid: pod.metadata.uid.clone(),
            precondition_resource_version: pod.metadata.resource_version.clone().filter(|_| chosen),
            ..Default::default()
        };
        match api.delete(pod.metadata.name(), &params).await {
            Ok(_) => {
                let message = format!("Deleted pod: {}", pod.metadata.name());
                self.recorder.normal(&**owner, "SuccessfulDelete", &message);
                Ok(())
            }
            Err(e) => {
                self.expectations.deletion_observed(key, &key_of(pod));
                if e.is("NotFound") || e.is("Conflict") {
                    // Gone already, replaced by another pod of that name, or not any more as it was: then its change,
                    // which the cache has not shown, brings the owner here again.
                    return Ok(());
                }
                self.recorder.warning(&**owner, "FailedDelete", &format!("Error deleting: {e}"));
                Err(Error::api(format!("delete pod {}", pod.metadata.key()), e))
            }
        }
    }

    async fn write_status(&self, owner: &Arc<O>, want: &ReplicaStatus) -> Result<(), Error> {
        if owner.status() == *want {
            return Ok(());
        }
        let mut changed = (**owner).clone();
        changed.set_status(want);
        let api = Api::<O>::namespaced(self.setup.client.clone(), owner.meta().namespace());
        match api.update_status(&PostParams::default(), &changed).await {
            Ok(_) => Ok(()),
            Err(e) if e.is("NotFound") => Ok(()),
            Err(e) => Err(Error::api(format!("update status of {} {}", O::INFO.singular, owner.meta().key()), e)),
        }
    }
}

/// Whether a creation failed because its namespace is going.
#[must_use]
pub fn is_namespace_terminating(e: &gantry_client::Error) -> bool {
    let gantry_client::Error::Api(e) = e else { return false };
    let causes = e.details.iter().flat_map(|d| d.causes.iter().flatten());
    causes.into_iter().any(|c| c.reason.as_deref() == Some("NamespaceTerminating"))
}

/// A new pod as the owner's template says; None where it has no template.
#[must_use]
pub fn pod_from_template<O: ReplicaOwner>(owner: &O) -> Option<Pod> {
    let template = owner.template()?;
    let meta = template.metadata.clone().unwrap_or_default();
    Some(Pod {
        metadata: gantry_api::ObjectMeta {
            generate_name: Some(format!("{}-", owner.meta().name())),
            namespace: owner.meta().namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_reference(owner)]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    })
}

#[cfg(test)]
mod tests;
