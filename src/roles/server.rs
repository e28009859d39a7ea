//! The server role: store, API server, controllers and scheduler.

use super::join::CLUSTER_INFO;
use crate::bootstrap::{DataDir, Pki, data_dir::seed, pki::Identity};
use crate::cli::ServerCommand;
use crate::config::{ClusterOptions, ServerOptions};
use crate::debugging::ThisProcess;
use crate::in_process;
use crate::ranges::family;
use crate::wire::{self, Components};
use anyhow::{Context, Result};
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_client::{Api, Client, Credentials, HttpsConfig, Kubeconfig, Patch, PatchParams};
use gantry_server::Server;
use gantry_server::authn::UserInfo;
use gantry_server::config::ServerConfig;
use gantry_store::{EmbeddedOptions, EmbeddedStore, Store};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// File under `pki/` that holds the token for joining nodes.
const JOIN_TOKEN: &str = "join-token";
/// Upstream's limit on request bodies.
const REQUEST_BODY_BYTES_MAX: usize = 3 << 20;

/// A running server role.
pub struct Running {
    /// The API server.
    pub server: Arc<Server>,
    /// The cluster's keys.
    pub pki: Pki,
    /// Where clients on this machine reach it, `https://host:port`.
    pub url: String,
    tasks: Vec<JoinHandle<()>>,
}

impl Running {
    /// Waits until everything has ended after the cancellation.
    pub async fn join(self) {
        for task in self.tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a component of the server panicked");
            }
        }
    }

    /// A client of the cluster's administrator, in process.
    #[must_use]
    pub fn admin(&self, name: &str) -> Client {
        in_process::client(&self.server, UserInfo::new("kubernetes-admin", &["system:masters"]), name)
    }
}

/// `gantry server`: runs until Ctrl-C or SIGTERM.
///
/// # Errors
/// Names what is in the way: root, a taken port, the data directory, a file.
pub async fn run(command: ServerCommand) -> Result<()> {
    super::require_root("gantry server")?;
    super::raise_file_limit();
    let data = DataDir::open(&command.data.data_dir)?;
    let cancel = CancellationToken::new();
    let fallback = IpAddr::from([127, 0, 0, 1]);
    command.cluster.check()?;
    let families = command.cluster.service_cidr.families();
    let mut node_ips: Vec<IpAddr> = families.filter_map(crate::config::default_route_address).collect();
    if node_ips.is_empty() {
        node_ips.push(fallback);
    }
    let running = start(&command.server, &command.cluster, &data, None, &node_ips, &cancel).await?;
    println!("  API server   {}", running.url);
    println!("  kubeconfig   {}", command.server.kubeconfig.display());
    println!(
        "  join a node  gantry agent --server {} --token-file {} --discovery-token-ca-cert-hash {} --node-cidr CIDR",
        running.url,
        running.pki.path(JOIN_TOKEN).display(),
        running.pki.ca_hash()?,
    );
    let outcome = tokio::select! {
        () = super::up::until_signalled() => Ok(()),
        () = cancel.cancelled() => Err(anyhow::anyhow!("the API server ended; see the log above")),
    };
    println!("stopping");
    cancel.cancel();
    running.server.stop();
    running.join().await;
    outcome
}

