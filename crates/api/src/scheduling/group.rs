//! What PodGroups and the templates of Workloads have in common: policy, constraints, what may be disrupted.
//!
//! Upstream has these rules as markers on its types (KEP-5073), whose validators have their own words.

use crate::meta::field::{ErrorList, Path};
use crate::meta::{labels, names};
use crate::scheduling::priority_class::HIGHEST_USER_PRIORITY;
use k8s_openapi::api::scheduling::v1beta1::{
    DisruptionMode, PodGroupSchedulingConstraints, PodGroupSchedulingPolicy, PodGroupSpec, PodGroupTemplate,
};
use serde_json::Value;

/// Adds the error of a field that may not change, as declared rules word it.
pub(super) fn immutable<T: PartialEq>(errors: &mut ErrorList, path: &Path, new: &T, old: &T) {
    if new != old {
        errors.invalid(path, Value::Null, "field is immutable");
    }
}

/// Adds the error where not exactly one of the members is set.
fn exactly_one(errors: &mut ErrorList, path: &Path, members: &[(&str, bool)]) {
    let all: Vec<String> = members.iter().map(|m| format!("`{}`", m.0)).collect();
    let set: Vec<&str> = members.iter().filter(|m| m.1).map(|m| m.0).collect();
    match set.as_slice() {
        [_] => {}
        [] => errors.invalid(path, "", &format!("must specify one of: {}", all.join(", "))),
        _ => {
            let shown = format!("{{{}}}", set.join(", "));
            errors.invalid(path, shown, &format!("must specify exactly one of: {}", all.join(", ")));
        }
    }
}

fn policy(errors: &mut ErrorList, policy: &PodGroupSchedulingPolicy, path: &Path) {
    exactly_one(errors, path, &[("basic", policy.basic.is_some()), ("gang", policy.gang.is_some())]);
    if let Some(gang) = &policy.gang {
        let path = path.child("gang").child("minCount");
        match gang.min_count {
            0 => errors.required(&path, ""),
            n if n < 0 => errors.invalid(&path, n, "must be greater than or equal to 1"),
            _ => {}
        }
    }
}

fn policy_update(errors: &mut ErrorList, new: &PodGroupSchedulingPolicy, old: &PodGroupSchedulingPolicy, path: &Path) {
    immutable(errors, &path.child("basic"), &new.basic, &old.basic);
    match (&old.gang, &new.gang) {
        (None, Some(_)) => errors.invalid(&path.child("gang"), Value::Null, "field cannot be set once created"),
        (Some(_), None) => errors.invalid(&path.child("gang"), Value::Null, "field cannot be cleared once set"),
        _ => {}
    }
}

fn constraints(errors: &mut ErrorList, constraints: &PodGroupSchedulingConstraints, path: &Path) {
    let topology = constraints.topology.as_deref().unwrap_or_default();
    let path = path.child("topology");
    if topology.len() > 1 {
        errors.too_many(&path, topology.len(), 1);
        return;
    }
    for (i, constraint) in topology.iter().enumerate() {
        let path = path.index(i).child("key");
        if constraint.key.is_empty() {
            errors.required(&path, "");
        } else {
            labels::validate_label_key(&constraint.key, &path, errors);
        }
    }
}

/// A PodGroup or a template for some, as far as the same rules hold for both.
pub(super) struct Group<'a> {
    policy: &'a PodGroupSchedulingPolicy,
    constraints: Option<&'a PodGroupSchedulingConstraints>,
    disruption_mode: Option<&'a DisruptionMode>,
    priority_class_name: Option<&'a String>,
    priority: Option<i32>,
}

impl<'a> From<&'a PodGroupSpec> for Group<'a> {
    fn from(spec: &'a PodGroupSpec) -> Self {
        Self {
            policy: &spec.scheduling_policy,
            constraints: spec.scheduling_constraints.as_ref(),
            disruption_mode: spec.disruption_mode.as_ref(),
            priority_class_name: spec.priority_class_name.as_ref(),
            priority: spec.priority,
        }
    }
}

impl<'a> From<&'a PodGroupTemplate> for Group<'a> {
    fn from(template: &'a PodGroupTemplate) -> Self {
        Self {
            policy: &template.scheduling_policy,
            constraints: template.scheduling_constraints.as_ref(),
            disruption_mode: template.disruption_mode.as_ref(),
            priority_class_name: template.priority_class_name.as_ref(),
            priority: template.priority,
        }
    }
}

impl Group<'_> {
    /// Adds what is wrong with it.
    pub(super) fn validate(&self, errors: &mut ErrorList, path: &Path) {
        policy(errors, self.policy, &path.child("schedulingPolicy"));
        if let Some(c) = self.constraints {
            constraints(errors, c, &path.child("schedulingConstraints"));
        }
        if let Some(mode) = self.disruption_mode {
            let members = [("single", mode.single.is_some()), ("all", mode.all.is_some())];
            exactly_one(errors, &path.child("disruptionMode"), &members);
        }
        if let Some(class) = self.priority_class_name.filter(|c| !c.is_empty()) {
            let path = path.child("priorityClassName");
            names::push_invalid(errors, &path, class, &names::dns1123_subdomain(class, false));
        }
        if let Some(priority) = self.priority.filter(|p| *p > HIGHEST_USER_PRIORITY) {
            let detail = format!("must be less than or equal to {HIGHEST_USER_PRIORITY}");
            errors.invalid(&path.child("priority"), priority, &detail);
        }
    }

    /// Adds what may not have changed.
    pub(super) fn validate_update(&self, old: &Self, errors: &mut ErrorList, path: &Path) {
        policy_update(errors, self.policy, old.policy, &path.child("schedulingPolicy"));
        immutable(errors, &path.child("schedulingConstraints"), &self.constraints, &old.constraints);
        immutable(errors, &path.child("disruptionMode"), &self.disruption_mode, &old.disruption_mode);
        immutable(errors, &path.child("priorityClassName"), &self.priority_class_name, &old.priority_class_name);
        immutable(errors, &path.child("priority"), &self.priority, &old.priority);
    }
}
