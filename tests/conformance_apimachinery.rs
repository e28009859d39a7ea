//! What upstream's conformance suite asks of the API machinery: discovery, field validation, garbage collection,
//! namespaces, watches. Each behaviour stands above its scenario by upstream's name; docs/conformance.md lists them all.

mod cluster;

use cluster::Cluster;
use cluster::api::{Api, JSON_PATCH, MERGE, STRATEGIC, condition, name, names};
use serde_json::{Value, json};

#[test]
fn api_machinery() {
    let cluster = Cluster::start();
    let all = scenarios![
        groups_and_their_versions,
        the_servers_version,
        no_table_of_what_is_not_stored,
        unknown_and_duplicate_fields,
        background_deletion_of_a_controller,
        background_deletion_of_a_deployment,
        orphaned_pods,
        orphaned_replica_set,
        foreground_deletion,
        an_owner_that_stays,
        a_circle_of_owners,
        a_namespace_changes,
        a_namespace_takes_its_pods_along,
        pods_go_first,
        watches_by_label,
        a_watch_from_the_past,
        a_watch_goes_on_where_another_ended,
        an_object_leaves_a_selector_and_comes_back,
        watches_agree_about_the_order,
    ];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

/// Pods that no node takes: they cost nothing, and all that matters here is that they exist.
fn nowhere(labels: &Value) -> Value {
    json!({"metadata": {"labels": labels}, "spec": {
        "nodeSelector": {"no-node": "has-this"},
        "containers": [{"name": "c", "image": "gantry.local/self", "args": ["sleep", "inf"]}]}})
}

/// A replication controller whose pods exist, and the UID that deletions of it ask for.
fn controller(api: &Api<'_>, namespace: &str, name: &str, replicas: usize, template: &Value) -> Value {
    let path = format!("/api/v1/namespaces/{namespace}/replicationcontrollers");
    let selector = &template["metadata"]["labels"];
    let spec = json!({"replicas": replicas, "selector": selector, "template": template});
    api.create(&path, &json!({"metadata": {"name": name}, "spec": spec}));
    api.until(&format!("{path}/{name}"), "has its pods", |rc| rc["status"]["replicas"] == replicas)
}

fn deletion(of: &Value, policy: &str) -> Value {
    json!({"propagationPolicy": policy, "preconditions": {"uid": of["metadata"]["uid"]}})
}

fn deployment(api: &Api<'_>, namespace: &str) -> Value {
    let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments");
    let labels = json!({"app": "simple"});
    let spec = json!({"replicas": 2, "selector": {"matchLabels": labels}, "template": nowhere(&labels)});
    api.create(&path, &json!({"metadata": {"name": "simpletest"}, "spec": spec}));
    api.until(&format!("{path}/simpletest"), "has its pods", |d| d["status"]["replicas"] == 2)
}

// Conformance: Discovery, confirm the groupVerion and a resourcefrom each apiGroup
// Conformance: Discovery, confirm the PreferredVersion for each api group
fn groups_and_their_versions(api: &Api<'_>) {
    let groups = api.get("/apis")["groups"].as_array().unwrap().clone();
    assert!(groups.len() > 8, "{groups:?}");
    for group in &groups {
        let versions = group["versions"].as_array().unwrap();
        assert!(versions.contains(&group["preferredVersion"]), "{group}");
        assert_eq!(api.get(&format!("/apis/{}", group["name"].as_str().unwrap()))["name"], group["name"]);
        for version in versions {
            let list = api.get(&format!("/apis/{}", version["groupVersion"].as_str().unwrap()));
            assert_eq!(list["groupVersion"], version["groupVersion"]);
            assert!(list["resources"].as_array().is_some_and(|r| !r.is_empty()), "{list}");
        }
    }
}

// Conformance: Confirm a server version
fn the_servers_version(api: &Api<'_>) {
    let version = api.get("/version");
    let number = |field: &str| version[field].as_str().unwrap().trim_end_matches('+').parse::<u32>().unwrap();
    assert!(number("major") >= 1 && number("minor") > 0, "{version}");
}

// Conformance: API metadata HTTP return
fn no_table_of_what_is_not_stored(api: &Api<'_>) {
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec":
        {"resourceAttributes": {"namespace": "default", "verb": "get", "resource": "pods"}}});
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let tables = api.with_header("Accept: application/json;as=Table;v=v1;g=meta.k8s.io");
    let status = tables.send("POST", path, &review).expect(406);
    assert_eq!(status["reason"], "NotAcceptable");
    api.create(path, &review);
}