/// Opens the store and starts everything. `gateway` is the address pods reach this machine by, where this machine is a
/// node too.
///
/// # Errors
/// Names the file, address or object that is in the way.
pub async fn start(
    options: &ServerOptions,
    cluster: &ClusterOptions,
    data: &DataDir,
    gateway: Option<IpAddr>,
    node_ips: &[IpAddr],
    cancel: &CancellationToken,
) -> Result<Running> {
    let scheduling = options.scheduling.configuration()?;
    if let Some(ip) = options.advertise_address {
        let services = cluster.service_cidr.primary;
        let matches = family(ip) == family(services.addr());
        anyhow::ensure!(matches, "service IP family \"{services}\" must match public address family \"{ip}\"");
    }
    let controllers = &options.controllers;
    let node_ranges = controllers.node_ranges(cluster)?;
    let clock = Clock::starting_at(Timestamp::now());
    let entropy = Entropy::from_seed_bytes(seed()?);
    let audit = options.audit.open(clock, &entropy)?;
    let encryption = options.encryption.open(data, clock, &entropy)?;
    let pki = Pki::open(data.path())?;
    let mut addresses = vec![options.bind_address];
    if let Some(gateway) = gateway.filter(|g| !options.bind_address.is_unspecified() && *g != options.bind_address) {
        addresses.push(gateway);
    }
    let mut listeners = Vec::new();
    for address in &addresses {
        listeners.push(listen(SocketAddr::new(*address, options.port)).await?);
    }
    let store = EmbeddedStore::open(&data.path().join("store"), EmbeddedOptions::default())
        .with_context(|| format!("cannot open the store in {}", data.path().display()))?;
    let unspecified = options.bind_address.is_unspecified();
    let local = if unspecified { options.advertise_address.unwrap_or(node_ips[0]) } else { options.bind_address };
    let url = format!("https://{}", SocketAddr::new(local, options.port));
    let advertise = (options.advertise_address.or(gateway).unwrap_or(local), options.port);
    let mut config = server_config(options, cluster, &pki, &listeners, advertise, node_ips)?;
    config.audit = audit.audit;
    config.encryption = Some(encryption);
    let store: Arc<dyn Store> = Arc::new(store);
    let server = Server::new(config, store, clock, entropy.clone()).await.context("cannot start the API server")?;
    server.flags.get_or_init(crate::debugging::flags);
    if options.profiling {
        server.debugging.get_or_init(|| Arc::new(ThisProcess));
    }

    let admin = pki.client("admin", "kubernetes-admin", Some("system:masters"))?;
    write_kubeconfig(options, &url, &pki, &admin)?;
    publish_ca(&server, &url, &pki).await?;

    let mut tasks = Vec::new();
    tasks.extend(audit.deliveries.into_iter().map(|delivery| tokio::spawn(delivery.run(cancel.clone()))));
    let (serving, stop) = (server.clone(), cancel.clone());
    tasks.push(tokio::spawn(async move {
        if let Err(error) = serving.serve(listeners, stop.clone()).await {
            tracing::error!(%error, "the API server ended");
            stop.cancel();
        }
    }));
    tasks.extend(crate::reload::start(&server, &options.access, &options.encryption, cancel)?);
    let components = Components {
        ca_cert_pem: pki.ca().cert_pem.clone(),
        ca_key_pem: pki.ca().key_pem.clone(),
        clock,
        entropy,
        signing_duration: Some(controllers.cluster_signing_duration),
        node_grace_period: Some(controllers.node_monitor_grace_period),
        autoscaling_period: Some(controllers.horizontal_pod_autoscaler_sync_period),
        legacy_token_period: Some(controllers.legacy_service_account_token_clean_up_period),
        node_ranges,
        cluster_dns: cluster.dns_service_ips(),
        scheduling,
    };
    tasks.push(tokio::spawn(wire::run(server.clone(), in_process::connect(&server), components, cancel.clone())));
    Ok(Running { server, pki, url, tasks })
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => {
            anyhow::anyhow!("cannot serve the API on {address}: the port is taken; choose another with --port")
        }
        _ => anyhow::anyhow!("cannot serve the API on {address}: {e}"),
    })
}

