//! ValidatingAdmissionPolicy: CEL rules that judge requests.

use super::match_rules::{condition_expressions, default_match, validate_choice};
use super::policy::{Common, info, shown_param_kind, validate_common, variable_expressions};
use crate::apps::workload::bump_generation;
use crate::kind::{Column, Context, Kind, ResourceInfo, STATUS};
use crate::meta::conditions::validate_conditions;
use crate::meta::expression::{Expression, Role};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{Meta, reset_for_status, semantically_equal};
use crate::meta::{names, table, text};
use k8s_openapi::api::admissionregistration::v1::{
    AuditAnnotation, ValidatingAdmissionPolicy, ValidatingAdmissionPolicySpec, Validation,
};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

const REASONS: &[&str] = &["Forbidden", "Invalid", "RequestEntityTooLarge", "Unauthorized"];
const ANNOTATIONS_MAX: usize = 20;
/// Longest expression of an audit annotation, in bytes.
const ANNOTATION_EXPRESSION_MAX: usize = 5 << 10;

fn common(s: &ValidatingAdmissionPolicySpec) -> Common<'_> {
    Common {
        failure_policy: s.failure_policy.as_deref(),
        param_kind: s.param_kind.as_ref(),
        constraints: s.match_constraints.as_ref(),
        conditions: s.match_conditions.as_deref().unwrap_or_default(),
        variables: s.variables.as_deref().unwrap_or_default(),
    }
}

fn validate_validation(v: &Validation, path: &Path, errors: &mut ErrorList) {
    if v.expression.trim().is_empty() {
        errors.required(&path.child("expression"), "expression is not specified");
    }
    let blank = |s: &str| !s.is_empty() && s.trim().is_empty();
    let (message, expression) = (text(&v.message), text(&v.message_expression));
    if blank(expression) {
        errors.invalid(&path.child("messageExpression"), expression, "must be non-empty if specified");
    }
    if blank(message) {
        errors.invalid(&path.child("message"), message, "message must be non-empty if specified");
    } else if message.trim().contains(['\n', '\r']) {
        errors.invalid(&path.child("message"), message, "message must not contain line breaks");
    }
    validate_choice(v.reason.as_deref(), REASONS, false, &path.child("reason"), errors);
}

fn validate_annotation(a: &AuditAnnotation, name: &str, path: &Path, errors: &mut ErrorList) {
    let at = path.child("key");
    if name.is_empty() {
        errors.invalid(&at, a.key.as_str(), "requires metadata.name be non-empty");
    } else {
        let key = format!("{name}/{}", a.key);
        names::push_invalid(errors, &at, &key, &names::qualified_name(&key));
    }
    let at = path.child("valueExpression");
    let expression = a.value_expression.trim();
    if expression.is_empty() {
        errors.required(&at, "valueExpression is not specified");
    } else if expression.len() > ANNOTATION_EXPRESSION_MAX {
        errors.required(&at, &format!("must not exceed {ANNOTATION_EXPRESSION_MAX} bytes in length"));
    }
}

fn validate_policy(p: &ValidatingAdmissionPolicy, conditions: bool) -> ErrorList {
    let mut e = ErrorList::default();
    let spec = p.spec.clone().unwrap_or_default();
    let path = Path::new("spec");
    validate_common(&common(&spec), conditions, &path, &mut e);
    let validations = spec.validations.as_deref().unwrap_or_default();
    let annotations = spec.audit_annotations.as_deref().unwrap_or_default();
    let (at_validations, at_annotations) = (path.child("validations"), path.child("auditAnnotations"));
    if validations.is_empty() && annotations.is_empty() {
        let detail = "validations or auditAnnotations must contain at least one item";
        e.required(&at_validations, detail);
        e.required(&at_annotations, detail);
    }
    for (i, v) in validations.iter().enumerate() {
        validate_validation(v, &at_validations.index(i), &mut e);
    }
    if annotations.len() > ANNOTATIONS_MAX {
        let detail = format!("must not have more than {ANNOTATIONS_MAX} auditAnnotations");
        e.invalid(&at_annotations, json!(annotations), &detail);
    }
    for (i, a) in annotations.iter().enumerate() {
        let path = at_annotations.index(i);
        validate_annotation(a, p.metadata.name(), &path, &mut e);
        if annotations[..i].iter().any(|o| o.key == a.key) {
            e.duplicate(&path.child("key"), a.key.as_str());
        }
    }
    e
}