// Conformance: Server side field validation, typed object
// Conformance: Server side field validation, typed unknown metadata
fn unknown_and_duplicate_fields(api: &Api<'_>) {
    let namespace = api.namespace("field-validation");
    let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments?fieldManager=m&fieldValidation=Strict");
    let template =
        r#"{"metadata": {"labels": {"app": "nginx"}}, "spec": {"containers": [{"name": "n", "image": "n"}]}}"#;
    let refused = |metadata: &str, spec: &str, why: &str| {
        let text = format!(
            r#"{{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {{"name": "my-dep", {metadata}
            "labels": {{"app": "nginx"}}}}, "spec": {{{spec} "selector": {{"matchLabels": {{"app": "nginx"}}}},
            "template": {template}}}}}"#
        );
        let status = api.request("POST", &path, Some(("application/json", &text))).expect(400);
        assert_eq!(status["reason"], "BadRequest");
        assert!(status["message"].as_str().unwrap().ends_with(why), "{status}");
    };
    refused(
        "",
        r#""unknownField": "foo", "replicas": 2, "replicas": 3,"#,
        r#"strict decoding error: unknown field "spec.unknownField", duplicate field "spec.replicas""#,
    );
    refused(r#""unknownMeta": "foo","#, "", r#"strict decoding error: unknown field "metadata.unknownMeta""#);
}

// Conformance: Garbage Collector, delete replication controller, propagation policy background
fn background_deletion_of_a_controller(api: &Api<'_>) {
    let namespace = api.namespace("gc-background");
    let rc = controller(api, &namespace, "simpletest", 2, &nowhere(&json!({"app": "a"})));
    let path = format!("/api/v1/namespaces/{namespace}/replicationcontrollers/simpletest");
    api.delete_with(&path, &deletion(&rc, "Background"));
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    api.until(&pods, "no pods", |list| list["items"].as_array().unwrap().is_empty());
    assert_eq!(api.try_get(&path).code, 404);
}

// Conformance: Garbage Collector, delete deployment, propagation policy background
fn background_deletion_of_a_deployment(api: &Api<'_>) {
    let namespace = api.namespace("gc-deployment");
    let object = deployment(api, &namespace);
    let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments/simpletest");
    api.delete_with(&path, &deletion(&object, "Background"));
    for of in
        [format!("/apis/apps/v1/namespaces/{namespace}/replicasets"), format!("/api/v1/namespaces/{namespace}/pods")]
    {
        api.until(&of, "nothing left", |list| list["items"].as_array().unwrap().is_empty());
    }
    assert_eq!(api.try_get(&path).code, 404);
}

// Conformance: Garbage Collector, delete replication controller, propagation policy orphan
fn orphaned_pods(api: &Api<'_>) {
    let namespace = api.namespace("gc-orphans");
    let rc = controller(api, &namespace, "simpletest", 20, &nowhere(&json!({"app": "a"})));
    let path = format!("/api/v1/namespaces/{namespace}/replicationcontrollers/simpletest");
    let wrong = json!({"propagationPolicy": "Orphan", "preconditions": {"uid": "another"}});
    let status = api.send("DELETE", &path, &wrong).expect(409);
    let why = "the UID in the precondition (another) does not match the UID in record";
    assert!(status["message"].as_str().unwrap().contains(why), "{status}");
    api.delete_with(&path, &deletion(&rc, "Orphan"));
    api.gone(&path);
    // The owner only goes once nothing names it any more, so nothing can take the pods away later.
    let pods = api.list(&format!("/api/v1/namespaces/{namespace}/pods"));
    assert_eq!(pods.len(), 20);
    for pod in pods {
        assert_eq!(
            (&pod["metadata"]["ownerReferences"], &pod["metadata"]["deletionTimestamp"]),
            (&Value::Null, &Value::Null)
        );
    }
}

