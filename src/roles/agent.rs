//! The agent role: node agent, container runtime, pod network, service proxy and DNS. It knows the server by its URL only.

use super::{given_range, join, server};
use crate::bootstrap::DataDir;
use crate::bootstrap::traces::{self, Trace};
use crate::cli::AgentCommand;
use crate::config::{AgentOptions, ClusterOptions};
use crate::ranges::Ranges;
use anyhow::{Context, Result, bail};
use gantry_api::clock::Clock;
use gantry_client::https::Https;
use gantry_client::{Client, Credentials, HttpsConfig};
use gantry_container::image_service::ImageService;
use gantry_container::native::{NativeRuntime, RuntimeConfig};
use gantry_dns::DnsConfig;
use gantry_kubelet::{GuardedNetwork, KubeletConfig, Serving};
use gantry_network::{NetworkError, NodeNetwork, NodeNetworkConfig};
use gantry_network_policy::Enforcer;
use gantry_proxy::ProxyConfig;
use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Port of DNS.
const DNS_PORT: u16 = 53;

/// How the node proves who it is, and where the server is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Address of the server, `https://host:port`.
    pub server_url: String,
    /// The cluster's CA, PEM.
    pub ca_pem: String,
    /// The node's client certificate and key.
    pub certificate_pem: String,
    /// Its key.
    pub key_pem: String,
    /// The serving certificate of the node agent.
    pub serving: Serving,
    /// The file the client certificate is kept in, where it is to be renewed while the node runs.
    pub renewed_in: Option<PathBuf>,
}

impl Identity {
    /// Issued directly by the server role of this process.
    ///
    /// # Errors
    /// Where the keys cannot be read or written.
    pub fn issued(server: &server::Running, node: &str, ips: &[IpAddr]) -> Result<Self> {
        let user = format!("system:node:{node}");
        let client = server.pki.client("node-client", &user, Some("system:nodes"))?;
        let names = [node.to_owned(), "localhost".to_owned()];
        let addresses = [ips, &[IpAddr::from([127, 0, 0, 1])]].concat();
        server.pki.serving("node-serving", &user, Some("system:nodes"), &names, &addresses)?;
        Ok(Self {
            server_url: server.url.clone(),
            ca_pem: server.pki.ca().cert_pem.clone(),
            certificate_pem: client.cert_pem,
            key_pem: client.key_pem,
            serving: Serving::Files {
                certificate: server.pki.path("node-serving.crt"),
                key: server.pki.path("node-serving.key"),
            },
            renewed_in: None,
        })
    }

    /// How to reach the server as this node.
    pub(super) fn https(&self) -> HttpsConfig {
        HttpsConfig {
            server: self.server_url.clone(),
            ca_pem: self.ca_pem.clone().into_bytes(),
            credentials: Credentials::Certificate {
                certificate_pem: self.certificate_pem.clone().into_bytes(),
                key_pem: self.key_pem.clone().into_bytes(),
            },
            ..Default::default()
        }
    }
}

/// A node about to run.
pub struct Node {
    /// Name of the Node object.
    pub name: String,
    /// Its addresses, one of each family that pods have, in their order.
    pub ips: Vec<IpAddr>,
    /// Its pod network.
    pub network: NodeNetwork,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Short id of the data directory.
    pub instance: String,
    /// Settings.
    pub options: AgentOptions,
    /// The cluster's ranges.
    pub cluster: ClusterOptions,
    /// Who it is.
    pub identity: Identity,
}

