//! StorageVersionMigrations: every object is written anew in the encryption and the version that are current, once, and
//! what cannot be migrated is told.

mod cluster;

use cluster::Cluster;
use cluster::api::{Api, name};
use serde_json::{Value, json};
use std::path::Path;

const MIGRATIONS: &str = "/apis/storagemigration.k8s.io/v1/storageversionmigrations";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// Has Secrets encrypted with the first of these keys, and read with any.
fn configure(file: &Path, keys: &[(&str, &str)]) {
    let keys: Vec<Value> = keys.iter().map(|(name, key)| json!({"name": name, "secret": key})).collect();
    let configuration = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration",
        "resources": [{"resources": ["secrets"], "providers": [{"aescbc": {"keys": keys}}]}]});
    std::fs::write(file, configuration.to_string()).unwrap();
}

/// Makes a migration and waits for its end.
fn migrate(api: &Api<'_>, migration: &str, group: &str, resource: &str) -> Value {
    let spec = json!({"resource": {"group": group, "resource": resource}});
    let made = api.create(MIGRATIONS, &json!({"metadata": {"name": migration}, "spec": spec}));
    assert_eq!(made["status"], json!({}));
    api.until(&format!("{MIGRATIONS}/{migration}"), "ended", |m| {
        let is = |kind: &str| told(m, kind).is_some_and(|c| c["status"] == "True");
        is("Succeeded") || is("Failed")
    })
}

fn told<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

#[test]
fn objects_are_written_anew() {
    let (one, two) = (
        ("one", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="),
        ("two", "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="),
    );
    let mut cluster = Cluster::prepare_role("server", &[]);
    let file = cluster.data_dir().join("configuration.yaml");
    configure(&file, &[one]);
    cluster.add_options(&["--encryption-provider-config", file.to_str().unwrap()]);
    cluster.up();
    let api = Api::new(&cluster);
    for i in 0..3 {
        api.create(SECRETS, &json!({"metadata": {"name": format!("s{i}")}, "stringData": {"value": "v"}}));
    }
    let versions = |api: &Api<'_>| -> Vec<String> {
        let ours = |s: &&Value| name(s).starts_with('s');
        api.list(SECRETS).iter().filter(ours).map(|s| s["metadata"]["resourceVersion"].to_string()).collect()
    };
    let first = versions(&api);
    assert_eq!(first.len(), 3);

    cluster.interrupt();
    configure(&file, &[two, one]);
    cluster.up();
    let api = Api::new(&cluster);
    let done = migrate(&api, "rotated", "", "secrets");
    let conditions: Vec<String> = ["Running", "Succeeded"]
        .iter()
        .map(|kind| {
            let c = told(&done, kind).unwrap_or_else(|| panic!("{kind}: {done}"));
            format!("{kind} {} {}", c["status"].as_str().unwrap(), c["reason"].as_str().unwrap())
        })
        .collect();
    assert_eq!(
        conditions,
        ["Running False StorageVersionMigrationInProgress", "Succeeded True StorageVersionMigrationSucceeded"]
    );
    let begun: u64 = done["status"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    assert!(begun > 0);
    let second = versions(&api);
    assert!(first.iter().zip(&second).all(|(a, b)| a != b), "{first:?} {second:?}");
    let one_of_them = api.get(&format!("{SECRETS}/s0"));
    let managers = one_of_them["metadata"]["managedFields"].to_string();
    assert!(!managers.contains("migrator"), "who changes nothing owns nothing: {managers}");
    // What is as it should be is left alone.
    let again = migrate(&api, "again", "", "secrets");
    assert_eq!(told(&again, "Succeeded").unwrap()["status"], "True", "{again}");
    assert_eq!(versions(&api), second);

    // The old key is not needed any more.
    cluster.interrupt();
    configure(&file, &[two]);
    cluster.up();
    let api = Api::new(&cluster);
    for i in 0..3 {
        assert_eq!(api.get(&format!("{SECRETS}/s{i}"))["data"]["value"], "dg==");
    }
    definitions(&api);
    failures(&api);
}

/// Custom resources end up in one version, and their definition says so.
fn definitions(api: &Api<'_>) {
    let version = |name: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema":
            {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}})
    };
    let definition = json!({"metadata": {"name": "things.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced",
        "names": {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"},
        "versions": [version("v1", true), version("v2", false)]}});
    api.create(DEFINITIONS, &definition);
    let at = format!("{DEFINITIONS}/things.example.com");
    api.until(&at, "established", |d| told(d, "Established").is_some_and(|c| c["status"] == "True"));
    let things = "/apis/example.com/v1/namespaces/default/things";
    let thing = json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "t"}, "a": 1});
    let thing = api.cluster.wait_for("things to be served", || {
        let answer = api.send("POST", things, &thing);
        (answer.code == 201).then(|| answer.json())
    });
    api.edit(&at, |d| d["spec"]["versions"] = json!([version("v1", false), version("v2", true)]));
    api.until(&at, "both versions", |d| d["status"]["storedVersions"] == json!(["v1", "v2"]));
    let done = migrate(api, "things", "example.com", "things");
    assert_eq!(told(&done, "Succeeded").map(|c| &c["status"]), Some(&json!("True")), "{done}");
    let definition = api.get(&at);
    assert_eq!(definition["status"]["storedVersions"], json!(["v2"]));
    let migrating = told(&definition, "StorageMigrating").unwrap();
    assert_eq!((&migrating["status"], &migrating["reason"]), (&json!("False"), &json!("MigrationSucceeded")));
    let after = api.get(&format!("{things}/t"));
    assert_ne!(after["metadata"]["resourceVersion"], thing["metadata"]["resourceVersion"]);
    assert_eq!(after["a"], 1);
    // The version that nothing is stored in may go.
    api.edit(&at, |d| d["spec"]["versions"] = json!([version("v2", true)]));
}

fn failures(api: &Api<'_>) {
    let failed = migrate(api, "nothing", "example.com", "nothings");
    let condition = told(&failed, "Failed").unwrap();
    assert_eq!(condition["reason"], "StorageVersionMigrationFailed");
    assert_eq!(condition["message"], "resource does not exist in discovery");
    let status = json!({"status": {"conditions": [{"type": "Failed", "status": "False", "reason": "R", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    let path = format!("{MIGRATIONS}/nothing/status");
    let answer = api.request("PATCH", &path, Some((cluster::api::MERGE, &status.to_string())));
    let message = answer.expect(422)["message"].as_str().unwrap().to_owned();
    assert!(message.ends_with("Failed condition cannot be set to false once it is true"), "{message}");
}
