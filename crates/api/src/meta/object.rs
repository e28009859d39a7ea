//! Object metadata: its rules on create and update (`ValidateObjectMeta`, `ValidateObjectMetaUpdate`) and the questions
//! every component asks of it.

use crate::meta::field::{ErrorList, Path};
use crate::meta::{labels, names};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta, OwnerReference};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Most bytes all annotation keys and values may have together.
pub const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;
/// Finalizer of a foreground deletion.
pub const FINALIZER_FOREGROUND: &str = "foregroundDeletion";
/// Finalizer that asks the garbage collector to orphan dependents.
pub const FINALIZER_ORPHAN: &str = "orphan";
/// Longest field manager name.
pub const FIELD_MANAGER_MAX: usize = 128;
/// What an immutable field that changed is told.
pub const IMMUTABLE: &str = "field is immutable";

/// A rule for names: the name and whether it is a generateName prefix; answers what is wrong.
pub type NameRule<'a> = &'a dyn Fn(&str, bool) -> Vec<String>;

/// The questions every component asks of an object's metadata. Absent strings read as empty.
pub trait Meta {
    /// `metadata.name`.
    fn name(&self) -> &str;
    /// `metadata.namespace`, empty for cluster-scoped objects.
    fn namespace(&self) -> &str;
    /// `metadata.uid`.
    fn uid(&self) -> &str;
    /// `metadata.resourceVersion`.
    fn resource_version(&self) -> &str;
    /// A label's value.
    fn label(&self, key: &str) -> Option<&str>;
    /// An annotation's value.
    fn annotation(&self, key: &str) -> Option<&str>;
    /// The labels; empty where there are none.
    fn labels_or_empty(&self) -> &BTreeMap<String, String>;
    /// Finalizers; empty where there are none.
    fn finalizers_or_empty(&self) -> &[String];
    /// Whether deletion has begun.
    fn is_deleting(&self) -> bool;
    /// The owner that controls the object.
    fn controller_of(&self) -> Option<&OwnerReference>;
    /// Whether the object with `uid` controls this one.
    fn is_controlled_by(&self, uid: &str) -> bool;
    /// `namespace/name`, or the name alone without a namespace.
    fn key(&self) -> String;
}

static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

impl Meta for ObjectMeta {
    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }
    fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or_default()
    }
    fn uid(&self) -> &str {
        self.uid.as_deref().unwrap_or_default()
    }
    fn resource_version(&self) -> &str {
        self.resource_version.as_deref().unwrap_or_default()
    }
    fn label(&self, key: &str) -> Option<&str> {
        self.labels.as_ref()?.get(key).map(String::as_str)
    }
    fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }
    fn labels_or_empty(&self) -> &BTreeMap<String, String> {
        self.labels.as_ref().unwrap_or(&NO_LABELS)
    }
    fn finalizers_or_empty(&self) -> &[String] {
        self.finalizers.as_deref().unwrap_or_default()
    }
    fn is_deleting(&self) -> bool {
        self.deletion_timestamp.is_some()
    }
    fn controller_of(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().flatten().find(|r| r.controller == Some(true))
    }
    fn is_controlled_by(&self, uid: &str) -> bool {
        self.controller_of().is_some_and(|r| r.uid == uid)
    }
    fn key(&self) -> String {
        match self.namespace() {
            "" => self.name().to_owned(),
            namespace => format!("{namespace}/{}", self.name()),
        }
    }
}

/// The owner reference a controller puts on what it makes (`NewControllerRef`): controlling, blocking owner deletion.
#[must_use]
pub fn controller_ref(owner: &ObjectMeta, api_version: &str, kind: &str) -> OwnerReference {
    OwnerReference {
        api_version: api_version.to_owned(),
        block_owner_deletion: Some(true),
        controller: Some(true),
        kind: kind.to_owned(),
        name: owner.name().to_owned(),
        uid: owner.uid().to_owned(),
    }
}

/// Splits `group/version`; the group of a bare `v1` is empty.
#[must_use]
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// Field errors of the metadata of a new object. Names must have been generated already.
#[must_use]
pub fn validate_create(meta: &ObjectMeta, namespaced: bool, name_rule: NameRule<'_>) -> ErrorList {
    validate_create_at(meta, namespaced, name_rule, &Path::new("metadata"))
}

