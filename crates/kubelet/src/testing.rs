//! A runtime, an image store, a network and an API server that live in memory, for tests of workers.

use crate::agent::{Agent, PARALLEL_PULLS};
use crate::config::KubeletConfig;
use crate::node::machine::Machine;
use crate::pod_network::PodNetwork;
use crate::references::References;
use crate::volumes::pod_certificate::PodCertificates;
use crate::volumes::token::Tokens;
use crate::volumes::trust_bundle::TrustBundles;
use async_trait::async_trait;
use bytes::Bytes;
use gantry_api::clock::Clock;
use gantry_api::kind::Kind;
use gantry_client::{Body, Client, Transport, TransportError};
use gantry_container::image_service::*;
use gantry_container::runtime::*;
use gantry_container::{Error, Result};
use gantry_network::AttachOptions;
use gantry_reconcile::{EventRecorder, Informers};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{Semaphore, broadcast, watch};

/// A runtime whose containers do nothing until a test ends them.
pub(crate) struct FakeRuntime {
    pub sandboxes: Mutex<BTreeMap<String, SandboxStatus>>,
    pub containers: Mutex<Vec<ContainerStatus>>,
    pub calls: Mutex<Vec<String>>,
    pub configs: Mutex<Vec<ContainerConfig>>,
    /// Containers of this name ignore the stop signal.
    pub stubborn: Mutex<HashSet<String>>,
    events: broadcast::Sender<RuntimeEvent>,
}

impl FakeRuntime {
    pub(crate) fn exit(&self, name: &str, code: i32) {
        let mut containers = self.containers.lock();
        let c = containers
            .iter_mut()
            .rev()
            .find(|c| c.name == name && c.state == ContainerState::Running)
            .unwrap_or_else(|| panic!("{name} does not run"));
        Self::end(c, code);
        let exit = c.exit.clone().unwrap();
        let event =
            RuntimeEvent::ContainerExited { sandbox_id: c.sandbox_id.clone(), container_id: c.id.clone(), exit };
        drop(containers);
        let _ = self.events.send(event);
    }

    fn end(c: &mut ContainerStatus, code: i32) {
        c.state = ContainerState::Exited;
        c.exit = Some(Exit {
            code,
            signal: 0,
            oom_killed: false,
            reason: if code == 0 { "Completed" } else { "Error" }.into(),
            message: String::new(),
            finished_at: SystemTime::now(),
        });
    }

    pub(crate) fn running(&self) -> Vec<String> {
        let containers = self.containers.lock();
        containers
            .iter()
            .filter(|c| c.state == ContainerState::Running)
            .map(|c| format!("{}#{}", c.name, c.attempt))
            .collect()
    }

    fn note(&self, call: impl Into<String>) {
        self.calls.lock().push(call.into());
    }
}

