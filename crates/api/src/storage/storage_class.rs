//! StorageClass: how volumes of a sort are provisioned.

use crate::core::pod::deprecated_node_label;
use crate::kind::{Column, Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::labels::validate_label_key;
use crate::meta::object::{Meta, immutable};
use crate::meta::{table, text};
use crate::storage::{same_map, validate_parameters, validate_provisioner};
use k8s_openapi::api::core::v1::TopologySelectorTerm;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Marks the class of claims that name none.
pub const IS_DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
/// The annotation's older name, still honoured.
pub const IS_DEFAULT_BETA: &str = "storageclass.beta.kubernetes.io/is-default-class";

const RECLAIM_POLICIES: &[&str] = &["Delete", "Retain"];
const BINDING_MODES: &[&str] = &["Immediate", "WaitForFirstConsumer"];

/// Whether the class with this metadata is marked as the default.
#[must_use]
pub fn is_default(meta: &ObjectMeta) -> bool {
    [IS_DEFAULT, IS_DEFAULT_BETA].iter().any(|a| meta.annotation(a) == Some("true"))
}

type Requirements<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

fn validate_topology<'a>(term: &'a TopologySelectorTerm, path: &Path, errors: &mut ErrorList) -> Requirements<'a> {
    let mut seen = Requirements::new();
    for (i, r) in term.match_label_expressions.iter().flatten().enumerate() {
        let path = path.child("matchLabelExpressions").index(i);
        if seen.contains_key(r.key.as_str()) {
            errors.duplicate(&path.child("key"), r.key.as_str());
        }
        let values_path = path.child("values");
        if r.values.is_empty() {
            errors.required(&values_path, "");
        }
        let mut values = BTreeSet::new();
        for (j, v) in r.values.iter().enumerate() {
            if !values.insert(v.as_str()) {
                errors.duplicate(&values_path.index(j), v.as_str());
            }
        }
        validate_label_key(&r.key, &path.child("key"), errors);
        seen.insert(r.key.as_str(), values);
    }
    seen
}

fn validate_topologies(terms: &[TopologySelectorTerm], errors: &mut ErrorList) {
    let path = Path::new("allowedTopologies");
    // An empty term counts as equal to each term there is: that is how upstream refuses it.
    let mut before: Vec<Requirements<'_>> = vec![Requirements::new(); terms.len()];
    for (i, term) in terms.iter().enumerate() {
        let path = path.index(i);
        let found = validate_topology(term, &path, errors);
        for _ in before.iter().filter(|b| **b == found) {
            errors.duplicate(&path.child("matchLabelExpressions"), "");
        }
        before.push(found);
    }
}

