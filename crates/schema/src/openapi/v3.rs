//! From the version 2 form to the version 3 form.

use serde_json::{Map, Value, json};

const METHODS: [&str; 7] = ["get", "put", "post", "delete", "options", "head", "patch"];

/// A named definition.
pub(super) fn definition(name: &str, definition: Value) -> Value {
    let alternatives: Option<[&str; 2]> = match name {
        "io.k8s.apimachinery.pkg.api.resource.Quantity" => Some(["string", "number"]),
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => Some(["integer", "string"]),
        _ => None,
    };
    let mut definition = schema(definition);
    if let (Some(alternatives), Some(map)) = (alternatives, definition.as_object_mut()) {
        map.remove("type");
        map.insert("oneOf".to_owned(), alternatives.map(|name| json!({"type": name})).into_iter().collect());
    }
    definition
}

/// A schema: references change their root, and a reference with neighbours moves into `allOf`, where it may have them.
fn schema(value: Value) -> Value {
    let Value::Object(map) = value else { return value };
    let mut out = Map::new();
    let neighbours = map.len() > 1;
    for (key, value) in map {
        match key.as_str() {
            "$ref" => {
                let target = value.as_str().unwrap_or_default();
                let reference = target.replace("#/definitions/", "#/components/schemas/");
                if neighbours {
                    out.insert("allOf".to_owned(), json!([{"$ref": reference}]));
                } else {
                    out.insert(key, reference.into());
                }
            }
            "properties" => {
                let Value::Object(properties) = value else { continue };
                let properties = properties.into_iter().map(|(name, value)| (name, schema(value)));
                out.insert(key, Value::Object(properties.collect()));
            }
            "items" | "additionalProperties" | "not" => {
                out.insert(key, schema(value));
            }
            "allOf" | "oneOf" | "anyOf" => {
                let Value::Array(all) = value else { continue };
                out.insert(key, all.into_iter().map(schema).collect());
            }
            _ => {
                out.insert(key, value);
            }
        }
    }
    Value::Object(out)
}

/// A path with its operations.
pub(super) fn path_item(item: &Value) -> Value {
    let mut out = Map::new();
    for method in METHODS {
        if let Some(found) = item.get(method) {
            out.insert(method.to_owned(), operation(found));
        }
    }
    if let Some(shared) = item.get("parameters").and_then(Value::as_array) {
        out.insert("parameters".to_owned(), shared.iter().map(parameter).collect());
    }
    Value::Object(out)
}

fn parameter(found: &Value) -> Value {
    let mut out = Map::new();
    let mut inner = Map::new();
    for (key, value) in found.as_object().into_iter().flatten() {
        let target = if matches!(key.as_str(), "type" | "format" | "uniqueItems") { &mut inner } else { &mut out };
        target.insert(key.clone(), value.clone());
    }
    out.insert("schema".to_owned(), Value::Object(inner));
    Value::Object(out)
}

fn operation(found: &Value) -> Value {
    let mut out = Map::new();
    for (key, value) in found.as_object().into_iter().flatten() {
        match key.as_str() {
            "consumes" | "produces" | "schemes" | "parameters" | "responses" => {}
            _ => {
                out.insert(key.clone(), value.clone());
            }
        }
    }
    let list = |key: &str| found.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let content = |types: &[Value], of: &Value| -> Value {
        let media = json!({"schema": schema(of.clone())});
        let entries = types.iter().filter_map(Value::as_str).map(|name| (name.to_owned(), media.clone()));
        Value::Object(entries.collect())
    };
    let (body, others): (Vec<Value>, Vec<Value>) =
        list("parameters").into_iter().partition(|parameter| parameter["in"] == "body");
    if !others.is_empty() {
        out.insert("parameters".to_owned(), others.iter().map(parameter).collect());
    }
    if let Some(body) = body.first() {
        let mut request = json!({"content": content(&list("consumes"), &body["schema"])});
        if let Some(required) = body.get("required") {
            request["required"] = required.clone();
        }
        out.insert("requestBody".to_owned(), request);
    }
    let produces = list("produces");
    let mut responses = Map::new();
    for (code, response) in found.get("responses").and_then(Value::as_object).into_iter().flatten() {
        let mut answer = json!({"description": response["description"]});
        if let Some(of) = response.get("schema") {
            answer["content"] = content(&produces, of);
        }
        responses.insert(code.clone(), answer);
    }
    out.insert("responses".to_owned(), Value::Object(responses));
    Value::Object(out)
}
