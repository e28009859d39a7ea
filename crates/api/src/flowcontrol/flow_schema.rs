//! FlowSchema: which requests belong to which priority level.

use super::{defaults, not_supported, validate_conditions};
use crate::apps::workload::bump_generation;
use crate::kind::{Column, Context, Kind, ResourceInfo, STATUS};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{Meta, reset_for_status, semantically_equal};
use crate::meta::{names, table, text};
use k8s_openapi::api::flowcontrol::v1::{
    FlowSchema, NonResourcePolicyRule, PolicyRulesWithSubjects, ResourcePolicyRule, ServiceAccountSubject, Subject,
};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

const PRECEDENCE_MAX: i32 = 10_000;
const DISTINGUISHERS: &[&str] = &["ByNamespace", "ByUser"];
const SUBJECT_KINDS: &[&str] = &["Group", "ServiceAccount", "User"];
const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

fn has_wildcard(values: &[String]) -> bool {
    values.iter().any(|v| v == "*")
}

/// Adds an error where `*` is not alone; true where it is there.
fn validate_wildcard(values: &[String], what: &str, path: &Path, errors: &mut ErrorList) -> bool {
    if values.len() > 1 && has_wildcard(values) {
        errors.invalid(path, json!(values), &format!("if '*' is present, must not specify other {what}"));
    }
    has_wildcard(values)
}

fn validate_verbs(verbs: &[String], path: &Path, errors: &mut ErrorList) {
    if verbs.is_empty() {
        errors.required(path, "verbs must contain at least one value");
    } else if !validate_wildcard(verbs, "verbs", path, errors) && !verbs.iter().all(|v| VERBS.contains(&v.as_str())) {
        not_supported(errors, path, &json!(verbs), VERBS);
    }
}

fn validate_url(url: &str, path: &Path, errors: &mut ErrorList) {
    let stars = url.matches('*').count();
    let fault = match url {
        "" => "must not be empty",
        "/" => return,
        u if !u.starts_with('/') => "must start with slash",
        u if u.contains(' ') => "must not contain white-space",
        u if u.contains("//") => "must not contain double slash",
        u if stars > 1 || (stars == 1 && !u.ends_with("/*")) => "wildcard can only do suffix matching",
        _ => return,
    };
    errors.invalid(path, url, fault);
}

fn validate_resource_rule(r: &ResourcePolicyRule, path: &Path, errors: &mut ErrorList) {
    validate_verbs(&r.verbs, &path.child("verbs"), errors);
    let at = path.child("apiGroups");
    if r.api_groups.is_empty() {
        errors.required(&at, "resource rules must supply at least one api group");
    }
    validate_wildcard(&r.api_groups, "api groups", &at, errors);
    let at = path.child("resources");
    if r.resources.is_empty() {
        errors.required(&at, "resource rules must supply at least one resource");
    }
    validate_wildcard(&r.resources, "resources", &at, errors);
    let at = path.child("namespaces");
    let namespaces = r.namespaces.as_deref().unwrap_or_default();
    if namespaces.is_empty() && r.cluster_scope != Some(true) {
        let detail = "resource rules that are not cluster scoped must supply at least one namespace";
        errors.required(&at, detail);
    } else if !validate_wildcard(namespaces, "namespaces", &at, errors) {
        for (i, n) in namespaces.iter().enumerate() {
            for message in names::dns1123_label(n, false) {
                let detail = format!("each member of this list must be '*' or a DNS-1123 label; {message}");
                errors.invalid(&at.index(i), n.as_str(), &detail);
            }
        }
    }
}

fn validate_path_rule(r: &NonResourcePolicyRule, path: &Path, errors: &mut ErrorList) {
    validate_verbs(&r.verbs, &path.child("verbs"), errors);
    let at = path.child("nonResourceURLs");
    if r.non_resource_urls.is_empty() {
        errors.required(&at, "nonResourceURLs must contain at least one value");
    } else if !validate_wildcard(&r.non_resource_urls, "non-resource URLs", &at, errors) {
        for (i, url) in r.non_resource_urls.iter().enumerate() {
            validate_url(url, &at.index(i), errors);
        }
    }
}

