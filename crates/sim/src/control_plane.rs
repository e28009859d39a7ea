//! API server, controllers and scheduler, wired as the binary wires them.

use crate::hollow::{HollowNode, HollowSpec, Pace};
use crate::keys::{self, Keys};
use crate::log::EventLog;
use gantry::in_process;
use gantry::wire::{self, Components};
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_api::k8s_openapi::jiff::Timestamp;
use gantry_api::kind::Kind;
use gantry_client::{Api, Client};
use gantry_server::authn::UserInfo;
use gantry_server::{Server, ServerConfig};
use gantry_store::{MemoryStore, Store, StoreError};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The instant at which every simulation begins: 2027-01-15T08:00:00Z.
const BEGIN_SECONDS: i64 = 1_800_000_000;
const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Why a control plane could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Keys could not be made.
    #[error("cannot make the cluster's keys: {0}")]
    Keys(#[from] rcgen::Error),
    /// The event log could not be begun.
    #[error("cannot watch the store: {0}")]
    Store(#[from] StoreError),
    /// The API server did not start.
    #[error(transparent)]
    Server(#[from] gantry_server::StartError),
}

/// A running control plane. Everything in it ends with [`ControlPlane::stop`] or with its runtime.
pub struct ControlPlane {
    /// The API server.
    pub server: Arc<Server>,
    /// Everything that was ever written.
    pub log: EventLog,
    /// Virtual time.
    pub clock: Clock,
    /// The one source of chance.
    pub entropy: Entropy,
    cancel: CancellationToken,
}

impl ControlPlane {
    /// Starts everything from `seed`.
    ///
    /// # Errors
    /// Where a part does not start.
    pub async fn start(seed: u64) -> Result<Self, StartError> {
        let clock = Clock::starting_at(Timestamp::from_second(BEGIN_SECONDS).unwrap_or(Timestamp::MAX));
        let entropy = Entropy::seeded(seed);
        let keys = keys::draw(&entropy)?;
        let cancel = CancellationToken::new();
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let log = EventLog::follow(&*store).await?;
        let server = Server::new(server_config(&keys), store, clock, entropy.clone()).await?;
        let running = Self { server, log, clock, entropy, cancel };
        let components = Components {
            ca_cert_pem: keys.ca.certificate_pem,
            ca_key_pem: keys.ca.key_pem,
            clock,
            entropy: running.entropy.clone(),
            signing_duration: None,
            autoscaling_period: None,
            cluster_dns: None,
            scheduling: Default::default(),
        };
        tokio::spawn(wire::run(running.server.clone(), components, running.cancel.clone()));
        Ok(running)
    }

    /// A client under any identity.
    #[must_use]
    pub fn client(&self, user: &str, groups: &[&str], name: &str) -> Client {
        in_process::client(&self.server, UserInfo::new(user, groups), name)
    }

    /// A client that may do anything.
    #[must_use]
    pub fn admin(&self) -> Client {
        self.client("kubernetes-admin", &["system:masters"], "simulation")
    }

    /// The administrator's access to a kind, in a namespace or in all where it is empty.
    #[must_use]
    pub fn api<K: Kind>(&self, namespace: &str) -> Api<K> {
        if namespace.is_empty() { Api::all(self.admin()) } else { Api::namespaced(self.admin(), namespace) }
    }

    /// Starts a node that runs pods in name only, under its own identity.
    #[must_use]
    pub fn node(&self, spec: HollowSpec, pace: Pace) -> HollowNode {
        let client = self.client(&format!("system:node:{}", spec.name), &["system:nodes"], "kubelet");
        HollowNode::start(spec, pace, client, self.clock, self.entropy.clone(), self.cancel.child_token())
    }

    /// Ends controllers, scheduler, nodes and server.
    pub fn stop(&self) {
        self.cancel.cancel();
        self.server.stop();
    }
}

fn server_config(keys: &Keys) -> ServerConfig {
    ServerConfig {
        listen: Vec::new(),
        serving_cert_pem: keys.serving.certificate_pem.clone(),
        serving_key_pem: keys.serving.key_pem.clone(),
        client_ca_pem: keys.ca.certificate_pem.clone(),
        cluster_ca_pem: keys.ca.certificate_pem.clone(),
        kubelet_client_cert_pem: keys.serving.certificate_pem.clone(),
        kubelet_client_key_pem: keys.serving.key_pem.clone(),
        service_account_key_pem: keys.service_account_key_pem.clone(),
        service_account_issuer: ISSUER.into(),
        api_audiences: vec![ISSUER.into()],
        static_tokens: Vec::new(),
        service_cidr: ipnet::IpNet::V4(ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16)),
        node_port_range: (30000, 32767),
        advertise: Some((IpAddr::V4(Ipv4Addr::new(192, 168, 0, 1)), 6443)),
        request_body_bytes_max: 3 << 20,
        requests_at_once: 600,
        audit: None,
        encryption: None,
        admission: gantry_server::admission::AdmissionConfig::default(),
        access: gantry_server::access::AccessConfig::default(),
        component_roles: wire::component_roles(),
    }
}
