//! What requests a webhook or policy looks at: rules, selectors, match conditions.

use crate::meta::expression::{Expression, Role};
use crate::meta::field::{ErrorList, Path};
use crate::meta::labels::{SelectorOptions, validate_label_selector};
use crate::meta::names;
use k8s_openapi::api::admissionregistration::v1::{
    MatchCondition, MatchResources, NamedRuleWithOperations, RuleWithOperations,
};
use serde_json::json;
use std::collections::BTreeSet;

pub(super) const FAILURE_POLICIES: &[&str] = &["Fail", "Ignore"];
pub(super) const MATCH_POLICIES: &[&str] = &["Equivalent", "Exact"];
pub(super) const REINVOCATION_POLICIES: &[&str] = &["IfNeeded", "Never"];
const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
const SCOPES: &[&str] = &["*", "Cluster", "Namespaced"];
/// Most match conditions of one webhook or policy.
const CONDITIONS_MAX: usize = 64;

/// A rule, whichever type carries it.
struct Rule<'a> {
    groups: &'a [String],
    versions: &'a [String],
    operations: &'a [String],
    resources: &'a [String],
    scope: Option<&'a str>,
}

fn list(values: Option<&Vec<String>>) -> &[String] {
    values.map(Vec::as_slice).unwrap_or_default()
}

fn has_wildcard(values: &[String]) -> bool {
    values.iter().any(|v| v == "*")
}

/// Adds an error where one of several values is `*`.
fn validate_alone(values: &[String], what: &str, path: &Path, errors: &mut ErrorList) {
    if values.len() > 1 && has_wildcard(values) {
        errors.invalid(path, json!(values), &format!("if '*' is present, must not specify other {what}"));
    }
}

fn validate_resources(resources: &[String], path: &Path, errors: &mut ErrorList) {
    if resources.is_empty() {
        errors.required(path, "");
    }
    let (mut all_of, mut of_all) = (BTreeSet::new(), BTreeSet::new());
    // The last plain resource decides, as upstream overwrites it.
    let mut plain = false;
    for (i, r) in resources.iter().enumerate() {
        let path = path.index(i);
        if r.is_empty() {
            errors.required(&path, "");
            continue;
        }
        let Some((resource, sub)) = r.split_once('/') else {
            plain = r != "*";
            continue;
        };
        if all_of.contains(resource) {
            errors.invalid(&path, r.as_str(), &format!("if '{resource}/*' is present, must not specify {r}"));
        }
        if of_all.contains(sub) {
            errors.invalid(&path, r.as_str(), &format!("if '*/{sub}' is present, must not specify {r}"));
        }
        if sub == "*" {
            all_of.insert(resource);
        }
        if resource == "*" {
            of_all.insert(sub);
        }
    }
    if resources.len() > 1 && resources.iter().any(|r| r == "*/*") {
        errors.invalid(path, json!(resources), "if '*/*' is present, must not specify other resources");
    }
    if has_wildcard(resources) && plain {
        let detail = "if '*' is present, must not specify other resources without subresources";
        errors.invalid(path, json!(resources), detail);
    }
}

fn validate_rule(r: &Rule<'_>, path: &Path, errors: &mut ErrorList) {
    let at = path.child("operations");
    if r.operations.is_empty() {
        errors.required(&at, "");
    }
    validate_alone(r.operations, "operations", &at, errors);
    for (i, o) in r.operations.iter().enumerate().filter(|(_, o)| !OPERATIONS.contains(&o.as_str())) {
        errors.not_supported(&at.index(i), o, OPERATIONS);
    }
    let at = path.child("apiGroups");
    if r.groups.is_empty() {
        errors.required(&at, "");
    }
    validate_alone(r.groups, "API groups", &at, errors);
    let at = path.child("apiVersions");
    if r.versions.is_empty() {
        errors.required(&at, "");
    }
    validate_alone(r.versions, "API versions", &at, errors);
    for (i, _) in r.versions.iter().enumerate().filter(|(_, v)| v.is_empty()) {
        errors.required(&at.index(i), "");
    }
    validate_resources(r.resources, &path.child("resources"), errors);
    if let Some(scope) = r.scope.filter(|s| !SCOPES.contains(s)) {
        errors.not_supported(&path.child("scope"), scope, SCOPES);
    }
}