/// Whether an update cannot have made match conditions invalid.
fn same_conditions(new: &ValidatingAdmissionPolicy, old: &ValidatingAdmissionPolicy) -> bool {
    let of = |p: &ValidatingAdmissionPolicy| p.spec.clone().map(|s| (s.param_kind, s.match_conditions));
    semantically_equal(&of(new), &of(old))
}

fn expressions(p: &ValidatingAdmissionPolicy, old: Option<&ValidatingAdmissionPolicy>) -> Vec<Expression> {
    let spec = p.spec.clone().unwrap_or_default();
    let before = old.and_then(|o| o.spec.clone()).unwrap_or_default();
    let params = spec.param_kind.is_some();
    let path = Path::new("spec");
    let mut out = Vec::new();
    if !old.is_some_and(|old| same_conditions(p, old)) {
        let at = path.child("matchConditions");
        out.extend(condition_expressions(common(&spec).conditions, common(&before).conditions, params, &at));
    }
    out.extend(variable_expressions(common(&spec).variables, params, &path.child("variables")));
    let mut add = |path: Path, text: &str, role: Role, authorizer: bool, stored: bool| {
        if !text.trim().is_empty() {
            out.push(Expression { path, text: text.to_owned(), role, params, authorizer, stored });
        }
    };
    let stored: Vec<Validation> = before.validations.unwrap_or_default();
    for (i, v) in spec.validations.iter().flatten().enumerate() {
        let path = path.child("validations").index(i);
        let known = stored.iter().any(|o| o.expression == v.expression);
        add(path.child("expression"), &v.expression, Role::Validation, true, known);
        let known = stored.iter().any(|o| o.message_expression == v.message_expression);
        add(path.child("messageExpression"), text(&v.message_expression), Role::Message, false, known);
    }
    let stored = before.audit_annotations.unwrap_or_default();
    for (i, a) in spec.audit_annotations.iter().flatten().enumerate() {
        let at = path.child("auditAnnotations").index(i).child("valueExpression");
        let known = stored.iter().any(|o| o.value_expression == a.value_expression);
        if a.value_expression.trim().len() <= ANNOTATION_EXPRESSION_MAX {
            add(at, &a.value_expression, Role::AuditAnnotation, true, known);
        }
    }
    out
}

