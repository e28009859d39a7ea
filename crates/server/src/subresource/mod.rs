//! Subresources and virtual kinds with behaviour of their own (binding, eviction, exec, log, token, reviews, …), each
//! a handler in one file, registered in [`list`].

mod access_review;
mod binding;
mod body;
mod eviction;
mod explain;
pub mod kubelet;
mod rules_review;
mod self_subject_review;
mod service_account_token;
#[cfg(test)]
mod tests;
mod token_review;

pub use explain::{Explain, ExplainSlot};

use crate::cluster::Cluster;
use crate::request::{HandlerResult, RequestContext};
use async_trait::async_trait;
use bytes::Bytes;

/// Answers every verb of one subresource (or of one virtual kind, with an empty subresource name).
#[async_trait]
pub trait Handler: Send + Sync {
    /// Group, version, plural resource and subresource answered.
    fn target(&self) -> (&'static str, &'static str, &'static str, &'static str);
    /// Handles an authenticated, authorized request. `body` is complete (and empty for upgrades).
    /// The handler runs admission itself through [`crate::admission::Chain`] where upstream does (connect, create).
    ///
    /// # Errors
    /// A failure `Status`.
    async fn handle(&self, request: RequestContext, body: Bytes, services: &Services) -> HandlerResult;
}

/// What handlers may use.
#[derive(Clone)]
pub struct Services {
    /// Cached objects and registry writes.
    pub cluster: Cluster,
    /// Admission plugins.
    pub admission: std::sync::Arc<crate::admission::Chain>,
    /// Authorizers, for access reviews and escalation checks.
    pub authorizer: std::sync::Arc<dyn crate::authz::Authorizer>,
    /// Authenticators, for token reviews.
    pub authenticator: std::sync::Arc<dyn crate::authn::Authenticator>,
    /// Configuration.
    pub config: std::sync::Arc<crate::config::ServerConfig>,
    /// The one question that is asked of the scheduler.
    pub explain: ExplainSlot,
}

/// Every handler there is.
#[must_use]
pub fn list(services: &Services) -> Vec<Box<dyn Handler>> {
    let commits = binding::Commits::default();
    let mut handlers: Vec<Box<dyn Handler>> = vec![
        Box::new(binding::PodBinding(commits.clone())),
        Box::new(binding::Bindings(commits)),
        Box::new(eviction::PodEviction),
        Box::new(explain::PodExplain),
        Box::new(token_review::TokenReviews),
        Box::new(self_subject_review::SelfSubjectReviews),
        Box::new(access_review::SubjectAccessReviews),
        Box::new(access_review::LocalSubjectAccessReviews),
        Box::new(access_review::SelfSubjectAccessReviews),
        Box::new(rules_review::SelfSubjectRulesReviews),
    ];
    match service_account_token::ServiceAccountToken::new(&services.config) {
        Ok(handler) => handlers.push(Box::new(handler)),
        Err(e) => tracing::error!(error = %e, "serviceaccounts/token is not served"),
    }
    match kubelet::handlers(&services.config) {
        Ok(more) => handlers.extend(more),
        Err(e) => tracing::error!(error = %e, "logs, exec, attach, port-forward and proxies are not served"),
    }
    handlers
}
