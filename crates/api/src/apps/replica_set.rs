//! ReplicaSet: keeps a number of equal pods running.

use super::workload;
use crate::core::pod::{default_pod_template, pod_template_warnings};
use crate::kind::{Column, Context, Kind, ResourceInfo, SCALE, STATUS};
use crate::meta::field::{ErrorList, Path};
use crate::meta::labels::{Selector, SelectorOptions, format_label_selector, validate_label_selector};
use crate::meta::{object, table};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// Columns of ReplicaSets and ReplicationControllers.
pub(crate) const COLUMNS: &[Column] = &[
    workload::NAME,
    workload::column("Desired", "integer", "How many pods are asked for."),
    workload::column("Current", "integer", "How many pods there are."),
    workload::column("Ready", "integer", "How many of them are ready."),
    workload::AGE,
    workload::CONTAINERS,
    workload::IMAGES,
    workload::SELECTOR,
];

/// Limits of the counts in the status of ReplicaSets and ReplicationControllers.
pub(crate) const LIMITS: &[(&str, &str, &str)] = &[
    ("fullyLabeledReplicas", "replicas", "status.replicas"),
    ("readyReplicas", "replicas", "status.replicas"),
    ("availableReplicas", "replicas", "status.replicas"),
    ("availableReplicas", "readyReplicas", "readyReplicas"),
];

impl Kind for ReplicaSet {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["rs"],
        categories: &["all"],
        subresources: &[SCALE, STATUS],
        ..ResourceInfo::new("apps", "v1", "ReplicaSet", "replicasets", "replicaset", true)
    };
    const COLUMNS: &'static [Column] = COLUMNS;
    crate::kind_codec!(canonical: |r: &mut Self| workload::canonicalize_template(r.spec.template.as_mut()));

    fn set_defaults(&mut self) {
        let spec = &mut self.spec;
        spec.replicas.get_or_insert(1);
        if let Some(t) = &mut spec.template {
            default_pod_template(t);
        }
    }

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.status = Some(Default::default());
        self.metadata.generation = Some(1);
    }

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        let spec = &self.spec;
        let path = Path::new("spec");
        workload::nonnegative(&mut e, &path.child("replicas"), i64::from(spec.replicas.unwrap_or(0)));
        workload::nonnegative(&mut e, &path.child("minReadySeconds"), i64::from(spec.min_ready_seconds.unwrap_or(0)));
        let at = path.child("selector");
        e.extend(validate_label_selector(Some(&spec.selector), SelectorOptions::default(), &at));
        if workload::is_blank(&spec.selector) {
            e.invalid(&at, json!(spec.selector), "empty selector is invalid for deployment");
        }
        match Selector::from_label_selector(Some(&spec.selector)) {
            Err(_) => e.invalid(&at, json!(spec.selector), "invalid label selector"),
            Ok(selector) => {
                let template = path.child("template");
                workload::validate_template(&mut e, spec.template.as_ref(), Some(&selector), "ReplicaSet", &template);
            }
        }
        e
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        let mut out = if old.is_none() { workload::name_warnings(&self.metadata) } else { Vec::new() };
        if let Some(new) = self.spec.template.as_ref() {
            let before = old.and_then(|o| o.spec.template.as_ref());
            out.extend(pod_template_warnings(new, before, &Path::new("spec").child("template")));
        }
        out
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        self.status.clone_from(&old.status);
        let changed = self.spec != old.spec;
        workload::bump_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut e = self.validate();
        let selector = |r: &Self| json!(r.spec.selector);
        object::immutable(&mut e, &Path::new("spec").child("selector"), &selector(self), &selector(old));
        e
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context<'_>) {
        self.spec.clone_from(&old.spec);
        self.metadata.generation = old.metadata.generation;
    }

    fn validate_status_update(&self, _: &Self) -> ErrorList {
        let mut e = ErrorList::default();
        let s = self.status.clone().unwrap_or_default();
        workload::validate_counts(
            &mut e,
            &[
                ("replicas", Some(s.replicas)),
                ("fullyLabeledReplicas", s.fully_labeled_replicas),
                ("readyReplicas", s.ready_replicas),
                ("availableReplicas", s.available_replicas),
                ("terminatingReplicas", s.terminating_replicas),
            ],
            LIMITS,
        );
        let at = Path::new("status").child("observedGeneration");
        workload::nonnegative(&mut e, &at, s.observed_generation.unwrap_or(0));
        e
    }

    fn selectable_fields(&self) -> Vec<(&'static str, String)> {
        vec![("status.replicas", self.status.as_ref().map_or(0, |s| s.replicas).to_string())]
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let spec = &self.spec;
        let s = self.status.clone().unwrap_or_default();
        let [containers, images] = workload::container_cells(spec.template.as_ref());
        vec![
            self.metadata.name.clone().unwrap_or_default().into(),
            spec.replicas.unwrap_or(0).into(),
            s.replicas.into(),
            s.ready_replicas.unwrap_or(0).into(),
            table::age(&self.metadata, now).into(),
            containers,
            images,
            format_label_selector(Some(&spec.selector)).into(),
        ]
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["spec"]])
    }

    fn desired_replicas(&self) -> Option<i32> {
        Some(self.spec.replicas.unwrap_or(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_template_and_a_changed_selector_are_told() {
        let mut r = ReplicaSet::from_value(json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}})).unwrap();
        r.set_defaults();
        let texts: Vec<String> = r.validate().0.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["spec.template: Required value"]);
        let mut changed = r.clone();
        changed.spec.selector.match_labels = Some([("a".to_owned(), "c".to_owned())].into());
        let last = changed.validate_update(&r).0.pop().unwrap().to_string();
        assert!(last.ends_with("field is immutable"), "{last}");
        assert_eq!(r.cells(Timestamp::UNIX_EPOCH).len(), ReplicaSet::COLUMNS.len());
        assert_eq!(r.desired_replicas(), Some(1));
    }
}
