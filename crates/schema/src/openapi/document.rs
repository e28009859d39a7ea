//! Whole documents as JSON values.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{ServedResource, definitions, paths, v3};

/// Version 2: all paths and all definitions they need.
pub(super) fn v2(resources: &[&ServedResource], version: &str) -> Value {
    let mut all = paths::of_resources(resources);
    for path in ["api", "apis", "version"] {
        all.extend(paths::discovery(path));
    }
    for resource in resources.iter().filter(|resource| !resource.group.is_empty()) {
        all.extend(paths::discovery(&format!("apis/{}", resource.group)));
    }
    let definitions: Map<String, Value> =
        definitions::of_resources(resources).into_iter().map(|(name, schema)| (name, v2_root(schema))).collect();
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": version},
        "paths": all,
        "definitions": definitions,
        "securityDefinitions": {"BearerToken": {
            "type": "apiKey", "name": "authorization", "in": "header", "description": "Bearer Token authentication",
        }},
        "security": [{"BearerToken": []}],
    })
}

/// A type. Of one that keeps unknown fields nothing is said: clients would take the fields they see for all there are.
fn v2_root(schema: Value) -> Value {
    if schema["x-kubernetes-preserve-unknown-fields"] != true {
        return v2_schema(schema);
    }
    json!({"type": "object", "x-kubernetes-group-version-kind": schema["x-kubernetes-group-version-kind"]})
}

/// A custom resource's schema may have what version 2 cannot say.
fn v2_schema(schema: Value) -> Value {
    match schema {
        Value::Object(map) => {
            let int_or_string = map.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true));
            let preserve = map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
            let mut out = Map::new();
            for (key, value) in map {
                match key.as_str() {
                    "oneOf" | "anyOf" | "not" | "nullable" => {}
                    // Old clients would complain of fields they cannot see here.
                    "properties" if preserve => {}
                    "properties" => {
                        let Value::Object(properties) = value else { continue };
                        let properties = properties.into_iter().map(|(name, schema)| (name, v2_schema(schema)));
                        out.insert(key, Value::Object(properties.collect()));
                    }
                    "items" | "additionalProperties" => {
                        out.insert(key, v2_schema(value));
                    }
                    "allOf" => {
                        let Value::Array(all) = value else { continue };
                        out.insert(key, all.into_iter().map(v2_schema).collect());
                    }
                    _ => {
                        out.insert(key, value);
                    }
                }
            }
            if int_or_string {
                out.insert("type".to_owned(), "string".into());
                out.insert("format".to_owned(), "int-or-string".into());
            }
            Value::Object(out)
        }
        other => other,
    }
}

/// Version 3: the document of one path of the index.
pub(super) fn v3(path: &str, resources: &[&ServedResource], version: &str) -> Value {
    let all = if resources.is_empty() { paths::discovery(path) } else { paths::of_resources(resources) };
    let schemas: BTreeMap<String, Value> = if resources.is_empty() {
        let answers = ["APIVersions", "APIGroupList", "APIGroup"].map(definitions::meta);
        definitions::closure(answers.into_iter().chain(["io.k8s.apimachinery.pkg.version.Info".to_owned()]))
    } else {
        definitions::of_resources(resources)
    };
    let schemas: Map<String, Value> = schemas
        .into_iter()
        .map(|(name, schema)| {
            let schema = v3::definition(&name, schema);
            (name, schema)
        })
        .collect();
    let all: Map<String, Value> = all.into_iter().map(|(path, item)| (path, v3::path_item(&item))).collect();
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": version},
        "paths": all,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"BearerToken": {
                "type": "apiKey", "name": "authorization", "in": "header", "description": "Bearer Token authentication",
            }},
        },
    })
}