// Conformance: Garbage Collector, delete deployment, propagation policy orphan
fn orphaned_replica_set(api: &Api<'_>) {
    let namespace = api.namespace("gc-orphan-rs");
    let object = deployment(api, &namespace);
    let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments/simpletest");
    api.delete_with(&path, &deletion(&object, "Orphan"));
    api.gone(&path);
    let sets = api.list(&format!("/apis/apps/v1/namespaces/{namespace}/replicasets"));
    assert_eq!((sets.len(), &sets[0]["metadata"]["ownerReferences"]), (1, &Value::Null));
    let pods = api.list(&format!("/api/v1/namespaces/{namespace}/pods"));
    assert_eq!(pods.len(), 2);
    assert!(pods.iter().all(|p| p["metadata"]["ownerReferences"][0]["name"] == sets[0]["metadata"]["name"]));
}

// Conformance: Garbage Collector, delete replication controller, after owned pods
fn foreground_deletion(api: &Api<'_>) {
    let namespace = api.namespace("gc-foreground");
    // A finalizer of the pods' own makes visible that their owner waits for them.
    let mut template = nowhere(&json!({"app": "a"}));
    template["metadata"]["finalizers"] = json!(["example.com/wait"]);
    let rc = controller(api, &namespace, "simpletest", 10, &template);
    let path = format!("/api/v1/namespaces/{namespace}/replicationcontrollers/simpletest");
    api.delete_with(&path, &deletion(&rc, "Foreground"));
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    let going =
        |list: &Value| list["items"].as_array().unwrap().iter().all(|p| p["metadata"]["deletionTimestamp"].is_string());
    let list = api.until(&pods, "all are being deleted", going);
    let all = list["items"].as_array().unwrap();
    assert_eq!(all.len(), 10);
    let rc = api.get(&path);
    assert!(rc["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(rc["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    for (at, pod) in all.iter().enumerate() {
        assert_eq!(api.try_get(&path).code, 200, "with {} pods left", all.len() - at);
        api.patch(&format!("{pods}/{}", name(pod)), MERGE, &json!({"metadata": {"finalizers": null}}));
    }
    api.gone(&path);
    assert!(api.list(&pods).is_empty(), "the owner went last");
}

// Conformance: Garbage Collector, multiple owners
fn an_owner_that_stays(api: &Api<'_>) {
    let namespace = api.namespace("gc-two-owners");
    let goes = controller(api, &namespace, "to-be-deleted", 10, &nowhere(&json!({"app": "goes"})));
    let stays = json!({"metadata": {"name": "to-stay"}, "spec":
        {"replicas": 0, "selector": {"app": "stays"}, "template": nowhere(&json!({"app": "stays"}))}});
    let owners = format!("/api/v1/namespaces/{namespace}/replicationcontrollers");
    let stays = api.create(&owners, &stays);
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    let all = api.list(&pods);
    let (half, _) = all.split_at(5);
    let owner = json!({"apiVersion": "v1", "kind": "ReplicationController", "name": "to-stay", "uid": stays["metadata"]["uid"]});
    for pod in half {
        let patch = json!({"metadata": {"ownerReferences": [owner]}});
        let both = api.patch(&format!("{pods}/{}", name(pod)), STRATEGIC, &patch);
        assert_eq!(both["metadata"]["ownerReferences"].as_array().unwrap().len(), 2, "merged by UID");
    }
    api.delete_with(&format!("{owners}/to-be-deleted"), &deletion(&goes, "Foreground"));
    api.gone(&format!("{owners}/to-be-deleted"));
    let left = api.list(&pods);
    assert_eq!(names(&left), names(half));
    for pod in &left {
        assert_eq!(pod["metadata"]["deletionTimestamp"], Value::Null);
        assert_eq!(pod["metadata"]["ownerReferences"], json!([owner]));
    }
}

// Conformance: Garbage Collector, dependency cycle
fn a_circle_of_owners(api: &Api<'_>) {
    let namespace = api.namespace("gc-circle");
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    let mut made = Vec::new();
    for name in ["pod1", "pod2", "pod3"] {
        let mut pod = nowhere(&json!({"app": "circle"}));
        pod["metadata"]["name"] = json!(name);
        made.push(api.create(&pods, &pod));
    }
    for (at, owner) in [(0, 2), (1, 0), (2, 1)] {
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": name(&made[owner]), "uid": made[owner]["metadata"]["uid"],
            "controller": true, "blockOwnerDeletion": true});
        api.patch(&format!("{pods}/{}", name(&made[at])), MERGE, &json!({"metadata": {"ownerReferences": [owner]}}));
    }
    api.delete_with(&format!("{pods}/pod1"), &deletion(&made[0], "Foreground"));
    api.until(&pods, "all gone", |list| list["items"].as_array().unwrap().is_empty());
}

