//! LimitPodHardAntiAffinityTopology: a pod may keep others off its own node, but not off a whole zone.

use super::{Attributes, Operation, ValidatingPlugin};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::k8s_openapi::api::core::v1::Pod;
use gantry_api::meta::status::ApiError;

const HOSTNAME: &str = "kubernetes.io/hostname";

pub(super) struct HardAntiAffinity;

#[async_trait]
impl ValidatingPlugin for HardAntiAffinity {
    fn name(&self) -> &'static str {
        "LimitPodHardAntiAffinityTopology"
    }

    async fn validate(&self, a: &mut Attributes<'_>, _: &Cluster) -> Result<(), ApiError> {
        let writes = matches!(a.operation, Operation::Create | Operation::Update);
        if !writes || !a.is("", "pods", "") {
            return Ok(());
        }
        let affinity =
            a.object_as::<Pod>().and_then(|p| p.spec.as_ref()?.affinity.as_ref()?.pod_anti_affinity.as_ref());
        let mut terms =
            affinity.iter().flat_map(|x| x.required_during_scheduling_ignored_during_execution.iter().flatten());
        match terms.find(|t| t.topology_key != HOSTNAME) {
            Some(term) => Err(a.forbidden(&format!(
                "affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey {} but only key {HOSTNAME} is allowed",
                term.topology_key
            ))),
            None => Ok(()),
        }
    }
}
