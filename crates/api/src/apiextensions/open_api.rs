//! Rules for every schema of a custom resource, structural or not.

use super::{additional_schema, field_path, item_schema, list_types};
use crate::meta::expression::{Expression, Role, SchemaRule};
use crate::meta::field::{ErrorList, Path};
use crate::meta::text;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool, JSONSchemaPropsOrStringArray, ValidationRule,
};
use serde_json::json;

/// Types of OpenAPI v3, sorted.
pub(super) const TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];
const REASONS: &[&str] = &["FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"];
const META_FIELDS: [&str; 3] = ["metadata", "kind", "apiVersion"];

/// What a changed definition may keep of the stored one although it would be refused today.
#[derive(Clone, Copy)]
pub(super) struct Rules {
    pub known_types: bool,
    pub atomic_sets: bool,
    pub map_keys: bool,
}

/// Where in the schema the walk is.
#[derive(Clone)]
struct Place {
    path: Path,
    is_root: bool,
    in_meta: bool,
    /// Why defaults are forbidden here, if they are.
    no_defaults: Option<String>,
}

impl Place {
    fn at(&self, path: Path) -> Self {
        Self { path, is_root: false, ..self.clone() }
    }
}

/// Field errors of a schema and all schemas in it.
pub(super) fn validate(s: &JSONSchemaProps, rules: Rules, path: &Path) -> ErrorList {
    let mut e = ErrorList::default();
    walk(s, rules, &Place { path: path.clone(), is_root: true, in_meta: false, no_defaults: None }, &mut e);
    e
}

fn walk(s: &JSONSchemaProps, rules: Rules, at: &Place, e: &mut ErrorList) {
    let path = &at.path;
    validate_standard(s, rules, at, e);
    if s.unique_items == Some(true) {
        let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        e.forbidden(&path.child("uniqueItems"), detail);
    }
    let properties = s.properties.as_ref().filter(|p| !p.is_empty());
    let at_additional = path.child("additionalProperties");
    if properties.is_some()
        && matches!(
            s.additional_properties,
            Some(JSONSchemaPropsOrBool::Schema(_) | JSONSchemaPropsOrBool::Bool(false))
        )
    {
        e.forbidden(&at_additional, "additionalProperties and properties are mutual exclusive");
    }
    if let Some(additional) = additional_schema(s) {
        let mut place = at.at(at_additional);
        if at.in_meta {
            place.no_defaults = Some("inside additionalProperties applying to object metadata".to_owned());
        }
        walk(additional, rules, &place, e);
    }
    for (name, property) in properties.into_iter().flatten() {
        let mut place = at.at(path.child("properties").key(name));
        let resource = at.is_root || s.x_kubernetes_embedded_resource == Some(true);
        if resource && META_FIELDS.contains(&name.as_str()) {
            place.in_meta = true;
            if at.is_root {
                place.no_defaults = Some(format!("in top-level {name}"));
            }
        }
        walk(property, rules, &place, e);
    }
    if let Some(not) = &s.not {
        walk(not, rules, &at.at(path.child("not")), e);
    }
    for (field, list) in [("allOf", &s.all_of), ("oneOf", &s.one_of), ("anyOf", &s.any_of)] {
        for (i, s) in list.iter().flatten().enumerate() {
            walk(s, rules, &at.at(path.child(field).index(i)), e);
        }
    }
    for (name, s) in s.definitions.iter().flatten() {
        walk(s, rules, &at.at(path.child("definitions").key(name)), e);
    }
    match &s.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => walk(items, rules, &at.at(path.child("items")), e),
        Some(JSONSchemaPropsOrArray::Schemas(list)) => {
            for (i, s) in list.iter().enumerate() {
                walk(s, rules, &at.at(path.child("items").index(i)), e);
            }
        }
        None => {}
    }
    for (name, dependency) in s.dependencies.iter().flatten() {
        if let JSONSchemaPropsOrStringArray::Schema(s) = dependency {
            walk(s, rules, &at.at(path.child("dependencies").key(name)), e);
        }
    }
    if s.x_kubernetes_preserve_unknown_fields == Some(false) {
        e.invalid(&path.child("x-kubernetes-preserve-unknown-fields"), false, "must be true or undefined");
    }
    list_types::validate(s, rules.atomic_sets, path, e);
    if rules.map_keys {
        list_types::validate_identity(s, path, e);
    }
    for (i, rule) in s.x_kubernetes_validations.iter().flatten().enumerate() {
        validate_rule(s, rule, &path.child("x-kubernetes-validations").index(i), e);
    }
}

