//! Whether the node takes a pod: its resources, its selector, its host ports.

use super::names;
use gantry_api::core::pod::resources::{Amounts, pod_requests};
use gantry_api::core::pod::validate::resources::is_extended;
use gantry_api::meta::quantity::Amount;
use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use tokio::sync::watch;

/// Why a pod is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// `OutOfcpu`, `NodeAffinity`, ….
    pub reason: String,
    /// The sentence for people.
    pub message: String,
}

/// What the admitted pods hold, and who is told when one gives it back.
#[derive(Default)]
pub(crate) struct Admissions(Mutex<HashMap<String, Amounts>>, watch::Sender<()>);

fn matches(requirement: &NodeSelectorRequirement, value: Option<&String>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let number = |s: &str| s.parse::<i64>().ok();
    match (requirement.operator.as_str(), value) {
        ("In", Some(v)) => values.contains(v),
        ("NotIn", v) => v.is_none_or(|v| !values.contains(v)),
        ("Exists", v) => v.is_some(),
        ("DoesNotExist", v) => v.is_none(),
        (op @ ("Gt" | "Lt"), Some(v)) => match (number(v), values.first().and_then(|x| number(x))) {
            (Some(a), Some(b)) => {
                if op == "Gt" {
                    a > b
                } else {
                    a < b
                }
            }
            _ => false,
        },
        _ => false,
    }
}

fn term_matches(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>, name: &String) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|r| matches(r, labels.get(&r.key)))
        && fields.iter().all(|r| r.key == "metadata.name" && matches(r, Some(name)))
}

/// Whether the node's labels satisfy the pod's selector and required affinity.
pub(crate) fn fits_selector(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = pod.spec.as_ref() else { return true };
    let empty = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&empty);
    let name = node.metadata.name.clone().unwrap_or_default();
    if spec.node_selector.iter().flatten().any(|(k, v)| labels.get(k) != Some(v)) {
        return false;
    }
    let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    match affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()) {
        Some(selector) => selector.node_selector_terms.iter().any(|t| term_matches(t, labels, &name)),
        None => true,
    }
}

fn shown(resource: &str, amount: Amount) -> i64 {
    if resource == "cpu" { amount.milli_value() } else { amount.value() }
}

impl Admissions {
    /// Admits a pod, or says why not. `allocatable` includes `pods`.
    pub(crate) fn admit(&self, pod: &Pod, node: Option<&Node>, allocatable: &Amounts) -> Result<(), Refusal> {
        if let Some(node) = node
            && !fits_selector(pod, node)
        {
            return Err(Refusal {
                reason: "NodeAffinity".into(),
                message: "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector".into(),
            });
        }
        let mut wanted = pod.spec.as_ref().map(pod_requests).unwrap_or_default();
        wanted.insert("pods".into(), Amount::from_milli(1000));
        let mut held = self.0.lock();
        let uid = names::uid(pod);
        for (resource, amount) in &wanted {
            // What the node does not have at all is counted by somebody else.
            if amount.is_zero() || is_extended(resource) && !allocatable.contains_key(resource) {
                continue;
            }
            let used = held.iter().filter(|(u, _)| *u != uid).filter_map(|(_, a)| a.get(resource));
            let used = used.fold(Amount::ZERO, |sum, a| sum.plus(a));
            let capacity = allocatable.get(resource).copied().unwrap_or_default();
            if used.plus(amount) > capacity {
                return Err(Refusal {
                    reason: format!("OutOf{resource}"),
                    message: format!(
                        "Node didn't have enough resource: {resource}, requested: {}, used: {}, capacity: {}",
                        shown(resource, *amount),
                        shown(resource, used),
                        shown(resource, capacity)
                    ),
                });
            }
        }
        held.insert(uid.to_owned(), wanted);
        Ok(())
    }

