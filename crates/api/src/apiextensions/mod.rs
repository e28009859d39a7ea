//! The `apiextensions.k8s.io` API group: CustomResourceDefinition.

mod bounds;
mod conversion;
mod definition;
mod field_path;
mod list_types;
mod names;
mod open_api;
mod spec;
mod structural;
mod view;

pub use bounds::shorten_bounds;
pub use definition::{STRING_FORMATS, default_values, is_established};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool, JSONSchemaPropsOrStringArray,
};

/// The schema of all items, where there is one.
pub(crate) fn item_schema(s: &JSONSchemaProps) -> Option<&JSONSchemaProps> {
    match &s.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => Some(items),
        _ => None,
    }
}

/// The schema of additional properties, where there is one.
pub(crate) fn additional_schema(s: &JSONSchemaProps) -> Option<&JSONSchemaProps> {
    match &s.additional_properties {
        Some(JSONSchemaPropsOrBool::Schema(a)) => Some(a),
        _ => None,
    }
}

/// Visits a schema and all schemas in it.
fn visit<'a>(s: &'a JSONSchemaProps, f: &mut dyn FnMut(&'a JSONSchemaProps)) {
    f(s);
    match &s.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => visit(items, f),
        Some(JSONSchemaPropsOrArray::Schemas(list)) => list.iter().for_each(|s| visit(s, f)),
        None => {}
    }
    for list in [&s.all_of, &s.any_of, &s.one_of] {
        list.iter().flatten().for_each(|s| visit(s, f));
    }
    s.not.iter().for_each(|s| visit(s, f));
    for map in [&s.properties, &s.pattern_properties, &s.definitions] {
        map.iter().flat_map(|m| m.values()).for_each(|s| visit(s, f));
    }
    for either in [&s.additional_properties, &s.additional_items] {
        if let Some(JSONSchemaPropsOrBool::Schema(s)) = either {
            visit(s, f);
        }
    }
    for dependency in s.dependencies.iter().flat_map(|m| m.values()) {
        if let JSONSchemaPropsOrStringArray::Schema(s) = dependency {
            visit(s, f);
        }
    }
}

/// Whether the condition holds for a schema or a schema in it.
fn any(s: &JSONSchemaProps, mut condition: impl FnMut(&JSONSchemaProps) -> bool) -> bool {
    let mut found = false;
    visit(s, &mut |s| found = found || condition(s));
    found
}
