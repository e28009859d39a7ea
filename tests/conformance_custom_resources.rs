//! What upstream's conformance suite asks of custom resources: definitions, their OpenAPI documents, field validation,
//! and admission webhooks for them. Each behaviour stands above its scenario by upstream's name; docs/conformance.md lists
//! them all.

mod cluster;

use cluster::Cluster;
use cluster::api::{APPLY, Api, JSON_PATCH, MERGE, base64, condition, name, names};
use cluster::webhook::Webhook;
use serde_json::{Value, json};
use std::sync::Arc;

const GROUP: &str = "/apis/apiextensions.k8s.io/v1";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

#[test]
fn conformance_of_custom_resources() {
    let cluster = Cluster::start();
    let all = scenarios![
        made_and_deleted,
        listed_by_label,
        the_status_of_a_definition,
        discovery,
        defaults_of_requests_and_of_what_is_stored,
        watched,
        published_with_a_schema,
        published_without_a_schema,
        published_with_unknown_fields_at_the_root,
        published_with_unknown_fields_inside,
        published_for_several_groups_versions_and_kinds,
        a_version_is_renamed_or_not_served_any_more,
        fields_of_applied_objects,
        rules_hold,
        webhooks_refuse_objects,
        webhooks_refuse_definitions,
        webhooks_change_objects,
        webhooks_change_objects_stored_in_another_version,
        webhooks_add_what_is_pruned,
    ];
    cluster::api::scenarios(&Api::new(&cluster), all);
}

/// The schema of anything.
fn anything() -> Value {
    json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// A cluster-wide kind with these versions, the first one stored.
fn definition(group: &str, kind: &str, versions: &[&str], schema: &Value) -> Value {
    let plural = format!("{}s", kind.to_lowercase());
    let version = |(i, v): (usize, &&str)| json!({"name": v, "served": true, "storage": i == 0, "schema": {"openAPIV3Schema": schema}});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}"), "labels": {"of": group}},
        "spec": {"group": group, "scope": "Cluster", "names": {"plural": plural, "kind": kind},
            "versions": versions.iter().enumerate().map(version).collect::<Vec<_>>()}})
}

/// Creates a definition and waits until it is established.
#[track_caller]
fn define(api: &Api<'_>, definition: &Value) -> String {
    let path = format!("{DEFINITIONS}/{}", name(&api.create(DEFINITIONS, definition)));
    api.until(&path, "established", |d| condition(d, "Established") == "True");
    path
}

// Conformance: Custom Resource Definition, create
fn made_and_deleted(api: &Api<'_>) {
    let path = define(api, &definition("made.example.com", "Made", &["v1"], &anything()));
    api.delete(&path);
    api.gone(&path);
}

// Conformance: Custom Resource Definition, list
fn listed_by_label(api: &Api<'_>) {
    for i in 0..10 {
        define(api, &definition("listed.example.com", &format!("Listed{i}"), &["v1"], &anything()));
    }
    let other = define(api, &definition("unlisted.example.com", "Other", &["v1"], &anything()));
    let selected = format!("{DEFINITIONS}?labelSelector=of%3Dlisted.example.com");
    assert_eq!(api.list(&selected).len(), 10);
    api.delete(&selected);
    api.until(&selected, "all gone", |list| list["items"].as_array().unwrap().is_empty());
    api.get(&other);
}

// Conformance: Custom Resource Definition, status sub-resource
fn the_status_of_a_definition(api: &Api<'_>) {
    let path = define(api, &definition("status.example.com", "Status", &["v1"], &anything()));
    let status = format!("{path}/status");
    let spec = api.get(&path)["spec"].clone();
    assert_eq!(api.get(&status)["spec"], spec);
    let with = |message: &'static str| {
        move |d: &Value| d["status"]["conditions"].as_array().unwrap().iter().any(|c| c["message"] == message)
    };
    let updated = api.edit(&status, |d| {
        let condition = json!({"type": "", "status": "", "message": "updated"});
        d["status"]["conditions"].as_array_mut().unwrap().push(condition);
    });
    assert!(with("updated")(&updated), "{updated}");
    let patch = json!([{"op": "add", "path": "/status/conditions",
        "value": [{"type": "", "status": "", "message": "patched"}]}]);
    let patched = api.patch(&status, JSON_PATCH, &patch);
    assert!(with("patched")(&patched), "{patched}");
    assert!(with("patched")(&api.get(&path)));
}