    /// Counts a pod that was admitted before.
    pub(crate) fn readmit(&self, pod: &Pod) {
        let mut wanted = pod.spec.as_ref().map(pod_requests).unwrap_or_default();
        wanted.insert("pods".into(), Amount::from_milli(1000));
        self.0.lock().insert(names::uid(pod).to_owned(), wanted);
    }

    /// Changes whenever a pod gives back what it held.
    pub(crate) fn room(&self) -> watch::Receiver<()> {
        self.1.subscribe()
    }

    /// Gives back what a pod held.
    pub(crate) fn release(&self, uid: &str) {
        self.0.lock().remove(uid);
        self.1.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::json;

    fn pod(uid: &str, cpu: &str) -> Pod {
        Pod::from_value(json!({"metadata": {"name": uid, "uid": uid}, "spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": cpu}}}]}}))
        .unwrap()
    }

    #[test]
    fn resources_are_counted_and_given_back() {
        let a = Admissions::default();
        let allocatable =
            Amounts::from([("cpu".into(), Amount::from_milli(1000)), ("pods".into(), Amount::from_milli(2000))]);
        a.admit(&pod("1", "600m"), None, &allocatable).unwrap();
        let refused = a.admit(&pod("2", "500m"), None, &allocatable).unwrap_err();
        assert_eq!(refused.reason, "OutOfcpu");
        assert_eq!(refused.message, "Node didn't have enough resource: cpu, requested: 500, used: 600, capacity: 1000");
        a.admit(&pod("1", "600m"), None, &allocatable).unwrap();
        a.admit(&pod("3", "100m"), None, &allocatable).unwrap();
        assert_eq!(a.admit(&pod("4", "0"), None, &allocatable).unwrap_err().reason, "OutOfpods");
        a.release("1");
        a.admit(&pod("2", "500m"), None, &allocatable).unwrap();

        // A resource that only the administrator counts, and one that nobody does.
        let mut special = pod("5", "0");
        let requests = BTreeMap::from([("example.com/x".to_owned(), Amount::from_milli(2000).to_quantity())]);
        special.spec.as_mut().unwrap().containers[0].resources.as_mut().unwrap().requests = Some(requests);
        let mut known = allocatable;
        known.insert("pods".into(), Amount::from_milli(10_000));
        a.admit(&special, None, &known).unwrap();
        known.insert("example.com/x".into(), Amount::from_milli(1000));
        assert_eq!(a.admit(&special, None, &known).unwrap_err().reason, "OutOfexample.com/x");
    }

    #[test]
    fn selectors_and_affinity() {
        let node =
            Node::from_value(json!({"metadata": {"name": "n", "labels": {"disk": "ssd", "cores": "8"}}})).unwrap();
        let fits = |spec: serde_json::Value| {
            let mut full = json!({"containers": []});
            full.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            fits_selector(&Pod::from_value(json!({"metadata": {"name": "p"}, "spec": full})).unwrap(), &node)
        };
        let affinity = |terms: serde_json::Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}});
        let expression = |key: &str, op: &str, values: &[&str]| json!([{"matchExpressions": [{"key": key, "operator": op, "values": values}]}]);
        assert!(fits(json!({"nodeSelector": {"disk": "ssd"}})));
        assert!(!fits(json!({"nodeSelector": {"disk": "hdd"}})));
        for (key, op, values, want) in [
            ("disk", "In", &["ssd"][..], true),
            ("disk", "NotIn", &["ssd"], false),
            ("gpu", "NotIn", &["x"], true),
            ("gpu", "Exists", &[], false),
            ("gpu", "DoesNotExist", &[], true),
            ("cores", "Gt", &["4"], true),
            ("cores", "Lt", &["4"], false),
        ] {
            assert_eq!(fits(affinity(expression(key, op, values))), want, "{key} {op}");
        }
        assert!(fits(affinity(
            json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}])
        )));
        assert!(!fits(affinity(json!([{}]))));
    }
}