impl Kind for ValidatingAdmissionPolicy {
    const INFO: ResourceInfo = ResourceInfo {
        subresources: &[STATUS],
        ..info("ValidatingAdmissionPolicy", "validatingadmissionpolicies", "validatingadmissionpolicy")
    };
    const COLUMNS: &'static [Column] = &[
        table::NAME,
        table::column("Validations", "integer", "How many rules the policy has."),
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
        self.status = Some(Default::default());
        self.metadata.generation = Some(1);
    }

    fn validate(&self) -> ErrorList {
        validate_policy(self, true)
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        self.status.clone_from(&old.status);
        let changed = !semantically_equal(&self.spec, &old.spec);
        bump_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        validate_policy(self, !same_conditions(self, old))
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context<'_>) {
        self.spec.clone_from(&old.spec);
        reset_for_status(&mut self.metadata, &old.metadata);
    }

    fn validate_status_update(&self, _: &Self) -> ErrorList {
        let mut e = ErrorList::default();
        let status = self.status.clone().unwrap_or_default();
        let path = Path::new("status");
        let warnings = status.type_checking.and_then(|t| t.expression_warnings).unwrap_or_default();
        for (i, w) in warnings.iter().enumerate() {
            let path = path.child("typeChecking").child("expressionWarnings").index(i);
            if w.warning.is_empty() {
                e.required(&path.child("warning"), "");
            }
            if w.field_ref.trim().is_empty() {
                e.required(&path.child("fieldRef"), "");
            }
        }
        e.extend(validate_conditions(&status.conditions.unwrap_or_default(), &path.child("conditions")));
        e
    }

    fn expressions(&self, old: Option<&Self>) -> Vec<Expression> {
        expressions(self, old)
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let spec = self.spec.clone().unwrap_or_default();
        vec![
            self.metadata.name().into(),
            spec.validations.map_or(0, |v| v.len()).into(),
            shown_param_kind(spec.param_kind.as_ref()).into(),
            table::age(&self.metadata, now).into(),
        ]
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["metadata"], &["spec"]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(spec: Value) -> ValidatingAdmissionPolicy {
        let value = json!({"metadata": {"name": "p.x"}, "spec": spec});
        let mut p = ValidatingAdmissionPolicy::from_value(value).unwrap();
        p.set_defaults();
        p
    }

    fn good() -> Value {
        json!({"matchConstraints": {"resourceRules": [{"operations": ["CREATE"], "apiGroups": [""],
            "apiVersions": ["v1"], "resources": ["pods"]}]}, "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "matchConditions": [{"name": "c", "expression": "true"}], "variables": [{"name": "v", "expression": "1"}],
            "validations": [{"expression": "variables.v == 1", "messageExpression": "'m'"}],
            "auditAnnotations": [{"key": "k", "valueExpression": "'v'"}]})
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn field_errors() {
        assert_eq!(
            texts(&policy(json!({})).validate()),
            [
                "spec.matchConstraints: Required value",
                "spec.validations: Required value: validations or auditAnnotations must contain at least one item",
                "spec.auditAnnotations: Required value: validations or auditAnnotations must contain at least one item",
            ]
        );
        assert!(policy(good()).validate().is_empty(), "{:?}", policy(good()).validate());
        let mut bad = good();
        bad["matchConstraints"]["resourceRules"] = json!([]);
        bad["variables"] = json!([{"name": "in", "expression": ""}]);
        bad["validations"] = json!([{"expression": " ", "messageExpression": " ", "message": "a\nb", "reason": "x"}]);
        bad["auditAnnotations"] = json!([{"key": "k", "valueExpression": ""}, {"key": "k", "valueExpression": "1"}]);
        assert_eq!(
            texts(&policy(bad).validate()),
            [
                "spec.matchConstraints.resourceRules: Required value",
                "spec.variables[0].name: Invalid value: \"in\": name is not a valid CEL identifier",
                "spec.variables[0].expression: Required value: expression is not specified",
                "spec.validations[0].expression: Required value: expression is not specified",
                "spec.validations[0].messageExpression: Invalid value: \" \": must be non-empty if specified",
                "spec.validations[0].message: Invalid value: \"a\\nb\": message must not contain line breaks",
                "spec.validations[0].reason: Unsupported value: \"x\": supported values: \"Forbidden\", \"Invalid\", \
                 \"RequestEntityTooLarge\", \"Unauthorized\"",
                "spec.auditAnnotations[0].valueExpression: Required value: valueExpression is not specified",
                "spec.auditAnnotations[1].key: Duplicate value: \"k\"",
            ]
        );
    }

    #[test]
    fn expressions_to_compile() {
        let p = policy(good());
        let seen: Vec<(String, bool)> =
            p.expressions(None).into_iter().map(|e| (e.path.to_string(), e.authorizer)).collect();
        let want = [
            ("spec.matchConditions[0].expression", true),
            ("spec.variables[0].expression", true),
            ("spec.validations[0].expression", true),
            ("spec.validations[0].messageExpression", false),
            ("spec.auditAnnotations[0].valueExpression", true),
        ];
        assert_eq!(seen, want.map(|(p, a)| (p.to_owned(), a)));
        assert!(p.expressions(None).iter().all(|e| e.params && !e.stored));
        assert_eq!(p.expressions(Some(&p)).len(), 4);
    }

    #[test]
    fn status_and_row() {
        let cx = Context { now: Timestamp::UNIX_EPOCH, username: "" };
        let mut old = policy(good());
        old.prepare_for_create(&cx);
        let mut new = old.clone();
        new.status = ValidatingAdmissionPolicy::from_value(json!({"status": {"typeChecking": {"expressionWarnings":
            [{"fieldRef": " ", "warning": ""}]}}}))
        .unwrap()
        .status;
        assert_eq!(
            texts(&new.validate_status_update(&old)),
            [
                "status.typeChecking.expressionWarnings[0].warning: Required value",
                "status.typeChecking.expressionWarnings[0].fieldRef: Required value",
            ]
        );
        new.prepare_for_update(&old, &cx);
        assert_eq!((&new.status, new.metadata.generation), (&old.status, Some(1)));
        assert_eq!(json!(new.cells(cx.now)), json!(["p.x", 1, "v1/ConfigMap", "<unknown>"]));
    }
}