// Conformance: Custom Resource Definition, discovery
fn discovery(api: &Api<'_>) {
    let groups = api.get("/apis");
    let group = groups["groups"].as_array().unwrap().iter().find(|g| g["name"] == "apiextensions.k8s.io").unwrap();
    assert!(group["versions"].as_array().unwrap().iter().any(|v| v["version"] == "v1"));
    let group = api.get("/apis/apiextensions.k8s.io");
    assert_eq!(group["name"], "apiextensions.k8s.io");
    assert!(group["versions"].as_array().unwrap().iter().any(|v| v["groupVersion"] == "apiextensions.k8s.io/v1"));
    let resources = api.get(GROUP);
    assert_eq!(resources["groupVersion"], "apiextensions.k8s.io/v1");
    assert!(resources["resources"].as_array().unwrap().iter().any(|r| r["name"] == "customresourcedefinitions"));
}

// Conformance: Custom Resource Definition, defaulting
fn defaults_of_requests_and_of_what_is_stored(api: &Api<'_>) {
    let schema = json!({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}});
    let at = define(api, &definition("defaults.example.com", "Default", &["v1"], &schema));
    let path = "/apis/defaults.example.com/v1/defaults";
    api.create(path, &json!({"metadata": {"name": "one"}}));
    let property = |p: &str| format!("/spec/versions/0/schema/openAPIV3Schema/properties/{p}/default");
    api.patch(&at, JSON_PATCH, &json!([{"op": "add", "path": property("a"), "value": "A"}]));
    api.until(&format!("{path}/one"), "defaulted", |o| o["a"] == "A");
    assert_eq!(api.create(path, &json!({"metadata": {"name": "two"}}))["a"], "A");
    let change = json!([{"op": "remove", "path": property("a")}, {"op": "add", "path": property("b"), "value": "B"}]);
    api.patch(&at, JSON_PATCH, &change);
    let two = api.until(&format!("{path}/two"), "defaulted", |o| o["b"] == "B");
    assert_eq!(two["a"], "A");
}

// Conformance: Custom Resource Definition, watch
fn watched(api: &Api<'_>) {
    define(api, &definition("watched.example.com", "Watched", &["v1"], &anything()));
    let path = "/apis/watched.example.com/v1/watcheds";
    let a = api.watch(&format!("{path}?fieldSelector=metadata.name%3Da"));
    let b = api.watch(&format!("{path}?fieldSelector=metadata.name%3Db"));
    for (watch, name) in [(&a, "a"), (&b, "b")] {
        api.create(path, &json!({"metadata": {"name": name}}));
        watch.expect("ADDED", name);
        api.patch(&format!("{path}/{name}"), MERGE, &json!({"changed": true}));
        assert_eq!(watch.expect("MODIFIED", name)["changed"], true);
        api.delete(&format!("{path}/{name}"));
        watch.expect("DELETED", name);
    }
    assert!(a.rest().is_empty() && b.rest().is_empty());
}

const FOO: &str = r#"{"description": "Foo CRD for Testing", "type": "object", "properties": {
    "spec": {"type": "object", "description": "Specification of Foo", "properties": {
        "bars": {"description": "List of Bars and their specs.", "type": "array", "items": {"type": "object",
            "required": ["name"], "properties": {
                "name": {"description": "Name of Bar.", "type": "string"},
                "age": {"description": "Age of Bar.", "type": "string"},
                "feeling": {"description": "Whether Bar is feeling great.", "type": "string", "enum": ["Great", "Down"]},
                "bazs": {"description": "List of Bazs.", "type": "array", "items": {"type": "string"}}}}}}},
    "status": {"description": "Status of Foo", "type": "object", "properties": {
        "bars": {"description": "List of Bars and their statuses.", "type": "array", "items": {"type": "object",
            "properties": {
                "name": {"description": "Name of Bar.", "type": "string"},
                "available": {"description": "Whether the Bar is installed.", "type": "boolean"},
                "quxType": {"description": "Indicates to external qux type.", "type": "string",
                    "pattern": "in-tree|out-of-tree"}}}}}}}}"#;