fn missing(id: &str) -> Error {
    Error::NotFound { kind: "container", id: id.to_owned() }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn run_sandbox(&self, config: SandboxConfig) -> Result<SandboxStatus> {
        self.note(format!("run_sandbox {}", config.id));
        let status = SandboxStatus {
            id: config.id.clone(),
            state: SandboxState::Ready,
            created_at: SystemTime::now(),
            netns_path: (!config.namespaces.host_network).then(|| "/netns".into()),
            shim_pid: 1,
            namespaces: config.namespaces,
            cgroup_parent: config.cgroup_parent,
            labels: config.labels,
            annotations: config.annotations,
        };
        self.sandboxes.lock().insert(config.id, status.clone());
        Ok(status)
    }
    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        self.note(format!("stop_sandbox {id}"));
        if let Some(s) = self.sandboxes.lock().get_mut(id) {
            s.state = SandboxState::NotReady;
        }
        Ok(())
    }
    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        self.note(format!("remove_sandbox {id}"));
        self.sandboxes.lock().remove(id);
        self.containers.lock().retain(|c| c.sandbox_id != id);
        Ok(())
    }
    async fn list_sandboxes(&self) -> Result<Vec<SandboxStatus>> {
        Ok(self.sandboxes.lock().values().cloned().collect())
    }
    async fn sandbox_status(&self, id: &str) -> Result<SandboxStatus> {
        self.sandboxes.lock().get(id).cloned().ok_or_else(|| missing(id))
    }
    async fn update_sandbox_resources(&self, _: &str, _: Resources) -> Result<()> {
        Ok(())
    }
    async fn create_container(&self, sandbox_id: &str, config: ContainerConfig) -> Result<String> {
        let mut containers = self.containers.lock();
        let id = format!("{:064x}", containers.len() + 1);
        self.configs.lock().push(config.clone());
        containers.push(ContainerStatus {
            id: id.clone(),
            sandbox_id: sandbox_id.to_owned(),
            name: config.name,
            attempt: config.attempt,
            state: ContainerState::Created,
            created_at: SystemTime::now(),
            started_at: None,
            exit: None,
            pid: 1,
            image: config.image,
            image_id: "sha256:00".into(),
            log_path: config.log_path,
            mounts: config.mounts,
            resources: config.resources,
            uid: 0,
            gid: 0,
            supplementary_groups: Vec::new(),
            stop_signal: 15,
            stdin: false,
            tty: false,
            labels: config.labels,
            annotations: config.annotations,
        });
        Ok(id)
    }
    async fn start_container(&self, id: &str) -> Result<()> {
        let mut containers = self.containers.lock();
        let c = containers.iter_mut().find(|c| c.id == id).ok_or_else(|| missing(id))?;
        c.state = ContainerState::Running;
        c.started_at = Some(SystemTime::now());
        self.note(format!("start {}#{}", c.name, c.attempt));
        Ok(())
    }
    async fn stop_container(&self, id: &str, _: Duration) -> Result<()> {
        let mut containers = self.containers.lock();
        let c = containers.iter_mut().find(|c| c.id == id).ok_or_else(|| missing(id))?;
        if c.state != ContainerState::Exited {
            self.note(format!("kill {}", c.name));
            Self::end(c, 137);
        }
        Ok(())
    }
    async fn kill_container(&self, id: &str, signal: i32) -> Result<()> {
        let name = {
            let containers = self.containers.lock();
            containers.iter().find(|c| c.id == id).ok_or_else(|| missing(id))?.name.clone()
        };
        self.note(format!("signal {signal} {name}"));
        if !self.stubborn.lock().contains(&name) {
            self.exit(&name, 143);
        }
        Ok(())
    }
    async fn remove_container(&self, id: &str) -> Result<()> {
        self.containers.lock().retain(|c| c.id != id);
        Ok(())
    }
    async fn list_containers(&self, filter: ContainerFilter) -> Result<Vec<ContainerStatus>> {
        let all = self.containers.lock().clone();
        let fits = |c: &ContainerStatus| {
            filter.sandbox_id.as_ref().is_none_or(|s| *s == c.sandbox_id) && filter.state.is_none_or(|s| s == c.state)
        };
        Ok(all.into_iter().filter(fits).collect())
    }
    async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        self.containers.lock().iter().find(|c| c.id == id).cloned().ok_or_else(|| missing(id))
    }
    async fn update_resources(&self, _: &str, _: Resources) -> Result<()> {
        Ok(())
    }
    async fn reopen_log(&self, _: &str) -> Result<()> {
        Ok(())
    }
    async fn exec_sync(&self, id: &str, command: Vec<String>, _: Option<Duration>) -> Result<ExecOutput> {
        let name = self.container_status(id).await?.name;
        self.note(format!("exec {name} {}", command.join(" ")));
        let exit_code = i32::from(command.first().is_some_and(|c| c == "false"));
        Ok(ExecOutput { exit_code, ..ExecOutput::default() })
    }
    async fn exec(&self, id: &str, _: ExecConfig) -> Result<Session> {
        Err(missing(id))
    }
    async fn attach(&self, id: &str, _: bool, _: bool, _: bool) -> Result<Session> {
        Err(missing(id))
    }
    async fn container_stats(&self, id: &str) -> Result<Stats> {
        Err(missing(id))
    }
    async fn sandbox_stats(&self, id: &str) -> Result<Stats> {
        Err(missing(id))
    }
    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.events.subscribe()
    }
}

/// Images `present:*` are here; `remote:*` can be pulled; others cannot.
pub(crate) struct FakeImages(Mutex<HashSet<String>>);

fn image(reference: &str) -> Image {
    Image {
        id: "sha256:00".into(),
        tags: vec![reference.into()],
        digests: Vec::new(),
        size: 1,
        user: String::new(),
        pulled_at: SystemTime::UNIX_EPOCH,
        last_used_at: None,
        pinned: false,
    }
}

