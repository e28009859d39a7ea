//! RBAC escalation: nobody grants what he does not have himself, unless he may `escalate` (roles) or `bind` (bindings).

use super::{Attributes, Operation, ValidatingPlugin};
use crate::authn::MASTERS;
use crate::authz::aggregation;
use crate::authz::bootstrap::BOOTSTRAPPING;
use crate::authz::{self, Authorizer, Decision};
use crate::cluster::{Cluster, resource_of};
use crate::registry::hooks::Hook;
use async_trait::async_trait;
use gantry_api::k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef};
use gantry_api::kind::{Object, downcast_mut};
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use gantry_api::rbac::{GROUP, rules};
use std::sync::Arc;

/// Checks roles and bindings as they are written.
pub(super) struct RbacEscalation(pub(super) Arc<dyn Authorizer>);

/// What the write grants: the rules, and for a binding the role.
struct Granted {
    rules: Vec<PolicyRule>,
    role: Option<RoleRef>,
}

impl RbacEscalation {
    async fn may(&self, a: &Attributes<'_>, verb: &str, resource: &str, name: &str) -> bool {
        let question = authz::Attributes {
            user: a.user.clone(),
            verb: verb.into(),
            group: GROUP.into(),
            version: "v1".into(),
            resource: resource.into(),
            namespace: a.namespace.into(),
            name: name.into(),
            is_resource: true,
            ..Default::default()
        };
        matches!(self.0.authorize(&question).await, Decision::Allow(_))
    }

    /// Rules of the role a binding refers to.
    async fn rules_of(
        &self,
        a: &Attributes<'_>,
        role: &RoleRef,
        cluster: &Cluster,
    ) -> Result<Vec<PolicyRule>, ApiError> {
        if role.kind == "Role" {
            let found = cluster.get_latest::<Role>(a.namespace, &role.name).await?;
            let found = found.ok_or_else(|| ApiError::not_found(GROUP, "roles", &role.name))?;
            return Ok(found.rules.unwrap_or_default());
        }
        let found = cluster.get_latest::<ClusterRole>("", &role.name).await?;
        let found = found.ok_or_else(|| ApiError::not_found(GROUP, "clusterroles", &role.name))?;
        Ok(aggregation::effective_rules(&found, &cluster.list::<ClusterRole>("").await?))
    }

    /// What this write adds; None where it grants nothing new.
    async fn granted(&self, a: &Attributes<'_>, cluster: &Cluster) -> Result<Option<Granted>, ApiError> {
        let of_rules = |new: &Option<Vec<PolicyRule>>, old: Option<&Option<Vec<PolicyRule>>>| {
            (old != Some(new)).then(|| Granted { rules: new.clone().unwrap_or_default(), role: None })
        };
        if let Some(new) = a.object_as::<Role>() {
            return Ok(of_rules(&new.rules, a.old_as::<Role>().map(|o| &o.rules)));
        }
        if let Some(new) = a.object_as::<ClusterRole>() {
            let old = a.old_as::<ClusterRole>();
            if new.aggregation_rule.is_some() && old.map(|o| &o.aggregation_rule) != Some(&new.aggregation_rule) {
                // A selector can come to select anything, so setting one needs everything.
                let all = || Some(vec!["*".to_owned()]);
                let everything = PolicyRule {
                    api_groups: all(),
                    resources: all(),
                    verbs: vec!["*".to_owned()],
                    ..Default::default()
                };
                let paths = PolicyRule { non_resource_urls: all(), verbs: vec!["*".to_owned()], ..Default::default() };
                return Ok(Some(Granted { rules: vec![everything, paths], role: None }));
            }
            return Ok(of_rules(&new.rules, old.map(|o| &o.rules)));
        }
        let (role, unchanged) = if let Some(new) = a.object_as::<RoleBinding>() {
            let old = a.old_as::<RoleBinding>();
            (&new.role_ref, old.is_some_and(|o| o.role_ref == new.role_ref && o.subjects == new.subjects))
        } else if let Some(new) = a.object_as::<ClusterRoleBinding>() {
            let old = a.old_as::<ClusterRoleBinding>();
            (&new.role_ref, old.is_some_and(|o| o.role_ref == new.role_ref && o.subjects == new.subjects))
        } else {
            return Ok(None);
        };
        if unchanged {
            return Ok(None);
        }
        let resource = if role.kind == "Role" { "roles" } else { "clusterroles" };
        if self.may(a, "bind", resource, &role.name).await {
            return Ok(None);
        }
        Ok(Some(Granted { rules: self.rules_of(a, role, cluster).await?, role: Some(role.clone()) }))
    }
}

