//! The server at work: caches in, answers out.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use gantry_client::Client;
use gantry_reconcile::{Informers, store::key};
use k8s_openapi::api::{
    core::v1::{Namespace, Service},
    discovery::v1::EndpointSlice,
};
use parking_lot::RwLock;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

use crate::{
    forward::Forwarder,
    serve::{Listener, Server},
    zone::Zone,
};

/// The label by which an EndpointSlice names its Service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// The name of the index of EndpointSlices by Service; the service proxy's is the same.
const BY_SERVICE: &str = "service";

/// How the DNS server is set up.
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// The addresses it serves on.
    pub bind: Vec<SocketAddr>,
    /// The cluster domain, such as `cluster.local`.
    pub cluster_domain: String,
    /// The host's `resolv.conf`, whose resolvers answer everything else; `None` forwards nothing.
    pub upstream: Option<PathBuf>,
}

/// Why the DNS server cannot work.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// An address cannot be served on.
    #[error("serve DNS on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The cluster domain is no domain name.
    #[error("cluster domain {domain:?}: {source}")]
    Domain {
        /// What was given.
        domain: String,
        /// Why it is not one.
        source: hickory_proto::ProtoError,
    },
}

/// Runs the server with caches of its own until `shutdown`.
///
/// # Errors
/// When an address cannot be served on, or the domain is no domain.
pub async fn run(client: Client, config: DnsConfig, shutdown: CancellationToken) -> Result<(), DnsError> {
    let informers = Informers::new(client.named("coredns"));
    let start = informers.clone();
    let serving = run_with(&informers, config, shutdown.clone());
    start.start(&shutdown);
    serving.await
}

/// Like [`run`], on caches shared with others, which somebody else starts.
///
/// # Errors
/// The same.
pub async fn run_with(informers: &Informers, config: DnsConfig, shutdown: CancellationToken) -> Result<(), DnsError> {
    let zone = Zone::new(&config.cluster_domain)
        .map_err(|source| DnsError::Domain { domain: config.cluster_domain.clone(), source })?;
    let zone = Arc::new(RwLock::new(zone));
    let mut listeners = Vec::with_capacity(config.bind.len());
    for address in &config.bind {
        let listener = Listener::bind(*address).await.map_err(|source| DnsError::Bind { address: *address, source })?;
        listeners.push(listener);
    }
    follow(informers, &zone);
    let server = Arc::new(Server::new(zone, Forwarder::new(config.upstream, config.bind.clone())));
    let tasks = TaskTracker::new();
    for listener in listeners {
        tasks.spawn(server.clone().serve(listener, shutdown.clone()));
    }
    tasks.close();
    if informers.wait_synced(&shutdown).await {
        server.set_ready();
        info!(addresses = ?config.bind, domain = config.cluster_domain, "cluster DNS ready");
    }
    tasks.wait().await;
    Ok(())
}

/// Keeps a zone up to date with the caches.
fn follow(informers: &Informers, zone: &Arc<RwLock<Zone>>) {
    let services = informers.get::<Service>();
    let slices = informers.get::<EndpointSlice>();
    let by_service = slices.index(BY_SERVICE, |slice| service_of(slice).into_iter().collect());

    // Both caches call this, each from its own task. What is written is read under the same lock, so that whoever
    // comes last has seen both.
    let update = {
        let (zone, services) = (zone.clone(), services.clone());
        move |service: &str| {
            let mut zone = zone.write();
            let slices = by_service.get(service);
            let slices: Vec<&EndpointSlice> = slices.iter().map(|s| &**s).collect();
            zone.set_service(service, services.store().by_key(service).as_deref(), &slices);
        }
    };
    let update = Arc::new(update);
    let on_service = update.clone();
    services.on_change(move |change| {
        let meta = &change.object().metadata;
        on_service(&key(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default()));
    });
    slices.on_change(move |change| {
        // A slice may change hands, by its label.
        for slice in [Some(change.object()), change.old()].into_iter().flatten() {
            if let Some(service) = service_of(slice) {
                update(&service);
            }
        }
    });
    let zone = zone.clone();
    let namespaces = informers.get::<Namespace>();
    namespaces.clone().on_change(move |change| {
        let name = change.object().metadata.name.as_deref().unwrap_or_default();
        let mut zone = zone.write();
        zone.set_namespace(name, namespaces.get("", name).is_some());
    });
}

fn service_of(slice: &EndpointSlice) -> Option<String> {
    let name = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    Some(key(slice.metadata.namespace.as_deref().unwrap_or_default(), name))
}

#[cfg(test)]
mod tests;
