//! The authorizers in their order: superusers, Node, RBAC.

use super::{Attributes, Authorizer, Decision, NodeAuthorizer, Rbac, Rules};
use crate::authn::{MASTERS, UserInfo};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::k8s_openapi::api::rbac::v1::PolicyRule;
use std::sync::Arc;

/// Allows everything to members of `system:masters`, even while no role can be read.
pub struct Superuser;

#[async_trait]
impl Authorizer for Superuser {
    async fn authorize(&self, attributes: &Attributes) -> Decision {
        match attributes.user.in_group(MASTERS) {
            true => Decision::Allow(String::new()),
            false => Decision::NoOpinion(String::new()),
        }
    }

    async fn rules_for(&self, user: &UserInfo, _namespace: &str) -> Rules {
        let all = || Some(vec!["*".to_owned()]);
        let rules = if user.in_group(MASTERS) {
            let on_resources =
                PolicyRule { api_groups: all(), resources: all(), verbs: vec!["*".to_owned()], ..Default::default() };
            let on_paths = PolicyRule { non_resource_urls: all(), verbs: vec!["*".to_owned()], ..Default::default() };
            vec![on_resources, on_paths]
        } else {
            Vec::new()
        };
        Rules { rules, ..Rules::default() }
    }
}

/// Asks authorizers in order until one allows or denies.
pub struct Union {
    members: Vec<Box<dyn Authorizer>>,
}

impl Union {
    /// Asks `members` in order.
    #[must_use]
    pub fn new(members: Vec<Box<dyn Authorizer>>) -> Self {
        Self { members }
    }
}

#[async_trait]
impl Authorizer for Union {
    async fn authorize(&self, attributes: &Attributes) -> Decision {
        let mut reasons = Vec::new();
        for member in &self.members {
            match member.authorize(attributes).await {
                Decision::NoOpinion(reason) if reason.is_empty() => {}
                Decision::NoOpinion(reason) => reasons.push(reason),
                decided => return decided,
            }
        }
        Decision::NoOpinion(reasons.join("\n"))
    }

    async fn rules_for(&self, user: &UserInfo, namespace: &str) -> Rules {
        let mut all = Rules::default();
        for member in &self.members {
            let rules = member.rules_for(user, namespace).await;
            all.rules.extend(rules.rules);
            all.incomplete |= rules.incomplete;
            all.errors.extend(rules.errors);
        }
        all
    }
}

/// The authorizers every cluster has.
#[must_use]
pub fn default_authorizer(cluster: &Cluster) -> Arc<dyn Authorizer> {
    Arc::new(Union::new(vec![
        Box::new(Superuser),
        Box::new(NodeAuthorizer::new(cluster.clone())),
        Box::new(Rbac::new(cluster.clone())),
    ]))
}
