//! The node's CSINode: which storage drivers run here. None does yet, and who plans with volumes can read that.

use gantry_client::{Api, Client, PostParams};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::storage::v1::{CSINode, CSINodeSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use std::time::Duration;

const RETRY: Duration = Duration::from_millis(200);
const MAX_RETRY: Duration = Duration::from_secs(7);

/// Makes the object where there is none; false where there is one of an earlier Node of this name, which is about to go.
async fn ensure(client: &Client, node: &Node) -> Result<bool, gantry_client::Error> {
    let api = Api::<CSINode>::all(client.clone());
    let name = node.metadata.name.clone().unwrap_or_default();
    let uid = node.metadata.uid.clone().unwrap_or_default();
    if let Some(there) = api.get_opt(&name).await? {
        return Ok(there.metadata.owner_references.iter().flatten().any(|o| o.uid == uid));
    }
    let owner =
        OwnerReference { api_version: "v1".into(), kind: "Node".into(), name: name.clone(), uid, ..Default::default() };
    let object = CSINode {
        metadata: ObjectMeta { name: Some(name), owner_references: Some(vec![owner]), ..ObjectMeta::default() },
        spec: CSINodeSpec { drivers: Vec::new() },
        ..CSINode::default()
    };
    api.create(&PostParams::default(), &object).await.map(|_| true)
}

/// Runs until the object is there.
pub(crate) async fn run(client: Client, node: Node) {
    let mut retry = RETRY;
    loop {
        match ensure(&client, &node).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "cannot make the node's CSINode"),
        }
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(MAX_RETRY);
    }
}