fn validate_account(s: &ServiceAccountSubject, path: &Path, errors: &mut ErrorList) {
    let at = path.child("name");
    if s.name.is_empty() {
        errors.required(&at, "");
    } else if s.name != "*" {
        names::push_invalid(errors, &at, &s.name, &names::dns1123_subdomain(&s.name, false));
    }
    let at = path.child("namespace");
    if s.namespace.is_empty() {
        errors.required(&at, "must specify namespace for service account");
    } else {
        names::push_invalid(errors, &at, &s.namespace, &names::dns1123_label(&s.namespace, false));
    }
}

fn validate_subject(s: &Subject, path: &Path, errors: &mut ErrorList) {
    let fields = [
        ("ServiceAccount", "serviceAccount", s.service_account.is_some()),
        ("User", "user", s.user.is_some()),
        ("Group", "group", s.group.is_some()),
    ];
    let Some((kind, field, there)) = fields.iter().find(|(kind, ..)| *kind == s.kind) else {
        return errors.not_supported(&path.child("kind"), &s.kind, SUBJECT_KINDS);
    };
    let at = path.child(field);
    let name = match *kind {
        "User" => s.user.as_ref().map(|u| &u.name),
        "Group" => s.group.as_ref().map(|g| &g.name),
        _ => None,
    };
    if !there {
        errors.required(&at, &format!("{field} is required when subject kind is '{kind}'"));
    } else if let Some(account) = s.service_account.as_ref().filter(|_| *kind == "ServiceAccount") {
        validate_account(account, &at, errors);
    } else if name.is_some_and(String::is_empty) {
        errors.required(&at.child("name"), "");
    }
    for (other, field, there) in fields.iter().filter(|(other, ..)| other != kind) {
        if *there {
            let detail = format!("{field} is forbidden when subject kind is not '{other}'");
            errors.forbidden(&path.child(field), &detail);
        }
    }
}