#[async_trait]
impl ImageService for FakeImages {
    async fn pull(&self, r: &str, _: &RegistryAuth, _: Option<watch::Sender<PullProgress>>) -> Result<Image> {
        if !r.starts_with("remote:") {
            return Err(Error::ImageNotFound { reference: r.into() });
        }
        self.0.lock().insert(r.to_owned());
        Ok(image(r))
    }
    async fn import(&self, _: &Path, _: Option<&str>) -> Result<Vec<Image>> {
        Ok(Vec::new())
    }
    async fn list(&self) -> Result<Vec<Image>> {
        Ok(Vec::new())
    }
    async fn status(&self, r: &str) -> Result<Option<Image>> {
        if r.contains(' ') {
            return Err(Error::InvalidReference { reference: r.into(), reason: "blank".into() });
        }
        Ok((r.starts_with("present:") || self.0.lock().contains(r)).then(|| image(r)))
    }
    async fn config(&self, _: &str) -> Result<ImageConfig> {
        Ok(ImageConfig::default())
    }
    async fn remove(&self, _: &str) -> Result<()> {
        Ok(())
    }
    async fn resolve_user(&self, _: &str, _: &str) -> Result<ResolvedUser> {
        Ok(ResolvedUser::default())
    }
    async fn fs_usage(&self) -> Result<FsUsage> {
        Err(missing("fs"))
    }
    async fn garbage_candidates(&self) -> Result<Vec<Image>> {
        Ok(Vec::new())
    }
}

/// The addresses of attached pods, and what happens while orphans are looked for.
#[derive(Default)]
pub(crate) struct FakeNetwork(pub Mutex<HashMap<String, Vec<IpAddr>>>, pub Mutex<Option<Meanwhile>>);

pub(crate) type Meanwhile = Box<dyn FnOnce() + Send>;

#[async_trait]
impl PodNetwork for FakeNetwork {
    async fn attach(
        &self,
        key: &str,
        _: &Pod,
        _: &Path,
        _: AttachOptions,
    ) -> std::result::Result<Vec<IpAddr>, crate::pod_network::Error> {
        let ips = vec![IpAddr::from([10, 0, 0, 9])];
        self.0.lock().insert(key.to_owned(), ips.clone());
        Ok(ips)
    }
    async fn detach(&self, key: &str) -> std::result::Result<(), crate::pod_network::Error> {
        self.0.lock().remove(key);
        Ok(())
    }
    async fn addresses_of(&self, key: &str) -> Option<Vec<IpAddr>> {
        self.0.lock().get(key).cloned()
    }
    async fn reconcile(&self, live: &HashSet<String>) -> std::result::Result<(), crate::pod_network::Error> {
        self.0.lock().retain(|k, _| live.contains(k));
        if let Some(happen) = self.1.lock().take() {
            happen();
        }
        Ok(())
    }
    async fn set_node_routes(
        &self,
        _: &BTreeMap<gantry_network::IpNet, IpAddr>,
    ) -> std::result::Result<Vec<(gantry_network::IpNet, gantry_network::NetworkError)>, crate::pod_network::Error>
    {
        Ok(Vec::new())
    }
}

/// Holds pods and config maps, and collects events.
#[derive(Default)]
pub(crate) struct FakeApi {
    pub pods: Mutex<HashMap<String, Value>>,
    pub config_maps: Mutex<HashMap<String, Value>>,
    pub events: Mutex<Vec<(String, String)>>,
    pub deleted: Mutex<Vec<Value>>,
    version: Mutex<u64>,
}

impl FakeApi {
    /// Merges a status patch as the server does, as far as workers use it.
    fn merge(status: &mut Value, patch: &Value) {
        for (key, value) in patch.as_object().unwrap() {
            let marker = |v: &Value| v.get("$patch").is_some();
            match key.as_str() {
                "conditions" => {
                    let list = status[key].as_array().cloned().unwrap_or_default();
                    let new = value.as_array().unwrap();
                    let mut merged: Vec<Value> =
                        list.into_iter().filter(|c| !new.iter().any(|n| n["type"] == c["type"])).collect();
                    merged.extend(new.iter().cloned().map(|mut c| {
                        c.as_object_mut().unwrap().retain(|_, v| !v.is_null());
                        c
                    }));
                    status[key] = merged.into();
                }
                _ if value.is_null() => {
                    status.as_object_mut().unwrap().remove(key);
                }
                _ if value.as_array().is_some_and(|l| l.iter().any(marker)) => {
                    status[key] = value.as_array().unwrap().iter().filter(|v| !marker(v)).cloned().collect();
                }
                _ => status[key] = value.clone(),
            }
        }
    }

    pub(crate) fn put(&self, mut pod: Value) -> Pod {
        let mut version = self.version.lock();
        *version += 1;
        pod["metadata"]["resourceVersion"] = version.to_string().into();
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        self.pods.lock().insert(name, pod.clone());
        Pod::from_value(pod).unwrap()
    }

