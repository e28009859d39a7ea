//! The next steps for a DaemonSet, decided from it, its pods and the nodes alone.

use super::node::{Demands, Fit, add_tolerations, target, tie};
use crate::history::REVISION_HASH;
use crate::pod_state;
use gantry_api::apps::daemon_set::TEMPLATE_GENERATION;
use gantry_api::apps::int_or_percent::scaled;
use gantry_api::meta::object::Meta;
use gantry_reconcile::owner::controller_reference;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Label of pods with the number of template changes, for clients from before there were revisions.
const POD_TEMPLATE_GENERATION: &str = "pod-template-generation";

/// What is decided from.
pub struct Inputs<'a> {
    /// The DaemonSet.
    pub ds: &'a DaemonSet,
    /// What all nodes are to it.
    pub fits: &'a BTreeMap<&'a str, Fit>,
    /// Its pods, by node.
    pub pods: &'a BTreeMap<&'a str, Vec<Arc<Pod>>>,
    /// Hash of the revision of the present template.
    pub hash: &'a str,
    /// How long the failed pod on a node must still wait to be replaced.
    pub wait: &'a (dyn Fn(&str) -> Option<Duration> + Sync),
    /// The present moment.
    pub now: Timestamp,
}

/// What to do.
#[derive(Debug, Default)]
pub struct DaemonPlan {
    /// Nodes that need a pod.
    pub create: Vec<String>,
    /// Pods to delete.
    pub delete: Vec<Arc<Pod>>,
    /// Pods that ended, with the event's reason and message; the failed ones are among `delete`, too.
    pub ended: Vec<(Arc<Pod>, &'static str, String)>,
    /// When to look again.
    pub requeue_after: Option<Duration>,
}

impl DaemonPlan {
    fn look_again(&mut self, after: Duration) {
        self.requeue_after = Some(self.requeue_after.map_or(after, |d| d.min(after)));
    }
}

/// A new pod for a node.
#[must_use]
pub fn new_pod(ds: &DaemonSet, node: &str, hash: &str) -> Pod {
    let meta = ds.spec.template.metadata.clone().unwrap_or_default();
    let mut labels = meta.labels.unwrap_or_default();
    if let Some(generation) = ds.metadata.annotation(TEMPLATE_GENERATION).and_then(|g| g.parse::<i64>().ok()) {
        labels.insert(POD_TEMPLATE_GENERATION.to_owned(), generation.to_string());
    }
    labels.insert(REVISION_HASH.to_owned(), hash.to_owned());
    let mut spec = ds.spec.template.spec.clone().unwrap_or_default();
    add_tolerations(&mut spec);
    tie(&mut spec, node);
    Pod {
        metadata: gantry_api::ObjectMeta {
            generate_name: Some(format!("{}-", ds.metadata.name())),
            namespace: ds.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_reference(ds)]),
            ..Default::default()
        },
        spec: Some(spec),
        status: None,
    }
}

/// What these nodes are to the DaemonSet, by name.
#[must_use]
pub fn fits<'n>(ds: &DaemonSet, nodes: &'n [Arc<Node>]) -> BTreeMap<&'n str, Fit> {
    let demands = Demands::of(ds);
    nodes.iter().map(|n| (n.metadata.name(), demands.fit(n))).collect()
}

/// Pods by the node they are for, on each the one to keep first: on the node before merely tied to it, then the oldest.
/// Pods that have ended and only wait to be removed do not count.
#[must_use]
pub fn by_node(pods: &[Arc<Pod>]) -> BTreeMap<&str, Vec<Arc<Pod>>> {
    let mut map: BTreeMap<&str, Vec<Arc<Pod>>> = BTreeMap::new();
    for pod in pods {
        let over = pod_state::is_finished(pod) && pod.metadata.deletion_timestamp.is_some();
        if let Some(node) = target(pod).filter(|_| !over) {
            map.entry(node).or_default().push(pod.clone());
        }
    }
    for pods in map.values_mut().filter(|p| p.len() > 1) {
        pods.sort_by_cached_key(|p| {
            let created = p.metadata.creation_timestamp.as_ref().map(|t| t.0);
            (pod_state::node_name(p).is_empty(), created, p.metadata.name().to_owned())
        });
    }
    map
}

