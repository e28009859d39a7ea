//! PersistentVolumeClaimResize: a claim grows only where its volume can.

use super::{Attributes, Operation, ValidatingPlugin};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::k8s_openapi::api::core::v1::PersistentVolumeClaim;
use gantry_api::k8s_openapi::api::storage::v1::StorageClass;
use gantry_api::meta::object::Meta;
use gantry_api::meta::quantity::{Amount, amount_of};
use gantry_api::meta::status::ApiError;

const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

pub(super) struct Resize;

fn size(claim: &PersistentVolumeClaim) -> Amount {
    let resources = claim.spec.as_ref().and_then(|s| s.resources.as_ref());
    amount_of(resources.and_then(|r| r.requests.as_ref()), "storage")
}

fn class(claim: &PersistentVolumeClaim) -> &str {
    let named = || claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref());
    claim.metadata.annotation(CLASS_ANNOTATION).or_else(named).unwrap_or_default()
}

#[async_trait]
impl ValidatingPlugin for Resize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    async fn validate(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        if a.operation != Operation::Update || !a.is("", "persistentvolumeclaims", "") {
            return Ok(());
        }
        let (Some(new), Some(old)) = (a.object_as::<PersistentVolumeClaim>(), a.old_as::<PersistentVolumeClaim>())
        else {
            return Ok(());
        };
        if size(new) <= size(old) {
            return Ok(());
        }
        let phase = old.status.as_ref().and_then(|s| s.phase.as_deref());
        if phase != Some("Bound") {
            return Err(a.forbidden("Only bound persistent volume claims can be expanded"));
        }
        let (name, before) = (class(new), class(old));
        let can_grow = !name.is_empty()
            && name == before
            && cluster.get::<StorageClass>("", name).await?.is_some_and(|c| c.allow_volume_expansion == Some(true));
        if can_grow {
            return Ok(());
        }
        Err(a.forbidden(
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support \
             resize",
        ))
    }
}
