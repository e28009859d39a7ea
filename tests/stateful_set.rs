//! StatefulSets: pods with names and order, and what upstream's conformance suite asks of them. Each behaviour of the
//! suite stands above its scenario by upstream's name; docs/conformance.md lists them all.

mod cluster;

use cluster::Cluster;
use cluster::api::{Api, MERGE, STRATEGIC, is_ready, name, names};
use serde_json::{Value, json};

#[test]
fn stateful_sets() {
    let cluster = Cluster::start();
    let all = scenarios![
        scaling_goes_in_order_and_halts,
        burst_scaling_does_not_wait,
        updates_and_rollbacks,
        canaries_and_phases,
        a_failed_pod_is_recreated,
        the_scale_of_a_stateful_set,
        a_collection_of_stateful_sets,
        the_status_of_a_stateful_set,
        names_resolve_and_kubectl_rolls,
        orphans_are_adopted,
        claims_follow_their_policy,
    ];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

/// A set of web servers that are ready as long as a file is there.
fn stateful_set(app: &str, replicas: usize) -> Value {
    json!({"metadata": {"name": "ss"}, "spec": {
    "replicas": replicas, "serviceName": "test", "selector": {"matchLabels": {"app": app}},
    "template": {"metadata": {"labels": {"app": app}}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [{
        "name": "web", "image": "gantry.local/self", "args": ["serve", "--port", "8080"],
        "env": [{"name": "VERSION", "value": "1"}],
        "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1, "failureThreshold": 1},
    }]}}}})
}

/// Paths of the sets and the pods of a new namespace.
fn paths(api: &Api<'_>, namespace: &str) -> (String, String) {
    api.namespace(namespace);
    (format!("/apis/apps/v1/namespaces/{namespace}/statefulsets"), format!("/api/v1/namespaces/{namespace}/pods"))
}

fn ready(count: u64) -> impl Fn(&Value) -> bool {
    move |set| {
        let s = &set["status"];
        s["observedGeneration"] == set["metadata"]["generation"]
            && s["readyReplicas"].as_u64().unwrap_or(0) == count
            && s["replicas"] == count
    }
}

/// A rollout is complete.
fn complete(set: &Value) -> bool {
    let s = &set["status"];
    ready(set["spec"]["replicas"].as_u64().unwrap())(set)
        && s["updatedReplicas"] == set["spec"]["replicas"]
        && s["currentRevision"] == s["updateRevision"]
}

/// A change of the template.
fn version(version: &str) -> Value {
    let containers = json!([{"name": "web", "env": [{"name": "VERSION", "value": version}]}]);
    json!({"spec": {"template": {"spec": {"containers": containers}}}})
}

// Conformance: StatefulSet, Scaling
fn scaling_goes_in_order_and_halts(api: &Api<'_>) {
    let (sets, pods) = paths(api, "sts-order");
    let watch = api.watch(&pods);
    let one = format!("{sets}/ss");
    let mut set = stateful_set("order", 3);
    // Ready only once somebody says so.
    set["spec"]["template"]["spec"]["readinessGates"] = json!([{"conditionType": "test/go"}]);
    api.create(&sets, &set);
    let go = |n: usize, status: &str| {
        let body = json!({"status": {"conditions": [{"type": "test/go", "status": status}]}});
        api.patch(&format!("{pods}/ss-{n}/status"), STRATEGIC, &body);
    };
    for n in 0..3 {
        let pod = watch.find("ADDED", |_| true);
        assert_eq!(name(&pod), format!("ss-{n}"));
        assert_eq!(pod["metadata"]["labels"]["apps.kubernetes.io/pod-index"], n.to_string());
        assert_eq!(pod["metadata"]["labels"]["statefulset.kubernetes.io/pod-name"], format!("ss-{n}"));
        assert_eq!((&pod["spec"]["hostname"], &pod["spec"]["subdomain"]), (&json!(format!("ss-{n}")), &json!("test")));
        assert!(watch.rest().iter().all(|e| e["type"] != "ADDED"), "the next one waits");
        go(n, "True");
    }
    api.until(&one, "three ready", ready(3));
    // None is ready: nothing is scaled down but the first of them, and that only when it is the last.
    (0..3).for_each(|n| go(n, "False"));
    api.until(&one, "none ready", |s| s["status"]["readyReplicas"].is_null());
    api.patch(&one, MERGE, &json!({"spec": {"replicas": 0}}));
    api.until(&one, "the change was seen", |s| s["status"]["observedGeneration"] == s["metadata"]["generation"]);
    assert_eq!(api.list(&pods).len(), 3);
    (0..2).for_each(|n| go(n, "True"));
    for n in (0..3).rev() {
        assert_eq!(name(&watch.find("DELETED", |_| true)), format!("ss-{n}"));
    }
    api.until(&one, "none left", ready(0));
    api.delete(&one);
}

