//! The proxy at work: caches in, rules out.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use gantry_client::Client;
use gantry_network::{
    IpNet,
    conntrack::Conntrack,
    nft::{Family, Nft, NftError},
};
use gantry_reconcile::{Index, Informer, Informers};
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    apply::{Applier, Changes},
    compile::{NodeView, SERVICE_NAME_LABEL, compile, health_check},
    health::HealthServers,
    stale::StaleFlows,
};

/// The label that names a node's zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// The name of the index of EndpointSlices by Service.
const BY_SERVICE: &str = "service";
/// How long to wait after a failure at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// How the proxy is set up.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// The node's name.
    pub node_name: String,
    /// The same short id that the node's network has.
    pub instance: String,
    /// The node's own addresses.
    pub node_ips: Vec<IpAddr>,
    /// The pod CIDRs of the whole cluster.
    pub cluster_cidrs: Vec<IpNet>,
}

/// Why the proxy cannot work.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The packet rules.
    #[error("service proxy: {0}")]
    Nft(#[from] NftError),
}

/// Runs the proxy with caches of its own until `shutdown`; the rules stay, so that services go on working while the
/// node agent restarts.
///
/// # Errors
/// When the kernel's packet rules are out of reach. Failures later on are logged and tried again.
pub async fn run(client: Client, config: ProxyConfig, shutdown: CancellationToken) -> Result<(), ProxyError> {
    let informers = Informers::new(client.named("kube-proxy"));
    let proxy = Proxy::new(&informers, config)?;
    informers.start(&shutdown);
    proxy.run(&informers, shutdown).await;
    Ok(())
}

/// Like [`run`], on caches shared with others, which somebody else starts.
///
/// # Errors
/// The same.
pub async fn run_with(
    informers: &Informers,
    config: ProxyConfig,
    shutdown: CancellationToken,
) -> Result<(), ProxyError> {
    Proxy::new(informers, config)?.run(informers, shutdown).await;
    Ok(())
}

/// Removes the rules of an instance, as `gantry down` does.
///
/// # Errors
/// When the kernel refuses.
pub async fn remove(instance: &str) -> Result<(), ProxyError> {
    let nft = Nft::open()?;
    for family in [Family::Ipv4, Family::Ipv6] {
        let mut applier = Applier::new(nft.clone(), family, instance, Vec::new());
        applier.remove().await?;
    }
    Ok(())
}

/// Services whose rules may be out of date.
#[derive(Default)]
struct Dirty {
    services: Mutex<BTreeSet<Arc<str>>>,
    everything: Mutex<bool>,
    wake: Notify,
}

impl Dirty {
    fn mark(&self, service: String) {
        self.services.lock().insert(service.into());
        self.wake.notify_one();
    }

    fn mark_everything(&self) {
        *self.everything.lock() = true;
        self.wake.notify_one();
    }
}

struct Proxy {
    config: ProxyConfig,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
    slices_of: Index<EndpointSlice>,
    node: Informer<Node>,
    dirty: Arc<Dirty>,
    families: Vec<FamilyRules>,
    conntrack: Conntrack,
    health: HealthServers,
}

struct FamilyRules {
    applier: Applier,
    stale: StaleFlows,
}

impl Proxy {
    fn new(informers: &Informers, config: ProxyConfig) -> Result<Proxy, ProxyError> {
        let nft = Nft::open()?;
        let uses_v6 = config.cluster_cidrs.iter().any(|c| c.addr().is_ipv6());
        let families = [Some(Family::Ipv4), uses_v6.then_some(Family::Ipv6)]
            .into_iter()
            .flatten()
            .map(|family| FamilyRules {
                applier: Applier::new(nft.clone(), family, &config.instance, config.cluster_cidrs.clone()),
                stale: StaleFlows::default(),
            })
            .collect();
        let services = informers.get::<Service>();
        let slices = informers.get::<EndpointSlice>();
        let node = informers.get_filtered::<Node>(Some(&format!("metadata.name={}", config.node_name)), None);
        let slices_of = slices.index(BY_SERVICE, |slice| service_of(slice).into_iter().collect());
        let dirty = Arc::new(Dirty::default());
        let mark = dirty.clone();
        services.on_change(move |change| {
            let meta = &change.object().metadata;
            mark.mark(key(meta.namespace.as_deref(), meta.name.as_deref()));
        });
        let mark = dirty.clone();
        slices.on_change(move |change| {
            // A slice may change hands, by its label.
            for slice in [Some(change.object()), change.old()].into_iter().flatten() {
                if let Some(service) = service_of(slice) {
                    mark.mark(service);
                }
            }
        });
        let mark = dirty.clone();
        node.on_change(move |change| {
            if change.old().and_then(|old| zone_of(old)) != zone_of(change.object()) {
                mark.mark_everything();
            }
        });
        Ok(Proxy {
            config,
            services,
            slices,
            slices_of,
            node,
            dirty,
            families,
            conntrack: Conntrack::open()?,
            health: HealthServers::default(),
        })
    }