// Conformance: Namespace patching
// Conformance: Namespace, apply changes to a namespace status
// Conformance: Namespace, apply update to a namespace
// Conformance: Namespace, apply finalizer to a namespace
fn a_namespace_changes(api: &Api<'_>) {
    let path = format!("/api/v1/namespaces/{}", api.namespace("ns-changes"));
    api.patch(&path, STRATEGIC, &json!({"metadata": {"labels": {"testLabel": "testValue"}}}));
    assert_eq!(api.get(&path)["metadata"]["labels"]["testLabel"], "testValue");

    let status = format!("{path}/status");
    assert_eq!(api.get(&status)["status"]["phase"], "Active");
    let condition =
        |kind: &str| json!({"type": kind, "status": "True", "reason": "E2E", "message": "Set by an e2e test"});
    let patch = json!({"metadata": {"annotations": {"e2e-patched-ns-status": "1"}},
        "status": {"conditions": [condition("StatusPatched")]}});
    let patched = api.patch(&status, MERGE, &patch);
    assert_eq!(patched["metadata"]["annotations"]["e2e-patched-ns-status"], "1");
    assert_eq!(patched["status"]["conditions"][0]["reason"], "E2E");
    api.edit(&status, |ns| ns["status"]["conditions"].as_array_mut().unwrap().push(condition("StatusUpdate")));
    let kinds: Vec<Value> =
        api.get(&path)["status"]["conditions"].as_array().unwrap().iter().map(|c| c["type"].clone()).collect();
    assert_eq!(kinds, ["StatusPatched", "StatusUpdate"]);

    api.edit(&path, |ns| ns["metadata"]["labels"]["updated"] = json!("e2e"));
    let updated = api.get(&path);
    assert_eq!(updated["metadata"]["labels"]["updated"], "e2e");
    assert_eq!(updated["status"]["conditions"].as_array().unwrap().len(), 2, "an update leaves the status alone");

    let fake = json!("e2e.example.com/fake-finalizer");
    let finalize = |change: &dyn Fn(&mut Vec<Value>)| {
        let mut ns = api.get(&path);
        change(ns["spec"]["finalizers"].as_array_mut().unwrap());
        let answer = api.update(&format!("{path}/finalize"), &ns);
        assert_eq!(answer["spec"]["finalizers"], ns["spec"]["finalizers"]);
        api.get(&path)["spec"]["finalizers"].clone()
    };
    assert_eq!(finalize(&|f| f.push(fake.clone())), json!(["kubernetes", fake]));
    assert_eq!(finalize(&|f| f.retain(|f| *f != fake)), json!(["kubernetes"]));
}

