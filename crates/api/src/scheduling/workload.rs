//! Workload: templates of the PodGroups that one application consists of (KEP-4671).

use crate::kind::{Context, Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::names;
use crate::scheduling::group::{Group, immutable};
use k8s_openapi::api::scheduling::v1beta1::{PodGroupTemplate, TypedLocalObjectReference, Workload};
use serde_json::json;

/// Templates of one Workload.
const TEMPLATES_MAX: usize = 8;

/// Fields of features that are off by default: composite groups, and what [`super::pod_group`] names.
fn drop_disabled_fields(workload: &mut Workload) {
    workload.spec.composite_pod_group_templates = None;
    for template in workload.spec.pod_group_templates.iter_mut().flatten() {
        template.preemption_policy = None;
        template.resource_claims = None;
    }
}

fn controller(errors: &mut ErrorList, reference: &TypedLocalObjectReference, path: &Path) {
    if let Some(group) = reference.api_group.as_ref().filter(|g| !g.is_empty()) {
        names::push_invalid(errors, &path.child("apiGroup"), group, &names::dns1123_subdomain(group, false));
    }
    for (field, value) in [("kind", &reference.kind), ("name", &reference.name)] {
        let path = path.child(field);
        if value.is_empty() {
            errors.required(&path, "");
        } else {
            names::push_invalid(errors, &path, value, &names::path_segment(value, false));
        }
    }
}

fn templates(workload: &Workload) -> &[PodGroupTemplate] {
    workload.spec.pod_group_templates.as_deref().unwrap_or_default()
}

impl Kind for Workload {
    const INFO: ResourceInfo =
        ResourceInfo::new("scheduling.k8s.io", "v1beta1", "Workload", "workloads", "workload", true);
    crate::kind_codec!();

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        drop_disabled_fields(self);
    }

    fn validate(&self) -> ErrorList {
        let mut errors = ErrorList::default();
        let spec = Path::new("spec");
        if let Some(reference) = &self.spec.controller_ref {
            controller(&mut errors, reference, &spec.child("controllerRef"));
        }
        let path = spec.child("podGroupTemplates");
        match templates(self) {
            [] => errors.invalid(&spec, "", "must specify one of: `podGroupTemplates`, `compositePodGroupTemplates`"),
            many if many.len() > TEMPLATES_MAX => errors.too_many(&path, many.len(), TEMPLATES_MAX),
            some => {
                for (i, template) in some.iter().enumerate() {
                    let at = path.index(i);
                    if some[..i].iter().any(|t| t.name == template.name) {
                        errors.duplicate(&at, json!({ "name": template.name }));
                    }
                    if template.name.is_empty() {
                        errors.required(&at.child("name"), "");
                    } else {
                        let wrong = names::dns1123_label(&template.name, false);
                        names::push_invalid(&mut errors, &at.child("name"), &template.name, &wrong);
                    }
                    Group::from(template).validate(&mut errors, &at);
                }
            }
        }
        errors
    }

    fn prepare_for_update(&mut self, _: &Self, _: &Context<'_>) {
        drop_disabled_fields(self);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut errors = self.validate();
        let spec = Path::new("spec");
        immutable(&mut errors, &spec.child("controllerRef"), &self.spec.controller_ref, &old.spec.controller_ref);
        let path = spec.child("podGroupTemplates");
        for (i, template) in templates(self).iter().enumerate() {
            match templates(old).iter().find(|t| t.name == template.name) {
                Some(before) => {
                    Group::from(template).validate_update(&Group::from(before), &mut errors, &path.index(i));
                }
                None => errors.forbidden(&path.index(i), "item may not be added"),
            }
        }
        for before in templates(old) {
            if !templates(self).iter().any(|t| t.name == before.name) {
                errors.forbidden(&path, "item may not be removed");
            }
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn workload(spec: &Value) -> Workload {
        Workload::from_value(json!({"metadata": {"name": "w"}, "spec": spec})).unwrap()
    }

    fn texts(errors: &ErrorList) -> Vec<String> {
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn templates_are_checked_and_stay() {
        let template =
            |name: &str, count: i32| json!({"name": name, "schedulingPolicy": {"gang": {"minCount": count}}});
        let old = workload(&json!({"podGroupTemplates": [template("a", 2)]}));
        assert_eq!(texts(&old.validate()), Vec::<String>::new());
        assert_eq!(
            texts(&workload(&json!({"controllerRef": {"kind": "", "name": "j"}})).validate()),
            [
                "spec.controllerRef.kind: Required value",
                "spec: Invalid value: \"\": must specify one of: `podGroupTemplates`, `compositePodGroupTemplates`",
            ]
        );
        let twice = workload(&json!({"podGroupTemplates": [template("a", 2), template("a", 0)]}));
        assert_eq!(
            texts(&twice.validate()),
            [
                "spec.podGroupTemplates[1]: Duplicate value: {\"name\":\"a\"}",
                "spec.podGroupTemplates[1].schedulingPolicy.gang.minCount: Required value",
            ]
        );
        let grown = workload(&json!({"podGroupTemplates": [template("a", 3)]}));
        assert_eq!(texts(&grown.validate_update(&old)), Vec::<String>::new());
        let other = workload(&json!({"podGroupTemplates": [template("b", 2)]}));
        assert_eq!(
            texts(&other.validate_update(&old)),
            [
                "spec.podGroupTemplates[0]: Forbidden: item may not be added",
                "spec.podGroupTemplates: Forbidden: item may not be removed",
            ]
        );
    }
}
