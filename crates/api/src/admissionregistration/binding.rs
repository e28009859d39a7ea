//! MutatingAdmissionPolicyBinding and ValidatingAdmissionPolicyBinding: which requests a policy judges, with which
//! parameters.

use super::match_rules::{default_match, validate_match};
use super::policy::{info, shown_param_ref, validate_param_ref};
use crate::apps::workload::bump_generation;
use crate::kind::{Column, Context, Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{Meta, semantically_equal};
use crate::meta::{names, table, text};
use k8s_openapi::api::admissionregistration::v1::{
    MatchResources, MutatingAdmissionPolicyBinding, ParamRef, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

const ACTIONS: &[&str] = &["Audit", "Deny", "Warn"];
const COLUMNS: &[Column] = &[
    table::NAME,
    table::text_column("PolicyName", "The policy that is bound.", 0),
    table::text_column("ParamRef", "Its parameters.", 0),
    table::AGE,
];

/// What both kinds check. The last argument is what is looked at, and what errors call it.
fn validate_common(policy: &str, params: Option<&ParamRef>, matches: (Option<&MatchResources>, &str)) -> ErrorList {
    let mut e = ErrorList::default();
    let path = Path::new("spec");
    let at = path.child("policyName");
    if policy.is_empty() {
        e.required(&at, "");
    } else {
        names::push_invalid(&mut e, &at, policy, &names::dns1123_subdomain(policy, false));
    }
    if let Some(r) = params {
        validate_param_ref(r, &path.child("paramRef"), &mut e);
    }
    if let (Some(m), name) = matches {
        validate_match(m, &path.child(name), &mut e);
    }
    e
}

fn validate_actions(actions: &[String], path: &Path, errors: &mut ErrorList) {
    for (i, a) in actions.iter().enumerate() {
        if !ACTIONS.contains(&a.as_str()) {
            errors.not_supported(&path.index(i), a, ACTIONS);
        }
        if actions[..i].contains(a) {
            errors.duplicate(&path.index(i), a.as_str());
        }
    }
    let has = |name: &str| actions.iter().any(|a| a == name);
    if has("Deny") && has("Warn") {
        let detail = "must not contain both Deny and Warn (repeating the same validation failure information in the \
            API \
                      response and headers serves no purpose)";
        errors.invalid(path, json!(actions), detail);
    }
    if actions.is_empty() {
        errors.required(path, "at least one validation action is required");
    }
}

fn row(o: &impl Kind, policy: &str, params: Option<&ParamRef>, now: Timestamp) -> Vec<Value> {
    vec![o.meta().name().into(), policy.into(), shown_param_ref(params).into(), table::age(o.meta(), now).into()]
}

impl Kind for ValidatingAdmissionPolicyBinding {
    const INFO: ResourceInfo = info(
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
        "validatingadmissionpolicybinding",
    );
    const COLUMNS: &'static [Column] = COLUMNS;
    crate::kind_codec!();

    fn set_defaults(&mut self) {
        if let Some(m) = &mut self.spec.match_resources {
            default_match(m);
        }
    }

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.metadata.generation = Some(1);
    }

    fn validate(&self) -> ErrorList {
        let s = &self.spec;
        // The name is misspelled, as upstream's errors have it.
        let matches = (s.match_resources.as_ref(), "matchResouces");
        let mut e = validate_common(&s.policy_name, s.param_ref.as_ref(), matches);
        validate_actions(&s.validation_actions, &Path::new("spec").child("validationActions"), &mut e);
        e
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        let changed = !semantically_equal(&self.spec, &old.spec);
        bump_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        row(self, &self.spec.policy_name, self.spec.param_ref.as_ref(), now)
    }
}

impl Kind for MutatingAdmissionPolicyBinding {
    const INFO: ResourceInfo =
        info("MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings", "mutatingadmissionpolicybinding");
    const COLUMNS: &'static [Column] = COLUMNS;
    crate::kind_codec!();

    fn set_defaults(&mut self) {
        if let Some(m) = self.spec.as_mut().and_then(|s| s.match_resources.as_mut()) {
            default_match(m);
        }
    }

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.metadata.generation = Some(1);
    }

    fn validate(&self) -> ErrorList {
        let s = self.spec.clone().unwrap_or_default();
        validate_common(text(&s.policy_name), s.param_ref.as_ref(), (s.match_resources.as_ref(), "matchResources"))
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        let changed = !semantically_equal(&self.spec, &old.spec);
        bump_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let s = self.spec.clone().unwrap_or_default();
        row(self, text(&s.policy_name), s.param_ref.as_ref(), now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(spec: Value) -> ValidatingAdmissionPolicyBinding {
        let value = json!({"metadata": {"name": "b"}, "spec": spec});
        let mut b = ValidatingAdmissionPolicyBinding::from_value(value).unwrap();
        b.set_defaults();
        b
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn field_errors_generation_and_row() {
        let b = binding(json!({"policyName": "", "validationActions": ["Deny", "Warn", "Deny", "x"]}));
        assert_eq!(
            texts(&b.validate()),
            [
                "spec.policyName: Required value",
                "spec.validationActions[2]: Duplicate value: \"Deny\"",
                "spec.validationActions[3]: Unsupported value: \"x\": supported values: \"Audit\", \"Deny\", \"Warn\"",
                "spec.validationActions: Invalid value: [\"Deny\",\"Warn\",\"Deny\",\"x\"]: must not contain both \
                 Deny and \
                 Warn (repeating the same validation failure information in the API response and headers serves no \
                 purpose)",
            ]
        );
        let mut good = binding(json!({"policyName": "p", "validationActions": ["Deny"], "matchResources": {},
            "paramRef": {"name": "c", "namespace": "n", "parameterNotFoundAction": "Allow"}}));
        assert!(good.validate().is_empty(), "{:?}", good.validate());
        let cx = Context { now: Timestamp::UNIX_EPOCH, username: "" };
        good.prepare_for_create(&cx);
        let mut new = good.clone();
        new.spec.validation_actions = Vec::new();
        new.prepare_for_update(&good, &cx);
        assert_eq!(new.metadata.generation, Some(2));
        assert_eq!(
            texts(&new.validate_update(&good)),
            ["spec.validationActions: Required value: at least one validation action is required"]
        );
        assert_eq!(json!(good.cells(cx.now)), json!(["b", "p", "n/c", "<unknown>"]));
        assert_eq!(texts(&MutatingAdmissionPolicyBinding::default().validate()), ["spec.policyName: Required value"]);
    }
}