fn foo() -> Value {
    serde_json::from_str(FOO).unwrap()
}

fn waldo() -> Value {
    json!({"description": "Waldo CRD for Testing", "type": "object", "properties": {
        "spec": {"description": "Specification of Waldo", "type": "object", "properties": {
            "dummy": {"description": "Dummy property.", "type": "object"}}}}})
}

/// The name of a kind's type in OpenAPI.
fn type_name(group: &str, version: &str, kind: &str) -> String {
    let reversed: Vec<&str> = group.split('.').rev().collect();
    format!("{}.{version}.{kind}", reversed.join("."))
}

/// Waits until a type is documented as its schema says.
fn documented(api: &Api<'_>, type_name: &str, schema: &Value) {
    let mut last = Value::Null;
    api.cluster.wait_for(&format!("{type_name} in OpenAPI: {last}"), || {
        last = api.get("/openapi/v2")["definitions"][type_name].clone();
        let mut found = last.clone();
        let object = found.as_object_mut()?;
        object.remove("x-kubernetes-group-version-kind");
        if let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) {
            for added in ["apiVersion", "kind", "metadata"] {
                properties.remove(added);
            }
            if properties.is_empty() {
                object.remove("properties");
            }
        }
        (&found == schema).then_some(())
    });
}

fn not_documented(api: &Api<'_>, type_name: &str) {
    api.cluster.wait_for(&format!("{type_name} not in OpenAPI"), || {
        api.get("/openapi/v2")["definitions"][type_name].is_null().then_some(())
    });
}

/// `kubectl explain` says all of these, in this order.
#[track_caller]
fn explained(api: &Api<'_>, what: &str, parts: &[&str]) {
    let text = api.cluster.kubectl(&["explain", what]);
    let mut rest = text.as_str();
    for part in parts {
        let at = rest.find(part).unwrap_or_else(|| panic!("no {part:?} in its place in\n{text}"));
        rest = &rest[at + part.len()..];
    }
}

/// kubectl creates and applies an object, and deletes it.
fn accepted_by_kubectl(api: &Api<'_>, object: &Value) {
    let group = object["apiVersion"].as_str().unwrap().split('/').next().unwrap();
    let kind = format!("{}s.{group}", object["kind"].as_str().unwrap().to_lowercase());
    for verb in ["create", "apply"] {
        api.cluster.kubectl_with(&[verb, "-f", "-"], &object.to_string());
        api.cluster.kubectl(&["delete", &kind, name(object)]);
    }
}

/// What kubectl says where it may neither create nor apply an object.
fn refused_by_kubectl(api: &Api<'_>, object: &Value, why: &str) {
    for verb in ["create", "apply"] {
        let output = api.cluster.try_kubectl_with(&[verb, "-f", "-"], &object.to_string());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(why), "{verb}: {error}");
    }
}