fn validate_rules(r: &PolicyRulesWithSubjects, path: &Path, errors: &mut ErrorList) {
    if r.subjects.is_empty() {
        errors.required(&path.child("subjects"), "subjects must contain at least one value");
    }
    for (i, s) in r.subjects.iter().enumerate() {
        validate_subject(s, &path.child("subjects").index(i), errors);
    }
    let resources = r.resource_rules.as_deref().unwrap_or_default();
    let paths = r.non_resource_rules.as_deref().unwrap_or_default();
    if resources.is_empty() && paths.is_empty() {
        errors.required(path, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    for (i, r) in resources.iter().enumerate() {
        validate_resource_rule(r, &path.child("resourceRules").index(i), errors);
    }
    for (i, r) in paths.iter().enumerate() {
        validate_path_rule(r, &path.child("nonResourceRules").index(i), errors);
    }
}

impl Kind for FlowSchema {
    const INFO: ResourceInfo = ResourceInfo {
        subresources: &[STATUS],
        ..ResourceInfo::new("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema", "flowschemas", "flowschema", false)
    };
    const COLUMNS: &'static [Column] = &[
        table::NAME,
        table::text_column("PriorityLevel", "The priority level of the requests.", 0),
        table::text_column("MatchingPrecedence", "Schemas with a smaller number are asked first.", 0),
        table::text_column("DistinguisherMethod", "How requests are told apart.", 0),
        table::AGE,
        table::text_column("MissingPL", "Whether the priority level is missing.", 0),
    ];
    crate::kind_codec!();

    fn set_defaults(&mut self) {
        let precedence = self.spec.matching_precedence.get_or_insert(0);
        if *precedence == 0 {
            *precedence = 1000;
        }
    }

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.status = Some(Default::default());
        self.metadata.generation = Some(1);
    }

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        let (spec, path, name) = (&self.spec, Path::new("spec"), self.metadata.name());
        let at = path.child("matchingPrecedence");
        let precedence = spec.matching_precedence.unwrap_or(0);
        if precedence <= 0 {
            e.invalid(&at, precedence, "must be a positive value");
        }
        if precedence > PRECEDENCE_MAX {
            e.invalid(&at, precedence, &format!("must not be greater than {PRECEDENCE_MAX}"));
        }
        if precedence == 1 && name != defaults::EXEMPT {
            e.invalid(&at, precedence, "only the schema named 'exempt' may have matchingPrecedence 1");
        }
        if let Some(d) = spec.distinguisher_method.as_ref().filter(|d| !DISTINGUISHERS.contains(&d.type_.as_str())) {
            // Upstream shows the method as its own type has it.
            let shown = json!({ "Type": d.type_ });
            not_supported(&mut e, &path.child("distinguisherMethod").child("type"), &shown, DISTINGUISHERS);
        }
        let at = path.child("priorityLevelConfiguration").child("name");
        let level = &spec.priority_level_configuration.name;
        if level.is_empty() {
            e.required(&at, "must reference a priority level");
        } else {
            names::push_invalid(&mut e, &at, level, &names::dns1123_subdomain(level, false));
        }
        for (i, r) in spec.rules.iter().flatten().enumerate() {
            validate_rules(r, &path.child("rules").index(i), &mut e);
        }
        let fixed = defaults::mandatory_flow_schemas().into_iter().find(|m| m.metadata.name() == name);
        if fixed.is_some_and(|m| !semantically_equal(&m.spec, spec)) {
            e.invalid(&path, json!(spec), &format!("spec of '{name}' must equal the fixed value"));
        }
        e.extend(self.validate_status_update(self));
        e
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        self.status.clone_from(&old.status);
        let changed = !semantically_equal(&self.spec, &old.spec);
        bump_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context<'_>) {
        self.spec.clone_from(&old.spec);
        reset_for_status(&mut self.metadata, &old.metadata);
    }

    fn validate_status_update(&self, _: &Self) -> ErrorList {
        let mut e = ErrorList::default();
        let conditions = self.status.iter().flat_map(|s| s.conditions.iter().flatten());
        validate_conditions(conditions.map(|c| c.type_.as_str()), &mut e);
        e
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let spec = &self.spec;
        let conditions = self.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let dangling = conditions.into_iter().find(|c| c.type_ == "Dangling").map(|c| text(&c.status));
        vec![
            self.metadata.name().into(),
            spec.priority_level_configuration.name.as_str().into(),
            spec.matching_precedence.unwrap_or(0).into(),
            spec.distinguisher_method.as_ref().map_or("<none>", |d| d.type_.as_str()).into(),
            table::age(&self.metadata, now).into(),
            dangling.unwrap_or("?").into(),
        ]
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["metadata"], &["spec"]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(name: &str, spec: Value) -> FlowSchema {
        let mut s = FlowSchema::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
        s.set_defaults();
        s
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn field_errors() {
        let s = schema(
            "s",
            json!({"matchingPrecedence": 1, "distinguisherMethod": {"type": "x"}, "rules": [
            {"subjects": []},
            {"subjects": [{"kind": "User", "user": {"name": ""}, "group": {"name": "g"}}, {"kind": "ServiceAccount"},
                {"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": ""}}, {"kind": "x"}],
            "resourceRules": [{"verbs": ["*", "get"], "apiGroups": [], "resources": []},
                {"verbs": ["fly"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["A"]}],
            "nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["x", "/a b", "/a//b", "/*/a", "/a/*"]}]}]}),
        );
        let found = texts(&s.validate());
        let label = "spec.rules[1].resourceRules[1].namespaces[0]: Invalid value: \"A\": each member of this list \
            must be \
                     '*' or a DNS-1123 label; a lowercase RFC 1123 label must consist";
        assert!(found.iter().any(|t| t.starts_with(label)), "{found:#?}");
        let short: Vec<&str> = found.iter().map(String::as_str).filter(|t| !t.starts_with(label)).collect();
        assert_eq!(
            short,
            [
                "spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have \
                 matchingPrecedence 1",
                "spec.distinguisherMethod.type: Unsupported value: {\"Type\":\"x\"}: supported values: \
                 \"ByNamespace\", \
                 \"ByUser\"",
                "spec.priorityLevelConfiguration.name: Required value: must reference a priority level",
                "spec.rules[0].subjects: Required value: subjects must contain at least one value",
                "spec.rules[0]: Required value: at least one of resourceRules and nonResourceRules has to be non-empty",
                "spec.rules[1].subjects[0].user.name: Required value",
                "spec.rules[1].subjects[0].group: Forbidden: group is forbidden when subject kind is not 'Group'",
                "spec.rules[1].subjects[1].serviceAccount: Required value: serviceAccount is required when subject \
                 kind is \
                 'ServiceAccount'",
                "spec.rules[1].subjects[2].serviceAccount.namespace: Required value: must specify namespace for \
                 service \
                 account",
                "spec.rules[1].subjects[3].kind: Unsupported value: \"x\": supported values: \"Group\", \
                 \"ServiceAccount\", \"User\"",
                "spec.rules[1].resourceRules[0].verbs: Invalid value: [\"*\",\"get\"]: if '*' is present, must not \
                 specify \
                 other verbs",
                "spec.rules[1].resourceRules[0].apiGroups: Required value: resource rules must supply at least one \
                 api group",
                "spec.rules[1].resourceRules[0].resources: Required value: resource rules must supply at least one \
                 resource",
                "spec.rules[1].resourceRules[0].namespaces: Required value: resource rules that are not cluster \
                 scoped must \
                 supply at least one namespace",
                "spec.rules[1].resourceRules[1].verbs: Unsupported value: [\"fly\"]: supported values: \"create\", \
                 \"delete\", \"deletecollection\", \"get\", \"list\", \"patch\", \"proxy\", \"update\", \"watch\"",
                "spec.rules[1].nonResourceRules[0].nonResourceURLs[0]: Invalid value: \"x\": must start with slash",
                "spec.rules[1].nonResourceRules[0].nonResourceURLs[1]: Invalid value: \"/a b\": must not contain \
                 white-space",
                "spec.rules[1].nonResourceRules[0].nonResourceURLs[2]: Invalid value: \"/a//b\": must not contain \
                 double \
                 slash",
                "spec.rules[1].nonResourceRules[0].nonResourceURLs[3]: Invalid value: \"/*/a\": wildcard can only do \
                 suffix \
                 matching",
            ]
        );
    }

    #[test]
    fn mandatory_ones_are_fixed_and_changes_count() {
        let cx = Context { now: Timestamp::UNIX_EPOCH, username: "" };
        let mut fixed = defaults::mandatory_flow_schemas().remove(1);
        fixed.prepare_for_create(&cx);
        let mut changed = fixed.clone();
        changed.spec.matching_precedence = Some(9);
        changed.prepare_for_update(&fixed, &cx);
        assert_eq!(changed.metadata.generation, Some(2));
        let found = texts(&changed.validate_update(&fixed));
        assert!(found[0].ends_with("spec of 'catch-all' must equal the fixed value"), "{found:?}");
        assert_eq!(json!(fixed.cells(cx.now)), json!(["catch-all", "catch-all", 10_000, "ByUser", "<unknown>", "?"]));
        changed.status =
            FlowSchema::from_value(json!({"status": {"conditions": [{"type": ""}, {"type": ""}]}})).unwrap().status;
        assert_eq!(
            texts(&changed.validate_status_update(&fixed)),
            [
                "status.conditions[0].type: Required value: must not be empty",
                "status.conditions[1].type: Duplicate value: \"\"",
                "status.conditions[1].type: Required value: must not be empty",
            ]
        );
    }
}
