//! StorageObjectInUseProtection: claims, volumes and classes of their attributes get the finalizer with which the
//! protection controllers keep them as long as they are in use.

use super::{Attributes, MutatingPlugin, Operation};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::meta::status::ApiError;

pub(super) struct InUseProtection;

#[async_trait]
impl MutatingPlugin for InUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    async fn admit(&self, a: &mut Attributes<'_>, _: &Cluster) -> Result<(), ApiError> {
        if a.operation != Operation::Create || !a.subresource.is_empty() {
            return Ok(());
        }
        let info = a.resource.info();
        let finalizer = match (info.group, info.plural) {
            ("", "persistentvolumeclaims") => "kubernetes.io/pvc-protection",
            ("", "persistentvolumes") => "kubernetes.io/pv-protection",
            ("storage.k8s.io", "volumeattributesclasses") => "kubernetes.io/vac-protection",
            _ => return Ok(()),
        };
        add_finalizer(a, finalizer);
        Ok(())
    }
}

/// Gives the object a finalizer that it does not have yet.
pub(super) fn add_finalizer(a: &mut Attributes<'_>, finalizer: &str) {
    if let Some(object) = a.object.as_deref_mut() {
        let list = object.meta_mut().finalizers.get_or_insert_default();
        if !list.iter().any(|f| f == finalizer) {
            list.push(finalizer.to_owned());
        }
    }
}
