//! Whether the node takes a pod: its resources, its selector, its host ports.

use super::names;
use gantry_api::core::placement::{self, HostPort};
use gantry_api::core::pod::resources::{Amounts, pod_requests};
use gantry_api::core::pod::validate::resources::is_extended;
use gantry_api::meta::object::Meta;
use gantry_api::meta::quantity::Amount;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
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

/// What one pod holds of the node.
struct Holding {
    amounts: Amounts,
    ports: Vec<HostPort>,
}

impl Holding {
    fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        let mut amounts = spec.map(pod_requests).unwrap_or_default();
        amounts.insert("pods".into(), Amount::from_milli(1000));
        Self { amounts, ports: spec.map(placement::host_ports).unwrap_or_default() }
    }
}

/// What the admitted pods hold, and who is told when one gives it back.
#[derive(Default)]
pub(crate) struct Admissions(Mutex<HashMap<String, Holding>>, watch::Sender<()>);

fn failed(predicate: &str, why: &str) -> Refusal {
    Refusal { reason: predicate.into(), message: format!("Predicate {predicate} failed: {why}") }
}

/// Whether the node's labels and taints let the pod be here.
fn fits(pod: &Pod, node: &Node) -> Result<(), Refusal> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    if !placement::admits(spec, node.metadata.labels_or_empty(), node.metadata.name()) {
        return Err(failed("NodeAffinity", "node(s) didn't match Pod's node affinity/selector"));
    }
    let mut taints = node.spec.iter().flat_map(|s| s.taints.iter().flatten()).filter(|t| t.effect == "NoExecute");
    let tolerated = |t: &Taint| spec.tolerations.iter().flatten().any(|o| placement::tolerates(o, t));
    if !names::is_static(pod) && !taints.all(tolerated) {
        return Err(failed("TaintToleration", "node(s) had taints that the pod didn't tolerate"));
    }
    Ok(())
}

fn shown(resource: &str, amount: Amount) -> i64 {
    if resource == "cpu" { amount.milli_value() } else { amount.value() }
}

impl Admissions {
    /// Admits a pod, or says why not. `allocatable` includes `pods`.
    pub(crate) fn admit(&self, pod: &Pod, node: Option<&Node>, allocatable: &Amounts) -> Result<(), Refusal> {
        let wanted = Holding::of(pod);
        let mut held = self.0.lock();
        let uid = names::uid(pod);
        let others = || held.iter().filter(|(u, _)| *u != uid).map(|(_, h)| h);
        for (resource, amount) in &wanted.amounts {
            // What the node does not have at all is counted by somebody else.
            if amount.is_zero() || is_extended(resource) && !allocatable.contains_key(resource) {
                continue;
            }
            let used = others().filter_map(|h| h.amounts.get(resource));
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
        if wanted.ports.iter().any(|p| others().any(|h| h.ports.iter().any(|q| p.conflicts(q)))) {
            return Err(failed("NodePorts", "node(s) didn't have free ports for the requested pod ports"));
        }
        node.map_or(Ok(()), |node| fits(pod, node))?;
        held.insert(uid.to_owned(), wanted);
        Ok(())
    }

    /// Counts a pod that was admitted before.
    pub(crate) fn readmit(&self, pod: &Pod) {
        self.0.lock().insert(names::uid(pod).to_owned(), Holding::of(pod));
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
    use std::collections::BTreeMap;

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
    fn ports_labels_and_taints_must_suit() {
        let a = Admissions::default();
        let allocatable = Amounts::from([("pods".into(), Amount::from_milli(10_000))]);
        let make = |uid: &str, spec: serde_json::Value| {
            let mut full = json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "hostPort": 80}]}]});
            full.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            Pod::from_value(json!({"metadata": {"name": uid, "uid": uid}, "spec": full})).unwrap()
        };
        a.admit(&make("1", json!({})), None, &allocatable).unwrap();
        a.admit(&make("1", json!({})), None, &allocatable).unwrap();
        let refused = a.admit(&make("2", json!({})), None, &allocatable).unwrap_err();
        let message = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        assert_eq!((refused.reason.as_str(), refused.message.as_str()), ("NodePorts", message));
        a.release("1");
        let taints = json!([{"key": "k", "effect": "NoExecute"}, {"key": "soft", "effect": "NoSchedule"}]);
        let node = json!({"metadata": {"name": "n", "labels": {"disk": "ssd"}}, "spec": {"taints": taints}});
        let node = Node::from_value(node).unwrap();
        let admit = |spec| a.admit(&make("2", spec), Some(&node), &allocatable).map_err(|r| r.reason);
        assert_eq!(admit(json!({"nodeSelector": {"disk": "hdd"}})), Err("NodeAffinity".into()));
        assert_eq!(admit(json!({})), Err("TaintToleration".into()));
        assert_eq!(admit(json!({"nodeSelector": {"disk": "ssd"}, "tolerations": [{"operator": "Exists"}]})), Ok(()));
    }
}
