//! Dynamic resource allocation as its API sees it: claims from templates, who may write what of them, quotas of
//! devices, nodes' slices, and rules that taint devices.

mod cluster;

use cluster::Cluster;
use cluster::api::{Api, MERGE};
use serde_json::{Value, json};

const GROUP: &str = "/apis/resource.k8s.io/v1";

const OBJECTS: &str = r#"
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: gpus}
spec:
  selectors: [{cel: {expression: 'device.driver == "gpu.example.com"'}}]
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: one-gpu, namespace: default}
spec:
  metadata: {labels: {made: from-template}}
  spec: {devices: {requests: [{name: gpu, exactly: {deviceClassName: gpus}}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: worker, namespace: default}
spec:
  resourceClaims: [{name: gpu, resourceClaimTemplateName: one-gpu}]
  containers: [{name: c, image: gantry.local/busybox, resources: {claims: [{name: gpu}]}}]
"#;

fn slice(name: &str, node: &str) -> Value {
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": {"name": name}, "spec": {
        "driver": "gpu.example.com", "nodeName": node, "pool": {"name": node, "generation": 1, "resourceSliceCount": 1},
        "devices": [{"name": "gpu-0", "attributes": {"model": {"string": "a"}},
            "capacity": {"memory": {"value": "8Gi"}}}]}})
}

fn claim(name: &str) -> Value {
    json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": name},
        "spec": {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "gpus"}}]}}})
}

fn claims(namespace: &str) -> String {
    format!("{GROUP}/namespaces/{namespace}/resourceclaims")
}

#[test]
fn devices() {
    let mut cluster = Cluster::prepare_role("server", &[]);
    cluster.up();
    let api = Api::new(&cluster);
    cluster.wait_for("pods can be made", || {
        (api.try_get("/api/v1/namespaces/default/serviceaccounts/default").code == 200).then_some(())
    });
    templates(&cluster, &api);
    status_has_owners(&api);
    admin_access(&api);
    nodes(&cluster, &api);
    quotas(&api);
    rules(&api);
}

/// A pod's claim is made from its template, is told by kubectl, and goes with the pod.
fn templates(cluster: &Cluster, api: &Api<'_>) {
    cluster.apply(OBJECTS);
    let pod = api.until("/api/v1/namespaces/default/pods/worker", "its claim is noted", |p| {
        p["status"]["resourceClaimStatuses"][0]["resourceClaimName"].is_string()
    });
    let noted = &pod["status"]["resourceClaimStatuses"][0];
    assert_eq!(noted["name"], "gpu");
    let name = noted["resourceClaimName"].as_str().unwrap();
    assert!(name.starts_with("worker-gpu-"), "{name}");
    let path = format!("{}/{name}", claims("default"));
    let made = api.get(&path);
    assert_eq!(made["metadata"]["annotations"]["resource.kubernetes.io/pod-claim-name"], "gpu");
    assert_eq!(made["metadata"]["labels"]["made"], "from-template");
    assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], pod["metadata"]["uid"]);
    let exactly = json!({"deviceClassName": "gpus", "allocationMode": "ExactCount", "count": 1});
    assert_eq!(made["spec"]["devices"]["requests"][0]["exactly"], exactly);
    let table = cluster.kubectl(&["get", "resourceclaims"]);
    let rows: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "STATE", "AGE"]);
    assert_eq!(rows[1][..2], [name, "pending"]);
    let told = cluster.kubectl(&["describe", "resourceclaim", name]);
    assert!(told.contains(name) && told.contains("gpus"), "{told}");

    let other = api.patch(&path, MERGE, &json!({"metadata": {"labels": {"a": "b"}}}));
    assert_eq!(other["metadata"]["labels"]["a"], "b");
    let changed =
        json!({"spec": {"devices": {"requests": [{"name": "other", "exactly": {"deviceClassName": "gpus"}}]}}});
    let refused = api.request("PATCH", &path, Some((MERGE, &changed.to_string()))).expect(422);
    assert_eq!(refused["details"]["causes"][0]["field"], "spec");
    let why = refused["message"].as_str().unwrap();
    assert!(
        why.starts_with(&format!("ResourceClaim.resource.k8s.io \"{name}\" is invalid: spec: Invalid value: ")),
        "{why}"
    );
    assert!(why.ends_with(": field is immutable"), "{why}");

    // What a node or an observer would do for a pod that ends on its own.
    api.patch("/api/v1/namespaces/default/pods/worker/status", MERGE, &json!({"status": {"phase": "Failed"}}));
    api.gone(&path);
    cluster.kubectl(&["delete", "pod", "worker", "--wait=false"]);
}

