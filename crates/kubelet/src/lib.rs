//! The node agent: brings the pods bound to this node to life and reports on them. It meets the cluster only through the
//! API client, and the machine only through the container runtime, the image store and the node's network.

mod agent;
pub mod certificates;
mod config;
mod devices;
mod error;
mod eviction;
mod logs;
mod node;
mod pod;
mod pod_network;
mod probe;
mod references;
mod server;
mod static_pods;
#[cfg(test)]
mod testing;
mod volumes;

pub use config::{KubeletConfig, Serving};
pub use error::Error;
pub use eviction::{DEFAULT_HARD, EvictionConfig, Signal, Threshold, duration, thresholds};
pub use logs::{Subscription as DirectoryChanges, subscribe as directory_changes};
pub use pod_network::GuardedNetwork;

use agent::{Agent, PARALLEL_PULLS};
use devices::Devices;
use gantry_api::ObjectMeta;
use gantry_api::clock::Clock;
use gantry_client::Client;
use gantry_container::image_service::ImageService;
use gantry_container::runtime::Runtime;
use gantry_reconcile::backoff::Backoff;
use gantry_reconcile::{EventRecorder, Informers};
use k8s_openapi::api::core::v1::{Node, NodeStatus, PersistentVolume, Pod, Service};
use node::machine::Machine;
use node::object::Pressure;
use pod::manager::Manager;
use references::References;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use volumes::claim::Claims;
use volumes::local_path;
use volumes::pod_certificate::PodCertificates;
use volumes::token::Tokens;
use volumes::trust_bundle::TrustBundles;

/// How often the node's status is looked at.
const STATUS_PERIOD: Duration = Duration::from_secs(10);
/// A status that did not change is written this often all the same.
const STATUS_HEARTBEAT: Duration = Duration::from_secs(300);
/// How long registration waits between tries at first and at most, as upstream's.
const REGISTER_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(7));