// Conformance: Custom Resource OpenAPI Publish, with validation schema
fn published_with_a_schema(api: &Api<'_>) {
    let group = "foo.openapi.example.com";
    define(api, &definition(group, "Foo", &["v1"], &foo()));
    documented(api, &type_name(group, "v1", "Foo"), &foo());
    let object = |spec: Value| json!({"apiVersion": format!("{group}/v1"), "kind": "Foo", "metadata": {"name": "f"}, "spec": spec});
    accepted_by_kubectl(api, &object(json!({"bars": [{"name": "test-bar"}]})));
    let unknown = object(json!({"foo": true}));
    refused_by_kubectl(api, &unknown, "unknown field \"spec.foo\"");
    refused_by_kubectl(api, &object(json!({"bars": [{"age": "10"}]})), "spec.bars[0].name: Required value");
    let sad = object(json!({"bars": [{"name": "b", "feeling": "NonExistentValue"}]}));
    refused_by_kubectl(api, &sad, "Unsupported value: \"NonExistentValue\"");
    let of = |below: &str| format!("foos.{group}{below}");
    explained(
        api,
        "foos",
        &[
            "DESCRIPTION:",
            "Foo CRD for Testing",
            "FIELDS:",
            "apiVersion",
            "<string>",
            "APIVersion defines",
            "spec",
            "<Object>",
            "Specification of Foo",
        ],
    );
    explained(
        api,
        "foos.metadata",
        &[
            "DESCRIPTION:",
            "Standard object's metadata",
            "FIELDS:",
            "creationTimestamp",
            "<string>",
            "CreationTimestamp is a timestamp",
        ],
    );
    explained(
        api,
        "foos.spec",
        &["DESCRIPTION:", "Specification of Foo", "FIELDS:", "bars", "<[]Object>", "List of Bars and their specs"],
    );
    explained(
        api,
        "foos.spec.bars",
        &[
            "bars",
            "<[]Object>",
            "DESCRIPTION:",
            "List of Bars and their specs",
            "FIELDS:",
            "bazs",
            "<[]string>",
            "List of Bazs",
            "feeling",
            "<string>",
            "Whether Bar is feeling great",
            "name",
            "<string>",
            "Name of Bar",
        ],
    );
    let missing = api.cluster.kubectl_error(&["explain", "foos.spec.bars2"]);
    assert!(missing.contains("field \"bars2\" does not exist"), "{missing}");
    api.delete(&format!("{DEFINITIONS}/{}", of("")));
    not_documented(api, &type_name(group, "v1", "Foo"));
}

// Conformance: Custom Resource OpenAPI Publish, with x-kubernetes-preserve-unknown-fields in object
fn published_without_a_schema(api: &Api<'_>) {
    let group = "empty.openapi.example.com";
    define(api, &definition(group, "Empty", &["v1"], &anything()));
    documented(api, &type_name(group, "v1", "Empty"), &json!({"type": "object"}));
    accepted_by_kubectl(
        api,
        &json!({"apiVersion": format!("{group}/v1"), "kind": "Empty", "metadata": {"name": "e"},
            "a": {"b": [{"c": "d"}]}}),
    );
    explained(api, "emptys", &["DESCRIPTION:", "<empty>"]);
}

// Conformance: Custom Resource OpenAPI Publish, with x-kubernetes-preserve-unknown-fields at root
fn published_with_unknown_fields_at_the_root(api: &Api<'_>) {
    let group = "root.openapi.example.com";
    let schema = json!({"description": "preserve-unknown-properties at root for Testing", "type": "object",
        "x-kubernetes-preserve-unknown-fields": true, "properties": {
            "spec": {"description": "Specification of Waldo", "type": "object", "properties": {
                "dummy": {"description": "Dummy property.", "type": "object"}}},
            "status": {"description": "Status of Waldo", "type": "object", "properties": {
                "bars": {"description": "List of Bars and their statuses.", "type": "array", "items": {"type": "object",
                    "properties": {"name": {"description": "Name of Bar.", "type": "string"}}}}}}}});
    define(api, &definition(group, "Rooted", &["v1"], &schema));
    // Clients of version 2 would take declared fields for all there are.
    documented(api, &type_name(group, "v1", "Rooted"), &json!({"type": "object"}));
    accepted_by_kubectl(
        api,
        &json!({"apiVersion": format!("{group}/v1"), "kind": "Rooted", "metadata": {"name": "e"},
            "a": {"b": [{"c": "d"}]}}),
    );
    explained(api, "rooteds", &["KIND:", "Rooted"]);
}

