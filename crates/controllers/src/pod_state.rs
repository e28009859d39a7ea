//! What a pod's status says: ready, available, active, finished.

use gantry_api::OwnerReference;
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use k8s_openapi::jiff::Timestamp;
use std::time::Duration;

/// The pod's phase, empty where it has none yet.
#[must_use]
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// Whether the pod has ended for good.
#[must_use]
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether the pod neither has ended nor is being deleted.
#[must_use]
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Whether the pod is being deleted and has not ended yet.
#[must_use]
pub fn is_terminating(pod: &Pod) -> bool {
    !is_finished(pod) && pod.metadata.deletion_timestamp.is_some()
}

/// A condition by type.
#[must_use]
pub fn condition<'a>(pod: &'a Pod, r#type: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == r#type)
}

/// Whether the pod is ready to serve.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|c| c.status == "True")
}

/// Since when the pod is ready.
#[must_use]
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    condition(pod, "Ready").filter(|c| c.status == "True")?.last_transition_time.as_ref().map(|t| t.0)
}

/// Whether the pod has been ready for `min_ready_seconds`.
#[must_use]
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    if !is_ready(pod) {
        return false;
    }
    min_ready_seconds <= 0 || ready_since(pod).is_some_and(|t| seconds_between(t, now) >= i64::from(min_ready_seconds))
}

/// Whole seconds from `from` to `to`.
#[must_use]
pub fn seconds_between(from: Timestamp, to: Timestamp) -> i64 {
    to.duration_since(from).as_secs()
}

/// The time left until `seconds` after `from`, zero where that is past.
#[must_use]
pub fn time_left(from: Timestamp, seconds: i64, now: Timestamp) -> Duration {
    let passed = now.duration_since(from);
    let whole = k8s_openapi::jiff::SignedDuration::from_secs(seconds);
    Duration::try_from(whole.saturating_sub(passed)).unwrap_or(Duration::ZERO)
}

/// The most restarts any container has had.
#[must_use]
pub fn max_restarts(pod: &Pod) -> i32 {
    pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten()).map(|c| c.restart_count).max().unwrap_or(0)
}

/// The pod's node, empty where it has none.
#[must_use]
pub fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

/// The pod's managing controller.
#[must_use]
pub fn controller(pod: &Pod) -> Option<&OwnerReference> {
    gantry_reconcile::owner::controller_of(&pod.metadata)
}

/// Index values that find a pod by its controller, or among the orphans of its namespace.
#[must_use]
pub fn by_controller(pod: &Pod) -> Vec<String> {
    match controller(pod) {
        Some(r) => vec![r.uid.clone()],
        None => vec![orphans_of(pod.metadata.namespace.as_deref().unwrap_or_default())],
    }
}

/// The value under which [`by_controller`] puts pods without a controller.
#[must_use]
pub fn orphans_of(namespace: &str) -> String {
    format!("orphans/{namespace}")
}
