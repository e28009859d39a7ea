//! PodTopologyLabels: a pod created for a node gets that node's zone and region as labels. Pods that are assigned later
//! get them with the assignment.

use super::{Attributes, MutatingPlugin, Operation};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::k8s_openapi::api::core::v1::{Node, Pod};
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;

/// Labels of a node that its pods get, so that they can be told where they are.
pub const TOPOLOGY_LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

pub(super) struct PodTopologyLabels;

#[async_trait]
impl MutatingPlugin for PodTopologyLabels {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }

    async fn admit(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        if a.operation != Operation::Create || !a.is("", "pods", "") {
            return Ok(());
        }
        let Some(pod) = a.object_as_mut::<Pod>() else { return Ok(()) };
        let name = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).filter(|n| !n.is_empty());
        let Some(name) = name else { return Ok(()) };
        let Some(node) = cluster.get::<Node>("", name).await? else { return Ok(()) };
        for key in TOPOLOGY_LABELS {
            if let Some(value) = node.metadata.label(key) {
                pod.metadata.labels.get_or_insert_default().entry(key.into()).or_insert_with(|| value.to_owned());
            }
        }
        Ok(())
    }
}
