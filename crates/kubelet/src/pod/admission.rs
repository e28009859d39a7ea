//! Whether the node takes a pod: its resources, its selector, its host ports.

use super::names;
use gantry_api::core::placement;
use gantry_api::core::pod::resources::{Amounts, pod_requests};
use gantry_api::core::pod::validate::resources::is_extended;
use gantry_api::meta::object::Meta;
use gantry_api::meta::quantity::Amount;
use k8s_openapi::api::core::v1::{Node, Pod};
use parking_lot::Mutex;
use std::collections::HashMap;
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

/// Whether the node's labels satisfy the pod's selector and required affinity.
fn fits_selector(pod: &Pod, node: &Node) -> bool {
    pod.spec.as_ref().is_none_or(|s| placement::admits(s, node.metadata.labels_or_empty(), node.metadata.name()))
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
}
