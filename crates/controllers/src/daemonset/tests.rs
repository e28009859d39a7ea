use super::node::add_tolerations;
use super::*;
use gantry_api::Time;
use gantry_api::kind::Kind;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000_000 + second).unwrap()
}

fn daemon_set(spec: &Value, strategy: &Value) -> DaemonSet {
    let mut pod = json!({"containers": [{"name": "c", "image": "i"}]});
    for (k, v) in spec.as_object().unwrap() {
        pod[k] = v.clone();
    }
    let mut ds = DaemonSet::from_value(json!({
        "metadata": {"name": "agent", "namespace": "n", "uid": "d", "generation": 1,
            "annotations": {"deprecated.daemonset.template.generation": "1"}},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "updateStrategy": strategy,
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": pod}},
    }))
    .unwrap();
    ds.set_defaults();
    ds
}

fn node(name: &str, labels: &Value, taints: &Value) -> Arc<Node> {
    let value = json!({"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints}});
    Arc::new(Node::from_value(value).unwrap())
}

/// Nodes on which pods get ready when a test says so.
struct World {
    ds: DaemonSet,
    nodes: Vec<Arc<Node>>,
    pods: BTreeMap<String, Arc<Pod>>,
    hash: String,
    second: i64,
    made: usize,
}

impl World {
    fn new(ds: DaemonSet, nodes: usize) -> Self {
        let nodes = (0..nodes).map(|i| node(&format!("n{i}"), &json!({}), &json!([]))).collect();
        Self { ds, nodes, pods: BTreeMap::new(), hash: "h1".into(), second: 0, made: 0 }
    }

    fn with<T>(&self, ask: impl FnOnce(&Inputs<'_>) -> T) -> T {
        let pods: Vec<_> = self.pods.values().cloned().collect();
        ask(&Inputs {
            ds: &self.ds,
            fits: &fits(&self.ds, &self.nodes),
            pods: &by_node(&pods),
            hash: &self.hash,
            wait: &|node| (node == "slow").then_some(Duration::from_secs(7)),
            now: at(self.second),
        })
    }

    fn plan(&self) -> DaemonPlan {
        self.with(plan)
    }

    fn status(&self) -> DaemonSetStatus {
        self.with(status).0
    }

    /// Plans and does it; how many were created and deleted.
    fn step(&mut self) -> (usize, usize) {
        let plan = self.plan();
        for node in &plan.create {
            self.made += 1;
            let mut pod = new_pod(&self.ds, node, &self.hash);
            let name = format!("agent-{:03}", self.made);
            pod.metadata.name = Some(name.clone());
            pod.metadata.creation_timestamp = Some(Time(at(self.second)));
            pod.spec.as_mut().unwrap().node_name = Some(node.clone());
            self.pods.insert(name, Arc::new(pod));
        }
        for pod in &plan.delete {
            assert!(self.pods.remove(pod.metadata.name()).is_some(), "deleted twice");
        }
        self.second += 1;
        (plan.create.len(), plan.delete.len())
    }

    fn set_phase(&mut self, name: &str, phase: &str, ready: bool) {
        let pod = Arc::make_mut(self.pods.get_mut(name).unwrap());
        let value = json!({"phase": phase, "conditions": [{"type": "Ready",
            "status": if ready { "True" } else { "False" }, "lastTransitionTime": Time(at(self.second))}]});
        pod.status = Some(serde_json::from_value(value).unwrap());
    }

    fn all_ready(&mut self) {
        let names: Vec<_> = self.pods.iter().filter(|(_, p)| !pod_state::is_ready(p)).map(|(n, _)| n.clone()).collect();
        for name in names {
            self.set_phase(&name, "Running", true);
        }
    }

    fn available(&self) -> usize {
        self.pods.values().filter(|p| pod_state::is_ready(p)).count()
    }

    fn updated(&self) -> usize {
        self.pods.values().filter(|p| p.metadata.label("controller-revision-hash") == Some(&self.hash)).count()
    }
}

#[test]
fn every_node_gets_one_pod_and_a_new_node_too() {
    let mut w = World::new(daemon_set(&json!({}), &json!({})), 3);
    assert_eq!(w.step(), (3, 0));
    assert_eq!(w.step(), (0, 0));
    w.nodes.push(node("new", &json!({}), &json!([])));
    assert_eq!(w.step(), (1, 0));
    w.all_ready();
    let s = w.status();
    assert_eq!((s.desired_number_scheduled, s.current_number_scheduled, s.number_ready), (4, 4, 4));
    assert_eq!((s.number_available, s.number_unavailable, s.updated_number_scheduled), (Some(4), None, Some(4)));
    let pod = &w.pods["agent-001"];
    assert_eq!(pod.metadata.label("pod-template-generation"), Some("1"));
    let mut waiting = (**pod).clone();
    waiting.spec.as_mut().unwrap().node_name = None;
    assert_eq!(target(&waiting), Some("n0"));
    w.nodes.remove(0);
    waiting.metadata.name = Some("waits".into());
    w.pods.insert("waits".into(), Arc::new(waiting));
    let gone: Vec<_> = w.plan().delete.iter().map(|p| p.metadata.name().to_owned()).collect();
    assert_eq!(gone, ["waits"], "its node is gone; the one that ran there is the pod collector's");
}

#[test]
fn selectors_and_taints_decide_about_nodes() {
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["3"]}]}]}}});
    let ds = daemon_set(&json!({"nodeSelector": {"disk": "ssd"}, "affinity": affinity}), &json!({}));
    let good = json!({"disk": "ssd", "cores": "4"});
    let run = |labels: &Value, taints: Value| Demands::of(&ds).fit(&node("x", labels, &taints));
    let fits = |should_run, may_stay| Fit { should_run, may_stay };
    assert_eq!(run(&good, json!([])), fits(true, true));
    assert_eq!(run(&json!({"disk": "hdd", "cores": "4"}), json!([])), fits(false, false));
    assert_eq!(run(&json!({"disk": "ssd", "cores": "3"}), json!([])), fits(false, false));
    assert_eq!(run(&good, json!([{"key": "k", "effect": "NoSchedule"}])), fits(false, true));
    assert_eq!(run(&good, json!([{"key": "k", "effect": "PreferNoSchedule"}])), fits(true, true));
    assert_eq!(run(&good, json!([{"key": "k", "effect": "NoExecute"}])), fits(false, false));
    for (key, effect) in [("not-ready", "NoExecute"), ("unschedulable", "NoSchedule"), ("disk-pressure", "NoSchedule")]
    {
        assert_eq!(
            run(&good, json!([{"key": format!("node.kubernetes.io/{key}"), "effect": effect}])),
            fits(true, true)
        );
    }
    let elsewhere = daemon_set(&json!({"nodeName": "y"}), &json!({}));
    assert_eq!(Demands::of(&elsewhere).fit(&node("x", &json!({}), &json!([]))), fits(false, false));
    let mut spec = ds.spec.template.spec.clone().unwrap();
    add_tolerations(&mut spec);
    add_tolerations(&mut spec);
    assert_eq!(spec.tolerations.as_ref().unwrap().len(), 6);
    spec.host_network = Some(true);
    add_tolerations(&mut spec);
    assert_eq!(spec.tolerations.as_ref().unwrap().len(), 7);
}

