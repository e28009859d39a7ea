//! The strict decoders, the patches and the stored ownership of fields.

use gantry_schema::apply::FieldSet;
use gantry_schema::{Definitions, Schema, patch, protobuf as wire, strict};
use serde_json::{Value, json};

pub(crate) const JSON: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "null",
    "true",
    "false",
    "-0",
    "1e400",
    "-1e-400",
    "9223372036854775808",
    "0.1",
    "\\u0000",
    "\\ud800",
    "\\",
    "\"spec\":",
    "\"replicas\":",
    "\"metadata\":",
    "\"labels\":",
    "{\"a\":{\"a\":",
    "[[[[[[[[",
    "\u{feff}",
    "\u{7f}",
    "/*",
    "'",
];
pub(crate) const YAML: &[&str] = &[
    "---\n",
    "...\n",
    "- ",
    ": ",
    "\n  ",
    "&a ",
    "*a",
    "<<: ",
    "!!str ",
    "!!binary ",
    "!x ",
    "|\n",
    ">-\n",
    "'",
    "\"",
    "yes",
    "0o17",
    "017",
    "0x1F",
    "1_000",
    ".inf",
    ".nan",
    "~",
    "? ",
    "# ",
    "{",
    "}",
    "[",
    "]",
    "%YAML 1.1\n",
    "\t",
    "2001-01-01",
    "1:30",
];
pub(crate) const JSON_PATCH: &[&str] = &[
    "{\"op\":\"add\",\"path\":\"/spec\",\"value\":1}",
    "\"op\":",
    "\"add\"",
    "\"remove\"",
    "\"replace\"",
    "\"move\"",
    "\"copy\"",
    "\"test\"",
    "\"path\":",
    "\"from\":",
    "\"value\":",
    "/-",
    "/0",
    "/-1",
    "/01",
    "~0",
    "~1",
    "~",
    "/spec/template/spec/containers",
    "/18446744073709551616",
    "[",
    "]",
    "{",
    "}",
    ",",
    "null",
    "\"\"",
];
pub(crate) const STRATEGIC: &[&str] = &[
    "\"$patch\":\"delete\"",
    "\"$patch\":\"replace\"",
    "\"$patch\":\"merge\"",
    "\"$patch\":1",
    "\"$setElementOrder/containers\":[{\"name\":\"b\"}]",
    "\"$deleteFromPrimitiveList/args\":[\"x\"]",
    "\"$retainKeys\":[\"type\"]",
    "\"$setElementOrder/args\":",
    "\"containers\":",
    "\"name\":\"a\"",
    "\"ports\":",
    "\"containerPort\":80",
    "{",
    "}",
    "[",
    "]",
    ",",
    "null",
    "1",
];
pub(crate) const FIELDS: &[&str] = &[
    "\"f:spec\":",
    "\"k:{\\\"name\\\":\\\"a\\\"}\":",
    "\"v:\\\"x\\\"\":",
    "\"i:0\":",
    "\"i:-1\":",
    "\".\":",
    "{}",
    "{",
    "}",
    ",",
    "\"f:\":",
    "\"k:\":",
    "\"k:{}\":",
    "\"v:\":",
    "null",
    "1",
];
pub(crate) const PROTOBUF: &[&str] = &[
    "k8s\0",
    "\n",
    "\x12",
    "\x1a",
    "\x08\x01",
    "\x00",
    "\x7f",
    "v1",
    "apps/v1",
    "Pod",
    "Deployment",
    "CustomResourceDefinition",
    "100%",
    "-1",
];

/// One of the schemas, chosen by the input.
fn schema(data: &[u8]) -> Schema<'static> {
    let kinds = [("apps", "v1", "Deployment"), ("", "v1", "Pod"), ("", "v1", "Service"), ("", "v1", "ConfigMap")];
    let (group, version, kind) = kinds[data.len() % kinds.len()];
    Definitions::builtin().schema_for(group, version, kind).expect("a built-in kind")
}

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"a": "b"}, "finalizers": ["x"]},
        "spec": {
            "replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "strategy": {"type": "RollingUpdate"},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {
                "containers": [
                    {"name": "a", "image": "x", "args": ["x", "y"], "ports": [{"containerPort": 80, "protocol": "TCP"}]},
                    {"name": "b", "image": "y", "resources": {"requests": {"cpu": "100m"}}},
                ],
                "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}],
            }},
        },
    })
}

/// What is decoded is JSON, says the same when it is decoded again, and has no unknown fields once pruned.
fn decoded_well(mut value: Value, schema: Schema<'_>) {
    let text = value.to_string();
    let again = strict::decode_json(text.as_bytes(), None).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(again.value, value, "{text}");
    assert!(again.strict_errors.is_empty(), "{:?}: {text}", again.strict_errors);
    strict::prune(&mut value, schema);
    if let Ok(unknown) = strict::check(&value, schema) {
        assert!(unknown.is_empty(), "{unknown:?} left in {value}");
    }
}

/// A request body in JSON.
pub(crate) fn json(data: &[u8]) {
    let schema = schema(data);
    let _ = strict::type_meta(data, false);
    let _ = strict::unrecognized("Pod", "cause", data);
    let typed = strict::decode_json(data, Some(schema));
    let untyped = strict::decode_json(data, None);
    if let Ok(typed) = typed {
        assert!(typed.strict_errors.len() <= strict::STRICT_ERRORS_MAX);
        let untyped = untyped.expect("what has the right types is JSON");
        assert_eq!(typed.value, untyped.value);
        decoded_well(typed.value, schema);
    }
}