/// Runs the node agent until `shutdown`. Containers keep running; a later run takes them over.
///
/// # Errors
/// Where the machine cannot be inspected, directories cannot be made or the server cannot listen. An API server that
/// cannot be reached is waited for.
pub async fn run(
    client: Client,
    runtime: Arc<dyn Runtime>,
    images: Arc<dyn ImageService>,
    network: GuardedNetwork,
    cfg: KubeletConfig,
    clock: Clock,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    for directory in [cfg.pods_directory(), cfg.log_dir.clone(), cfg.seccomp_dir.clone()] {
        std::fs::create_dir_all(&directory).map_err(|source| Error::Io { what: "create", path: directory, source })?;
    }
    let machine = Machine::inspect(&cfg).map_err(Error::Machine)?;
    let directory = cfg.data_dir.join("kubelet");
    let read = Devices::open(client.clone(), &cfg.node_name, &directory);
    let devices =
        read.map_err(|source| Error::Io { what: "read what is prepared of devices in", path: directory, source })?;
    let directory = cfg.data_dir.join("kubelet/plugins_registry");
    let plugins = devices.registration(directory.clone());
    let plugins = plugins.map_err(|source| Error::Io { what: "create", path: directory, source })?;
    let informers = Informers::new(client.clone());
    let pods = informers.get_filtered::<Pod>(Some(&format!("spec.nodeName={}", cfg.node_name)), None);
    let local = informers.get_filtered::<PersistentVolume>(None, Some(&local_path::selector(&cfg.node_name)));
    let recorder = EventRecorder::new(client.clone(), clock, "kubelet", &cfg.node_name);
    let agent = Arc::new(Agent {
        client: client.clone(),
        recorder: recorder.clone(),
        clock,
        services: informers.get::<Service>(),
        node: informers.get_filtered::<Node>(Some(&format!("metadata.name={}", cfg.node_name)), None),
        config_maps: References::new(client.clone()),
        secrets: References::new(client.clone()),
        tokens: Tokens::new(client.clone()),
        trust_bundles: TrustBundles::new(client.clone(), shutdown.clone()),
        pod_certificates: PodCertificates::new(client.clone(), recorder.clone(), clock, &cfg.node_name),
        claims: Claims::new(client.clone(), &cfg),
        devices,
        pulls: Semaphore::new(PARALLEL_PULLS),
        admissions: Default::default(),
        pressure: Default::default(),
        runtime: runtime.clone(),
        images,
        network: Arc::new(network),
        machine,
        cfg,
    });
    // Subscribed before the list, so that no exit is missed.
    let events = runtime.events();
    let sandboxes = runtime.list_sandboxes().await?;
    let manager = Manager::new(agent.clone(), sandboxes);

    let tasks = tokio_util::task::TaskTracker::new();
    let background = shutdown.child_token();
    let spawn = |task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        let stop = background.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = stop.cancelled() => {}
            }
        });
    };
    let following = manager.clone();
    spawn(Box::pin(async move { following.follow(events).await }));
    // Before anything is asked of the API server: what it needs may be among them.
    if let Some(path) = agent.cfg.static_pod_path.clone() {
        let pods = static_pods::StaticPods::begin(agent.clone(), manager.clone(), pods.clone(), path)?;
        spawn(Box::pin(pods.run()));
    }
    let registered = tokio::select! {
        node = register(&agent) => node,
        () = shutdown.cancelled() => {
            manager.stop();
            return Ok(());
        }
    };
    let nodes = informers.get::<Node>();
    informers.start(&shutdown);
    // Before drivers register: what they publish then is theirs to keep.
    let forgetting = agent.clone();
    spawn(Box::pin(async move {
        forgetting.devices.forget_slices().await;
    }));
    spawn(Box::pin(plugins.run()));
    let listening = agent.devices.classic.listen(background.clone());
    let path = agent.cfg.data_dir.join("kubelet/device-plugins");
    listening.map_err(|source| Error::Io { what: "listen in", path, source })?;
    let server = Arc::new(server::Server {
        agent: agent.clone(),
        manager: manager.clone(),
        pods: pods.clone(),
        samples: Default::default(),
        auth: Default::default(),
        shutdown: shutdown.clone(),
    });
    let serving = tokio::spawn(server::run(server));
    spawn(Box::pin(node::lease::run(client.clone(), registered.clone(), clock)));
    spawn(Box::pin(node::csi::run(client.clone(), registered.clone())));
    spawn(Box::pin(keep_status(agent.clone(), registered)));
    spawn(Box::pin(node::housekeeping::run(agent.clone())));
    spawn(Box::pin(node::routes::run(agent.clone(), nodes)));
    spawn(Box::pin(local_path::run(agent.clone(), local)));
    // Pods may name services and be matched against the node: both must be known first.
    let ending = agent.clone();
    let known = gantry_reconcile::wait_synced(&[&agent.services, &agent.node], &shutdown).await;
    if known {
        let receiving = manager.clone();
        pods.on_change(move |change| receiving.change(change));
        spawn(Box::pin(node::qos::run(agent.clone(), pods.clone())));
        let cleaning = manager.clone();
        let stop = shutdown.clone();
        spawn(Box::pin(async move {
            if gantry_reconcile::wait_synced(&[&pods], &stop).await {
                cleaning.remove_orphans().await;
                let (agents, managers, telling) = (agent.clone(), cleaning.clone(), cleaning.clone());
                let reconciling = agents.devices.reconcile(move || managers.uids());
                let waking = agents.devices.health_changes(|pod| telling.wake(pod));
                tokio::join!(reconciling, waking, eviction::run(agent, cleaning));
            }
        }));
    }
    // A server that cannot serve ends the agent: logs, exec and the like would silently be missing.
    let result = tokio::select! {
        ended = serving => ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())),
        () = shutdown.cancelled() => Ok(()),
    };
    background.cancel();
    manager.stop();
    ending.devices.stop();
    tasks.close();
    tasks.wait().await;
    result
}

