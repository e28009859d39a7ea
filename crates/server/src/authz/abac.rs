//! Attribute-based access control by a file of policies, one per line (`pkg/auth/authorizer/abac`).

use super::{Attributes, Authorizer, Decision, Rules};
use crate::authn::UserInfo;
use async_trait::async_trait;
use gantry_api::k8s_openapi::api::rbac::v1::PolicyRule;
use serde::Deserialize;
use serde_json::Value;

const API_VERSION: &str = "abac.authorization.kubernetes.io/v1beta1";

/// What one line allows.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Policy {
    #[serde(default)]
    user: String,
    #[serde(default)]
    group: String,
    #[serde(default)]
    readonly: bool,
    #[serde(default, rename = "apiGroup")]
    api_group: String,
    #[serde(default)]
    resource: String,
    #[serde(default)]
    namespace: String,
    #[serde(default, rename = "nonResourcePath")]
    non_resource_path: String,
}

/// Decides from a file of policies.
#[derive(Clone, Debug, Default)]
pub struct Abac {
    policies: Vec<Policy>,
}

fn read(line: &str) -> Result<Policy, String> {
    let value: Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let text = |field: &str| value[field].as_str().unwrap_or_default();
    match (text("apiVersion"), text("kind")) {
        (API_VERSION, "Policy") => {
            let spec = value.get("spec").cloned().unwrap_or_else(|| Value::Object(serde_json::Map::default()));
            let policy = serde_json::from_value(spec).map_err(|e| e.to_string())?;
            Ok(of_everybody(policy))
        }
        ("", "") => {
            // The form before there were versions: fields at the top, of every group, and empty ones match all.
            let old: Policy = serde_json::from_value(value.clone()).map_err(|e| e.to_string())?;
            Ok(unversioned(old))
        }
        (version, kind) => Err(format!("no kind {kind:?} is registered for version {version:?}")),
    }
}

/// `*` is everybody who showed credentials.
fn of_everybody(mut policy: Policy) -> Policy {
    if policy.user == "*" || policy.group == "*" {
        (policy.user, policy.group) = (String::new(), crate::authn::AUTHENTICATED.into());
    }
    policy
}

fn unversioned(policy: Policy) -> Policy {
    let mut policy = of_everybody(policy);
    // A policy without a subject was for everybody who showed credentials.
    if policy.user.is_empty() && policy.group.is_empty() {
        policy.group = crate::authn::AUTHENTICATED.into();
    }
    // One that named neither namespace nor resource was for every path, too.
    if policy.namespace.is_empty() && policy.resource.is_empty() {
        policy.non_resource_path = "*".into();
    }
    policy.api_group = "*".into();
    for field in [&mut policy.namespace, &mut policy.resource] {
        if field.is_empty() {
            "*".clone_into(field);
        }
    }
    policy
}

impl Abac {
    /// Reads the policies of `text`, the content of the file at `path`.
    ///
    /// # Errors
    /// Names the line.
    pub fn parse(path: &str, text: &str) -> Result<Self, String> {
        let mut policies = Vec::new();
        let mut old = 0;
        for (i, line) in text.lines().enumerate() {
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            if !trimmed.contains("\"apiVersion\"") {
                old += 1;
            }
            let policy =
                read(trimmed).map_err(|e| format!("error reading policy file {path}, line {}: {line}: {e}", i + 1))?;
            policies.push(policy);
        }
        if old > 0 {
            tracing::warn!(path, lines = old, "the policy file contains unversioned rules");
        }
        Ok(Self { policies })
    }
}

fn subject_matches(p: &Policy, user: &UserInfo) -> bool {
    let mut matched = false;
    if !p.user.is_empty() {
        if p.user != "*" && p.user != user.username {
            return false;
        }
        matched = true;
    }
    if !p.group.is_empty() {
        if p.group != "*" && !user.in_group(&p.group) {
            return false;
        }
        matched = true;
    }
    matched
}

fn matches(p: &Policy, a: &Attributes) -> bool {
    let reads = matches!(a.verb.as_str(), "get" | "list" | "watch");
    if !subject_matches(p, &a.user) || (p.readonly && !reads) {
        return false;
    }
    let fits = |pattern: &str, value: &str| pattern == "*" || pattern == value;
    if a.is_resource {
        return fits(&p.namespace, &a.namespace) && fits(&p.resource, &a.resource) && fits(&p.api_group, &a.group);
    }
    let path = p.non_resource_path.as_str();
    fits(path, &a.path) || path.ends_with('*') && a.path.starts_with(path.trim_end_matches('*'))
}

