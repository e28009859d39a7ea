//! What upstream's conformance suite asks of Deployments, ReplicaSets and ReplicationControllers. Each behaviour stands
//! above its scenario by upstream's name; docs/conformance.md lists them all.

mod cluster;

use cluster::Cluster;
use cluster::api::{Api, JSON_PATCH, MERGE, STRATEGIC, condition, is_ready, name, names};
use serde_json::{Value, json};

#[test]
fn workloads() {
    let cluster = Cluster::start();
    let all = scenarios![
        a_deployment_scales_in_proportion,
        a_deployment_recreates,
        a_deployment_adopts_and_rolls,
        a_deployment_forgets_old_replica_sets,
        a_deployment_rolls_over,
        the_life_of_a_deployment,
        the_status_of_a_deployment,
        scales,
        replica_sets_serve,
        replication_controllers_serve,
        replica_sets_adopt_and_release,
        replication_controllers_adopt_and_release,
        a_replica_set_is_replaced_and_patched,
        a_collection_of_replica_sets,
        the_status_of_a_replica_set,
        the_life_of_a_replication_controller,
    ];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

const NO_SUCH_IMAGE: &str = "127.0.0.1:1/nothing:404";

/// A pod template with a web server that answers at once.
fn template(app: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": {"terminationGracePeriodSeconds": 0, "containers":
        [{"name": "web", "image": "gantry.local/self", "args": ["serve", "--port", "8080"]}]}})
}

fn deployment(name: &str, replicas: usize, template: &Value) -> Value {
    json!({"metadata": {"name": name}, "spec":
        {"replicas": replicas, "selector": {"matchLabels": template["metadata"]["labels"]}, "template": template}})
}

/// A pod template of another version.
fn changed(app: &str, version: &str) -> Value {
    let mut template = template(app);
    template["spec"]["containers"][0]["env"] = json!([{"name": "VERSION", "value": version}]);
    template
}

fn path(api: &Api<'_>, namespace: &str, plural: &str) -> String {
    let namespace = if api.try_get(&format!("/api/v1/namespaces/{namespace}")).code == 404 {
        api.namespace(namespace)
    } else {
        namespace.to_owned()
    };
    let group = match plural {
        "deployments" | "replicasets" => "/apis/apps/v1",
        _ => "/api/v1",
    };
    format!("{group}/namespaces/{namespace}/{plural}")
}

/// Whether a Deployment's rollout is complete.
fn complete(d: &Value) -> bool {
    let (spec, status) = (&d["spec"]["replicas"], &d["status"]);
    status["observedGeneration"] == d["metadata"]["generation"]
        && ["replicas", "updatedReplicas", "availableReplicas"].iter().all(|field| status[field] == *spec)
}

/// All pods of a list are Ready and there are so many.
fn all_ready(count: usize) -> impl Fn(&Value) -> bool {
    move |list| {
        let items = list["items"].as_array().unwrap();
        items.len() == count && items.iter().all(is_ready)
    }
}

fn controller_of(object: &Value) -> Option<&str> {
    let owners = object["metadata"]["ownerReferences"].as_array()?;
    owners.iter().find(|o| o["controller"] == true)?["name"].as_str()
}

