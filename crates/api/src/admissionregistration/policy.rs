//! What the two sorts of admission policies share: parameters, variables, the rules of their spec.

use super::match_rules::{FAILURE_POLICIES, validate_choice, validate_conditions, validate_match};
use crate::kind::ResourceInfo;
use crate::meta::expression::{Expression, Role, is_reserved};
use crate::meta::field::{ErrorList, Path};
use crate::meta::labels::{SelectorOptions, validate_label_selector};
use crate::meta::{names, text};
use k8s_openapi::api::admissionregistration::v1::{MatchCondition, MatchResources, ParamKind, ParamRef, Variable};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

const NOT_FOUND_ACTIONS: &[&str] = &["Deny", "Allow"];

/// The facts of the four kinds.
pub(super) const fn info(kind: &'static str, plural: &'static str, singular: &'static str) -> ResourceInfo {
    ResourceInfo {
        categories: &["api-extensions"],
        unconditional_update: false,
        ..ResourceInfo::new("admissionregistration.k8s.io", "v1", kind, plural, singular, false)
    }
}

/// The part of a spec that both sorts of policies have.
pub(super) struct Common<'a> {
    pub failure_policy: Option<&'a str>,
    pub param_kind: Option<&'a ParamKind>,
    pub constraints: Option<&'a MatchResources>,
    pub conditions: &'a [MatchCondition],
    pub variables: &'a [Variable],
}

/// Adds the errors of the common part; `conditions` is false where an update leaves the match conditions alone.
pub(super) fn validate_common(c: &Common<'_>, conditions: bool, path: &Path, errors: &mut ErrorList) {
    validate_choice(c.failure_policy, FAILURE_POLICIES, true, &path.child("failurePolicy"), errors);
    if let Some(kind) = c.param_kind {
        validate_param_kind(kind, &path.child("paramKind"), errors);
    }
    let at = path.child("matchConstraints");
    match c.constraints {
        None => errors.required(&at, ""),
        Some(m) => {
            validate_match(m, &at, errors);
            if m.resource_rules.as_ref().is_none_or(Vec::is_empty) {
                errors.required(&at.child("resourceRules"), "");
            }
        }
    }
    if conditions {
        validate_conditions(c.conditions, &path.child("matchConditions"), errors);
    }
    for (i, v) in c.variables.iter().enumerate() {
        validate_variable(v, &path.child("variables").index(i), errors);
    }
}

fn validate_variable(v: &Variable, path: &Path, errors: &mut ErrorList) {
    let at = path.child("name");
    let fine = names::c_identifier(&v.name).is_empty() && !is_reserved(&v.name);
    if v.name.trim().is_empty() {
        errors.required(&at, "name is not specified");
    } else if !fine {
        errors.invalid(&at, v.name.as_str(), "name is not a valid CEL identifier");
    }
    if v.expression.trim().is_empty() {
        errors.required(&path.child("expression"), "expression is not specified");
    }
}

/// The expressions of variables, in the order in which they see each other.
pub(super) fn variable_expressions(list: &[Variable], params: bool, path: &Path) -> Vec<Expression> {
    let written = list.iter().enumerate().filter(|(_, v)| !v.expression.trim().is_empty());
    written
        .map(|(i, v)| Expression {
            path: path.index(i).child("expression"),
            text: v.expression.clone(),
            role: Role::Variable(v.name.clone()),
            params,
            authorizer: true,
            stored: false,
        })
        .collect()
}

fn validate_param_kind(kind: &ParamKind, path: &Path, errors: &mut ErrorList) {
    let at = path.child("apiVersion");
    let version = text(&kind.api_version);
    let parts: Vec<&str> = version.split('/').collect();
    let parsed = match parts.as_slice() {
        _ if version.is_empty() => {
            errors.required(&at, "");
            None
        }
        _ if version == "/" => Some(("", "")),
        [v] => Some(("", *v)),
        [g, v] => Some((*g, *v)),
        _ => {
            errors.invalid(&at, version, &format!("unexpected GroupVersion string: {version}"));
            None
        }
    };
    if let Some((group, v)) = parsed {
        let found = names::dns1123_subdomain(group, false);
        if !group.is_empty() && !found.is_empty() {
            errors.invalid(&at, group, &found.join(","));
        }
        let found = names::dns1035_label(v, false);
        if v.is_empty() {
            errors.invalid(&at, version, "version must be specified");
        } else if !found.is_empty() {
            errors.invalid(&at, v, &found.join(","));
        }
    }
    let (at, name) = (path.child("kind"), text(&kind.kind));
    let found = names::dns1035_label(&name.to_lowercase(), false);
    if name.is_empty() {
        errors.required(&at, "");
    } else if !found.is_empty() {
        let detail = format!("may have mixed case, but should otherwise match: {}", found.join(","));
        errors.invalid(&at, name, &detail);
    }
}