impl Kind for StorageClass {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["sc"],
        ..ResourceInfo::new("storage.k8s.io", "v1", "StorageClass", "storageclasses", "storageclass", false)
    };
    const COLUMNS: &'static [Column] = &[
        table::NAME,
        table::text_column("Provisioner", "The type of the provisioner.", 0),
        table::text_column("ReclaimPolicy", "What becomes of a released volume.", 0),
        table::text_column("VolumeBindingMode", "When volumes are provisioned and bound.", 0),
        table::text_column("AllowVolumeExpansion", "Whether volumes can grow.", 0),
        table::AGE,
    ];
    crate::kind_codec!();

    fn set_defaults(&mut self) {
        self.reclaim_policy.get_or_insert_with(|| "Delete".to_owned());
        self.volume_binding_mode.get_or_insert_with(|| "Immediate".to_owned());
    }

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        validate_provisioner(&self.provisioner, &Path::new("provisioner"), &mut e);
        validate_parameters(self.parameters.as_ref(), true, &Path::new("parameters"), &mut e);
        let policy = text(&self.reclaim_policy);
        if !policy.is_empty() && !RECLAIM_POLICIES.contains(&policy) {
            e.not_supported(&Path::new("reclaimPolicy"), policy, RECLAIM_POLICIES);
        }
        let path = Path::new("volumeBindingMode");
        match self.volume_binding_mode.as_deref() {
            None => e.required(&path, ""),
            Some(mode) if !BINDING_MODES.contains(&mode) => e.not_supported(&path, mode, BINDING_MODES),
            Some(_) => {}
        }
        validate_topologies(self.allowed_topologies.as_deref().unwrap_or_default(), &mut e);
        e
    }

    fn warnings(&self, _: Option<&Self>) -> Vec<String> {
        let mut out = Vec::new();
        for (i, term) in self.allowed_topologies.iter().flatten().enumerate() {
            for (j, r) in term.match_label_expressions.iter().flatten().enumerate() {
                if let Some(text) = deprecated_node_label(&r.key) {
                    out.push(format!("allowedTopologies[{i}].matchLabelExpressions[{j}].key: {text}"));
                }
            }
        }
        out
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut e = self.validate();
        if !same_map(self.parameters.as_ref(), old.parameters.as_ref()) {
            e.forbidden(&Path::new("parameters"), "updates to parameters are forbidden.");
        }
        if self.provisioner != old.provisioner {
            e.forbidden(&Path::new("provisioner"), "updates to provisioner are forbidden.");
        }
        if self.reclaim_policy != old.reclaim_policy {
            e.forbidden(&Path::new("reclaimPolicy"), "updates to reclaimPolicy are forbidden.");
        }
        let mode = |c: &Self| json!(c.volume_binding_mode);
        immutable(&mut e, &Path::new("volumeBindingMode"), &mode(self), &mode(old));
        e
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let mark = if is_default(&self.metadata) { " (default)" } else { "" };
        vec![
            format!("{}{mark}", self.metadata.name()).into(),
            self.provisioner.as_str().into(),
            self.reclaim_policy.as_deref().unwrap_or("Delete").into(),
            self.volume_binding_mode.as_deref().unwrap_or("Immediate").into(),
            self.allow_volume_expansion.unwrap_or(false).into(),
            table::age(&self.metadata, now).into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(value: Value) -> StorageClass {
        let mut c = StorageClass::from_value(value).unwrap();
        c.set_defaults();
        c
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_and_row() {
        let c = class(json!({"metadata": {"name": "fast", "annotations": {IS_DEFAULT: "true"}}, "provisioner": "a/b"}));
        assert!(c.validate().is_empty());
        assert_eq!(
            json!(c.cells(Timestamp::UNIX_EPOCH)),
            json!(["fast (default)", "a/b", "Delete", "Immediate", false, "<unknown>"])
        );
    }

    #[test]
    fn field_errors_come_together() {
        let c = class(json!({"parameters": {"": "x"}, "reclaimPolicy": "Recycle", "volumeBindingMode": "Soon",
            "allowedTopologies": [
                {"matchLabelExpressions": [{"key": "z", "values": []}, {"key": "z", "values": ["a", "a"]}]},
                {"matchLabelExpressions": [{"key": "y", "values": ["b"]}]},
                {"matchLabelExpressions": [{"key": "y", "values": ["b"]}]}]}));
        assert_eq!(
            texts(&c.validate()),
            [
                "provisioner: Required value",
                "parameters: Invalid value: \"\": field can not be empty.",
                "reclaimPolicy: Unsupported value: \"Recycle\": supported values: \"Delete\", \"Retain\"",
                "volumeBindingMode: Unsupported value: \"Soon\": supported values: \"Immediate\", \
                 \"WaitForFirstConsumer\"",
                "allowedTopologies[0].matchLabelExpressions[0].values: Required value",
                "allowedTopologies[0].matchLabelExpressions[1].key: Duplicate value: \"z\"",
                "allowedTopologies[0].matchLabelExpressions[1].values[1]: Duplicate value: \"a\"",
                "allowedTopologies[2].matchLabelExpressions: Duplicate value: \"\"",
            ]
        );
        assert!(
            texts(&class(json!({"provisioner": "a b"})).validate())[0]
                .starts_with("provisioner: Invalid value: \"a b\": name part must consist of alphanumeric characters")
        );
    }

    #[test]
    fn only_metadata_topologies_and_growth_change() {
        let old = class(json!({"provisioner": "a", "parameters": {"k": "v"}}));
        let mut new = class(json!({"provisioner": "b", "reclaimPolicy": "Retain",
            "volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": true}));
        assert_eq!(
            texts(&new.validate_update(&old)),
            [
                "parameters: Forbidden: updates to parameters are forbidden.",
                "provisioner: Forbidden: updates to provisioner are forbidden.",
                "reclaimPolicy: Forbidden: updates to reclaimPolicy are forbidden.",
                "volumeBindingMode: Invalid value: \"WaitForFirstConsumer\": field is immutable",
            ]
        );
        new = old.clone();
        new.allow_volume_expansion = Some(true);
        assert!(new.validate_update(&old).is_empty());
    }

    #[test]
    fn renamed_node_labels_are_warned_of() {
        let key = "failure-domain.beta.kubernetes.io/zone";
        let c = class(json!({"provisioner": "a",
            "allowedTopologies": [{"matchLabelExpressions": [{"key": key, "values": ["a"]}]}]}));
        assert_eq!(
            c.warnings(None),
            ["allowedTopologies[0].matchLabelExpressions[0].key: deprecated since v1.17; use \
              \"topology.kubernetes.io/zone\" instead"]
        );
    }
}