/// What OpenAPI has and Kubernetes does not support.
fn validate_standard(s: &JSONSchemaProps, rules: Rules, at: &Place, e: &mut ErrorList) {
    let path = &at.path;
    let kind = text(&s.type_);
    if rules.known_types && !kind.is_empty() && !TYPES.contains(&kind) {
        e.not_supported(&path.child("type"), kind, TYPES);
    }
    if let Some(reason) = at.no_defaults.as_ref().filter(|_| s.default.is_some()) {
        e.forbidden(&path.child("default"), &format!("must not be set {reason}"));
    }
    let full = |m: Option<usize>| m.is_some_and(|n| n > 0);
    let absent = [
        (!text(&s.id).is_empty(), "id"),
        (s.additional_items.is_some(), "additionalItems"),
        (full(s.pattern_properties.as_ref().map(|p| p.len())), "patternProperties"),
        (full(s.definitions.as_ref().map(|d| d.len())), "definitions"),
        (s.dependencies.is_some(), "dependencies"),
        (s.ref_path.is_some(), "$ref"),
    ];
    for (_, field) in absent.iter().filter(|(there, _)| *there) {
        e.forbidden(&path.child(field), &format!("{field} is not supported"));
    }
    if kind == "null" {
        e.forbidden(&path.child("type"), "type cannot be set to null, use nullable as an alternative");
    }
    if matches!(&s.items, Some(JSONSchemaPropsOrArray::Schemas(list)) if !list.is_empty()) {
        e.forbidden(&path.child("items"), "items must be a schema object and not an array");
    }
    if at.in_meta && s.x_kubernetes_embedded_resource == Some(true) {
        e.forbidden(&path.child("x-kubernetes-embedded-resource"), "must not be used inside of resource meta");
    }
}

fn has_newline(s: &str) -> bool {
    s.contains(['\n', '\r'])
}

fn validate_rule(s: &JSONSchemaProps, r: &ValidationRule, path: &Path, e: &mut ErrorList) {
    let (rule, message, expression) = (r.rule.trim(), text(&r.message), text(&r.message_expression));
    let blank = |s: &str| !s.is_empty() && s.trim().is_empty();
    let at_message = path.child("message");
    if rule.is_empty() {
        e.required(&path.child("rule"), "rule is not specified");
    } else if blank(message) {
        e.invalid(&at_message, message, "must be non-empty if specified");
    } else if has_newline(message.trim()) {
        e.invalid(&at_message, message, "must not contain line breaks");
    } else if has_newline(rule) && message.is_empty() {
        e.required(&at_message, "message must be specified if rule contains line breaks");
    }
    if blank(expression) {
        e.required(&path.child("messageExpression"), "messageExpression must be non-empty if specified");
    }
    if let Some(reason) = r.reason.as_deref().filter(|r| !REASONS.contains(r)) {
        e.not_supported(&path.child("reason"), reason, REASONS);
    }
    let (field, at) = (text(&r.field_path), path.child("fieldPath"));
    if blank(field) {
        e.invalid(&at, field, "must be non-empty if specified");
    }
    if has_newline(field) {
        e.invalid(&at, field, "must not contain line breaks");
    }
    if !field.is_empty() && super::structural::unsupported(s).is_none() && field_path::follow(field, s, true).is_err() {
        e.invalid(&at, field, "must be a valid path");
    }
}