#[test]
fn a_node_that_does_not_fit_any_more_loses_its_pod() {
    let mut w = World::new(daemon_set(&json!({}), &json!({})), 2);
    w.step();
    w.nodes[1] = node("n1", &json!({}), &json!([{"key": "k", "effect": "NoSchedule"}]));
    assert_eq!(w.step(), (0, 0), "it may stay");
    assert_eq!((w.status().desired_number_scheduled, w.status().number_misscheduled), (1, 1));
    w.nodes[1] = node("n1", &json!({}), &json!([{"key": "k", "effect": "NoExecute"}]));
    assert_eq!(w.step(), (0, 1));
}

#[test]
fn ended_pods_are_replaced_failed_ones_with_back_off() {
    let mut w = World::new(daemon_set(&json!({}), &json!({})), 2);
    w.step();
    w.set_phase("agent-001", "Failed", false);
    w.set_phase("agent-002", "Succeeded", false);
    let plan = w.plan();
    let told: Vec<_> = plan.ended.iter().map(|(_, r, m)| format!("{r}: {m}")).collect();
    assert_eq!(
        told,
        [
            "FailedDaemonPod: Found failed daemon pod n/agent-001 on node n0, will try to kill it",
            "SucceededDaemonPod: Found succeeded daemon pod n/agent-002 on node n1, will try to delete it",
        ]
    );
    assert_eq!(w.step(), (0, 2));
    assert_eq!(w.step(), (2, 0));
    w.nodes = vec![node("slow", &json!({}), &json!([]))];
    w.pods.clear();
    w.step();
    w.set_phase("agent-005", "Failed", false);
    let plan = w.plan();
    assert!(plan.delete.is_empty() && plan.create.is_empty());
    assert_eq!(plan.requeue_after, Some(Duration::from_secs(7)));
}