// Conformance: Custom Resource OpenAPI Publish, with x-kubernetes-preserve-unknown-fields in embedded object
fn published_with_unknown_fields_inside(api: &Api<'_>) {
    let group = "nested.openapi.example.com";
    let about = "preserve-unknown-properties in nested field for Testing";
    let schema = json!({"description": about, "type": "object", "properties": {
        "spec": {"description": "Specification of Waldo", "type": "object", "x-kubernetes-preserve-unknown-fields": true,
            "properties": {"dummy": {"description": "Dummy property.", "type": "object"}}}}});
    define(api, &definition(group, "Nested", &["v1"], &schema));
    accepted_by_kubectl(
        api,
        &json!({"apiVersion": format!("{group}/v1"), "kind": "Nested", "metadata": {"name": "e"},
            "spec": {"a": null, "b": [{"c": "d"}]}}),
    );
    explained(api, "nesteds", &["DESCRIPTION:", about]);
}

fn published_for_several_groups_versions_and_kinds(api: &Api<'_>) {
    // Conformance: Custom Resource OpenAPI Publish, varying groups
    let (one, two) = ("one.openapi.example.com", "two.openapi.example.com");
    define(api, &definition(one, "Foo", &["v1"], &foo()));
    define(api, &definition(two, "Waldo", &["v1beta1"], &waldo()));
    documented(api, &type_name(one, "v1", "Foo"), &foo());
    documented(api, &type_name(two, "v1beta1", "Waldo"), &waldo());
    // Conformance: Custom Resource OpenAPI Publish, varying versions
    let group = "several.openapi.example.com";
    define(api, &definition(group, "Multi", &["v2", "v3"], &foo()));
    documented(api, &type_name(group, "v2", "Multi"), &foo());
    documented(api, &type_name(group, "v3", "Multi"), &foo());
    define(api, &definition(group, "Foo", &["v4"], &foo()));
    define(api, &definition(group, "Waldo", &["v5"], &waldo()));
    documented(api, &type_name(group, "v4", "Foo"), &foo());
    documented(api, &type_name(group, "v5", "Waldo"), &waldo());
    // Conformance: Custom Resource OpenAPI Publish, varying kinds
    define(api, &definition(group, "Fools", &["v6"], &foo()));
    define(api, &definition(group, "Where", &["v6"], &waldo()));
    documented(api, &type_name(group, "v6", "Fools"), &foo());
    documented(api, &type_name(group, "v6", "Where"), &waldo());
    let v3 = api.get(&format!("/openapi/v3/apis/{group}/v6"));
    assert_eq!(v3["components"]["schemas"][type_name(group, "v6", "Fools")]["description"], "Foo CRD for Testing");
}

fn a_version_is_renamed_or_not_served_any_more(api: &Api<'_>) {
    // Conformance: Custom Resource OpenAPI Publish, version rename
    let group = "renamed.openapi.example.com";
    let at = define(api, &definition(group, "Multi", &["v2", "v3"], &foo()));
    documented(api, &type_name(group, "v3", "Multi"), &foo());
    let patch = json!([{"op": "test", "path": "/spec/versions/1/name", "value": "v3"},
        {"op": "replace", "path": "/spec/versions/1/name", "value": "v4"}]);
    api.patch(&at, JSON_PATCH, &patch);
    documented(api, &type_name(group, "v4", "Multi"), &foo());
    not_documented(api, &type_name(group, "v3", "Multi"));
    documented(api, &type_name(group, "v2", "Multi"), &foo());
    // Conformance: Custom Resource OpenAPI Publish, stop serving version
    api.edit(&at, |d| d["spec"]["versions"][1]["served"] = false.into());
    not_documented(api, &type_name(group, "v4", "Multi"));
    documented(api, &type_name(group, "v2", "Multi"), &foo());
}

