//! The next steps for a StatefulSet, decided from it, its pods and their claims alone.

use super::claims::{belongs_to_earlier_pod, claims_of, owners_to_be};
use super::identity::{identity_matches, new_pod, ordinal, position, replicas, revision, start, storage_matches};
use crate::pod_state;
use gantry_api::apps::int_or_percent::scaled;
use gantry_api::meta::object::Meta;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use k8s_openapi::jiff::Timestamp;
use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

/// A revision by name, with its template.
#[derive(Clone, Debug)]
pub struct Revision {
    /// Name of the ControllerRevision.
    pub name: String,
    /// The template it keeps.
    pub template: PodTemplateSpec,
}

/// What is decided from.
pub struct Inputs<'a> {
    /// The set.
    pub set: &'a StatefulSet,
    /// Its pods.
    pub pods: &'a [Arc<Pod>],
    /// Claims of its namespace, by name.
    pub claims: &'a (dyn Fn(&str) -> Option<Arc<PersistentVolumeClaim>> + Sync),
    /// What the last complete rollout brought.
    pub current: Revision,
    /// What is being rolled out.
    pub update: Revision,
    /// Names of revisions that were taken by others so far.
    pub collisions: i32,
    /// The present moment.
    pub now: Timestamp,
}

/// One thing to do.
#[derive(Clone, Debug)]
pub enum Step {
    /// Create a pod, and before it the claims it lacks.
    Create(Arc<Pod>),
    /// Create the claims a pod lacks and set their owners.
    Claim(Arc<Pod>),
    /// Set the owners of a pod's claims.
    Own(Arc<Pod>),
    /// Give a pod its labels and volumes back, and its claims their owners.
    Restore(Arc<Pod>),
    /// Delete a pod.
    Delete(Arc<Pod>),
    /// Delete a pod that nobody loses as it is, unless it is no more as it was.
    Discard(Arc<Pod>),
}

/// What to do, in order, and what to tell.
#[derive(Debug)]
pub struct SetPlan {
    /// The steps. Neighbours of one sort do not depend on each other.
    pub steps: Vec<Step>,
    /// The status.
    pub status: StatefulSetStatus,
    /// When to look again.
    pub requeue_after: Option<Duration>,
}

fn is_created(pod: &Pod) -> bool {
    !pod_state::phase(pod).is_empty()
}

fn is_running_and_ready(pod: &Pod) -> bool {
    pod_state::phase(pod) == "Running" && pod_state::is_ready(pod)
}

struct Planner<'a> {
    inputs: &'a Inputs<'a>,
    steps: Vec<Step>,
}

/// Decides the next steps.
#[must_use]
pub fn plan(inputs: &Inputs<'_>) -> SetPlan {
    let set = inputs.set;
    let mut planner = Planner { inputs, steps: Vec::new() };
    let updated_away = if set.metadata.deletion_timestamp.is_none() { planner.decide() } else { 0 };
    let mut status = status(inputs);
    status.current_replicas = Some(status.current_replicas.unwrap_or(0) - updated_away).filter(|n| *n > 0);
    complete(set, &mut status);
    let requeue_after = planner.next_availability(&status);
    SetPlan { steps: planner.steps, status, requeue_after }
}

