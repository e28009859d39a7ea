//! Rules that make a schema structural: every field has a type, logic only restricts what the structure has.
//!
//! Source: `k8s.io/apiextensions-apiserver/pkg/apiserver/schema` (validation, completeness), KEP "Vanilla OpenAPI
//! subset".

use super::{additional_schema, item_schema};
use crate::meta::field::{ErrorList, Path};
use crate::meta::{regex, text};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Root,
    Item,
    Field,
}

/// What cannot be made a structural schema at all.
pub(super) fn unsupported(s: &JSONSchemaProps) -> Option<String> {
    let blank =
        |m: &Option<std::collections::BTreeMap<String, JSONSchemaProps>>| m.as_ref().is_none_or(|m| m.is_empty());
    let fields = [
        ("id", text(&s.id).is_empty()),
        ("schema", text(&s.schema).is_empty()),
        ("$ref", text(&s.ref_path).is_empty()),
        ("patternProperties", blank(&s.pattern_properties)),
        ("dependencies", s.dependencies.as_ref().is_none_or(|d| d.is_empty())),
        ("additionalItems", s.additional_items.is_none()),
        ("definitions", blank(&s.definitions)),
    ];
    if let Some((field, _)) = fields.iter().find(|(_, fine)| !fine) {
        return Some(format!("OpenAPIV3Schema '{field}' is not supported"));
    }
    let inner = s.not.iter().map(AsRef::as_ref);
    let inner = inner.chain([&s.all_of, &s.any_of, &s.one_of].into_iter().flatten().flatten());
    if let Some(why) = inner.into_iter().find_map(unsupported) {
        return Some(why);
    }
    if s.x_kubernetes_preserve_unknown_fields == Some(false) {
        return Some("internal error: 'x-kubernetes-preserve-unknown-fields' must be true or undefined".to_owned());
    }
    if matches!(&s.items, Some(JSONSchemaPropsOrArray::Schemas(list)) if !list.is_empty()) {
        return Some("OpenAPIV3Schema 'items' must be a schema, but is an array".to_owned());
    }
    let properties = s.properties.iter().flat_map(|p| p.values());
    item_schema(s).into_iter().chain(properties).chain(additional_schema(s)).find_map(unsupported)
}

/// Field errors of a schema that is not structural, sorted.
pub(super) fn validate(s: &JSONSchemaProps, path: &Path) -> ErrorList {
    let mut e = ErrorList::default();
    invariants(s, Level::Root, path, &mut e);
    complete_value(s, s, path, path, &mut e);
    e.0.sort_by_key(ToString::to_string);
    e
}

fn is_integer_or_string(list: Option<&Vec<JSONSchemaProps>>) -> bool {
    let of = |t: &str| JSONSchemaProps { type_: Some(t.to_owned()), ..JSONSchemaProps::default() };
    list.is_some_and(|l| *l == [of("integer"), of("string")])
}

fn invariants(s: &JSONSchemaProps, level: Level, path: &Path, e: &mut ErrorList) {
    let kind = text(&s.type_);
    let at_type = path.child("type");
    if kind == "array" && s.items.is_none() {
        e.required(&path.child("items"), "must be specified");
    }
    if let Some(items) = item_schema(s) {
        invariants(items, Level::Item, &path.child("items"), e);
    }
    for (k, v) in s.properties.iter().flatten() {
        invariants(v, Level::Field, &path.child("properties").key(k), e);
    }
    let at_additional = path.child("additionalProperties");
    if s.additional_properties.is_some() && level == Level::Root {
        e.forbidden(&at_additional, "must not be used at the root");
    }
    if let Some(additional) = additional_schema(s) {
        invariants(additional, Level::Field, &at_additional, e);
    }
    let int_or_string = s.x_kubernetes_int_or_string == Some(true);
    let preserve = s.x_kubernetes_preserve_unknown_fields == Some(true);
    let embedded = s.x_kubernetes_embedded_resource == Some(true);
    let unless = "must be false if x-kubernetes-int-or-string is true";
    if int_or_string && preserve {
        e.invalid(&path.child("x-kubernetes-preserve-unknown-fields"), true, unless);
    }
    if int_or_string && embedded {
        e.invalid(&path.child("x-kubernetes-embedded-resource"), true, unless);
    }
    let skip_any = is_integer_or_string(s.any_of.as_ref());
    let skip_all = s.all_of.iter().flatten().next().is_some_and(|f| is_integer_or_string(f.any_of.as_ref()));
    value(s, skip_any, skip_all, level, path, e);
    if embedded && kind != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        if kind.is_empty() {
            e.required(&at_type, detail);
        } else {
            e.invalid(&at_type, kind, detail);
        }
    } else if kind.is_empty() && !int_or_string && !preserve {
        let detail = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        e.required(&at_type, detail);
    }
    if embedded && s.additional_properties.is_some() {
        e.forbidden(&at_additional, "must not be used if x-kubernetes-embedded-resource is set");
    }
    if level == Level::Root && !kind.is_empty() && kind != "object" {
        e.invalid(&at_type, kind, "must be object at the root");
    }
    let is_object = level == Level::Root || embedded;
    let property = |name: &str| s.properties.as_ref().and_then(|p| p.get(name));
    for name in ["kind", "apiVersion"] {
        if let Some(p) = property(name).filter(|p| is_object && text(&p.type_) != "string") {
            e.invalid(&path.child("properties").key(name).child("type"), text(&p.type_), "must be string");
        }
    }
    if let Some(m) = property("metadata") {
        metadata(m, is_object, level, &path.child("properties").key("metadata"), e);
    }
    if embedded && !preserve && s.properties.as_ref().is_none_or(|p| p.is_empty()) {
        let detail = "must not be empty if x-kubernetes-embedded-resource is true without \
                      x-kubernetes-preserve-unknown-fields";
        e.required(&path.child("properties"), detail);
    }
}

