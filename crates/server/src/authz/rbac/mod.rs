//! RBAC: decides from the roles and bindings in the watch caches.

mod index;
#[cfg(test)]
mod tests;

use super::{Attributes, Authorizer, Decision, Rules};
use crate::authn::UserInfo;
use crate::cluster::{Cluster, resource_of};
use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use gantry_api::k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding};
use gantry_api::meta::status::ApiError;
use gantry_api::rbac::rules;
use index::Index;
use std::sync::Arc;
use tokio::sync::Mutex;

/// Generations of the four resources that an index was made from.
type Stamp = [u64; 4];

/// The RBAC authorizer. Its index is made anew only when a role or binding changed.
pub struct Rbac {
    cluster: Cluster,
    index: ArcSwapOption<(Stamp, Index)>,
    building: Mutex<()>,
}

impl Rbac {
    /// Decides from the objects of `cluster`.
    #[must_use]
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster, index: ArcSwapOption::empty(), building: Mutex::new(()) }
    }

    fn stamp(&self) -> Stamp {
        let generation = |r| self.cluster.objects.generation(r);
        [
            generation(resource_of::<ClusterRole>()),
            generation(resource_of::<ClusterRoleBinding>()),
            generation(resource_of::<Role>()),
            generation(resource_of::<RoleBinding>()),
        ]
    }

    fn fresh(&self) -> Option<Arc<(Stamp, Index)>> {
        self.index.load_full().filter(|i| i.0 == self.stamp())
    }

    async fn current(&self) -> Result<Arc<(Stamp, Index)>, ApiError> {
        if let Some(index) = self.fresh() {
            return Ok(index);
        }
        // One request makes the index, the others wait for it.
        let _building = self.building.lock().await;
        if let Some(index) = self.fresh() {
            return Ok(index);
        }
        // The stamp is taken first: a change while listing makes the next request build again.
        let stamp = self.stamp();
        let index = Index::build(
            &self.cluster.list::<ClusterRole>("").await?,
            &self.cluster.list::<ClusterRoleBinding>("").await?,
            &self.cluster.list::<Role>("").await?,
            &self.cluster.list::<RoleBinding>("").await?,
        );
        let built = Arc::new((stamp, index));
        self.index.store(Some(built.clone()));
        Ok(built)
    }
}

/// Whether one rule allows what is asked for.
#[must_use]
pub(super) fn rule_allows(rule: &PolicyRule, a: &Attributes) -> bool {
    if !rules::verb_matches(rule, &a.verb) {
        return false;
    }
    if a.is_resource {
        rules::group_matches(rule, &a.group)
            && rules::resource_matches(rule, &a.resource, &a.subresource)
            && rules::name_matches(rule, &a.name)
    } else {
        rules::path_matches(rule, &a.path)
    }
}

/// What an index says: allowed, with the reason, or not, with the roles that are missing.
fn decide(index: &Index, attributes: &Attributes) -> Decision {
    let mut missing = Vec::new();
    for grant in index.grants(&attributes.user, if attributes.is_resource { &attributes.namespace } else { "" }) {
        match &grant.rules {
            Ok(rules) if rules.iter().any(|r| rule_allows(r, attributes)) => {
                return Decision::Allow(format!("RBAC: allowed by {}", grant.description));
            }
            Ok(_) => {}
            Err(e) if missing.contains(e) => {}
            Err(e) => missing.push(e.clone()),
        }
    }
    Decision::NoOpinion(match missing.as_slice() {
        [] => String::new(),
        [one] => format!("RBAC: {one}"),
        many => format!("RBAC: [{}]", many.join(", ")),
    })
}

#[async_trait]
impl Authorizer for Rbac {
    async fn authorize(&self, attributes: &Attributes) -> Decision {
        let index = match self.current().await {
            Ok(index) => index,
            Err(e) => return Decision::NoOpinion(format!("RBAC: {e}")),
        };
        let decision = decide(&index.1, attributes);
        if matches!(decision, Decision::Allow(_)) {
            return decision;
        }
        // Before refusing, see every grant that was acknowledged before this request.
        let caught_up = self.cluster.objects.get(resource_of::<RoleBinding>(), "", "", true).await;
        match (caught_up, self.current().await) {
            (Ok(_), Ok(newer)) if newer.0 != index.0 => decide(&newer.1, attributes),
            (Err(e), _) | (_, Err(e)) => Decision::NoOpinion(format!("RBAC: {e}")),
            _ => decision,
        }
    }

    async fn rules_for(&self, user: &UserInfo, namespace: &str) -> Rules {
        let index = match self.current().await {
            Ok(index) => index,
            Err(e) => {
                return Rules { incomplete: true, errors: vec![e.to_string()], ..Rules::default() };
            }
        };
        let mut out = Rules::default();
        for grant in index.1.grants(user, namespace) {
            match &grant.rules {
                Ok(rules) => out.rules.extend(rules.iter().cloned()),
                Err(e) => {
                    if !out.errors.contains(e) {
                        out.errors.push(e.clone());
                    }
                }
            }
        }
        out
    }
}
