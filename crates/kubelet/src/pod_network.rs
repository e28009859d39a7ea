//! What the agent asks of the node's network.

use async_trait::async_trait;
use gantry_network::{AttachOptions, NetworkError, NodeNetwork};
use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;

/// Attaches pods to the network. Keys name pods.
#[async_trait]
pub(crate) trait PodNetwork: Send + Sync {
    /// Gives the namespace an interface and addresses.
    async fn attach(&self, key: &str, netns: &Path, options: AttachOptions) -> Result<Vec<IpAddr>, NetworkError>;
    /// Takes them away; an unknown key is no error.
    async fn detach(&self, key: &str) -> Result<(), NetworkError>;
    /// The addresses of an attached pod.
    async fn addresses_of(&self, key: &str) -> Option<Vec<IpAddr>>;
    /// Detaches all but these.
    async fn reconcile(&self, live: &HashSet<String>) -> Result<(), NetworkError>;
}

#[async_trait]
impl PodNetwork for NodeNetwork {
    async fn attach(&self, key: &str, netns: &Path, options: AttachOptions) -> Result<Vec<IpAddr>, NetworkError> {
        NodeNetwork::attach(self, key, netns, options).await.map(|a| a.ips)
    }
    async fn detach(&self, key: &str) -> Result<(), NetworkError> {
        NodeNetwork::detach(self, key).await
    }
    async fn addresses_of(&self, key: &str) -> Option<Vec<IpAddr>> {
        NodeNetwork::addresses_of(self, key).await.map(|a| a.ips)
    }
    async fn reconcile(&self, live: &HashSet<String>) -> Result<(), NetworkError> {
        NodeNetwork::reconcile(self, live).await.map(drop)
    }
}