/// As [`validate_create`] for metadata that is not at `metadata`.
#[must_use]
pub fn validate_create_at(meta: &ObjectMeta, namespaced: bool, name_rule: NameRule<'_>, path: &Path) -> ErrorList {
    let mut errors = ErrorList::default();
    if let Some(prefix) = meta.generate_name.as_deref().filter(|p| !p.is_empty()) {
        names::push_invalid(&mut errors, &path.child("generateName"), prefix, &name_rule(prefix, true));
    }
    if meta.name().is_empty() {
        errors.required(&path.child("name"), "name or generateName is required");
    } else {
        names::push_invalid(&mut errors, &path.child("name"), meta.name(), &name_rule(meta.name(), false));
    }
    let (namespace, namespace_path) = (meta.namespace(), path.child("namespace"));
    match (namespaced, namespace.is_empty()) {
        (true, true) => errors.required(&namespace_path, ""),
        (true, false) => {
            names::push_invalid(&mut errors, &namespace_path, namespace, &names::dns1123_label(namespace, false));
        }
        (false, false) => errors.forbidden(&namespace_path, "not allowed on this type"),
        (false, true) => {}
    }
    if let Some(generation) = meta.generation.filter(|g| *g < 0) {
        errors.invalid(&path.child("generation"), generation, "must be greater than or equal to 0");
    }
    errors.extend(labels::validate_labels(meta.labels.as_ref(), &path.child("labels")));
    errors.extend(validate_annotations(meta.annotations.as_ref(), &path.child("annotations")));
    errors.extend(validate_owner_references(meta.owner_references.as_deref(), &path.child("ownerReferences")));
    errors.extend(validate_finalizers(meta.finalizers_or_empty(), &path.child("finalizers")));
    errors.extend(validate_managed_fields(meta.managed_fields.as_deref(), &path.child("managedFields")));
    errors
}

/// Field errors of the metadata of a changed object.
#[must_use]
pub fn validate_update(new: &ObjectMeta, old: &ObjectMeta) -> ErrorList {
    let path = Path::new("metadata");
    let mut errors = ErrorList::default();
    if old.is_deleting() {
        let mut extra: Vec<&String> =
            new.finalizers_or_empty().iter().filter(|f| !old.finalizers_or_empty().contains(f)).collect();
        extra.sort();
        extra.dedup();
        if !extra.is_empty() {
            let list = extra.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", ");
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{list}}}"
            );
            errors.forbidden(&path.child("finalizers"), &detail);
        }
    }
    if new.resource_version().is_empty() {
        errors.invalid(&path.child("resourceVersion"), "", "must be specified for an update");
    }
    if new.generation.unwrap_or(0) < old.generation.unwrap_or(0) {
        errors.invalid(&path.child("generation"), new.generation.unwrap_or(0), "must not be decremented");
    }
    immutable(&mut errors, &path.child("name"), &json!(new.name()), &json!(old.name()));
    immutable(&mut errors, &path.child("namespace"), &json!(new.namespace()), &json!(old.namespace()));
    immutable(&mut errors, &path.child("uid"), &json!(new.uid()), &json!(old.uid()));
    immutable(
        &mut errors,
        &path.child("creationTimestamp"),
        &json!(new.creation_timestamp),
        &json!(old.creation_timestamp),
    );
    immutable(
        &mut errors,
        &path.child("deletionTimestamp"),
        &json!(new.deletion_timestamp),
        &json!(old.deletion_timestamp),
    );
    immutable(
        &mut errors,
        &path.child("deletionGracePeriodSeconds"),
        &json!(new.deletion_grace_period_seconds),
        &json!(old.deletion_grace_period_seconds),
    );
    errors.extend(labels::validate_labels(new.labels.as_ref(), &path.child("labels")));
    errors.extend(validate_annotations(new.annotations.as_ref(), &path.child("annotations")));
    errors.extend(validate_owner_references(new.owner_references.as_deref(), &path.child("ownerReferences")));
    errors.extend(validate_managed_fields(new.managed_fields.as_deref(), &path.child("managedFields")));
    errors
}

/// Puts back the metadata that a write to the status subresource may not change (`metav1.ResetObjectMetaForStatus`).
/// Managed fields stay, because they record the write.
pub fn reset_for_status(new: &mut ObjectMeta, old: &ObjectMeta) {
    new.deletion_timestamp.clone_from(&old.deletion_timestamp);
    new.generation = old.generation;
    new.labels.clone_from(&old.labels);
    new.annotations.clone_from(&old.annotations);
    new.finalizers.clone_from(&old.finalizers);
    new.owner_references.clone_from(&old.owner_references);
}

/// Adds `field is immutable` where the values differ.
pub fn immutable(errors: &mut ErrorList, path: &Path, new: &Value, old: &Value) {
    if new != old {
        errors.invalid(path, new.clone(), IMMUTABLE);
    }
}