/// Surge and unavailability the update strategy allows, in pods.
fn limits(ds: &DaemonSet, desired: usize) -> (usize, usize) {
    let strategy = ds.spec.update_strategy.clone().unwrap_or_default();
    let Some(rolling) = strategy.rolling_update.filter(|_| strategy.type_.as_deref() == Some("RollingUpdate")) else {
        return (0, 0);
    };
    let total = i32::try_from(desired).unwrap_or(i32::MAX);
    // Validation has refused what is neither a number nor a percentage.
    let count = |v| scaled(&v, total, true).ok().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    let surge = rolling.max_surge.map_or(0, count);
    let unavailable = rolling.max_unavailable.map_or(0, count);
    if desired > 0 && surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// The new and the old pod on a node.
type Pair = (Option<Arc<Pod>>, Option<Arc<Pod>>);

struct Planner<'a> {
    inputs: &'a Inputs<'a>,
    plan: DaemonPlan,
}

/// Decides the next steps: pods where they are missing or not wanted, else the next of a rolling update.
#[must_use]
pub fn plan(inputs: &Inputs<'_>) -> DaemonPlan {
    let mut planner = Planner { inputs, plan: DaemonPlan::default() };
    planner.manage();
    let strategy = inputs.ds.spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref());
    // One thing at a time: what is created or deleted here must have been seen before an update counts pods.
    if planner.plan.create.is_empty() && planner.plan.delete.is_empty() && strategy == Some("RollingUpdate") {
        planner.roll();
    }
    planner.plan
}

impl Planner<'_> {
    fn is_available(&self, pod: &Pod) -> bool {
        pod_state::is_available(pod, self.inputs.ds.spec.min_ready_seconds.unwrap_or(0), self.inputs.now)
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        pod.metadata.label(REVISION_HASH) == Some(self.inputs.hash)
    }

    fn manage(&mut self) {
        for (node, fit) in self.inputs.fits {
            let pods = self.inputs.pods.get(node).map(Vec::as_slice).unwrap_or_default();
            if fit.should_run && pods.is_empty() {
                self.plan.create.push((*node).to_owned());
            } else if fit.may_stay {
                self.tend(node, *fit, pods);
            } else {
                self.plan.delete.extend(pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none()).cloned());
            }
        }
        // Nobody else removes a pod that waits for a node which does not exist.
        for (node, pods) in self.inputs.pods {
            if !self.inputs.fits.contains_key(node) {
                let waiting = pods.iter().filter(|p| pod_state::node_name(p).is_empty());
                self.plan.delete.extend(waiting.filter(|p| p.metadata.deletion_timestamp.is_none()).cloned());
            }
        }
    }

    /// Removes ended and superfluous pods of one node.
    fn tend(&mut self, node: &str, fit: Fit, pods: &[Arc<Pod>]) {
        let mut running = Vec::new();
        for pod in pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none()) {
            let key = pod.metadata.key();
            match pod_state::phase(pod) {
                "Failed" => {
                    if let Some(wait) = (self.inputs.wait)(node) {
                        self.plan.look_again(wait);
                        continue;
                    }
                    let message = format!("Found failed daemon pod {key} on node {node}, will try to kill it");
                    self.plan.ended.push((pod.clone(), "FailedDaemonPod", message));
                    self.plan.delete.push(pod.clone());
                }
                "Succeeded" => {
                    let message = format!("Found succeeded daemon pod {key} on node {node}, will try to delete it");
                    self.plan.ended.push((pod.clone(), "SucceededDaemonPod", message));
                    self.plan.delete.push(pod.clone());
                }
                _ => running.push(pod.clone()),
            }
        }
        if limits(self.inputs.ds, 1).0 == 0 {
            self.plan.delete.extend(running.into_iter().skip(1));
            return;
        }
        if running.is_empty() && fit.should_run {
            // With surge the successor need not wait until the pod that goes is gone.
            self.plan.create.push(node.to_owned());
        }
        if running.len() < 2 {
            return;
        }
        // Two may run: an old pod that is ready, and its successor that is not available yet.
        let (new, old): (Vec<_>, Vec<_>) = running.into_iter().partition(|p| self.is_updated(p));
        self.plan.delete.extend(new.iter().skip(1).chain(old.iter().skip(1)).cloned());
        if let (Some(new), Some(old)) = (new.first(), old.first())
            && (!pod_state::is_ready(old) || self.is_available(new))
        {
            self.plan.delete.push(old.clone());
        }
    }

    /// The new and the old pod on a node; None where there are several of a sort.
    fn pair(&self, pods: &[Arc<Pod>]) -> Option<Pair> {
        let staying = pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none()).cloned();
        let (new, old): (Vec<_>, Vec<_>) = staying.partition(|p| self.is_updated(p));
        (new.len() < 2 && old.len() < 2).then(|| (new.into_iter().next(), old.into_iter().next()))
    }

    fn roll(&mut self) {
        let wanted = || self.inputs.fits.iter().filter(|(_, f)| f.should_run).map(|(n, _)| *n);
        let desired = wanted().count();
        let (surge, unavailable) = limits(self.inputs.ds, desired);
        if surge == 0 {
            let without = wanted().filter(|n| !self.inputs.pods.contains_key(n)).count();
            self.roll_in_place(without, unavailable);
        } else {
            self.roll_with_surge(surge, desired);
        }
    }

    /// Deletes old pods; [`Planner::manage`] creates their successors. `unavailable` nodes have none.
    fn roll_in_place(&mut self, mut unavailable: usize, most: usize) {
        let (mut free, mut candidates) = (Vec::new(), Vec::new());
        for pods in self.inputs.pods.values() {
            match self.pair(pods) {
                None | Some((None, None) | (Some(_), Some(_))) => unavailable += 1,
                Some((Some(new), None)) => unavailable += usize::from(!self.is_available(&new)),
                // Nothing is lost with a pod that is not available, but it counts.
                Some((None, Some(old))) if !self.is_available(&old) => {
                    unavailable += 1;
                    free.push(old);
                }
                Some((None, Some(old))) => candidates.push(old),
            }
        }
        candidates.truncate(most.saturating_sub(unavailable));
        self.plan.delete.extend(free.into_iter().chain(candidates));
    }

    /// Creates new pods beside old ones, and deletes those once the new ones are available.
    fn roll_with_surge(&mut self, most: usize, desired: usize) {
        let (mut surging, mut available) = (0, 0);
        let (mut free, mut candidates, mut not_wanted) = (Vec::new(), Vec::new(), Vec::new());
        for (node, pods) in self.inputs.pods {
            let Some((new, old)) = self.pair(pods) else {
                surging += 1;
                continue;
            };
            if let Some(counted) = old.as_ref().or(new.as_ref()) {
                available += usize::from(self.is_available(counted));
            }
            let wanted = self.inputs.fits.get(node).is_some_and(|f| f.should_run);
            match (new, old) {
                (_, None) => {}
                (None, Some(old)) => match (wanted, self.is_available(&old)) {
                    (true, true) => candidates.push((*node).to_owned()),
                    (true, false) => free.push((*node).to_owned()),
                    (false, true) => not_wanted.push(old),
                    (false, false) => self.plan.delete.push(old),
                },
                (Some(new), Some(_)) if !self.is_available(&new) => surging += 1,
                (Some(_), Some(old)) => self.plan.delete.push(old),
            }
        }
        // What nodes that are no longer wanted do for availability must be done elsewhere first.
        not_wanted.truncate(available.saturating_sub(desired));
        self.plan.delete.extend(not_wanted);
        candidates.truncate(most.saturating_sub(surging));
        self.plan.create.extend(free.into_iter().chain(candidates));
    }
}

