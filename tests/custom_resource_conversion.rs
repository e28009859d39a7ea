//! Versions of a custom resource that a webhook converts: reads, lists, watches, writes, server-side apply, admission,
//! and what happens when the webhook is not there or answers what it may not.

mod cluster;

use cluster::Cluster;
use cluster::api::{APPLY, Api, MERGE, condition, name, names};
use cluster::webhook::Webhook;
use serde_json::{Value, json};
use std::sync::Arc;

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

#[test]
fn conversion() {
    let cluster = Cluster::start();
    let all = scenarios![
        one_object_in_two_versions,
        a_list_of_both_versions,
        watches_in_either_version,
        written_in_either_version,
        applied_in_two_versions,
        labels_may_change,
        webhooks_of_admission_see_their_version,
        failures_are_told,
        through_a_service,
    ];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

/// v1 has `hostPort: "a:1"`, v2 has `host: "a"` and `port: "1"`.
fn converted(object: &Value, to: &str) -> Value {
    let mut out = object.clone();
    out["apiVersion"] = to.into();
    let map = out.as_object_mut().unwrap();
    if to.ends_with("/v2") {
        if let Some(Value::String(both)) = map.remove("hostPort") {
            let (host, port) = both.split_once(':').unwrap();
            map.insert("host".into(), host.into());
            map.insert("port".into(), port.into());
        }
    } else {
        let host = map.remove("host").unwrap_or_default();
        let port = map.remove("port").unwrap_or_default();
        if let (Some(host), Some(port)) = (host.as_str(), port.as_str()) {
            map.insert("hostPort".into(), format!("{host}:{port}").into());
        }
    }
    out
}

fn answer(path: &str, review: &Value) -> Value {
    let request = &review["request"];
    if path == "/look" {
        let response = json!({"uid": request["uid"], "allowed": true});
        return json!({"kind": "AdmissionReview", "apiVersion": review["apiVersion"], "response": response});
    }
    let to = request["desiredAPIVersion"].as_str().unwrap();
    let mut objects: Vec<Value> = request["objects"].as_array().unwrap().iter().map(|o| converted(o, to)).collect();
    let mut result = json!({"status": "Success"});
    match path {
        "/refuse" => result = json!({"status": "Failure", "message": "no conversion today"}),
        "/rename" => objects[0]["metadata"]["name"] = "other".into(),
        "/lose" => objects.clear(),
        "/label" => {
            for object in &mut objects {
                object["metadata"]["labels"] = json!({"seen-in": to.rsplit('/').next().unwrap()});
            }
        }
        _ => {}
    }
    let response = json!({"uid": request["uid"], "result": result, "convertedObjects": objects});
    json!({"kind": "ConversionReview", "apiVersion": review["apiVersion"], "response": response})
}

/// A definition with the versions v1 (stored) and v2, and a webhook at `client` between them.
fn definition(group: &str, client: &Value) -> Value {
    let text = json!({"type": "string"});
    let schema = |properties: Value| json!({"openAPIV3Schema": {"type": "object", "properties": properties}});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("multis.{group}")}, "spec": {"group": group, "scope": "Namespaced",
        "names": {"plural": "multis", "kind": "Multi"},
        "conversion": {"strategy": "Webhook",
            "webhook": {"clientConfig": client, "conversionReviewVersions": ["v1", "v1beta1"]}},
        "versions": [
            {"name": "v1", "served": true, "storage": true, "schema": schema(json!({"hostPort": text}))},
            {"name": "v2", "served": true, "storage": false, "schema": schema(json!({"host": text, "port": text}))}]}})
}

struct Multi<'a> {
    api: &'a Api<'a>,
    at: String,
    group: &'static str,
    webhook: Webhook,
}

impl<'a> Multi<'a> {
    fn define(api: &'a Api<'a>, group: &'static str, path: &str) -> Self {
        let webhook = Webhook::start(api.cluster, &[], Arc::new(answer));
        let made = api.create(DEFINITIONS, &definition(group, &webhook.at(path)));
        let at = format!("{DEFINITIONS}/{}", name(&made));
        api.until(&at, "established", |d| condition(d, "Established") == "True");
        Self { api, at, group, webhook }
    }

    fn path(&self, version: &str) -> String {
        format!("/apis/{}/{version}/namespaces/default/multis", self.group)
    }

    fn create_v1(&self, name: &str) -> Value {
        self.api.create(&self.path("v1"), &json!({"metadata": {"name": name}, "hostPort": "localhost:8080"}))
    }

