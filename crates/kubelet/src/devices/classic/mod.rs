//! Device plugins as they were before dynamic resource allocation (`deviceplugin/v1beta1`): a plugin registers a
//! resource at `device-plugins/kubelet.sock` and lists its devices, which the node counts as an extended resource.
//! The agent chooses the devices of a pod when it admits it, and the plugin says what its containers are given.

mod messages;
mod state;

use super::api::Empty;
use crate::pod::admission::Refusal;
use crate::pod::names;
use async_trait::async_trait;
use bytes::Bytes;
use gantry_api::core::pod::resources::{Amounts, amounts, is_sidecar};
use gantry_api::core::pod::validate::resources::is_extended;
use gantry_api::meta::quantity::Amount;
use gantry_container::runtime::{ContainerConfig, Device, Mount};
use gantry_grpc::{Answer, Code, Message, Service, Status, serve};
use k8s_openapi::api::core::v1::{Container, NodeStatus, Pod, ResourceHealth, ResourceStatus};
use messages::{AllocateRequest, AllocateResponse, ContainerResponse, Ids, RegisterRequest};
use parking_lot::Mutex;
use state::{Plugin, State};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

/// The one version that is spoken.
const VERSION: &str = "v1beta1";
/// File of what containers have.
const STATE: &str = "kubelet_internal_checkpoint";
/// How long a plugin may take to say what it wants to be asked.
const OPTIONS: Duration = Duration::from_secs(10);
/// How long a plugin may take for a device; some load firmware. Upstream sets no limit.
const ALLOCATE: Duration = Duration::from_secs(600);
/// How long a plugin may take before each start of a container.
const PRE_START: Duration = Duration::from_secs(30);

/// Whether a plugin that has registered in the directory of plugins can be taken in.
///
/// # Errors
/// What the plugin is told.
pub(crate) fn validate(resource: &str, versions: &[String]) -> Result<(), String> {
    if !versions.iter().any(|v| v == VERSION) {
        let given = versions.join(" ");
        return Err(format!("manager version, {VERSION}, is not among plugin supported versions [{given}]"));
    }
    if !is_extended(resource) {
        return Err(format!("invalid name of device plugin socket: the ResourceName {resource:?} is invalid"));
    }
    Ok(())
}

/// The devices of plugins, and who has them.
pub(crate) struct Classic {
    directory: PathBuf,
    state: Mutex<State>,
    /// By resource: the task that follows its plugin.
    followers: Mutex<BTreeMap<String, AbortHandle>>,
    /// Told when devices come, go, or change their health.
    changed: watch::Sender<()>,
    me: Weak<Classic>,
}

/// The registration service.
struct Registrar(Weak<Classic>);

#[async_trait]
impl Service for Registrar {
    async fn call(&self, method: &str, request: Bytes) -> Result<Answer, Status> {
        if method != "/v1beta1.Registration/Register" {
            return Err(Status::unknown_method(method, &["v1beta1.Registration"]));
        }
        let request = RegisterRequest::decode(request).map_err(|e| Status::new(Code::INTERNAL, e.to_string()))?;
        let Some(classic) = self.0.upgrade() else {
            return Err(Status::new(Code::UNAVAILABLE, "the agent is ending"));
        };
        classic.register(&request).await.map_err(|why| Status::new(Code::UNKNOWN, why))?;
        Ok(Answer::of(&Empty {}))
    }
}

impl Classic {
    /// The devices, with what an earlier run has left below `directory`.
    ///
    /// # Errors
    /// Where that cannot be read.
    pub(crate) fn open(directory: &Path) -> io::Result<Arc<Self>> {
        let directory = directory.join("device-plugins");
        std::fs::create_dir_all(&directory)?;
        let state = Mutex::new(State::open(&directory.join(STATE))?);
        Ok(Arc::new_cyclic(|me| Self {
            directory,
            state,
            followers: Mutex::default(),
            changed: watch::Sender::new(()),
            me: me.clone(),
        }))
    }