// Conformance: StatefulSet, Burst Scaling
fn burst_scaling_does_not_wait(api: &Api<'_>) {
    let (sets, pods) = paths(api, "sts-burst");
    let one = format!("{sets}/ss");
    let mut set = stateful_set("burst", 1);
    set["spec"]["podManagementPolicy"] = json!("Parallel");
    set["spec"]["template"]["spec"]["readinessGates"] = json!([{"conditionType": "test/never"}]);
    api.create(&sets, &set);
    api.until(&one, "one", |s| s["status"]["replicas"] == 1);
    api.patch(&one, MERGE, &json!({"spec": {"replicas": 3}}));
    let set = api.until(&one, "three", |s| s["status"]["replicas"] == 3);
    assert!(set["status"]["readyReplicas"].is_null());
    api.patch(&one, MERGE, &json!({"spec": {"replicas": 0}}));
    api.until(&pods, "none left", |l| l["items"].as_array().unwrap().is_empty());
    api.delete(&one);
}

// Conformance: StatefulSet, Rolling Update
fn updates_and_rollbacks(api: &Api<'_>) {
    let (sets, pods) = paths(api, "sts-rolling");
    let one = format!("{sets}/ss");
    api.create(&sets, &stateful_set("rolling", 3));
    let first = api.until(&one, "complete", complete)["status"]["currentRevision"].clone();
    let watch = api.watch(&pods);
    api.patch(&one, STRATEGIC, &version("2"));
    let set = api.until(&one, "a new revision", |s| s["status"]["updateRevision"] != first);
    assert_eq!(set["status"]["currentRevision"], first);
    let second = api.until(&one, "complete", complete)["status"]["currentRevision"].clone();
    let gone: Vec<_> = (0..3).map(|_| name(&watch.find("DELETED", |_| true)).to_owned()).collect();
    assert_eq!(gone, ["ss-2", "ss-1", "ss-0"]);
    for pod in api.list(&pods) {
        assert_eq!(pod["metadata"]["labels"]["controller-revision-hash"], second);
    }
    // Back: no third revision, but the first one again.
    api.patch(&one, STRATEGIC, &version("1"));
    api.until(&one, "rolled back", |s| complete(s) && s["status"]["currentRevision"] == first);
    let revisions = api.list("/apis/apps/v1/namespaces/sts-rolling/controllerrevisions");
    assert_eq!(revisions.len(), 2);
    let number = |n: &Value| revisions.iter().find(|r| r["metadata"]["name"] == *n).unwrap()["revision"].clone();
    assert_eq!((number(&first), number(&second)), (json!(3), json!(2)));
    api.delete(&one);
}