    async fn run(mut self, informers: &Informers, shutdown: CancellationToken) {
        // Rules from caches that are still filling would take services away that work.
        if !informers.wait_synced(&shutdown).await {
            return;
        }
        info!(services = self.services.store().len(), slices = self.slices.store().len(), "service proxy starts");
        self.dirty.mark_everything();
        let mut delay = RETRY.0;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.dirty.wake.notified() => {}
            }
            match self.sync().await {
                Ok(()) => delay = RETRY.0,
                Err(error) => {
                    warn!(%error, "cannot bring service rules up to date");
                    tokio::select! {
                        () = shutdown.cancelled() => return,
                        () = tokio::time::sleep(delay) => {}
                    }
                    delay = (delay * 2).min(RETRY.1);
                    // What was to be applied is in the model; this makes it go to the kernel.
                    self.dirty.wake.notify_one();
                }
            }
        }
    }

    async fn sync(&mut self) -> Result<(), ProxyError> {
        let mut services = std::mem::take(&mut *self.dirty.services.lock());
        if std::mem::take(&mut *self.dirty.everything.lock()) {
            services.extend(self.services.store().keys().into_iter().map(Arc::from));
        }
        let node = NodeView {
            name: self.config.node_name.clone(),
            zone: self.node.get("", &self.config.node_name).and_then(|node| zone_of(&node)),
        };
        let mut changes: Vec<Changes> = vec![Changes::new(); self.families.len()];
        let mut checks = BTreeMap::new();
        for key in services {
            let service = self.services.store().by_key(&key);
            let slices = self.slices_of.get(&key);
            let slices: Vec<&EndpointSlice> = slices.iter().map(|s| &**s).collect();
            for (family, changes) in self.families.iter_mut().zip(&mut changes) {
                let rules = service
                    .as_ref()
                    .map(|service| compile(service, &slices, family.applier.family(), &node))
                    .filter(|rules| !rules.ports.is_empty());
                family.stale.note(&key, rules.as_ref());
                changes.insert(key.clone(), rules);
            }
            checks.insert(key, service.as_ref().and_then(|service| health_check(service, &slices, &node)));
        }
        // Every family gets its changes before any failure ends this round: they are not told twice.
        let mut result = Ok(());
        for (family, changes) in self.families.iter_mut().zip(changes) {
            let count = changes.len();
            let applied = family.applier.apply(changes).await;
            if applied.is_ok() {
                debug!(services = count, entries = family.applier.entries(), "service rules applied");
                let flushed = family.stale.flush(&self.conntrack, family.applier.family(), &self.config.node_ips).await;
                result = result.and(flushed.map(|_| ()));
            }
            result = result.and(applied);
        }
        self.health.update(checks).await;
        Ok(result?)
    }
}

fn key(namespace: Option<&str>, name: Option<&str>) -> String {
    gantry_reconcile::store::key(namespace.unwrap_or_default(), name.unwrap_or_default())
}

/// The Service an EndpointSlice belongs to.
fn service_of(slice: &EndpointSlice) -> Option<String> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    Some(key(slice.metadata.namespace.as_deref(), Some(name)))
}

fn zone_of(node: &Node) -> Option<String> {
    node.metadata.labels.as_ref()?.get(ZONE_LABEL).cloned()
}

#[cfg(test)]
mod tests;