/// Who may write a claim's status may not therefore allocate devices or speak for a driver.
fn status_has_owners(api: &Api<'_>) {
    let path = claims("default");
    api.create(&path, &claim("owned"));
    let rules =
        json!([{"apiGroups": ["resource.k8s.io"], "resources": ["resourceclaims/status"], "verbs": ["get", "patch"]}]);
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    api.create(roles, &json!({"metadata": {"name": "status-writer"}, "rules": rules}));
    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    api.create(
        bindings,
        &json!({"metadata": {"name": "status-writer"}, "subjects": [{"kind": "User", "name": "dora",
            "apiGroup": "rbac.authorization.k8s.io"}], "roleRef": {"apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole", "name": "status-writer"}}),
    );
    let dora = api.impersonate("dora", &[]);
    let status = format!("{path}/owned/status");
    let result = json!({"request": "gpu", "driver": "gpu.example.com", "pool": "p", "device": "gpu-0"});
    let allocated = json!({"status": {"allocation": {"devices": {"results": [result]}}}});
    let refused = dora.request("PATCH", &status, Some((MERGE, &allocated.to_string()))).expect(422);
    let cannot = |verb: &str, what: &str, place: &str| {
        format!(
            "User \"dora\" cannot {verb} resource \"resourceclaims/{what}\" in API group \"resource.k8s.io\" {place}"
        )
    };
    assert_eq!(
        refused["message"],
        format!(
            "ResourceClaim.resource.k8s.io \"owned\" is invalid: status: Forbidden: changing status.allocation or \
             status.reservedFor requires resource=\"resourceclaims/binding\", verb=\"patch\" permission: \
             resourceclaims.resource.k8s.io is forbidden: {}",
            cannot("patch", "binding", "at the cluster scope")
        )
    );
    api.patch(&status, MERGE, &allocated);
    let told = json!({"status": {"devices": [{"driver": "gpu.example.com", "pool": "p", "device": "gpu-0"}]}});
    let refused = dora.request("PATCH", &status, Some((MERGE, &told.to_string()))).expect(422);
    assert_eq!(
        refused["message"],
        format!(
            "ResourceClaim.resource.k8s.io \"owned\" is invalid: status.devices: Forbidden: changing status.devices \
             requires resource=\"resourceclaims/driver\", verb=\"[arbitrary-node:patch]\" permission: \
             resourceclaims.resource.k8s.io \"gpu.example.com\" is forbidden: {}",
            cannot("arbitrary-node:patch", "driver", "in the namespace \"default\"")
        )
    );
    let rules = json!([
        {"apiGroups": ["resource.k8s.io"], "resources": ["resourceclaims/status"], "verbs": ["get", "patch"]},
        {"apiGroups": ["resource.k8s.io"], "resources": ["resourceclaims/driver"], "verbs": ["arbitrary-node:patch"],
            "resourceNames": ["gpu.example.com"]}]);
    api.patch(&format!("{roles}/status-writer"), MERGE, &json!({"rules": rules}));
    api.cluster.wait_for("the driver may tell of its device", || {
        (dora.request("PATCH", &status, Some((MERGE, &told.to_string()))).code == 200).then_some(())
    });
    // With the allocation goes what was told of it.
    let freed = api.patch(&status, MERGE, &json!({"status": {"allocation": null}}));
    assert_eq!(freed["status"], json!({}));
    api.delete(&format!("{path}/owned"));
}

/// Devices in use by others are for namespaces of the administrator.
fn admin_access(api: &Api<'_>) {
    api.namespace("watchers");
    let mut wanted = claim("watch");
    wanted["spec"]["devices"]["requests"][0]["exactly"]["adminAccess"] = true.into();
    let refused = api.send("POST", &claims("watchers"), &wanted).expect(422);
    assert_eq!(
        refused["message"],
        "ResourceClaim.resource.k8s.io \"watch\" is invalid: spec.devices.requests[0].adminAccess: Forbidden: admin \
         access to devices requires the `resource.kubernetes.io/admin-access: true` label on the containing namespace"
    );
    let label = json!({"metadata": {"labels": {"resource.kubernetes.io/admin-access": "true"}}});
    api.patch("/api/v1/namespaces/watchers", MERGE, &label);
    api.cluster.wait_for("the namespace's label is seen", || {
        (api.send("POST", &claims("watchers"), &wanted).code == 201).then_some(())
    });
}