impl Planner<'_> {
    fn set(&self) -> &StatefulSet {
        self.inputs.set
    }

    fn is_available(&self, pod: &Pod) -> bool {
        is_running_and_ready(pod)
            && pod_state::is_available(pod, self.set().spec.min_ready_seconds.unwrap_or(0), self.inputs.now)
    }

    fn is_unavailable(&self, pod: &Pod) -> bool {
        !self.is_available(pod) || pod.metadata.deletion_timestamp.is_some()
    }

    fn is_ordered(&self) -> bool {
        self.set().spec.pod_management_policy.as_deref() != Some("Parallel")
    }

    /// A pod for an ordinal that has none: of the present revision below the partition, else of the new one.
    fn missing(&self, ordinal: i32) -> Arc<Pod> {
        let Inputs { set, current, update, .. } = self.inputs;
        let strategy = set.spec.update_strategy.as_ref();
        let rolls = strategy.is_some_and(|s| s.type_.as_deref() == Some("RollingUpdate"));
        let below = match strategy.and_then(|s| s.rolling_update.as_ref()) {
            Some(r) => r.partition.unwrap_or(0),
            None => set.status.as_ref().and_then(|s| s.current_replicas).unwrap_or(0),
        };
        let which = if rolls && ordinal < start(set).saturating_add(below) { current } else { update };
        Arc::new(new_pod(set, &which.template, &which.name, ordinal))
    }

    /// Plans the steps; how many pods of the present revision are deleted for the new one.
    fn decide(&mut self) -> i32 {
        let set = self.inputs.set;
        let mut wanted: Vec<Option<Arc<Pod>>> = vec![None; usize::try_from(replicas(set)).unwrap_or(0)];
        let mut condemned = Vec::new();
        for pod in self.inputs.pods {
            // A name without an ordinal is not the set's to touch.
            let Some(n) = ordinal(pod) else { continue };
            match position(set, n) {
                Some(at) => wanted[at] = Some(pod.clone()),
                None => condemned.push(pod.clone()),
            }
        }
        let wanted: Vec<Arc<Pod>> =
            (start(set)..).zip(wanted).map(|(n, pod)| pod.unwrap_or_else(|| self.missing(n))).collect();
        condemned.sort_by_key(|p| Reverse(ordinal(p)));
        let first_unhealthy = wanted.iter().chain(condemned.iter().rev()).find(|p| self.is_unavailable(p)).cloned();

        let ordered = self.is_ordered();
        for pod in &wanted {
            if self.keep(pod) && ordered {
                return 0;
            }
        }
        for pod in &condemned {
            if self.owners_differ(pod) {
                self.steps.push(Step::Own(pod.clone()));
            }
        }
        for pod in &condemned {
            let in_the_way = first_unhealthy.as_ref().is_some_and(|f| Arc::ptr_eq(f, pod));
            if pod.metadata.deletion_timestamp.is_none() && (!ordered || self.is_available(pod) || in_the_way) {
                self.steps.push(Step::Delete(pod.clone()));
            }
            if ordered {
                // One at a time, from the last; the next when it is gone.
                return 0;
            }
        }
        self.roll(&wanted)
    }

    /// Brings one wanted pod nearer to what it should be; whether the ones after it must wait, where they go in order.
    fn keep(&mut self, pod: &Arc<Pod>) -> bool {
        if pod_state::is_finished(pod) {
            if pod.metadata.deletion_timestamp.is_none() {
                self.steps.push(Step::Delete(pod.clone()));
            }
            // Its successor is created when it is gone.
            return true;
        }
        if !is_created(pod) {
            // A claim that goes with an earlier pod of this name must not be taken into use again.
            if !self.claims(pod).any(|c| belongs_to_earlier_pod(&c, pod)) {
                self.steps.push(Step::Create(pod.clone()));
            }
            return true;
        }
        let lacks_claims = self.claims(pod).count() < claims_of(self.set(), pod).len();
        if pod_state::phase(pod) == "Pending" && (lacks_claims || self.owners_differ(pod)) {
            self.steps.push(Step::Claim(pod.clone()));
        }
        if pod.metadata.deletion_timestamp.is_some() || !self.is_available(pod) {
            return true;
        }
        if !identity_matches(pod) || !storage_matches(self.set(), pod) || self.owners_differ(pod) {
            self.steps.push(Step::Restore(pod.clone()));
        }
        false
    }

    fn claims<'b>(&'b self, pod: &'b Pod) -> impl Iterator<Item = Arc<PersistentVolumeClaim>> + 'b {
        claims_of(self.set(), pod).into_iter().filter_map(|c| (self.inputs.claims)(c.metadata.name()))
    }

    fn owners_differ(&self, pod: &Pod) -> bool {
        self.claims(pod).any(|c| owners_to_be(&c, self.set(), pod).is_some())
    }

    /// Deletes pods of other revisions, from the last to the partition, as many as may be unavailable at once. In
    /// parallel mode those that are unavailable already go first and for free: nobody loses them.
    fn roll(&mut self, wanted: &[Arc<Pod>]) -> i32 {
        let strategy = self.set().spec.update_strategy.clone().unwrap_or_default();
        if strategy.type_.as_deref() == Some("OnDelete") {
            return 0;
        }
        let rolling = strategy.rolling_update.unwrap_or_default();
        let from = usize::try_from(rolling.partition.unwrap_or(0)).unwrap_or(0);
        let most = rolling.max_unavailable.map_or(1, |v| {
            // Validation has refused what is neither a number nor a percentage.
            scaled(&v, replicas(self.set()), false).unwrap_or(1).max(1)
        });
        let unavailable = wanted.iter().filter(|p| self.is_unavailable(p)).count();
        let mut budget = usize::try_from(most).unwrap_or(1).saturating_sub(unavailable);
        let ordered = self.is_ordered();
        let mut deleted = 0;
        let doomed = |pod: &Pod| {
            is_created(pod)
                && !pod_state::is_finished(pod)
                && pod.metadata.deletion_timestamp.is_none()
                && revision(pod) != self.inputs.update.name
        };
        let mut steps = Vec::new();
        for pod in wanted.iter().skip(from).rev().filter(|p| doomed(p)) {
            if !ordered && !self.is_available(pod) {
                steps.push(Step::Discard(pod.clone()));
                deleted += 1;
            }
        }
        for pod in wanted.iter().skip(from).rev().filter(|p| doomed(p)) {
            if budget == 0 {
                break;
            }
            if ordered || self.is_available(pod) {
                steps.push(Step::Delete(pod.clone()));
                budget -= 1;
                deleted += 1;
            }
        }
        self.steps.extend(steps);
        deleted
    }

    /// When the next pod will have been ready for long enough, while not all are.
    fn next_availability(&self, status: &StatefulSetStatus) -> Option<Duration> {
        let min_ready = self.set().spec.min_ready_seconds.unwrap_or(0);
        if min_ready <= 0 || status.available_replicas == Some(replicas(self.set())) {
            return None;
        }
        let ready = self.inputs.pods.iter().filter_map(|p| pod_state::ready_since(p));
        ready.map(|t| pod_state::time_left(t, i64::from(min_ready), self.inputs.now)).filter(|d| !d.is_zero()).min()
    }
}