    /// Listens for plugins until `stop`. Sockets of before are removed, which tells their plugins to register anew.
    ///
    /// # Errors
    /// Where it cannot listen.
    pub(crate) fn listen(&self, stop: CancellationToken) -> io::Result<()> {
        for entry in std::fs::read_dir(&self.directory)?.flatten() {
            if entry.file_type().is_ok_and(|t| t.is_socket()) {
                std::fs::remove_file(entry.path())?;
            }
        }
        let listener = UnixListener::bind(self.directory.join("kubelet.sock"))?;
        tokio::spawn(serve(listener, Arc::new(Registrar(self.me.clone())), stop));
        Ok(())
    }

    /// Tells when the node's capacity has changed.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Stops following plugins.
    pub(crate) fn stop(&self) {
        for (_, follower) in std::mem::take(&mut *self.followers.lock()) {
            follower.abort();
        }
    }

    async fn register(&self, request: &RegisterRequest) -> Result<(), String> {
        let resource = request.resource_name.clone();
        if request.version != VERSION {
            return Err(format!(
                "requested API version {:?} is not supported by kubelet. Supported version is [{VERSION:?}]",
                request.version
            ));
        }
        if !is_extended(&resource) {
            return Err(format!("the ResourceName {resource:?} is invalid"));
        }
        self.connect(&resource, &self.directory.join(&request.endpoint)).await
    }

    /// Takes in the plugin of a resource, which listens on `socket`.
    ///
    /// # Errors
    /// What the plugin is told.
    pub(crate) async fn connect(&self, resource: &str, socket: &Path) -> Result<(), String> {
        let channel = Plugin::channel(socket);
        let options = channel.unary("/v1beta1.DevicePlugin/GetDevicePluginOptions", &Empty {}, OPTIONS).await;
        let options = options.map_err(|e| format!("failed to get device plugin options: {e}"))?;
        let plugin = Arc::new(Plugin { channel, options });
        let follower = tokio::spawn(follow(self.me.clone(), resource.to_owned(), plugin.clone()));
        if let Some(old) = self.followers.lock().insert(resource.to_owned(), follower.abort_handle()) {
            old.abort();
        }
        let mut state = self.state.lock();
        let known = state.resources.entry(resource.to_owned()).or_default();
        (known.plugin, known.gone) = (Some(plugin), None);
        self.save(&state);
        drop(state);
        tracing::info!(resource, socket = %socket.display(), "a device plugin has registered");
        Ok(())
    }

    /// Lets the plugin of a resource go.
    pub(crate) fn disconnect(&self, resource: &str) {
        if let Some(follower) = self.followers.lock().remove(resource) {
            follower.abort();
        }
        let plugin = self.state.lock().resources.get(resource).and_then(|r| r.plugin.clone());
        if let Some(plugin) = plugin {
            self.lost(resource, &plugin);
        }
    }

    /// What cannot be written is written with the next change; the devices are known all the same.
    fn save(&self, state: &State) {
        if let Err(error) = state.save(&self.directory.join(STATE)) {
            tracing::error!(%error, "cannot write which containers have which devices");
        }
    }

    /// Shows the devices in the status of the node: all in the capacity, the healthy ones allocatable.
    pub(crate) fn show(&self, status: &mut NodeStatus) {
        let quantity = |n: usize| Amount::from_milli(i64::try_from(n).unwrap_or(0) * 1000).to_quantity();
        for (resource, (all, healthy)) in self.state.lock().counts() {
            status.capacity.get_or_insert_default().insert(resource.clone(), quantity(all));
            status.allocatable.get_or_insert_default().insert(resource, quantity(healthy));
        }
    }

    /// Puts what pods may have of the plugins' resources over what the node's object says. What containers have
    /// already, they may have.
    pub(crate) fn limit(&self, allocatable: &mut Amounts) {
        let mut state = self.state.lock();
        for (resource, (_, healthy)) in state.counts() {
            let count = healthy.max(state.taken(&resource).len());
            allocatable.insert(resource, Amount::from_milli(i64::try_from(count).unwrap_or(0) * 1000));
        }
    }

