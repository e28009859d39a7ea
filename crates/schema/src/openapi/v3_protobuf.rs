//! A version 3 document as `openapi.v3.Document` of the gnostic project. Numbers are those of its `OpenAPIv3.proto`.

use serde_json::Value;

use super::protobuf::{Message, items};

/// A value in the first alternative of a one-of.
fn first(inner: Message) -> Message {
    let mut out = Message::new();
    out.message(1, inner);
    out
}

pub(super) fn document(document: &Value) -> Vec<u8> {
    let mut out = Message::new();
    out.string(1, document.get("openapi"));
    let mut info = Message::new();
    info.string(1, document.pointer("/info/title"));
    info.string(6, document.pointer("/info/version"));
    out.message(2, info);
    let mut paths = Message::new();
    paths.named(1, document.get("paths"), path_item);
    out.message(4, paths);
    let mut schemas = Message::new();
    schemas.named(1, document.pointer("/components/schemas"), schema_or_reference);
    let mut security = Message::new();
    security.named(1, document.pointer("/components/securitySchemes"), |scheme| {
        let mut inner = Message::new();
        inner.string(1, scheme.get("type"));
        inner.string(2, scheme.get("description"));
        inner.string(3, scheme.get("name"));
        inner.string(4, scheme.get("in"));
        first(inner)
    });
    let mut components = Message::new();
    components.message(1, schemas);
    components.message(7, security);
    out.message(5, components);
    out.into_bytes()
}

fn path_item(item: &Value) -> Message {
    let mut out = Message::new();
    for (method, field) in
        [("get", 4), ("put", 5), ("post", 6), ("delete", 7), ("options", 8), ("head", 9), ("patch", 10)]
    {
        if let Some(found) = item.get(method) {
            out.message(field, operation(found));
        }
    }
    for found in items(item, "parameters") {
        out.message(13, first(parameter(found)));
    }
    out
}

fn operation(operation: &Value) -> Message {
    let mut out = Message::new();
    out.strings(1, operation.get("tags"));
    out.string(3, operation.get("description"));
    out.string(5, operation.get("operationId"));
    for found in items(operation, "parameters") {
        out.message(6, first(parameter(found)));
    }
    if let Some(body) = operation.get("requestBody") {
        let mut inner = Message::new();
        inner.string(1, body.get("description"));
        inner.message(2, content(body));
        inner.boolean(3, body.get("required"));
        out.message(7, first(inner));
    }
    let mut responses = Message::new();
    responses.named(2, operation.get("responses"), |response| {
        let mut inner = Message::new();
        inner.string(1, response.get("description"));
        if response.get("content").is_some() {
            inner.message(3, content(response));
        }
        first(inner)
    });
    out.message(8, responses);
    out.boolean(10, operation.get("deprecated"));
    out.extensions(13, operation);
    out
}

fn content(owner: &Value) -> Message {
    let mut out = Message::new();
    out.named(1, owner.get("content"), |media| {
        let mut inner = Message::new();
        if let Some(found) = media.get("schema") {
            inner.message(1, schema_or_reference(found));
        }
        inner
    });
    out
}

fn parameter(parameter: &Value) -> Message {
    let mut out = Message::new();
    out.string(1, parameter.get("name"));
    out.string(2, parameter.get("in"));
    out.string(3, parameter.get("description"));
    out.boolean(4, parameter.get("required"));
    if let Some(found) = parameter.get("schema") {
        out.message(10, schema_or_reference(found));
    }
    out
}

fn schema_or_reference(found: &Value) -> Message {
    let mut out = Message::new();
    match found.get("$ref").and_then(Value::as_str) {
        Some(target) => {
            let mut reference = Message::new();
            reference.text(1, target);
            out.message(2, reference);
        }
        None => out.message(1, schema(found)),
    }
    out
}

fn schema(schema_value: &Value) -> Message {
    let get = |name: &str| schema_value.get(name);
    let mut out = Message::new();
    out.boolean(1, get("nullable"));
    out.optional_any(7, get("example"));
    out.string(9, get("title"));
    out.double(10, get("multipleOf"));
    out.double(11, get("maximum"));
    out.boolean(12, get("exclusiveMaximum"));
    out.double(13, get("minimum"));
    out.boolean(14, get("exclusiveMinimum"));
    out.integer(15, get("maxLength"));
    out.integer(16, get("minLength"));
    out.string(17, get("pattern"));
    out.integer(18, get("maxItems"));
    out.integer(19, get("minItems"));
    out.boolean(20, get("uniqueItems"));
    out.integer(21, get("maxProperties"));
    out.integer(22, get("minProperties"));
    out.strings(23, get("required"));
    for value in items(schema_value, "enum") {
        out.message(24, Message::any(value));
    }
    out.string(25, get("type"));
    for (name, field) in [("allOf", 26), ("oneOf", 27), ("anyOf", 28)] {
        for found in items(schema_value, name) {
            out.message(field, schema_or_reference(found));
        }
    }
    if let Some(found) = get("not") {
        out.message(29, schema(found));
    }
    if let Some(found) = get("items") {
        out.message(30, first(schema_or_reference(found)));
    }
    if get("properties").is_some() {
        let mut properties = Message::new();
        properties.named(1, get("properties"), schema_or_reference);
        out.message(31, properties);
    }
    match get("additionalProperties") {
        Some(Value::Bool(_)) => {
            let mut item = Message::new();
            item.boolean(2, get("additionalProperties"));
            out.message(32, item);
        }
        Some(values) => out.message(32, first(schema_or_reference(values))),
        None => {}
    }
    // Only scalars can be defaults in this form.
    let mut default = Message::new();
    match get("default") {
        Some(Value::Number(_)) => default.double(1, get("default")),
        Some(Value::Bool(_)) => default.boolean(2, get("default")),
        Some(Value::String(_)) => default.string(3, get("default")),
        _ => {}
    }
    if matches!(get("default"), Some(Value::Number(_) | Value::Bool(_) | Value::String(_))) {
        out.message(33, default);
    }
    out.string(34, get("description"));
    out.string(35, get("format"));
    out.extensions(36, schema_value);
    out
}
