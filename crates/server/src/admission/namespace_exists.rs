//! NamespaceExists and NamespaceAutoProvision: what is written in a namespace that is not there is refused, or makes it.

use super::{Attributes, MutatingPlugin, Operation, ValidatingPlugin};
use crate::cluster::{Cluster, resource_of};
use async_trait::async_trait;
use gantry_api::ObjectMeta;
use gantry_api::k8s_openapi::api::core::v1::Namespace;
use gantry_api::meta::status::ApiError;

/// Whether the write is of something in a namespace.
fn is_inside(a: &Attributes<'_>) -> bool {
    let info = a.resource.info();
    !a.namespace.is_empty() && (info.group, info.plural) != ("", "namespaces")
}

async fn exists(name: &str, cluster: &Cluster) -> Result<bool, ApiError> {
    Ok(cluster.shared::<Namespace>("", name).await?.is_some())
}

pub(super) struct NamespaceExists;

#[async_trait]
impl ValidatingPlugin for NamespaceExists {
    fn name(&self) -> &'static str {
        "NamespaceExists"
    }

    async fn validate(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        if a.operation == Operation::Connect || !is_inside(a) || exists(a.namespace, cluster).await? {
            return Ok(());
        }
        Err(ApiError::not_found("", "namespaces", a.namespace))
    }
}

pub(super) struct NamespaceAutoProvision;

#[async_trait]
impl MutatingPlugin for NamespaceAutoProvision {
    fn name(&self) -> &'static str {
        "NamespaceAutoProvision"
    }

    async fn admit(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        // A dry run leaves nothing behind.
        if a.operation != Operation::Create || a.dry_run || !is_inside(a) || exists(a.namespace, cluster).await? {
            return Ok(());
        }
        let metadata = ObjectMeta { name: Some(a.namespace.to_owned()), ..Default::default() };
        let namespace = Namespace { metadata, ..Default::default() };
        match cluster.objects.create(resource_of::<Namespace>(), Box::new(namespace)).await {
            Err(e) if !e.is("AlreadyExists") => Err(a.forbidden(&e.message)),
            _ => Ok(()),
        }
    }
}
