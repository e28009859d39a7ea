//! Rules for the spec of a definition.

use super::conversion::{knows_review_version, validate_conversion};
use super::names::validate_names;
use super::view::View;
use super::{any, field_path, list_types, open_api, structural};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::immutable;
use crate::meta::{names, text};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinitionSpec, CustomResourceSubresources, JSONSchemaProps,
    SelectableField,
};
use serde_json::json;

const SCOPES: &[&str] = &["Cluster", "Namespaced"];
const COLUMN_TYPES: &[&str] = &["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: &[&str] = &["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
const SELECTABLE_MAX: usize = 8;

/// What is asked of a spec; a changed one may keep faults of the stored one.
#[derive(Clone, Copy)]
pub(super) struct Rules {
    known_review_version: bool,
    fixed_names: bool,
    schema: bool,
    structural: bool,
    open_api: open_api::Rules,
}

impl Rules {
    /// For a new definition.
    pub const STRICT: Self = Self {
        known_review_version: true,
        fixed_names: false,
        schema: true,
        structural: true,
        open_api: open_api::Rules { known_types: true, atomic_sets: true, map_keys: true },
    };

    /// For a change of a stored definition that is `established` or not.
    pub fn of(old: &CustomResourceDefinitionSpec, established: bool) -> Self {
        let view = View::of(old);
        let schemas = view.schemas();
        let has = |f: &dyn Fn(&JSONSchemaProps) -> bool| schemas.iter().any(|(_, s)| any(s, f));
        let structural = |s: &JSONSchemaProps| {
            structural::unsupported(s).is_none() && structural::validate(s, &Path::new("")).is_empty()
        };
        let identity_fault = |s: &JSONSchemaProps| {
            let mut e = ErrorList::default();
            list_types::validate_identity(s, &Path::new(""), &mut e);
            !e.is_empty()
        };
        Self {
            known_review_version: knows_review_version(old.conversion.as_ref()),
            fixed_names: established,
            schema: view.common.schema().is_some() || view.versions.iter().all(|v| v.schema().is_some()),
            structural: schemas.iter().all(|(_, s)| structural(s)),
            open_api: open_api::Rules {
                known_types: !has(&|s| {
                    let t = text(&s.type_);
                    !t.is_empty() && !open_api::TYPES.contains(&t)
                }),
                atomic_sets: !has(&|s| list_types::non_atomic_items(s).is_some()),
                map_keys: !has(&identity_fault),
            },
        }
    }
}

fn validate_deprecation(deprecated: bool, warning: &str, path: &Path, errors: &mut ErrorList) {
    if !deprecated {
        return errors.invalid(path, warning, "can only be set for deprecated versions");
    }
    if warning.len() > 256 {
        errors.invalid(path, warning, "must be <= 256 characters long");
    }
    if warning.is_empty() {
        errors.invalid(path, warning, "must not be an empty string");
    }
    if let Some((i, _)) = warning.char_indices().find(|(_, c)| c.is_control() || (c.is_whitespace() && *c != ' ')) {
        let detail =
            format!("must only contain printable UTF-8 characters; non-printable character found at index {i}");
        errors.invalid(path, warning, &detail);
    }
}

/// A path in dots only; false where it is none.
fn simple_path(value: &str, path: &Path, errors: &mut ErrorList) -> bool {
    if !value.starts_with('.') {
        errors.invalid(path, value, "must be a simple json path starting with .");
    }
    value.starts_with('.')
}

fn validate_subresources(s: &CustomResourceSubresources, path: &Path, errors: &mut ErrorList) {
    let Some(scale) = &s.scale else { return };
    let fields = [
        ("scale.specReplicasPath", scale.spec_replicas_path.as_str(), ".spec.", ".spec"),
        ("scale.statusReplicasPath", scale.status_replicas_path.as_str(), ".status.", ".status"),
    ];
    for (field, value, prefix, shown) in fields {
        let at = path.child(field);
        if value.is_empty() {
            errors.required(&at, "");
        } else if simple_path(value, &at, errors) && !value.starts_with(prefix) {
            errors.invalid(&at, value, &format!("should be a json path under {shown}"));
        }
    }
    let selector = text(&scale.label_selector_path);
    let at = path.child("scale.labelSelectorPath");
    let under = selector.starts_with(".spec.") || selector.starts_with(".status.");
    if !selector.is_empty() && simple_path(selector, &at, errors) && !under {
        errors.invalid(&at, selector, "should be a json path under either .spec or .status");
    }
}

fn validate_columns(columns: &[CustomResourceColumnDefinition], path: &Path, errors: &mut ErrorList) {
    for (i, c) in columns.iter().enumerate() {
        let path = path.index(i);
        if c.name.is_empty() {
            errors.required(&path.child("name"), "");
        }
        let known = format!("must be one of {}", COLUMN_TYPES.join(","));
        if c.type_.is_empty() {
            errors.required(&path.child("type"), &known);
        } else if !COLUMN_TYPES.contains(&c.type_.as_str()) {
            errors.invalid(&path.child("type"), c.type_.as_str(), &known);
        }
        let format = text(&c.format);
        if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
            let detail = format!("must be one of {}", COLUMN_FORMATS.join(","));
            errors.invalid(&path.child("format"), format, &detail);
        }
        let at = path.child("JSONPath");
        if c.json_path.is_empty() {
            errors.required(&at, "");
        } else {
            simple_path(&c.json_path, &at, errors);
        }
    }
}

