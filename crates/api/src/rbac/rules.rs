//! Policy rules: validation, matching, coverage (does one set of rules include another) and their short text form.

use crate::meta::field::{ErrorList, Path};
use k8s_openapi::api::rbac::v1::PolicyRule;
use serde_json::json;

fn list(field: &Option<Vec<String>>) -> &[String] {
    field.as_deref().unwrap_or_default()
}

fn has(field: &[String], value: &str) -> bool {
    field.iter().any(|v| v == value)
}

/// Whether the rule's verbs include `verb`.
#[must_use]
pub fn verb_matches(rule: &PolicyRule, verb: &str) -> bool {
    rule.verbs.iter().any(|v| v == "*" || v == verb)
}

/// Whether the rule's API groups include `group`.
#[must_use]
pub fn group_matches(rule: &PolicyRule, group: &str) -> bool {
    list(&rule.api_groups).iter().any(|g| g == "*" || g == group)
}

/// Whether the rule's resources include `resource` (with `subresource`, where not empty): `*`, an exact name, or
/// `*/subresource`.
#[must_use]
pub fn resource_matches(rule: &PolicyRule, resource: &str, subresource: &str) -> bool {
    list(&rule.resources).iter().any(|r| {
        if r == "*" {
            return true;
        }
        if subresource.is_empty() {
            return r == resource;
        }
        match r.split_once('/') {
            Some((parent, sub)) => sub == subresource && (parent == resource || parent == "*"),
            None => false,
        }
    })
}

/// Whether the rule applies to an object of this name; a rule without resourceNames applies to all.
#[must_use]
pub fn name_matches(rule: &PolicyRule, name: &str) -> bool {
    let names = list(&rule.resource_names);
    names.is_empty() || has(names, name)
}

/// Whether the rule's non-resource URLs include `path`; a trailing `*` matches any rest.
#[must_use]
pub fn path_matches(rule: &PolicyRule, path: &str) -> bool {
    list(&rule.non_resource_urls)
        .iter()
        .any(|u| u == "*" || u == path || u.strip_suffix('*').is_some_and(|p| path.starts_with(p)))
}

/// Field errors of one rule at `path`; `namespaced` for a Role's rules.
#[must_use]
pub fn validate(rule: &PolicyRule, namespaced: bool, path: &Path) -> ErrorList {
    let mut e = ErrorList::default();
    if rule.verbs.is_empty() {
        e.required(&path.child("verbs"), "verbs must contain at least one value");
    }
    let (groups, resources, names) = (list(&rule.api_groups), list(&rule.resources), list(&rule.resource_names));
    let urls = list(&rule.non_resource_urls);
    if !urls.is_empty() {
        let at = path.child("nonResourceURLs");
        if namespaced {
            e.invalid(&at, json!(urls), "namespaced rules cannot apply to non-resource URLs");
        }
        if !groups.is_empty() || !resources.is_empty() || !names.is_empty() {
            e.invalid(&at, json!(urls), "rules cannot apply to both regular resources and non-resource URLs");
        }
        return e;
    }
    if groups.is_empty() {
        e.required(&path.child("apiGroups"), "resource rules must supply at least one api group");
    }
    if resources.is_empty() {
        e.required(&path.child("resources"), "resource rules must supply at least one resource");
    }
    e
}

/// The rule split into its smallest parts: one verb, one group, one resource and at most one name, or one verb and one URL.
fn atoms(rule: &PolicyRule) -> Vec<PolicyRule> {
    let mut out = Vec::new();
    let names: Vec<Option<Vec<String>>> = match list(&rule.resource_names) {
        [] => vec![None],
        names => names.iter().map(|n| Some(vec![n.clone()])).collect(),
    };
    for group in list(&rule.api_groups) {
        for resource in list(&rule.resources) {
            for verb in &rule.verbs {
                for name in &names {
                    out.push(PolicyRule {
                        api_groups: Some(vec![group.clone()]),
                        resources: Some(vec![resource.clone()]),
                        verbs: vec![verb.clone()],
                        resource_names: name.clone(),
                        non_resource_urls: None,
                    });
                }
            }
        }
    }
    for url in list(&rule.non_resource_urls) {
        for verb in &rule.verbs {
            out.push(PolicyRule {
                non_resource_urls: Some(vec![url.clone()]),
                verbs: vec![verb.clone()],
                ..Default::default()
            });
        }
    }
    out
}

/// Whether everything the atom `part` allows is allowed by `owner`.
fn covers_atom(owner: &PolicyRule, part: &PolicyRule) -> bool {
    let all = |owned: &[String], wanted: &[String]| has(owned, "*") || wanted.iter().all(|w| has(owned, w));
    let verbs = all(&owner.verbs, &part.verbs);
    let urls = list(&part.non_resource_urls);
    if !urls.is_empty() {
        return verbs && urls.iter().all(|u| path_matches(owner, u));
    }
    let resources = |wanted: &String| {
        let owned = list(&owner.resources);
        has(owned, "*")
            || has(owned, wanted)
            || wanted.split_once('/').is_some_and(|(_, sub)| has(owned, &format!("*/{sub}")))
    };
    let owned_names = list(&owner.resource_names);
    let names = match list(&part.resource_names) {
        [] => owned_names.is_empty(),
        wanted => owned_names.is_empty() || wanted.iter().all(|w| has(owned_names, w)),
    };
    verbs
        && all(list(&owner.api_groups), list(&part.api_groups))
        && list(&part.resources).iter().all(resources)
        && names
}

