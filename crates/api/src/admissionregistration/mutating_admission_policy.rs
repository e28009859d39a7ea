//! MutatingAdmissionPolicy: CEL expressions that change objects on their way in.

use super::match_rules::{REINVOCATION_POLICIES, condition_expressions, default_match, validate_choice};
use super::policy::{Common, info, shown_param_kind, validate_common, variable_expressions};
use crate::apps::workload::bump_generation;
use crate::kind::{Column, Context, Kind, ResourceInfo};
use crate::meta::expression::{Expression, Role};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{Meta, semantically_equal};
use crate::meta::{table, text};
use k8s_openapi::api::admissionregistration::v1::{MutatingAdmissionPolicy, MutatingAdmissionPolicySpec, Mutation};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

const PATCH_TYPES: &[&str] = &["ApplyConfiguration", "JSONPatch"];

fn common(s: &MutatingAdmissionPolicySpec) -> Common<'_> {
    Common {
        failure_policy: s.failure_policy.as_deref(),
        param_kind: s.param_kind.as_ref(),
        constraints: s.match_constraints.as_ref(),
        conditions: s.match_conditions.as_deref().unwrap_or_default(),
        variables: s.variables.as_deref().unwrap_or_default(),
    }
}

/// The two fields of a mutation: name, whether it is there, its expression.
fn patches(m: &Mutation) -> [(&'static str, bool, &str); 2] {
    let apply = m.apply_configuration.as_ref();
    let json = m.json_patch.as_ref();
    [
        ("applyConfiguration", apply.is_some(), apply.map(|a| text(&a.expression)).unwrap_or_default()),
        ("jsonPatch", json.is_some(), json.map(|j| text(&j.expression)).unwrap_or_default()),
    ]
}

fn validate_mutation(m: &Mutation, path: &Path, errors: &mut ErrorList) {
    let kind = m.patch_type.as_str();
    if kind.is_empty() {
        return errors.required(&path.child("patchType"), "");
    }
    let Some(chosen) = PATCH_TYPES.iter().position(|t| *t == kind) else {
        return errors.not_supported(&path.child("patchType"), kind, PATCH_TYPES);
    };
    let both = patches(m);
    let (field, there, expression) = both[chosen];
    let at = path.child(field);
    if !there {
        errors.required(&at, &format!("must be specified when patchType is {kind}"));
    } else if expression.trim().is_empty() {
        errors.required(&at.child("expression"), "");
    }
    let (field, there, _) = both[1 - chosen];
    if there {
        let detail = format!("must not be specified when patchType is {kind}");
        errors.invalid(&path.child(field), format!("{{{field}}}"), &detail);
    }
}

fn validate_policy(p: &MutatingAdmissionPolicy, conditions: bool) -> ErrorList {
    let mut e = ErrorList::default();
    let spec = p.spec.clone().unwrap_or_default();
    let path = Path::new("spec");
    validate_common(&common(&spec), conditions, &path, &mut e);
    let mutations = spec.mutations.as_deref().unwrap_or_default();
    if mutations.is_empty() {
        e.required(&path.child("mutations"), "mutations must contain at least one item");
    }
    for (i, m) in mutations.iter().enumerate() {
        validate_mutation(m, &path.child("mutations").index(i), &mut e);
    }
    let reinvocation = spec.reinvocation_policy.as_deref().filter(|r| !r.is_empty());
    validate_choice(reinvocation, REINVOCATION_POLICIES, true, &path.child("reinvocationPolicy"), &mut e);
    e
}

/// Whether an update cannot have made match conditions invalid.
fn same_conditions(new: &MutatingAdmissionPolicy, old: &MutatingAdmissionPolicy) -> bool {
    let of = |p: &MutatingAdmissionPolicy| p.spec.clone().map(|s| (s.param_kind, s.match_conditions));
    semantically_equal(&of(new), &of(old))
}

impl Kind for MutatingAdmissionPolicy {
    const INFO: ResourceInfo = info("MutatingAdmissionPolicy", "mutatingadmissionpolicies", "mutatingadmissionpolicy");
    const COLUMNS: &'static [Column] = &[
        table::NAME,
        table::column("Mutations", "integer", "How many mutations the policy has."),
        table::text_column("ParamKind", "The kind of its parameters.", 0),
        table::AGE,
    ];
    crate::kind_codec!();

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        spec.failure_policy.get_or_insert_with(|| "Fail".to_owned());
        if let Some(m) = &mut spec.match_constraints {
            default_match(m);
        }
    }

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.metadata.generation = Some(1);
    }

    fn validate(&self) -> ErrorList {
        validate_policy(self, true)
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        let changed = !semantically_equal(&self.spec, &old.spec);
        bump_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        validate_policy(self, !same_conditions(self, old))
    }

    fn expressions(&self, old: Option<&Self>) -> Vec<Expression> {
        let spec = self.spec.clone().unwrap_or_default();
        let before = old.and_then(|o| o.spec.clone()).unwrap_or_default();
        let params = spec.param_kind.is_some();
        let path = Path::new("spec");
        let mut out = Vec::new();
        if !old.is_some_and(|old| same_conditions(self, old)) {
            let at = path.child("matchConditions");
            out.extend(condition_expressions(common(&spec).conditions, common(&before).conditions, params, &at));
        }
        out.extend(variable_expressions(common(&spec).variables, params, &path.child("variables")));
        for (i, m) in spec.mutations.iter().flatten().enumerate() {
            let Some(chosen) = PATCH_TYPES.iter().position(|t| *t == m.patch_type) else { continue };
            let (field, _, expression) = patches(m)[chosen];
            if expression.trim().is_empty() {
                continue;
            }
            out.push(Expression {
                path: path.child("mutations").index(i).child(field).child("expression"),
                text: expression.trim().to_owned(),
                role: if chosen == 0 { Role::ApplyConfiguration } else { Role::JsonPatch },
                params,
                authorizer: true,
                stored: before.mutations.iter().flatten().any(|o| patches(o)[chosen].2 == expression),
            });
        }
        out
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let spec = self.spec.clone().unwrap_or_default();
        vec![
            self.metadata.name().into(),
            spec.mutations.map_or(0, |m| m.len()).into(),
            shown_param_kind(spec.param_kind.as_ref()).into(),
            table::age(&self.metadata, now).into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy(mutations: Value) -> MutatingAdmissionPolicy {
        let mut p = MutatingAdmissionPolicy::from_value(json!({"metadata": {"name": "p"}, "spec": {
            "reinvocationPolicy": "Never", "mutations": mutations, "matchConstraints": {"resourceRules": [
                {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]}}}))
        .unwrap();
        p.set_defaults();
        p
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn field_errors_row_and_expressions() {
        assert_eq!(
            texts(&MutatingAdmissionPolicy::default().validate()),
            [
                "spec.failurePolicy: Required value",
                "spec.matchConstraints: Required value",
                "spec.mutations: Required value: mutations must contain at least one item",
                "spec.reinvocationPolicy: Required value",
            ]
        );
        let p = policy(json!([{"patchType": ""}, {"patchType": "x"}, {"patchType": "JSONPatch",
            "applyConfiguration": {"expression": "Object{}"}}, {"patchType": "ApplyConfiguration",
            "applyConfiguration": {"expression": " "}},
            {"patchType": "JSONPatch", "jsonPatch": {"expression": "[]"}}]));
        assert_eq!(
            texts(&p.validate()),
            [
                "spec.mutations[0].patchType: Required value",
                "spec.mutations[1].patchType: Unsupported value: \"x\": supported values: \"ApplyConfiguration\", \
                 \"JSONPatch\"",
                "spec.mutations[2].jsonPatch: Required value: must be specified when patchType is JSONPatch",
                "spec.mutations[2].applyConfiguration: Invalid value: \"{applyConfiguration}\": must not be \
                 specified when \
                 patchType is JSONPatch",
                "spec.mutations[3].applyConfiguration.expression: Required value",
            ]
        );
        let expressions = p.expressions(None);
        assert_eq!(expressions.len(), 1);
        assert_eq!(
            (expressions[0].path.as_str(), &expressions[0].role),
            ("spec.mutations[4].jsonPatch.expression", &Role::JsonPatch)
        );
        assert_eq!(json!(p.cells(Timestamp::UNIX_EPOCH)), json!(["p", 5, "<unset>", "<unknown>"]));
    }
}
