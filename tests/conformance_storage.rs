//! Upstream's conformance behaviours of storage kinds that are plain data to the API server: drivers, their capacity and
//! their presence on nodes, attachments, classes; and of volumes and claims as objects. Each behaviour of the suite stands
//! above its scenario by upstream's name; docs/conformance.md lists them all. What volumes do is in `volumes.rs`.

mod cluster;

use cluster::Cluster;
use cluster::api::{Api, MERGE, STRATEGIC, name, names};
use serde_json::{Value, json};

const GROUP: &str = "/apis/storage.k8s.io/v1";

#[test]
fn conformance() {
    let cluster = Cluster::start();
    let all = scenarios![
        the_life_of_a_driver,
        inline_volumes_in_pods,
        storage_capacities,
        drivers_on_nodes,
        attachments,
        the_life_of_a_class,
        the_life_of_an_attributes_class,
        the_life_of_volumes_and_claims,
        the_status_of_volumes_and_claims,
    ];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

/// Creates, reads, patches, lists, deletes, creates again, updates, and deletes as a collection.
fn lifecycle(api: &Api<'_>, all: &str, label: &str, object: &Value) {
    let labelled = |n: &str| {
        let mut o = object.clone();
        o["metadata"] = json!({"name": format!("e2e-{label}-{n}"), "labels": {"e2e": label}});
        o
    };
    let selected = format!("{all}?labelSelector=e2e%3D{label}");
    let first = api.create(all, &labelled("a"));
    assert!(!first["metadata"]["resourceVersion"].as_str().unwrap().is_empty());
    let one = format!("{all}/{}", name(&first));
    assert_eq!(api.get(&one)["metadata"]["uid"], first["metadata"]["uid"]);
    assert_eq!(api.send("POST", all, &labelled("a")).expect(409)["reason"], "AlreadyExists");
    let patched = api.patch(&one, MERGE, &json!({"metadata": {"labels": {"patched": "true"}}}));
    assert_eq!(patched["metadata"]["labels"]["patched"], "true");
    assert_eq!(names(&api.list(&format!("{all}?labelSelector=patched%3Dtrue,e2e%3D{label}"))), [name(&first)]);
    let watch = api.watch(&selected);
    watch.expect("ADDED", name(&first));
    api.delete(&one);
    watch.find("DELETED", |o| name(o) == name(&first));
    api.gone(&one);
    let second = api.create(all, &labelled("b"));
    watch.find("ADDED", |o| name(o) == name(&second));
    let updated = api.edit(&format!("{all}/{}", name(&second)), |o| o["metadata"]["labels"]["updated"] = json!("true"));
    assert_eq!(updated["metadata"]["labels"]["updated"], "true");
    watch.find("MODIFIED", |o| o["metadata"]["labels"]["updated"] == "true");
    api.delete(&format!("{all}?labelSelector=updated%3Dtrue,e2e%3D{label}"));
    watch.find("DELETED", |o| name(o) == name(&second));
    assert!(api.list(&selected).is_empty());
}

// Conformance: CSIDriver, lifecycle
fn the_life_of_a_driver(api: &Api<'_>) {
    let all = &format!("{GROUP}/csidrivers");
    let driver = json!({"spec": {"volumeLifecycleModes": ["Ephemeral"]}});
    lifecycle(api, all, "driver", &driver);
    let made = api.create(all, &json!({"metadata": {"name": "two.example.com"}, "spec": {"attachRequired": false}}));
    assert_eq!(made["spec"]["fsGroupPolicy"], "ReadWriteOnceWithFSType");
    assert_eq!(made["spec"]["volumeLifecycleModes"], json!(["Persistent"]));
    let answer = api.request(
        "PATCH",
        &format!("{all}/two.example.com"),
        Some((MERGE, &json!({"spec": {"attachRequired": true}}).to_string())),
    );
    let message = "CSIDriver.storage.k8s.io \"two.example.com\" is invalid: spec.attachedRequired: Invalid value: true: \
                   field is immutable";
    assert_eq!(answer.expect(422)["message"], message);
    let row = api.cluster.kubectl(&["get", "csidrivers", "two.example.com"]);
    assert!(row.starts_with("NAME ") && row.contains("ATTACHREQUIRED"), "{row}");
    api.delete(&format!("{all}/two.example.com"));
}

// Conformance: CSIInlineVolumes should support Pods with inline volumes
fn inline_volumes_in_pods(api: &Api<'_>) {
    let pods = format!("/api/v1/namespaces/{}/pods", api.namespace("inline"));
    let pod = |n: &str| {
        json!({"metadata": {"name": format!("inline-{n}"), "labels": {"e2e": "inline"}}, "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "gantry.local/self", "args": ["serve"],
                "volumeMounts": [{"name": "v", "mountPath": "/mnt"}]}],
            "volumes": [{"name": "v", "csi": {"driver": "inline.example.com", "readOnly": true,
                "volumeAttributes": {"size": "1"}}}]}})
    };
    let made = api.create(&pods, &pod("a"));
    let one = format!("{pods}/inline-a");
    assert_eq!(api.get(&one)["spec"]["volumes"][0]["csi"], made["spec"]["volumes"][0]["csi"]);
    assert_eq!(names(&api.list(&format!("{pods}?labelSelector=e2e%3Dinline"))), ["inline-a"]);
    assert_eq!(names(&api.list("/api/v1/pods?labelSelector=e2e%3Dinline")), ["inline-a"]);
    let patched = api.patch(&one, STRATEGIC, &json!({"metadata": {"annotations": {"patched": "yes"}}}));
    assert_eq!(patched["metadata"]["annotations"]["patched"], "yes");
    // No such driver runs here, and the pod is told.
    let events = "/api/v1/namespaces/inline/events?fieldSelector=reason%3DFailedMount";
    api.until(events, "the driver is missing", |l| {
        let mut messages = l["items"].as_array().unwrap().iter().map(|e| e["message"].as_str().unwrap_or_default());
        messages.any(|m| m.ends_with("driver name inline.example.com not found in the list of registered CSI drivers"))
    });
    api.delete(&one);
    api.gone(&one);
    api.create(&pods, &pod("b"));
    api.delete(&format!("{pods}?labelSelector=e2e%3Dinline"));
    api.until(&pods, "gone", |l| l["items"].as_array().unwrap().is_empty());
}