/// The parts of `wanted` that no rule of `owned` allows; empty where everything is covered.
#[must_use]
pub fn uncovered(owned: &[PolicyRule], wanted: &[PolicyRule]) -> Vec<PolicyRule> {
    wanted.iter().flat_map(atoms).filter(|part| !owned.iter().any(|o| covers_atom(o, part))).collect()
}

/// Joins rules that differ only in their verbs and have one group and one resource.
#[must_use]
pub fn compact(rules: &[PolicyRule]) -> Vec<PolicyRule> {
    let mut out: Vec<PolicyRule> = Vec::new();
    for rule in rules {
        let simple = list(&rule.api_groups).len() == 1
            && list(&rule.resources).len() == 1
            && list(&rule.non_resource_urls).is_empty()
            && list(&rule.resource_names).len() <= 1;
        let same = |o: &&mut PolicyRule| {
            o.api_groups == rule.api_groups
                && o.resources == rule.resources
                && list(&o.resource_names) == list(&rule.resource_names)
                && list(&o.non_resource_urls).is_empty()
        };
        match out.iter_mut().find(same) {
            Some(kept) if simple => {
                for verb in &rule.verbs {
                    if !kept.verbs.contains(verb) {
                        kept.verbs.push(verb.clone());
                    }
                }
            }
            _ => out.push(rule.clone()),
        }
    }
    out
}

/// Go's `%q` of a list of strings.
#[must_use]
pub fn quoted(values: &[String]) -> String {
    format!("[{}]", values.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(" "))
}

/// `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`, as escalation errors show a rule.
#[must_use]
pub fn describe(rule: &PolicyRule) -> String {
    let parts: Vec<String> = [
        ("APIGroups", list(&rule.api_groups)),
        ("Resources", list(&rule.resources)),
        ("NonResourceURLs", list(&rule.non_resource_urls)),
        ("ResourceNames", list(&rule.resource_names)),
        ("Verbs", &rule.verbs),
    ]
    .iter()
    .filter(|(_, values)| !values.is_empty())
    .map(|(name, values)| format!("{name}:{}", quoted(values)))
    .collect();
    format!("{{{}}}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(groups: &[&str], resources: &[&str], names: &[&str], verbs: &[&str]) -> PolicyRule {
        let v = |s: &[&str]| s.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        PolicyRule {
            api_groups: Some(v(groups)),
            resources: Some(v(resources)),
            resource_names: Some(v(names)),
            verbs: v(verbs),
            non_resource_urls: None,
        }
    }

    #[test]
    fn resources_match_as_upstream() {
        let cases = [
            ("*", "pods", "", true),
            ("*", "pods", "log", true),
            ("pods", "pods", "", true),
            ("pods", "pods", "log", false),
            ("pods/log", "pods", "log", true),
            ("pods/log", "pods", "", false),
            ("*/scale", "deployments", "scale", true),
            ("*/scale", "deployments", "status", false),
            ("pods/*", "pods", "log", false),
        ];
        for (r, resource, sub, want) in cases {
            assert_eq!(
                resource_matches(&rule(&[""], &[r], &[], &["get"]), resource, sub),
                want,
                "{r} {resource}/{sub}"
            );
        }
    }

    #[test]
    fn urls_match_prefixes() {
        let r = |u: &str| PolicyRule {
            non_resource_urls: Some(vec![u.into()]),
            verbs: vec!["get".into()],
            ..Default::default()
        };
        assert!(path_matches(&r("/healthz/*"), "/healthz/ping"));
        assert!(!path_matches(&r("/healthz/*"), "/healthz"));
        assert!(path_matches(&r("/version"), "/version"));
        assert!(path_matches(&r("*"), "/x"));
    }

    #[test]
    fn coverage_finds_what_is_missing() {
        let owned = [
            rule(&[""], &["pods", "*/scale"], &[], &["get", "list"]),
            rule(&["apps"], &["deployments"], &["a"], &["*"]),
        ];
        let cases: &[(PolicyRule, usize)] = &[
            (rule(&[""], &["pods"], &[], &["get"]), 0),
            (rule(&[""], &["pods"], &["x"], &["get", "list"]), 0),
            (rule(&[""], &["pods"], &[], &["get", "delete"]), 1),
            (rule(&[""], &["pods/scale"], &[], &["get"]), 0),
            (rule(&["apps"], &["deployments"], &["a"], &["update"]), 0),
            (rule(&["apps"], &["deployments"], &["a", "b"], &["update"]), 1),
            (rule(&["apps"], &["deployments"], &[], &["update"]), 1),
            (rule(&["*"], &["pods"], &[], &["get"]), 1),
        ];
        for (wanted, missing) in cases {
            assert_eq!(uncovered(&owned, std::slice::from_ref(wanted)).len(), *missing, "{wanted:?}");
        }
    }

    #[test]
    fn descriptions_read_as_upstream() {
        let missing = uncovered(&[], &[rule(&[""], &["pods"], &[], &["get", "list"])]);
        let texts: Vec<String> = compact(&missing).iter().map(describe).collect();
        assert_eq!(texts, vec![r#"{APIGroups:[""], Resources:["pods"], Verbs:["get" "list"]}"#]);
    }
}