/// Adds the errors of a webhook's rules.
pub(super) fn validate_rules(rules: &[RuleWithOperations], path: &Path, errors: &mut ErrorList) {
    for (i, r) in rules.iter().enumerate() {
        let rule = Rule {
            groups: list(r.api_groups.as_ref()),
            versions: list(r.api_versions.as_ref()),
            operations: list(r.operations.as_ref()),
            resources: list(r.resources.as_ref()),
            scope: r.scope.as_deref(),
        };
        validate_rule(&rule, &path.index(i), errors);
    }
}

/// The scope a rule has where it names none.
pub(super) fn default_scope(scope: &mut Option<String>) {
    scope.get_or_insert_with(|| "*".to_owned());
}

fn validate_named_rules(rules: Option<&Vec<NamedRuleWithOperations>>, path: &Path, errors: &mut ErrorList) {
    for (i, r) in rules.into_iter().flatten().enumerate() {
        let path = path.index(i);
        let resource_names = list(r.resource_names.as_ref());
        for (i, name) in resource_names.iter().enumerate() {
            let path = path.child("resourceNames").index(i);
            names::push_invalid(errors, &path, name, &names::path_segment(name, false));
            if resource_names[..i].contains(name) {
                errors.duplicate(&path, name.as_str());
            }
        }
        let rule = Rule {
            groups: list(r.api_groups.as_ref()),
            versions: list(r.api_versions.as_ref()),
            operations: list(r.operations.as_ref()),
            resources: list(r.resources.as_ref()),
            scope: r.scope.as_deref(),
        };
        validate_rule(&rule, &path, errors);
    }
}

/// Defaults of a policy's or binding's match.
pub(super) fn default_match(m: &mut MatchResources) {
    m.match_policy.get_or_insert_with(|| "Equivalent".to_owned());
    m.namespace_selector.get_or_insert_default();
    m.object_selector.get_or_insert_default();
    for r in m.resource_rules.iter_mut().chain(m.exclude_resource_rules.iter_mut()).flatten() {
        default_scope(&mut r.scope);
    }
}

/// Adds an error where a set value is not one of the known; `required` tells of a missing one.
pub(super) fn validate_choice(
    value: Option<&str>,
    known: &[&str],
    required: bool,
    path: &Path,
    errors: &mut ErrorList,
) {
    match value {
        None if required => errors.required(path, ""),
        Some(v) if !known.contains(&v) => errors.not_supported(path, v, known),
        _ => {}
    }
}

/// Adds the errors of a policy's or binding's match.
pub(super) fn validate_match(m: &MatchResources, path: &Path, errors: &mut ErrorList) {
    validate_choice(m.match_policy.as_deref(), MATCH_POLICIES, true, &path.child("matchPolicy"), errors);
    for (field, selector) in [("namespaceSelector", &m.namespace_selector), ("objectSelector", &m.object_selector)] {
        let path = path.child(field);
        if selector.is_none() {
            errors.required(&path, "");
        }
        errors.extend(validate_label_selector(selector.as_ref(), SelectorOptions::default(), &path));
    }
    validate_named_rules(m.resource_rules.as_ref(), &path.child("resourceRules"), errors);
    validate_named_rules(m.exclude_resource_rules.as_ref(), &path.child("excludeResourceRules"), errors);
}