// Conformance: CSIStorageCapacity API
fn storage_capacities(api: &Api<'_>) {
    let groups = api.get("/apis");
    let storage = groups["groups"].as_array().unwrap().iter().find(|g| g["name"] == "storage.k8s.io").unwrap();
    assert!(storage["versions"].as_array().unwrap().iter().any(|v| v["version"] == "v1"));
    let versions = api.get("/apis/storage.k8s.io");
    assert!(versions["versions"].as_array().unwrap().iter().any(|v| v["version"] == "v1"));
    let resources = api.get(GROUP);
    assert!(resources["resources"].as_array().unwrap().iter().any(|r| r["name"] == "csistoragecapacities"));
    let namespace = api.namespace("capacity");
    let all = &format!("{GROUP}/namespaces/{namespace}/csistoragecapacities");
    let everywhere = api.watch(&format!("{GROUP}/csistoragecapacities?labelSelector=e2e%3Dcapacity"));
    lifecycle(api, all, "capacity", &json!({"storageClassName": "e2e.example.com", "capacity": "1Gi"}));
    everywhere.find("MODIFIED", |o| o["metadata"]["labels"]["patched"] == "true");
    everywhere.find("MODIFIED", |o| o["metadata"]["labels"]["updated"] == "true");
    // The class stays what it is.
    api.create(all, &json!({"metadata": {"name": "c"}, "storageClassName": "a"}));
    let changed = json!({"storageClassName": "b"}).to_string();
    let answer = api.request("PATCH", &format!("{all}/c"), Some((MERGE, &changed)));
    let message = "CSIStorageCapacity.storage.k8s.io \"c\" is invalid: storageClassName: Invalid value: \"b\": field is \
                   immutable";
    assert_eq!(answer.expect(422)["message"], message);
}

