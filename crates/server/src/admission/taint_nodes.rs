//! TaintNodesByCondition: a new node takes no pods until it has shown to be ready.

use super::{Attributes, MutatingPlugin, Operation};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::k8s_openapi::api::core::v1::{Node, Taint};
use gantry_api::meta::status::ApiError;

const NOT_READY: &str = "node.kubernetes.io/not-ready";

pub(super) struct TaintNodesByCondition;

#[async_trait]
impl MutatingPlugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    async fn admit(&self, a: &mut Attributes<'_>, _cluster: &Cluster) -> Result<(), ApiError> {
        if a.operation != Operation::Create || !a.is("", "nodes", "") {
            return Ok(());
        }
        let Some(node) = a.object_as_mut::<Node>() else { return Ok(()) };
        let taints = node.spec.get_or_insert_default().taints.get_or_insert_default();
        if !taints.iter().any(|t| t.key == NOT_READY && t.effect == "NoSchedule") {
            taints.push(Taint { key: NOT_READY.into(), effect: "NoSchedule".into(), ..Default::default() });
        }
        Ok(())
    }
}