    /// What a container wants of the plugins' resources.
    fn wanted(&self, container: &Container) -> Vec<(String, usize)> {
        let state = self.state.lock();
        let limits = amounts(container.resources.as_ref().and_then(|r| r.limits.as_ref()));
        let known = limits.into_iter().filter(|(name, _)| state.resources.contains_key(name));
        known.map(|(name, a)| (name, usize::try_from(a.value()).unwrap_or(0))).filter(|(_, n)| *n > 0).collect()
    }

    /// Chooses the devices of a pod that comes.
    ///
    /// # Errors
    /// Why the pod is refused.
    pub(crate) async fn admit(&self, pod: &Pod) -> Result<(), Refusal> {
        let Some(spec) = &pod.spec else { return Ok(()) };
        let uid = names::uid(pod);
        let mut reusable: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let init = spec.init_containers.iter().flatten().map(|c| (c, !is_sidecar(c)));
        for (container, ends) in init.chain(spec.containers.iter().map(|c| (c, false))) {
            if let Err(error) = self.allocate(uid, container, &reusable).await {
                self.release(uid);
                let message = format!("Allocate failed due to {error}, which is unexpected");
                return Err(Refusal { reason: "UnexpectedAdmissionError".into(), message });
            }
            let state = self.state.lock();
            for (resource, allocation) in state.pods.get(uid).and_then(|p| p.get(&container.name)).into_iter().flatten()
            {
                let all = reusable.entry(resource.clone()).or_default();
                for id in &allocation.devices {
                    // Those of a container that goes on are nobody else's.
                    if ends {
                        all.insert(id.clone())
                    } else {
                        all.remove(id)
                    };
                }
            }
        }
        Ok(())
    }

    async fn allocate(
        &self,
        pod: &str,
        container: &Container,
        reusable: &BTreeMap<String, BTreeSet<String>>,
    ) -> Result<(), String> {
        for (resource, count) in self.wanted(container) {
            let none = BTreeSet::new();
            let reusable = reusable.get(&resource).unwrap_or(&none);
            let preferred = self.preferred(&resource, count, reusable).await?;
            let at = (pod, container.name.as_str(), resource.as_str());
            let (chosen, plugin) = {
                let mut state = self.state.lock();
                let Some(chosen) = state.choose(at, count, reusable, &preferred)? else { continue };
                (chosen, state.resources.get(&resource).and_then(|r| r.plugin.clone()))
            };
            let given = match plugin {
                Some(plugin) => given(&plugin, chosen).await,
                None => Err(format!("unknown Device Plugin {resource}")),
            };
            let mut state = self.state.lock();
            let of = state.pods.get_mut(pod).and_then(|p| p.get_mut(&container.name));
            match (of, given) {
                (Some(of), Ok(given)) => {
                    of.entry(resource).and_modify(|a| a.give(&given));
                    self.save(&state);
                }
                (Some(of), Err(error)) => {
                    of.remove(&resource);
                    return Err(error);
                }
                (None, _) => return Err("the pod has ended".into()),
            }
        }
        Ok(())
    }

