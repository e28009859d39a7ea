//! ReplicationController: the elder of ReplicaSet, with a selector of plain labels.

use crate::apps::replica_set::{COLUMNS, LIMITS};
use crate::apps::workload;
use crate::core::pod::{default_pod_template, pod_template_warnings};
use crate::kind::{Column, Context, Kind, ResourceInfo, SCALE, STATUS};
use crate::meta::field::{ErrorList, Path};
use crate::meta::labels::{Selector, format_labels};
use crate::meta::table;
use k8s_openapi::api::core::v1::ReplicationController;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

impl Kind for ReplicationController {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["rc"],
        categories: &["all"],
        subresources: &[SCALE, STATUS],
        ..ResourceInfo::new("", "v1", "ReplicationController", "replicationcontrollers", "replicationcontroller", true)
    };
    const COLUMNS: &'static [Column] = COLUMNS;
    crate::kind_codec!(canonical: |r: &mut Self| {
        workload::canonicalize_template(r.spec.as_mut().and_then(|s| s.template.as_mut()))
    });

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        let labels = spec.template.as_ref().and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.clone());
        if let Some(labels) = labels.filter(|l| !l.is_empty()) {
            if spec.selector.as_ref().is_none_or(|s| s.is_empty()) {
                spec.selector = Some(labels.clone());
            }
            if self.metadata.labels.as_ref().is_none_or(|l| l.is_empty()) {
                self.metadata.labels = Some(labels);
            }
        }
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
        let spec = self.spec.clone().unwrap_or_default();
        let path = Path::new("spec");
        workload::nonnegative(&mut e, &path.child("minReadySeconds"), i64::from(spec.min_ready_seconds.unwrap_or(0)));
        let selector = spec.selector.as_ref().filter(|s| !s.is_empty()).map(Selector::from_set);
        if selector.is_none() {
            e.required(&path.child("selector"), "");
        }
        workload::nonnegative(&mut e, &path.child("replicas"), i64::from(spec.replicas.unwrap_or(0)));
        let template = path.child("template");
        workload::validate_template(
            &mut e,
            spec.template.as_ref(),
            selector.as_ref(),
            "ReplicationController",
            &template,
        );
        e
    }

    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        let mut out = if old.is_none() { workload::name_warnings(&self.metadata) } else { Vec::new() };
        if let Some(new) = self.spec.as_ref().and_then(|s| s.template.as_ref()) {
            let before = old.and_then(|o| o.spec.as_ref()).and_then(|s| s.template.as_ref());
            out.extend(pod_template_warnings(new, before, &Path::new("spec").child("template")));
        }
        out
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        self.status.clone_from(&old.status);
        let changed = self.spec != old.spec;
        workload::bump_generation(&mut self.metadata, &old.metadata, changed);
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
        let spec = self.spec.clone().unwrap_or_default();
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
            format_labels(spec.selector.as_ref()).into(),
        ]
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["spec"]])
    }

    fn desired_replicas(&self) -> Option<i32> {
        Some(self.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selector_and_labels_come_from_the_template() {
        let mut r = ReplicationController::from_value(json!({"spec": {"template": {
            "metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
        }}}))
        .unwrap();
        r.set_defaults();
        assert_eq!(r.spec.as_ref().unwrap().selector, r.metadata.labels);
        assert!(r.validate().is_empty(), "{:?}", r.validate());
        let none = ReplicationController::default();
        let texts: Vec<String> = none.validate().0.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["spec.selector: Required value", "spec.template: Required value"]);
    }
}
