//! What the agent asks of the node's network.

use async_trait::async_trait;
use gantry_network::{AttachOptions, IpNet, NetworkError, NodeNetwork};
use gantry_network_policy::{Enforcer, PolicyError};
use k8s_openapi::api::core::v1::Pod;
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::path::Path;

/// Why a pod has no network.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Its interface or addresses.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// What others may send it, and it them.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// Attaches pods to the network. Keys name pods.
#[async_trait]
pub(crate) trait PodNetwork: Send + Sync {
    /// Gives the namespace an interface and addresses. The network policies for the pod are in force when it returns.
    async fn attach(&self, key: &str, pod: &Pod, netns: &Path, options: AttachOptions) -> Result<Vec<IpAddr>, Error>;
    /// Takes them away; an unknown key is no error.
    async fn detach(&self, key: &str) -> Result<(), Error>;
    /// The addresses of an attached pod.
    async fn addresses_of(&self, key: &str) -> Option<Vec<IpAddr>>;
    /// Detaches all but these.
    async fn reconcile(&self, live: &HashSet<String>) -> Result<(), Error>;
    /// Leads to other nodes' pod CIDRs over those nodes' addresses; answers what could not be led to, and why.
    async fn set_node_routes(&self, routes: &BTreeMap<IpNet, IpAddr>) -> Result<Vec<(IpNet, NetworkError)>, Error>;
}

/// The node's network, and the network policies in it.
pub struct GuardedNetwork {
    /// Interfaces and addresses.
    pub network: NodeNetwork,
    /// What is let through to them and from them.
    pub policies: Enforcer,
}

#[async_trait]
impl PodNetwork for GuardedNetwork {
    async fn attach(&self, key: &str, pod: &Pod, netns: &Path, options: AttachOptions) -> Result<Vec<IpAddr>, Error> {
        let ips = self.network.attach(key, netns, options).await?.ips;
        if let Err(error) = self.policies.attached(key, pod, &ips).await {
            if let Err(cleanup) = self.detach(key).await {
                tracing::warn!(pod = key, error = %cleanup, "cannot undo a failed attachment");
            }
            return Err(error.into());
        }
        Ok(ips)
    }
    async fn detach(&self, key: &str) -> Result<(), Error> {
        self.network.detach(key).await?;
        self.policies.detached(key);
        Ok(())
    }
    async fn addresses_of(&self, key: &str) -> Option<Vec<IpAddr>> {
        self.network.addresses_of(key).await.map(|a| a.ips)
    }
    async fn reconcile(&self, live: &HashSet<String>) -> Result<(), Error> {
        for key in self.network.reconcile(live).await? {
            self.policies.detached(&key);
        }
        Ok(())
    }
    async fn set_node_routes(&self, routes: &BTreeMap<IpNet, IpAddr>) -> Result<Vec<(IpNet, NetworkError)>, Error> {
        Ok(self.network.set_node_routes(routes).await?)
    }
}