// Conformance: CSINode, lifecycle
fn drivers_on_nodes(api: &Api<'_>) {
    let all = &format!("{GROUP}/csinodes");
    // Each node says what runs on it: nothing.
    let node = &api.list("/api/v1/nodes")[0];
    let own = api.until(&format!("{all}/{}", name(node)), "made", |_| true);
    assert!(own["spec"]["drivers"].as_array().is_none_or(Vec::is_empty), "{own}");
    assert_eq!(own["metadata"]["ownerReferences"][0]["uid"], node["metadata"]["uid"]);
    // It may say so of itself only.
    let user = format!("system:node:{}", name(node));
    let agent = api.impersonate(&user, &["system:nodes", "system:authenticated"]);
    let other = json!({"metadata": {"name": "another"}, "spec": {"drivers": []}});
    let refused = agent.send("POST", all, &other).expect(403)["message"].clone();
    let why = "can only access CSINode with the same name as the requesting node";
    assert!(refused.as_str().unwrap().ends_with(why), "{refused}");
    let refused = agent.try_get(&format!("{all}/another")).expect(403)["message"].clone();
    assert!(refused.as_str().unwrap().ends_with(why), "{refused}");
    lifecycle(api, all, "csinode", &json!({"spec": {"drivers": []}}));
    let driver = json!({"name": "d.example.com", "nodeID": "n", "topologyKeys": ["zone"], "allocatable": {"count": 3}});
    api.create(all, &json!({"metadata": {"name": "e2e-node"}, "spec": {"drivers": [driver]}}));
    let row = api.cluster.kubectl(&["get", "csinode", "e2e-node", "--no-headers"]);
    assert_eq!(row.split_whitespace().take(2).collect::<Vec<_>>(), ["e2e-node", "1"]);
    api.delete(&format!("{all}/e2e-node"));
}

// Conformance: VolumeAttachment, lifecycle
// Conformance: VolumeAttachment, apply changes to a volumeattachment status
fn attachments(api: &Api<'_>) {
    let all = &format!("{GROUP}/volumeattachments");
    let attachment = json!({"spec": {"attacher": "e2e.example.com", "nodeName": "somewhere",
        "source": {"persistentVolumeName": "some-volume"}}});
    lifecycle(api, all, "attachment", &attachment);
    // Its status is written apart.
    let mut one = attachment.clone();
    one["metadata"] = json!({"name": "e2e-status"});
    one["status"] = json!({"attached": true});
    let made = api.create(all, &one);
    assert_eq!(made["status"]["attached"], false, "{made}");
    let status = format!("{all}/e2e-status/status");
    assert_eq!(api.get(&status)["spec"]["attacher"], "e2e.example.com");
    let patched = api.patch(&status, MERGE, &json!({"status": {"attached": true}, "spec": {"nodeName": "elsewhere"}}));
    assert_eq!((&patched["status"]["attached"], &patched["spec"]["nodeName"]), (&json!(true), &json!("somewhere")));
    let updated = api.edit(&status, |a| {
        a["status"] =
            json!({"attached": false, "attachError": {"message": "not today", "time": "2026-01-01T00:00:00Z"}});
    });
    assert_eq!(updated["status"]["attachError"]["message"], "not today");
    api.delete(&format!("{all}/e2e-status"));
    api.gone(&format!("{all}/e2e-status"));
}

// Conformance: StorageClass, lifecycle
fn the_life_of_a_class(api: &Api<'_>) {
    let all = &format!("{GROUP}/storageclasses");
    lifecycle(api, all, "class", &json!({"provisioner": "e2e.example.com/fake", "reclaimPolicy": "Retain"}));
    let found = api.get(&format!("{all}/local-path"));
    assert_eq!(found["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"], "true");
    let row = api.cluster.kubectl(&["get", "storageclass", "local-path", "--no-headers"]);
    assert!(row.starts_with("local-path (default)   gantry.local/local-path   Delete "), "{row}");
}

