//! Node selectors: `spec.nodeSelector` and node affinity.

use crate::snapshot::{Row, Snapshot};
use gantry_api::k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec};

/// Whether a requirement holds for a value that may be absent.
fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |s: &str| s.parse::<i64>().ok();
    let compare = |ok: fn(i64, i64) -> bool| match (value.and_then(number), values.first().and_then(|v| number(v))) {
        (Some(have), Some(want)) => ok(have, want),
        _ => false,
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|v| values.iter().any(|x| x == v)),
        "NotIn" => !value.is_some_and(|v| values.iter().any(|x| x == v)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|a, b| a > b),
        "Lt" => compare(|a, b| a < b),
        _ => false,
    }
}

/// Whether one term selects the node. A term without requirements selects nothing.
#[must_use]
pub fn term_matches(term: &NodeSelectorTerm, snapshot: &Snapshot, row: Row) -> bool {
    let (by_label, by_field) =
        (term.match_expressions.as_deref().unwrap_or_default(), term.match_fields.as_deref().unwrap_or_default());
    if by_label.is_empty() && by_field.is_empty() {
        return false;
    }
    by_label.iter().all(|r| holds(r, snapshot.labels[row].get(&r.key).map(String::as_str)))
        && by_field.iter().all(|r| r.key == "metadata.name" && holds(r, Some(&snapshot.names[row])))
}

/// Whether any term selects the node.
#[must_use]
pub fn matches(selector: &NodeSelector, snapshot: &Snapshot, row: Row) -> bool {
    selector.node_selector_terms.iter().any(|t| term_matches(t, snapshot, row))
}

/// Whether the pod's node selector and required node affinity admit the node.
#[must_use]
pub fn admits(spec: &PodSpec, snapshot: &Snapshot, row: Row) -> bool {
    let labels = &snapshot.labels[row];
    if !spec.node_selector.iter().flatten().all(|(k, v)| labels.get(k) == Some(v)) {
        return false;
    }
    spec.affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())
        .is_none_or(|s| matches(s, snapshot, row))
}