/// The rules of a schema and of those in its structure; logic has none.
pub(super) fn expressions(
    s: &JSONSchemaProps,
    stored: &dyn Fn(&ValidationRule, bool) -> bool,
    uncorrelatable: Option<&Path>,
    path: &Path,
    out: &mut Vec<Expression>,
) {
    let here = uncorrelatable;
    let is_list_map = s.x_kubernetes_list_type.as_deref() == Some("map");
    let below = |loose: bool| if loose { here.or(Some(path)) } else { here };
    if let Some(additional) = additional_schema(s) {
        expressions(additional, stored, here, &path.child("additionalProperties"), out);
    }
    for (name, property) in s.properties.iter().flatten() {
        let atomic = s.x_kubernetes_map_type.as_deref() == Some("atomic");
        expressions(property, stored, below(atomic), &path.child("properties").key(name), out);
    }
    if let Some(items) = item_schema(s) {
        expressions(items, stored, below(!is_list_map), &path.child("items"), out);
    }
    for (i, r) in s.x_kubernetes_validations.iter().flatten().enumerate() {
        let path = path.child("x-kubernetes-validations").index(i);
        let at = SchemaRule { schema: Box::new(s.clone()), rule: i, uncorrelatable: here.cloned() };
        let mut add = |field: &str, text: &str, role: Role, message: bool| {
            if !text.trim().is_empty() {
                let (path, text) = (path.child(field), text.to_owned());
                out.push(Expression { path, text, role, params: false, authorizer: false, stored: stored(r, message) });
            }
        };
        add("rule", &r.rule, Role::SchemaRule(at.clone()), false);
        add("messageExpression", text(&r.message_expression), Role::SchemaMessage(at), true);
    }
}

