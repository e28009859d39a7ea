//! DaemonSets: a pod on every node that fits, and what upstream's conformance suite asks of them and of their
//! revisions. Each behaviour of the suite stands above its scenario by upstream's name; docs/conformance.md lists them all.

mod cluster;

use cluster::Cluster;
use cluster::api::{Api, MERGE, STRATEGIC, is_ready, name, names};
use serde_json::{Value, json};

#[test]
fn daemon_sets() {
    let cluster = Cluster::start();
    let all = scenarios![
        a_daemon_runs_and_is_revived,
        a_daemon_follows_the_labels_of_nodes,
        a_failed_daemon_pod_is_replaced,
        a_changed_daemon_is_rolled_out_and_back,
        a_collection_of_daemon_sets,
        the_status_of_a_daemon_set,
        the_life_of_a_revision,
        surge_starts_the_new_pod_first,
    ];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

fn daemon_set(label: &str) -> Value {
    json!({"metadata": {"name": "agent", "labels": {"e2e": label}}, "spec": {
        "selector": {"matchLabels": {"e2e": label}},
        "template": {"metadata": {"labels": {"e2e": label}}, "spec": {"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "app", "image": "gantry.local/self", "args": ["serve", "--port", "8080"]}]}}}})
}

/// Paths of the DaemonSet and of the pods in a new namespace.
fn paths(api: &Api<'_>, namespace: &str) -> (String, String) {
    api.namespace(namespace);
    (format!("/apis/apps/v1/namespaces/{namespace}/daemonsets"), format!("/api/v1/namespaces/{namespace}/pods"))
}

/// All that is wanted runs with the present template.
fn complete(ds: &Value) -> bool {
    let s = &ds["status"];
    s["observedGeneration"] == ds["metadata"]["generation"]
        && s["desiredNumberScheduled"] != 0
        && ["currentNumberScheduled", "numberReady", "updatedNumberScheduled", "numberAvailable"]
            .iter()
            .all(|field| s[field] == s["desiredNumberScheduled"])
}

fn version(version: &str) -> Value {
    let containers = json!([{"name": "app", "env": [{"name": "VERSION", "value": version}]}]);
    json!({"spec": {"template": {"spec": {"containers": containers}}}})
}

fn the_node(api: &Api<'_>) -> String {
    name(&api.list("/api/v1/nodes")[0]).to_owned()
}

// Conformance: DaemonSet-Creation
fn a_daemon_runs_and_is_revived(api: &Api<'_>) {
    let (sets, pods) = paths(api, "ds-simple");
    api.create(&sets, &daemon_set("simple"));
    let one = format!("{sets}/agent");
    api.until(&one, "complete", complete);
    let all = api.list(&pods);
    assert_eq!(all.len(), api.list("/api/v1/nodes").len());
    let pod = &all[0];
    let tied = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let by_name = json!({"key": "metadata.name", "operator": "In", "values": [the_node(api)]});
    assert_eq!(tied["nodeSelectorTerms"][0]["matchFields"][0], by_name);
    let tolerated = json!({"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"});
    assert!(pod["spec"]["tolerations"].as_array().unwrap().contains(&tolerated), "{pod}");
    api.delete(&format!("{pods}/{}", name(pod)));
    api.until(&pods, "another one", |list| {
        let items = list["items"].as_array().unwrap();
        items.len() == 1 && name(&items[0]) != name(pod) && is_ready(&items[0])
    });
    api.delete(&one);
    api.until(&pods, "collected", |l| l["items"].as_array().unwrap().is_empty());
}

// Conformance: DaemonSet-NodeSelection
fn a_daemon_follows_the_labels_of_nodes(api: &Api<'_>) {
    let (sets, pods) = paths(api, "ds-complex");
    let mut ds = daemon_set("complex");
    ds["spec"]["template"]["spec"]["nodeSelector"] = json!({"test/color": "blue"});
    api.create(&sets, &ds);
    let one = format!("{sets}/agent");
    api.until(&one, "seen", |d| d["status"]["observedGeneration"] == 1);
    assert!(api.list(&pods).is_empty());
    let node = format!("/api/v1/nodes/{}", the_node(api));
    let paint = |color: Value| api.patch(&node, MERGE, &json!({"metadata": {"labels": {"test/color": color}}}));
    let running = |count: usize| {
        api.until(&pods, "as many", |l| {
            let items = l["items"].as_array().unwrap();
            items.len() == count && items.iter().all(is_ready)
        });
    };
    paint(json!("blue"));
    running(1);
    paint(json!("green"));
    running(0);
    api.patch(&one, MERGE, &json!({"spec": {"template": {"spec": {"nodeSelector": {"test/color": "green"}}}}}));
    running(1);
    paint(Value::Null);
    running(0);
    api.delete(&one);
}

// Conformance: DaemonSet-FailedPodCreation
fn a_failed_daemon_pod_is_replaced(api: &Api<'_>) {
    let (sets, pods) = paths(api, "ds-failed");
    api.create(&sets, &daemon_set("failed"));
    let one = format!("{sets}/agent");
    api.until(&one, "complete", complete);
    let pod = name(&api.list(&pods)[0]).to_owned();
    api.patch(&format!("{pods}/{pod}/status"), STRATEGIC, &json!({"status": {"phase": "Failed"}}));
    api.gone(&format!("{pods}/{pod}"));
    api.until(&one, "revived", complete);
    let events = "/api/v1/namespaces/ds-failed/events?fieldSelector=reason%3DFailedDaemonPod";
    let told = api.until(events, "told", |l| !l["items"].as_array().unwrap().is_empty());
    let want = format!("Found failed daemon pod ds-failed/{pod} on node {}, will try to kill it", the_node(api));
    assert_eq!(told["items"][0]["message"], want);
    api.delete(&one);
}

// Conformance: DaemonSet-RollingUpdate
// Conformance: DaemonSet-Rollback
fn a_changed_daemon_is_rolled_out_and_back(api: &Api<'_>) {
    let (sets, pods) = paths(api, "ds-rolling");
    api.create(&sets, &daemon_set("rolling"));
    let one = format!("{sets}/agent");
    api.until(&one, "complete", complete);
    let first = api.list(&pods).remove(0);
    // A template whose pods cannot run.
    let broken = json!({"spec": {"template": {"spec": {"containers": [
        {"name": "app", "image": "127.0.0.1:1/nothing:404", "imagePullPolicy": "Never"}]}}}});
    api.patch(&one, STRATEGIC, &version("2"));
    api.until(&one, "complete", complete);
    let second = api.list(&pods).remove(0);
    assert_ne!(name(&first), name(&second));
    assert_ne!(
        first["metadata"]["labels"]["controller-revision-hash"],
        second["metadata"]["labels"]["controller-revision-hash"]
    );
    assert_eq!(second["metadata"]["labels"]["pod-template-generation"], "2");
    // To a template that cannot run and back before it came to the node: nothing is restarted.
    api.patch(&one, MERGE, &json!({"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": null}}}));
    api.patch(&one, STRATEGIC, &broken);
    api.until(&one, "none is new", |d| {
        d["status"]["observedGeneration"] == d["metadata"]["generation"]
            && d["status"]["updatedNumberScheduled"].is_null()
    });
    api.cluster.kubectl(&["-n", "ds-rolling", "rollout", "undo", "daemonset/agent"]);
    api.until(&one, "complete", complete);
    assert_eq!(name(&api.list(&pods)[0]), name(&second), "not restarted");
    api.patch(&one, MERGE, &json!({"spec": {"updateStrategy": {"type": "RollingUpdate"}}}));
    let in_namespace = |arguments: &[&str]| api.cluster.kubectl(&[&["-n", "ds-rolling"], arguments].concat());
    let history = in_namespace(&["rollout", "history", "daemonset/agent"]);
    assert!(["1", "3", "4"].iter().all(|n| history.lines().any(|l| l.starts_with(n))), "{history}");
    in_namespace(&["rollout", "restart", "daemonset/agent"]);
    let told = in_namespace(&["rollout", "status", "daemonset/agent", "--timeout=90s"]);
    assert!(told.contains("daemon set \"agent\" successfully rolled out"), "{told}");
    assert_ne!(name(&api.list(&pods)[0]), name(&second));
    api.delete(&one);
}

// Conformance: DaemonSet, list and delete a collection of DaemonSets
fn a_collection_of_daemon_sets(api: &Api<'_>) {
    let (sets, pods) = paths(api, "ds-many");
    api.create(&sets, &daemon_set("many"));
    api.until(&format!("{sets}/agent"), "complete", complete);
    assert_eq!(names(&api.list("/apis/apps/v1/daemonsets?labelSelector=e2e%3Dmany")), ["agent"]);
    api.delete(&format!("{sets}?labelSelector=e2e%3Dmany"));
    api.gone(&format!("{sets}/agent"));
    api.until(&pods, "collected", |l| l["items"].as_array().unwrap().is_empty());
}

// Conformance: DaemonSet, status sub-resource
fn the_status_of_a_daemon_set(api: &Api<'_>) {
    let (sets, _) = paths(api, "ds-status");
    api.create(&sets, &daemon_set("status"));
    let (one, status) = (format!("{sets}/agent"), format!("{sets}/agent/status"));
    api.until(&one, "complete", complete);
    assert_eq!(api.get(&status)["status"]["numberReady"], 1);
    let condition = |kind: &str| json!([{"type": kind, "status": "True", "reason": "E2E", "message": "Set by a test"}]);
    let updated = api.edit(&status, |d| d["status"]["conditions"] = condition("StatusUpdate"));
    assert_eq!(updated["status"]["conditions"][0]["type"], "StatusUpdate");
    api.patch(&status, MERGE, &json!({"status": {"conditions": condition("StatusPatched")}}));
    assert_eq!(api.get(&one)["status"]["conditions"][0]["type"], "StatusPatched");
    api.delete(&one);
}

// Conformance: ControllerRevision, resource lifecycle
fn the_life_of_a_revision(api: &Api<'_>) {
    let (sets, _) = paths(api, "ds-revisions");
    api.create(&sets, &daemon_set("revisions"));
    let one = format!("{sets}/agent");
    let ds = api.until(&one, "complete", complete);
    let revisions = "/apis/apps/v1/namespaces/ds-revisions/controllerrevisions";
    let selected = format!("{revisions}?labelSelector=e2e%3Drevisions");
    let count = |n: usize| api.until(&selected, "as many", |l| l["items"].as_array().unwrap().len() == n);
    let first = count(1)["items"][0].clone();
    assert_eq!(first["revision"], 1);
    let of = format!("{revisions}/{}", name(&first));
    let patched = api.patch(&of, MERGE, &json!({"metadata": {"labels": {"patched": "yes"}}}));
    assert_eq!(patched["metadata"]["labels"]["patched"], "yes");
    let owner = json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "agent", "uid": ds["metadata"]["uid"],
        "controller": true, "blockOwnerDeletion": true}]);
    let second = json!({"metadata": {"name": "agent-second", "ownerReferences": owner,
        "labels": {"e2e": "revisions", "controller-revision-hash": "second"}},
        "data": first["data"], "revision": 2});
    api.create(revisions, &second);
    count(2);
    api.delete(&of);
    count(1);
    let of = format!("{revisions}/agent-second");
    api.edit(&of, |r| r["metadata"]["labels"]["updated"] = json!("yes"));
    assert_eq!(api.get(&of)["metadata"]["labels"]["updated"], "yes");
    api.patch(&one, STRATEGIC, &version("2"));
    count(2);
    api.delete(&format!("{revisions}?labelSelector=updated%3Dyes"));
    let left = count(1);
    assert_eq!(left["items"][0]["revision"], 3);
    api.until(&one, "complete", complete);
    api.delete(&one);
}

fn surge_starts_the_new_pod_first(api: &Api<'_>) {
    let (sets, pods) = paths(api, "ds-surge");
    let mut ds = daemon_set("surge");
    ds["spec"]["updateStrategy"] =
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
    api.create(&sets, &ds);
    let one = format!("{sets}/agent");
    api.until(&one, "complete", complete);
    let watch = api.watch(&pods);
    let old = watch.find("ADDED", |_| true);
    api.patch(&one, STRATEGIC, &version("2"));
    let new = watch.find("ADDED", |p| name(p) != name(&old));
    watch.find("MODIFIED", |p| name(p) == name(&new) && is_ready(p));
    watch.find("DELETED", |p| name(p) == name(&old));
    api.until(&one, "complete", complete);
    api.delete(&one);
}
