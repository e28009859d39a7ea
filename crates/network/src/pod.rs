//! Attaching pods to the node's network and detaching them.

mod node_routes;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use tokio::sync::Mutex;
use tracing::{debug, info, warn};

use crate::{
    HostPort, NetworkError,
    ipam::Range,
    link::{self, LOOPBACK, RouteSocket},
    node_table::{self, NodeTable},
    state::{Attachment, State},
    sysctl,
};

/// MTU where neither the configuration nor a default route says one.
const DEFAULT_MTU: u32 = 1500;
/// Routing tables of the node's fallback routes are numbered from here, by instance.
const FIRST_FALLBACK_TABLE: u32 = 0x6700_0000;

/// How the node's network is set up.
#[derive(Debug, Clone)]
pub struct NodeNetworkConfig {
    /// The cluster's data directory on this node; state is kept in `network/` below it.
    pub data_dir: PathBuf,
    /// The node's name, for messages.
    pub node_name: String,
    /// A short id that follows from the data directory, so that two clusters on one machine use different interface
    /// and table names. ASCII letters and digits.
    pub instance: String,
    /// The pod CIDRs of this node, at most one per address family, the primary first.
    pub pod_cidrs: Vec<IpNet>,
    /// The pod CIDRs of the whole cluster. Traffic of pods to anything else is masqueraded. Empty means `pod_cidrs`.
    pub cluster_cidrs: Vec<IpNet>,
    /// The CIDRs of the Services' cluster IPs, at most one per address family.
    pub service_cidrs: Vec<IpNet>,
    /// The node's own addresses.
    pub node_ips: Vec<IpAddr>,
    /// MTU of the pods' interfaces in bytes; `None` takes that of the interface the default route leads over.
    pub mtu: Option<u32>,
}

/// What a pod wants beyond an address.
#[derive(Debug, Clone, Default)]
pub struct AttachOptions {
    /// Ports of the node that lead to the pod.
    pub host_ports: Vec<HostPort>,
}

/// How a pod is connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodAddresses {
    /// The pod's addresses, the primary first.
    pub ips: Vec<IpAddr>,
    /// The node's own address as the pod sees it ([`NodeNetwork::gateway_ip`]).
    pub gateway: IpAddr,
    /// MTU of its interface in bytes.
    pub mtu: u32,
    /// The host's end of its veth pair.
    pub host_interface: String,
}

/// The network of one node: addresses, interfaces, routes, host ports and masquerading of its pods.
///
/// Shared by reference; all methods may be called concurrently. For one pod the caller does one thing at a time.
pub struct NodeNetwork {
    config: NodeNetworkConfig,
    ranges: Vec<Range>,
    mtu: u32,
    state_path: PathBuf,
    routes: RouteSocket,
    inner: Mutex<Inner>,
}

struct Inner {
    state: State,
    /// Pods attached since the start of this process.
    attached: HashSet<String>,
    table: NodeTable,
}