// Conformance: StatefulSet, Rolling Update with Partition
fn canaries_and_phases(api: &Api<'_>) {
    let (sets, pods) = paths(api, "sts-canary");
    let one = format!("{sets}/ss");
    let partition =
        |n: usize| json!({"spec": {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": n}}}});
    let mut set = stateful_set("canary", 3);
    set["spec"]["updateStrategy"] = partition(3)["spec"]["updateStrategy"].clone();
    api.create(&sets, &set);
    let first = api.until(&one, "complete", complete)["status"]["currentRevision"].clone();
    api.patch(&one, STRATEGIC, &version("2"));
    let set = api.until(&one, "a new revision", |s| s["status"]["updateRevision"] != first);
    let second = set["status"]["updateRevision"].clone();
    let settled = |updated: usize| {
        api.until(&pods, "phase", |list| {
            let items = list["items"].as_array().unwrap();
            items.len() == 3
                && items.iter().all(is_ready)
                && items.iter().enumerate().all(|(n, p)| {
                    p["metadata"]["labels"]["controller-revision-hash"]
                        == if n + updated >= 3 { second.clone() } else { first.clone() }
                })
        });
    };
    settled(0);
    api.patch(&one, MERGE, &partition(2));
    settled(1);
    // Lost pods come back as they were.
    for n in [0, 2] {
        let uid = api.get(&format!("{pods}/ss-{n}"))["metadata"]["uid"].clone();
        api.delete(&format!("{pods}/ss-{n}"));
        api.until(&format!("{pods}/ss-{n}"), "a new one", |p| p["metadata"]["uid"] != uid && is_ready(p));
    }
    settled(1);
    for n in (0..2).rev() {
        api.patch(&one, MERGE, &partition(n));
        settled(3 - n);
    }
    api.until(&one, "complete", complete);
    api.delete(&one);
}

// Conformance: StatefulSet, Recreate Failed Pod
fn a_failed_pod_is_recreated(api: &Api<'_>) {
    let (sets, pods) = paths(api, "sts-failed");
    // A pod beside holds the port, so the node refuses the set's.
    let node = name(&api.list("/api/v1/nodes")[0]).to_owned();
    let port = json!([{"containerPort": 21017, "hostPort": 21017}]);
    let mut set = stateful_set("failed", 1);
    let spec = set["spec"]["template"]["spec"].as_object_mut().unwrap();
    let container = spec["containers"][0].clone();
    spec["containers"][0]["ports"] = port.clone();
    spec.insert("nodeName".into(), json!(node));
    let holder = json!({"metadata": {"name": "holder"}, "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "web", "image": container["image"], "args": container["args"], "ports": port}]}});
    api.create(&pods, &holder);
    api.ready("sts-failed", "holder");
    let watch = api.watch(&pods);
    api.create(&sets, &set);
    watch.find("MODIFIED", |p| name(p) == "ss-0" && p["status"]["phase"] == "Failed");
    watch.find("DELETED", |p| name(p) == "ss-0");
    api.delete(&format!("{pods}/holder"));
    api.until(&format!("{sets}/ss"), "ready", ready(1));
    api.delete(&format!("{sets}/ss"));
}

// Conformance: StatefulSet resource Replica scaling
fn the_scale_of_a_stateful_set(api: &Api<'_>) {
    let (sets, _) = paths(api, "sts-scale");
    api.create(&sets, &stateful_set("scale", 1));
    let (one, scale) = (format!("{sets}/ss"), format!("{sets}/ss/scale"));
    api.until(&one, "ready", ready(1));
    let found = api.get(&scale);
    assert_eq!((&found["spec"]["replicas"], &found["status"]["selector"]), (&json!(1), &json!("app=scale")));
    api.edit(&scale, |s| s["spec"]["replicas"] = json!(2));
    assert_eq!(api.get(&one)["spec"]["replicas"], 2);
    api.until(&one, "ready", ready(2));
    api.patch(&scale, MERGE, &json!({"spec": {"replicas": 1}}));
    api.until(&one, "one", ready(1));
    api.delete(&one);
}

// Conformance: StatefulSet, list, patch and delete a collection of StatefulSets
fn a_collection_of_stateful_sets(api: &Api<'_>) {
    let (sets, pods) = paths(api, "sts-many");
    let mut set = stateful_set("many", 1);
    set["metadata"]["labels"] = json!({"of": "collection"});
    api.create(&sets, &set);
    let one = format!("{sets}/ss");
    api.until(&one, "ready", ready(1));
    let found = api.list("/apis/apps/v1/statefulsets?labelSelector=of%3Dcollection");
    assert_eq!(names(&found), ["ss"]);
    let patched =
        api.patch(&one, STRATEGIC, &json!({"metadata": {"labels": {"new": "label"}}, "spec": {"replicas": 2}}));
    assert_eq!(patched["metadata"]["labels"]["new"], "label");
    api.until(&one, "ready", ready(2));
    api.delete(&format!("{sets}?labelSelector=of%3Dcollection"));
    api.gone(&one);
    api.until(&pods, "collected", |l| l["items"].as_array().unwrap().is_empty());
}

// Conformance: StatefulSet, status sub-resource
fn the_status_of_a_stateful_set(api: &Api<'_>) {
    let (sets, _) = paths(api, "sts-status");
    api.create(&sets, &stateful_set("status", 1));
    let (one, status) = (format!("{sets}/ss"), format!("{sets}/ss/status"));
    api.until(&one, "ready", ready(1));
    assert_eq!(api.get(&status)["status"]["readyReplicas"], 1);
    let condition = |kind: &str| json!([{"type": kind, "status": "True", "reason": "E2E", "message": "Set by a test"}]);
    let updated = api.edit(&status, |s| s["status"]["conditions"] = condition("StatusUpdate"));
    assert_eq!(updated["status"]["conditions"][0]["type"], "StatusUpdate");
    api.patch(&status, MERGE, &json!({"status": {"conditions": condition("StatusPatched")}}));
    assert_eq!(api.get(&one)["status"]["conditions"][0]["type"], "StatusPatched");
    api.delete(&one);
}

fn names_resolve_and_kubectl_rolls(api: &Api<'_>) {
    let (sets, _) = paths(api, "sts-dns");
    let one = format!("{sets}/ss");
    let service = json!({"metadata": {"name": "test"}, "spec": {"clusterIP": "None", "selector": {"app": "dns"}}});
    api.create("/api/v1/namespaces/sts-dns/services", &service);
    api.create(&sets, &stateful_set("dns", 2));
    api.until(&one, "complete", complete);
    let cluster = api.cluster;
    let address = api.get("/api/v1/namespaces/sts-dns/pods/ss-1")["status"]["podIP"].clone();
    cluster.wait_for("the pod's name resolves", || {
        let found = api
            .exec("sts-dns", "ss-0", &["/gantry", "self", "nslookup", "ss-1.test.sts-dns.svc.cluster.local"])
            .ok()?;
        found.contains(address.as_str().unwrap()).then_some(())
    });
    let in_namespace = |arguments: &[&str]| cluster.kubectl(&[&["-n", "sts-dns"], arguments].concat());
    in_namespace(&["rollout", "restart", "statefulset/ss"]);
    let told = in_namespace(&["rollout", "status", "statefulset/ss", "--timeout=90s"]);
    assert!(told.contains("roll out complete: 2 new pods have been updated..."), "{told}");
    let history = in_namespace(&["rollout", "history", "statefulset/ss"]);
    assert!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
    in_namespace(&["rollout", "undo", "statefulset/ss"]);
    api.until(&one, "rolled back", |s| {
        complete(s) && s["spec"]["template"]["metadata"]["annotations"]["kubectl.kubernetes.io/restartedAt"].is_null()
    });
    let events = in_namespace(&["get", "events", "-o", "jsonpath={range .items[*]}{.reason}: {.message}{'\\n'}{end}"]);
    assert!(events.contains("SuccessfulCreate: create Pod ss-0 in StatefulSet ss successful"), "{events}");
    assert!(events.contains("SuccessfulDelete: delete Pod ss-1 in StatefulSet ss successful"), "{events}");
    api.delete(&one);
}

fn orphans_are_adopted(api: &Api<'_>) {
    let (sets, pods) = paths(api, "sts-orphans");
    let one = format!("{sets}/ss");
    api.create(&sets, &stateful_set("orphans", 1));
    api.until(&one, "complete", complete);
    let uid = api.get(&format!("{pods}/ss-0"))["metadata"]["uid"].clone();
    api.delete_with(&one, &json!({"propagationPolicy": "Orphan"}));
    api.gone(&one);
    api.until(&format!("{pods}/ss-0"), "orphaned", |p| p["metadata"]["ownerReferences"].is_null());
    api.create(&sets, &stateful_set("orphans", 1));
    api.until(&one, "complete", complete);
    let pod = api.get(&format!("{pods}/ss-0"));
    assert_eq!(pod["metadata"]["uid"], uid);
    assert_eq!(pod["metadata"]["ownerReferences"][0]["name"], "ss");
    // Another label: let go, and another pod cannot take its name while it is there.
    api.patch(&format!("{pods}/ss-0"), MERGE, &json!({"metadata": {"labels": {"app": "other"}}}));
    api.until(&format!("{pods}/ss-0"), "released", |p| p["metadata"]["ownerReferences"].is_null());
    api.delete(&format!("{pods}/ss-0"));
    api.until(&format!("{pods}/ss-0"), "another", |p| p["metadata"]["uid"] != uid && is_ready(p));
    api.delete(&one);
}

/// Claims come with their pods, keep their volumes over pods, and go with a scale or the set as the policy says.
fn claims_follow_their_policy(api: &Api<'_>) {
    let (sets, pods) = paths(api, "sts-claims");
    let (one, claims) = (format!("{sets}/ss"), "/api/v1/namespaces/sts-claims/persistentvolumeclaims");
    let mut set = stateful_set("claims", 2);
    let spec = &mut set["spec"];
    spec["podManagementPolicy"] = json!("Parallel");
    spec["ordinals"] = json!({"start": 3});
    spec["volumeClaimTemplates"] = json!([{"metadata": {"name": "data"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}}]);
    spec["persistentVolumeClaimRetentionPolicy"] = json!({"whenScaled": "Delete", "whenDeleted": "Retain"});
    spec["template"]["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    api.create(&sets, &set);
    api.until(&one, "ready", ready(2));
    assert_eq!(names(&api.list(claims)), ["data-ss-3", "data-ss-4"]);
    let volume = |n: usize| {
        let claim = api.get(&format!("{claims}/data-ss-{n}"));
        assert_eq!(
            (&claim["status"]["phase"], &claim["metadata"]["labels"]["app"]),
            (&json!("Bound"), &json!("claims"))
        );
        format!("/api/v1/persistentvolumes/{}", claim["spec"]["volumeName"].as_str().unwrap())
    };
    let (first, second) = (volume(3), volume(4));
    // Another pod of the name, the same volume.
    let uid = api.get(&format!("{pods}/ss-3"))["metadata"]["uid"].clone();
    api.delete(&format!("{pods}/ss-3"));
    let pod = api.until(&format!("{pods}/ss-3"), "another", |p| p["metadata"]["uid"] != uid && is_ready(p));
    assert_eq!(pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"], "data-ss-3");
    assert_eq!(volume(3), first);
    api.until(&one, "ready", ready(2));
    api.patch(&one, MERGE, &json!({"spec": {"replicas": 1}}));
    api.gone(&format!("{claims}/data-ss-4"));
    api.gone(&second);
    assert_eq!(names(&api.list(claims)), ["data-ss-3"]);
    let policy = json!({"spec": {"persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Delete"}}});
    api.patch(&one, MERGE, &policy);
    api.until(&format!("{claims}/data-ss-3"), "owned", |c| {
        let owner = &c["metadata"]["ownerReferences"][0];
        owner["kind"] == "StatefulSet" && owner["name"] == "ss"
    });
    api.delete(&one);
    api.gone(&format!("{claims}/data-ss-3"));
    api.gone(&first);
    let events = api.list("/api/v1/namespaces/sts-claims/events?fieldSelector=reason%3DSuccessfulCreate");
    let told = "create Claim data-ss-3 Pod ss-3 in StatefulSet ss success";
    assert!(events.iter().any(|e| e["message"] == told), "{events:?}");
}
