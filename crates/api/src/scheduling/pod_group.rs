//! PodGroup: pods that are scheduled together (KEP-4671).
//!
//! Fields of features that are off by default are dropped when a group is written, as upstream does: composite groups,
//! a preemption policy of the group's own, claims that its pods share.

use crate::kind::{Context, Kind, ResourceInfo, STATUS};
use crate::meta::conditions::validate_conditions;
use crate::meta::field::{ErrorList, Path};
use crate::meta::{names, object};
use crate::scheduling::group::{Group, immutable};
use k8s_openapi::api::scheduling::v1beta1::{PodGroup, PodGroupSpec};

fn drop_disabled_fields(spec: &mut PodGroupSpec) {
    spec.parent_composite_pod_group_name = None;
    spec.preemption_policy = None;
    spec.resource_claims = None;
}

impl Kind for PodGroup {
    const INFO: ResourceInfo = ResourceInfo {
        subresources: &[STATUS],
        ..ResourceInfo::new("scheduling.k8s.io", "v1beta1", "PodGroup", "podgroups", "podgroup", true)
    };
    crate::kind_codec!();

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.status = None;
        drop_disabled_fields(&mut self.spec);
    }

    fn validate(&self) -> ErrorList {
        let mut errors = ErrorList::default();
        let path = Path::new("spec");
        if let Some(workload) = &self.spec.workload_ref {
            let path = path.child("workloadRef");
            let (name, at) = (&workload.workload_name, path.child("workloadName"));
            if name.is_empty() {
                errors.required(&at, "");
            } else {
                names::push_invalid(&mut errors, &at, name, &names::dns1123_subdomain(name, false));
            }
            let (name, at) = (&workload.template_name, path.child("templateName"));
            if name.is_empty() {
                errors.required(&at, "");
            } else {
                names::push_invalid(&mut errors, &at, name, &names::dns1123_label(name, false));
            }
        }
        Group::from(&self.spec).validate(&mut errors, &path);
        errors
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        self.status.clone_from(&old.status);
        drop_disabled_fields(&mut self.spec);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut errors = self.validate();
        let path = Path::new("spec");
        immutable(&mut errors, &path.child("workloadRef"), &self.spec.workload_ref, &old.spec.workload_ref);
        Group::from(&self.spec).validate_update(&Group::from(&old.spec), &mut errors, &path);
        errors
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context<'_>) {
        self.spec.clone_from(&old.spec);
        object::reset_for_status(&mut self.metadata, &old.metadata);
        if let Some(status) = &mut self.status {
            status.resource_claim_statuses = None;
        }
    }

    fn validate_status_update(&self, _: &Self) -> ErrorList {
        let conditions = self.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        validate_conditions(conditions, &Path::new("status").child("conditions"))
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["metadata"], &["spec"]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::{Value, json};

    fn group(spec: &Value) -> PodGroup {
        PodGroup::from_value(json!({"metadata": {"name": "g"}, "spec": spec})).unwrap()
    }

    fn texts(errors: &ErrorList) -> Vec<String> {
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn faults() {
        let gang = json!({"gang": {"minCount": 2}});
        let cases = [
            (json!({"schedulingPolicy": gang}), vec![]),
            (json!({"schedulingPolicy": {"basic": {}}}), vec![]),
            (
                json!({"schedulingPolicy": {}}),
                vec!["spec.schedulingPolicy: Invalid value: \"\": must specify one of: `basic`, `gang`"],
            ),
            (
                json!({"schedulingPolicy": {"basic": {}, "gang": {"minCount": -1}}}),
                vec![
                    "spec.schedulingPolicy: Invalid value: \"{basic, gang}\": must specify exactly one of: `basic`, \
                     `gang`",
                    "spec.schedulingPolicy.gang.minCount: Invalid value: -1: must be greater than or equal to 1",
                ],
            ),
            (
                json!({"schedulingPolicy": {"gang": {"minCount": 0}}, "disruptionMode": {},
                    "schedulingConstraints": {"topology": [{"key": ""}]}, "workloadRef": {"workloadName": "w", "templateName": ""}}),
                vec![
                    "spec.workloadRef.templateName: Required value",
                    "spec.schedulingPolicy.gang.minCount: Required value",
                    "spec.schedulingConstraints.topology[0].key: Required value",
                    "spec.disruptionMode: Invalid value: \"\": must specify one of: `single`, `all`",
                ],
            ),
            (
                json!({"schedulingPolicy": gang, "schedulingConstraints": {"topology": [{"key": "a"}, {"key": "b"}]}}),
                vec!["spec.schedulingConstraints.topology: Too many: 2: must have at most 1 items"],
            ),
        ];
        for (spec, want) in cases {
            assert_eq!(texts(&group(&spec).validate()), want, "{spec}");
        }
    }

    #[test]
    fn only_the_count_may_change() {
        let old = group(&json!({"schedulingPolicy": {"gang": {"minCount": 2}}, "priority": 5}));
        let more = group(&json!({"schedulingPolicy": {"gang": {"minCount": 3}}, "priority": 5}));
        assert_eq!(texts(&more.validate_update(&old)), Vec::<String>::new());
        let other = group(&json!({"schedulingPolicy": {"basic": {}}, "priority": 6}));
        assert_eq!(
            texts(&other.validate_update(&old)),
            [
                "spec.schedulingPolicy.basic: Invalid value: null: field is immutable",
                "spec.schedulingPolicy.gang: Invalid value: null: field cannot be cleared once set",
                "spec.priority: Invalid value: null: field is immutable",
            ]
        );
    }

    #[test]
    fn fields_of_features_that_are_off_are_dropped() {
        let cx = Context { now: Timestamp::UNIX_EPOCH, username: "" };
        let mut g = group(&json!({
            "schedulingPolicy": {"basic": {}}, "preemptionPolicy": "Never", "parentCompositePodGroupName": "p",
            "resourceClaims": [{"name": "c", "resourceClaimName": "c"}],
        }));
        g.status = Some(Default::default());
        g.prepare_for_create(&cx);
        assert_eq!(json!(g.spec), json!({"schedulingPolicy": {"basic": {}}}));
        assert!(g.status.is_none());
    }
}
