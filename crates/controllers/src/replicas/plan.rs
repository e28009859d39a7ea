//! Decides how many pods to create or which to delete, and what the status says.

use super::owner::{Condition, Failure, ReplicaOwner, ReplicaStatus, counts_terminating};
use crate::pod_state;
use gantry_api::Time;
use gantry_api::meta::labels::Selector;
use gantry_api::meta::object::Meta;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Annotation by which a pod asks to be deleted later (higher) or earlier (lower) than its peers.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// The one condition of these kinds.
const REPLICA_FAILURE: &str = "ReplicaFailure";

/// What to do about the number of pods.
#[derive(Clone, Debug, Default)]
pub struct Decision {
    /// How many to create.
    pub create: usize,
    /// Which to delete.
    pub delete: Vec<Arc<Pod>>,
}

/// Compares the active pods with what is asked for. `related` counts active pods of all sibling owners by node; no more
/// than `burst` pods are created or deleted at once.
#[must_use]
pub fn decide<O: ReplicaOwner>(
    owner: &O,
    active: &[Arc<Pod>],
    related: &BTreeMap<String, usize>,
    now: Timestamp,
    burst: usize,
) -> Decision {
    let wanted = usize::try_from(owner.replicas()).unwrap_or(0);
    if active.len() <= wanted {
        return Decision { create: (wanted - active.len()).min(burst), delete: Vec::new() };
    }
    let surplus = (active.len() - wanted).min(burst);
    let mut pods = active.to_vec();
    if surplus < pods.len() {
        pods.sort_by(|a, b| rank(a, b, related, now));
        pods.truncate(surplus);
    }
    Decision { create: 0, delete: pods }
}

/// Orders pods by which is better deleted first: not assigned, not running, not ready, cheaper, on a fuller node, ready for
/// a shorter time, restarted more often, younger.
#[must_use]
pub fn rank(a: &Pod, b: &Pod, related: &BTreeMap<String, usize>, now: Timestamp) -> Ordering {
    let assigned = |p: &Pod| !pod_state::node_name(p).is_empty();
    let phase = |p: &Pod| match pod_state::phase(p) {
        "Pending" | "" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let cost = |p: &Pod| p.metadata.annotation(DELETION_COST).and_then(|v| v.parse::<i32>().ok()).unwrap_or(0);
    let crowd = |p: &Pod| related.get(pod_state::node_name(p)).copied().unwrap_or(0);
    let first = assigned(a)
        .cmp(&assigned(b))
        .then_with(|| phase(a).cmp(&phase(b)))
        .then_with(|| pod_state::is_ready(a).cmp(&pod_state::is_ready(b)))
        .then_with(|| cost(a).cmp(&cost(b)))
        .then_with(|| Reverse(crowd(a)).cmp(&Reverse(crowd(b))));
    if first != Ordering::Equal {
        return first;
    }
    let uid = |p: &Pod| p.metadata.uid().to_owned();
    if pod_state::is_ready(a) && pod_state::is_ready(b) {
        let (x, y) = (pod_state::ready_since(a), pod_state::ready_since(b));
        if x != y {
            return age_rank(x, now).cmp(&age_rank(y, now)).then_with(|| uid(a).cmp(&uid(b)));
        }
    }
    let restarts = Reverse(pod_state::max_restarts(a)).cmp(&Reverse(pod_state::max_restarts(b)));
    if restarts != Ordering::Equal {
        return restarts;
    }
    let created = |p: &Pod| p.metadata.creation_timestamp.as_ref().map(|t| t.0);
    age_rank(created(a), now).cmp(&age_rank(created(b), now)).then_with(|| uid(a).cmp(&uid(b)))
}

/// The magnitude of an age: pods of about the same age are equal, so that not always the youngest go. No time counts as
/// no age.
fn age_rank(since: Option<Timestamp>, now: Timestamp) -> i64 {
    let Some(since) = since else { return -2 };
    let age = now.duration_since(since).as_nanos();
    if age > 0 { i64::from(age.ilog2()) } else { -1 }
}

/// The status that tells of these pods.
#[must_use]
pub fn status<O: ReplicaOwner>(
    owner: &O,
    active: &[Arc<Pod>],
    terminating: i32,
    failure: Option<Failure>,
    now: Time,
) -> ReplicaStatus {
    let template_labels = owner.template().and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.as_ref());
    let full = template_labels.map_or_else(Selector::everything, Selector::from_set);
    let count =
        |test: &dyn Fn(&Pod) -> bool| i32::try_from(active.iter().filter(|p| test(p)).count()).unwrap_or(i32::MAX);
    let mut conditions = owner.status().conditions;
    let known = conditions.iter().any(|c| c.r#type == REPLICA_FAILURE);
    match failure {
        Some(f) if !known => conditions.push(Condition {
            r#type: REPLICA_FAILURE.into(),
            status: "True".into(),
            reason: Some(if f.deleting { "FailedDelete" } else { "FailedCreate" }.into()),
            message: Some(f.message),
            since: Some(now.clone()),
        }),
        None if known => conditions.retain(|c| c.r#type != REPLICA_FAILURE),
        _ => {}
    }
    ReplicaStatus {
        replicas: count(&|_| true),
        fully_labeled: count(&|p| full.matches_optional(p.metadata.labels.as_ref())),
        ready: count(&|p| pod_state::is_ready(p)),
        available: count(&|p| pod_state::is_available(p, owner.min_ready_seconds(), now.0)),
        terminating: if counts_terminating::<O>() { terminating } else { 0 },
        observed_generation: owner.meta().generation.unwrap_or(0),
        conditions,
    }
}