/// A node writes the slices of its own devices.
fn nodes(cluster: &Cluster, api: &Api<'_>) {
    let path = format!("{GROUP}/resourceslices");
    let one = api.impersonate("system:node:one", &["system:nodes", "system:authenticated"]);
    one.send("POST", &path, &slice("of-one", "one")).expect(201);
    let refused = one.send("POST", &path, &slice("of-two", "two")).expect(403);
    assert_eq!(
        refused["message"],
        "resourceslices.resource.k8s.io \"of-two\" is forbidden: can only create ResourceSlice with the same NodeName \
         as the requesting node"
    );
    api.create(&path, &slice("of-two", "two"));
    assert_eq!(one.try_get(&format!("{path}/of-one")).code, 200);
    let refused = one.request("DELETE", &format!("{path}/of-two"), None).expect(403);
    let why = refused["message"].as_str().unwrap();
    assert!(why.ends_with("no relationship found between node 'one' and this object"), "{why}");
    assert_eq!(one.try_get(&path).code, 403);
    assert_eq!(one.try_get(&format!("{path}?fieldSelector=spec.nodeName%3Done")).code, 200);
    assert_eq!(one.try_get(&claims("default")).code, 403, "a node has no list of claims");

    let table = cluster.kubectl(&["get", "resourceslices", "--field-selector", "spec.nodeName=one"]);
    let rows: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "NODE", "DRIVER", "POOL", "AGE"]);
    assert_eq!((rows.len(), &rows[1][..4]), (2, &["of-one", "one", "gpu.example.com", "one"][..]));
    let all = api.list(&format!("{path}?fieldSelector=spec.driver%3Dgpu.example.com"));
    assert_eq!(all.len(), 2);
    let mut loud = slice("loud", "two");
    loud["spec"]["driver"] = "GPU.example.com".into();
    let answer = api.send("POST", &path, &loud);
    assert_eq!(answer.code, 201, "{}", answer.text);
    let warned = "spec.driver: driver names should be lowercase; \\\"GPU.example.com\\\" contains uppercase characters";
    assert!(answer.head.contains(warned), "{}", answer.head);
    assert_eq!(one.request("DELETE", &format!("{path}/of-one"), None).code, 200);
}

/// A quota bounds the devices of a class, and is relieved when a claim goes.
fn quotas(api: &Api<'_>) {
    api.namespace("bounded");
    let hard = json!({"gpus.deviceclass.resource.k8s.io/devices": "2", "count/resourceclaims.resource.k8s.io": "5"});
    let path = "/api/v1/namespaces/bounded/resourcequotas";
    api.create(path, &json!({"metadata": {"name": "q"}, "spec": {"hard": hard}}));
    let used = |wanted: &str| {
        api.until(&format!("{path}/q"), &format!("{wanted} devices are used"), |q| {
            q["status"]["used"]["gpus.deviceclass.resource.k8s.io/devices"] == wanted
        });
    };
    used("0");
    let mut two = claim("two");
    two["spec"]["devices"]["requests"][0]["exactly"]["count"] = 2.into();
    api.create(&claims("bounded"), &two);
    used("2");
    let refused = api.send("POST", &claims("bounded"), &claim("more")).expect(403);
    assert_eq!(
        refused["message"],
        "resourceclaims.resource.k8s.io \"more\" is forbidden: exceeded quota: q, requested: \
         gpus.deviceclass.resource.k8s.io/devices=1, used: gpus.deviceclass.resource.k8s.io/devices=2, limited: \
         gpus.deviceclass.resource.k8s.io/devices=2"
    );
    api.delete(&format!("{}/two", claims("bounded")));
    used("0");
}

/// A rule's condition tells what it does, and what it would.
fn rules(api: &Api<'_>) {
    let path = format!("{GROUP}/devicetaintrules");
    let rule = json!({"metadata": {"name": "r"}, "spec": {"deviceSelector": {"driver": "gpu.example.com"},
        "taint": {"key": "broken", "effect": "None"}}});
    let made = api.create(&path, &rule);
    assert!(made["spec"]["taint"]["timeAdded"].is_string(), "{made}");
    let told = |reason: &str| {
        let rule = api.until(&format!("{path}/r"), reason, |r| r["status"]["conditions"][0]["reason"] == reason);
        rule["status"]["conditions"][0]["message"].as_str().unwrap().to_owned()
    };
    let message = told("NoEffect");
    assert!(
        message.starts_with("1 published device selected. 0 allocated devices selected. 0 pods would"),
        "{message}"
    );
    api.patch(&format!("{path}/r"), MERGE, &json!({"spec": {"taint": {"effect": "NoExecute"}}}));
    assert_eq!(told("NotStarted"), "");
}
