//! CustomResourceDefinition: a kind the cluster learns.

use super::names::validate_names;
use super::spec::{self, Rules};
use super::view::View;
use super::{bounds, item_schema, open_api, visit};
use crate::ObjectMeta;
use crate::apps::workload::bump_generation;
use crate::kind::{Context, Kind, ResourceInfo, STATUS};
use crate::meta::expression::Expression;
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{Meta, semantically_equal};
use crate::meta::text;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceConversion, CustomResourceDefinition, CustomResourceDefinitionSpec, JSONSchemaProps, ValidationRule,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Says who approved a kind of a group that is the community's.
const APPROVAL: &str = "api-approved.kubernetes.io";

/// Formats of strings that are known, without dashes (go-openapi's `strfmt`, and Kubernetes' own).
pub const STRING_FORMATS: &[&str] = &[
    "bsonobjectid",
    "uri",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "cidr",
    "mac",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
    "isbn",
    "isbn10",
    "isbn13",
    "creditcard",
    "ssn",
    "hexcolor",
    "rgbcolor",
    "byte",
    "password",
    "date",
    "duration",
    "datetime",
    "k8sshortname",
    "k8slongname",
];

/// Whether the kind is served.
#[must_use]
pub fn is_established(crd: &CustomResourceDefinition) -> bool {
    let conditions = crd.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Established" && c.status == "True")
}

/// The default values in the schemas, with their paths and schemas. Whether a value fits its schema is for whoever
/// validates custom resources to say.
#[must_use]
pub fn default_values(crd: &CustomResourceDefinition) -> Vec<(Path, &JSONSchemaProps, &Value)> {
    fn walk<'a>(s: &'a JSONSchemaProps, path: &Path, out: &mut Vec<(Path, &'a JSONSchemaProps, &'a Value)>) {
        if let Some(value) = &s.default {
            out.push((path.child("default"), s, &value.0));
        }
        if let Some(items) = item_schema(s) {
            walk(items, &path.child("items"), out);
        }
        for (name, property) in s.properties.iter().flatten() {
            walk(property, &path.child("properties").key(name), out);
        }
    }
    let mut out = Vec::new();
    for (path, schema) in View::of(&crd.spec).schemas() {
        walk(schema, &path, &mut out);
    }
    out
}

enum Approval {
    Missing,
    Bypassed,
    Given,
    Malformed,
}

fn approval(crd: &CustomResourceDefinition) -> Approval {
    let text = crd.metadata.annotation(APPROVAL).unwrap_or_default();
    let is_url = || {
        let (scheme, rest) = text.split_once("://")?;
        let host = rest.split(['/', '?', '#']).next()?;
        (!scheme.is_empty() && scheme.bytes().all(|c| c.is_ascii_alphanumeric()) && !host.is_empty()).then_some(())
    };
    match text {
        "" => Approval::Missing,
        t if t.starts_with("unapproved") => Approval::Bypassed,
        _ if is_url().is_some() => Approval::Given,
        _ => Approval::Malformed,
    }
}

fn validate_approval(crd: &CustomResourceDefinition, old: Option<&CustomResourceDefinition>, e: &mut ErrorList) {
    let group = crd.spec.group.as_str();
    let protected = ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|d| group == *d || group.strip_suffix(d).is_some_and(|rest| rest.ends_with('.')));
    let state = approval(crd);
    let same = old.is_some_and(|o| std::mem::discriminant(&approval(o)) == std::mem::discriminant(&state));
    if !protected || same {
        return;
    }
    let path = Path::new("metadata").child("annotations").key(APPROVAL);
    let must = format!("protected groups must have approval annotation \"{APPROVAL}\"");
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    match state {
        Approval::Missing => e.required(&path, &format!("{must}, {see}")),
        Approval::Malformed => {
            let value = crd.metadata.annotation(APPROVAL).unwrap_or_default();
            let detail = format!("{must} with either a URL or a reason starting with \"unapproved\", {see}");
            e.invalid(&path, value, &detail);
        }
        Approval::Bypassed | Approval::Given => {}
    }
}

