//! Settings of the roles, with the reason for each default.

use crate::access_options::AccessOptions;
use crate::admission_options::AdmissionOptions;
use crate::audit_options::AuditOptions;
use crate::controller_options::ControllerOptions;
use crate::encryption_options::EncryptionOptions;
use crate::ranges::{Ranges, family};
use crate::scheduler_options::SchedulerOptions;
use clap::{ArgAction, Args};
use gantry_api::versions::Versions;
use ipnet::IpNet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Where everything is kept unless told otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/gantry";
/// Where the admin's kubeconfig is written unless told otherwise.
pub const DEFAULT_KUBECONFIG: &str = "/etc/gantry/kubeconfig";

/// Which data directory.
#[derive(Args, Clone, Debug)]
pub struct DataDirOption {
    /// Directory that everything is kept under
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_DIR, env = "GANTRY_DATA_DIR")]
    pub data_dir: PathBuf,
}

/// Ranges that every machine of a cluster must agree on.
#[derive(Args, Clone, Debug)]
pub struct ClusterOptions {
    /// Addresses of pods in the whole cluster, an IPv4 range, an IPv6 range or one of each (CIDR,CIDR); each node takes a
    /// /24 or /64 of each
    #[arg(long, alias = "cluster-cidr", value_name = "CIDR", default_value = "10.244.0.0/16")]
    pub pod_cidr: Ranges,
    /// Addresses of Services, an IPv4 range, an IPv6 range or one of each (CIDR,CIDR); the first is the default's
    #[arg(long, alias = "service-cluster-ip-range", value_name = "CIDR", default_value = "10.96.0.0/16")]
    pub service_cidr: Ranges,
    /// DNS domain of the cluster
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
}

impl ClusterOptions {
    /// The address of the `kubernetes` Service: the first of the range.
    #[must_use]
    pub fn api_service_ip(&self) -> IpAddr {
        nth(&self.service_cidr.primary, 1)
    }

    /// The addresses of the `kube-dns` Service: the tenth of each range, where clients of other distributions expect it.
    #[must_use]
    pub fn dns_service_ips(&self) -> Vec<IpAddr> {
        self.service_cidr.all().map(|range| nth(&range, 10)).collect()
    }

    /// Sees that pods have an address of every family that Services have.
    ///
    /// # Errors
    /// Names the options.
    pub fn check(&self) -> anyhow::Result<()> {
        self.pod_cidr.cover("--pod-cidr", &self.service_cidr, "--service-cidr")
    }

    /// The first node's share of the pod ranges.
    ///
    /// # Errors
    /// Where a range is smaller than the share of one node.
    pub fn first_node_cidr(&self) -> anyhow::Result<Ranges> {
        self.pod_cidr.try_map(|range| {
            let length = if range.addr().is_ipv4() { 24 } else { 64 };
            if range.prefix_len() >= length { Ok(range) } else { Ok(IpNet::new(range.network(), length)?) }
        })
    }
}

fn nth(net: &IpNet, n: u32) -> IpAddr {
    match net.network() {
        IpAddr::V4(a) => IpAddr::V4(std::net::Ipv4Addr::from_bits(a.to_bits().wrapping_add(n))),
        IpAddr::V6(a) => IpAddr::V6(std::net::Ipv6Addr::from_bits(a.to_bits().wrapping_add(u128::from(n)))),
    }
}

