//! Groups of pods that are placed together or not at all: PodGroups behind `--runtime-config`, and groups by annotation.

mod cluster;

use cluster::Cluster;
use cluster::api::{Api, JSON_PATCH, condition};
use serde_json::{Value, json};
use std::process::Stdio;

const NODE: &str = "/api/v1/nodes/node-1";
const GROUPS: &str = "/apis/scheduling.k8s.io/v1beta1/namespaces/default/podgroups";
const PODS: &str = "/api/v1/namespaces/default/pods";

/// Gives the node so many of an extended resource, so that what fits does not depend on the machine.
fn offer(api: &Api<'_>, resource: &str, count: u32) {
    let path = format!("/status/capacity/example.com~1{resource}");
    let patch = json!([{"op": "add", "path": path, "value": count.to_string()}]);
    api.patch(&format!("{NODE}/status"), JSON_PATCH, &patch);
    let key = format!("example.com/{resource}");
    api.until(NODE, "the resource is allocatable", |n| n["status"]["allocatable"][&key] == count.to_string().as_str());
}

/// A pod that takes one of an extended resource.
fn pod(name: &str, resource: &str, more: &Value) -> Value {
    let key = format!("example.com/{resource}");
    let mut pod = json!({"metadata": {"name": name}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [{
        "name": "c", "image": "gantry.local/self", "args": ["sleep", "inf"],
        "resources": {"requests": {&key: "1"}, "limits": {&key: "1"}},
    }]}});
    for (part, fields) in more.as_object().unwrap() {
        for (field, value) in fields.as_object().unwrap() {
            pod[part][field] = value.clone();
        }
    }
    pod
}

fn member(name: &str, group: &str) -> Value {
    pod(name, "slot", &json!({"spec": {"schedulingGroup": {"podGroupName": group}}}))
}

fn node_of(api: &Api<'_>, pod: &str) -> String {
    api.get(&format!("{PODS}/{pod}"))["spec"]["nodeName"].as_str().unwrap_or_default().to_owned()
}

fn message_of<'a>(object: &'a Value, kind: &str) -> &'a str {
    let all = object["status"]["conditions"].as_array().into_iter().flatten();
    all.into_iter().find(|c| c["type"] == kind).and_then(|c| c["message"].as_str()).unwrap_or_default()
}

fn explained(api: &Api<'_>, pod: &str) -> Value {
    api.get(&format!("{PODS}/{pod}/explain"))
}

#[test]
fn groups_of_pods() {
    let cluster = Cluster::start_with(&["--runtime-config", "scheduling.k8s.io/v1beta1=true"]);
    let api = Api::new(&cluster);
    what_is_served(&api, &cluster);
    a_pod_group_is_placed_as_a_whole(&api);
    a_group_outlives_its_pods(&api);
    a_group_by_annotation(&api);
    a_group_is_confined_to_a_domain(&api);
}

fn what_is_served(api: &Api<'_>, cluster: &Cluster) {
    let group = api.get("/apis/scheduling.k8s.io");
    assert_eq!(group["preferredVersion"]["version"], "v1");
    let versions: Vec<&str> =
        group["versions"].as_array().unwrap().iter().filter_map(|v| v["version"].as_str()).collect();
    assert_eq!(versions, ["v1", "v1beta1"]);
    let resources = cluster.kubectl(&["api-resources", "--api-group=scheduling.k8s.io", "--no-headers", "-o", "name"]);
    let mut resources: Vec<&str> = resources.lines().collect();
    resources.sort_unstable();
    let want = ["podgroups", "priorityclasses", "workloads"].map(|r| format!("{r}.scheduling.k8s.io"));
    assert_eq!(resources, want);
    let wrong = json!({"metadata": {"name": "wrong"}, "spec": {"schedulingPolicy": {"gang": {"minCount": -1}}}});
    let answer = api.send("POST", GROUPS, &wrong).expect(422);
    let want = "spec.schedulingPolicy.gang.minCount: Invalid value: -1: must be greater than or equal to 1";
    assert!(answer["message"].as_str().unwrap().ends_with(want), "{answer}");
    let workload = json!({"metadata": {"name": "job"}, "spec": {"podGroupTemplates": [
        {"name": "workers", "schedulingPolicy": {"gang": {"minCount": 3}}}]}});
    api.create("/apis/scheduling.k8s.io/v1beta1/namespaces/default/workloads", &workload);
    assert!(cluster.kubectl(&["get", "workloads"]).contains("job"));
}

