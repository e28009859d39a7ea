//! Why a pod is on its node, or on none: `pods/NAME/explain` and `gantry explain pod`.

mod cluster;

use cluster::Cluster;
use serde_json::Value;

#[test]
fn explanations() {
    let cluster = Cluster::start();
    // A node without an agent, which nothing tolerates.
    cluster.apply(
        "apiVersion: v1\nkind: Node\nmetadata: {name: far, labels: {kubernetes.io/hostname: far}}\n\
         spec: {taints: [{key: dedicated, value: gpu, effect: NoSchedule}]}",
    );
    too_big(&cluster);
    in_anothers_place(&cluster);
    of_the_wrong_kind(&cluster);
    gated(&cluster);
    placed(&cluster);
    taken_away(&cluster);
    not_for_everybody(&cluster);
}

fn path(name: &str) -> String {
    format!("/api/v1/namespaces/default/pods/{name}/explain")
}

fn explain(cluster: &Cluster, name: &str) -> Value {
    serde_json::from_str(&cluster.kubectl(&["get", "--raw", &path(name)])).unwrap()
}

/// The explanation, once the scheduler has put the pod into this state.
fn explained(cluster: &Cluster, name: &str, state: &str) -> Value {
    cluster.wait_for(&format!("{name} is {state}"), || Some(explain(cluster, name)).filter(|e| e["state"] == state))
}

fn node<'a>(explanation: &'a Value, name: &str) -> &'a Value {
    explanation["nodes"].as_array().unwrap().iter().find(|n| n["name"] == name).unwrap()
}

fn problems(node: &Value) -> Vec<(&str, &str)> {
    let all = node["problems"].as_array().unwrap();
    all.iter().map(|p| (p["plugin"].as_str().unwrap(), p["detail"].as_str().unwrap())).collect()
}

fn remedies<'a>(explanation: &'a Value, kind: &str) -> Vec<&'a str> {
    let all = explanation["remedies"].as_array().unwrap();
    all.iter().filter(|r| r["kind"] == kind).map(|r| r["message"].as_str().unwrap()).collect()
}

/// A pod that sleeps; `spec` is further lines of its spec, `cpu` what it requests.
fn pod(cluster: &Cluster, name: &str, cpu: &str, spec: &str) {
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n{spec}  \
         containers: [{{name: c, image: gantry.local/self, args: [sleep, inf], \
         resources: {{requests: {{cpu: {cpu}}}}}}}]"
    ));
}