fn metadata(m: &JSONSchemaProps, is_object: bool, level: Level, path: &Path, e: &mut ErrorList) {
    if is_object && text(&m.type_) != "object" {
        e.invalid(&path.child("type"), text(&m.type_), "must be object");
    }
    if level != Level::Root {
        return;
    }
    let mut rest = m.clone();
    let names_only =
        rest.properties.as_ref().is_none_or(|p| p.keys().all(|k| matches!(k.as_str(), "name" | "generateName")));
    if names_only {
        rest.properties = None;
    }
    rest.type_ = None;
    rest.default = None;
    if rest != JSONSchemaProps::default() {
        let detail = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        e.forbidden(path, detail);
    }
}

/// Rules of the logic in a schema.
fn value(s: &JSONSchemaProps, skip_any: bool, skip_all: bool, level: Level, path: &Path, e: &mut ErrorList) {
    for (i, n) in s.any_of.iter().flatten().enumerate().filter(|_| !skip_any) {
        nested(n, false, level, &path.child("anyOf").index(i), e);
    }
    for (i, n) in s.all_of.iter().flatten().enumerate() {
        nested(n, skip_all && i == 0, level, &path.child("allOf").index(i), e);
    }
    for (i, n) in s.one_of.iter().flatten().enumerate() {
        nested(n, false, level, &path.child("oneOf").index(i), e);
    }
    if let Some(n) = &s.not {
        nested(n, false, level, &path.child("not"), e);
    }
    let pattern = text(&s.pattern);
    if let Err(why) = regex::compile(pattern) {
        let detail = format!("must be a valid regular expression, but isn't: {why}");
        e.invalid(&path.child("pattern"), pattern, &detail);
    }
}

/// Rules of a schema inside logic: it may restrict values, not declare structure.
fn nested(s: &JSONSchemaProps, skip_any: bool, level: Level, path: &Path, e: &mut ErrorList) {
    value(s, skip_any, false, level, path, e);
    if let Some(items) = item_schema(s) {
        nested(items, false, level, &path.child("items"), e);
    }
    for (k, v) in s.properties.iter().flatten() {
        nested(v, false, Level::Field, &path.child("properties").key(k), e);
    }
    let allowed = !matches!(s.additional_properties, None | Some(JSONSchemaPropsOrBool::Bool(false)));
    let on = |b: Option<bool>| b == Some(true);
    let faults = [
        (!text(&s.type_).is_empty(), "type", "must be empty to be structural"),
        (allowed, "additionalProperties", "must be undefined to be structural"),
        (s.default.is_some(), "default", "must be undefined to be structural"),
        (!text(&s.title).is_empty(), "title", "must be empty to be structural"),
        (!text(&s.description).is_empty(), "description", "must be empty to be structural"),
        (on(s.nullable), "nullable", "must be false to be structural"),
        (
            on(s.x_kubernetes_preserve_unknown_fields),
            "x-kubernetes-preserve-unknown-fields",
            "must be false to be structural",
        ),
        (on(s.x_kubernetes_embedded_resource), "x-kubernetes-embedded-resource", "must be false to be structural"),
        (on(s.x_kubernetes_int_or_string), "x-kubernetes-int-or-string", "must be false to be structural"),
        (
            s.x_kubernetes_list_map_keys.as_ref().is_some_and(|k| !k.is_empty()),
            "x-kubernetes-list-map-keys",
            "must be empty to be structural",
        ),
        (s.x_kubernetes_list_type.is_some(), "x-kubernetes-list-type", "must be undefined to be structural"),
        (s.x_kubernetes_map_type.is_some(), "x-kubernetes-map-type", "must be undefined to be structural"),
        (
            s.x_kubernetes_validations.as_ref().is_some_and(|v| !v.is_empty()),
            "x-kubernetes-validations",
            "must be empty to be structural",
        ),
    ];
    for (_, field, detail) in faults.iter().filter(|(wrong, ..)| *wrong) {
        e.forbidden(&path.child(field), detail);
    }
    if s.properties.as_ref().is_some_and(|p| p.contains_key("metadata")) {
        e.forbidden(&path.child("properties").key("metadata"), "must not be specified in a nested context");
    }
}