    /// The devices a plugin would rather give, if it wants to be asked.
    async fn preferred(
        &self,
        resource: &str,
        count: usize,
        reusable: &BTreeSet<String>,
    ) -> Result<Vec<String>, String> {
        let (plugin, available) = {
            let state = self.state.lock();
            let Some(of) = state.resources.get(resource) else { return Ok(Vec::new()) };
            let taken = state.taken(resource);
            let free = of.devices.iter().filter(|(id, healthy)| **healthy && !taken.contains(id));
            let available: Vec<String> = free.map(|(id, _)| id.clone()).chain(reusable.iter().cloned()).collect();
            (of.plugin.clone(), available)
        };
        let Some(plugin) = plugin.filter(|p| p.options.preferred_allocation_available && available.len() > count)
        else {
            return Ok(Vec::new());
        };
        let included = reusable.iter().take(count).cloned().collect();
        let size = i32::try_from(count).unwrap_or(i32::MAX);
        let of = messages::PreferenceOf { available, included, size };
        let request = messages::PreferredRequest { containers: vec![of] };
        let answer: Result<messages::PreferredResponse, Status> =
            plugin.channel.unary("/v1beta1.DevicePlugin/GetPreferredAllocation", &request, ALLOCATE).await;
        let answer = answer.map_err(|e| format!("device plugin GetPreferredAllocation rpc failed with err: {e}"))?;
        Ok(answer.containers.into_iter().next().map(|c| c.ids).unwrap_or_default())
    }

    /// Gives a container that is to be made its devices. Returns the CDI ids among them.
    ///
    /// # Errors
    /// What the plugin says, or that there are none.
    pub(crate) async fn give(
        &self,
        pod: &Pod,
        container: &Container,
        config: &mut ContainerConfig,
    ) -> Result<Vec<String>, String> {
        let uid = names::uid(pod);
        let mut cdi = Vec::new();
        let wanted = self.wanted(container);
        let has = |resource: &str| {
            let state = self.state.lock();
            state.pods.get(uid).and_then(|p| p.get(&container.name)).is_some_and(|c| c.contains_key(resource))
        };
        // What the node has lost track of is chosen anew.
        if !wanted.iter().all(|(resource, _)| has(resource)) {
            self.allocate(uid, container, &BTreeMap::new()).await?;
        }
        for (resource, _) in wanted {
            let (plugin, allocation) = {
                let state = self.state.lock();
                let allocation = state.pods.get(uid).and_then(|p| p.get(&container.name)?.get(&resource)).cloned();
                (state.resources.get(&resource).and_then(|r| r.plugin.clone()), allocation)
            };
            let Some(allocation) = allocation else {
                return Err(format!(
                    "no devices found allocated in local cache for pod {uid}, container {}, resource {resource}",
                    container.name
                ));
            };
            if let Some(plugin) = plugin.filter(|p| p.options.pre_start_required) {
                let request = Ids { ids: allocation.devices.iter().cloned().collect() };
                let method = "/v1beta1.DevicePlugin/PreStartContainer";
                let told = plugin.channel.unary::<_, Empty>(method, &request, PRE_START).await;
                told.map_err(|e| format!("device plugin PreStartContainer rpc failed with err: {e}"))?;
            }
            if let Some(given) = allocation.given() {
                cdi.extend(given.cdi.iter().map(|d| d.name.clone()));
                apply(config, given);
            }
        }
        Ok(cdi)
    }

    /// Takes the devices of a pod that has ended.
    pub(crate) fn release(&self, pod: &str) {
        let mut state = self.state.lock();
        if state.pods.remove(pod).is_some() {
            self.save(&state);
        }
    }

    /// UIDs of the pods that have devices.
    pub(crate) fn users(&self) -> Vec<String> {
        self.state.lock().pods.keys().cloned().collect()
    }

    /// Takes the devices of all pods but these.
    pub(crate) fn keep(&self, active: &BTreeSet<String>) {
        let gone: Vec<String> = self.state.lock().pods.keys().filter(|p| !active.contains(*p)).cloned().collect();
        for pod in gone {
            self.release(&pod);
        }
    }

    /// How the devices of a container are, as the status of its pod shows it.
    pub(crate) fn health_of(&self, pod: &Pod, container: &str) -> Vec<ResourceStatus> {
        let state = self.state.lock();
        let of = state.pods.get(names::uid(pod)).and_then(|p| p.get(container)).into_iter().flatten();
        let shown = of.map(|(resource, allocation)| {
            let devices = state.resources.get(resource).map(|r| &r.devices);
            let health = |id: &String| match devices.and_then(|d| d.get(id)) {
                Some(true) => "Healthy",
                Some(false) => "Unhealthy",
                None => "Unknown",
            };
            let one = |id: &String| ResourceHealth {
                resource_id: id.clone(),
                health: Some(health(id).to_owned()),
                message: None,
            };
            ResourceStatus { name: resource.clone(), resources: Some(allocation.devices.iter().map(one).collect()) }
        });
        shown.collect()
    }