// Conformance: namespace-deletion-removes-pods
// Conformance: namespace-deletion-removes-services
fn a_namespace_takes_its_pods_along(api: &Api<'_>) {
    let path = format!("/api/v1/namespaces/{}", api.namespace("nsdeletetest"));
    let pod = json!({"metadata": {"name": "test-pod"}, "spec": {"terminationGracePeriodSeconds": 1, "containers":
        [{"name": "nginx", "image": "gantry.local/self", "args": ["sleep", "inf"]}]}});
    api.create(&format!("{path}/pods"), &pod);
    let service =
        json!({"metadata": {"name": "test-service"}, "spec": {"selector": {"a": "b"}, "ports": [{"port": 80}]}});
    let service = api.create(&format!("{path}/services"), &service);
    api.until(&format!("{path}/pods/test-pod"), "runs", |p| p["status"]["phase"] == "Running");
    api.delete(&path);
    let pod = json!({"metadata": {"name": "late"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let late = api.send("POST", &format!("{path}/pods"), &pod);
    assert!(matches!(late.code, 403 | 404), "nothing new in what ends: {late:?}");
    api.gone(&path);
    api.namespace("nsdeletetest");
    assert!(api.list(&format!("{path}/pods")).is_empty());
    assert!(api.list(&format!("{path}/services")).is_empty());
    // The address is free for somebody else.
    let again = json!({"metadata": {"name": "again"}, "spec": {"clusterIP": service["spec"]["clusterIP"], "ports": [{"port": 80}]}});
    api.create(&format!("{path}/services"), &again);
}

/// While a pod of a namespace that ends is still there, what it may need is there too.
fn pods_go_first(api: &Api<'_>) {
    let path = format!("/api/v1/namespaces/{}", api.namespace("ns-order"));
    let mut pod = nowhere(&json!({}));
    pod["metadata"] = json!({"name": "test-pod", "finalizers": ["e2e.example.com/finalizer"]});
    api.create(&format!("{path}/pods"), &pod);
    api.create(&format!("{path}/configmaps"), &map("test-configmap", "x"));
    api.delete(&path);
    let namespace = api.until(&path, "waits for the pod", |ns| condition(ns, "NamespaceFinalizersRemaining") == "True");
    assert_eq!(condition(&namespace, "NamespaceContentRemaining"), "True");
    assert!(api.get(&format!("{path}/pods/test-pod"))["metadata"]["deletionTimestamp"].is_string());
    let kept = api.get(&format!("{path}/configmaps/test-configmap"));
    assert!(kept["metadata"].get("deletionTimestamp").is_none(), "{kept}");
    api.patch(&format!("{path}/pods/test-pod"), MERGE, &json!({"metadata": {"finalizers": null}}));
    api.gone(&path);
}

fn maps(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/configmaps")
}

fn map(name: &str, label: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"watch-this-configmap": label}}})
}

/// Sets `data.mutation`.
fn mutate(api: &Api<'_>, path: &str, value: &str) -> Value {
    api.patch(path, MERGE, &json!({"data": {"mutation": value}}))
}

fn relabel(api: &Api<'_>, path: &str, value: &str) -> Value {
    let patch = json!([{"op": "replace", "path": "/metadata/labels/watch-this-configmap", "value": value}]);
    api.patch(path, JSON_PATCH, &patch)
}

// Conformance: watch-configmaps-with-multiple-watchers
fn watches_by_label(api: &Api<'_>) {
    let maps = maps(&api.namespace("watch-many"));
    // Each is followed strictly: an event that should not be there would be the next one.
    let select = |of: &str| api.watch(&format!("{maps}?labelSelector=watch-this-configmap{of}"));
    let (a, b, ab) = (select("%3DA"), select("%3DB"), select("%20in%20(A,B)"));
    api.create(&maps, &map("a", "A"));
    let path = format!("{maps}/a");
    mutate(api, &path, "1");
    mutate(api, &path, "2");
    api.delete(&path);
    api.create(&maps, &map("b", "B"));
    api.delete(&format!("{maps}/b"));
    for watch in [&a, &ab] {
        watch.expect("ADDED", "a");
        assert_eq!(watch.expect("MODIFIED", "a")["data"]["mutation"], "1");
        assert_eq!(watch.expect("MODIFIED", "a")["data"]["mutation"], "2");
        assert_eq!(watch.expect("DELETED", "a")["data"]["mutation"], "2");
    }
    for watch in [&b, &ab] {
        watch.expect("ADDED", "b");
        watch.expect("DELETED", "b");
    }
    // Nothing of B came to A.
    api.create(&maps, &map("last", "A"));
    a.expect("ADDED", "last");
}