/// A request body in YAML.
pub(crate) fn yaml(data: &[u8]) {
    let schema = schema(data);
    let _ = strict::type_meta(data, true);
    if let Ok(decoded) = strict::decode_yaml(data, Some(schema)) {
        decoded_well(decoded.value, schema);
    }
}

/// A JSON patch.
pub(crate) fn json_patch(data: &[u8]) {
    if let Ok(patched) = patch::json_patch(&deployment(), data) {
        let _ = strict::check(&patched.value, schema(&[]));
    }
}

/// A merge patch; applied twice it does what it does once.
pub(crate) fn merge_patch(data: &[u8]) {
    if let Ok(once) = patch::merge_patch(&deployment(), data) {
        let twice = patch::merge_patch(&once.value, data).expect("the patch is the same");
        assert_eq!(once, twice);
    }
}

/// A strategic merge patch, onto what it is made for and onto nothing.
pub(crate) fn strategic_merge_patch(data: &[u8]) {
    for document in [deployment(), json!({})] {
        if let Ok(patched) = patch::strategic_merge_patch(&document, data, schema(&[])) {
            let _ = strict::check(&patched.value, schema(&[]));
        }
    }
}

/// An object in protobuf: it is JSON, and says the same when it is written and read again.
pub(crate) fn protobuf(data: &[u8]) {
    let Ok(json) = wire::decode(data) else { return };
    let text = String::from_utf8_lossy(&json);
    let value: Value = serde_json::from_slice(&json).unwrap_or_else(|e| panic!("{e}: {text}"));
    let bytes = wire::encode(&json).unwrap_or_else(|e| panic!("{e}: {text}"));
    let again = wire::decode(&bytes).unwrap_or_else(|e| panic!("{e}: {text}"));
    let again: Value = serde_json::from_slice(&again).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert_eq!(again, value, "{text}");
}

/// Stored ownership: what is read is written and read again as the same set.
pub(crate) fn managed_fields(data: &[u8]) {
    let Ok(decoded) = strict::decode_json(data, None) else { return };
    let Ok(set) = FieldSet::from_fields_v1(&decoded.value) else { return };
    let written = set.to_fields_v1();
    let again = FieldSet::from_fields_v1(&written).unwrap_or_else(|e| panic!("{e}: {written}"));
    assert_eq!(again.paths(), set.paths(), "{written}");
    assert_eq!(again.to_fields_v1(), written);
}

pub(crate) fn json_seeds() -> Vec<Vec<u8>> {
    let odd = r#"{"a": [1, -0, 1.5e3, "é\u00e9\n", null, true, {}], "a": 2, "spec": {"foo": 1}}"#;
    vec![deployment().to_string().into(), odd.into()]
}

pub(crate) fn yaml_seeds() -> Vec<Vec<u8>> {
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\n  labels: &l {app: web}\nspec:\n  \
        replicas: 3\n  selector:\n    matchLabels: *l\n  template:\n    metadata: {labels: *l}\n    spec:\n      \
        containers:\n      - name: a\n        image: \"x\"\n        args: ['y', yes, 017]\n";
    let map = "kind: ConfigMap\ndata:\n  a: |\n    text\n  b: >-\n    more\n    text\n  <<: {c: d}\n---\nsecond: 1\n";
    vec![deployment.into(), map.into(), deployment_json()]
}

fn deployment_json() -> Vec<u8> {
    deployment().to_string().into()
}

pub(crate) fn json_patch_seeds() -> Vec<Vec<u8>> {
    let all = json!([
        {"op": "test", "path": "/spec/replicas", "value": 3},
        {"op": "add", "path": "/metadata/labels/x~1y", "value": "z"},
        {"op": "add", "path": "/spec/template/spec/containers/-", "value": {"name": "c"}},
        {"op": "copy", "from": "/spec/template", "path": "/spec/copy"},
        {"op": "move", "from": "/spec/template/spec/containers/0", "path": "/spec/template/spec/containers/1"},
        {"op": "replace", "path": "/spec/replicas", "value": 5},
        {"op": "remove", "path": "/metadata/finalizers/0"},
    ]);
    let one = json!([{"op": "add", "path": "", "value": {"a": 1}}]);
    vec![all.to_string().into(), one.to_string().into()]
}

pub(crate) fn merge_patch_seeds() -> Vec<Vec<u8>> {
    let patch = json!({"metadata": {"labels": {"a": null, "c": "d"}}, "spec": {"replicas": 5, "template": null, "x": {"y": null}}});
    vec![patch.to_string().into()]
}

pub(crate) fn strategic_merge_patch_seeds() -> Vec<Vec<u8>> {
    let containers = json!({"spec": {"template": {"spec": {
        "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}],
        "containers": [
            {"name": "b", "image": "z", "ports": [{"containerPort": 81}]}, {"name": "a", "$patch": "delete"},
            {"name": "c", "$deleteFromPrimitiveList/args": ["x"]},
        ],
        "volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}],
    }}}});
    let whole = json!({"metadata": {"finalizers": ["y"], "$deleteFromPrimitiveList/finalizers": ["x"]}, "spec": {"$patch": "replace", "replicas": 1}});
    vec![containers.to_string().into(), whole.to_string().into()]
}

pub(crate) fn managed_fields_seeds() -> Vec<Vec<u8>> {
    let fields = json!({
        "f:metadata": {"f:labels": {".": {}, "f:app": {}}, "f:finalizers": {"v:\"x\"": {}}},
        "f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {}}}, "i:3": {}}},
    });
    vec![fields.to_string().into()]
}
