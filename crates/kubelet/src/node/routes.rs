//! Routes to the pods of other nodes, over those nodes' addresses.
//!
//! Every Node says which range its pods have (`spec.podCIDRs`) and where it is (its InternalIP). Where nodes are
//! neighbours, that is all the network between them that pods need: the kernel routes, nothing is wrapped.

use crate::agent::Agent;
use gantry_network::IpNet;
use gantry_reconcile::{Informer, Synced};
use k8s_openapi::api::core::v1::Node;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// How long to wait before what could not be routed to is tried again: an interface may come up later.
const RETRY: Duration = Duration::from_secs(30);

/// What a Node says that routes follow from.
fn facts(node: &Node) -> (Vec<IpNet>, Vec<IpAddr>) {
    let spec = node.spec.as_ref();
    let listed = spec.into_iter().flat_map(|s| s.pod_cidrs.iter().flatten());
    let mut ranges: Vec<IpNet> = listed.filter_map(|c| c.parse().ok()).map(|c: IpNet| c.trunc()).collect();
    if ranges.is_empty() {
        ranges.extend(spec.and_then(|s| s.pod_cidr.as_ref()).and_then(|c| c.parse::<IpNet>().ok()).map(|c| c.trunc()));
    }
    let addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
    let internal = addresses.filter(|a| a.type_ == "InternalIP").filter_map(|a| a.address.parse().ok());
    (ranges, internal.collect())
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// The routes that follow from the nodes of the cluster. A range that overlaps one of this node's or of an older node's
/// is left out: the certificate of a node must not suffice to take over the addresses of others.
fn routes(nodes: &[Arc<Node>], own: &str) -> BTreeMap<IpNet, IpAddr> {
    let mut nodes: Vec<&Arc<Node>> = nodes.iter().collect();
    let name = |node: &Node| node.metadata.name.clone().unwrap_or_default();
    nodes.sort_by_key(|n| (name(n) != own, n.metadata.creation_timestamp.as_ref().map(|t| t.0), name(n)));
    let mut taken: Vec<IpNet> = Vec::new();
    let mut routes = BTreeMap::new();
    for node in nodes {
        let (ranges, addresses) = facts(node);
        for range in ranges {
            if taken.iter().any(|t| overlap(t, &range)) {
                tracing::warn!(node = name(node), %range, "another node has some of this range of pod addresses");
                continue;
            }
            taken.push(range);
            let via = addresses.iter().find(|a| a.is_ipv4() == range.addr().is_ipv4());
            if let Some(via) = via.filter(|_| name(node) != own) {
                routes.insert(range, *via);
            }
        }
    }
    routes
}

/// Keeps the routes up with the nodes.
pub(crate) async fn run(agent: Arc<Agent>, nodes: Informer<Node>) {
    let wake = Arc::new(Notify::new());
    let changed = wake.clone();
    nodes.on_change(move |change| {
        if change.old().is_none_or(|old| facts(old) != facts(change.object())) {
            changed.notify_one();
        }
    });
    // What an earlier run routed stays until it is known what is to be.
    nodes.synced().await;
    loop {
        let wanted = routes(&nodes.list(), &agent.cfg.node_name);
        let failed = match agent.network.set_node_routes(&wanted).await {
            Ok(failed) => failed,
            Err(error) => {
                tracing::warn!(%error, "cannot route to other nodes' pods");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        for (range, error) in &failed {
            tracing::warn!(%range, %error, "cannot route to a node's pods; is it a neighbour of this one?");
        }
        tokio::select! {
            () = wake.notified() => {}
            () = tokio::time::sleep(RETRY), if !failed.is_empty() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, created: &str, ranges: &[&str], addresses: &[&str]) -> Arc<Node> {
        let addresses: Vec<_> = addresses.iter().map(|a| json!({"type": "InternalIP", "address": a})).collect();
        let node = json!({"metadata": {"name": name, "creationTimestamp": created},
            "spec": {"podCIDR": ranges.first(), "podCIDRs": ranges}, "status": {"addresses": addresses}});
        Arc::new(serde_json::from_value(node).unwrap())
    }

    fn shown(nodes: &[Arc<Node>]) -> Vec<String> {
        routes(nodes, "own").iter().map(|(range, via)| format!("{range} via {via}")).collect()
    }

    #[test]
    fn ranges_lead_to_their_nodes() {
        let day = |n: u8| format!("2030-01-0{n}T00:00:00Z");
        let own = node("own", &day(3), &["10.1.1.0/24"], &["192.0.2.1"]);
        let both = node("both", &day(1), &["10.1.2.0/24", "fd00:2::/64"], &["192.0.2.2", "2001:db8::2"]);
        let silent = node("silent", &day(1), &["10.1.3.0/24", "fd00:3::/64"], &["192.0.2.3"]);
        assert_eq!(
            shown(&[own.clone(), both.clone(), silent.clone()]),
            ["10.1.2.0/24 via 192.0.2.2", "10.1.3.0/24 via 192.0.2.3", "fd00:2::/64 via 2001:db8::2",]
        );
        // Neither this node's addresses nor those of an older one can be taken over.
        let thief = node("thief", &day(2), &["10.1.0.0/16", "10.1.2.128/25"], &["192.0.2.9"]);
        assert_eq!(
            shown(&[thief, own.clone(), both.clone()]),
            ["10.1.2.0/24 via 192.0.2.2", "fd00:2::/64 via 2001:db8::2"]
        );
        assert!(shown(&[own, node("waits", &day(1), &[], &["192.0.2.4"])]).is_empty());
    }
}