// Conformance: watch-configmaps-from-resource-version
fn a_watch_from_the_past(api: &Api<'_>) {
    let maps = maps(&api.namespace("watch-past"));
    let path = format!("{maps}/m");
    api.create(&maps, &map("m", "past"));
    let first = mutate(api, &path, "1");
    let second = mutate(api, &path, "2");
    api.delete(&path);
    let version = first["metadata"]["resourceVersion"].as_str().unwrap();
    let watch = api.watch(&format!("{maps}?labelSelector=watch-this-configmap%3Dpast&resourceVersion={version}"));
    assert_eq!(watch.expect("MODIFIED", "m"), second);
    watch.expect("DELETED", "m");
}

// Conformance: watch-configmaps-closed-and-restarted
fn a_watch_goes_on_where_another_ended(api: &Api<'_>) {
    let maps = maps(&api.namespace("watch-restarted"));
    let path = format!("{maps}/m");
    let broken = api.watch(&maps_of(&maps, "restarted"));
    api.create(&maps, &map("m", "restarted"));
    mutate(api, &path, "1");
    broken.expect("ADDED", "m");
    let seen = broken.expect("MODIFIED", "m");
    drop(broken);
    let second = mutate(api, &path, "2");
    let version = seen["metadata"]["resourceVersion"].as_str().unwrap();
    let watch = api.watch(&format!("{}&resourceVersion={version}", maps_of(&maps, "restarted")));
    api.delete(&path);
    assert_eq!(watch.expect("MODIFIED", "m"), second);
    watch.expect("DELETED", "m");
}

fn maps_of(maps: &str, label: &str) -> String {
    format!("{maps}?labelSelector=watch-this-configmap%3D{label}")
}

// Conformance: watch-configmaps-label-changed
fn an_object_leaves_a_selector_and_comes_back(api: &Api<'_>) {
    let maps = maps(&api.namespace("watch-label"));
    let path = format!("{maps}/m");
    let watch = api.watch(&maps_of(&maps, "here"));
    api.create(&maps, &map("m", "here"));
    mutate(api, &path, "1");
    relabel(api, &path, "elsewhere");
    mutate(api, &path, "2");
    relabel(api, &path, "here");
    mutate(api, &path, "3");
    api.delete(&path);
    watch.expect("ADDED", "m");
    assert_eq!(watch.expect("MODIFIED", "m")["data"]["mutation"], "1");
    // As it was when it still belonged here.
    assert_eq!(watch.expect("DELETED", "m")["data"]["mutation"], "1");
    assert_eq!(watch.expect("ADDED", "m")["data"]["mutation"], "2");
    assert_eq!(watch.expect("MODIFIED", "m")["data"]["mutation"], "3");
    watch.expect("DELETED", "m");
}

// Conformance: watch-consistency
fn watches_agree_about_the_order(api: &Api<'_>) {
    let maps = maps(&api.namespace("watch-consistency"));
    let first = api.watch(&maps);
    let versions = std::thread::scope(|scope| {
        scope.spawn(|| {
            // Creations, changes and deletions of several objects, interleaved.
            for round in 0..4 {
                for n in 0..4 {
                    let path = format!("{maps}/cm-{n}");
                    match (round + n) % 3 {
                        _ if api.try_get(&path).code == 404 => drop(api.create(&maps, &map(&format!("cm-{n}"), "x"))),
                        0 => drop(api.delete(&path)),
                        _ => drop(mutate(api, &path, &format!("{round}"))),
                    }
                }
            }
            api.create(&maps, &map("last", "x"));
        });
        // From each event another watch is started at its version: it must see what follows.
        let (mut versions, mut watches) = (Vec::new(), Vec::new());
        loop {
            let (kind, object) = first.next();
            if name(&object) == "kube-root-ca.crt" {
                continue;
            }
            let version = object["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
            watches.push((versions.len() + 1, api.watch(&format!("{maps}?resourceVersion={version}"))));
            let last = name(&object) == "last";
            versions.push((kind, name(&object).to_owned(), version));
            if last {
                break;
            }
        }
        for (from, watch) in watches {
            for expected in &versions[from..] {
                let (kind, object) = watch.next();
                let version = object["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
                assert_eq!(&(kind, name(&object).to_owned(), version), expected);
            }
        }
        versions
    });
    assert_eq!(versions.len(), 17);
}
