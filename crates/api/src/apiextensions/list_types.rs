//! Rules for `x-kubernetes-list-type`, its map keys and `x-kubernetes-map-type`.

use super::item_schema;
use crate::meta::field::{ErrorList, Path};
use crate::meta::text;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;
use serde_json::json;

const LIST_TYPES: &[&str] = &["atomic", "set", "map"];
const MAP_TYPES: &[&str] = &["atomic", "granular"];

/// Adds an error where a schema with an extension has not the type the extension is for.
fn validate_type(s: &JSONSchemaProps, want: &str, extension: &str, path: &Path, errors: &mut ErrorList) {
    let found = text(&s.type_);
    let detail = format!("must be {want} if {extension} is specified");
    if found.is_empty() {
        errors.required(&path.child("type"), &detail);
    } else if found != want {
        errors.invalid(&path.child("type"), found, &detail);
    }
}

/// The name of the extension of a set's items that makes them not atomic.
pub(super) fn non_atomic_items(s: &JSONSchemaProps) -> Option<&'static str> {
    let items = item_schema(s).filter(|_| s.x_kubernetes_list_type.as_deref() == Some("set"))?;
    match text(&items.type_) {
        "array" if items.x_kubernetes_list_type.as_deref().is_some_and(|t| t != "atomic") => {
            Some("x-kubernetes-list-type")
        }
        "object" if items.x_kubernetes_map_type.as_deref() != Some("atomic") => Some("x-kubernetes-map-type"),
        _ => None,
    }
}

/// Adds the errors of the extensions; `atomic_sets` asks for atomic items of sets.
pub(super) fn validate(s: &JSONSchemaProps, atomic_sets: bool, path: &Path, errors: &mut ErrorList) {
    if let Some(map_type) = s.x_kubernetes_map_type.as_deref() {
        validate_type(s, "object", "x-kubernetes-map-type", path, errors);
        if !MAP_TYPES.contains(&map_type) {
            errors.not_supported(&path.child("x-kubernetes-map-type"), map_type, MAP_TYPES);
        }
    }
    let at_type = path.child("x-kubernetes-list-type");
    let list_type = s.x_kubernetes_list_type.as_deref();
    if list_type.is_some() {
        let before = errors.0.len();
        validate_type(s, "array", "x-kubernetes-list-type", path, errors);
        if before == errors.0.len()
            && atomic_sets
            && let Some(extension) = non_atomic_items(s)
        {
            let found = item_schema(s).and_then(|i| i.x_kubernetes_list_type.as_deref());
            let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
            errors.invalid(&path.child("items").child(extension), found.unwrap_or("null"), detail);
        }
    }
    if let Some(t) = list_type.filter(|t| !LIST_TYPES.contains(t)) {
        errors.not_supported(&at_type, t, LIST_TYPES);
    }
    let keys = s.x_kubernetes_list_map_keys.as_deref().unwrap_or_default();
    if !keys.is_empty() {
        let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
        match list_type {
            None => errors.required(&at_type, detail),
            Some("map") => {}
            Some(other) => errors.invalid(&at_type, other, detail),
        }
    }
    if list_type == Some("map") {
        validate_map(s, keys, path, errors);
    }
}

fn validate_map(s: &JSONSchemaProps, keys: &[String], path: &Path, errors: &mut ErrorList) {
    let (at_keys, at_items) = (path.child("x-kubernetes-list-map-keys"), path.child("items"));
    if keys.is_empty() {
        errors.required(&at_keys, "must not be empty if x-kubernetes-list-type is map");
    }
    let Some(items) = item_schema(s) else {
        match &s.items {
            None => errors.required(&at_items, "must have a schema if x-kubernetes-list-type is map"),
            Some(list) => {
                let detail = "must only have a single schema if x-kubernetes-list-type is map";
                errors.invalid(&at_items, json!(list), detail);
            }
        }
        return;
    };
    let item_type = text(&items.type_);
    if item_type != "object" {
        let detail = "must be object if parent array's x-kubernetes-list-type is map";
        return errors.invalid(&at_items.child("type"), item_type, detail);
    }
    for (i, k) in keys.iter().enumerate() {
        match items.properties.as_ref().and_then(|p| p.get(k)) {
            Some(p) if matches!(text(&p.type_), "array" | "object") => {
                let detail = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                errors.invalid(&at_items.child("properties").key(k).child("type"), item_type, detail);
            }
            Some(_) => {}
            None => errors.invalid(&at_keys, json!(keys), "entries must all be names of item properties"),
        }
        if keys[..i].contains(k) {
            errors.invalid(&at_keys, json!(keys), "must not contain duplicate entries");
        }
    }
}

/// Adds an error for each item or map key that may be null or missing.
pub(super) fn validate_identity(s: &JSONSchemaProps, path: &Path, errors: &mut ErrorList) {
    let Some(list_type @ ("set" | "map")) = s.x_kubernetes_list_type.as_deref() else { return };
    let Some(items) = item_schema(s) else { return };
    let at = path.child("items");
    if items.nullable == Some(true) {
        let detail = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        errors.forbidden(&at.child("nullable"), &detail);
    }
    let keys = s.x_kubernetes_list_map_keys.iter().flatten().filter(|_| list_type == "map");
    for k in keys {
        let Some(property) = items.properties.as_ref().and_then(|p| p.get(k)) else { continue };
        let at = at.child("properties").key(k);
        if property.default.is_none() && !items.required.iter().flatten().any(|r| r == k) {
            let detail =
                "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            errors.required(&at.child("default"), detail);
        }
        if property.nullable == Some(true) {
            let detail = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            errors.forbidden(&at.child("nullable"), detail);
        }
    }
}
