//! OwnerReferencesPermissionEnforcement: an owner is given only to what one may delete oneself, and made to wait for it
//! only by those who may finalize the owner.

use super::{Attributes, Operation, ValidatingPlugin};
use crate::authz::{self, Authorizer, Decision};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use gantry_api::kind::Object;
use gantry_api::meta::object::split_api_version;
use gantry_api::meta::status::ApiError;
use std::sync::Arc;

pub(super) struct OwnerReferences(pub(super) Arc<dyn Authorizer>);

fn owners(object: Option<&dyn Object>) -> &[OwnerReference] {
    object.and_then(|o| o.meta().owner_references.as_deref()).unwrap_or_default()
}

/// References that newly block the deletion of their owner.
fn newly_blocking<'a>(
    new: &'a [OwnerReference],
    old: &'a [OwnerReference],
) -> impl Iterator<Item = &'a OwnerReference> {
    let blocks = |r: &OwnerReference| r.block_owner_deletion == Some(true);
    new.iter().filter(move |r| blocks(r) && !old.iter().any(|o| o.uid == r.uid && blocks(o)))
}

impl OwnerReferences {
    /// None where it is allowed, otherwise why not.
    async fn refusal(&self, attributes: &authz::Attributes) -> Option<String> {
        match self.0.authorize(attributes).await {
            Decision::Allow(_) => None,
            Decision::Deny(reason) | Decision::NoOpinion(reason) | Decision::Failed { why: reason, .. } => Some(reason),
        }
    }

    async fn check_owner(&self, a: &Attributes<'_>, owner: &OwnerReference, cluster: &Cluster) -> Result<(), ApiError> {
        let (group, version) = split_api_version(&owner.api_version);
        let mut resources = cluster.objects.served();
        resources.retain(|r| {
            let i = r.info();
            (i.group, i.version, i.kind) == (group, version, owner.kind.as_str()) && !i.virtual_only
        });
        if resources.is_empty() {
            return Err(a.forbidden(&format!(
                "cannot set blockOwnerDeletion in this case because cannot find RESTMapping for APIVersion {v} Kind \
                 {kind}: no matches for kind {kind:?} in version {v:?}",
                v = owner.api_version,
                kind = owner.kind
            )));
        }
        for resource in resources {
            let info = resource.info();
            let finalize = authz::Attributes {
                user: a.user.clone(),
                verb: "update".into(),
                namespace: if info.namespaced { a.namespace.into() } else { String::new() },
                group: group.into(),
                version: version.into(),
                resource: info.plural.into(),
                subresource: "finalizers".into(),
                name: owner.name.clone(),
                is_resource: true,
                ..Default::default()
            };
            if let Some(reason) = self.refusal(&finalize).await {
                return Err(a.forbidden(&format!(
                    "cannot set blockOwnerDeletion if an ownerReference refers to a resource you can't set finalizers \
                     on: {reason}, <nil>"
                )));
            }
        }
        Ok(())
    }
}

#[async_trait]
impl ValidatingPlugin for OwnerReferences {
    fn name(&self) -> &'static str {
        "OwnerReferencesPermissionEnforcement"
    }

    async fn validate(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        let writes = matches!(a.operation, Operation::Create | Operation::Update);
        // The status of pods cannot change their owners.
        if !writes || a.is("", "pods", "status") {
            return Ok(());
        }
        let (new, old) = (owners(a.object.as_deref()).to_vec(), owners(a.old_object).to_vec());
        if new == old {
            return Ok(());
        }
        let info = a.resource.info();
        let delete = authz::Attributes {
            user: a.user.clone(),
            verb: "delete".into(),
            namespace: a.namespace.into(),
            group: info.group.into(),
            version: info.version.into(),
            resource: info.plural.into(),
            subresource: a.subresource.into(),
            name: a.name.into(),
            is_resource: true,
            ..Default::default()
        };
        if let Some(reason) = self.refusal(&delete).await {
            return Err(a.forbidden(&format!("cannot set an ownerRef on a resource you can't delete: {reason}, <nil>")));
        }
        for owner in newly_blocking(&new, &old) {
            self.check_owner(a, owner, cluster).await?;
        }
        Ok(())
    }
}
