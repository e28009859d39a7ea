//! Routes to the pods of other nodes.

use super::NodeNetwork;
use crate::NetworkError;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::IpAddr;
use tracing::info;

impl NodeNetwork {
    /// Leads traffic for other nodes' pod CIDRs to those nodes' addresses, which must be neighbours: reachable without
    /// a router between. Only parts of the cluster's pod CIDRs are led anywhere. Routes of earlier calls (and of earlier
    /// runs) that are not wanted any more are removed. Answers what could not be added, each with its reason; calling
    /// again tries again.
    ///
    /// # Errors
    /// A failing write of the state, or a route that cannot be removed.
    pub async fn set_node_routes(
        &self,
        wanted: &BTreeMap<IpNet, IpAddr>,
    ) -> Result<Vec<(IpNet, NetworkError)>, NetworkError> {
        let mut inner = self.inner.lock().await;
        let gone: Vec<(IpNet, IpAddr)> = inner
            .state
            .node_routes
            .iter()
            .filter(|(network, via)| wanted.get(network) != Some(via))
            .map(|(network, via)| (*network, *via))
            .collect();
        for (network, via) in gone {
            self.routes.remove_node_route(network, via).await?;
            info!(%network, %via, "no route to a node's pods any more");
            inner.state.node_routes.remove(&network);
        }
        // Recorded before they are made, so that teardown knows of them whatever happens.
        let before = std::mem::replace(&mut inner.state.node_routes, wanted.clone());
        self.save(&inner.state)?;
        let mut failed = Vec::new();
        for (network, via) in wanted {
            if !self.config.cluster_cidrs.iter().any(|cluster| cluster.contains(network)) {
                failed.push((*network, NetworkError::Config("no part of the cluster's pod CIDR".into())));
                continue;
            }
            match self.routes.add_node_route(*network, *via).await {
                Ok(()) if before.contains_key(network) => {}
                Ok(()) => info!(%network, %via, "route to a node's pods"),
                Err(error) => failed.push((*network, error)),
            }
        }
        Ok(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::config;
    use crate::testing::{Namespace, isolated};
    use std::process::Command;

    fn sh(script: &str) -> String {
        let done = Command::new("sh").args(["-ec", script]).output().expect("sh");
        assert!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    fn routes() -> Vec<String> {
        sh("ip route show proto 104; ip -6 route show proto 104")
            .lines()
            .map(|l| l.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
            .collect()
    }

    #[test]
    fn routes_follow_the_nodes() {
        isolated(async {
            let dir = tempfile::tempdir().expect("directory");
            let far = Namespace::held();
            let tid = far.path().iter().nth(4).expect("thread").to_string_lossy().into_owned();
            sh(&format!(
                "ip link add cable type veth peer name far; ip link set far netns {tid}; \
                 ip addr add 192.0.2.1/24 dev cable; ip link set cable up"
            ));
            let network = NodeNetwork::open(config(dir.path())).await.expect("open");
            let to = |pairs: &[(&str, &str)]| -> BTreeMap<IpNet, IpAddr> {
                pairs.iter().map(|(n, v)| (n.parse().expect("network"), v.parse().expect("address"))).collect()
            };
            let set = async |pairs| network.set_node_routes(&to(pairs)).await.expect("set");
            let two: &[(&str, &str)] = &[("10.201.1.0/24", "192.0.2.2"), ("10.201.2.0/24", "192.0.2.3")];
            assert!(set(two).await.is_empty());
            assert_eq!(routes(), ["10.201.1.0/24 via 192.0.2.2", "10.201.2.0/24 via 192.0.2.3"]);
            // A node moves, another goes; one is not a neighbour.
            let failed = set(&[("10.201.1.0/24", "192.0.2.4"), ("10.201.3.0/24", "198.51.100.1")]).await;
            assert_eq!(routes(), ["10.201.1.0/24 via 192.0.2.4"]);
            assert!(
                matches!(&failed[..], [(network, error)] if network.to_string() == "10.201.3.0/24"
                && error.to_string().contains("unreachable")),
                "{failed:?}"
            );

            let foreign = set(&[("10.201.1.0/24", "192.0.2.4"), ("198.18.0.0/15", "192.0.2.5")]).await;
            assert!(foreign.len() == 1 && routes().len() == 1, "{foreign:?}");

            // Another run knows what this one made, and takes it away.
            drop(network);
            let network = NodeNetwork::open(config(dir.path())).await.expect("open again");
            assert_eq!(routes().len(), 1, "kept over a restart");
            assert!(network.set_node_routes(&BTreeMap::new()).await.expect("set").is_empty());
            assert!(routes().is_empty());
            assert!(network.set_node_routes(&to(two)).await.expect("set").is_empty());
            network.teardown().await.expect("teardown");
            assert!(routes().is_empty());
        });
    }
}