/// `gantry agent`: runs until Ctrl-C or SIGTERM.
///
/// # Errors
/// Names what is in the way: root, the data directory, the server, the token.
pub async fn run(command: AgentCommand) -> Result<()> {
    super::require_root("gantry agent")?;
    command.cluster.check()?;
    if let Some(own) = &command.node_cidr {
        own.cover("--node-cidr", &command.cluster.pod_cidr, "--pod-cidr")?;
    }
    super::raise_file_limit();
    let data = DataDir::open(&command.data.data_dir)?;
    let name = command.agent.node_name()?;
    println!("gantry {}: joining {} as {name}", env!("CARGO_PKG_VERSION"), command.server_url);
    let identity = join::join(&command, data.path(), &name).await?;
    let node_cidr = match command.node_cidr {
        Some(own) => own,
        None => given_range::range(&identity, &name, data.path()).await?,
    };
    let (network, _trace) =
        open_network(&data, &command.cluster, ("--node-cidr", &node_cidr), &command.agent, &name).await?;
    let ips = node_ips(&command.agent, &node_cidr, &network)?;
    println!("  joined       {} as {name}", command.server_url);
    let cancel = CancellationToken::new();
    let node = Node {
        name,
        ips,
        network,
        data_dir: data.path().to_owned(),
        instance: data.instance()?,
        options: command.agent,
        cluster: command.cluster,
        identity,
    };
    let mut running = tokio::spawn(run_node(node, cancel.clone()));
    tokio::select! {
        () = super::up::until_signalled() => {
            println!("stopping");
            cancel.cancel();
            running.await.context("the node agent panicked")?
        }
        result = &mut running => result.context("the node agent panicked")?,
    }
}

/// Sets up the node's side of the pod network. `pod_flag` is the option that `node_cidr` comes from. The trace is to be
/// held as long as the node runs.
///
/// # Errors
/// Where the kernel refuses, with what was being done.
pub async fn open_network(
    data: &DataDir,
    cluster: &ClusterOptions,
    (pod_flag, node_cidr): (&str, &Ranges),
    options: &AgentOptions,
    node_name: &str,
) -> Result<(NodeNetwork, Trace)> {
    super::down::remove_orphans_of(data.path()).await?;
    let instance = data.instance()?;
    let trace = traces::announce(Path::new(traces::DIRECTORY), &instance, data.path())?;
    let config = NodeNetworkConfig {
        data_dir: data.path().to_owned(),
        node_name: node_name.to_owned(),
        instance,
        pod_cidrs: node_cidr.to_vec(),
        cluster_cidrs: cluster.pod_cidr.to_vec(),
        service_cidrs: cluster.service_cidr.to_vec(),
        node_ips: options.node_ips(node_cidr)?.into_iter().flatten().collect(),
        mtu: None,
    };
    match NodeNetwork::open(config).await {
        Err(error @ NetworkError::Overlap { what, .. }) => {
            // Nothing was made.
            traces::forget(Path::new(traces::DIRECTORY), &data.instance()?)?;
            let flag = if what == "service CIDR" { "--service-cidr" } else { pod_flag };
            let other = abandoned(&NodeNetwork::instances()?)?.map_or_else(String::new, |path| {
                let path = path.display();
                format!(" (gantry down --data-dir {path} removes what is left of {path}, which was deleted)")
            });
            bail!("{error}; choose another range with {flag}, or stop the other cluster with gantry down{other}")
        }
        other => Ok((other.context("cannot set up the pod network")?, trace)),
    }
}

/// Where the data directory was of one of the instances, where it was deleted.
fn abandoned(instances: &BTreeSet<String>) -> Result<Option<PathBuf>> {
    let orphans = traces::orphans(Path::new(traces::DIRECTORY))?;
    Ok(orphans.into_iter().find(|o| instances.contains(&o.instance)).map(|o| o.data_dir))
}

/// The node's addresses. One that neither is given nor follows from a route is the one in the pod network.
///
/// # Errors
/// Where one is given that cannot be.
pub fn node_ips(options: &AgentOptions, node_cidr: &Ranges, network: &NodeNetwork) -> Result<Vec<IpAddr>> {
    let known = options.node_ips(node_cidr)?;
    Ok(known.into_iter().zip(network.gateways()).map(|(known, gateway)| known.unwrap_or(gateway)).collect())
}

/// Opens the container runtime of a data directory and adopts what runs in it.
///
/// # Errors
/// Where its state cannot be read.
pub async fn open_runtime(data_dir: &Path, instance: &str, insecure: &[String]) -> Result<NativeRuntime> {
    let images = super::image::open_store(data_dir, insecure)?;
    let mut config = RuntimeConfig::new(data_dir.join("node").join("runtime"));
    config.cgroup_base = cgroup(instance);
    config.shim_cgroup = format!("{}/shims", cgroup(instance));
    NativeRuntime::open(config, images).await.context("cannot open the container runtime")
}

/// The cgroup everything of a data directory is under, below each hierarchy's root.
#[must_use]
pub fn cgroup(instance: &str) -> String {
    format!("/gantry-{instance}")
}

