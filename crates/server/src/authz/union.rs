//! The authorizers in their order: superusers, then those that are configured.

use super::config::AuthorizationConfiguration;
use super::{Abac, Attributes, Authorizer, Decision, NodeAuthorizer, Rbac, Rules, WebhookAuthorizer};
use crate::access::{AccessConfig, EndpointReader};
use crate::authn::{MASTERS, UserInfo};
use crate::cluster::Cluster;
use arc_swap::ArcSwap;
use async_trait::async_trait;
use gantry_api::k8s_openapi::api::rbac::v1::PolicyRule;
use std::sync::Arc;

/// Rules that allow everything.
fn everything() -> Vec<PolicyRule> {
    let all = || Some(vec!["*".to_owned()]);
    let on_resources =
        PolicyRule { api_groups: all(), resources: all(), verbs: vec!["*".to_owned()], ..Default::default() };
    let on_paths = PolicyRule { non_resource_urls: all(), verbs: vec!["*".to_owned()], ..Default::default() };
    vec![on_resources, on_paths]
}

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
        let rules = if user.in_group(MASTERS) { everything() } else { Vec::new() };
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
        let (mut reasons, mut failures) = (Vec::new(), Vec::new());
        for member in &self.members {
            match member.authorize(attributes).await {
                Decision::NoOpinion(reason) if reason.is_empty() => {}
                Decision::NoOpinion(reason) => reasons.push(reason),
                Decision::Failed { denied: false, why } => failures.push(why),
                decided => return decided,
            }
        }
        match failures.len() {
            0 => Decision::NoOpinion(reasons.join("\n")),
            1 => Decision::Failed { denied: false, why: failures.remove(0) },
            _ => Decision::Failed { denied: false, why: format!("[{}]", failures.join(", ")) },
        }
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

/// Allows everything to everybody (`--authorization-mode=AlwaysAllow`).
struct AlwaysAllow;

#[async_trait]
impl Authorizer for AlwaysAllow {
    async fn authorize(&self, _: &Attributes) -> Decision {
        Decision::Allow(String::new())
    }

    async fn rules_for(&self, _: &UserInfo, _: &str) -> Rules {
        Rules { rules: everything(), ..Rules::default() }
    }
}

/// Allows nothing to anybody (`--authorization-mode=AlwaysDeny`), but leaves a say to those asked after it.
struct AlwaysDeny;

#[async_trait]
impl Authorizer for AlwaysDeny {
    async fn authorize(&self, _: &Attributes) -> Decision {
        Decision::NoOpinion("Everything is forbidden.".into())
    }

    async fn rules_for(&self, _: &UserInfo, _: &str) -> Rules {
        Rules::default()
    }
}

/// The authorizers that a configuration names, in its order. The configuration can be replaced while the server runs.
pub struct Configured {
    members: ArcSwap<Union>,
    cluster: Cluster,
    abac: Abac,
    endpoints: EndpointReader,
}

impl Configured {
    /// The authorizers of `access`, which has been checked.
    ///
    /// # Errors
    /// Names the authorizer that cannot be made.
    pub fn new(cluster: &Cluster, access: &AccessConfig) -> Result<Self, String> {
        let made = Self {
            members: ArcSwap::from_pointee(Union::new(Vec::new())),
            cluster: cluster.clone(),
            abac: access.abac.clone(),
            endpoints: access.endpoints.clone(),
        };
        made.apply(&access.authorization)?;
        Ok(made)
    }

    fn apply(&self, config: &AuthorizationConfiguration) -> Result<(), String> {
        let mut members: Vec<Box<dyn Authorizer>> = vec![Box::new(Superuser)];
        for a in &config.authorizers {
            members.push(match a.kind.as_str() {
                "Node" => Box::new(NodeAuthorizer::new(self.cluster.clone())),
                "RBAC" => Box::new(Rbac::new(self.cluster.clone())),
                "ABAC" => Box::new(self.abac.clone()),
                "AlwaysAllow" => Box::new(AlwaysAllow),
                "AlwaysDeny" => Box::new(AlwaysDeny),
                _ => {
                    let webhook = a.webhook.clone().ok_or_else(|| format!("unknown authorizer {:?}", a.kind))?;
                    let file = webhook.connection_info.kube_config_file.clone().unwrap_or_default();
                    let endpoint = (self.endpoints.0)(&file)?;
                    Box::new(WebhookAuthorizer::new(&a.name, webhook, endpoint, self.cluster.clock)?)
                }
            });
        }
        self.members.store(Arc::new(Union::new(members)));
        Ok(())
    }

    /// Asks those that another document names from now on.
    ///
    /// # Errors
    /// What is wrong with it; then everything stays as it was.
    pub fn replace(&self, text: &str) -> Result<(), String> {
        self.apply(&super::config::parse(text)?)
    }
}

#[async_trait]
impl Authorizer for Configured {
    async fn authorize(&self, attributes: &Attributes) -> Decision {
        // Authorizers of this process answer at once; the guard would be held while a webhook is asked.
        let members = self.members.load_full();
        members.authorize(attributes).await
    }

    async fn rules_for(&self, user: &UserInfo, namespace: &str) -> Rules {
        let members = self.members.load_full();
        members.rules_for(user, namespace).await
    }
}

/// The authorizers a cluster has unless told otherwise.
#[cfg(test)]
pub(crate) fn default_authorizer(cluster: &Cluster) -> Arc<dyn Authorizer> {
    Arc::new(Union::new(vec![
        Box::new(Superuser),
        Box::new(NodeAuthorizer::new(cluster.clone())),
        Box::new(Rbac::new(cluster.clone())),
    ]))
}
