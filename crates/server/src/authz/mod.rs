//! Who may do what: authorizers are asked in order until one allows or denies.

mod abac;
pub mod aggregation;
pub mod bootstrap;
pub mod config;
mod node;
mod rbac;
mod union;
mod webhook;

pub use abac::Abac;
pub use node::NodeAuthorizer;
pub use rbac::Rbac;
#[cfg(test)]
pub(crate) use union::default_authorizer;
pub use union::{Configured, Superuser, Union};
pub use webhook::WebhookAuthorizer;

use crate::authn::UserInfo;
use crate::request::RequestInfo;
use async_trait::async_trait;
use gantry_api::k8s_openapi::api::rbac::v1::PolicyRule;
use gantry_api::meta::status::ApiError;

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Who asks.
    pub user: UserInfo,
    /// `get`, `list`, `create`, …; for non-resource paths the lower-case HTTP method.
    pub verb: String,
    /// Namespace, empty for cluster scope or all.
    pub namespace: String,
    /// API group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural resource, empty for a non-resource request.
    pub resource: String,
    /// Subresource, may be empty.
    pub subresource: String,
    /// Object name, may be empty.
    pub name: String,
    /// Path of a non-resource request, or the request path.
    pub path: String,
    /// Whether it is a resource request.
    pub is_resource: bool,
    /// Field selector of a list/watch/deletecollection, for the node authorizer and KEP-4601.
    pub field_selector: Option<String>,
    /// Label selector likewise.
    pub label_selector: Option<String>,
}

impl Attributes {
    /// What a routed request asks for. `query` are its decoded parameters, for the selectors.
    #[must_use]
    pub fn of_request(info: &RequestInfo, user: &UserInfo, query: &[(String, String)]) -> Self {
        let selects = matches!(info.verb.as_str(), "list" | "watch" | "deletecollection");
        let param = |name: &str| {
            let found = query.iter().find(|(k, _)| k == name).map(|(_, v)| v.clone());
            found.filter(|v| selects && !v.is_empty())
        };
        Self {
            user: user.clone(),
            verb: info.verb.clone(),
            namespace: info.namespace.clone(),
            group: info.group.clone(),
            version: info.version.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
            name: info.name.clone(),
            path: info.path.clone(),
            is_resource: info.is_resource,
            field_selector: param("fieldSelector"),
            label_selector: param("labelSelector"),
        }
    }

    /// The 403 that answers a request nobody allowed, with upstream's sentence.
    #[must_use]
    pub fn forbidden(&self, reason: &str) -> ApiError {
        let (user, verb) = (&self.user.username, &self.verb);
        let mut what = if self.is_resource {
            let resource = match self.subresource.as_str() {
                "" => self.resource.clone(),
                sub => format!("{}/{sub}", self.resource),
            };
            let place = match self.namespace.as_str() {
                "" => "at the cluster scope".to_owned(),
                ns => format!("in the namespace {ns:?}"),
            };
            format!("User {user:?} cannot {verb} resource {resource:?} in API group {:?} {place}", self.group)
        } else {
            format!("User {user:?} cannot {verb} path {:?}", self.path)
        };
        if !reason.is_empty() {
            what = format!("{what}: {reason}");
        }
        match self.is_resource {
            true => ApiError::forbidden(&self.group, &self.resource, &self.name, &what),
            false => ApiError::forbidden("", "", "", &what),
        }
    }
}

/// An authorizer's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Allowed, with the reason.
    Allow(String),
    /// Denied for good; later authorizers are not asked.
    Deny(String),
    /// No opinion, with a reason to report if nobody allows.
    NoOpinion(String),
    /// An authorizer could not decide, and nobody else allowed.
    Failed {
        /// Whether it denies for good what it cannot decide.
        denied: bool,
        /// What failed.
        why: String,
    },
}

/// Decides from attributes.
#[async_trait]
pub trait Authorizer: Send + Sync {
    /// Decides.
    async fn authorize(&self, attributes: &Attributes) -> Decision;

    /// All rules that apply to a user in a namespace, for SelfSubjectRulesReview and escalation checks.
    async fn rules_for(&self, _user: &UserInfo, _namespace: &str) -> Rules {
        Rules { incomplete: true, ..Rules::default() }
    }
}

/// The rules that apply to a user.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The rules.
    pub rules: Vec<PolicyRule>,
    /// Whether there may be more: an authorizer that cannot list its rules also has a say.
    pub incomplete: bool,
    /// Roles that are bound but could not be found.
    pub errors: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_read_as_upstream() {
        let user = UserInfo::new("bob", &[]);
        let base =
            Attributes { user, verb: "list".into(), resource: "pods".into(), is_resource: true, ..Default::default() };
        let cases = [
            (
                base.clone(),
                "",
                r#"pods is forbidden: User "bob" cannot list resource "pods" in API group "" at the cluster scope"#,
            ),
            (
                Attributes {
                    namespace: "d".into(),
                    name: "x".into(),
                    subresource: "log".into(),
                    verb: "get".into(),
                    ..base.clone()
                },
                "why",
                r#"pods "x" is forbidden: User "bob" cannot get resource "pods/log" in API group "" in the namespace "d": why"#,
            ),
            (
                Attributes { group: "apps".into(), resource: "deployments".into(), ..base.clone() },
                "",
                r#"deployments.apps is forbidden: User "bob" cannot list resource "deployments" in API group "apps" at the cluster scope"#,
            ),
            (
                Attributes { is_resource: false, path: "/metrics".into(), verb: "get".into(), ..base },
                "",
                r#"forbidden: User "bob" cannot get path "/metrics""#,
            ),
        ];
        for (attributes, reason, want) in cases {
            assert_eq!(attributes.forbidden(reason).message, want);
        }
    }
}
