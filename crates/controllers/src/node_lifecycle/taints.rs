//! Taints that follow from a node's conditions.

use super::health::condition;
use gantry_api::Time;
use k8s_openapi::api::core::v1::{Node, Taint};
use serde_json::{Value, json};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Taints that evict, of which a node has at most one.
pub const NO_EXECUTE_KEYS: &[&str] = &[NOT_READY, UNREACHABLE];

/// Conditions that keep pods off: (type, status, taint).
const BY_CONDITION: &[(&str, &str, &str)] = &[
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

/// Keys of the `NoSchedule` taints the node should have.
#[must_use]
pub fn desired_no_schedule(node: &Node) -> Vec<&'static str> {
    let mut keys: Vec<&'static str> = BY_CONDITION
        .iter()
        .filter(|(r#type, status, _)| condition(node, r#type).is_some_and(|c| c.status == *status))
        .map(|(_, _, key)| *key)
        .collect();
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        keys.push(UNSCHEDULABLE);
    }
    keys
}

/// Key of the `NoExecute` taint the node should have.
#[must_use]
pub fn desired_no_execute(node: &Node) -> Option<&'static str> {
    match condition(node, "Ready")?.status.as_str() {
        "False" => Some(NOT_READY),
        "Unknown" => Some(UNREACHABLE),
        _ => None,
    }
}

fn taints(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default()
}

pub(super) fn has(node: &Node, key: &str, effect: &str) -> bool {
    taints(node).iter().any(|t| t.key == key && t.effect == effect)
}

/// All taints of the node with those of this controller as they should be; None where they are so already.
#[must_use]
pub fn with_taints(node: &Node, no_schedule: &[&str], no_execute: Option<&str>, now: &Time) -> Option<Vec<Taint>> {
    let ours = |t: &Taint| match t.effect.as_str() {
        "NoSchedule" => t.key == UNSCHEDULABLE || BY_CONDITION.iter().any(|(_, _, k)| t.key == *k),
        "NoExecute" => NO_EXECUTE_KEYS.contains(&t.key.as_str()),
        _ => false,
    };
    let wanted = |t: &Taint| match t.effect.as_str() {
        "NoSchedule" => no_schedule.contains(&t.key.as_str()),
        _ => no_execute == Some(t.key.as_str()),
    };
    let mut next: Vec<Taint> = taints(node).iter().filter(|t| !ours(t) || wanted(t)).cloned().collect();
    let mut changed = next.len() != taints(node).len();
    let missing = no_schedule.iter().map(|k| (*k, "NoSchedule")).chain(no_execute.map(|k| (k, "NoExecute")));
    for (key, effect) in missing {
        if !has(node, key, effect) {
            changed = true;
            next.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                time_added: Some(now.clone()),
                value: None,
            });
        }
    }
    changed.then_some(next)
}

/// The list as a patch carries it.
pub(super) fn to_json(taints: &[Taint]) -> Value {
    if taints.is_empty() {
        return Value::Null;
    }
    let one = |t: &Taint| {
        let mut v = json!({"key": t.key, "effect": t.effect});
        if let Some(value) = &t.value {
            v["value"] = value.as_str().into();
        }
        if let Some(at) = &t.time_added {
            v["timeAdded"] = at.0.to_string().into();
        }
        v
    };
    taints.iter().map(one).collect()
}