/// Adds the errors of a binding's reference to parameters.
pub(super) fn validate_param_ref(r: &ParamRef, path: &Path, errors: &mut ErrorList) {
    let name = text(&r.name);
    let both = "name and selector are mutually exclusive";
    if !name.is_empty() {
        names::push_invalid(errors, &path.child("name"), name, &names::path_segment(name, false));
        if r.selector.is_some() {
            errors.forbidden(&path.child("name"), both);
        }
    }
    if r.selector.is_some() {
        let at = path.child("selector");
        errors.extend(validate_label_selector(r.selector.as_ref(), SelectorOptions::default(), &at));
        if !name.is_empty() {
            errors.forbidden(&at, both);
        }
    } else if name.is_empty() {
        errors.required(path, "one of name or selector must be specified");
    }
    let action = r.parameter_not_found_action.as_deref().filter(|a| !a.is_empty());
    validate_choice(action, NOT_FOUND_ACTIONS, true, &path.child("parameterNotFoundAction"), errors);
}

/// A kind of parameters as tables show it: `v1/ConfigMap`.
pub(super) fn shown_param_kind(kind: Option<&ParamKind>) -> String {
    kind.map_or_else(|| "<unset>".to_owned(), |k| format!("{}/{}", text(&k.api_version), text(&k.kind)))
}

/// A reference to parameters as tables show it: `namespace/name`, `*/name` or the selector.
pub(super) fn shown_param_ref(r: Option<&ParamRef>) -> String {
    let Some(r) = r else { return "<unset>".to_owned() };
    let (namespace, name) = (text(&r.namespace), text(&r.name));
    match (&r.selector, name.is_empty()) {
        // It cannot be told from here whether the parameter has a namespace.
        (_, false) => format!("{}/{name}", if namespace.is_empty() { "*" } else { namespace }),
        (Some(selector), true) => shown_selector(selector),
        (None, true) => "<unset>".to_owned(),
    }
}

/// A selector in the form of Go's generated `String` methods, which is what upstream's table has.
fn shown_selector(s: &LabelSelector) -> String {
    let labels: String = s.match_labels.iter().flatten().map(|(k, v)| format!("{k}: {v},")).collect();
    let requirement = |r: &LabelSelectorRequirement| {
        let values = r.values.as_deref().unwrap_or_default().join(" ");
        format!("LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},", r.key, r.operator)
    };
    let expressions: String = s.match_expressions.iter().flatten().map(requirement).collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement\
         {{{expressions}}},}}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parameters() {
        let check = |value: serde_json::Value| {
            let r: ParamRef = serde_json::from_value(value).unwrap();
            let mut e = ErrorList::default();
            validate_param_ref(&r, &Path::new("p"), &mut e);
            e.0.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            check(json!({})),
            [
                "p: Required value: one of name or selector must be specified",
                "p.parameterNotFoundAction: Required value",
            ]
        );
        assert_eq!(
            check(json!({"name": "a", "selector": {}, "parameterNotFoundAction": "x"})),
            [
                "p.name: Forbidden: name and selector are mutually exclusive",
                "p.selector: Forbidden: name and selector are mutually exclusive",
                "p.parameterNotFoundAction: Unsupported value: \"x\": supported values: \"Deny\", \"Allow\"",
            ]
        );
        let shown = |value: serde_json::Value| shown_param_ref(Some(&serde_json::from_value(value).unwrap()));
        assert_eq!(shown(json!({"name": "a"})), "*/a");
        assert_eq!(shown(json!({"name": "a", "namespace": "n"})), "n/a");
        assert_eq!(
            shown(json!({"selector": {"matchLabels": {"k": "v"},
                "matchExpressions": [{"key": "x", "operator": "In", "values": ["1", "2"]}]}})),
            "&LabelSelector{MatchLabels:map[string]string{k: v,},MatchExpressions:[]LabelSelectorRequirement\
             {LabelSelectorRequirement{Key:x,Operator:In,Values:[1 2],},},}"
        );
    }

    #[test]
    fn kinds_of_parameters() {
        let check = |version: &str, kind: &str| {
            let k = ParamKind { api_version: Some(version.to_owned()), kind: Some(kind.to_owned()) };
            let mut e = ErrorList::default();
            validate_param_kind(&k, &Path::new("k"), &mut e);
            e.0.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(check("v1", "ConfigMap").is_empty() && check("a.b/v1", "X").is_empty());
        assert_eq!(check("", ""), ["k.apiVersion: Required value", "k.kind: Required value"]);
        assert_eq!(
            check("a/b/c", "X"),
            ["k.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c"]
        );
        assert_eq!(check("a/", "X"), ["k.apiVersion: Invalid value: \"a/\": version must be specified"]);
        assert!(check("v1", "9")[0].starts_with("k.kind: Invalid value: \"9\": may have mixed case, but should"));
    }
}