// Conformance: CRUD operations for VolumeAttributesClasses
fn the_life_of_an_attributes_class(api: &Api<'_>) {
    let all = &format!("{GROUP}/volumeattributesclasses");
    lifecycle(api, all, "attributes", &json!({"driverName": "e2e.example.com", "parameters": {"iops": "500"}}));
}

/// A volume and a claim that have nothing to do with each other and bind to nothing.
fn apart(label: &str) -> (Value, Value) {
    let size = json!({"storage": "2Gi"});
    let class = format!("none-{label}");
    let volume = json!({"spec": {"capacity": size, "accessModes": ["ReadWriteOnce"], "storageClassName": class,
        "hostPath": {"path": "/tmp/e2e"}, "persistentVolumeReclaimPolicy": "Retain"}});
    let claim = json!({"spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": format!("{class}-either"),
        "resources": {"requests": size}}});
    (volume, claim)
}

// Conformance: PersistentVolumes(Claims), lifecycle
fn the_life_of_volumes_and_claims(api: &Api<'_>) {
    let claims = format!("/api/v1/namespaces/{}/persistentvolumeclaims", api.namespace("claims"));
    let (volume, claim) = apart("life");
    lifecycle(api, "/api/v1/persistentvolumes", "volume", &volume);
    lifecycle(api, &claims, "claim", &claim);
    let mut one = claim;
    one["metadata"] = json!({"name": "c"});
    let made = api.create(&claims, &one);
    assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    assert_eq!((&made["status"]["phase"], &made["spec"]["volumeMode"]), (&json!("Pending"), &json!("Filesystem")));
    let changed = json!({"spec": {"storageClassName": "another"}}).to_string();
    let message = api.request("PATCH", &format!("{claims}/c"), Some((MERGE, &changed))).expect(422)["message"].clone();
    let start = "PersistentVolumeClaim \"c\" is invalid: spec: Forbidden: spec is immutable after creation except \
                 resources.requests and volumeAttributesClassName for bound claims";
    assert!(message.as_str().unwrap().starts_with(start), "{message}");
}

// Conformance: PersistentVolumes(Claims), apply changes to a pv/pvc status
fn the_status_of_volumes_and_claims(api: &Api<'_>) {
    let claims = format!("/api/v1/namespaces/{}/persistentvolumeclaims", api.namespace("statuses"));
    let (volume, claim) = apart("status");
    for (all, mut object, phases) in [("/api/v1/persistentvolumes".to_owned(), volume, true), (claims, claim, false)] {
        object["metadata"] = json!({"name": "e2e-status"});
        api.create(&all, &object);
        let (one, status) = (format!("{all}/e2e-status"), format!("{all}/e2e-status/status"));
        if phases {
            api.until(&one, "available", |v| v["status"]["phase"] == "Available");
            let patched = api.patch(&status, MERGE, &json!({"status": {"message": "patched", "reason": "E2E"}}));
            assert_eq!(patched["status"]["message"], "patched");
            let updated = api.edit(&status, |v| v["status"]["reason"] = json!("Updated"));
            assert_eq!(updated["status"]["reason"], "Updated");
        } else {
            let condition = |kind: &str| json!([{"type": kind, "status": "True", "reason": "E2E", "message": "said"}]);
            let patch = json!({"status": {"conditions": condition("StatusPatched")}});
            assert_eq!(api.patch(&status, MERGE, &patch)["status"]["conditions"][0]["type"], "StatusPatched");
            let updated = api.edit(&status, |c| c["status"]["conditions"] = condition("StatusUpdate"));
            assert_eq!(updated["status"]["conditions"][0]["type"], "StatusUpdate");
        }
        api.delete(&one);
        api.gone(&one);
    }
}
