//! What the controllers are given from outside.

use crate::measured::Measured;
use crate::node_ipam;
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_client::Client;
use gantry_reconcile::{EventRecorder, Informers};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Gives the client of one controller, whose identity is `system:serviceaccount:kube-system:<name>`.
pub type ClientFactory = Arc<dyn Fn(&str) -> Client + Send + Sync>;

/// Settings of all controllers.
#[derive(Clone)]
pub struct ControllersConfig {
    /// Time.
    pub clock: Clock,
    /// Chance.
    pub entropy: Entropy,
    /// Clients by controller name.
    pub client_for: ClientFactory,
    /// The cluster's CA certificate, PEM: published to every namespace and the issuer of node certificates.
    pub ca_cert_pem: String,
    /// The CA's private key, PEM. Without it no certificate is signed.
    pub ca_key_pem: Option<String>,
    /// Lifetime of signed certificates where the request asks for none.
    pub certificate_duration: Duration,
    /// Addresses of the DNS Service that leads to the nodes' own DNS servers, of the default family first; without any
    /// none is made.
    pub cluster_dns: Vec<IpAddr>,
    /// How often an autoscaler looks (`--horizontal-pod-autoscaler-sync-period`).
    pub autoscaling_period: Duration,
    /// A node silent for this long is taken for lost (`--node-monitor-grace-period`).
    pub node_grace_period: Duration,
    /// The same for a node that has never reported (`--node-startup-grace-period`).
    pub node_startup_grace_period: Duration,
    /// A token in a Secret that was not used for this long is marked invalid, and deleted after as long again.
    pub legacy_token_period: Duration,
    /// Whether PodGroups are served.
    pub pod_groups: bool,
    /// Finished pods beyond this number are deleted, oldest first (`--terminated-pod-gc-threshold`); 0 keeps all.
    pub terminated_pod_threshold: usize,
    /// What the nodes' ranges of pod addresses are cut out of (`--allocate-node-cidrs`); None where nodes bring their own.
    pub node_ranges: Option<node_ipam::Ranges>,
    /// What the controllers measure.
    pub measured: Measured,
}

impl ControllersConfig {
    /// Kubernetes' settings.
    #[must_use]
    pub fn new(clock: Clock, entropy: Entropy, client_for: ClientFactory, ca_cert_pem: String) -> Self {
        Self {
            clock,
            entropy,
            client_for,
            ca_cert_pem,
            ca_key_pem: None,
            certificate_duration: Duration::from_secs(365 * 24 * 3600),
            cluster_dns: Vec::new(),
            autoscaling_period: Duration::from_secs(15),
            node_grace_period: Duration::from_secs(50),
            node_startup_grace_period: Duration::from_secs(60),
            legacy_token_period: Duration::from_secs(365 * 24 * 3600),
            pod_groups: false,
            terminated_pod_threshold: 12500,
            node_ranges: None,
            measured: Measured::default(),
        }
    }
}

/// What one controller starts with.
#[derive(Clone)]
pub struct Setup {
    /// The controller's name in the list.
    pub name: &'static str,
    /// Its own client.
    pub client: Client,
    /// Caches shared by all controllers.
    pub informers: Informers,
    /// Settings of all controllers.
    pub config: Arc<ControllersConfig>,
    /// Ends the controller.
    pub cancel: CancellationToken,
}

impl Setup {
    /// A recorder of events whose source is `component`.
    #[must_use]
    pub fn recorder(&self, component: &str) -> EventRecorder {
        EventRecorder::new(self.client.clone(), self.config.clock, component, "")
    }
}