async fn register(agent: &Agent) -> Node {
    let mut backoff = Backoff::new(REGISTER_RETRY.0, REGISTER_RETRY.1);
    let mut told = String::new();
    loop {
        let (cfg, clock) = (&agent.cfg, &agent.clock);
        let status =
            node::object::status(cfg, &agent.machine, agent.images.as_ref(), None, Pressure::default(), clock).await;
        let attempt = async {
            let node = node::object::register(&agent.client, cfg, status.clone()).await?;
            let reported = node::object::report(&agent.client, &node, &status, true).await?;
            Ok::<_, gantry_client::Error>(reported.unwrap_or(node))
        };
        match attempt.await {
            Ok(node) => return node,
            Err(error) => {
                // The same again and again is told once.
                let why = error.to_string();
                if why != told {
                    tracing::warn!(node = cfg.node_name, %error, "cannot register the node");
                    // A node that the server refuses exists already, with what may not change (its pod ranges).
                    if error.is("Invalid") {
                        let metadata = ObjectMeta { name: Some(cfg.node_name.clone()), ..ObjectMeta::default() };
                        let about = Node { metadata, ..Node::default() };
                        agent.recorder.warning(&about, "FailedToRegister", &why);
                    }
                    told = why;
                }
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

async fn keep_status(agent: Arc<Agent>, registered: Node) {
    agent.recorder.normal(&registered, "Starting", "Starting kubelet.");
    tell_conditions(&agent, &registered, None);
    let mut pressure = agent.pressure.subscribe();
    let mut devices = agent.devices.classic.changes();
    let mut written = tokio::time::Instant::now();
    let mut current = registered;
    loop {
        tokio::select! {
            () = tokio::time::sleep(STATUS_PERIOD) => {}
            // The sender lives in a task of its own, which ends only at shutdown.
            Ok(()) = pressure.changed() => {}
            Ok(()) = devices.changed() => {}
        }
        let pressed = *pressure.borrow_and_update();
        if let Some(node) = agent.node.get("", &agent.cfg.node_name) {
            current = (*node).clone();
        }
        let (cfg, clock) = (&agent.cfg, &agent.clock);
        let images = agent.images.as_ref();
        let mut new = node::object::status(cfg, &agent.machine, images, current.status.as_ref(), pressed, clock).await;
        agent.devices.classic.show(&mut new);
        let heartbeat = written.elapsed() >= STATUS_HEARTBEAT;
        match node::object::report(&agent.client, &current, &new, heartbeat).await {
            Ok(Some(node)) => {
                tell_conditions(&agent, &node, current.status.as_ref());
                current = node;
                written = tokio::time::Instant::now();
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "cannot write the node's status"),
        }
    }
}

/// Says of the node which conditions have changed since `before`.
fn tell_conditions(agent: &Agent, node: &Node, before: Option<&NodeStatus>) {
    let known = before.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    for c in node.status.iter().flat_map(|s| s.conditions.iter().flatten()) {
        if known.iter().any(|k| k.type_ == c.type_ && k.status == c.status) {
            continue;
        }
        let reason = match (c.type_.as_str(), c.status.as_str()) {
            ("MemoryPressure", "True") => "NodeHasInsufficientMemory",
            ("MemoryPressure", _) => "NodeHasSufficientMemory",
            ("DiskPressure", "True") => "NodeHasDiskPressure",
            ("DiskPressure", _) => "NodeHasNoDiskPressure",
            ("PIDPressure", "True") => "NodeHasInsufficientPID",
            ("PIDPressure", _) => "NodeHasSufficientPID",
            ("Ready", "True") => "NodeReady",
            ("Ready", _) => "NodeNotReady",
            _ => continue,
        };
        agent.recorder.normal(node, reason, &format!("Node {} status is now: {reason}", agent.cfg.node_name));
    }
}
