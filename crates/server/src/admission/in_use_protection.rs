//! StorageObjectInUseProtection: claims and volumes get the finalizer with which the
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
            _ => return Ok(()),
        };
        if let Some(object) = a.object.as_deref_mut() {
            let list = object.meta_mut().finalizers.get_or_insert_default();
            if !list.iter().any(|f| f == finalizer) {
                list.push(finalizer.to_owned());
            }
        }
        Ok(())
    }
}
