//! What all workers of the node agent share.

use crate::config::KubeletConfig;
use crate::devices::Devices;
use crate::node::machine::Machine;
use crate::pod::dns::{ClusterDns, Resolver};
use crate::pod::fields::FieldContext;
use crate::pod_network::PodNetwork;
use crate::references::References;
use crate::volumes::claim::Claims;
use crate::volumes::pod_certificate::PodCertificates;
use crate::volumes::token::Tokens;
use crate::volumes::trust_bundle::TrustBundles;
use gantry_api::clock::Clock;
use gantry_client::Client;
use gantry_container::image_service::ImageService;
use gantry_container::runtime::Runtime;
use gantry_reconcile::{EventRecorder, Informer};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret, Service};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Pulls under way at once.
pub(crate) const PARALLEL_PULLS: usize = 4;

/// The shared parts.
pub(crate) struct Agent {
    pub cfg: KubeletConfig,
    pub client: Client,
    pub runtime: Arc<dyn Runtime>,
    pub images: Arc<dyn ImageService>,
    pub network: Arc<dyn PodNetwork>,
    pub recorder: EventRecorder,
    pub clock: Clock,
    pub services: Informer<Service>,
    pub node: Informer<Node>,
    pub config_maps: References<ConfigMap>,
    pub secrets: References<Secret>,
    pub tokens: Tokens,
    pub trust_bundles: TrustBundles,
    pub pod_certificates: PodCertificates,
    pub claims: Claims,
    pub devices: Devices,
    pub machine: Machine,
    pub pulls: Semaphore,
    pub admissions: crate::pod::admission::Admissions,
    /// What the node is short of, as its conditions say.
    pub pressure: tokio::sync::watch::Sender<crate::node::object::Pressure>,
}

impl Agent {
    /// `<data>/kubelet/pods/<uid>`.
    pub(crate) fn pod_directory(&self, uid: &str) -> PathBuf {
        self.cfg.pods_directory().join(uid)
    }

    pub(crate) fn cluster_dns(&self) -> ClusterDns {
        ClusterDns { servers: self.cfg.cluster_dns.clone(), domain: self.cfg.cluster_domain.clone() }
    }

    /// The host's resolver, read anew: it changes with the network the machine is in.
    pub(crate) async fn host_resolver(&self) -> Resolver {
        match tokio::fs::read_to_string(&self.cfg.resolv_conf).await {
            Ok(text) => Resolver::parse(&text),
            Err(error) => {
                tracing::warn!(path = %self.cfg.resolv_conf.display(), %error, "cannot read the host's resolver configuration");
                Resolver::default()
            }
        }
    }

    pub(crate) fn field_context(&self, pod_ips: &[IpAddr]) -> FieldContext {
        FieldContext {
            pod_ips: pod_ips.to_vec(),
            host_ips: self.cfg.node_ips.clone(),
            node_name: self.cfg.node_name.clone(),
            allocatable_cpu_milli: self.machine.allocatable_cpu_milli(),
            allocatable_memory: self.machine.allocatable_memory(),
            allocatable_storage: self.machine.allocatable_storage(),
        }
    }
}