    /// From now on objects are stored as v2.
    fn store_v2(&self) {
        self.api.edit(&self.at, |d| {
            d["spec"]["versions"][0]["storage"] = false.into();
            d["spec"]["versions"][1]["storage"] = true.into();
        });
        self.api.until(&self.at, "stored in v2", |d| d["status"]["storedVersions"] == json!(["v1", "v2"]));
    }
}

#[track_caller]
fn is_v2(object: &Value) {
    assert!(object["apiVersion"].as_str().unwrap().ends_with("/v2"), "{object}");
    assert_eq!((&object["host"], &object["port"], object.get("hostPort")), (&json!("localhost"), &json!("8080"), None));
}

// Conformance: Custom Resource Definition Conversion Webhook, conversion custom resource
fn one_object_in_two_versions(api: &Api<'_>) {
    let multi = Multi::define(api, "one.conversion.example.com", "/convert");
    let made = multi.create_v1("a");
    let got = api.get(&format!("{}/a", multi.path("v2")));
    is_v2(&got);
    // Metadata is the stored object's.
    assert_eq!(got["metadata"]["uid"], made["metadata"]["uid"]);
    assert_eq!(got["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    assert_eq!(api.get(&format!("{}/a", multi.path("v1")))["hostPort"], "localhost:8080");
    let review = &multi.webhook.seen("/convert")[0];
    assert_eq!(
        (&review["apiVersion"], &review["kind"]),
        (&json!("apiextensions.k8s.io/v1"), &json!("ConversionReview"))
    );
    assert_eq!(review["request"]["desiredAPIVersion"], "one.conversion.example.com/v2");
    // What was converted once is known.
    let asked = multi.webhook.seen("/convert").len();
    is_v2(&api.get(&format!("{}/a", multi.path("v2"))));
    assert_eq!(multi.webhook.seen("/convert").len(), asked);
}

// Conformance: Custom Resource Definition Conversion Webhook, convert mixed version list
fn a_list_of_both_versions(api: &Api<'_>) {
    let multi = Multi::define(api, "list.conversion.example.com", "/convert");
    multi.create_v1("a");
    multi.store_v2();
    api.create(&multi.path("v2"), &json!({"metadata": {"name": "b"}, "host": "localhost", "port": "8080"}));
    for path in [multi.path("v2"), format!("{}?limit=10", multi.path("v2"))] {
        let items = api.list(&path);
        assert_eq!(names(&items), ["a", "b"]);
        for mut item in items {
            item["apiVersion"] = "list.conversion.example.com/v2".into();
            is_v2(&item);
        }
    }
    for item in api.list(&multi.path("v1")) {
        assert_eq!(item["hostPort"], "localhost:8080");
    }
    let table = api.cluster.kubectl(&["get", "multis.v2.list.conversion.example.com"]);
    assert_eq!(table.lines().count(), 3, "{table}");
}

fn watches_in_either_version(api: &Api<'_>) {
    let multi = Multi::define(api, "watch.conversion.example.com", "/convert");
    multi.create_v1("a");
    let old = api.watch(&multi.path("v1"));
    let new = api.watch(&multi.path("v2"));
    assert_eq!(old.expect("ADDED", "a")["hostPort"], "localhost:8080");
    is_v2(&new.expect("ADDED", "a"));
    api.create(&multi.path("v2"), &json!({"metadata": {"name": "b"}, "host": "localhost", "port": "8080"}));
    assert_eq!(old.expect("ADDED", "b")["hostPort"], "localhost:8080");
    is_v2(&new.expect("ADDED", "b"));
    api.patch(&format!("{}/b", multi.path("v1")), MERGE, &json!({"metadata": {"labels": {"x": "y"}}}));
    let changed = new.expect("MODIFIED", "b");
    is_v2(&changed);
    assert_eq!(changed["metadata"]["labels"]["x"], "y");
    old.expect("MODIFIED", "b");
    api.delete(&format!("{}/b", multi.path("v1")));
    is_v2(&new.expect("DELETED", "b"));
    assert_eq!(old.expect("DELETED", "b")["hostPort"], "localhost:8080");
}

fn written_in_either_version(api: &Api<'_>) {
    let multi = Multi::define(api, "write.conversion.example.com", "/convert");
    let made = multi.create_v1("a");
    let at = format!("{}/a", multi.path("v2"));
    let patched = api.patch(&at, MERGE, &json!({"port": "9"}));
    assert_eq!(
        (&patched["host"], &patched["port"], &patched["metadata"]["generation"]),
        (&json!("localhost"), &json!("9"), &json!(2))
    );
    assert_eq!(api.get(&format!("{}/a", multi.path("v1")))["hostPort"], "localhost:9");
    // A write that changes nothing makes no version.
    let again = api.patch(&at, MERGE, &json!({"port": "9"}));
    assert_eq!(again["metadata"]["resourceVersion"], patched["metadata"]["resourceVersion"]);
    let updated = api.edit(&at, |o| o["host"] = "there".into());
    assert_eq!(updated["metadata"]["uid"], made["metadata"]["uid"]);
    multi.store_v2();
    assert_eq!(api.get(&format!("{}/a", multi.path("v1")))["hostPort"], "there:9");
    let held = api.patch(&at, MERGE, &json!({"metadata": {"finalizers": ["example.com/hold"]}}));
    assert_eq!(held["host"], "there");
    api.delete(&format!("{}/a", multi.path("v1")));
    api.patch(&format!("{}/a", multi.path("v1")), MERGE, &json!({"metadata": {"finalizers": null}}));
    api.gone(&at);
    // A definition whose objects have been stored in several versions takes all of them along.
    multi.create_v1("last");
    api.delete(&multi.at);
    api.gone(&multi.at);
}

fn applied_in_two_versions(api: &Api<'_>) {
    let multi = Multi::define(api, "apply.conversion.example.com", "/convert");
    let apply = |version: &str, manager: &str, force: bool, fields: Value| {
        let mut body =
            json!({"apiVersion": format!("{}/{version}", multi.group), "kind": "Multi", "metadata": {"name": "a"}});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let path = format!("{}/a?fieldManager={manager}&force={force}", multi.path(version));
        api.request("PATCH", &path, Some((APPLY, &body.to_string())))
    };
    apply("v1", "one", false, json!({"hostPort": "localhost:8080"})).expect(201);
    let conflict = apply("v2", "two", false, json!({"host": "there"})).expect(409);
    assert_eq!(conflict["message"], "Apply failed with 1 conflict: conflict with \"one\": .hostPort");
    let forced = apply("v2", "two", true, json!({"host": "there"})).expect(200);
    assert_eq!((&forced["host"], &forced["port"]), (&json!("there"), &json!("8080")));
    let owners: Vec<&Value> =
        forced["metadata"]["managedFields"].as_array().unwrap().iter().map(|m| &m["manager"]).collect();
    assert_eq!(owners, ["two"]);
}

fn labels_may_change(api: &Api<'_>) {
    let multi = Multi::define(api, "labels.conversion.example.com", "/label");
    multi.create_v1("a");
    let selected = |version: &str, label: &str| {
        api.list(&format!("{}?labelSelector=seen-in%3D{label}", multi.path(version))).len()
    };
    assert_eq!((selected("v1", "v2"), selected("v2", "v2"), selected("v2", "v1")), (0, 1, 0));
    let watch = api.watch(&format!("{}?labelSelector=seen-in%3Dv2", multi.path("v2")));
    watch.expect("ADDED", "a");
    multi.create_v1("b");
    watch.expect("ADDED", "b");
}

fn webhooks_of_admission_see_their_version(api: &Api<'_>) {
    let multi = Multi::define(api, "admission.conversion.example.com", "/convert");
    let hook = json!({"name": "look.example.com", "clientConfig": multi.webhook.at("/look"), "sideEffects": "None",
        "admissionReviewVersions": ["v1"], "matchPolicy": "Equivalent",
        "rules": [{"apiGroups": [multi.group], "apiVersions": ["v2"], "resources": ["multis"],
            "operations": ["CREATE"]}]});
    api.create(
        "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
        &json!({"metadata": {"name": multi.group}, "webhooks": [hook]}),
    );
    api.cluster.wait_for("the webhook is asked", || {
        let path = format!("{}?dryRun=All", multi.path("v1"));
        api.create(&path, &json!({"metadata": {"name": "a"}, "hostPort": "localhost:8080"}));
        multi.webhook.seen("/look").first().cloned()
    });
    let request = &multi.webhook.seen("/look")[0]["request"];
    is_v2(&request["object"]);
    assert_eq!((&request["resource"]["version"], &request["requestResource"]["version"]), (&json!("v2"), &json!("v1")));
}

fn failures_are_told(api: &Api<'_>) {
    let told = |group: &'static str, path: &str| {
        let multi = Multi::define(api, group, path);
        multi.create_v1("a");
        let got = api.try_get(&format!("{}/a", multi.path("v2"))).expect(500);
        let listed = api.try_get(&multi.path("v2")).expect(500);
        assert_eq!(got["message"], listed["message"]);
        // The version that is stored needs nobody.
        api.get(&format!("{}/a", multi.path("v1")));
        let message = got["message"].as_str().unwrap().to_owned();
        let head = format!("conversion webhook for {group}/v1, Kind=Multi ");
        (multi, message.strip_prefix(&head).unwrap_or_else(|| panic!("{message}")).to_owned())
    };
    let (_, refused) = told("refuse.conversion.example.com", "/refuse");
    assert_eq!(refused, "failed: no conversion today");
    let (_, renamed) = told("rename.conversion.example.com", "/rename");
    assert_eq!(renamed, "returned invalid object: must have the same name: a != other");
    let (multi, lost) = told("lose.conversion.example.com", "/lose");
    assert_eq!(lost, "returned 0 objects, expected 1");
    let write = api.send("POST", &multi.path("v2"), &json!({"metadata": {"name": "b"}, "host": "h", "port": "1"}));
    assert_eq!(
        write.expect(500)["message"],
        "conversion webhook for lose.conversion.example.com/v2, Kind=Multi returned 0 objects, expected 1"
    );
    let kubectl = api.cluster.kubectl_error(&["get", "multis.v2.lose.conversion.example.com"]);
    assert_eq!(
        kubectl,
        "Error from server: conversion webhook for lose.conversion.example.com/v1, Kind=Multi returned 0 objects, \
         expected 1\n"
    );
    let nobody = json!({"url": "https://127.0.0.1:1/convert", "caBundle": multi.webhook.ca});
    api.create(DEFINITIONS, &definition("nobody.conversion.example.com", &nobody));
    let at = format!("{DEFINITIONS}/multis.nobody.conversion.example.com");
    api.until(&at, "established", |d| condition(d, "Established") == "True");
    let path = |version: &str| format!("/apis/nobody.conversion.example.com/{version}/namespaces/default/multis");
    api.create(&path("v1"), &json!({"metadata": {"name": "a"}, "hostPort": "a:1"}));
    assert_eq!(
        api.try_get(&path("v2")).expect(500)["message"],
        "conversion webhook for nobody.conversion.example.com/v1, Kind=Multi failed: Post \
         \"https://127.0.0.1:1/convert?timeout=30s\": dial tcp 127.0.0.1:1: connect: connection refused"
    );
    // Without a webhook only the apiVersion changes, and what the other version does not know goes.
    api.patch(&at, MERGE, &json!({"spec": {"conversion": {"strategy": "None", "webhook": null}}}));
    let plain = api.cluster.wait_for("no webhook", || {
        let answer = api.try_get(&format!("{}/a", path("v2")));
        (answer.code == 200).then(|| answer.json())
    });
    assert_eq!((&plain["apiVersion"], plain.get("hostPort")), (&json!("nobody.conversion.example.com/v2"), None));
}

fn through_a_service(api: &Api<'_>) {
    let webhook = Webhook::start(api.cluster, &["convert.default.svc"], Arc::new(answer));
    let service =
        json!({"metadata": {"name": "convert"}, "spec": {"ports": [{"port": 443, "targetPort": webhook.port()}]}});
    api.create("/api/v1/namespaces/default/services", &service);
    // The node itself stands behind the Service.
    let node = api.get("/api/v1/nodes/node-1");
    let addresses = node["status"]["addresses"].as_array().unwrap();
    let address = addresses.iter().find(|a| a["type"] == "InternalIP").unwrap()["address"].clone();
    api.create(
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
        &json!({"metadata": {"name": "convert", "labels": {"kubernetes.io/service-name": "convert"}},
            "addressType": "IPv4",
            "ports": [{"name": "", "port": webhook.port(), "protocol": "TCP"}],
            "endpoints": [{"addresses": [address], "conditions": {"ready": true}}]}),
    );
    let client =
        json!({"service": {"namespace": "default", "name": "convert", "path": "/convert"}, "caBundle": webhook.ca});
    api.create(DEFINITIONS, &definition("service.conversion.example.com", &client));
    let at = format!("{DEFINITIONS}/multis.service.conversion.example.com");
    let made = api.until(&at, "established", |d| condition(d, "Established") == "True");
    assert_eq!(made["spec"]["conversion"]["webhook"]["clientConfig"]["service"]["port"], 443);
    let path = |version: &str| format!("/apis/service.conversion.example.com/{version}/namespaces/default/multis");
    api.create(&path("v1"), &json!({"metadata": {"name": "a"}, "hostPort": "localhost:8080"}));
    let got = api.cluster.wait_for("the Service is routed", || {
        let answer = api.try_get(&format!("{}/a", path("v2")));
        (answer.code == 200).then(|| answer.json())
    });
    is_v2(&got);
}