fn fields_of_applied_objects(api: &Api<'_>) {
    let group = "fields.example.com";
    let spec = |extra: Value| {
        let mut spec = json!({"type": "object", "properties": {"foo": {"type": "string"},
            "cronSpec": {"type": "string", "pattern": "^(\\d+|\\*)(/\\d+)?(\\s+(\\d+|\\*)(/\\d+)?){4}$"},
            "template": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {
                "metadata": {"type": "object", "properties": {"name": {"type": "string"}}}, "spec": {"type": "object"}}},
            "ports": {"type": "array", "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["containerPort", "protocol"], "items": {"type": "object",
                "required": ["containerPort", "protocol"], "properties": {
                    "containerPort": {"type": "integer", "format": "int32"}, "protocol": {"type": "string"},
                    "name": {"type": "string"}}}}}});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        json!({"type": "object", "properties": {"spec": spec}})
    };
    define(api, &definition(group, "Strict", &["v1"], &spec(json!({}))));
    define(api, &definition(group, "Lax", &["v1"], &spec(json!({"x-kubernetes-preserve-unknown-fields": true}))));
    define(api, &definition(group, "Free", &["v1"], &anything()));
    let apply = |kind: &str, meta: &str, rest: &str| {
        let plural = format!("{}s", kind.to_lowercase());
        let yaml = format!(
            "apiVersion: {group}/v1\nkind: {kind}\nmetadata:\n  name: mytest\n{meta}  finalizers:\n  - e2e.example/test\n{rest}  \
             cronSpec: \"* * * * */5\"\n  ports:\n  - name: x\n    containerPort: 80\n    protocol: TCP\n"
        );
        let path = format!("/apis/{group}/v1/{plural}/mytest?fieldManager=m&fieldValidation=Strict");
        api.request("PATCH", &path, Some((APPLY, &yaml)))
    };
    // Conformance: Server side field validation, valid CR with validation schema
    apply("Strict", "", "spec:\n  foo: foo1\n").expect(201);
    // Conformance: Server side field validation, unknown fields CR no validation schema
    apply("Free", "", "spec:\n  unknown: uk1\n").expect(201);
    // Conformance: Server side field validation, unknown fields CR fails validation
    let unknown = apply("Strict", "", "unknownField: unknown\nspec:\n  foo: foo1\n");
    assert!(unknown.code != 200 && unknown.text.contains(".unknownField: field not declared in schema"), "{unknown:?}");
    // Conformance: Server side field validation, unknown metadata
    let template = "spec:\n  foo: foo1\n  template:\n    apiVersion: foo/v1\n    kind: Sub\n    metadata:\n      \
                    unknownSubMeta: unknown\n      name: subobject\n";
    let meta = apply("Lax", "  unknownMeta: unknown\n", template);
    for place in [".spec.template.metadata.unknownSubMeta", ".metadata.unknownMeta"] {
        assert!(meta.text.contains(&format!("{place}: field not declared in schema")), "{meta:?}");
    }
    // Conformance: Server side field validation, CR duplicates
    let twice = apply("Lax", "", "spec:\n  unknown: uk1\n  foo: foo1\n  foo: foo2\n");
    assert!(twice.code == 400 && twice.text.contains("line 10: key \\\"foo\\\" already set in map"), "{twice:?}");
}

fn rules_hold(api: &Api<'_>) {
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "x-kubernetes-validations": [{"rule": "self.x + self.y > 0"}],
            "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}}},
        "status": {"type": "object",
            "x-kubernetes-validations": [{"rule": "self.health == 'ok' || self.health == 'unhealthy'"}],
            "properties": {"health": {"type": "string"}}}}});
    define(api, &definition("rules.example.com", "Rule", &["v1"], &schema));
    let path = "/apis/rules.example.com/v1/rules";
    api.create(path, &json!({"metadata": {"name": "a"}, "spec": {"x": 1, "y": 0}}));
    let refused = api.send("POST", path, &json!({"metadata": {"name": "b"}, "spec": {"x": 0, "y": 0}})).expect(422);
    assert!(refused["message"].as_str().unwrap().contains("failed rule"), "{refused}");
}

