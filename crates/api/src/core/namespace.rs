//! Namespace: a scope for names, and what is deleted together.

use crate::kind::{Column, Context, Kind, ResourceInfo, STATUS, Subresource, Verb};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{Meta, validate_finalizers};
use crate::meta::{names, table, text};
use k8s_openapi::api::core::v1::{Namespace, NamespaceSpec, NamespaceStatus};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

/// The finalizer by which the namespace controller empties a namespace before it goes.
pub const FINALIZER: &str = "kubernetes";
/// The label every namespace carries with its own name.
pub const NAME_LABEL: &str = "kubernetes.io/metadata.name";

fn set_name_label(namespace: &mut Namespace) {
    if let Some(name) = namespace.metadata.name.clone().filter(|n| !n.is_empty()) {
        namespace.metadata.labels.get_or_insert_default().insert(NAME_LABEL.to_owned(), name);
    }
}

fn validate_spec_finalizers(namespace: &Namespace, path_of: impl Fn(usize) -> Path) -> ErrorList {
    let mut errors = ErrorList::default();
    for (i, f) in namespace.spec.iter().flat_map(|s| s.finalizers.iter().flatten()).enumerate() {
        let path = path_of(i);
        errors.extend(validate_finalizers(std::slice::from_ref(f), &path));
        if !f.contains('/') && !matches!(f.as_str(), FINALIZER | "orphan" | "foregroundDeletion") {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            errors.invalid(&path, f.as_str(), detail);
        }
    }
    errors
}

/// Whether nothing in `spec.finalizers` holds the namespace any more.
#[must_use]
pub fn is_finalized(namespace: &Namespace) -> bool {
    namespace.spec.as_ref().and_then(|s| s.finalizers.as_ref()).is_none_or(Vec::is_empty)
}

impl Kind for Namespace {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["ns"],
        verbs: &[Verb::Create, Verb::Delete, Verb::Get, Verb::List, Verb::Patch, Verb::Update, Verb::Watch],
        subresources: &[Subresource { name: "finalize", gvk: None, verbs: &[Verb::Update] }, STATUS],
        ..ResourceInfo::new("", "v1", "Namespace", "namespaces", "namespace", false)
    };
    const COLUMNS: &'static [Column] =
        &[table::NAME, table::text_column("Status", "The status of the namespace", 0), table::AGE];
    crate::kind_codec!();

    fn set_defaults(&mut self) {
        set_name_label(self);
        let phase = &mut self.status.get_or_insert_default().phase;
        if text(phase).is_empty() {
            *phase = Some("Active".to_owned());
        }
    }
    fn prepare_for_create(&mut self, _cx: &Context<'_>) {
        // Again, because a generated name is known only now.
        set_name_label(self);
        self.status = Some(NamespaceStatus { phase: Some("Active".to_owned()), conditions: None });
        let finalizers = self.spec.get_or_insert_with(NamespaceSpec::default).finalizers.get_or_insert_default();
        if !finalizers.iter().any(|f| f == FINALIZER) {
            finalizers.push(FINALIZER.to_owned());
        }
    }
    fn validate(&self) -> ErrorList {
        validate_spec_finalizers(self, |_| Path::new("spec").child("finalizers"))
    }
    fn prepare_for_update(&mut self, old: &Self, _cx: &Context<'_>) {
        set_name_label(self);
        self.spec = old.spec.clone();
        self.status = old.status.clone();
    }
    fn validate_update(&self, _old: &Self) -> ErrorList {
        ErrorList::default()
    }
    fn prepare_for_status_update(&mut self, old: &Self, _cx: &Context<'_>) {
        self.spec = old.spec.clone();
    }
    fn validate_status_update(&self, _old: &Self) -> ErrorList {
        let mut errors = ErrorList::default();
        let phase = self.status.as_ref().map(|s| text(&s.phase)).unwrap_or_default();
        let path = Path::new("status").child("Phase");
        if self.metadata.is_deleting() {
            if phase != "Terminating" {
                let detail = "may only be 'Terminating' if `deletionTimestamp` is not empty";
                errors.invalid(&path, phase, detail);
            }
        } else if phase != "Active" {
            errors.invalid(&path, phase, "may only be 'Active' if `deletionTimestamp` is empty");
        }
        errors
    }
    fn prepare_for_subresource_update(&mut self, subresource: &str, old: &Self, cx: &Context<'_>) {
        match subresource {
            "finalize" => self.status = old.status.clone(),
            _ => self.prepare_for_status_update(old, cx),
        }
    }
    fn validate_subresource_update(&self, subresource: &str, old: &Self) -> ErrorList {
        match subresource {
            "finalize" => validate_spec_finalizers(self, |i| Path::new("spec").child("finalizers").index(i)),
            _ => self.validate_status_update(old),
        }
    }
    fn validate_name(name: &str, prefix: bool) -> Vec<String> {
        names::dns1123_label(name, prefix)
    }
    fn selectable_fields(&self) -> Vec<(&'static str, String)> {
        let phase = self.status.as_ref().map(|s| text(&s.phase)).unwrap_or_default();
        vec![("name", self.metadata.name().to_owned()), ("status.phase", phase.to_owned())]
    }
    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let phase = self.status.as_ref().map(|s| text(&s.phase)).unwrap_or_default();
        vec![self.metadata.name().into(), phase.into(), table::age(&self.metadata, now).into()]
    }
    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["spec"]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_new_namespace_is_active_and_held() {
        let mut n =
            <Namespace as Kind>::from_value(json!({"metadata": {"name": "a"}, "status": {"phase": "x"}})).unwrap();
        n.set_defaults();
        n.prepare_for_create(&Context { now: Timestamp::UNIX_EPOCH, username: "" });
        let v = Kind::to_value(&n);
        assert_eq!(v["metadata"]["labels"], json!({"kubernetes.io/metadata.name": "a"}));
        assert_eq!(v["spec"], json!({"finalizers": ["kubernetes"]}));
        assert_eq!(v["status"], json!({"phase": "Active"}));
        assert!(!is_finalized(&n));
    }

    #[test]
    fn the_phase_follows_deletion() {
        let n = <Namespace as Kind>::from_value(json!({"status": {"phase": "Terminating"}})).unwrap();
        assert_eq!(
            n.validate_status_update(&n).0[0].to_string(),
            "status.Phase: Invalid value: \"Terminating\": may only be 'Active' if `deletionTimestamp` is empty"
        );
        let bad = <Namespace as Kind>::from_value(json!({"spec": {"finalizers": ["x"]}})).unwrap();
        assert_eq!(
            bad.validate_subresource_update("finalize", &n).0[0].to_string(),
            "spec.finalizers[0]: Invalid value: \"x\": name is neither a standard finalizer name nor is it fully qualified"
        );
    }
}