/// Adds the errors of a root schema whose status is a subresource: the rules of status must not get lost in it.
pub(super) fn validate_status_root(s: &JSONSchemaProps, path: &Path, e: &mut ErrorList) {
    let listed = |n: Option<usize>| n.is_some_and(|n| n > 0);
    let first = !text(&s.id).is_empty() || !text(&s.schema).is_empty() || s.ref_path.is_some();
    let kind = text(&s.type_);
    if !first && !kind.is_empty() && kind != "object" {
        let detail =
            "only \"object\" is allowed as the type at the root of the schema if the status subresource is enabled";
        return e.invalid(&path.child("openAPIV3Schema.type"), kind, detail);
    }
    let on = |b: Option<bool>| b == Some(true);
    let forbidden = first
        || on(s.nullable)
        || s.default.is_some()
        || listed(s.enum_.as_ref().map(Vec::len))
        || s.max_properties.is_some()
        || s.min_properties.is_some()
        || [&s.all_of, &s.one_of, &s.any_of].into_iter().any(|l| listed(l.as_ref().map(Vec::len)))
        || s.not.is_some()
        || s.additional_properties.is_some()
        || listed(s.pattern_properties.as_ref().map(|p| p.len()))
        || listed(s.dependencies.as_ref().map(|d| d.len()))
        || s.additional_items.is_some()
        || listed(s.definitions.as_ref().map(|d| d.len()))
        || on(s.x_kubernetes_embedded_resource)
        || on(s.x_kubernetes_int_or_string)
        || listed(s.x_kubernetes_list_map_keys.as_ref().map(Vec::len))
        || s.x_kubernetes_list_type.is_some()
        || s.x_kubernetes_map_type.is_some();
    if forbidden {
        let detail = "only [Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum MaxLength \
                      MinLength Pattern MaxItems MinItems UniqueItems MultipleOf Required Items Properties \
                      ExternalDocs \
                      Example XPreserveUnknownFields XValidations] fields are allowed at the root of the schema if the \
                      status subresource is enabled";
        e.invalid(&path.child("openAPIV3Schema"), json!(s), detail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const STRICT: Rules = Rules { known_types: true, atomic_sets: true, map_keys: true };

    fn schema(value: Value) -> JSONSchemaProps {
        serde_json::from_value(value).unwrap()
    }

    fn found(value: Value) -> Vec<String> {
        validate(&schema(value), STRICT, &Path::new("s")).0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_not_supported() {
        assert_eq!(
            found(json!({"type": "map", "uniqueItems": true, "$ref": "#/x", "properties": {"a": {"type": "string"},
                "metadata": {"type": "object", "default": {}}}, "additionalProperties": false})),
            [
                "s.type: Unsupported value: \"map\": supported values: \"array\", \"boolean\", \"integer\", \
                 \"number\", \
                 \"object\", \"string\"",
                "s.$ref: Forbidden: $ref is not supported",
                "s.uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes \
                 quadratic",
                "s.additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive",
                "s.properties[metadata].default: Forbidden: must not be set in top-level metadata",
            ]
        );
    }

    #[test]
    fn list_and_map_types() {
        let items = json!({"type": "object", "properties": {"k": {"type": "object"}, "n": {"type": "string"}}});
        assert_eq!(
            found(json!({"properties": {
                "a": {"type": "object", "x-kubernetes-list-type": "set"},
                "b": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "object"}},
                "c": {"type": "array", "x-kubernetes-list-type": "bag"},
                "d": {"type": "array", "x-kubernetes-list-map-keys": ["k"], "items": items},
                "e": {"type": "array", "x-kubernetes-list-type": "map", "items": items,
                    "x-kubernetes-list-map-keys": ["k", "n", "n", "z"]},
                "f": {"x-kubernetes-map-type": "x"}}})),
            [
                "s.properties[a].type: Invalid value: \"object\": must be array if x-kubernetes-list-type is specified",
                "s.properties[b].items.x-kubernetes-map-type: Invalid value: \"null\": must be atomic as item of a \
                 list \
                 with x-kubernetes-list-type=set",
                "s.properties[c].x-kubernetes-list-type: Unsupported value: \"bag\": supported values: \"atomic\", \
                 \"set\", \
                 \"map\"",
                "s.properties[d].x-kubernetes-list-type: Required value: must be map if x-kubernetes-list-map-keys is \
                 non-empty",
                "s.properties[e].items.properties[k].type: Invalid value: \"object\": must be a scalar type if parent \
                 array's x-kubernetes-list-type is map",
                "s.properties[e].x-kubernetes-list-map-keys: Invalid value: [\"k\",\"n\",\"n\",\"z\"]: must not \
                 contain \
                 duplicate entries",
                "s.properties[e].x-kubernetes-list-map-keys: Invalid value: [\"k\",\"n\",\"n\",\"z\"]: entries must \
                 all be \
                 names of item properties",
                "s.properties[e].items.properties[k].default: Required value: this property is in \
                 x-kubernetes-list-map-keys, so it must have a default or be a required property",
                "s.properties[e].items.properties[n].default: Required value: this property is in \
                 x-kubernetes-list-map-keys, so it must have a default or be a required property",
                "s.properties[e].items.properties[n].default: Required value: this property is in \
                 x-kubernetes-list-map-keys, so it must have a default or be a required property",
                "s.properties[f].type: Required value: must be object if x-kubernetes-map-type is specified",
                "s.properties[f].x-kubernetes-map-type: Unsupported value: \"x\": supported values: \"atomic\", \
                 \"granular\"",
            ]
        );
    }

    #[test]
    fn rules_and_where_old_values_are_known() {
        let s = json!({"type": "object", "properties": {"list": {"type": "array", "items": {"type": "string",
                "x-kubernetes-validations": [{"rule": "self != ''"}]}}},
            "x-kubernetes-validations": [{"rule": " "}, {"rule": "a\nb"}, {"rule": "true", "message": "x\ny",
                "messageExpression": " ", "reason": "Bad", "fieldPath": ".none"}]});
        assert_eq!(
            found(s.clone()),
            [
                "s.x-kubernetes-validations[0].rule: Required value: rule is not specified",
                "s.x-kubernetes-validations[1].message: Required value: message must be specified if rule contains \
                 line \
                 breaks",
                "s.x-kubernetes-validations[2].message: Invalid value: \"x\\ny\": must not contain line breaks",
                "s.x-kubernetes-validations[2].messageExpression: Required value: messageExpression must be \
                 non-empty if \
                 specified",
                "s.x-kubernetes-validations[2].reason: Unsupported value: \"Bad\": supported values: \
                 \"FieldValueDuplicate\", \"FieldValueForbidden\", \"FieldValueInvalid\", \"FieldValueRequired\"",
                "s.x-kubernetes-validations[2].fieldPath: Invalid value: \".none\": must be a valid path",
            ]
        );
        let mut out = Vec::new();
        expressions(&schema(s), &|_, _| false, None, &Path::new("s"), &mut out);
        let seen: Vec<(&str, Option<&str>)> = out
            .iter()
            .map(|e| match &e.role {
                Role::SchemaRule(r) => (e.path.as_str(), r.uncorrelatable.as_ref().map(Path::as_str)),
                _ => unreachable!(),
            })
            .collect();
        assert_eq!(
            seen,
            [
                ("s.properties[list].items.x-kubernetes-validations[0].rule", Some("s.properties[list]")),
                ("s.x-kubernetes-validations[1].rule", None),
                ("s.x-kubernetes-validations[2].rule", None),
            ]
        );
    }
}