fn validate_selectable(fields: &[SelectableField], schema: &JSONSchemaProps, path: &Path, errors: &mut ErrorList) {
    let mut seen: Vec<Vec<String>> = Vec::new();
    for (i, f) in fields.iter().enumerate() {
        let path = path.index(i).child("jsonPath");
        let value = f.json_path.as_str();
        if value.is_empty() {
            errors.required(&path, "");
            continue;
        }
        let (names, found) = match field_path::follow(value, schema, false) {
            Ok(found) => found,
            Err(why) => {
                errors.invalid(&path, value, &format!("is an invalid path: {why}"));
                continue;
            }
        };
        if names.first().is_some_and(|n| n == "metadata") {
            errors.invalid(&path, value, "must not point to fields in metadata");
        }
        let kind = found.map(|s| text(&s.type_)).unwrap_or_default();
        if !matches!(kind, "string" | "boolean" | "integer") {
            let detail = "must point to a field of type string, boolean or integer. Enum string fields and strings \
                with \
                          formats are allowed.";
            errors.invalid(&path, value, detail);
        }
        if seen.contains(&names) {
            errors.duplicate(&path, value);
        } else {
            seen.push(names);
        }
    }
    if seen.len() > SELECTABLE_MAX {
        errors.too_many(path, seen.len(), SELECTABLE_MAX);
    }
}

fn validate_schema(s: &JSONSchemaProps, status: bool, structural: bool, rules: Rules, path: &Path) -> ErrorList {
    let mut e = ErrorList::default();
    if status {
        open_api::validate_status_root(s, path, &mut e);
    }
    if s.nullable == Some(true) {
        e.forbidden(&path.child("openAPIV3Schema.nullable"), "nullable cannot be true at the root");
    }
    let at = path.child("openAPIV3Schema");
    let unsupported = structural.then(|| structural::unsupported(s)).flatten();
    if structural && unsupported.is_none() {
        e.extend(structural::validate(s, &at));
    }
    e.extend(open_api::validate(s, rules.open_api, &at));
    if let Some(why) = unsupported.filter(|_| e.is_empty()) {
        e.invalid(&at, "", &why);
    }
    e
}

/// Whether something in the schemas has a meaning only structural schemas give it.
fn needs_structure(s: &JSONSchemaProps) -> bool {
    s.default.is_some()
        || s.x_kubernetes_embedded_resource == Some(true)
        || s.x_kubernetes_preserve_unknown_fields.is_some()
        || s.x_kubernetes_int_or_string == Some(true)
        || s.x_kubernetes_list_map_keys.as_ref().is_some_and(|k| !k.is_empty())
        || s.x_kubernetes_list_type.is_some()
        || s.x_kubernetes_validations.as_ref().is_some_and(|v| !v.is_empty())
}

