//! What happens to a custom object before it is judged: unknown fields go, defaults come.

use super::schema::{Additional, Node};
use gantry_api::meta::field::{ErrorList, Path};
use gantry_schema::{Definitions, strict};
use serde_json::Value;
use std::fmt::Write as _;
use std::sync::Arc;

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const META_FIELDS: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// What an object has that its schema does not know, as paths.
#[derive(Default)]
struct Unknown {
    fields: Vec<String>,
    /// In the metadata of embedded objects.
    metadata: Vec<String>,
}

/// Drops what the schema does not know. Returns the paths of what was dropped: sorted, and those in the metadata of
/// embedded objects behind the others. The top is an object with apiVersion, kind and metadata where `resource` says so;
/// those are not looked into.
pub fn prune(value: &mut Value, schema: &Node, resource: bool) -> Vec<String> {
    let mut unknown = Unknown::default();
    walk(value, Some(schema), resource, true, &mut String::new(), &mut unknown);
    let Unknown { mut fields, mut metadata } = unknown;
    fields.sort();
    metadata.sort();
    fields.append(&mut metadata);
    fields
}

/// What is not what it must be in an object that is embedded in this one, so that it is not decoded.
pub fn malformed(value: &Value, schema: &Node) -> Option<String> {
    let found = malformed_below(value, schema)?;
    let mut errors = ErrorList::default();
    errors.invalid(&Path::new(found.path.trim_start_matches('.')), found.value.clone(), &found.why);
    errors.0.first().map(ToString::to_string)
}

struct Malformed<'v> {
    /// From where one is to the value: `.spec.template.metadata`.
    path: String,
    value: &'v Value,
    why: String,
}

fn malformed_below<'v>(value: &'v Value, schema: &Node) -> Option<Malformed<'v>> {
    // Paths are put together on the way back: hardly ever is there anything to say.
    let below = |step: &dyn Fn() -> String, child: &'v Value, schema: &Node| {
        let found = malformed_below(child, schema)?;
        Some(Malformed { path: step() + &found.path, ..found })
    };
    match value {
        Value::Object(map) => map.iter().find_map(|(name, child)| {
            if schema.embedded
                && let Some(why) = malformed_part(name, child)
            {
                return Some(Malformed { path: format!(".{name}"), value: child, why });
            }
            match (schema.properties.get(name), &schema.additional) {
                (Some(node), _) => below(&|| format!(".{name}"), child, node),
                (None, Additional::Values(node)) => below(&|| format!("[{name}]"), child, node),
                _ => None,
            }
        }),
        Value::Array(items) => {
            let node = schema.items.as_deref()?;
            items.iter().enumerate().find_map(|(i, item)| below(&|| format!("[{i}]"), item, node))
        }
        _ => None,
    }
}

/// What is wrong with this field of an embedded object.
fn malformed_part(name: &str, value: &Value) -> Option<String> {
    match name {
        "apiVersion" | "kind" => (!value.is_string()).then(|| "must be a string".to_owned()),
        "metadata" => {
            let schema = Definitions::builtin().definition(OBJECT_META)?;
            strict::check(value, schema).err().map(|error| error.to_string())
        }
        _ => None,
    }
}

/// Calls `visit` below a step of the path, and takes the step back.
fn step(path: &mut String, name: &str, visit: impl FnOnce(&mut String)) {
    let length = path.len();
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(name);
    visit(path);
    path.truncate(length);
}

fn index(path: &mut String, i: usize, visit: impl FnOnce(&mut String)) {
    let length = path.len();
    // Writing to a string does not fail.
    let _ = write!(path, "[{i}]");
    visit(path);
    path.truncate(length);
}

fn walk(value: &mut Value, schema: Option<&Node>, embedded: bool, top: bool, path: &mut String, unknown: &mut Unknown) {
    let keeps = schema.is_some_and(|s| s.preserve);
    match value {
        Value::Object(map) => {
            let names: Vec<String> = map.keys().cloned().collect();
            for name in names {
                if embedded && META_FIELDS.contains(&name.as_str()) {
                    // The object's own metadata was looked at when it was decoded.
                    if let (false, "metadata", Some(metadata)) = (top, name.as_str(), map.get_mut(&name)) {
                        step(path, &name, |p| prune_metadata(metadata, p, &mut unknown.metadata));
                    }
                    continue;
                }
                let known = schema.and_then(|s| s.properties.get(&name)).map(Arc::as_ref);
                let (below, kept) = match (known, schema.map(|s| &s.additional)) {
                    (Some(node), _) => (Some(node), true),
                    (None, Some(Additional::Values(values))) => (Some(&**values), true),
                    (None, Some(Additional::Any)) => (None, true),
                    _ => (None, false),
                };
                if !kept {
                    if !keeps {
                        map.remove(&name);
                        if !top || !META_FIELDS.contains(&name.as_str()) {
                            step(path, &name, |p| unknown.fields.push(p.clone()));
                        }
                    }
                    continue;
                }
                // Values of which nothing is said hold nothing that is known, unless they are kept as they are.
                if let Some(child) = map.get_mut(&name).filter(|_| below.is_some() || !keeps) {
                    let embedded = below.is_some_and(|b| b.embedded);
                    step(path, &name, |p| walk(child, below, embedded, false, p, unknown));
                }
            }
        }
        Value::Array(items) => {
            let below = schema.and_then(|s| s.items.as_deref());
            if keeps && below.is_none() {
                return;
            }
            for (i, item) in items.iter_mut().enumerate() {
                let embedded = below.is_some_and(|b| b.embedded);
                index(path, i, |p| walk(item, below, embedded, false, p, unknown));
            }
        }
        _ => {}
    }
}

