//! The `kube-dns` Service: the address pods' resolvers ask, leading to the DNS server of this node.

use anyhow::{Context, Result};
use gantry_client::{Api, Client, Patch, PatchParams};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;
use std::net::IpAddr;

/// Namespace of the Service, where clients of other distributions expect it.
const NAMESPACE: &str = "kube-system";
/// Its name, likewise.
const NAME: &str = "kube-dns";

/// Writes the Service at `address` and, for a node whose DNS server is at `server`, its endpoints.
///
/// # Errors
/// Where the API refuses, for instance because the address is taken.
pub async fn ensure(client: &Client, address: IpAddr, node: &str, server: IpAddr) -> Result<()> {
    let ports = |with_target: bool| {
        let port = |name: &str, protocol: &str| {
            let mut port = json!({ "name": name, "protocol": protocol, "port": 53 });
            if with_target {
                port["targetPort"] = json!(53);
            }
            port
        };
        json!([port("dns", "UDP"), port("dns-tcp", "TCP")])
    };
    // No selector: the endpoints are node processes, not pods.
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": NAME, "namespace": NAMESPACE,
            "labels": { "k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS", "kubernetes.io/cluster-service": "true" },
        },
        "spec": { "clusterIP": address, "clusterIPs": [address], "ports": ports(true) },
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{NAME}-{node}"), "namespace": NAMESPACE,
            "labels": { "kubernetes.io/service-name": NAME, "endpointslice.kubernetes.io/managed-by": "gantry.local" },
        },
        "addressType": if server.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{ "addresses": [server], "conditions": { "ready": true }, "nodeName": node }],
        "ports": ports(false),
    });
    let params = PatchParams { force: true, ..Default::default() };
    Api::<Service>::namespaced(client.clone(), NAMESPACE)
        .patch(NAME, &params, &Patch::Apply(service))
        .await
        .with_context(|| format!("cannot write the Service {NAMESPACE}/{NAME} at {address}"))?;
    Api::<EndpointSlice>::namespaced(client.clone(), NAMESPACE)
        .patch(&format!("{NAME}-{node}"), &params, &Patch::Apply(slice))
        .await
        .with_context(|| format!("cannot write the endpoints of {NAMESPACE}/{NAME}"))?;
    Ok(())
}
