//! The version 2 document as `openapi.v2.Document` of the gnostic project. Numbers are those of its `OpenAPIv2.proto`.

use serde_json::Value;

use super::protobuf::{Message, items};

pub(super) fn document(document: &Value) -> Vec<u8> {
    let mut out = Message::new();
    out.string(1, document.get("swagger"));
    let mut info = Message::new();
    info.string(1, document.pointer("/info/title"));
    info.string(2, document.pointer("/info/version"));
    out.message(2, info);
    let mut paths = Message::new();
    paths.named(2, document.get("paths"), path_item);
    out.message(8, paths);
    let mut definitions = Message::new();
    definitions.named(1, document.get("definitions"), schema);
    out.message(9, definitions);
    for requirement in items(document, "security") {
        let mut entry = Message::new();
        entry.named(1, Some(requirement), |scopes| {
            let mut list = Message::new();
            list.strings(1, Some(scopes));
            list
        });
        out.message(12, entry);
    }
    let mut security = Message::new();
    security.named(1, document.get("securityDefinitions"), |definition| {
        let mut key = Message::new();
        key.string(1, definition.get("type"));
        key.string(2, definition.get("name"));
        key.string(3, definition.get("in"));
        key.string(4, definition.get("description"));
        let mut item = Message::new();
        item.message(2, key);
        item
    });
    out.message(13, security);
    out.into_bytes()
}

fn path_item(item: &Value) -> Message {
    let mut out = Message::new();
    for (method, field) in
        [("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("options", 6), ("head", 7), ("patch", 8)]
    {
        if let Some(found) = item.get(method) {
            out.message(field, operation(found));
        }
    }
    for found in items(item, "parameters") {
        out.message(9, parameter(found));
    }
    out
}

fn operation(operation: &Value) -> Message {
    let mut out = Message::new();
    out.strings(1, operation.get("tags"));
    out.string(3, operation.get("description"));
    out.string(5, operation.get("operationId"));
    out.strings(6, operation.get("produces"));
    out.strings(7, operation.get("consumes"));
    for found in items(operation, "parameters") {
        out.message(8, parameter(found));
    }
    let mut responses = Message::new();
    responses.named(1, operation.get("responses"), |response| {
        let mut inner = Message::new();
        inner.string(1, response.get("description"));
        if let Some(found) = response.get("schema") {
            let mut item = Message::new();
            item.message(1, schema(found));
            inner.message(2, item);
        }
        let mut value = Message::new();
        value.message(1, inner);
        value
    });
    out.message(9, responses);
    out.strings(10, operation.get("schemes"));
    out.boolean(11, operation.get("deprecated"));
    out.extensions(13, operation);
    out
}

/// A parameter in its three wrappings: list item, parameter, body or not.
fn parameter(parameter: &Value) -> Message {
    let get = |name: &str| parameter.get(name);
    let mut kind = Message::new();
    if get("in").and_then(Value::as_str) == Some("body") {
        let mut body = Message::new();
        body.string(1, get("description"));
        body.string(2, get("name"));
        body.string(3, get("in"));
        body.boolean(4, get("required"));
        if let Some(found) = get("schema") {
            body.message(5, schema(found));
        }
        kind.message(1, body);
    } else {
        let query = get("in").and_then(Value::as_str) == Some("query");
        let mut inner = Message::new();
        inner.boolean(1, get("required"));
        inner.string(2, get("in"));
        inner.string(3, get("description"));
        inner.string(4, get("name"));
        // A query parameter has one member more before the type.
        let shift = u32::from(query);
        inner.string(5 + shift, get("type"));
        inner.string(6 + shift, get("format"));
        inner.boolean(19 + shift, get("uniqueItems"));
        let mut other = Message::new();
        other.message(if query { 3 } else { 4 }, inner);
        kind.message(2, other);
    }
    let mut item = Message::new();
    item.message(1, kind);
    item
}

fn schema(schema_value: &Value) -> Message {
    let get = |name: &str| schema_value.get(name);
    let mut out = Message::new();
    out.string(1, get("$ref"));
    out.string(2, get("format"));
    out.string(3, get("title"));
    out.string(4, get("description"));
    out.optional_any(5, get("default"));
    out.double(6, get("multipleOf"));
    out.double(7, get("maximum"));
    out.boolean(8, get("exclusiveMaximum"));
    out.double(9, get("minimum"));
    out.boolean(10, get("exclusiveMinimum"));
    out.integer(11, get("maxLength"));
    out.integer(12, get("minLength"));
    out.string(13, get("pattern"));
    out.integer(14, get("maxItems"));
    out.integer(15, get("minItems"));
    out.boolean(16, get("uniqueItems"));
    out.integer(17, get("maxProperties"));
    out.integer(18, get("minProperties"));
    out.strings(19, get("required"));
    for value in items(schema_value, "enum") {
        out.message(20, Message::any(value));
    }
    match get("additionalProperties") {
        Some(Value::Bool(_)) => {
            let mut item = Message::new();
            item.boolean(2, get("additionalProperties"));
            out.message(21, item);
        }
        Some(values) => {
            let mut item = Message::new();
            item.message(1, schema(values));
            out.message(21, item);
        }
        None => {}
    }
    if let Some(name) = get("type").and_then(Value::as_str) {
        let mut item = Message::new();
        item.text(1, name);
        out.message(22, item);
    }
    if let Some(found) = get("items") {
        let mut item = Message::new();
        item.message(1, schema(found));
        out.message(23, item);
    }
    for found in items(schema_value, "allOf") {
        out.message(24, schema(found));
    }
    if get("properties").is_some() {
        let mut properties = Message::new();
        properties.named(1, get("properties"), schema);
        out.message(25, properties);
    }
    out.optional_any(30, get("example"));
    out.extensions(31, schema_value);
    out
}