/// Drops from the metadata of an embedded object what no object has there.
fn prune_metadata(metadata: &mut Value, path: &str, unknown: &mut Vec<String>) {
    let Some(schema) = Definitions::builtin().definition(OBJECT_META) else { return };
    // What has the wrong type is for validation to say.
    for found in strict::check(metadata, schema).unwrap_or_default() {
        let name = found.strip_prefix("unknown field \"").and_then(|f| f.strip_suffix('"'));
        unknown.extend(name.map(|name| format!("{path}.{name}")));
    }
    strict::prune(metadata, schema);
}

/// Fills in defaults. Nulls that the schema does not allow give way to the default, or go where there is none.
pub fn default(value: &mut Value, schema: &Node) {
    drop_nulls(value, Some(schema));
    fill(value, schema);
}

fn forbidden_null(value: &Value, schema: &Node) -> bool {
    value.is_null() && !schema.nullable
}

fn drop_nulls(value: &mut Value, schema: Option<&Node>) {
    match value {
        Value::Object(map) => map.retain(|name, value| {
            let below = schema.and_then(|s| s.field(name));
            if below.is_some_and(|b| forbidden_null(value, b) && b.default.is_none()) {
                return false;
            }
            drop_nulls(value, below);
            true
        }),
        Value::Array(items) => {
            let below = schema.and_then(|s| s.items.as_deref());
            items.iter_mut().for_each(|item| drop_nulls(item, below));
        }
        _ => {}
    }
}

fn fill(value: &mut Value, schema: &Node) {
    match value {
        Value::Object(map) => {
            for (name, property) in &schema.properties {
                let Some(default) = &property.default else { continue };
                if map.get(name).is_none_or(|present| forbidden_null(present, property)) {
                    map.insert(name.clone(), Value::clone(default));
                }
            }
            for (name, child) in map.iter_mut() {
                let Some(below) = schema.field(name) else { continue };
                replace_null(child, below);
                fill(child, below);
            }
        }
        Value::Array(items) => {
            let Some(below) = schema.items.as_deref() else { return };
            for item in items {
                replace_null(item, below);
                fill(item, below);
            }
        }
        _ => {}
    }
}

fn replace_null(value: &mut Value, schema: &Node) {
    if let (true, Some(default)) = (forbidden_null(value, schema), &schema.default) {
        *value = Value::clone(default);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Node {
        Node::read(&json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "a": {"type": "string", "default": "x"},
            "n": {"type": "string", "nullable": true},
            "list": {"type": "array", "items": {"type": "object", "properties": {"p": {"type": "integer", "default": 7}}}},
            "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"k": {"type": "string"}}}},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                "properties": {"strict": {"type": "object", "properties": {"x": {"type": "string"}}}}},
            "pod": {"type": "object", "x-kubernetes-embedded-resource": true,
                "properties": {"spec": {"type": "object"}}},
        }}}}))
    }

    #[test]
    fn what_is_unknown_goes_and_is_named() {
        let mut value = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": "n"}, "top": 1, "spec": {
            "a": "1", "b": 2, "list": [{"p": 1, "q": 2}], "map": {"m": {"k": "v", "z": 1}},
            "free": {"any": {"thing": [1]}, "strict": {"x": "1", "y": 2}},
            "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "odd": 1}, "spec": {"c": 1}, "status": {}},
        }});
        let unknown = prune(&mut value, &schema(), true);
        assert_eq!(
            unknown,
            [
                "spec.b",
                "spec.free.strict.y",
                "spec.list[0].q",
                "spec.map.m.z",
                "spec.pod.spec.c",
                "spec.pod.status",
                "top",
                "spec.pod.metadata.odd"
            ]
        );
        assert_eq!(
            value["spec"],
            json!({"a": "1", "list": [{"p": 1}], "map": {"m": {"k": "v"}}, "free": {"any": {"thing": [1]}, "strict": {"x": "1"}},
                "pod": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {}}})
        );
        assert_eq!(value["metadata"], json!({"name": "n"}));
    }

    #[test]
    fn embedded_objects_are_objects() {
        let pod = |pod: Value| malformed(&json!({"spec": {"pod": pod}}), &schema());
        assert_eq!(pod(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {}})), None);
        assert_eq!(pod(json!({"kind": 1})).unwrap(), "spec.pod.kind: Invalid value: 1: must be a string");
        assert_eq!(
            pod(json!({"metadata": {"labels": {"a": 1}}})).unwrap(),
            "spec.pod.metadata: Invalid value: {\"labels\":{\"a\":1}}: json: cannot unmarshal number into Go struct \
             field ObjectMeta.labels of type string"
        );
    }

    #[test]
    fn defaults_replace_what_is_absent_and_nulls_that_may_not_be() {
        let mut value =
            json!({"spec": {"a": null, "n": null, "list": [{}, {"p": null}, {"p": 1}], "map": {"m": null}}});
        default(&mut value, &schema());
        assert_eq!(value, json!({"spec": {"a": "x", "n": null, "list": [{"p": 7}, {"p": 7}, {"p": 1}], "map": {}}}));
        let mut absent = json!({});
        default(&mut absent, &schema());
        assert_eq!(absent, json!({}), "no object is made to hold a default");
    }
}