impl NodeNetwork {
    /// Sets the node up (forwarding, its own address in the pod network, the packet rules) and takes over what an
    /// earlier run left: pods that are still attached keep their addresses and host ports.
    ///
    /// Must be called within a tokio runtime, in the network namespace that is to be the node's.
    ///
    /// # Errors
    /// When the configuration cannot work, the state on disk is unreadable, or the kernel refuses.
    pub async fn open(config: NodeNetworkConfig) -> Result<NodeNetwork, NetworkError> {
        check(&config)?;
        let ranges = config.pod_cidrs.iter().map(|cidr| Range::new(*cidr)).collect::<Result<Vec<_>, _>>()?;
        let state_path = state_path(&config.data_dir);
        let directory = state_path.parent().unwrap_or(Path::new("/")).to_owned();
        fs::create_dir_all(&directory)
            .map_err(NetworkError::io(format!("create directory {}", directory.display())))?;
        let mut state = State::load(&state_path)?.unwrap_or_else(|| State::new(&config.instance));
        if state.instance != config.instance {
            return Err(NetworkError::State {
                path: state_path,
                reason: format!("belongs to instance {}, not {}", state.instance, config.instance),
            });
        }
        let routes = RouteSocket::open()?;
        refuse_overlaps(&config, &routes).await?;
        routes.loopback_up().await?;
        for range in &ranges {
            let family = if range.gateway().is_ipv4() { "net/ipv4/ip_forward" } else { "net/ipv6/conf/all/forwarding" };
            if let Some(old) = sysctl::set(family, "1")? {
                // Only the value from before the first run is worth restoring.
                state.changed_sysctls.entry(family.to_owned()).or_insert(old);
            }
            routes.add_address(LOOPBACK, range.gateway()).await?;
        }
        state.gateways = ranges.iter().map(Range::gateway).collect();
        state.service_cidrs.clone_from(&config.service_cidrs);
        state.save(&state_path)?;
        // Without any default route the node itself could not even try to reach a service address.
        for network in &config.service_cidrs {
            if let Some(source) = gateway_for(&ranges, *network) {
                routes.add_fallback_route(*network, source, fallback_table(&config.instance)).await?;
            }
        }
        let mtu = match config.mtu {
            Some(mtu) => mtu,
            None => routes.default_route_mtu().await?.unwrap_or(DEFAULT_MTU),
        };
        let table = NodeTable::open(&config, &state.attachments).await?;
        info!(node = %config.node_name, pods = state.attachments.len(), mtu, "node network ready");
        Ok(NodeNetwork {
            config,
            ranges,
            mtu,
            state_path,
            routes,
            inner: Mutex::new(Inner { state, attached: HashSet::new(), table }),
        })
    }

    /// The node's own address in the primary pod CIDR (its first). Pods reach the node's servers, its DNS and the API
    /// server on it; connections of the node to pods come from it.
    pub fn gateway_ip(&self) -> IpAddr {
        self.ranges[0].gateway()
    }

    /// The node's own address in each of its pod CIDRs, the primary's first.
    pub fn gateways(&self) -> Vec<IpAddr> {
        self.ranges.iter().map(Range::gateway).collect()
    }

    /// The node's pod CIDRs, the primary first.
    pub fn pod_cidrs(&self) -> &[IpNet] {
        &self.config.pod_cidrs
    }

    /// MTU of the pods' interfaces in bytes.
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// Connects a pod: gives it an address (the one it has, when it was attached before), makes its interface in the
    /// network namespace at `netns_path`, and opens its host ports. On failure nothing stays behind.
    ///
    /// # Errors
    /// [`NetworkError::Exhausted`] when no address is free, [`NetworkError::HostPortTaken`] when another pod has one
    /// of the host ports, and whatever the kernel refuses.
    pub async fn attach(
        &self,
        pod_key: &str,
        netns_path: &Path,
        options: AttachOptions,
    ) -> Result<PodAddresses, NetworkError> {
        let namespace = link::open_namespace(netns_path)?;
        let attachment = self.reserve(pod_key, &options).await?;
        let done = async {
            // A leftover of an attempt that died half way would only stand in the way.
            self.routes.delete_link(&attachment.interface).await?;
            let index = self
                .routes
                .create_pair(&attachment.interface, link::descriptor(&namespace), attachment.ips[0], self.mtu)
                .await?;
            self.configure_host_end(&attachment.interface)?;
            for ip in &attachment.ips {
                let source = self.ranges.iter().map(Range::gateway).find(|g| g.is_ipv4() == ip.is_ipv4());
                self.routes.route_to_pod(*ip, attachment.ips[0], index, source).await?;
            }
            let inside = RouteSocket::open_in(&namespace, &netns_path.display().to_string())?;
            inside.configure_pod(&attachment.ips).await?;
            self.inner.lock().await.table.open_ports(&attachment).await
        };
        if let Err(error) = done.await {
            if let Err(cleanup) = self.detach(pod_key).await {
                warn!(pod = pod_key, error = %cleanup, "cannot undo a failed attachment");
            }
            return Err(error);
        }
        debug!(pod = pod_key, ip = %attachment.ips[0], interface = attachment.interface, "pod attached");
        Ok(self.describe(&attachment))
    }