fn status(inputs: &Inputs<'_>) -> StatefulSetStatus {
    let set = inputs.set;
    let count =
        |test: &dyn Fn(&Pod) -> bool| i32::try_from(inputs.pods.iter().filter(|p| test(p)).count()).unwrap_or(i32::MAX);
    let some = |n: i32| Some(n).filter(|n| *n > 0);
    let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
    let of = |p: &Pod, name: &str| is_created(p) && p.metadata.deletion_timestamp.is_none() && revision(p) == name;
    StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas: count(&is_created),
        ready_replicas: some(count(&is_running_and_ready)),
        available_replicas: Some(count(&|p| {
            is_running_and_ready(p) && pod_state::is_available(p, min_ready, inputs.now)
        })),
        current_replicas: some(count(&|p| of(p, &inputs.current.name))),
        updated_replicas: some(count(&|p| of(p, &inputs.update.name))),
        current_revision: Some(inputs.current.name.clone()),
        update_revision: Some(inputs.update.name.clone()),
        collision_count: Some(inputs.collisions),
        conditions: set.status.as_ref().and_then(|s| s.conditions.clone()),
    }
}

/// A rollout is complete when all pods are of the new revision and ready: it becomes the current one.
fn complete(set: &StatefulSet, status: &mut StatefulSetStatus) {
    let rolls = set.spec.update_strategy.as_ref().is_some_and(|s| s.type_.as_deref() == Some("RollingUpdate"));
    let wanted = replicas(set);
    let all = |n: Option<i32>| n.unwrap_or(0) == wanted;
    if rolls && all(status.updated_replicas) && all(status.ready_replicas) && status.replicas == wanted {
        status.current_replicas = status.updated_replicas;
        status.current_revision.clone_from(&status.update_revision);
    }
}