    pub(crate) fn pod(&self, name: &str) -> Option<Pod> {
        self.pods.lock().get(name).cloned().map(|p| Pod::from_value(p).unwrap())
    }
}

#[async_trait]
impl Transport for FakeApi {
    async fn send(&self, request: Request<Bytes>) -> std::result::Result<Response<Body>, TransportError> {
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let body: Value = serde_json::from_slice(request.body()).unwrap_or(Value::Null);
        let not_found = || (404, json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404}));
        let (code, answer) = match (request.method(), parts.as_slice()) {
            (&Method::PATCH, ["api", "v1", "namespaces", _, "pods", name, "status"]) => {
                let found = self.pods.lock().get(*name).cloned();
                match found {
                    Some(mut pod) => {
                        if pod.get("status").is_none_or(Value::is_null) {
                            pod["status"] = json!({});
                        }
                        Self::merge(&mut pod["status"], &body["status"]);
                        (200, self.put(pod).to_value())
                    }
                    None => not_found(),
                }
            }
            (&Method::DELETE, ["api", "v1", "namespaces", _, "pods", name]) => {
                self.deleted.lock().push(body);
                match self.pods.lock().remove(*name) {
                    Some(pod) => (200, pod),
                    None => not_found(),
                }
            }
            (&Method::POST, ["api", "v1", "namespaces", _, "events"]) => {
                let text = |k: &str| body[k].as_str().unwrap_or_default().to_owned();
                self.events.lock().push((text("reason"), text("message")));
                (201, body)
            }
            (&Method::GET, ["api", "v1", "namespaces", _, kind])
                if request.uri().query().is_some_and(|q| q.contains("watch=")) =>
            {
                let _ = kind;
                std::future::pending::<()>().await;
                not_found()
            }
            (&Method::GET, ["api", "v1", "namespaces", _, "configmaps"]) => {
                let items: Vec<Value> = self.config_maps.lock().values().cloned().collect();
                (
                    200,
                    json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}),
                )
            }
            _ => not_found(),
        };
        let body = Full::new(Bytes::from(answer.to_string())).map_err(|never| match never {}).boxed();
        Ok(Response::builder().status(code).body(body).unwrap())
    }
}

/// All of it together.
#[derive(Clone)]
pub(crate) struct World {
    pub agent: Arc<Agent>,
    pub runtime: Arc<FakeRuntime>,
    pub api: Arc<FakeApi>,
    pub network: Arc<FakeNetwork>,
    pub _directory: Arc<tempfile::TempDir>,
}

pub(crate) fn world() -> World {
    let directory = tempfile::tempdir().unwrap();
    let cfg = KubeletConfig::new("n1", vec![IpAddr::from([192, 0, 2, 1])], directory.path().to_path_buf());
    std::fs::create_dir_all(cfg.pods_directory()).unwrap();
    let runtime = Arc::new(FakeRuntime {
        sandboxes: Mutex::default(),
        containers: Mutex::default(),
        calls: Mutex::default(),
        configs: Mutex::default(),
        stubborn: Mutex::default(),
        events: broadcast::Sender::new(64),
    });
    let (api, network) = (Arc::new(FakeApi::default()), Arc::new(FakeNetwork::default()));
    let client = Client::new(api.clone(), "kubelet/test");
    let informers = Informers::new(client.clone());
    let clock = Clock::starting_at(k8s_openapi::jiff::Timestamp::now());
    let recorder = EventRecorder::new(client.clone(), clock, "kubelet", "n1");
    let agent = Arc::new(Agent {
        recorder: recorder.clone(),
        clock,
        services: informers.get::<Service>(),
        node: informers.get::<Node>(),
        config_maps: References::new(client.clone()),
        secrets: References::new(client.clone()),
        tokens: Tokens::new(client.clone()),
        trust_bundles: TrustBundles::new(client.clone(), Default::default()),
        pod_certificates: PodCertificates::new(client.clone(), recorder, clock, &cfg.node_name),
        claims: crate::volumes::claim::Claims::new(client.clone(), &cfg),
        devices: crate::devices::Devices::open(client.clone(), &cfg.node_name, &cfg.data_dir).unwrap(),
        pulls: Semaphore::new(PARALLEL_PULLS),
        admissions: Default::default(),
        pressure: Default::default(),
        runtime: runtime.clone(),
        images: Arc::new(FakeImages(Mutex::default())),
        network: network.clone(),
        machine: Machine::inspect(&cfg).unwrap(),
        client,
        cfg,
    });
    World { agent, runtime, api, network, _directory: Arc::new(directory) }
}