    /// Disconnects a pod and frees its address and host ports. Doing it again, or for a pod never attached, is no
    /// error; nor is it one when the network namespace is gone already.
    ///
    /// # Errors
    /// What the kernel refuses, or a failing write of the state; then the address stays taken.
    pub async fn detach(&self, pod_key: &str) -> Result<(), NetworkError> {
        let attachment = {
            let inner = self.inner.lock().await;
            match inner.state.attachments.get(pod_key) {
                Some(attachment) => attachment.clone(),
                None => return Ok(()),
            }
        };
        self.routes.delete_link(&attachment.interface).await?;
        let mut inner = self.inner.lock().await;
        inner.table.close_ports(&attachment).await?;
        inner.state.attachments.remove(pod_key);
        inner.attached.remove(pod_key);
        self.save(&inner.state)?;
        debug!(pod = pod_key, "pod detached");
        Ok(())
    }

    /// Every attached pod, by key.
    pub async fn addresses(&self) -> BTreeMap<String, PodAddresses> {
        let inner = self.inner.lock().await;
        inner.state.attachments.iter().map(|(key, a)| (key.clone(), self.describe(a))).collect()
    }

    /// How one pod is connected, if it is.
    pub async fn addresses_of(&self, pod_key: &str) -> Option<PodAddresses> {
        let inner = self.inner.lock().await;
        inner.state.attachments.get(pod_key).map(|a| self.describe(a))
    }

    /// Drops what an earlier run left and no pod in `live_keys` owns: attachments of pods that vanished while nobody
    /// looked, and interfaces nothing is recorded for. Pods attached since [`open`](Self::open) are never dropped, so
    /// that it may run while pods start. Answers the keys that were dropped.
    ///
    /// # Errors
    /// The first failure; calling again carries on.
    pub async fn reconcile(&self, live_keys: &HashSet<String>) -> Result<Vec<String>, NetworkError> {
        // An interface is recorded before it is made: whatever is in this list and has an owner is in the state below.
        let links = self.routes.links().await?;
        let (gone, known) = {
            let inner = self.inner.lock().await;
            let left = |key: &&String| !live_keys.contains(*key) && !inner.attached.contains(*key);
            let gone: Vec<String> = inner.state.attachments.keys().filter(left).cloned().collect();
            let known: BTreeSet<String> = inner.state.attachments.values().map(|a| a.interface.clone()).collect();
            (gone, known)
        };
        for key in &gone {
            self.detach(key).await?;
        }
        let prefix = interface_prefix(&self.config.instance);
        for (name, _) in links {
            if name.starts_with(&prefix) && !known.contains(&name) {
                warn!(interface = name, "removing an interface that belongs to no pod");
                self.routes.delete_link(&name).await?;
            }
        }
        Ok(gone)
    }

    /// Whether the host's end of a pod's interface is still there (it goes with the pod's network namespace).
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub async fn is_connected(&self, pod_key: &str) -> Result<bool, NetworkError> {
        let interface = {
            let inner = self.inner.lock().await;
            match inner.state.attachments.get(pod_key) {
                Some(attachment) => attachment.interface.clone(),
                None => return Ok(false),
            }
        };
        Ok(self.routes.index_of(&interface).await?.is_some())
    }

    /// Undoes everything: pods' interfaces, packet rules, routes, the node's own address, changed kernel settings and
    /// the state on disk. What it did not make is left alone. To attach pods again, open it anew.
    ///
    /// # Errors
    /// The first failure; calling again carries on.
    pub async fn teardown(&self) -> Result<(), NetworkError> {
        // Held throughout: nobody attaches a pod meanwhile.
        let mut inner = self.inner.lock().await;
        NodeNetwork::teardown_leftovers(&self.config.data_dir).await?;
        inner.state = State::new(&self.config.instance);
        inner.attached.clear();
        Ok(())
    }

