//! The completion indexes of an indexed Job's pods, and how often each index has failed.

use super::policy::judge;
use crate::pod_state;
use gantry_api::meta::object::Meta;
use k8s_openapi::api::batch::v1::JobSpec;
use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod, PodSpec};
use std::cmp::{Ordering, Reverse};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Annotation and label of a pod: its completion index.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Annotation of a pod: how many pods of its index failed before it and count.
pub const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// The same for those that do not count.
pub const IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";
/// The environment variable by which containers learn their index.
const ENVIRONMENT: &str = "JOB_COMPLETION_INDEX";

/// A pod's completion index.
#[must_use]
pub fn index(pod: &Pod) -> Option<i32> {
    pod.metadata.annotation(INDEX)?.parse().ok().filter(|i| *i >= 0)
}

/// The indexes of these pods.
#[must_use]
pub fn indexes<'a>(pods: impl IntoIterator<Item = &'a Arc<Pod>>) -> BTreeSet<i32> {
    pods.into_iter().filter_map(|p| index(p)).collect()
}

fn number(pod: &Pod, key: &str) -> i32 {
    pod.metadata.annotation(key).and_then(|v| v.parse().ok()).filter(|n| *n >= 0).unwrap_or(0)
}

/// How many failures that count came before this pod, in its index.
#[must_use]
pub fn failures_before(pod: &Pod) -> i32 {
    number(pod, FAILURES)
}

/// How many failures of any sort came before this pod, in its index.
#[must_use]
pub fn all_failures_before(pod: &Pod) -> i32 {
    failures_before(pod).saturating_add(number(pod, IGNORED))
}

/// The counts for the pod that replaces a failed one: of failures that count, and of those that do not.
#[must_use]
pub fn failures_with(spec: &JobSpec, replaced: Option<&Pod>) -> (i32, i32) {
    let Some(pod) = replaced else { return (0, 0) };
    let (counted, ignored) = (failures_before(pod), number(pod, IGNORED));
    if judge(spec.pod_failure_policy.as_ref(), pod).counts() {
        (counted.saturating_add(1), ignored)
    } else {
        (counted, ignored.saturating_add(1))
    }
}

/// Tells every container its index.
pub fn add_environment(spec: &mut PodSpec) {
    let of_init = spec.init_containers.iter_mut().flatten();
    for c in of_init.chain(&mut spec.containers) {
        add_variable(c);
    }
}

fn add_variable(container: &mut Container) {
    let env = container.env.get_or_insert_default();
    if env.iter().any(|v| v.name == ENVIRONMENT) {
        return;
    }
    let field = ObjectFieldSelector { field_path: format!("metadata.labels['{INDEX}']"), ..Default::default() };
    let from = EnvVarSource { field_ref: Some(field), ..Default::default() };
    env.push(EnvVar { name: ENVIRONMENT.to_owned(), value_from: Some(from), ..Default::default() });
}

/// Which active pods to delete: of an indexed Job all without an index of their own below `completions`, and then so
/// many that at least `count` go, the least advanced first.
#[must_use]
pub fn surplus(spec: &JobSpec, active: &[Arc<Pod>], count: usize) -> Vec<Arc<Pod>> {
    let mut left = active.to_vec();
    left.sort_by(|a, b| advancement(a, b));
    let mut out = Vec::new();
    if super::is_indexed(spec) {
        let completions = spec.completions.unwrap_or(0);
        let mut taken = BTreeSet::new();
        // The most advanced pod keeps the index.
        let mut keep = Vec::new();
        for pod in left.into_iter().rev() {
            match index(&pod) {
                Some(i) if i < completions && taken.insert(i) => keep.push(pod),
                _ => out.push(pod),
            }
        }
        keep.reverse();
        left = keep;
    }
    let more = count.saturating_sub(out.len());
    out.extend(left.into_iter().take(more));
    out
}

/// Orders active pods: those without a node first, then pending, not ready, ready for a short time, often restarted and
/// young ones.
fn advancement(a: &Pod, b: &Pod) -> Ordering {
    let assigned = |p: &Pod| !pod_state::node_name(p).is_empty();
    let phase = |p: &Pod| match pod_state::phase(p) {
        "Pending" | "" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    // No time counts as the youngest.
    let younger = |t: Option<k8s_openapi::jiff::Timestamp>| Reverse(t.unwrap_or(k8s_openapi::jiff::Timestamp::MAX));
    let since_ready = |p: &Pod| pod_state::is_ready(p).then(|| younger(pod_state::ready_since(p)));
    let created = |p: &Pod| younger(p.metadata.creation_timestamp.as_ref().map(|t| t.0));
    assigned(a)
        .cmp(&assigned(b))
        .then_with(|| phase(a).cmp(&phase(b)))
        .then_with(|| since_ready(a).cmp(&since_ready(b)))
        .then_with(|| Reverse(pod_state::max_restarts(a)).cmp(&Reverse(pod_state::max_restarts(b))))
        .then_with(|| created(a).cmp(&created(b)))
        .then_with(|| a.metadata.name().cmp(b.metadata.name()))
}