fn stored_versions(crd: &CustomResourceDefinition) -> &[String] {
    crd.status.as_ref().and_then(|s| s.stored_versions.as_deref()).unwrap_or_default()
}

fn validate_stored_versions(crd: &CustomResourceDefinition, e: &mut ErrorList) {
    let path = Path::new("status").child("storedVersions");
    let stored = stored_versions(crd);
    if stored.is_empty() {
        return e.invalid(&path, json!(stored), "must have at least one stored version");
    }
    let versions = &crd.spec.versions;
    for v in versions.iter().filter(|v| v.storage && !stored.contains(&v.name)) {
        e.invalid(&path, json!(stored), &format!("must have the storage version {}", v.name));
    }
    for (i, s) in stored.iter().enumerate().filter(|(_, s)| versions.iter().all(|v| v.name != **s)) {
        let detail = format!(
            "missing from spec.versions; {s} was previously a storage version, and must remain in spec.versions \
             until a \
             storage migration ensures no data remains persisted in {s} and removes {s} from status.storedVersions"
        );
        e.invalid(&path.index(i), s.as_str(), &detail);
    }
}

fn validate_status(crd: &CustomResourceDefinition, e: &mut ErrorList) {
    if let Some(n) = crd.status.as_ref().and_then(|s| s.accepted_names.as_ref()) {
        validate_names(n, &Path::new("status").child("acceptedNames"), e);
    }
}

/// The storage version is one that objects are stored in.
fn note_storage_version(crd: &mut CustomResourceDefinition) {
    let Some(name) = crd.spec.versions.iter().find(|v| v.storage).map(|v| v.name.clone()) else { return };
    let stored = crd.status.get_or_insert_default().stored_versions.get_or_insert_default();
    if !stored.contains(&name) {
        stored.push(name);
    }
}

fn is_known_format(kind: &str, format: &str) -> bool {
    match kind {
        "" | "string" => STRING_FORMATS.contains(&format.replace('-', "").as_str()),
        "integer" => matches!(format, "int32" | "int64"),
        "number" => matches!(format, "float" | "double"),
        _ => false,
    }
}

/// Warnings of unknown formats, in the schema's order, and of sets of what is no scalar, sorted.
fn schema_warnings(spec: &CustomResourceDefinitionSpec) -> (Vec<String>, BTreeSet<String>) {
    let (mut formats, mut sets) = (Vec::new(), BTreeSet::new());
    let view = View::of(spec);
    for (_, schema) in view.schemas() {
        visit(schema, &mut |s| {
            let (kind, format) = (text(&s.type_), text(&s.format));
            if !format.is_empty() && !is_known_format(kind, format) {
                formats.push(format!("unrecognized format {format:?}"));
            }
            let items = item_schema(s).map(|i| text(&i.type_)).unwrap_or_default();
            if s.x_kubernetes_list_type.as_deref() == Some("set") && matches!(items, "object" | "array") {
                sets.insert(format!(
                    "x-kubernetes-list-type: set for items of type {items:?} is not supported by server-side apply \
                     or CEL \
                     validation rules"
                ));
            }
        });
    }
    (formats, sets)
}