/// The webhook of all scenarios: the path says what it does.
fn answer(path: &str, review: &Value) -> Value {
    let request = &review["request"];
    let data = |object: &str, key: &str| request[object]["data"][key].as_str().unwrap_or_default().to_owned();
    let mut response = json!({"uid": request["uid"], "allowed": true});
    let mut add = |key: &str| {
        let patch = json!([{"op": "add", "path": format!("/data/{key}"), "value": "yes"}]);
        response["patch"] = base64(patch.to_string().as_bytes()).into();
        response["patchType"] = "JSONPatch".into();
    };
    match path {
        "/deny" => {
            let object = if request["operation"] == "DELETE" { "oldObject" } else { "object" };
            if data(object, "offence") == "yes" {
                response["allowed"] = false.into();
                response["status"] = json!({"message": "the custom resource contains unwanted data"});
            }
        }
        "/deny-crd" => {
            response["allowed"] = false.into();
            response["status"] = json!({"message": "the crd contains unwanted label"});
        }
        "/stage-1" if data("object", "mutation-start") == "yes" => add("mutation-stage-1"),
        "/stage-2" if data("object", "mutation-stage-1") == "yes" => add("mutation-stage-2"),
        _ => {}
    }
    json!({"kind": "AdmissionReview", "apiVersion": review["apiVersion"], "response": response})
}