// Conformance: Deployment Proportional Scaling
fn a_deployment_scales_in_proportion(api: &Api<'_>) {
    let (deployments, sets) = (path(api, "proportional", "deployments"), path(api, "proportional", "replicasets"));
    let mut object = deployment("webserver", 10, &template("proportional"));
    object["spec"]["strategy"] =
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}});
    api.create(&deployments, &object);
    let one = format!("{deployments}/webserver");
    api.until(&one, "complete", complete);
    let first = name(&api.list(&sets)[0]).to_owned();

    let image = json!([{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": NO_SUCH_IMAGE}]);
    api.patch(&one, JSON_PATCH, &image);
    let sizes = |list: &Value| {
        let mut old_and_new = (0, 0);
        for set in list["items"].as_array().unwrap() {
            let size = set["spec"]["replicas"].as_u64().unwrap();
            if name(set) == first { old_and_new.0 = size } else { old_and_new.1 = size }
        }
        old_and_new
    };
    // 10 - 2 that may be missing; 10 + 3 in all.
    api.until(&sets, "8 old and 5 new", |list| sizes(list) == (8, 5));
    let old = api.until(&format!("{sets}/{first}"), "8 available", |s| s["status"]["availableReplicas"] == 8);
    assert_eq!(old["metadata"]["annotations"]["deployment.kubernetes.io/desired-replicas"], "10");
    api.edit(&format!("{one}/scale"), |scale| scale["spec"]["replicas"] = json!(30));
    // 33 in all, shared as 8 to 5.
    api.until(&sets, "20 old and 13 new", |list| sizes(list) == (20, 13));
    let list = api.list(&sets);
    for set in &list {
        let annotations = &set["metadata"]["annotations"];
        assert_eq!(annotations["deployment.kubernetes.io/desired-replicas"], "30");
        assert_eq!(annotations["deployment.kubernetes.io/max-replicas"], "33");
    }
    api.delete(&one);
}

// Conformance: Deployment Recreate
fn a_deployment_recreates(api: &Api<'_>) {
    let (deployments, pods) = (path(api, "recreate", "deployments"), path(api, "recreate", "pods"));
    let mut object = deployment("test-recreate", 1, &template("recreate"));
    object["spec"]["strategy"] = json!({"type": "Recreate"});
    let watch = api.watch(&pods);
    api.create(&deployments, &object);
    let one = format!("{deployments}/test-recreate");
    api.until(&one, "complete", complete);
    let old = name(&api.list(&pods)[0]).to_owned();
    api.patch(&one, STRATEGIC, &json!({"spec": {"template": changed("recreate", "2")}}));
    api.until(&one, "complete", |d| {
        complete(d) && d["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "2"
    });
    // Nothing of the new kind was created before the old was gone.
    loop {
        let (kind, pod) = watch.next();
        assert_eq!(name(&pod), old, "before {old} is gone");
        if kind == "DELETED" {
            break;
        }
    }
    let (kind, pod) = watch.next();
    assert_eq!(kind, "ADDED");
    assert_ne!(name(&pod), old);
}

// Conformance: Deployment RollingUpdate
fn a_deployment_adopts_and_rolls(api: &Api<'_>) {
    let (deployments, sets) = (path(api, "rolling", "deployments"), path(api, "rolling", "replicasets"));
    let pods = path(api, "rolling", "pods");
    // One that was there before, at a revision of its own.
    let mut set = deployment("test-rolling-update-controller", 1, &template("rolling"));
    set["metadata"]["labels"] = json!({"app": "rolling"});
    set["metadata"]["annotations"] = json!({"deployment.kubernetes.io/revision": "3546343826724305832"});
    api.create(&sets, &set);
    api.until(&pods, "ready", all_ready(1));
    api.create(&deployments, &deployment("test-rolling-update", 1, &changed("rolling", "2")));
    let one = format!("{deployments}/test-rolling-update");
    let object = api.until(&one, "complete", complete);
    assert_eq!(object["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "3546343826724305833");
    let all = api.list(&sets);
    assert_eq!(all.len(), 2);
    for set in &all {
        assert_eq!(controller_of(set), Some("test-rolling-update"));
        let old = name(set) == "test-rolling-update-controller";
        assert_eq!(set["spec"]["replicas"], if old { 0 } else { 1 });
    }
}

// Conformance: Deployment RevisionHistoryLimit
fn a_deployment_forgets_old_replica_sets(api: &Api<'_>) {
    let (deployments, sets) = (path(api, "cleanup", "deployments"), path(api, "cleanup", "replicasets"));
    let pods = path(api, "cleanup", "pods");
    let mut set = deployment("test-cleanup-controller", 1, &template("cleanup"));
    set["metadata"]["labels"] = json!({"app": "cleanup"});
    api.create(&sets, &set);
    api.until(&pods, "ready", all_ready(1));
    let watch = api.watch(&pods);
    let mut object = deployment("test-cleanup-deployment", 1, &changed("cleanup", "2"));
    object["spec"]["revisionHistoryLimit"] = json!(0);
    api.create(&deployments, &object);
    api.until(&format!("{deployments}/test-cleanup-deployment"), "complete", complete);
    api.until(&sets, "one replica set", |list| list["items"].as_array().unwrap().len() == 1);
    assert_ne!(name(&api.list(&sets)[0]), "test-cleanup-controller");
    // The first pod was there; the update took one more and not another.
    let added: Vec<Value> = watch.rest().into_iter().filter(|e| e["type"] == "ADDED").collect();
    assert_eq!(added.len(), 2, "{added:?}");
}

// Conformance: Deployment Rollover
fn a_deployment_rolls_over(api: &Api<'_>) {
    let (deployments, sets) = (path(api, "rollover", "deployments"), path(api, "rollover", "replicasets"));
    let pods = path(api, "rollover", "pods");
    let mut set = deployment("test-rollover-controller", 1, &template("rollover"));
    set["metadata"]["labels"] = json!({"app": "rollover"});
    api.create(&sets, &set);
    api.until(&pods, "ready", all_ready(1));
    let mut broken = template("rollover");
    broken["spec"]["containers"][0]["image"] = json!(NO_SUCH_IMAGE);
    let mut object = deployment("test-rollover-deployment", 1, &broken);
    object["spec"]["strategy"] =
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}});
    object["spec"]["minReadySeconds"] = json!(1);
    api.create(&deployments, &object);
    let one = format!("{deployments}/test-rollover-deployment");
    // It starts rolling out what cannot work: one pod more, the old one stays.
    api.until(&one, "rolling out", |d| d["status"]["updatedReplicas"] == 1 && d["status"]["replicas"] == 2);
    assert_eq!(api.get(&format!("{sets}/test-rollover-controller"))["status"]["availableReplicas"], 1);
    // Before that has finished, it is told something else.
    let new = changed("rollover", "good");
    let patch = json!([{"op": "replace", "path": "/spec/template", "value": new}]);
    api.patch(&one, JSON_PATCH, &patch);
    let object = api.until(&one, "complete", |d| complete(d) && d["metadata"]["generation"] == 2);
    assert_eq!(object["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "2");
    let all = api.until(&sets, "scaled down", |list| {
        list["items"].as_array().unwrap().iter().filter(|s| s["spec"]["replicas"] == 0).count() == 2
    });
    assert_eq!(all["items"].as_array().unwrap().len(), 3);
}

// Conformance: Deployment, completes the lifecycle of a Deployment
fn the_life_of_a_deployment(api: &Api<'_>) {
    let deployments = path(api, "lifecycle", "deployments");
    let one = format!("{deployments}/test-deployment");
    let watch = api.watch(&format!("{deployments}?labelSelector=test-deployment-static%3Dtrue"));
    let mut object = deployment("test-deployment", 2, &template("lifecycle"));
    object["metadata"]["labels"] = json!({"test-deployment-static": "true"});
    api.create(&deployments, &object);
    watch.expect("ADDED", "test-deployment");
    watch.find("MODIFIED", |d| d["status"]["availableReplicas"] == 2);

    let patch = json!({"metadata": {"labels": {"test-deployment": "patched"}}, "spec": {"replicas": 1, "template":
        {"spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "web", "env": [{"name": "A", "value": "b"}]}]}}}});
    api.patch(&one, STRATEGIC, &patch);
    let patched = watch.find("MODIFIED", |d| d["metadata"]["labels"]["test-deployment"] == "patched" && complete(d));
    assert_eq!((&patched["spec"]["replicas"], &patched["status"]["readyReplicas"]), (&json!(1), &json!(1)));
    let everywhere = api.list("/apis/apps/v1/deployments?labelSelector=test-deployment-static%3Dtrue");
    assert_eq!(names(&everywhere), ["test-deployment"]);
    assert_eq!(everywhere[0]["spec"]["template"]["spec"]["containers"][0]["env"][0]["name"], "A");

    api.edit(&one, |d| {
        d["metadata"]["labels"]["test-deployment"] = json!("updated");
        d["spec"]["replicas"] = json!(2);
    });
    watch.find("MODIFIED", |d| d["metadata"]["labels"]["test-deployment"] == "updated" && complete(d));

    // The controller writes the status as well; what it does not know it keeps, what it knows it sets right.
    let status = format!("{one}/status");
    let patch = json!({"metadata": {"labels": {"test-deployment": "patched-status"}}, "status": {"readyReplicas": 0, "availableReplicas": 0}});
    let patched = api.patch(&status, STRATEGIC, &patch);
    assert_eq!(patched["metadata"]["labels"]["test-deployment"], "updated", "labels are not part of the status");
    assert_eq!(patched["status"]["readyReplicas"].as_u64().unwrap_or_default(), 0);
    watch.find("MODIFIED", |d| d["status"]["readyReplicas"] == 2 && d["status"]["availableReplicas"] == 2);

    api.delete(&format!("{deployments}?labelSelector=test-deployment-static%3Dtrue"));
    watch.find("DELETED", |d| name(d) == "test-deployment");
    assert!(api.list(&deployments).is_empty());
}

/// Reads, updates and patches `…/status` with conditions of the test's own.
fn status_conditions(api: &Api<'_>, one: &str) {
    let status = format!("{one}/status");
    let name = api.get(&status)["metadata"]["name"].as_str().unwrap().to_owned();
    let condition =
        |kind: &str| json!({"type": kind, "status": "True", "reason": "E2E", "message": "Set from e2e test"});
    let (collection, _) = one.rsplit_once('/').unwrap();
    let watch = api.watch(&format!("{collection}?fieldSelector=metadata.name%3D{name}"));
    api.edit(&status, |object| {
        let conditions = &mut object["status"]["conditions"];
        if conditions.is_null() {
            *conditions = json!([]);
        }
        conditions.as_array_mut().unwrap().push(condition("StatusUpdate"));
    });
    let has = |kind: &'static str| {
        move |o: &Value| {
            o["status"]["conditions"]
                .as_array()
                .is_some_and(|c| c.iter().any(|c| c["type"] == kind && c["reason"] == "E2E"))
        }
    };
    watch.find("MODIFIED", has("StatusUpdate"));
    let patch = json!({"status": {"conditions": [condition("StatusPatched")]}});
    api.patch(&status, MERGE, &patch);
    watch.find("MODIFIED", has("StatusPatched"));
}

// Conformance: Deployment, status sub-resource
fn the_status_of_a_deployment(api: &Api<'_>) {
    let deployments = path(api, "status", "deployments");
    api.create(&deployments, &deployment("test", 1, &template("status")));
    let one = format!("{deployments}/test");
    api.until(&one, "complete", complete);
    status_conditions(api, &one);
}

// Conformance: ReplicaSet, status sub-resource
fn the_status_of_a_replica_set(api: &Api<'_>) {
    let (sets, pods) = (path(api, "rs-status", "replicasets"), path(api, "rs-status", "pods"));
    api.create(&sets, &deployment("test-rs", 1, &template("rs-status")));
    api.until(&pods, "ready", all_ready(1));
    status_conditions(api, &format!("{sets}/test-rs"));
}

// Conformance: Deployment, completes the scaling of a Deployment subresource
// Conformance: ReplicaSet, completes the scaling of a ReplicaSet subresource
// Conformance: Replication Controller, get and update ReplicationController scale
fn scales(api: &Api<'_>) {
    for plural in ["deployments", "replicasets", "replicationcontrollers"] {
        let collection = path(api, "scales", plural);
        let mut object = deployment("test", 1, &template(plural));
        if plural == "replicationcontrollers" {
            object["spec"]["selector"] = object["spec"]["selector"]["matchLabels"].take();
        }
        api.create(&collection, &object);
        let (one, scale) = (format!("{collection}/test"), format!("{collection}/test/scale"));
        api.until(&scale, "one replica", |s| s["status"]["replicas"] == 1);
        let mut read = api.get(&scale);
        assert_eq!((&read["kind"], &read["apiVersion"]), (&json!("Scale"), &json!("autoscaling/v1")));
        assert_eq!(read["spec"]["replicas"], 1);
        assert_eq!(read["status"]["selector"], format!("app={plural}"));
        // Without the version, so that the controller's writes do not matter.
        read["metadata"]["resourceVersion"].take();
        read["spec"]["replicas"] = json!(2);
        assert_eq!(api.update(&scale, &read)["spec"]["replicas"], 2);
        assert_eq!(api.get(&one)["spec"]["replicas"], 2);
        api.until(&scale, "two replicas", |s| s["status"]["replicas"] == 2);
        assert_eq!(api.patch(&scale, MERGE, &json!({"spec": {"replicas": 4}}))["spec"]["replicas"], 4);
        assert_eq!(api.get(&one)["spec"]["replicas"], 4);
        api.until(&one, "four replicas", |o| o["status"]["readyReplicas"] == 4);
        api.delete_with(&one, &json!({"propagationPolicy": "Background"}));
    }
}

/// Each replica answers with its own name, through the API server.
fn serve(api: &Api<'_>, collection: &str, object: &Value, pods: &str) {
    api.create(collection, object);
    let list = api.until(pods, "ready", all_ready(2));
    for pod in list["items"].as_array().unwrap() {
        let url = format!("{pods}/{}:8080/proxy/hostname", name(pod));
        let answer = api.cluster.wait_for(&url, || Some(api.try_get(&url)).filter(|a| a.code == 200));
        assert_eq!(answer.text.trim(), name(pod));
    }
}

// Conformance: Replica Set, run basic image
fn replica_sets_serve(api: &Api<'_>) {
    let (sets, pods) = (path(api, "rs-basic", "replicasets"), path(api, "rs-basic", "pods"));
    serve(api, &sets, &deployment("my-hostname-basic", 2, &template("rs-basic")), &pods);
}

fn replication_controller(name: &str, replicas: usize, template: &Value) -> Value {
    let spec = json!({"replicas": replicas, "selector": template["metadata"]["labels"], "template": template});
    json!({"metadata": {"name": name}, "spec": spec})
}

// Conformance: Replication Controller, run basic image
fn replication_controllers_serve(api: &Api<'_>) {
    let (controllers, pods) = (path(api, "rc-basic", "replicationcontrollers"), path(api, "rc-basic", "pods"));
    serve(api, &controllers, &replication_controller("my-hostname-basic", 2, &template("rc-basic")), &pods);
}

/// An ownerless pod is taken over; one whose label changes is let go and replaced.
fn adopt_and_release(api: &Api<'_>, collection: &str, object: &Value, pods: &str) {
    let mut orphan = object["spec"]["template"].clone();
    orphan["metadata"]["name"] = json!("pod-adoption");
    api.create(pods, &orphan);
    api.create(collection, object);
    let pod = format!("{pods}/pod-adoption");
    let owner = name(object);
    let adopted = api.until(&pod, "adopted", |p| controller_of(p) == Some(owner));
    let reference = &adopted["metadata"]["ownerReferences"][0];
    assert_eq!((&reference["blockOwnerDeletion"], &reference["controller"]), (&json!(true), &json!(true)));
    assert_eq!(api.list(pods).len(), 1, "it was enough");
    api.patch(&pod, MERGE, &json!({"metadata": {"labels": {"app": "not-matching"}}}));
    let released = api.until(&pod, "released", |p| controller_of(p).is_none());
    assert_eq!(released["metadata"].get("ownerReferences"), None);
    let list = api.until(pods, "another in its place", |list| list["items"].as_array().unwrap().len() == 2);
    assert_eq!(list["items"].as_array().unwrap().iter().filter(|p| controller_of(p) == Some(owner)).count(), 1);
}

// Conformance: Replica Set, adopt matching pods and release non matching pods
fn replica_sets_adopt_and_release(api: &Api<'_>) {
    let (sets, pods) = (path(api, "rs-adopt", "replicasets"), path(api, "rs-adopt", "pods"));
    adopt_and_release(api, &sets, &deployment("pod-adoption-release", 1, &template("rs-adopt")), &pods);
}

// Conformance: Replication Controller, adopt matching pods
// Conformance: Replication Controller, release pods
fn replication_controllers_adopt_and_release(api: &Api<'_>) {
    let (controllers, pods) = (path(api, "rc-adopt", "replicationcontrollers"), path(api, "rc-adopt", "pods"));
    adopt_and_release(api, &controllers, &replication_controller("pod-release", 1, &template("rc-adopt")), &pods);
}

// Conformance: ReplicaSet, is created, Replaced and Patched
fn a_replica_set_is_replaced_and_patched(api: &Api<'_>) {
    let sets = path(api, "rs-patch", "replicasets");
    let one = format!("{sets}/test-rs");
    let watch = api.watch(&sets);
    let mut object = deployment("test-rs", 1, &template("rs-patch"));
    object["metadata"]["labels"] = json!({"test-rs": "static"});
    api.create(&sets, &object);
    api.until(&one, "ready", |s| s["status"]["readyReplicas"] == 1);
    api.edit(&format!("{one}/scale"), |scale| scale["spec"]["replicas"] = json!(2));
    watch.find("MODIFIED", |s| s["spec"]["replicas"] == 2 && s["status"]["readyReplicas"] == 2);
    let patch = json!({"metadata": {"labels": {"test-rs": "patched"}}, "spec": {"replicas": 3, "template": {"spec":
        {"terminationGracePeriodSeconds": 1, "containers": [{"name": "web", "env": [{"name": "A", "value": "b"}]}]}}}});
    api.patch(&one, STRATEGIC, &patch);
    let patched = watch
        .find("MODIFIED", |s| s["metadata"]["labels"]["test-rs"] == "patched" && s["status"]["readyReplicas"] == 3);
    assert_eq!(patched["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"], "b");
    assert_eq!(patched["spec"]["template"]["spec"]["terminationGracePeriodSeconds"], 1);
    assert_eq!(patched["status"]["replicas"], 3);
}

// Conformance: ReplicaSet, list and delete a collection of ReplicaSets
fn a_collection_of_replica_sets(api: &Api<'_>) {
    let (sets, pods) = (path(api, "rs-collection", "replicasets"), path(api, "rs-collection", "pods"));
    let mut object = deployment("test-rs", 3, &template("rs-collection"));
    object["metadata"]["labels"] = json!({"e2e": "rs-collection"});
    api.create(&sets, &object);
    api.until(&pods, "ready", all_ready(3));
    let chosen = "/apis/apps/v1/replicasets?labelSelector=e2e%3Drs-collection";
    assert_eq!(api.list(chosen).len(), 1);
    api.delete(&format!("{sets}?labelSelector=e2e%3Drs-collection"));
    api.until(chosen, "none", |list| list["items"].as_array().unwrap().is_empty());
    api.until(&pods, "none", |list| list["items"].as_array().unwrap().is_empty());
}

// Conformance: Replication Controller, lifecycle
fn the_life_of_a_replication_controller(api: &Api<'_>) {
    let controllers = path(api, "rc-lifecycle", "replicationcontrollers");
    let one = format!("{controllers}/rc-test");
    let watch = api.watch(&format!("{controllers}?labelSelector=test-rc-static%3Dtrue"));
    let mut template = template("rc-lifecycle");
    template["metadata"]["labels"]["test-rc-static"] = json!("true");
    let mut object = replication_controller("rc-test", 1, &template);
    object["metadata"]["labels"] = json!({"test-rc-static": "true"});
    api.create(&controllers, &object);
    watch.expect("ADDED", "rc-test");
    watch.find("MODIFIED", |rc| rc["status"]["readyReplicas"] == 1);
    api.patch(&one, STRATEGIC, &json!({"metadata": {"labels": {"test-rc": "patched"}}}));
    watch.find("MODIFIED", |rc| rc["metadata"]["labels"]["test-rc"] == "patched");

    let status = format!("{one}/status");
    let patched = api.patch(&status, STRATEGIC, &json!({"status": {"readyReplicas": 0, "availableReplicas": 0}}));
    assert_eq!(patched["status"]["readyReplicas"].as_u64().unwrap_or_default(), 0);
    assert_eq!(api.get(&status)["kind"], "ReplicationController");
    watch.find("MODIFIED", |rc| rc["status"]["readyReplicas"] == 1 && rc["status"]["availableReplicas"] == 1);

    api.patch(&format!("{one}/scale"), STRATEGIC, &json!({"spec": {"replicas": 2}}));
    watch.find("MODIFIED", |rc| rc["spec"]["replicas"] == 2 && rc["status"]["readyReplicas"] == 2);
    let everywhere = api.list("/api/v1/replicationcontrollers?labelSelector=test-rc-static%3Dtrue");
    assert_eq!(names(&everywhere), ["rc-test"]);
    api.edit(&one, |rc| rc["metadata"]["annotations"] = json!({"test-rc": "updated"}));
    watch.find("MODIFIED", |rc| rc["metadata"]["annotations"]["test-rc"] == "updated");
    assert_eq!(condition(&api.get(&one), "ReplicaFailure"), "");
    api.delete(&format!("{controllers}?labelSelector=test-rc-static%3Dtrue"));
    watch.find("DELETED", |rc| name(rc) == "rc-test");
}
