//! Schemas that refer to nothing, as expressions are checked against.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

use super::definitions::{closure, meta, name_of};
use crate::schema::Definitions;

const REFERENCE: &str = "#/definitions/";

/// The schema of a built-in kind with all it refers to put in its place, as far as it is not part of itself. None where
/// there is no such kind.
#[must_use]
pub fn inlined(group: &str, version: &str, kind: &str) -> Option<Value> {
    Definitions::builtin().name_of(group, version, kind)?;
    Some(definition(name_of(group, version, kind)))
}

/// The schema of the metadata of objects, likewise.
#[must_use]
pub fn inlined_metadata() -> Value {
    definition(meta("ObjectMeta"))
}

fn definition(name: String) -> Value {
    let all = closure([name.clone()]);
    resolved(&name, &all, &mut Vec::new())
}

fn resolved<'a>(name: &'a str, all: &'a BTreeMap<String, Value>, within: &mut Vec<&'a str>) -> Value {
    let Some(schema) = all.get(name).filter(|_| !within.contains(&name)) else {
        return json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    };
    within.push(name);
    let mut out = populated(schema, all, within);
    within.pop();
    if out["format"] == "int-or-string" {
        out["x-kubernetes-int-or-string"] = true.into();
    }
    out
}

fn populated<'a>(schema: &'a Value, all: &'a BTreeMap<String, Value>, within: &mut Vec<&'a str>) -> Value {
    let Some(object) = schema.as_object() else { return schema.clone() };
    if let Some(name) = object.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix(REFERENCE)) {
        return resolved(name, all, within);
    }
    let mut out = Map::new();
    for (key, value) in object {
        let value = match (key.as_str(), value) {
            ("properties", Value::Object(properties)) => {
                let fields = properties.iter().map(|(name, of)| (name.clone(), populated(of, all, within)));
                Value::Object(fields.collect())
            }
            ("items" | "additionalProperties", of) => populated(of, all, within),
            // Nobody reads them here, and they are most of it.
            ("description", _) => continue,
            (_, other) => other.clone(),
        };
        out.insert(key.clone(), value);
    }
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_referred_to() {
        let deployment = inlined("apps", "v1", "Deployment").unwrap();
        assert!(!deployment.to_string().contains("$ref"));
        let spec = &deployment["properties"]["spec"]["properties"];
        assert_eq!(spec["replicas"]["type"], "integer");
        let container = &spec["template"]["properties"]["spec"]["properties"]["containers"]["items"]["properties"];
        assert_eq!(container["image"]["type"], "string");
        let surge = &spec["strategy"]["properties"]["rollingUpdate"]["properties"]["maxSurge"];
        assert_eq!(surge["x-kubernetes-int-or-string"], true);
        assert_eq!(deployment["properties"]["metadata"]["properties"]["generateName"]["type"], "string");
        assert_eq!(inlined_metadata()["properties"]["labels"]["additionalProperties"]["type"], "string");
        // A schema of schemas contains itself.
        assert!(inlined("apiextensions.k8s.io", "v1", "CustomResourceDefinition").is_some());
        assert_eq!(inlined("apps", "v1", "Nothing"), None);
    }
}
