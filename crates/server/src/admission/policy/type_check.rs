//! Type checking of validating policies: their expressions against the schemas of what they are about. What does not
//! fit is a warning in the policy's status, and nothing else comes of it
//! (`k8s.io/apiserver/pkg/admission/plugin/policy/validating/typechecking.go`).

use crate::admission::expression;
use gantry_api::k8s_openapi::api::admissionregistration::v1::{
    ExpressionWarning, NamedRuleWithOperations, ValidatingAdmissionPolicy, ValidatingAdmissionPolicySpec,
};
use gantry_api::meta::field::Path;
use gantry_cel::{Phase, Schema};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Types that a rule is checked with at most.
const TYPES_MAX: usize = 10;

/// A kind: group, version and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupVersionKind(pub String, pub String, pub String);

impl std::fmt::Display for GroupVersionKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let GroupVersionKind(group, version, kind) = self;
        write!(f, "{group}/{version}, Kind={kind}")
    }
}

/// The kinds that a policy names, without those that only wildcards reach. `kind_of` finds that of a group, version and
/// plural name.
#[must_use]
pub fn kinds(
    spec: &ValidatingAdmissionPolicySpec,
    kind_of: impl Fn(&str, &str, &str) -> Option<String>,
) -> Vec<GroupVersionKind> {
    let mut found = BTreeSet::new();
    for rule in spec.match_constraints.iter().flat_map(|m| m.resource_rules.iter().flatten()) {
        let mut of_rule = 0;
        for (group, version, plural) in named(rule) {
            let Some(kind) = kind_of(group, version, plural) else { continue };
            found.insert(GroupVersionKind(group.clone(), version.clone(), kind));
            of_rule += 1;
            if of_rule == TYPES_MAX {
                return found.into_iter().collect();
            }
        }
    }
    found.into_iter().collect()
}

/// What a rule names, in upstream's order.
fn named(rule: &NamedRuleWithOperations) -> Vec<(&String, &String, &String)> {
    fn sorted(list: Option<&Vec<String>>) -> Vec<&String> {
        let mut list: Vec<&String> = list.into_iter().flatten().collect();
        list.sort();
        list
    }
    let (groups, versions) = (sorted(rule.api_groups.as_ref()), sorted(rule.api_versions.as_ref()));
    if groups.iter().chain(&versions).any(|name| name.contains('*')) {
        return Vec::new();
    }
    let mut plurals = sorted(rule.resources.as_ref());
    plurals.retain(|plural| !plural.contains(['*', '/']));
    let mut out = Vec::new();
    for group in groups {
        for version in &versions {
            out.extend(plurals.iter().map(|plural| (group, *version, *plural)));
        }
    }
    out
}

