//! PodGroupProtection: groups of pods get the finalizer with which a controller keeps them as long as pods are of them, and no
//! pod joins a group that is going (KEP-4671).

use super::in_use_protection::add_finalizer;
use super::{Attributes, MutatingPlugin, Operation, ValidatingPlugin};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::k8s_openapi::api::core::v1::Pod;
use gantry_api::k8s_openapi::api::scheduling::v1beta1::PodGroup;
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;

const NAME: &str = "PodGroupProtection";
const FINALIZER: &str = "scheduling.k8s.io/podgroup-protection";

pub(super) struct PodGroupProtection;

fn is_creation_of(a: &Attributes<'_>, group: &str, plural: &str) -> bool {
    let info = a.resource.info();
    a.operation == Operation::Create && a.subresource.is_empty() && info.group == group && info.plural == plural
}

#[async_trait]
impl MutatingPlugin for PodGroupProtection {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn admit(&self, a: &mut Attributes<'_>, _: &Cluster) -> Result<(), ApiError> {
        if is_creation_of(a, "scheduling.k8s.io", "podgroups") {
            add_finalizer(a, FINALIZER);
        }
        Ok(())
    }
}

#[async_trait]
impl ValidatingPlugin for PodGroupProtection {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn validate(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        if !is_creation_of(a, "", "pods") {
            return Ok(());
        }
        // Where groups are not served, the field was dropped before.
        let group =
            a.object_as::<Pod>().and_then(|p| p.spec.as_ref()?.scheduling_group.as_ref()?.pod_group_name.as_ref());
        let Some(name) = group.filter(|n| !n.is_empty()).cloned() else { return Ok(()) };
        match cluster.get::<PodGroup>(a.namespace, &name).await? {
            Some(group) if group.metadata.is_deleting() => {
                Err(a
                    .forbidden(&format!("cannot create Pod referencing PodGroup {name:?} because it is being deleted")))
            }
            _ => Ok(()),
        }
    }
}