/// Adds the errors of match conditions, except of what is in their expressions.
pub(super) fn validate_conditions(conditions: &[MatchCondition], path: &Path, errors: &mut ErrorList) {
    if conditions.len() > CONDITIONS_MAX {
        errors.too_many(path, conditions.len(), CONDITIONS_MAX);
    }
    for (i, c) in conditions.iter().enumerate() {
        let path = path.index(i);
        if c.expression.trim().is_empty() {
            errors.required(&path.child("expression"), "");
        }
        let at = path.child("name");
        if c.name.is_empty() {
            errors.required(&at, "");
            continue;
        }
        names::push_invalid(errors, &at, &c.name, &names::qualified_name(&c.name));
        if conditions[..i].iter().any(|o| o.name == c.name) {
            errors.duplicate(&at, c.name.as_str());
        }
    }
}

/// The expressions of match conditions.
pub(super) fn condition_expressions(
    conditions: &[MatchCondition],
    before: &[MatchCondition],
    params: bool,
    path: &Path,
) -> Vec<Expression> {
    let written = conditions.iter().enumerate().filter(|(_, c)| !c.expression.trim().is_empty());
    written
        .map(|(i, c)| Expression {
            path: path.index(i).child("expression"),
            text: c.expression.trim().to_owned(),
            role: Role::MatchCondition,
            params,
            authorizer: true,
            stored: before.iter().any(|o| o.expression == c.expression),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn found(rule: &Value) -> Vec<String> {
        let rules: Vec<RuleWithOperations> = serde_json::from_value(json!([rule])).unwrap();
        let mut e = ErrorList::default();
        validate_rules(&rules, &Path::new("r"), &mut e);
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rules() {
        assert_eq!(
            found(&json!({})),
            [
                "r[0].operations: Required value",
                "r[0].apiGroups: Required value",
                "r[0].apiVersions: Required value",
                "r[0].resources: Required value",
            ]
        );
        assert_eq!(
            found(&json!({"operations": ["*", "GET"], "apiGroups": ["*", "a"], "apiVersions": [""], "scope": "x",
                "resources": ["pods/*", "pods/log", "*/status", "a/status", "*", "b"]})),
            [
                "r[0].operations: Invalid value: [\"*\",\"GET\"]: if '*' is present, must not specify other operations",
                "r[0].operations[1]: Unsupported value: \"GET\": supported values: \"*\", \"CONNECT\", \"CREATE\", \
                 \"DELETE\", \"UPDATE\"",
                "r[0].apiGroups: Invalid value: [\"*\",\"a\"]: if '*' is present, must not specify other API groups",
                "r[0].apiVersions[0]: Required value",
                "r[0].resources[1]: Invalid value: \"pods/log\": if 'pods/*' is present, must not specify pods/log",
                "r[0].resources[3]: Invalid value: \"a/status\": if '*/status' is present, must not specify a/status",
                "r[0].resources: Invalid value: [\"pods/*\",\"pods/log\",\"*/status\",\"a/status\",\"*\",\"b\"]: if \
                 '*' is \
                 present, must not specify other resources without subresources",
                "r[0].scope: Unsupported value: \"x\": supported values: \"*\", \"Cluster\", \"Namespaced\"",
            ]
        );
    }

    #[test]
    fn conditions() {
        let list: Vec<MatchCondition> = serde_json::from_value(json!([{"name": "a", "expression": "true"},
            {"name": "a", "expression": " "}, {"name": "", "expression": "x"}]))
        .unwrap();
        let mut e = ErrorList::default();
        validate_conditions(&list, &Path::new("c"), &mut e);
        assert_eq!(
            e.0.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["c[1].expression: Required value", "c[1].name: Duplicate value: \"a\"", "c[2].name: Required value",]
        );
        let expressions = condition_expressions(&list, &list[..1], true, &Path::new("c"));
        let seen: Vec<(&str, bool)> = expressions.iter().map(|e| (e.path.as_str(), e.stored)).collect();
        assert_eq!(seen, [("c[0].expression", true), ("c[2].expression", false)]);
    }
}
