//! Rules for the names of a custom resource.

use crate::meta::field::{ErrorList, Path};
use crate::meta::{names, text};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinitionNames;

fn label(value: &str, path: &Path, errors: &mut ErrorList) {
    let found = names::dns1035_label(value, false);
    if !found.is_empty() {
        errors.invalid(path, value, &found.join(","));
    }
}

fn mixed_case(value: &str, path: &Path, errors: &mut ErrorList) {
    let found = names::dns1035_label(&value.to_lowercase(), false);
    if !value.is_empty() && !found.is_empty() {
        let detail = format!("may have mixed case, but should otherwise match: {}", found.join(","));
        errors.invalid(path, value, &detail);
    }
}

/// Adds the errors of names that hold for asked and for accepted ones.
pub(super) fn validate_names(n: &CustomResourceDefinitionNames, path: &Path, errors: &mut ErrorList) {
    let (singular, list_kind) = (text(&n.singular), text(&n.list_kind));
    for (field, value) in [("plural", n.plural.as_str()), ("singular", singular)] {
        if !value.is_empty() {
            label(value, &path.child(field), errors);
        }
    }
    mixed_case(&n.kind, &path.child("kind"), errors);
    mixed_case(list_kind, &path.child("listKind"), errors);
    for (i, s) in n.short_names.iter().flatten().enumerate() {
        label(s, &path.child("shortNames").index(i), errors);
    }
    if !n.kind.is_empty() && n.kind == list_kind {
        errors.invalid(&path.child("listKind"), list_kind, "kind and listKind may not be the same");
    }
    for (i, c) in n.categories.iter().flatten().enumerate() {
        label(c, &path.child("categories").index(i), errors);
    }
}