fn server_config(
    options: &ServerOptions,
    cluster: &ClusterOptions,
    pki: &Pki,
    listeners: &[TcpListener],
    advertise: (IpAddr, u16),
    node_ips: &[IpAddr],
) -> Result<ServerConfig> {
    let mut names: Vec<String> =
        ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"].map(str::to_owned).to_vec();
    names.push(format!("kubernetes.default.svc.{}", cluster.cluster_domain));
    if let Ok(host) = nix::unistd::gethostname() {
        names.push(host.to_string_lossy().into_owned());
    }
    let mut addresses = vec![IpAddr::from([127, 0, 0, 1]), cluster.api_service_ip(), advertise.0];
    addresses.extend(node_ips);
    for name in &options.tls_san {
        match name.parse() {
            Ok(ip) => addresses.push(ip),
            Err(_) => names.push(name.clone()),
        }
    }
    if !options.bind_address.is_unspecified() {
        addresses.push(options.bind_address);
    }
    addresses.sort();
    addresses.dedup();
    let serving = pki.serving("apiserver", "kube-apiserver", None, &names, &addresses)?;
    let kubelet = pki.client("apiserver-kubelet-client", "kube-apiserver-kubelet-client", Some("system:masters"))?;
    let issuer = format!("https://kubernetes.default.svc.{}", cluster.cluster_domain);
    let mut static_tokens = vec![(
        pki.token(JOIN_TOKEN)?,
        "system:bootstrap:join".into(),
        String::new(),
        vec!["system:bootstrappers".into(), "system:bootstrappers:kubeadm:default-node-token".into()],
    )];
    static_tokens.extend(options.access.static_tokens()?);
    Ok(ServerConfig {
        listen: listeners.iter().filter_map(|l| l.local_addr().ok()).collect(),
        serving_cert_pem: serving.cert_pem,
        serving_key_pem: serving.key_pem,
        client_ca_pem: pki.ca().cert_pem.clone(),
        cluster_ca_pem: pki.ca().cert_pem.clone(),
        kubelet_client_cert_pem: kubelet.cert_pem,
        kubelet_client_key_pem: kubelet.key_pem,
        service_account_key_pem: pki.signing_key("service-account")?,
        api_audiences: vec![issuer.clone()],
        service_account_issuer: issuer.clone(),
        static_tokens,
        service_cidr: cluster.service_cidr.primary,
        secondary_service_cidr: cluster.service_cidr.secondary,
        node_port_range: options.service_node_port_range,
        advertise: Some(advertise),
        request_body_bytes_max: REQUEST_BODY_BYTES_MAX,
        requests_at_once: options.requests_at_once()?,
        audit: None,
        encryption: None,
        versions: options.versions()?,
        admission: options.admission.config()?,
        component_roles: wire::component_roles(),
        access: options.access.config(pki, &issuer)?,
    })
}

/// Tells machines that join which CA is the cluster's, as kubeadm does: they know the right one by its hash.
async fn publish_ca(server: &Arc<Server>, url: &str, pki: &Pki) -> Result<()> {
    let config = HttpsConfig {
        server: url.to_owned(),
        ca_pem: pki.ca().cert_pem.clone().into_bytes(),
        ..HttpsConfig::default()
    };
    let kubeconfig = Kubeconfig::single("kubernetes", "", &config).to_yaml()?;
    let (namespace, name) = CLUSTER_INFO;
    let info = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "namespace": namespace },
        "data": { "kubeconfig": kubeconfig },
    });
    let admin = in_process::client(server, UserInfo::new("kubernetes-admin", &["system:masters"]), "gantry-server");
    let params = PatchParams { force: true, ..PatchParams::default() };
    Api::<ConfigMap>::namespaced(admin, namespace)
        .patch(name, &params, &Patch::Apply(info))
        .await
        .with_context(|| format!("cannot write ConfigMap {namespace}/{name}"))?;
    Ok(())
}

fn write_kubeconfig(options: &ServerOptions, url: &str, pki: &Pki, admin: &Identity) -> Result<()> {
    let config = HttpsConfig {
        server: url.to_owned(),
        ca_pem: pki.ca().cert_pem.clone().into_bytes(),
        credentials: Credentials::Certificate {
            certificate_pem: admin.cert_pem.clone().into_bytes(),
            key_pem: admin.key_pem.clone().into_bytes(),
        },
        ..Default::default()
    };
    Kubeconfig::single("gantry", "kubernetes-admin", &config)
        .write(&options.kubeconfig)
        .with_context(|| format!("cannot write the kubeconfig {}", options.kubeconfig.display()))
}