/// Field errors of a spec.
pub(super) fn validate(spec: &CustomResourceDefinitionSpec, rules: Rules) -> ErrorList {
    let mut e = ErrorList::default();
    let path = Path::new("spec");
    let view = View::of(spec);
    validate_head(spec, &path, &mut e);
    let preserve = spec.preserve_unknown_fields == Some(true);
    let schemas = view.schemas();
    let structural = rules.structural || !preserve || schemas.iter().any(|(_, s)| any(s, needs_structure));
    let at_versions = path.child("versions");
    if view.common.schema().is_none() {
        for (i, _) in view.versions.iter().enumerate().filter(|(_, v)| v.schema().is_none()) {
            let at = at_versions.index(i).child("schema").child("openAPIV3Schema");
            if rules.schema {
                e.required(&at, "");
            } else if !preserve && spec.versions[i].served {
                e.required(&at, "because otherwise all fields are pruned");
            }
        }
    }
    if preserve && schemas.iter().any(|(_, s)| any(s, |s| s.default.is_some())) {
        let detail = "must be false in order to use defaults in the schema";
        e.invalid(&path.child("preserveUnknownFields"), true, detail);
    }
    for (i, (v, own)) in spec.versions.iter().zip(&view.versions).enumerate() {
        let path = at_versions.index(i);
        let found = names::dns1035_label(&v.name, false);
        if !found.is_empty() {
            e.invalid(&path.child("name"), v.name.as_str(), &found.join(","));
        }
        if let Some(warning) = &v.deprecation_warning {
            validate_deprecation(v.deprecated == Some(true), warning, &path.child("deprecationWarning"), &mut e);
        }
        if let Some(s) = own.schema() {
            e.extend(validate_schema(s, view.has_status(Some(i)), structural, rules, &path.child("schema")));
        }
        if let Some(s) = own.subresources {
            validate_subresources(s, &path.child("subresources"), &mut e);
        }
        validate_columns(own.columns, &path.child("additionalPrinterColumns"), &mut e);
        if !own.selectable.is_empty() {
            let at = path.child("selectableFields");
            match own.schema() {
                Some(s) => validate_selectable(own.selectable, s, &at, &mut e),
                None => {
                    e.invalid(&at, "", "may only be set when `version.schema.openAPIV3Schema` is not included");
                }
            }
        }
    }
    if spec.versions.iter().enumerate().any(|(i, v)| spec.versions[..i].iter().any(|o| o.name == v.name)) {
        e.invalid(&at_versions, json!(spec.versions), "must contain unique version names");
    }
    if spec.versions.iter().filter(|v| v.storage).count() != 1 {
        e.invalid(&at_versions, json!(spec.versions), "must have exactly one version marked as storage version");
    }
    if let Some(first) = spec.versions.first() {
        let found = names::dns1035_label(&first.name, false);
        if !first.name.is_empty() && !found.is_empty() {
            e.invalid(&path.child("version"), first.name.as_str(), &found.join(","));
        }
    }
    validate_required_names(spec, &path.child("names"), &mut e);
    validate_names(&spec.names, &path.child("names"), &mut e);
    validate_common(&view, structural, rules, &path, &mut e);
    if let Some(c) = &spec.conversion {
        if c.strategy != "None" && preserve {
            let detail = "must be None if spec.preserveUnknownFields is true";
            e.invalid(&path.child("conversion").child("strategy"), c.strategy.as_str(), detail);
        }
        validate_conversion(c, rules.known_review_version, &path.child("conversion"), &mut e);
    }
    e
}

fn validate_head(spec: &CustomResourceDefinitionSpec, path: &Path, e: &mut ErrorList) {
    let at = path.child("group");
    let found = names::dns1123_subdomain(&spec.group, false);
    if spec.group.is_empty() {
        e.required(&at, "");
    } else if !found.is_empty() {
        e.invalid(&at, spec.group.as_str(), &found.join(","));
    } else if !spec.group.contains('.') {
        e.invalid(&at, spec.group.as_str(), "should be a domain with at least one dot");
    }
    if spec.scope.is_empty() {
        e.required(&path.child("scope"), "");
    } else if !SCOPES.contains(&spec.scope.as_str()) {
        e.not_supported(&path.child("scope"), &spec.scope, SCOPES);
    }
}

fn validate_required_names(spec: &CustomResourceDefinitionSpec, path: &Path, e: &mut ErrorList) {
    let n = &spec.names;
    let required = [
        ("plural", n.plural.as_str()),
        ("singular", text(&n.singular)),
        ("kind", &n.kind),
        ("listKind", text(&n.list_kind)),
    ];
    for (field, _) in required.iter().filter(|(_, v)| v.is_empty()) {
        e.required(&path.child(field), "");
    }
}

fn validate_common(view: &View<'_>, structural: bool, rules: Rules, path: &Path, e: &mut ErrorList) {
    if let Some(s) = view.common.schema() {
        e.extend(validate_schema(s, view.has_status(None), structural, rules, &path.child("validation")));
    }
    if let Some(s) = view.common.subresources {
        validate_subresources(s, &path.child("subresources"), e);
    }
    validate_columns(view.common.columns, &path.child("additionalPrinterColumns"), e);
    if !view.common.selectable.is_empty() {
        let at = path.child("selectableFields");
        match (view.common.validation, view.common.schema()) {
            (None, _) => e.invalid(&at, "", "may only be set when validations.schema is included"),
            (_, Some(s)) => validate_selectable(view.common.selectable, s, &at, e),
            (Some(_), None) => {}
        }
    }
}

/// Field errors of a changed spec.
pub(super) fn validate_update(
    new: &CustomResourceDefinitionSpec,
    old: &CustomResourceDefinitionSpec,
    established: bool,
) -> ErrorList {
    let rules = Rules::of(old, established);
    let mut e = validate(new, rules);
    let path = Path::new("spec");
    let mut fixed = |path: Path, new: &str, old: &str| immutable(&mut e, &path, &json!(new), &json!(old));
    if rules.fixed_names {
        fixed(path.child("scope"), &new.scope, &old.scope);
        fixed(path.child("names").child("kind"), &new.names.kind, &old.names.kind);
    }
    fixed(path.child("group"), &new.group, &old.group);
    fixed(path.child("names").child("plural"), &new.names.plural, &old.names.plural);
    e
}