/// Settings of the server role.
#[derive(Args, Clone, Debug)]
pub struct ServerOptions {
    /// Address to serve the API on. Loopback keeps a laptop's cluster to itself; pods always reach it by the node's pod gateway
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub bind_address: IpAddr,
    /// Address that pods and, where --bind-address is every address, nodes are told to reach the API by: the node's pod
    /// gateway and the address of the default route's interface unless given
    #[arg(long, value_name = "IP")]
    pub advertise_address: Option<IpAddr>,
    /// Port to serve the API on
    #[arg(long, value_name = "PORT", default_value_t = 6443)]
    pub port: u16,
    /// Further names and addresses that clients may reach the API by
    #[arg(long, value_name = "NAME")]
    pub tls_san: Vec<String>,
    /// Ports for Services of type NodePort, FROM-TO
    #[arg(long, value_name = "RANGE", default_value = "30000-32767", value_parser = port_range)]
    pub service_node_port_range: (u16, u16),
    /// Controllers
    #[command(flatten)]
    pub controllers: ControllerOptions,
    /// Where to write the admin's kubeconfig
    #[arg(long, value_name = "FILE", default_value = DEFAULT_KUBECONFIG)]
    pub kubeconfig: PathBuf,
    /// Who may ask
    #[command(flatten)]
    pub access: AccessOptions,
    /// Admission
    #[command(flatten)]
    pub admission: AdmissionOptions,
    /// Audit
    #[command(flatten)]
    pub audit: AuditOptions,
    /// Encryption at rest
    #[command(flatten)]
    pub encryption: EncryptionOptions,
    /// Requests over the network that run at the same time: this and --max-mutating-requests-inflight together
    #[arg(long, value_name = "N", default_value_t = 400)]
    pub max_requests_inflight: u32,
    /// See --max-requests-inflight
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub max_mutating_requests_inflight: u32,
    /// Versions of the API to serve besides the stable ones: api/beta=true, GROUP/VERSION=true, GROUP/VERSION/RESOURCE=true
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    pub runtime_config: Vec<String>,
    /// Scheduling
    #[command(flatten)]
    pub scheduling: SchedulerOptions,
    /// Let administrators look into the process at /debug/pprof/ and /debug/flags/
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value_t = true, default_missing_value = "true")]
    pub profiling: bool,
}

impl ServerOptions {
    /// The versions that are served besides the stable ones.
    ///
    /// # Errors
    /// Names the flag and what is wrong.
    pub fn versions(&self) -> anyhow::Result<Versions> {
        Versions::parse(&self.runtime_config).map_err(|e| anyhow::anyhow!("--runtime-config: {e}"))
    }

    /// Requests over the network that run at the same time.
    ///
    /// # Errors
    /// Where there are none.
    pub fn requests_at_once(&self) -> anyhow::Result<u32> {
        let sum = self.max_requests_inflight.saturating_add(self.max_mutating_requests_inflight);
        if sum == 0 {
            anyhow::bail!("--max-requests-inflight and --max-mutating-requests-inflight must sum to more than 0");
        }
        Ok(sum)
    }
}

fn port_range(text: &str) -> Result<(u16, u16), String> {
    let parse = || -> Option<(u16, u16)> {
        let (from, to) = text.split_once('-')?;
        Some((from.parse().ok()?, to.parse().ok()?))
    };
    match parse() {
        Some((from, to)) if from <= to && from > 0 => Ok((from, to)),
        _ => Err("expected FROM-TO with 0 < FROM <= TO <= 65535".into()),
    }
}

/// Settings of the agent role.
#[derive(Args, Clone, Debug)]
pub struct AgentOptions {
    /// Name of this node; the host's name unless given
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Address of this node, or one of each family (IP,IP); that of the default route's interface unless given
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub node_ip: Vec<IpAddr>,
    /// Port the node agent serves logs, exec and statistics on, to the API server only
    #[arg(long, value_name = "PORT", default_value_t = 10250)]
    pub kubelet_port: u16,
    /// Most pods on this node
    #[arg(long, value_name = "N", default_value_t = 110)]
    pub max_pods: u32,
    /// Directory (or file) of manifests of static pods: run by this node on its own, and shown in the API
    #[arg(long, value_name = "PATH")]
    pub pod_manifest_path: Option<PathBuf>,
    /// Registry host (and port) to be spoken to in plain HTTP; may be repeated
    #[arg(long, value_name = "HOST")]
    pub insecure_registry: Vec<String>,
    /// File that names the resolvers for names outside the cluster
    #[arg(long, value_name = "FILE", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
    /// What the node does when something runs short
    #[command(flatten)]
    pub upkeep: UpkeepOptions,
}