/// Adds an error for each field that logic speaks of and the structure has not.
fn complete_value(v: &JSONSchemaProps, s: &JSONSchemaProps, s_path: &Path, v_path: &Path, e: &mut ErrorList) {
    if let Some(n) = &v.not {
        complete(n, Some(s), s_path, &v_path.child("not"), e);
    }
    for (field, list) in [("allOf", &v.all_of), ("anyOf", &v.any_of), ("oneOf", &v.one_of)] {
        for (i, n) in list.iter().flatten().enumerate() {
            complete(n, Some(s), s_path, &v_path.child(field).index(i), e);
        }
    }
}

fn complete(v: &JSONSchemaProps, s: Option<&JSONSchemaProps>, s_path: &Path, v_path: &Path, e: &mut ErrorList) {
    let Some(s) = s else {
        return e.required(s_path, &format!("because it is defined in {v_path}"));
    };
    complete_value(v, s, s_path, v_path, e);
    if let Some(items) = item_schema(v) {
        complete(items, item_schema(s), &s_path.child("items"), &v_path.child("items"), e);
    }
    for (k, field) in v.properties.iter().flatten() {
        let (s_path, v_path) = (s_path.child("properties").key(k), v_path.child("properties").key(k));
        complete(field, s.properties.as_ref().and_then(|p| p.get(k)), &s_path, &v_path, e);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn found(schema: Value) -> Vec<String> {
        let s: JSONSchemaProps = serde_json::from_value(schema).unwrap();
        validate(&s, &Path::new("s")).0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn types_are_required() {
        assert_eq!(found(json!({})), ["s.type: Required value: must not be empty at the root"]);
        assert_eq!(
            found(json!({"type": "object", "properties": {"a": {}, "b": {"type": "array"},
                "c": {"type": "array", "items": {}}, "d": {"x-kubernetes-int-or-string": true,
                "anyOf": [{"type": "integer"}, {"type": "string"}]}}})),
            [
                "s.properties[a].type: Required value: must not be empty for specified object fields",
                "s.properties[b].items: Required value: must be specified",
                "s.properties[c].items.type: Required value: must not be empty for specified array items",
            ]
        );
        assert_eq!(
            found(json!({"type": "string", "additionalProperties": true})),
            [
                "s.additionalProperties: Forbidden: must not be used at the root",
                "s.type: Invalid value: \"string\": must be object at the root",
            ]
        );
    }

    #[test]
    fn logic_declares_nothing() {
        assert_eq!(
            found(json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}},
                "anyOf": [{"type": "object", "properties": {"a": {"minLength": 1}, "b": {"default": 1}}}],
                "not": {"required": ["a"], "description": "x"}}))
            .iter()
            .map(|t| t.lines().next().unwrap_or_default().to_owned())
            .collect::<Vec<_>>(),
            [
                "s.anyOf[0].properties[b].default: Forbidden: must be undefined to be structural",
                "s.anyOf[0].type: Forbidden: must be empty to be structural",
                "s.not.description: Forbidden: must be empty to be structural",
                "s.properties[a].pattern: Invalid value: \"(\": must be a valid regular expression, but isn't: error \
                 parsing regexp: missing closing ): `(`",
                "s.properties[b]: Required value: because it is defined in s.anyOf[0].properties[b]",
            ]
        );
    }

    #[test]
    fn metadata_says_names_only() {
        let meta = |m: Value| found(json!({"type": "object", "properties": {"metadata": m}}));
        assert!(meta(json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 9}}})).is_empty());
        assert_eq!(
            meta(json!({"type": "object", "properties": {"labels": {"type": "object"}}})),
            ["s.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but \
                 metadata \
              is implicitly specified"]
        );
    }
}