#[async_trait]
impl Authorizer for Abac {
    async fn authorize(&self, attributes: &Attributes) -> Decision {
        match self.policies.iter().any(|p| matches(p, attributes)) {
            true => Decision::Allow(String::new()),
            false => Decision::NoOpinion("No policy matched.".into()),
        }
    }

    async fn rules_for(&self, user: &UserInfo, namespace: &str) -> Rules {
        let mut rules = Vec::new();
        let own = self.policies.iter().filter(|p| subject_matches(p, user));
        for p in own.filter(|p| p.namespace == "*" || p.namespace == namespace) {
            let verbs = if p.readonly { vec!["get", "list", "watch"] } else { vec!["*"] };
            let verbs: Vec<String> = verbs.into_iter().map(str::to_owned).collect();
            if !p.resource.is_empty() {
                rules.push(PolicyRule {
                    api_groups: Some(vec![p.api_group.clone()]),
                    resources: Some(vec![p.resource.clone()]),
                    verbs: verbs.clone(),
                    ..PolicyRule::default()
                });
            }
            if !p.non_resource_path.is_empty() {
                let non_resource_urls = Some(vec![p.non_resource_path.clone()]);
                rules.push(PolicyRule { non_resource_urls, verbs, ..PolicyRule::default() });
            }
        }
        Rules { rules, ..Rules::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
# alice may do everything, bob reads pods of one namespace, everybody reads the version.
{"apiVersion": "abac.authorization.kubernetes.io/v1beta1", "kind": "Policy", "spec": {"user": "alice", "namespace": "*", "resource": "*", "apiGroup": "*", "nonResourcePath": "*"}}
{"apiVersion": "abac.authorization.kubernetes.io/v1beta1", "kind": "Policy", "spec": {"user": "bob", "namespace": "projectCaribou", "resource": "pods", "readonly": true}}
{"apiVersion": "abac.authorization.kubernetes.io/v1beta1", "kind": "Policy", "spec": {"group": "system:authenticated", "readonly": true, "nonResourcePath": "/version*"}}
{"user": "carol", "resource": "pods"}
"#;

    #[tokio::test]
    async fn lines_allow() {
        let abac = Abac::parse("f", FILE).unwrap();
        let ask = |user: &str, verb: &str, group: &str, resource: &str, namespace: &str| Attributes {
            user: UserInfo::new(user, &[]),
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            namespace: namespace.into(),
            is_resource: true,
            ..Attributes::default()
        };
        let cases = [
            (ask("alice", "delete", "apps", "deployments", "x"), true),
            (ask("bob", "list", "", "pods", "projectCaribou"), true),
            (ask("bob", "create", "", "pods", "projectCaribou"), false),
            (ask("bob", "list", "", "pods", "other"), false),
            (ask("bob", "list", "metrics.k8s.io", "pods", "projectCaribou"), false),
            (ask("carol", "delete", "any", "pods", "any"), true),
            (ask("carol", "get", "", "secrets", "any"), false),
        ];
        for (attributes, allowed) in cases {
            let decision = abac.authorize(&attributes).await;
            assert_eq!(matches!(decision, Decision::Allow(_)), allowed, "{attributes:?}");
        }
        let path = |path: &str| Attributes {
            user: UserInfo::new("dave", &[]),
            verb: "get".into(),
            path: path.into(),
            ..Attributes::default()
        };
        assert_eq!(abac.authorize(&path("/version/x")).await, Decision::Allow(String::new()));
        assert_eq!(abac.authorize(&path("/metrics")).await, Decision::NoOpinion("No policy matched.".into()));
        assert_eq!(abac.rules_for(&UserInfo::new("bob", &[]), "projectCaribou").await.rules[0].verbs.len(), 3);
    }

    #[test]
    fn a_bad_line_is_named() {
        let why = Abac::parse("policy.jsonl", "\n{\"kind\": \"Policy\"\n").unwrap_err();
        assert!(why.starts_with("error reading policy file policy.jsonl, line 2: {\"kind\": \"Policy\": "), "{why}");
    }
}