/// Webhooks at these paths for all versions of the kinds of a group.
fn configure(api: &Api<'_>, webhook: &Webhook, sort: &str, group: &str, operations: &[&str], paths: &[&str]) {
    let hook = |path: &&str| {
        json!({"name": format!("{}.example.com", path.trim_matches('/')), "clientConfig": webhook.at(path),
            "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "rules": [{"apiGroups": [group], "apiVersions": ["*"], "resources": ["*"], "operations": operations}]})
    };
    let hooks: Vec<Value> = paths.iter().map(hook).collect();
    let path = format!("/apis/admissionregistration.k8s.io/v1/{sort}webhookconfigurations");
    api.create(&path, &json!({"metadata": {"name": group}, "webhooks": hooks}));
}

// Conformance: Admission webhook, deny custom resource create and delete
fn webhooks_refuse_objects(api: &Api<'_>) {
    let group = "denied.example.com";
    define(api, &definition(group, "Denied", &["v1"], &anything()));
    let webhook = Webhook::start(api.cluster, &[], Arc::new(answer));
    let path = format!("/apis/{group}/v1/denieds");
    let bad = json!({"offence": "yes"});
    api.create(&path, &json!({"metadata": {"name": "stays"}, "data": bad}));
    configure(api, &webhook, "validating", group, &["CREATE", "UPDATE", "DELETE"], &["/deny"]);
    let why = "admission webhook \"deny.example.com\" denied the request: the custom resource contains unwanted data";
    let refused = |method: &str, at: &str, body: &Value, kind: &str| {
        let answer = api.request(method, at, Some((kind, &body.to_string())));
        assert_eq!(answer.json()["message"], why, "{answer:?}");
    };
    refused("POST", &path, &json!({"metadata": {"name": "new"}, "data": bad}), "application/json");
    api.create(&path, &json!({"metadata": {"name": "good"}, "data": {}}));
    refused("PATCH", &format!("{path}/good"), &json!({"data": bad}), MERGE);
    refused("DELETE", &format!("{path}/stays"), &json!({}), "application/json");
    api.delete(&format!("{path}/good"));
    let delete = webhook.seen("/deny").into_iter().find(|r| r["request"]["operation"] == "DELETE").unwrap();
    assert_eq!(delete["request"]["oldObject"]["kind"], "Denied");
}

// Conformance: Admission webhook, deny custom resource definition
fn webhooks_refuse_definitions(api: &Api<'_>) {
    let group = "unwanted.example.com";
    let webhook = Webhook::start(api.cluster, &[], Arc::new(answer));
    let hook = json!({"name": "deny-crd.example.com", "clientConfig": webhook.at("/deny-crd"), "sideEffects": "None",
        "admissionReviewVersions": ["v1"], "objectSelector": {"matchLabels": {"of": group}},
        "rules": [{"apiGroups": ["apiextensions.k8s.io"], "apiVersions": ["*"], "operations": ["CREATE"],
            "resources": ["customresourcedefinitions"]}]});
    api.create(
        "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
        &json!({"metadata": {"name": group}, "webhooks": [hook]}),
    );
    let refused = api.send("POST", DEFINITIONS, &definition(group, "Unwanted", &["v1"], &anything()));
    assert_eq!(
        refused.json()["message"],
        "admission webhook \"deny-crd.example.com\" denied the request: the crd contains unwanted label"
    );
}

// Conformance: Admission webhook, mutate custom resource
fn webhooks_change_objects(api: &Api<'_>) {
    let group = "mutated.example.com";
    define(api, &definition(group, "Mutated", &["v1"], &anything()));
    let webhook = Webhook::start(api.cluster, &[], Arc::new(answer));
    configure(api, &webhook, "mutating", group, &["CREATE", "UPDATE"], &["/stage-1", "/stage-2"]);
    let path = format!("/apis/{group}/v1/mutateds");
    let made = api.create(&path, &json!({"metadata": {"name": "m"}, "data": {"mutation-start": "yes"}}));
    let all = json!({"mutation-start": "yes", "mutation-stage-1": "yes", "mutation-stage-2": "yes"});
    assert_eq!((&made["data"], &api.get(&format!("{path}/m"))["data"]), (&all, &all));
}

// Conformance: Admission webhook, mutate custom resource with different stored version
fn webhooks_change_objects_stored_in_another_version(api: &Api<'_>) {
    let group = "stored.example.com";
    let at = define(api, &definition(group, "Stored", &["v1", "v2"], &anything()));
    let webhook = Webhook::start(api.cluster, &[], Arc::new(answer));
    configure(api, &webhook, "mutating", group, &["CREATE", "UPDATE"], &["/stage-1", "/stage-2"]);
    let path = format!("/apis/{group}/v1/storeds");
    api.create(&path, &json!({"metadata": {"name": "s"}, "data": {"mutation-start": "yes"}}));
    api.edit(&at, |d| {
        d["spec"]["versions"][0]["storage"] = false.into();
        d["spec"]["versions"][1]["storage"] = true.into();
    });
    api.until(&at, "stored in v2", |d| d["status"]["storedVersions"] == json!(["v1", "v2"]));
    let patched = api.patch(&format!("{path}/s"), MERGE, &json!({"data": {"dummy": "test"}}));
    assert_eq!(
        patched["data"],
        json!({"dummy": "test", "mutation-start": "yes", "mutation-stage-1": "yes", "mutation-stage-2": "yes"})
    );
    assert_eq!(api.get(&format!("/apis/{group}/v2/storeds/s"))["data"]["dummy"], "test");
    assert_eq!(names(&api.list(&path)), ["s"]);
}

// Conformance: Admission webhook, mutate custom resource with pruning
fn webhooks_add_what_is_pruned(api: &Api<'_>) {
    let group = "pruned.example.com";
    let text = json!({"type": "string"});
    let schema = json!({"type": "object", "properties": {"data": {"type": "object", "properties": {
        "mutation-start": text, "mutation-stage-1": text}}}});
    define(api, &definition(group, "Pruned", &["v1"], &schema));
    let webhook = Webhook::start(api.cluster, &[], Arc::new(answer));
    configure(api, &webhook, "mutating", group, &["CREATE", "UPDATE"], &["/stage-1", "/stage-2"]);
    let path = format!("/apis/{group}/v1/pruneds");
    let made = api.create(&path, &json!({"metadata": {"name": "p"}, "data": {"mutation-start": "yes"}}));
    assert_eq!(made["data"], json!({"mutation-start": "yes", "mutation-stage-1": "yes"}));
    assert_eq!(webhook.seen("/stage-2").len(), 1);
}