    fn update(&self, resource: &str, plugin: &Arc<Plugin>, devices: messages::Devices) {
        let mut state = self.state.lock();
        let Some(of) = state.resources.get_mut(resource).filter(|r| is(r.plugin.as_ref(), plugin)) else { return };
        let healthy = |d: messages::Device| (d.id, d.health == "Healthy");
        of.devices = devices.devices.into_iter().map(healthy).collect();
        drop(state);
        self.changed.send_replace(());
    }

    fn lost(&self, resource: &str, plugin: &Arc<Plugin>) {
        let mut state = self.state.lock();
        let Some(of) = state.resources.get_mut(resource).filter(|r| is(r.plugin.as_ref(), plugin)) else { return };
        of.plugin = None;
        of.gone = Some(tokio::time::Instant::now());
        of.devices.values_mut().for_each(|healthy| *healthy = false);
        drop(state);
        tracing::info!(resource, "a device plugin has gone");
        self.changed.send_replace(());
    }
}

fn is(current: Option<&Arc<Plugin>>, plugin: &Arc<Plugin>) -> bool {
    current.is_some_and(|c| Arc::ptr_eq(c, plugin))
}

async fn given(plugin: &Plugin, devices: BTreeSet<String>) -> Result<ContainerResponse, String> {
    let request = AllocateRequest { containers: vec![Ids { ids: devices.into_iter().collect() }] };
    let answer: Result<AllocateResponse, Status> =
        plugin.channel.unary("/v1beta1.DevicePlugin/Allocate", &request, ALLOCATE).await;
    let first = answer.map_err(|e| e.to_string())?.containers.into_iter().next();
    first.ok_or_else(|| "no containers return in allocation response".to_owned())
}

fn apply(config: &mut ContainerConfig, given: ContainerResponse) {
    for (name, value) in given.env {
        config.env.retain(|(known, _)| *known != name);
        config.env.push((name, value));
    }
    for mount in given.mounts {
        // What the pod says itself goes before.
        if config.mounts.iter().any(|m| m.destination == Path::new(&mount.container_path)) {
            continue;
        }
        let bind = Mount::bind(mount.host_path, mount.container_path);
        config.mounts.push(if mount.read_only { bind.read_only() } else { bind });
    }
    for node in given.nodes {
        if config.devices.iter().any(|d| d.container_path == Path::new(&node.container_path)) {
            continue;
        }
        config.devices.push(Device {
            host_path: node.host_path.into(),
            container_path: node.container_path.into(),
            permissions: node.permissions,
            mode: None,
            uid: None,
            gid: None,
        });
    }
    config.annotations.extend(given.annotations);
}

/// Takes in what a plugin lists, until it is gone.
async fn follow(classic: Weak<Classic>, resource: String, plugin: Arc<Plugin>) {
    match plugin.channel.stream::<_, messages::Devices>("/v1beta1.DevicePlugin/ListAndWatch", &Empty {}).await {
        Ok(mut lists) => loop {
            match lists.message().await {
                Ok(Some(devices)) => {
                    let Some(classic) = classic.upgrade() else { return };
                    classic.update(&resource, &plugin, devices);
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::info!(resource, %error, "a device plugin no longer lists its devices");
                    break;
                }
            }
        },
        Err(error) => tracing::warn!(resource, %error, "a device plugin does not list its devices"),
    }
    if let Some(classic) = classic.upgrade() {
        classic.lost(&resource, &plugin);
    }
}

#[cfg(test)]
mod tests;