    /// What [`teardown`](Self::teardown) does, for a data directory whose node does not run: everything needed is in
    /// the state on disk. Answers whether there was anything.
    ///
    /// # Errors
    /// The first failure; calling again carries on.
    pub async fn teardown_leftovers(data_dir: &Path) -> Result<bool, NetworkError> {
        let path = state_path(data_dir);
        let Some(state) = State::load(&path)? else { return Ok(false) };
        let routes = RouteSocket::open()?;
        delete_links(&routes, &state.instance).await?;
        let others = node_table::remove_tables(&state.instance).await?;
        for network in state.service_cidrs.iter().chain(&state.service_cidr) {
            if let Some(source) = state.gateways.iter().find(|g| g.is_ipv4() == network.addr().is_ipv4()) {
                routes.remove_fallback_route(*network, *source, fallback_table(&state.instance)).await?;
            }
        }
        for (network, via) in &state.node_routes {
            routes.remove_node_route(*network, *via).await?;
        }
        for gateway in &state.gateways {
            routes.remove_address(LOOPBACK, *gateway).await?;
        }
        for (key, old) in &state.changed_sysctls {
            // Another cluster on this machine may have come to rely on it.
            if !others {
                sysctl::set(key, old)?;
            }
        }
        fs::remove_file(&path).map_err(NetworkError::io(format!("remove {}", path.display())))?;
        Ok(true)
    }

    /// Removes what an instance made whose state on disk was lost: interfaces, packet rules, fallback routes and the
    /// node's addresses. Routes to other nodes do not tell whose they are and stay; so do settings of the kernel.
    ///
    /// # Errors
    /// The first failure.
    pub async fn teardown_instance(instance: &str) -> Result<(), NetworkError> {
        let routes = RouteSocket::open()?;
        delete_links(&routes, instance).await?;
        let table = fallback_table(instance);
        for (network, source) in routes.fallback_routes(table).await? {
            routes.remove_fallback_route(network, source, table).await?;
            routes.remove_address(LOOPBACK, source).await?;
        }
        node_table::remove_tables(instance).await?;
        Ok(())
    }

    /// The instances that have a pod network in this network namespace.
    ///
    /// # Errors
    /// Where the kernel does not list its tables.
    pub fn instances() -> Result<BTreeSet<String>, NetworkError> {
        node_table::instances()
    }

    /// Takes an address and the host ports for a pod, durably.
    async fn reserve(&self, pod_key: &str, options: &AttachOptions) -> Result<Attachment, NetworkError> {
        let mut inner = self.inner.lock().await;
        for port in &options.host_ports {
            for (holder, other) in &inner.state.attachments {
                if holder != pod_key && other.host_ports.iter().any(|p| p.conflicts_with(port)) {
                    return Err(NetworkError::HostPortTaken { what: port.to_string(), holder: holder.clone() });
                }
            }
        }
        let mut state = inner.state.clone();
        let attachment = match state.attachments.get(pod_key) {
            Some(old) => {
                let old = old.clone();
                inner.table.close_ports(&old).await?;
                Attachment { host_ports: options.host_ports.clone(), ..old }
            }
            None => {
                let used = state.used();
                let mut ips = Vec::with_capacity(self.ranges.len());
                for range in &self.ranges {
                    let key = range.cidr().to_string();
                    let ip = range.allocate(state.last.get(&key).copied(), &used)?;
                    state.last.insert(key, ip);
                    ips.push(ip);
                }
                let interface = free_name(&self.config.instance, pod_key, &state);
                Attachment { ips, interface, host_ports: options.host_ports.clone() }
            }
        };
        state.attachments.insert(pod_key.to_owned(), attachment.clone());
        self.save(&state)?;
        inner.state = state;
        inner.attached.insert(pod_key.to_owned());
        Ok(attachment)
    }

    fn configure_host_end(&self, interface: &str) -> Result<(), NetworkError> {
        // Lets connections of the node to 127.0.0.1:<node or host port> reach the pod and find their way back. The
        // node table drops everything else that comes from a pod for a loopback address.
        sysctl::set(&format!("net/ipv4/conf/{interface}/route_localnet"), "1")?;
        // Strict reverse-path filtering would do here too, but a distribution may have set it for all interfaces.
        sysctl::set_if_present(&format!("net/ipv4/conf/{interface}/rp_filter"), "0")?;
        sysctl::set_if_present(&format!("net/ipv6/conf/{interface}/accept_ra"), "0")
    }

    fn describe(&self, attachment: &Attachment) -> PodAddresses {
        PodAddresses {
            ips: attachment.ips.clone(),
            gateway: self.gateway_ip(),
            mtu: self.mtu,
            host_interface: attachment.interface.clone(),
        }
    }