/// The node's upkeep: logs, images, eviction. Names and notation are the kubelet's.
#[derive(Args, Clone, Debug)]
pub struct UpkeepOptions {
    /// Shortages at which pods are evicted at once, SIGNAL<QUANTITY or SIGNAL<PERCENT%, separated by commas
    #[arg(long, value_name = "LIST", default_value = gantry_kubelet::DEFAULT_HARD)]
    pub eviction_hard: String,
    /// Shortages at which pods are evicted after a grace period
    #[arg(long, value_name = "LIST", default_value = "")]
    pub eviction_soft: String,
    /// How long a soft shortage must last, SIGNAL=DURATION, separated by commas
    #[arg(long, value_name = "LIST", default_value = "")]
    pub eviction_soft_grace_period: String,
    /// Greatest grace period, in seconds, of pods evicted by a soft shortage
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub eviction_max_pod_grace_period: u64,
    /// What an eviction must free beyond the threshold, SIGNAL=QUANTITY, separated by commas
    #[arg(long, value_name = "LIST", default_value = "")]
    pub eviction_minimum_reclaim: String,
    /// How long the node reports pressure after it is over
    #[arg(long, value_name = "DURATION", default_value = "5m0s", value_parser = gantry_kubelet::duration)]
    pub eviction_pressure_transition_period: Duration,
    /// Fullness of the disk, in percent, from which unused images are removed
    #[arg(long, value_name = "PERCENT", default_value_t = 85, value_parser = clap::value_parser!(u64).range(0..=100))]
    pub image_gc_high_threshold: u64,
    /// Fullness of the disk, in percent, down to which unused images are removed
    #[arg(long, value_name = "PERCENT", default_value_t = 80, value_parser = clap::value_parser!(u64).range(0..=100))]
    pub image_gc_low_threshold: u64,
    /// Unused images younger than this are kept
    #[arg(long, value_name = "DURATION", default_value = "2m0s", value_parser = gantry_kubelet::duration)]
    pub minimum_image_ttl_duration: Duration,
    /// Size at which a container's log is rotated
    #[arg(long, value_name = "QUANTITY", default_value = "10Mi", value_parser = size)]
    pub container_log_max_size: u64,
    /// Files kept of a container's log
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = log_files)]
    pub container_log_max_files: usize,
    /// Most processes in a pod; -1 for no limit
    #[arg(long, value_name = "N", default_value_t = -1, allow_negative_numbers = true)]
    pub pod_max_pids: i64,
}

fn size(text: &str) -> Result<u64, String> {
    let amount = gantry_api::meta::quantity::Amount::parse(text)?;
    u64::try_from(amount.value()).ok().filter(|n| *n > 0).ok_or_else(|| "must be positive".into())
}

fn log_files(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 1).ok_or_else(|| "must be greater than 1".into())
}

impl UpkeepOptions {
    /// Takes the options over into the node agent's settings.
    ///
    /// # Errors
    /// Where a threshold is malformed, or the image thresholds are the wrong way round.
    pub fn apply(&self, kubelet: &mut gantry_kubelet::KubeletConfig) -> anyhow::Result<()> {
        if self.image_gc_low_threshold >= self.image_gc_high_threshold {
            let (low, high) = (self.image_gc_low_threshold, self.image_gc_high_threshold);
            anyhow::bail!("--image-gc-low-threshold {low} must be less than --image-gc-high-threshold {high}");
        }
        let thresholds = gantry_kubelet::thresholds(
            &self.eviction_hard,
            &self.eviction_soft,
            &self.eviction_soft_grace_period,
            &self.eviction_minimum_reclaim,
        );
        kubelet.eviction = gantry_kubelet::EvictionConfig {
            thresholds: thresholds.map_err(|error| anyhow::anyhow!("eviction thresholds: {error}"))?,
            pressure_transition: self.eviction_pressure_transition_period,
            max_pod_grace: Duration::from_secs(self.eviction_max_pod_grace_period),
        };
        kubelet.image_gc_high_percent = self.image_gc_high_threshold;
        kubelet.image_gc_low_percent = self.image_gc_low_threshold;
        kubelet.image_minimum_age = self.minimum_image_ttl_duration;
        kubelet.log_max_size = self.container_log_max_size;
        kubelet.log_max_files = self.container_log_max_files;
        kubelet.pod_pids_limit = (self.pod_max_pids > 0).then_some(self.pod_max_pids);
        Ok(())
    }
}