/// Whether two values mean the same: absent and empty lists do.
#[must_use]
pub fn semantically_equal<T: PartialEq + Serialize>(a: &T, b: &T) -> bool {
    fn prune(value: Value) -> Value {
        match value {
            Value::Object(fields) => fields
                .into_iter()
                .map(|(k, v)| (k, prune(v)))
                .filter(|(_, v)| !v.is_null() && v.as_array().is_none_or(|a| !a.is_empty()))
                .collect(),
            Value::Array(items) => items.into_iter().map(prune).collect(),
            other => other,
        }
    }
    a == b || prune(json!(a)) == prune(json!(b))
}

/// What differs, one line per field, for the person who reads the error; long lists are cut.
pub(crate) fn differences(old: &Value, new: &Value, at: &str) -> String {
    const MOST: usize = 20;
    fn walk(old: &Value, new: &Value, at: &str, out: &mut Vec<String>) {
        match (old, new) {
            _ if old == new || out.len() >= MOST => {}
            (Value::Object(o), Value::Object(n)) => {
                let keys: std::collections::BTreeSet<&String> = o.keys().chain(n.keys()).collect();
                for k in keys {
                    walk(o.get(k).unwrap_or(&Value::Null), n.get(k).unwrap_or(&Value::Null), &format!("{at}.{k}"), out);
                }
            }
            (Value::Array(o), Value::Array(n)) if o.len() == n.len() => {
                for (i, (o, n)) in o.iter().zip(n).enumerate() {
                    walk(o, n, &format!("{at}[{i}]"), out);
                }
            }
            _ => out.push(format!("- {at}: {old}\n+ {at}: {new}")),
        }
    }
    let mut lines = Vec::new();
    walk(old, new, at, &mut lines);
    lines.join("\n")
}

/// Field errors of annotations.
#[must_use]
pub fn validate_annotations(annotations: Option<&BTreeMap<String, String>>, path: &Path) -> ErrorList {
    let mut errors = ErrorList::default();
    let mut total = 0;
    for (k, v) in annotations.into_iter().flatten() {
        total += k.len() + v.len();
        // Keys follow the rule of label keys, except that the prefix may have capitals.
        names::push_invalid(&mut errors, path, k, &names::qualified_name(&k.to_lowercase()));
    }
    if total > ANNOTATIONS_MAX_BYTES {
        errors.too_long(path, ANNOTATIONS_MAX_BYTES);
    }
    errors
}

fn validate_owner_references(references: Option<&[OwnerReference]>, path: &Path) -> ErrorList {
    let mut errors = ErrorList::default();
    let mut first_controller: Option<String> = None;
    for (i, r) in references.unwrap_or_default().iter().enumerate() {
        let at = path.index(i);
        let (group, version) = split_api_version(&r.api_version);
        if !r.api_version.is_empty() && (version.is_empty() || version.contains('/')) {
            let detail = "must be <group>/<version> or <version>";
            errors.invalid(&at.child("apiVersion"), r.api_version.as_str(), detail);
        }
        for (field, value) in [("apiVersion", &r.api_version), ("kind", &r.kind), ("name", &r.name), ("uid", &r.uid)] {
            if value.is_empty() {
                errors.required(&at.child(field), "must not be empty");
            }
        }
        if group.is_empty() && version == "v1" && r.kind == "Event" {
            errors.invalid(&at, json!(r), "/v1, Kind=Event is disallowed from being an owner");
        }
        if r.controller == Some(true) {
            let this = format!("{}/{}", r.kind, r.name);
            match &first_controller {
                None => first_controller = Some(this),
                Some(first) => errors.invalid(
                    path,
                    json!(references),
                    &format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                    ),
                ),
            }
        }
    }
    errors
}

/// Field errors of a finalizer list.
#[must_use]
pub fn validate_finalizers(finalizers: &[String], path: &Path) -> ErrorList {
    let mut errors = ErrorList::default();
    for f in finalizers {
        names::push_invalid(&mut errors, path, f, &names::qualified_name(f));
    }
    let has = |name: &str| finalizers.iter().any(|f| f == name);
    if has(FINALIZER_ORPHAN) && has(FINALIZER_FOREGROUND) {
        errors.invalid(path, json!(finalizers), "finalizer orphan and foregroundDeletion cannot be both set");
    }
    errors
}