/// The status that tells of these pods, and when to look again because one will count as available then.
#[must_use]
pub fn status(inputs: &Inputs<'_>) -> (DaemonSetStatus, Option<Duration>) {
    let ds = inputs.ds;
    let min_ready = ds.spec.min_ready_seconds.unwrap_or(0);
    let (mut desired, mut scheduled, mut misscheduled) = (0, 0, 0);
    let (mut ready, mut updated, mut available) = (0, 0, 0);
    let mut again: Option<Duration> = None;
    for (node, fit) in inputs.fits {
        let first = inputs.pods.get(node).and_then(|p| p.first());
        if !fit.should_run {
            misscheduled += i32::from(first.is_some());
            continue;
        }
        desired += 1;
        let Some(pod) = first else { continue };
        scheduled += 1;
        updated += i32::from(pod.metadata.label(REVISION_HASH) == Some(inputs.hash));
        if pod_state::is_ready(pod) {
            ready += 1;
            if pod_state::is_available(pod, min_ready, inputs.now) {
                available += 1;
            } else if let Some(since) = pod_state::ready_since(pod) {
                let left = pod_state::time_left(since, i64::from(min_ready), inputs.now);
                again = Some(again.map_or(left, |d| d.min(left)));
            }
        }
    }
    let some = |n: i32| Some(n).filter(|n| *n > 0);
    let before = ds.status.clone().unwrap_or_default();
    let status = DaemonSetStatus {
        desired_number_scheduled: desired,
        current_number_scheduled: scheduled,
        number_misscheduled: misscheduled,
        number_ready: ready,
        updated_number_scheduled: some(updated),
        number_available: some(available),
        number_unavailable: some(desired - available),
        ..before
    };
    (status, again)
}