fn a_pod_group_is_placed_as_a_whole(api: &Api<'_>) {
    offer(api, "slot", 2);
    api.create(PODS, &member("worker-0", "workers"));
    cluster_waits(api, "worker-0", "waiting for pods's pod group \"workers\" to appear in scheduling queue");
    let group = json!({"metadata": {"name": "workers"}, "spec": {
        "schedulingPolicy": {"gang": {"minCount": 3}},
        "workloadRef": {"workloadName": "job", "templateName": "workers"},
    }});
    let created = api.create(GROUPS, &group);
    assert_eq!(created["spec"]["priority"], 0, "{created}");
    api.create(PODS, &member("worker-1", "workers"));
    let waits = "waiting for minCount pods from a gang to appear in scheduling queue: 2 of 3 are there";
    cluster_waits(api, "worker-1", waits);
    // There is room for two of three: none is placed, and all say why.
    api.create(PODS, &member("worker-2", "workers"));
    let want = "minCount (3) cannot be satisfied: 2 of 3 pods of the group fit: 0/1 nodes are available: \
                1 Insufficient example.com/slot.";
    for n in 0..3 {
        let path = format!("{PODS}/worker-{n}");
        api.until(&path, "says why it waits", |p| message_of(p, "PodScheduled").starts_with(want));
        assert_eq!(node_of(api, &format!("worker-{n}")), "");
    }
    let told = |g: &Value| {
        condition(g, "PodGroupInitiallyScheduled") == "False"
            && message_of(g, "PodGroupInitiallyScheduled").starts_with(want)
    };
    api.until(&format!("{GROUPS}/workers"), "says why it waits", told);
    let explanation = explained(api, "worker-1");
    assert_eq!((&explanation["group"]["minCount"], &explanation["group"]["waiting"]), (&json!(3), &json!(3)));
    assert_eq!(explanation["state"], "Unschedulable", "{explanation:#}");
    offer(api, "slot", 3);
    for n in 0..3 {
        api.ready("default", &format!("worker-{n}"));
    }
    let scheduled = |g: &Value| condition(g, "PodGroupInitiallyScheduled") == "True";
    api.until(&format!("{GROUPS}/workers"), "was scheduled", scheduled);
    // A member that is lost is replaced by one pod alone; the group stays scheduled.
    api.delete(&format!("{PODS}/worker-1"));
    api.gone(&format!("{PODS}/worker-1"));
    api.create(PODS, &member("worker-3", "workers"));
    api.ready("default", "worker-3");
    let refused = api.request(
        "PATCH",
        &format!("{PODS}/worker-3"),
        Some(("application/merge-patch+json", "{\"spec\": {\"schedulingGroup\": {\"podGroupName\": \"other\"}}}")),
    );
    assert_eq!(refused.code, 422, "{}", refused.text);
}

/// A group that is deleted stays until its last pod is gone, and takes no new ones.
fn a_group_outlives_its_pods(api: &Api<'_>) {
    let group = format!("{GROUPS}/workers");
    let held = json!(["scheduling.k8s.io/podgroup-protection"]);
    assert_eq!(api.get(&group)["metadata"]["finalizers"], held);
    api.delete(&group);
    let refused = api.request("POST", PODS, Some(("application/json", &member("late", "workers").to_string())));
    assert_eq!(refused.code, 403, "{}", refused.text);
    let why = "cannot create Pod referencing PodGroup \\\"workers\\\" because it is being deleted";
    assert!(refused.text.contains(why), "{}", refused.text);
    api.delete(&format!("{PODS}/worker-0"));
    api.gone(&format!("{PODS}/worker-0"));
    assert_eq!(api.get(&group)["metadata"]["finalizers"], held);
    api.delete(&format!("{PODS}/worker-2"));
    api.delete(&format!("{PODS}/worker-3"));
    api.gone(&group);
}

/// Waits until the explanation of a pod says so of its group.
fn cluster_waits(api: &Api<'_>, pod: &str, message: &str) {
    let said = |e: &Value| e["state"] == "Gated" && e["group"]["message"] == message;
    api.until(&format!("{PODS}/{pod}/explain"), message, said);
}

fn a_group_by_annotation(api: &Api<'_>) {
    offer(api, "seat", 2);
    let annotated = |name: &str, min: &str| {
        let annotations = json!({"gantry.io/pod-group": "band", "gantry.io/pod-group-min-count": min});
        pod(name, "seat", &json!({"metadata": {"annotations": annotations}}))
    };
    api.create(PODS, &annotated("drums", "2"));
    cluster_waits(
        api,
        "drums",
        "waiting for minCount pods from a gang to appear in scheduling queue: 1 of 2 are there",
    );
    api.create(PODS, &annotated("bass", "2"));
    api.ready("default", "drums");
    api.ready("default", "bass");
    api.create(PODS, &pod("odd", "seat", &json!({"metadata": {"annotations": {"gantry.io/pod-group": "odd"}}})));
    let want = "annotation gantry.io/pod-group-min-count must be set with gantry.io/pod-group";
    api.until(&format!("{PODS}/odd"), "says what is wrong", |p| message_of(p, "PodScheduled") == want);
}

fn a_group_is_confined_to_a_domain(api: &Api<'_>) {
    offer(api, "desk", 2);
    api.create(
        GROUPS,
        &json!({"metadata": {"name": "team"}, "spec": {
        "schedulingPolicy": {"basic": {}}, "schedulingConstraints": {"topology": [{"key": "example.com/rack"}]}}}),
    );
    let spec = json!({"spec": {"schedulingGroup": {"podGroupName": "team"}}});
    api.create(PODS, &pod("one", "desk", &spec));
    let want = "1 node(s) didn't match the pod group's topology domain";
    api.until(&format!("{PODS}/one"), "says what is missing", |p| message_of(p, "PodScheduled").contains(want));
    api.patch(NODE, "application/merge-patch+json", &json!({"metadata": {"labels": {"example.com/rack": "r1"}}}));
    api.ready("default", "one");
}

#[test]
fn versions_that_are_not_there_are_refused() {
    let cluster = Cluster::prepare(&[]);
    for (value, want) in [
        ("api/alpha=true", "--runtime-config: api/alpha=true: there is no version of that kind to serve"),
        ("example.com/v1=true", "--runtime-config: unknown api groups example.com/v1"),
        (
            "scheduling.k8s.io/v1alpha3=true",
            "--runtime-config: group version scheduling.k8s.io/v1alpha3 that has not been registered",
        ),
    ] {
        let data = cluster.data_dir().join("refused");
        let mut gantry = cluster.inside(cluster::GANTRY);
        gantry.args(["server", "--data-dir", data.to_str().unwrap(), "--runtime-config", value]);
        let output = gantry.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(want), "{error}");
    }
}