fn too_big(cluster: &Cluster) {
    pod(cluster, "too-big", "1000", "");
    let e = explained(cluster, "too-big", "Unschedulable");
    assert!(e["message"].as_str().unwrap().starts_with("0/2 nodes are available: "), "{e:#}");
    assert_eq!(e["queue"]["attempts"], 1, "{e:#}");
    assert!(e["queue"]["rejectedBy"].as_array().unwrap().contains(&"NodeResourcesFit".into()), "{e:#}");
    let here = problems(node(&e, "node-1"));
    let [("NodeResourcesFit", detail)] = here[..] else { panic!("{e:#}") };
    assert!(detail.starts_with("wants 1000, ") && detail.ends_with(" short"), "{detail}");
    let cores = cluster.jsonpath(&["node", "node-1"], "{.status.allocatable.cpu}");
    assert_eq!(remedies(&e, "Request"), [format!("request at most {cores} of cpu to fit on node-1")]);
    // Where filtering stops at the first predicate, this tells all.
    let there = problems(node(&e, "far"));
    assert_eq!((there[0].0, there[1].0), ("TaintToleration", "NodeResourcesFit"), "{e:#}");
    assert!(there[0].1.contains("dedicated=gpu:NoSchedule"), "{e:#}");
    assert!(e["nodes"].as_array().unwrap().iter().all(|n| n["feasible"] == false), "{e:#}");

    let gantry = cluster
        .inside(cluster::GANTRY)
        .env("KUBECONFIG", cluster.kubeconfig())
        .args(["explain", "pod", "too-big"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&gantry.stdout);
    assert!(text.starts_with("Pod:      default/too-big\nState:    Unschedulable; "), "{text}");
    assert!(text.contains("Insufficient cpu: wants 1000, "), "{text}");
    assert!(text.contains(&format!("- request at most {cores} of cpu to fit on node-1\n")), "{text}");
    cluster.kubectl(&["delete", "pod", "too-big"]);
}

fn in_anothers_place(cluster: &Cluster) {
    let cores = cluster.jsonpath(&["node", "node-1"], "{.status.allocatable.cpu}");
    let all: u64 = cores.strip_suffix('m').map_or_else(|| cores.parse::<u64>().unwrap() * 1000, |m| m.parse().unwrap());
    pod(cluster, "first", &format!("{}m", all * 6 / 10), "");
    explained(cluster, "first", "Placed");
    pod(cluster, "second", &format!("{}m", all * 6 / 10), "");
    let e = explained(cluster, "second", "Unschedulable");
    let want = "move default/first off node-1; preemption does not, for its priority is no lower";
    assert_eq!(remedies(&e, "Move"), [want], "{e:#}");
    assert_eq!(remedies(&e, "Free").len(), 1, "{e:#}");
    cluster.kubectl(&["delete", "pod", "second"]);
    // A pod that is more urgent, but does not push others away itself.
    cluster.apply(
        "apiVersion: scheduling.k8s.io/v1\nkind: PriorityClass\nmetadata: {name: polite}\nvalue: 1000\n\
         preemptionPolicy: Never",
    );
    pod(cluster, "third", &format!("{}m", all * 6 / 10), "  priorityClassName: polite\n");
    let e = explained(cluster, "third", "Unschedulable");
    assert_eq!(remedies(&e, "Evict"), ["evict default/first from node-1"], "{e:#}");
    assert_eq!(e["remedies"][0]["pods"], serde_json::json!(["default/first"]), "{e:#}");
    // What it says helps.
    cluster.kubectl(&["delete", "pod", "first"]);
    explained(cluster, "third", "Placed");
    cluster.kubectl(&["delete", "pod", "third"]);
}

fn of_the_wrong_kind(cluster: &Cluster) {
    pod(cluster, "picky", "10m", "  nodeSelector: {disk: ssd}\n");
    let e = explained(cluster, "picky", "Unschedulable");
    assert_eq!(problems(node(&e, "node-1")), [("NodeAffinity", "the node lacks disk=ssd")], "{e:#}");
    assert_eq!(remedies(&e, "Label"), ["label node-1 with disk=ssd, or relax the node selector"], "{e:#}");
    cluster.kubectl(&["label", "node", "node-1", "disk=ssd"]);
    explained(cluster, "picky", "Placed");
    cluster.kubectl(&["delete", "pod", "picky"]);
    cluster.kubectl(&["label", "node", "node-1", "disk-"]);

    cluster.kubectl(&["cordon", "node-1"]);
    pod(cluster, "kept-out", "10m", "");
    let e = explained(cluster, "kept-out", "Unschedulable");
    assert_eq!(remedies(&e, "Uncordon"), ["uncordon node-1"], "{e:#}");
    cluster.kubectl(&["uncordon", "node-1"]);
    explained(cluster, "kept-out", "Placed");
    cluster.kubectl(&["delete", "pod", "kept-out"]);
}

fn gated(cluster: &Cluster) {
    pod(cluster, "gated", "10m", "  schedulingGates: [{name: example.com/wait}]\n");
    let e = explained(cluster, "gated", "Gated");
    let gate = serde_json::json!([{"kind": "SchedulingGate", "message": "example.com/wait"}]);
    assert_eq!(e["inTheWay"], gate, "{e:#}");
    assert_eq!(node(&e, "node-1")["feasible"], true, "{e:#}");
    let claim = "  volumes: [{name: v, persistentVolumeClaim: {claimName: missing}}]\n";
    pod(cluster, "claimless", "10m", claim);
    let e = explained(cluster, "claimless", "Unschedulable");
    assert_eq!(e["inTheWay"][0]["message"], "persistentvolumeclaim \"missing\" not found", "{e:#}");
    cluster.kubectl(&["delete", "pod", "gated", "claimless"]);
}

fn placed(cluster: &Cluster) {
    pod(cluster, "placed", "10m", "");
    let e = explained(cluster, "placed", "Placed");
    assert_eq!((e["node"].as_str(), node(&e, "node-1")["feasible"].as_bool()), (Some("node-1"), Some(true)), "{e:#}");
    assert_eq!(problems(node(&e, "far"))[0].0, "TaintToleration", "{e:#}");
    // With two nodes to choose from, their scores are told.
    cluster.kubectl(&["taint", "node", "far", "dedicated-"]);
    let tolerant = "  tolerations: [{operator: Exists}]\n  nodeSelector: {kubernetes.io/hostname: node-1}\n";
    pod(cluster, "chosen", "10m", tolerant);
    let e = explained(cluster, "chosen", "Placed");
    assert_eq!(e["node"], "node-1", "{e:#}");
    cluster.kubectl(&["delete", "pod", "placed", "chosen"]);
}

/// What had to go says why, as long as it is there and for some time after.
fn taken_away(cluster: &Cluster) {
    cluster.apply("apiVersion: scheduling.k8s.io/v1\nkind: PriorityClass\nmetadata: {name: urgent}\nvalue: 1000000");
    let cores = cluster.jsonpath(&["node", "node-1"], "{.status.allocatable.cpu}");
    let all: u64 = cores.strip_suffix('m').map_or_else(|| cores.parse::<u64>().unwrap() * 1000, |m| m.parse().unwrap());
    let most = format!("{}m", all * 6 / 10);
    pod(cluster, "victim", &most, "");
    cluster.kubectl(&["patch", "pod", "victim", "-p", "{\"metadata\": {\"finalizers\": [\"example.com/hold\"]}}"]);
    cluster.ready("victim");
    pod(cluster, "urgent", &most, "  priorityClassName: urgent\n");
    let e = cluster.wait_for("the victim says why it goes", || {
        let e = explain(cluster, "victim");
        (e["disrupted"]["reason"] == "PreemptionByScheduler").then_some(e)
    });
    let message = "default-scheduler: preempting to accommodate a higher priority pod";
    assert_eq!(e["disrupted"]["message"], message, "{e:#}");
    let uid = cluster.jsonpath(&["pod", "urgent"], "{.metadata.uid}");
    let told =
        serde_json::json!([{"reason": "Preempted", "message": format!("Preempted by pod {uid} on node node-1")}]);
    cluster.wait_for("the event", || (explain(cluster, "victim")["disrupted"]["events"] == told).then_some(()));
    cluster.kubectl(&["patch", "pod", "victim", "-p", "{\"metadata\": {\"finalizers\": null}}"]);
    let e = explained(cluster, "victim", "Gone");
    assert_eq!(e["disrupted"]["events"], told, "{e:#}");
    cluster.kubectl(&["delete", "pod", "urgent"]);
}

fn not_for_everybody(cluster: &Cluster) {
    let refused = cluster.kubectl_error(&["get", "--raw", &path("nobody")]);
    assert!(refused.contains("pods \"nobody\" not found"), "{refused}");
    let refused = cluster.kubectl_error(&["get", "--raw", &path("nobody"), "--as", "jane"]);
    assert!(refused.contains("cannot get resource \"pods/explain\""), "{refused}");
    let resources = cluster.kubectl(&["get", "--raw", "/api/v1"]);
    assert!(!resources.contains("pods/explain"), "discovery is Kubernetes'");
}