/// What does not fit, by the field of the expression. `types` are the kinds with their schemas, `params` is that of the
/// parameters where it is known.
#[must_use]
pub fn check(
    policy: &ValidatingAdmissionPolicy,
    types: &[(GroupVersionKind, Arc<Schema>)],
    params: Option<&Arc<Schema>>,
) -> Vec<ExpressionWarning> {
    let Some(spec) = &policy.spec else { return Vec::new() };
    let variables = spec.variables.as_deref().unwrap_or_default();
    let checkers: Vec<_> = types
        .iter()
        .map(|(kind, schema)| {
            let mut checker = expression::TypeChecker::new(schema, params);
            variables.iter().for_each(|v| checker.declare(&v.name, &v.expression));
            (kind, checker)
        })
        .collect();
    let mut warnings = Vec::new();
    let mut look = |text: &str, field: &Path| {
        let mut told = Vec::new();
        for (kind, checker) in &checkers {
            let issues = checker.compile(text).err().unwrap_or_default();
            // Constants that are no regular expressions and the like are no matter of types.
            let issues: Vec<String> =
                issues.iter().filter(|i| i.phase != Phase::Plan).map(ToString::to_string).collect();
            if !issues.is_empty() {
                told.push(format!("{kind}: {}\n", issues.join("\n")));
            }
        }
        if !told.is_empty() {
            warnings.push(ExpressionWarning { field_ref: field.to_string(), warning: told.join("\n") });
        }
    };
    let path = Path::new("spec").child("validations");
    for (i, validation) in spec.validations.iter().flatten().enumerate() {
        let at = path.index(i);
        look(&validation.expression, &at.child("expression"));
        if let Some(message) = validation.message_expression.as_deref().filter(|m| !m.is_empty()) {
            look(message, &at.child("messageExpression"));
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_schema::openapi::inlined;
    use serde_json::{Value, json};

    fn policy(rules: Value, validations: Value) -> ValidatingAdmissionPolicy {
        let spec = json!({"matchConstraints": {"resourceRules": rules}, "validations": validations,
            "variables": [{"name": "wanted", "expression": "object.spec.replicas"},
                {"name": "text", "expression": "object.metadata.name"}]});
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    fn of_apps(kind: &str) -> (GroupVersionKind, Arc<Schema>) {
        let schema = inlined("apps", "v1", kind).unwrap();
        let schema = Schema::from_openapi(&schema, kind, true).unwrap();
        (GroupVersionKind("apps".into(), "v1".into(), kind.into()), Arc::new(schema))
    }

    fn warnings(validations: Value) -> Vec<(String, String)> {
        let types = [of_apps("DaemonSet"), of_apps("Deployment")];
        let found = check(&policy(json!([]), validations), &types[1..], None);
        found.into_iter().map(|w| (w.field_ref, w.warning)).collect()
    }

    #[test]
    fn expressions_that_do_not_fit_are_told() {
        let fine = json!([
            {"expression": "object.spec.replicas > 1 && variables.wanted < 5 && oldObject == null"},
            {"expression": "object.metadata.labels['a'] == 'b' || request.operation == 'DELETE'"},
            {"expression": "object.spec.template.spec.containers.all(c, c.image.startsWith('x'))",
             "messageExpression": "'the name is ' + variables.text"},
            {"expression": "authorizer.group('').resource('pods').check('get').allowed()"},
            {"expression": "namespaceObject.metadata.labels.size() > 0 && object.metadata.name.matches('[a-z]')"},
            {"expression": "object.spec.strategy.rollingUpdate.maxSurge == 1"},
        ]);
        assert_eq!(warnings(fine), []);
        let found = warnings(json!([
            {"expression": "object.replicas > 1"},
            {"expression": "true", "messageExpression": "object.spec.replicas + 'x'"},
            {"expression": "variables.text > 1"},
        ]));
        let fields: Vec<&str> = found.iter().map(|(field, _)| field.as_str()).collect();
        let at = |i: usize, field: &str| format!("spec.validations[{i}].{field}");
        assert_eq!(fields, [at(0, "expression"), at(1, "messageExpression"), at(2, "expression")]);
        assert_eq!(
            found[0].1,
            "apps/v1, Kind=Deployment: ERROR: <input>:1:7: undefined field 'replicas'\n | object.replicas > 1\n | \
             ......^\n"
        );
        assert!(found[1].1.contains("found no matching overload for '_+_' applied to '(int, string)'"), "{found:?}");
    }

    #[test]
    fn every_kind_is_told_by_itself() {
        let types = [of_apps("DaemonSet"), of_apps("Deployment")];
        let found = check(&policy(json!([]), json!([{"expression": "object.spec.replicas > 1"}])), &types, None);
        assert_eq!(found.len(), 1);
        assert!(found[0].warning.starts_with("apps/v1, Kind=DaemonSet: ERROR: "), "{found:?}");
        assert!(!found[0].warning.contains("Deployment"), "{found:?}");
    }

    #[test]
    fn kinds_that_are_named() {
        let known = |group: &str, version: &str, plural: &str| {
            let kinds = [("deployments", "Deployment"), ("daemonsets", "DaemonSet"), ("pods", "Pod")];
            let found = kinds.iter().find(|(p, _)| *p == plural && (group == "apps") == (plural != "pods"));
            found.filter(|_| version == "v1").map(|(_, kind)| (*kind).to_owned())
        };
        let kinds = |rules: Value| -> Vec<String> {
            let policy = policy(rules, json!([]));
            super::kinds(&policy.spec.unwrap(), known).iter().map(ToString::to_string).collect()
        };
        let rule = |groups: &[&str], versions: &[&str], resources: &[&str]| json!({"apiGroups": groups, "apiVersions": versions, "resources": resources, "operations": ["*"]});
        assert_eq!(
            kinds(json!([
                rule(&["apps", ""], &["v1"], &["pods", "deployments", "pods/status", "daemonsets", "nothing"]),
                rule(&[""], &["v1"], &["pods"]),
            ])),
            ["/v1, Kind=Pod", "apps/v1, Kind=DaemonSet", "apps/v1, Kind=Deployment"]
        );
        for rule in [
            rule(&["*"], &["v1"], &["pods"]),
            rule(&["apps"], &["v1", "*"], &["deployments"]),
            rule(&["apps"], &["v1"], &["*", "*/scale"]),
            rule(&["apps"], &["v2"], &["deployments"]),
        ] {
            assert!(kinds(json!([rule])).is_empty());
        }
    }
}