/// Field errors of finalizers without a domain that are none of Kubernetes' own. Definitions and custom resources may
/// have them.
#[must_use]
pub fn validate_known_finalizers(meta: &ObjectMeta) -> ErrorList {
    let mut errors = ErrorList::default();
    let path = Path::new("metadata");
    for (i, f) in meta.finalizers_or_empty().iter().enumerate() {
        if !f.contains('/') && !matches!(f.as_str(), "kubernetes" | FINALIZER_ORPHAN | FINALIZER_FOREGROUND) {
            errors.invalid(
                &path.child("finalizers").index(i),
                f.as_str(),
                "name is neither a standard finalizer name nor is it fully qualified",
            );
        }
    }
    errors
}

fn validate_managed_fields(entries: Option<&[ManagedFieldsEntry]>, path: &Path) -> ErrorList {
    let mut errors = ErrorList::default();
    for (i, e) in entries.unwrap_or_default().iter().enumerate() {
        let path = path.index(i);
        let operation = e.operation.as_deref().unwrap_or_default();
        if !matches!(operation, "Apply" | "Update") {
            errors.invalid(&path.child("operation"), operation, "must be `Apply` or `Update`");
        }
        if let Some(t) = e.fields_type.as_deref().filter(|t| !t.is_empty() && *t != "FieldsV1") {
            errors.invalid(&path.child("fieldsType"), t, "must be `FieldsV1`");
        }
        errors.extend(validate_field_manager(e.manager.as_deref().unwrap_or_default(), &path.child("manager")));
        if e.subresource.as_deref().is_some_and(|s| s.len() > 256) {
            errors.too_long(&path.child("subresource"), 256);
        }
    }
    errors
}

/// Field errors of a field manager's name, also of the `fieldManager` query parameter.
#[must_use]
pub fn validate_field_manager(manager: &str, path: &Path) -> ErrorList {
    let mut errors = ErrorList::default();
    if manager.len() > FIELD_MANAGER_MAX {
        errors.too_long(path, FIELD_MANAGER_MAX);
    }
    for (i, c) in manager.char_indices().filter(|(_, c)| c.is_control()) {
        errors.invalid(path, manager, &format!("invalid character U+{:04X} (at position {i})", u32::from(c)));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(errors: &ErrorList) -> Vec<String> {
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn create_reports_everything_at_once() {
        let owner = |name: &str| OwnerReference {
            api_version: "apps/v1".into(),
            kind: "ReplicaSet".into(),
            name: name.into(),
            uid: "u".into(),
            controller: Some(true),
            ..Default::default()
        };
        let meta = ObjectMeta {
            namespace: Some("A".into()),
            finalizers: Some(vec!["x".into()]),
            owner_references: Some(vec![owner("a"), owner("b")]),
            ..Default::default()
        };
        let found = texts(&validate_create(&meta, true, &names::dns1123_subdomain));
        assert_eq!(found[0], "metadata.name: Required value: name or generateName is required");
        assert!(
            found[1].starts_with("metadata.namespace: Invalid value: \"A\": a lowercase RFC 1123 label must consist")
        );
        assert!(found[2].ends_with(
            "Only one reference can have Controller set to true. Found \"true\" in references for \
            ReplicaSet/a and ReplicaSet/b"
        ));
        assert_eq!(found.len(), 3);
        assert_eq!(
            texts(&validate_known_finalizers(&meta)),
            ["metadata.finalizers[0]: Invalid value: \"x\": name is neither a standard finalizer name nor is \
            it fully qualified"]
        );
    }

    #[test]
    fn update_keeps_identity() {
        let old = ObjectMeta {
            name: Some("a".into()),
            uid: Some("1".into()),
            generation: Some(2),
            deletion_timestamp: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
            )),
            ..Default::default()
        };
        let new = ObjectMeta {
            name: Some("b".into()),
            uid: Some("2".into()),
            finalizers: Some(vec!["a.b/c".into()]),
            ..Default::default()
        };
        assert_eq!(
            texts(&validate_update(&new, &old)),
            [
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new \
                 finalizers []string{\"a.b/c\"}",
                "metadata.resourceVersion: Invalid value: \"\": must be specified for an update",
                "metadata.generation: Invalid value: 0: must not be decremented",
                "metadata.name: Invalid value: \"b\": field is immutable",
                "metadata.uid: Invalid value: \"2\": field is immutable",
                "metadata.deletionTimestamp: Invalid value: null: field is immutable",
            ]
        );
    }

    #[test]
    fn annotations_are_bounded_together() {
        let big = BTreeMap::from([("a".to_owned(), "x".repeat(ANNOTATIONS_MAX_BYTES))]);
        let errors = validate_annotations(Some(&big), &Path::new("metadata").child("annotations"));
        assert_eq!(texts(&errors), ["metadata.annotations: Too long: may not be more than 262144 bytes"]);
    }
}
