//! The embedded definitions, and which of them a document needs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::ServedResource;
use crate::schema::Definitions;

static DEFINITIONS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/definitions.json.zst"));

/// Length of the definitions when decompressed, in decimal.
const DEFINITIONS_BYTES: &str = env!("GANTRY_DEFINITIONS_BYTES");

const REFERENCE: &str = "\"#/definitions/";

/// What identifies the embedded definitions.
pub(super) fn fingerprint() -> &'static [u8] {
    static FINGERPRINT: LazyLock<Vec<u8>> = LazyLock::new(|| Sha256::digest(DEFINITIONS).to_vec());
    &FINGERPRINT
}

/// Types every document refers to.
pub(super) const META: [&str; 5] = ["DeleteOptions", "Patch", "Status", "WatchEvent", "APIResourceList"];

/// The qualified name of a type of the meta package.
pub(super) fn meta(kind: &str) -> String {
    format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}")
}

/// The definition name of a kind: that of the built-in type, or the reversed group for a custom resource.
pub(super) fn name_of(group: &str, version: &str, kind: &str) -> String {
    match Definitions::builtin().name_of(group, version, kind) {
        Some(name) => name.to_owned(),
        None => {
            let reversed: Vec<&str> = group.split('.').rev().collect();
            format!("{}.{version}.{kind}", reversed.join("."))
        }
    }
}

/// The schemas of these definitions and of all they refer to. Names that are not embedded are left out.
pub(super) fn closure(roots: impl IntoIterator<Item = String>) -> BTreeMap<String, Value> {
    let length = DEFINITIONS_BYTES.parse().expect("the build script writes a number");
    let text = zstd::bulk::decompress(DEFINITIONS, length).expect("embedded definitions decompress");
    let all: BTreeMap<&str, &RawValue> = serde_json::from_slice(&text).expect("embedded definitions are JSON");
    let mut wanted: Vec<String> = roots.into_iter().collect();
    let mut seen: BTreeSet<String> = wanted.iter().cloned().collect();
    let mut out = BTreeMap::new();
    while let Some(name) = wanted.pop() {
        let Some(raw) = all.get(name.as_str()) else { continue };
        for (at, _) in raw.get().match_indices(REFERENCE) {
            let rest = &raw.get()[at + REFERENCE.len()..];
            let referred = rest.split('"').next().unwrap_or_default();
            if seen.insert(referred.to_owned()) {
                wanted.push(referred.to_owned());
            }
        }
        // Every part of a valid document is valid.
        let schema = serde_json::from_str(raw.get()).expect("embedded definition is JSON");
        out.insert(name, schema);
    }
    out
}

/// The definitions a document for these resources has: their kinds and lists, those of their subresources, and custom
/// schemas.
pub(super) fn of_resources(resources: &[&ServedResource]) -> BTreeMap<String, Value> {
    let mut roots: Vec<String> = META.iter().map(|kind| meta(kind)).collect();
    for kind in ["APIGroup", "APIGroupList", "APIVersions", "ObjectMeta", "ListMeta"] {
        roots.push(meta(kind));
    }
    roots.push("io.k8s.apimachinery.pkg.version.Info".to_owned());
    for resource in resources {
        let name = |kind: &str| name_of(&resource.group, &resource.version, kind);
        roots.push(name(&resource.kind));
        roots.push(name(&resource.list_kind));
        for subresource in &resource.subresources {
            roots.push(name_of(&subresource.group, &subresource.version, &subresource.kind));
        }
    }
    let mut definitions = closure(roots);
    for resource in resources {
        if let Some(schema) = &resource.schema {
            add_custom(&mut definitions, resource, schema);
        }
    }
    definitions
}

/// Where upstream's descriptions of lists point to.
const CONVENTIONS: &str = "https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md";

fn add_custom(definitions: &mut BTreeMap<String, Value>, resource: &ServedResource, schema: &str) {
    let name = name_of(&resource.group, &resource.version, &resource.kind);
    let gvk = |kind: &str| serde_json::json!([{"group": resource.group, "version": resource.version, "kind": kind}]);
    let reference = |name: &str| format!("#/definitions/{name}");
    let mut own: Value = serde_json::from_str(schema).unwrap_or_default();
    if !own.is_object() {
        own = serde_json::json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    }
    own["type"] = "object".into();
    add_embedded(&mut own);
    add_object_fields(&mut own);
    own["x-kubernetes-group-version-kind"] = gvk(&resource.kind);
    definitions.insert(name.clone(), own);
    if !resource.list_kind.is_empty() {
        let mut list = serde_json::json!({
            "description": format!("{} is a list of {}", resource.list_kind, resource.kind),
            "type": "object",
            "required": ["items"],
            "properties": {
                "metadata": {
                    "$ref": reference(&meta("ListMeta")),
                    "description": format!("Standard list metadata. More info: {CONVENTIONS}#types-kinds"),
                },
                "items": {
                    "type": "array",
                    "description": format!("List of {}. More info: {CONVENTIONS}", resource.plural),
                    "items": {"$ref": reference(&name)},
                },
            },
            "x-kubernetes-group-version-kind": gvk(&resource.list_kind),
        });
        add_type_fields(&mut list);
        definitions.insert(name_of(&resource.group, &resource.version, &resource.list_kind), list);
    }
}

/// A field that every kind has, as a built-in kind describes it.
fn common_field(field: &str) -> Value {
    static KIND: LazyLock<Value> = LazyLock::new(|| {
        let name = name_of("", "v1", "ConfigMap");
        closure([name.clone()]).remove(&name).unwrap_or_default()
    });
    KIND["properties"][field].clone()
}

fn add_type_fields(schema: &mut Value) {
    for field in ["apiVersion", "kind"] {
        schema["properties"][field] = common_field(field);
    }
}

fn add_object_fields(schema: &mut Value) {
    add_type_fields(schema);
    schema["properties"]["metadata"] = common_field("metadata");
}

/// Objects in the fields of an object have what every object has.
fn add_embedded(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else { return };
    for (key, value) in map.iter_mut() {
        match (key.as_str(), value) {
            ("properties", Value::Object(properties)) => properties.values_mut().for_each(add_embedded),
            ("items" | "additionalProperties", value) => add_embedded(value),
            _ => {}
        }
    }
    if map.get("x-kubernetes-embedded-resource") == Some(&Value::Bool(true)) {
        add_object_fields(schema);
        let mut required = schema["required"].as_array().cloned().unwrap_or_default();
        for field in ["apiVersion", "kind"] {
            if !required.iter().any(|r| r == field) {
                required.push(field.into());
            }
        }
        schema["required"] = Value::Array(required);
    }
}
