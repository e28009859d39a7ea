//! How a node agent is set up.

use crate::eviction::EvictionConfig;
use k8s_openapi::api::core::v1::Taint;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Where the certificate of the agent's HTTPS server comes from.
#[derive(Debug, Clone)]
pub enum Serving {
    /// Given files, PEM.
    Files {
        /// Certificate chain.
        certificate: PathBuf,
        /// Private key.
        key: PathBuf,
    },
    /// A CertificateSigningRequest of the signer `kubernetes.io/kubelet-serving`; the key and the certificate are kept
    /// under the data directory.
    Request,
}

/// Settings of [`crate::run`].
#[derive(Debug, Clone)]
pub struct KubeletConfig {
    /// Name of the Node object.
    pub node_name: String,
    /// The node's addresses; the first is the primary one.
    pub node_ips: Vec<IpAddr>,
    /// Further labels of the Node object.
    pub labels: BTreeMap<String, String>,
    /// Taints the Node object is created with.
    pub taints: Vec<Taint>,
    /// The node's ranges of pod addresses, the primary first; shown in the Node object's `spec.podCIDRs`.
    pub pod_cidrs: Vec<String>,
    /// Directory for volumes, termination messages and certificates (below `kubelet/`).
    pub data_dir: PathBuf,
    /// Directory for container logs; usually `/var/log/pods`.
    pub log_dir: PathBuf,
    /// Directory (or file) of static pods' manifests; `None` = no static pods.
    pub static_pod_path: Option<PathBuf>,
    /// Directory of localhost seccomp profiles.
    pub seccomp_dir: PathBuf,
    /// Nameservers of the cluster; empty where there is no cluster DNS.
    pub cluster_dns: Vec<IpAddr>,
    /// Domain of the cluster.
    pub cluster_domain: String,
    /// The host's resolver configuration.
    pub resolv_conf: PathBuf,
    /// Cgroup below the hierarchy root that holds `kubepods`.
    pub cgroup_root: String,
    /// Greatest number of pods.
    pub max_pods: u32,
    /// Greatest number of processes in one pod; `None` = unlimited.
    pub pod_pids_limit: Option<i64>,
    /// CPU kept for the system, thousandths of a core.
    pub system_reserved_cpu_milli: i64,
    /// Memory kept for the system, bytes.
    pub system_reserved_memory: i64,
    /// Address the HTTPS server listens on.
    pub bind_address: IpAddr,
    /// Port of the HTTPS server; 10250 usually.
    pub port: u16,
    /// Certificates of those who may connect (the cluster CA), PEM.
    pub client_ca_pem: Vec<u8>,
    /// Where the server's own certificate comes from.
    pub serving: Serving,
    /// Bytes after which a container's log is rotated.
    pub log_max_size: u64,
    /// Log files kept per container.
    pub log_max_files: usize,
    /// Disk usage in percent above which unused images are removed…
    pub image_gc_high_percent: u64,
    /// …until it is below this.
    pub image_gc_low_percent: u64,
    /// Unused images younger than this are kept.
    pub image_minimum_age: Duration,
    /// When pods are refused and evicted.
    pub eviction: EvictionConfig,
}

impl KubeletConfig {
    /// Kubernetes' defaults for one node.
    #[must_use]
    pub fn new(node_name: &str, node_ips: Vec<IpAddr>, data_dir: PathBuf) -> Self {
        KubeletConfig {
            node_name: node_name.to_owned(),
            node_ips,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            pod_cidrs: Vec::new(),
            log_dir: data_dir.join("kubelet/logs"),
            static_pod_path: None,
            seccomp_dir: data_dir.join("kubelet/seccomp"),
            data_dir,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            cgroup_root: "/gantry".into(),
            max_pods: 110,
            pod_pids_limit: None,
            system_reserved_cpu_milli: 0,
            system_reserved_memory: 100 << 20,
            bind_address: IpAddr::from([0, 0, 0, 0]),
            port: 10250,
            client_ca_pem: Vec::new(),
            serving: Serving::Request,
            log_max_size: 10 << 20,
            log_max_files: 5,
            image_gc_high_percent: 85,
            image_gc_low_percent: 80,
            image_minimum_age: Duration::from_secs(120),
            eviction: EvictionConfig::default(),
        }
    }

    /// Where pods' volumes are.
    #[must_use]
    pub fn pods_directory(&self) -> PathBuf {
        self.data_dir.join("kubelet/pods")
    }

    /// Where the volumes that are made on this node are.
    #[must_use]
    pub fn local_volumes_directory(&self) -> PathBuf {
        self.data_dir.join("volumes")
    }

    /// Where the server's key and certificate are kept.
    #[must_use]
    pub fn pki_directory(&self) -> PathBuf {
        self.data_dir.join("kubelet/pki")
    }
}