#[test]
fn a_rolling_update_keeps_within_its_unavailability() {
    let mut w = World::new(daemon_set(&json!({}), &json!({"rollingUpdate": {"maxUnavailable": "50%"}})), 4);
    w.step();
    w.all_ready();
    w.hash = "h2".into();
    let mut least = 4;
    for _ in 0..20 {
        w.step();
        least = least.min(w.available());
        w.all_ready();
    }
    assert_eq!((w.updated(), least), (4, 2));
    // Back and forth: what is of the wanted revision already is not touched.
    w.hash = "h3".into();
    assert_eq!(w.step(), (0, 2));
    w.step();
    w.hash = "h2".into();
    let kept: Vec<_> = w
        .pods
        .iter()
        .filter(|(_, p)| p.metadata.label("controller-revision-hash") == Some("h2"))
        .map(|p| p.0.clone())
        .collect();
    for _ in 0..10 {
        w.step();
        w.all_ready();
    }
    assert_eq!(w.updated(), 4);
    assert!(kept.iter().all(|name| w.pods.contains_key(name)), "no needless restart");
}

#[test]
fn old_pods_that_are_not_available_are_replaced_at_once() {
    let mut w = World::new(daemon_set(&json!({}), &json!({})), 3);
    w.step();
    w.hash = "h2".into();
    assert_eq!(w.step(), (0, 3));
}

#[test]
fn with_surge_no_node_is_without_a_pod() {
    let strategy = json!({"rollingUpdate": {"maxSurge": 2, "maxUnavailable": 0}});
    let mut w = World::new(daemon_set(&json!({}), &strategy), 4);
    w.step();
    w.all_ready();
    w.hash = "h2".into();
    assert_eq!(w.step(), (2, 0));
    assert_eq!(w.step(), (0, 0), "waits for the new ones");
    for _ in 0..20 {
        assert!(w.available() >= 4 && w.pods.len() <= 6);
        w.all_ready();
        w.step();
    }
    assert_eq!((w.updated(), w.pods.len()), (4, 4));
    // An old pod that is not ready gives way to the new one beside it.
    w.hash = "h3".into();
    w.step();
    let old = w.pods.iter().find(|(_, p)| p.metadata.label("controller-revision-hash") == Some("h2"));
    let old = old.unwrap().0.clone();
    w.set_phase(&old, "Running", false);
    w.step();
    assert!(!w.pods.contains_key(&old));
}

#[test]
fn on_delete_waits_for_somebody_to_delete() {
    let mut w = World::new(daemon_set(&json!({}), &json!({"type": "OnDelete"})), 2);
    w.step();
    w.all_ready();
    w.hash = "h2".into();
    assert_eq!(w.step(), (0, 0));
    w.pods.remove("agent-001");
    assert_eq!(w.step(), (1, 0));
    assert_eq!(w.updated(), 1);
}

#[test]
fn a_pod_counts_as_available_after_min_ready_seconds() {
    let mut ds = daemon_set(&json!({}), &json!({}));
    ds.spec.min_ready_seconds = Some(10);
    let mut w = World::new(ds, 1);
    w.step();
    w.all_ready();
    w.second += 4;
    let (s, again) = w.with(status);
    assert_eq!((s.number_ready, s.number_available, s.number_unavailable), (1, None, Some(1)));
    assert_eq!(again, Some(Duration::from_secs(6)));
}
