//! Which flow schema a request belongs to.

use crate::authn::UserInfo;
use crate::request::RequestInfo;
use gantry_api::k8s_openapi::api::flowcontrol::v1::{
    FlowSchemaSpec, NonResourcePolicyRule, PolicyRulesWithSubjects, ResourcePolicyRule, Subject,
};

/// Whether a rule of the schema covers the request.
#[must_use]
pub fn matches(schema: &FlowSchemaSpec, info: &RequestInfo, user: &UserInfo) -> bool {
    schema.rules.iter().flatten().any(|rule| matches_rule(rule, info, user))
}

/// What tells flows of a schema apart.
#[must_use]
pub fn distinguisher(schema: &FlowSchemaSpec, info: &RequestInfo, user: &UserInfo) -> String {
    match schema.distinguisher_method.as_ref().map(|m| m.type_.as_str()) {
        Some("ByUser") => user.username.clone(),
        Some("ByNamespace") => info.namespace.clone(),
        _ => String::new(),
    }
}

fn matches_rule(rule: &PolicyRulesWithSubjects, info: &RequestInfo, user: &UserInfo) -> bool {
    if !rule.subjects.iter().any(|s| matches_subject(s, user)) {
        return false;
    }
    if info.is_resource {
        rule.resource_rules.iter().flatten().any(|r| matches_resource(r, info))
    } else {
        rule.non_resource_rules.iter().flatten().any(|r| matches_path(r, info))
    }
}

fn matches_subject(subject: &Subject, user: &UserInfo) -> bool {
    match subject.kind.as_str() {
        "User" => subject.user.as_ref().is_some_and(|u| u.name == "*" || u.name == user.username),
        "Group" => subject.group.as_ref().is_some_and(|g| g.name == "*" || user.in_group(&g.name)),
        "ServiceAccount" => subject.service_account.as_ref().is_some_and(|wanted| {
            let name = user.username.strip_prefix("system:serviceaccount:");
            let parts = name.and_then(|n| n.split_once(':'));
            parts.is_some_and(|(ns, name)| ns == wanted.namespace && (wanted.name == "*" || wanted.name == name))
        }),
        _ => false,
    }
}

fn holds(list: &[String], value: &str) -> bool {
    list == ["*"] || list.iter().any(|v| v == value)
}

fn matches_resource(rule: &ResourcePolicyRule, info: &RequestInfo) -> bool {
    if !holds(&rule.verbs, &info.verb) || !holds(&rule.api_groups, &info.group) {
        return false;
    }
    let wanted = match info.subresource.as_str() {
        "" => holds(&rule.resources, &info.resource),
        sub => holds(&rule.resources, &format!("{}/{sub}", info.resource)),
    };
    wanted
        && if info.namespace.is_empty() {
            rule.cluster_scope == Some(true)
        } else {
            holds(rule.namespaces.as_deref().unwrap_or_default(), &info.namespace)
        }
}

/// A path covers itself and what is below it.
fn matches_path(rule: &NonResourcePolicyRule, info: &RequestInfo) -> bool {
    holds(&rule.verbs, &info.verb)
        && rule.non_resource_urls.iter().any(|url| {
            let below = url.strip_suffix('*').unwrap_or(url);
            let below = below.strip_suffix('/').unwrap_or(below);
            url == "*" || *url == info.path || info.path.strip_prefix(below).is_some_and(|rest| rest.starts_with('/'))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::flowcontrol::defaults;

    /// The schema of a fresh cluster that a request belongs to.
    fn schema_of(info: &RequestInfo, user: &UserInfo) -> String {
        let mut all: Vec<_> =
            defaults::mandatory_flow_schemas().into_iter().chain(defaults::suggested_flow_schemas()).collect();
        all.sort_by_key(|s| s.spec.matching_precedence);
        let found = all.into_iter().find(|s| matches(&s.spec, info, user));
        found.and_then(|s| s.metadata.name).unwrap_or_default()
    }

    fn resource(verb: &str, group: &str, namespace: &str, resource: &str, subresource: &str) -> RequestInfo {
        RequestInfo {
            is_resource: true,
            verb: verb.into(),
            group: group.into(),
            namespace: namespace.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            ..Default::default()
        }
    }

    #[test]
    fn requests_of_a_fresh_cluster() {
        let pods = resource("list", "", "default", "pods", "");
        let node = UserInfo::new("system:node:a", &["system:nodes"]);
        let account = |ns: &str| {
            let groups = ["system:serviceaccounts", &format!("system:serviceaccounts:{ns}")];
            UserInfo::new(&format!("system:serviceaccount:{ns}:x"), &groups)
        };
        assert_eq!(schema_of(&pods, &UserInfo::new("admin", &["system:masters"])), "exempt");
        assert_eq!(schema_of(&pods, &node), "system-nodes");
        assert_eq!(schema_of(&resource("patch", "", "", "nodes", "status"), &node), "system-node-high");
        assert_eq!(schema_of(&resource("get", "", "", "nodes", "proxy"), &node), "system-nodes");
        assert_eq!(schema_of(&pods, &account("kube-system")), "kube-system-service-accounts");
        assert_eq!(schema_of(&pods, &account("kube-system-2")), "service-accounts");
        let lease = resource("update", "coordination.k8s.io", "kube-system", "leases", "");
        assert_eq!(schema_of(&lease, &account("kube-system")), "system-leader-election");
        assert_eq!(schema_of(&pods, &UserInfo::new("jane", &[])), "global-default");
        let path = |p: &str| RequestInfo { verb: "get".into(), path: p.into(), ..Default::default() };
        for (p, schema) in [("/livez", "probes"), ("/readyz/etcd", "probes"), ("/livezx", "global-default")] {
            assert_eq!(schema_of(&path(p), &UserInfo::anonymous()), schema, "{p}");
        }
        assert_eq!(schema_of(&pods, &UserInfo::default()), "", "neither authenticated nor not: nobody's");
    }

    #[test]
    fn the_namespace_counts() {
        let rule = |namespaces: Option<Vec<String>>, cluster_scope| ResourcePolicyRule {
            verbs: vec!["*".into()],
            api_groups: vec!["*".into()],
            resources: vec!["*".into()],
            namespaces,
            cluster_scope,
        };
        let (inside, outside) = (resource("get", "", "a", "pods", ""), resource("get", "", "", "nodes", ""));
        let only_a = rule(Some(vec!["a".into()]), None);
        assert!(matches_resource(&only_a, &inside) && !matches_resource(&only_a, &outside));
        let only_cluster = rule(None, Some(true));
        assert!(!matches_resource(&only_cluster, &inside) && matches_resource(&only_cluster, &outside));
    }
}