impl Kind for CustomResourceDefinition {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["crd", "crds"],
        categories: &["api-extensions"],
        subresources: &[STATUS],
        unconditional_update: false,
        ..ResourceInfo::new(
            "apiextensions.k8s.io",
            "v1",
            "CustomResourceDefinition",
            "customresourcedefinitions",
            "customresourcedefinition",
            false,
        )
    };

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }

    fn from_json(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    fn from_value(value: Value) -> Result<Self, serde_json::Error> {
        serde_json::from_value(value)
    }

    fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(&Kind::to_value(self)).expect("values have string keys only")
    }

    fn to_value(&self) -> Value {
        let mut value = serde_json::to_value(self).expect("API types have string keys only");
        let versions = value.pointer_mut("/spec/versions").and_then(Value::as_array_mut);
        let schemas = versions.into_iter().flatten().filter_map(|v| v.pointer_mut("/schema/openAPIV3Schema"));
        schemas.for_each(bounds::shorten_bounds);
        value
    }

    fn set_defaults(&mut self) {
        let names = &mut self.spec.names;
        if text(&names.singular).is_empty() && !names.kind.is_empty() {
            names.singular = Some(names.kind.to_lowercase());
        }
        if text(&names.list_kind).is_empty() && !names.kind.is_empty() {
            names.list_kind = Some(format!("{}List", names.kind));
        }
        let conversion = self
            .spec
            .conversion
            .get_or_insert_with(|| CustomResourceConversion { strategy: "None".to_owned(), webhook: None });
        let client = conversion.webhook.as_mut().and_then(|w| w.client_config.as_mut());
        if let Some(s) = client.and_then(|c| c.service.as_mut()) {
            s.port.get_or_insert(443);
        }
        if stored_versions(self).is_empty() {
            note_storage_version(self);
        }
    }

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.status = Some(Default::default());
        self.metadata.generation = Some(1);
        note_storage_version(self);
    }

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        // Upstream's rule of the name comes with the metadata's; it needs the spec, though.
        let name = self.metadata.name();
        if !name.is_empty() && name != format!("{}.{}", self.spec.names.plural, self.spec.group) {
            let path = Path::new("metadata").child("name");
            e.invalid(&path, name, "must be spec.names.plural+\".\"+spec.group");
        }
        e.extend(spec::validate(&self.spec, Rules::STRICT));
        validate_status(self, &mut e);
        validate_stored_versions(self, &mut e);
        validate_approval(self, None, &mut e);
        validate_preserve(self, None, &mut e);
        e
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        let (formats, sets) = schema_warnings(&self.spec);
        let (old_formats, old_sets) = old.map(|o| schema_warnings(&o.spec)).unwrap_or_default();
        let formats = formats.into_iter().filter(|f| !old_formats.contains(f));
        formats.chain(sets.into_iter().filter(|s| !old_sets.contains(s))).collect()
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        self.status.clone_from(&old.status);
        let changed = !semantically_equal(&self.spec, &old.spec);
        bump_generation(&mut self.metadata, &old.metadata, changed);
        note_storage_version(self);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut e = spec::validate_update(&self.spec, &old.spec, is_established(old));
        validate_status(self, &mut e);
        validate_stored_versions(self, &mut e);
        validate_approval(self, Some(old), &mut e);
        validate_preserve(self, Some(old), &mut e);
        e
    }

    // Upstream means to reset metadata here, too, and does not; clients rely on that.
    fn prepare_for_status_update(&mut self, old: &Self, _: &Context<'_>) {
        self.spec.clone_from(&old.spec);
    }

    fn validate_status_update(&self, _: &Self) -> ErrorList {
        let mut e = ErrorList::default();
        validate_status(self, &mut e);
        e
    }

    fn expressions(&self, old: Option<&Self>) -> Vec<Expression> {
        let mut known: Vec<ValidationRule> = Vec::new();
        if let Some(old) = old {
            for (_, schema) in View::of(&old.spec).schemas() {
                visit(schema, &mut |s| known.extend(s.x_kubernetes_validations.iter().flatten().cloned()));
            }
        }
        let stored = |r: &ValidationRule, message: bool| {
            known.iter().any(|k| if message { k.message_expression == r.message_expression } else { k.rule == r.rule })
        };
        let mut out = Vec::new();
        for (path, schema) in View::of(&self.spec).schemas() {
            open_api::expressions(schema, &stored, None, &path, &mut out);
        }
        out
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["spec"]])
    }
}

fn validate_preserve(crd: &CustomResourceDefinition, old: Option<&CustomResourceDefinition>, e: &mut ErrorList) {
    let on = |c: &CustomResourceDefinition| c.spec.preserve_unknown_fields == Some(true);
    if on(crd) && !old.is_some_and(on) {
        let detail =
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        e.invalid(&Path::new("spec").child("preserveUnknownFields"), true, detail);
    }
}

#[cfg(test)]
mod tests;