impl AgentOptions {
    /// The node's name: as given, or the host's name in lower case.
    ///
    /// # Errors
    /// Where it is no valid node name.
    pub fn node_name(&self) -> anyhow::Result<String> {
        let name = match &self.node_name {
            Some(name) => name.clone(),
            None => nix::unistd::gethostname()?.to_string_lossy().trim().to_lowercase(),
        };
        let errors = gantry_api::meta::names::dns1123_subdomain(&name, false);
        if let Some(error) = errors.first() {
            anyhow::bail!("{name:?} is not a node name ({error}); give one with --node-name");
        }
        Ok(name)
    }

    /// The node's address in each of the families of `like`, in their order: as given, or the one the default route leaves
    /// from, if there is one.
    ///
    /// # Errors
    /// Where one is given that is of none of them, or more than one of a family.
    pub fn node_ips(&self, like: &Ranges) -> anyhow::Result<Vec<Option<IpAddr>>> {
        for (i, ip) in self.node_ip.iter().enumerate() {
            let of_family = family(*ip);
            if !like.families().any(|f| f == of_family) {
                anyhow::bail!("--node-ip {ip}: the cluster has no {of_family} addresses for pods");
            }
            if self.node_ip[..i].iter().any(|other| family(*other) == of_family) {
                anyhow::bail!("--node-ip {ip}: there is an {of_family} address already");
            }
        }
        let given = |f: &str| self.node_ip.iter().copied().find(|ip| family(*ip) == f);
        Ok(like.families().map(|f| given(f).or_else(|| default_route_address(f))).collect())
    }
}

/// The address packets of a family, `IPv4` or `IPv6`, to the outside world would leave from. Connecting a datagram socket
/// sends nothing.
#[must_use]
pub fn default_route_address(family: &str) -> Option<IpAddr> {
    // Addresses reserved for documentation (RFC 5737, RFC 3849): only the routing table is asked.
    let (any, outside) = if family == "IPv4" { ("0.0.0.0:0", "192.0.2.1:9") } else { ("[::]:0", "[2001:db8::1]:9") };
    let socket = std::net::UdpSocket::bind(any).ok()?;
    socket.connect(outside).ok()?;
    let own = socket.local_addr().ok()?.ip();
    let link_local = matches!(own, IpAddr::V6(v6) if v6.is_unicast_link_local());
    (!own.is_unspecified() && !link_local).then_some(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let c = ClusterOptions {
            pod_cidr: "10.244.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            cluster_domain: "cluster.local".into(),
        };
        assert_eq!(c.api_service_ip().to_string(), "10.96.0.1");
        assert_eq!(c.dns_service_ips(), ["10.96.0.10".parse::<IpAddr>().unwrap()]);
        let dual = ClusterOptions {
            pod_cidr: "fd00:244::/56,10.244.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/16,fd00:96::/112".parse().unwrap(),
            cluster_domain: "cluster.local".into(),
        };
        assert_eq!(dual.first_node_cidr().unwrap().to_string(), "fd00:244::/64,10.244.0.0/24");
        assert_eq!(dual.dns_service_ips()[1].to_string(), "fd00:96::a");
        assert!(dual.check().is_ok());
        assert!(ClusterOptions { pod_cidr: c.pod_cidr, ..dual }.check().is_err());
        assert_eq!(c.first_node_cidr().unwrap().to_string(), "10.244.0.0/24");
        assert_eq!(port_range("30000-32767"), Ok((30000, 32767)));
        for bad in ["", "5", "9-3", "0-9", "1-70000", "a-b"] {
            assert!(port_range(bad).is_err(), "{bad}");
        }
    }
}