#[async_trait]
impl ValidatingPlugin for RbacEscalation {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }

    async fn validate(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        let writes = matches!(a.operation, Operation::Create | Operation::Update);
        let info = a.resource.info();
        if !writes || info.group != GROUP || a.user.in_group(MASTERS) {
            return Ok(());
        }
        let Some(granted) = self.granted(a, cluster).await? else { return Ok(()) };
        let own = self.0.rules_for(a.user, a.namespace).await;
        let missing = rules::uncovered(&own.rules, &granted.rules);
        if missing.is_empty() {
            return Ok(());
        }
        if granted.role.is_none() && self.may(a, "escalate", info.plural, a.name).await {
            return Ok(());
        }
        let mut texts: Vec<String> = rules::compact(&missing).iter().map(rules::describe).collect();
        texts.sort();
        texts.dedup();
        let mut why = format!(
            "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
            a.user.username,
            rules::quoted(&a.user.groups),
            texts.join("\n")
        );
        if !own.errors.is_empty() {
            why.push_str(&format!("; resolution errors: [{}]", own.errors.join(", ")));
        }
        Err(a.forbidden(&why))
    }
}

/// Keeps the stored rules of aggregating ClusterRoles equal to the sum of what they select.
pub(super) struct AggregateClusterRoles;

impl AggregateClusterRoles {
    async fn put_right(cluster: &Cluster) {
        let roles = match cluster.list::<ClusterRole>("").await {
            Ok(roles) => roles,
            Err(e) => {
                tracing::warn!(error = %e, "cannot list ClusterRoles to aggregate them");
                return;
            }
        };
        for sum in aggregation::outdated(&roles) {
            let name = sum.metadata.name();
            let rules = sum.rules.clone();
            let mut change = |o: &mut dyn Object| {
                if let Some(role) = downcast_mut::<ClusterRole>(o) {
                    role.rules = rules.clone();
                }
                Ok(())
            };
            let resource = resource_of::<ClusterRole>();
            if let Err(e) = cluster.objects.guaranteed_update(resource, "", name, false, &mut change).await
                && !e.is("NotFound")
            {
                tracing::warn!(role = name, error = %e, "cannot store the sum of an aggregated ClusterRole");
            }
        }
    }
}

#[async_trait]
impl Hook for AggregateClusterRoles {
    fn resource(&self) -> (&'static str, &'static str) {
        (GROUP, "clusterroles")
    }

    async fn before_validate(
        &self,
        object: &mut dyn Object,
        _old: Option<&dyn Object>,
        _dry_run: bool,
        cluster: &Cluster,
    ) -> Result<(), ApiError> {
        // The rules of an aggregating role are the server's to write.
        let Some(role) = downcast_mut::<ClusterRole>(object).filter(|r| r.aggregation_rule.is_some()) else {
            return Ok(());
        };
        let mut all = cluster.list::<ClusterRole>("").await?;
        all.retain(|r| r.metadata.name != role.metadata.name);
        let rules = aggregation::effective_rules(role, &all);
        role.rules = (!rules.is_empty()).then_some(rules);
        Ok(())
    }

    async fn stored(&self, object: &dyn Object, old: Option<&dyn Object>, cluster: &Cluster) {
        // Most roles of the bootstrap policy have no label that anything aggregates by.
        let only_bootstrap = object.meta().labels_or_empty().keys().all(|k| k == BOOTSTRAPPING);
        if old.is_none() && only_bootstrap && object.meta().label(BOOTSTRAPPING).is_some() {
            return;
        }
        // The cache must have this write before the sums are made from it.
        let name = object.meta().name().to_owned();
        if let Err(e) = cluster.get_latest::<ClusterRole>("", &name).await {
            tracing::warn!(role = name, error = %e, "cannot read a ClusterRole just written");
        }
        Self::put_right(cluster).await;
    }

    async fn deleted(&self, object: &dyn Object, cluster: &Cluster) {
        let name = object.meta().name().to_owned();
        if let Err(e) = cluster.get_latest::<ClusterRole>("", &name).await {
            tracing::warn!(role = name, error = %e, "cannot read past the deletion of a ClusterRole");
        }
        Self::put_right(cluster).await;
    }
}