/// Runs the parts of the agent until `cancel`. Containers and rules stay when it ends.
///
/// # Errors
/// The first part that cannot work.
pub async fn run_node(node: Node, cancel: CancellationToken) -> Result<()> {
    let runtime = open_runtime(&node.data_dir, &node.instance, &node.options.insecure_registry).await?;
    let images = runtime.images().clone();
    let executable = std::env::current_exe().context("cannot find this program's own file")?;
    let built_in = images.clone();
    // Not needed to become Ready; pods that use it wait for the image like for any other.
    let building = tokio::spawn(async move { built_in.self_image(&executable).await });

    let gateways = node.network.gateways();
    let mut kubelet = KubeletConfig::new(&node.name, node.ips.clone(), node.data_dir.join("node"));
    kubelet.pod_cidrs = node.network.pod_cidrs().iter().map(ToString::to_string).collect();
    // The default family's: pods of both families reach it.
    kubelet.cluster_dns = node.cluster.dns_service_ips().into_iter().take(1).collect();
    kubelet.cluster_domain.clone_from(&node.cluster.cluster_domain);
    kubelet.static_pod_path.clone_from(&node.options.pod_manifest_path);
    kubelet.resolv_conf.clone_from(&node.options.resolv_conf);
    kubelet.cgroup_root = cgroup(&node.instance);
    kubelet.max_pods = node.options.max_pods;
    kubelet.bind_address = node.ips[0];
    kubelet.port = node.options.kubelet_port;
    kubelet.client_ca_pem = node.identity.ca_pem.clone().into_bytes();
    kubelet.serving = node.identity.serving.clone();
    node.options.upkeep.apply(&mut kubelet)?;

    let proxy = ProxyConfig {
        node_name: node.name.clone(),
        instance: node.instance.clone(),
        node_ips: node.ips.clone(),
        cluster_cidrs: node.cluster.pod_cidr.to_vec(),
    };
    let dns = DnsConfig {
        bind: gateways.iter().map(|gateway| SocketAddr::new(*gateway, DNS_PORT)).collect(),
        cluster_domain: node.cluster.cluster_domain.clone(),
        upstream: Some(node.options.resolv_conf.clone()),
    };
    let policies = Enforcer::open(gantry_network_policy::Config {
        instance: node.instance.clone(),
        pod_cidrs: node.network.pod_cidrs().to_vec(),
        attached: node.network.addresses().await.into_iter().map(|(key, pod)| (key, pod.ips)).collect(),
    })
    .await?;
    let clock = Clock::starting_at(Timestamp::now());
    let config = node.identity.https();
    let https = Arc::new(Https::new(&config)?);
    let client = Client::new(https.clone(), "kubelet");
    let informers = gantry_reconcile::Informers::new(client.named("gantry-agent"));
    let (proxying, naming) = (informers.clone(), informers.clone());
    let stop = cancel.clone();
    let parts = async {
        tokio::try_join!(
            async {
                gantry_kubelet::run(
                    client,
                    Arc::new(runtime),
                    Arc::new(images) as Arc<dyn ImageService>,
                    GuardedNetwork { network: node.network, policies: policies.clone() },
                    kubelet,
                    clock,
                    stop.clone(),
                )
                .await
                .context("node agent")
            },
            async { gantry_proxy::run_with(&proxying, proxy, stop.clone()).await.context("service proxy") },
            async { gantry_dns::run_with(&naming, dns, stop.clone()).await.context("cluster DNS") },
            async {
                policies.run(&informers, stop.clone()).await;
                Ok(())
            },
            async {
                let Some(file) = node.identity.renewed_in else { return Ok(()) };
                tokio::select! {
                    () = join::renew(https, config, file, &node.name, clock) => {}
                    () = stop.cancelled() => {}
                }
                Ok(())
            },
            async {
                informers.start(&stop);
                match building.await {
                    Ok(Ok(image)) => tracing::info!(id = image.id, "built-in image is ready"),
                    Ok(Err(error)) => tracing::error!(%error, "cannot make the built-in image"),
                    Err(error) => tracing::error!(%error, "making the built-in image panicked"),
                }
                anyhow::Ok(())
            },
        )
    };
    parts.await.map(|_| ())
}
