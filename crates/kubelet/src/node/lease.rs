//! The node's heartbeat: a Lease in `kube-node-lease`, renewed every 10 s.

use gantry_api::clock::Clock;
use gantry_client::{Api, Client, Patch, PatchParams, PostParams};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::json;
use std::time::Duration;

/// Namespace of node leases.
const NAMESPACE: &str = "kube-node-lease";
/// How long a lease holds.
const DURATION_SECONDS: i32 = 40;
/// How often it is renewed.
const PERIOD: Duration = Duration::from_secs(10);
/// How soon a failed renewal is tried again.
const RETRY: Duration = Duration::from_millis(200);
const MAX_RETRY: Duration = Duration::from_secs(7);

async fn renew(client: &Client, node: &Node, clock: &Clock) -> Result<(), gantry_client::Error> {
    let api = Api::<Lease>::namespaced(client.clone(), NAMESPACE);
    let name = node.metadata.name.clone().unwrap_or_default();
    let now = clock.micro_time();
    let body = Patch::Merge(json!({"spec": {"renewTime": now}}));
    match api.patch(&name, &PatchParams::default(), &body).await {
        Ok(_) => return Ok(()),
        Err(error) if error.is("NotFound") => {}
        Err(error) => return Err(error),
    }
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(NAMESPACE.into()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: name.clone(),
                uid: node.metadata.uid.clone().unwrap_or_default(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name),
            lease_duration_seconds: Some(DURATION_SECONDS),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    match api.create(&PostParams::default(), &lease).await {
        // Someone was quicker: the next renewal patches it.
        Ok(_) => Ok(()),
        Err(error) if error.is("AlreadyExists") => Ok(()),
        Err(error) => Err(error),
    }
}

/// Renews the lease for as long as it is polled.
pub(crate) async fn run(client: Client, node: Node, clock: Clock) {
    let mut retry = RETRY;
    loop {
        match renew(&client, &node, &clock).await {
            Ok(()) => {
                retry = RETRY;
                tokio::time::sleep(PERIOD).await;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot renew the node's lease");
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(MAX_RETRY);
            }
        }
    }
}