    fn save(&self, state: &State) -> Result<(), NetworkError> {
        // A few kilobytes and one sync: handing it to another thread would cost more than it saves.
        state.save(&self.state_path)
    }
}

/// Where the state of a data directory is kept.
fn state_path(data_dir: &Path) -> PathBuf {
    data_dir.join("network").join("pods.json")
}

fn check(config: &NodeNetworkConfig) -> Result<(), NetworkError> {
    let bad = |reason: String| Err(NetworkError::Config(reason));
    if config.pod_cidrs.is_empty() {
        return bad("no pod CIDR given".into());
    }
    for (i, cidr) in config.pod_cidrs.iter().enumerate() {
        if config.pod_cidrs[..i].iter().any(|c| c.addr().is_ipv4() == cidr.addr().is_ipv4()) {
            return bad(format!("more than one pod CIDR of the family of {cidr}"));
        }
        if let Some(services) = config.service_cidrs.iter().find(|s| cidr.contains(*s) || s.contains(cidr)) {
            return bad(format!("pod CIDR {cidr} overlaps service CIDR {services}"));
        }
        if let Some(ip) = config.node_ips.iter().find(|ip| cidr.contains(*ip)) {
            return bad(format!("node address {ip} lies inside pod CIDR {cidr}"));
        }
    }
    if config.instance.is_empty() || !config.instance.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return bad(format!("instance id {:?} is not made of letters and digits", config.instance));
    }
    Ok(())
}

/// Two instances with overlapping ranges would lead each other's packets astray, so the second must not start.
async fn refuse_overlaps(config: &NodeNetworkConfig, routes: &RouteSocket) -> Result<(), NetworkError> {
    let tables = FIRST_FALLBACK_TABLE..=FIRST_FALLBACK_TABLE | u32::from(u16::MAX);
    let own = fallback_table(&config.instance);
    let (services, addresses) = routes.foreign(tables, own, &interface_prefix(&config.instance)).await?;
    let mut ranges: Vec<(&'static str, IpNet)> = config.pod_cidrs.iter().map(|c| ("pod CIDR", *c)).collect();
    ranges.extend(config.service_cidrs.iter().map(|c| ("service CIDR", *c)));
    for (what, range) in ranges {
        let network = services.iter().find(|s| s.contains(&range) || range.contains(*s)).map(ToString::to_string);
        let address = addresses.iter().find(|a| range.contains(*a)).map(ToString::to_string);
        if let Some(taken) = network.or(address) {
            return Err(NetworkError::Overlap { what, range, taken });
        }
    }
    Ok(())
}

/// The routing table of an instance's fallback routes.
fn fallback_table(instance: &str) -> u32 {
    FIRST_FALLBACK_TABLE | u32::from(hash(instance, 0) as u16)
}

fn gateway_for(ranges: &[Range], network: IpNet) -> Option<IpAddr> {
    ranges.iter().map(Range::gateway).find(|g| g.is_ipv4() == network.addr().is_ipv4())
}

/// What all interface names of an instance start with: at most 7 of the 15 bytes a name may have.
fn interface_prefix(instance: &str) -> String {
    let id = if instance.len() <= 4 { instance.to_owned() } else { format!("{:04x}", hash(instance, 0) as u16) };
    format!("gt{id}-")
}

async fn delete_links(routes: &RouteSocket, instance: &str) -> Result<(), NetworkError> {
    let prefix = interface_prefix(instance);
    for (name, _) in routes.links().await? {
        if name.starts_with(&prefix) {
            routes.delete_link(&name).await?;
        }
    }
    Ok(())
}

fn free_name(instance: &str, pod_key: &str, state: &State) -> String {
    let taken: HashSet<&str> = state.attachments.values().map(|a| a.interface.as_str()).collect();
    let prefix = interface_prefix(instance);
    (0u64..)
        .map(|salt| format!("{prefix}{:08x}", hash(pod_key, salt) as u32))
        .find(|name| !taken.contains(name.as_str()))
        .unwrap_or_default()
}

/// FNV-1a: stable over builds, which names of kernel objects must be.
fn hash(text: &str, salt: u64) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325 ^ salt, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests;
