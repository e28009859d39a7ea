//! The runtime of this crate: a [`Runtime`] that needs no other program.
//!
//! On disk, below the state directory:
//!
//! ```text
//! sandboxes/ID/   sandbox.json, shim.sock, netns (the pinned network namespace), shm/, hostname, resolv.conf
//! containers/ID/  container.json, spec.json (for container init), shim.json, status.json (by the shim), upper/ work/ rootfs/
//! ```

mod adopt;
mod container;
mod link;
mod sandbox;
mod session;
mod spec;
mod state;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::broadcast;

use crate::cgroup::Cgroup;
use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::images::{ImageStore, blocking, disk_usage};
use crate::init::spec::{ExecSpec, InitSpec, SPEC_FILE};
use crate::runtime::{
    ContainerConfig, ContainerFilter, ContainerState, ContainerStatus, ExecConfig, ExecOutput, Resources, Runtime,
    RuntimeEvent, SandboxConfig, SandboxStatus, Session, Stats,
};
use crate::shim::protocol::{PROGRESS_FILE, Request};
pub use adopt::images_in_use;
use link::{Link, call};
use state::{Container, RECORD_FILE, Sandbox, State};

/// Version of the records on disk.
const RECORD_VERSION: u32 = 1;
/// Output of [`Runtime::exec_sync`] kept per stream.
const MAX_SYNC_OUTPUT: u64 = 16 << 20;

/// How to open the runtime.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// Directory for state and writable layers; created when missing.
    pub state_dir: PathBuf,
    /// Program executed as `PROGRAM shim DIRECTORY`; its main function must call [`crate::shim_main`] and
    /// [`crate::container_init_main`]. Normally `/proc/self/exe`.
    pub shim: PathBuf,
    /// Cgroup the shims live in, apart from the sandboxes' own.
    pub shim_cgroup: String,
    /// Cgroups at and below this one are removed when empty.
    pub cgroup_base: String,
}

impl RuntimeConfig {
    /// State in `state_dir`, this program as the shim, cgroups under `/gantry`.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        RuntimeConfig {
            state_dir: state_dir.into(),
            shim: PathBuf::from("/proc/self/exe"),
            shim_cgroup: "/gantry/shims".into(),
            cgroup_base: "/gantry".into(),
        }
    }
}

/// The runtime. Cheap to clone.
#[derive(Clone)]
pub struct NativeRuntime {
    inner: Arc<Inner>,
}

struct Inner {
    config: RuntimeConfig,
    images: ImageStore,
    state: State,
}

fn containers_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("containers")
}

impl Inner {
    fn sandboxes_dir(&self) -> PathBuf {
        self.config.state_dir.join("sandboxes")
    }

    fn containers_dir(&self) -> PathBuf {
        containers_dir(&self.config.state_dir)
    }

    fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>> {
        let found = self.state.sandboxes.read().get(id).cloned();
        found.ok_or_else(|| Error::NotFound { kind: "sandbox", id: id.to_string() })
    }

    fn container(&self, id: &str) -> Result<Arc<Container>> {
        let found = self.state.containers.read().get(id).cloned();
        found.ok_or_else(|| Error::NotFound { kind: "container", id: id.to_string() })
    }

    /// A container and its sandbox, where the container must be in `wanted`.
    fn living(&self, id: &str, wanted: &[ContainerState]) -> Result<(Arc<Container>, Arc<Sandbox>)> {
        let container = self.container(id)?;
        let state = container.state();
        if !wanted.contains(&state) {
            return Err(Error::State {
                kind: "container",
                id: id.to_string(),
                state: format!("{state:?}"),
                wanted: if wanted.contains(&ContainerState::Running) { "Running" } else { "Created" },
            });
        }
        let sandbox = self.sandbox(&container.record.sandbox_id)?;
        Ok((container, sandbox))
    }

    async fn call(&self, sandbox: &Sandbox, container: &str, request: Request) -> Result<()> {
        call(&sandbox.dir, &sandbox.id(), container, &request).await.map(drop)
    }
}

impl NativeRuntime {
    /// Opens the runtime and adopts the sandboxes and containers of an earlier process. Those whose shim is gone are
    /// reported as ended.
    pub async fn open(config: RuntimeConfig, images: ImageStore) -> Result<NativeRuntime> {
        let inner = Arc::new(Inner { config, images, state: State::new() });
        for dir in [inner.sandboxes_dir(), inner.containers_dir()] {
            files::create_private(&dir)?;
        }
        adopt::adopt(&inner).await?;
        Ok(NativeRuntime { inner })
    }

    /// The image store it takes images from.
    pub fn images(&self) -> &ImageStore {
        &self.inner.images
    }
}

/// Reads a stream to its end, keeping at most [`MAX_SYNC_OUTPUT`].
async fn collect(stream: Option<Box<dyn AsyncRead + Send + Unpin>>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut stream) = stream else { return kept };
    let mut limited = (&mut stream).take(MAX_SYNC_OUTPUT);
    // A stream that breaks ends there; the exit code tells the rest.
    let _ = limited.read_to_end(&mut kept).await;
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    kept
}

#[async_trait]
impl Runtime for NativeRuntime {
    async fn run_sandbox(&self, config: SandboxConfig) -> Result<SandboxStatus> {
        sandbox::run(&self.inner, config).await
    }

    async fn stop_sandbox(&self, id: &str) -> Result<()> {
        match self.inner.sandbox(id) {
            Ok(sandbox) => sandbox::stop(&self.inner, &sandbox).await,
            Err(_) => Ok(()),
        }
    }

    async fn remove_sandbox(&self, id: &str) -> Result<()> {
        match self.inner.sandbox(id) {
            Ok(sandbox) => sandbox::remove(&self.inner, &sandbox).await,
            Err(_) => Ok(()),
        }
    }

    async fn list_sandboxes(&self) -> Result<Vec<SandboxStatus>> {
        Ok(self.inner.state.sandboxes.read().values().map(|s| s.status()).collect())
    }

    async fn sandbox_status(&self, id: &str) -> Result<SandboxStatus> {
        Ok(self.inner.sandbox(id)?.status())
    }

    async fn update_sandbox_resources(&self, id: &str, resources: Resources) -> Result<()> {
        let sandbox = self.inner.sandbox(id)?;
        let record = {
            let mut record = sandbox.record.lock();
            Cgroup::at(&record.config.cgroup_parent)?.apply(&resources)?;
            merge(&mut record.config.resources, &resources);
            record.clone()
        };
        files::write_json(&sandbox.dir.join(crate::shim::protocol::SANDBOX_FILE), &record)
    }

    async fn create_container(&self, sandbox_id: &str, config: ContainerConfig) -> Result<String> {
        let sandbox = self.inner.sandbox(sandbox_id)?;
        container::create(&self.inner, &sandbox, config).await
    }

    async fn start_container(&self, id: &str) -> Result<()> {
        let (container, sandbox) = self.inner.living(id, &[ContainerState::Created])?;
        // Before the start: the container may end before the answer is read.
        container.progress.send_modify(|p| p.started_at = Some(SystemTime::now()));
        let result = self.inner.call(&sandbox, id, Request::Start { container: id.to_string() }).await;
        match &result {
            Err(Error::Start { .. }) => container.ended().await,
            Err(_) => container.progress.send_modify(|p| {
                if p.exit.is_none() {
                    p.started_at = None;
                }
            }),
            Ok(()) => {
                // The shim's own record is what a later process finds.
                if let Some(at) = read_progress(&container.dir).started_at {
                    container.progress.send_modify(|p| p.started_at = Some(at));
                }
            }
        }
        result
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        let Ok(container) = self.inner.container(id) else { return Ok(()) };
        container::stop(&self.inner, &container, grace).await
    }

    async fn kill_container(&self, id: &str, signal: i32) -> Result<()> {
        let (_, sandbox) = self.inner.living(id, &[ContainerState::Running, ContainerState::Created])?;
        self.inner.call(&sandbox, id, Request::Signal { container: id.to_string(), signal, all: false }).await
    }

    async fn remove_container(&self, id: &str) -> Result<()> {
        let Ok(container) = self.inner.container(id) else { return Ok(()) };
        container::stop(&self.inner, &container, Duration::ZERO).await?;
        container::remove(&self.inner, &container).await
    }

    async fn list_containers(&self, filter: ContainerFilter) -> Result<Vec<ContainerStatus>> {
        let mut list: Vec<ContainerStatus> = self
            .inner
            .state
            .containers
            .read()
            .values()
            .filter(|c| filter.sandbox_id.as_ref().is_none_or(|s| *s == c.record.sandbox_id))
            .map(|c| c.status())
            .filter(|c| filter.state.is_none_or(|s| s == c.state))
            .collect();
        list.sort_by_key(|c| c.created_at);
        Ok(list)
    }

    async fn container_status(&self, id: &str) -> Result<ContainerStatus> {
        Ok(self.inner.container(id)?.status())
    }

    async fn update_resources(&self, id: &str, resources: Resources) -> Result<()> {
        let (container, _) = self.inner.living(id, &[ContainerState::Running, ContainerState::Created])?;
        Cgroup::at(&container.record.cgroup)?.apply(&resources)?;
        let mut record = container.record.clone();
        record.config.resources = {
            let mut now = container.resources.lock();
            merge(&mut now, &resources);
            now.clone()
        };
        files::write_json(&container.dir.join(RECORD_FILE), &record)
    }

    async fn reopen_log(&self, id: &str) -> Result<()> {
        let (_, sandbox) = self.inner.living(id, &[ContainerState::Running, ContainerState::Created])?;
        self.inner.call(&sandbox, id, Request::ReopenLog { container: id.to_string() }).await
    }

    async fn exec_sync(&self, id: &str, command: Vec<String>, timeout: Option<Duration>) -> Result<ExecOutput> {
        let config = ExecConfig { command: command.clone(), tty: false, stdin: false, stdout: true, stderr: true };
        let run = async {
            let session = self.exec(id, config).await?;
            let control = session.control.clone();
            let (stdout, stderr, code) = tokio::join!(collect(session.stdout), collect(session.stderr), control.wait());
            Ok(ExecOutput { stdout, stderr, exit_code: code? })
        };
        match timeout.filter(|t| !t.is_zero()) {
            None => run.await,
            // Giving up drops the session, which kills the command.
            Some(limit) => tokio::time::timeout(limit, run)
                .await
                .unwrap_or(Err(Error::Timeout { seconds: limit.as_secs_f64(), command })),
        }
    }

    async fn exec(&self, id: &str, config: ExecConfig) -> Result<Session> {
        let (container, sandbox) = self.inner.living(id, &[ContainerState::Running])?;
        if config.command.is_empty() {
            return Err(Error::InvalidConfig { field: "command".into(), reason: "is empty".into() });
        }
        let spec: InitSpec = files::read_json(&container.dir.join(SPEC_FILE))?;
        let mut process = spec.process;
        process.args = config.command.clone();
        process.tty = config.tty;
        if config.tty && !process.env.iter().any(|v| v.starts_with("TERM=")) {
            process.env.push("TERM=xterm".into());
        }
        let exec = ExecSpec { cgroup_dirs: spec.cgroup_dirs, process };
        let file = tempfile::Builder::new().prefix("exec-").suffix(".json").tempfile_in(&container.dir);
        let file = file.ctx("creating a file in", &container.dir)?;
        files::write_json_volatile(file.path(), &exec)?;
        let link = Link::connect(&sandbox.dir, &sandbox.id())?;
        // The file goes when the helper has read it, which it has when the command runs.
        session::exec(link, &sandbox.id(), id, file.path().to_path_buf(), &config).await
    }

    async fn attach(&self, id: &str, stdin: bool, stdout: bool, stderr: bool) -> Result<Session> {
        let (container, sandbox) = self.inner.living(id, &[ContainerState::Running, ContainerState::Created])?;
        let config = &container.record.config;
        let link = Link::connect(&sandbox.dir, &sandbox.id())?;
        let streams = [stdin && config.stdin, stdout, stderr];
        session::attach(link, sandbox.dir.clone(), &sandbox.id(), id, streams, config.tty).await
    }

    async fn container_stats(&self, id: &str) -> Result<Stats> {
        let container = self.inner.container(id)?;
        blocking(move || {
            let mut stats = Cgroup::at(&container.record.cgroup)?.stats();
            (stats.writable_layer_bytes, stats.writable_layer_inodes) = disk_usage(&container.dir.join("upper"));
            Ok(stats)
        })
        .await
    }

    async fn sandbox_stats(&self, id: &str) -> Result<Stats> {
        let parent = self.inner.sandbox(id)?.record.lock().config.cgroup_parent.clone();
        blocking(move || Ok(Cgroup::at(&parent)?.stats())).await
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.inner.state.events.subscribe()
    }
}

/// Takes over what is set.
fn merge(into: &mut Resources, from: &Resources) {
    fn take<T: Clone>(into: &mut Option<T>, from: &Option<T>) {
        if from.is_some() {
            into.clone_from(from);
        }
    }
    take(&mut into.cpu_shares, &from.cpu_shares);
    take(&mut into.cpu_quota, &from.cpu_quota);
    take(&mut into.cpu_period, &from.cpu_period);
    take(&mut into.memory_limit, &from.memory_limit);
    take(&mut into.pids_limit, &from.pids_limit);
    take(&mut into.cpuset_cpus, &from.cpuset_cpus);
    into.hugepages.extend(from.hugepages.iter().map(|(k, v)| (k.clone(), *v)));
}

/// Progress as the shim left it.
fn read_progress(dir: &std::path::Path) -> crate::shim::protocol::ContainerProgress {
    // Absent until the shim has made the process.
    files::read_json(&dir.join(PROGRESS_FILE)).unwrap_or_default()
}

/// Images used by one container.
fn image_ids(record: &state::ContainerRecord) -> impl Iterator<Item = &String> {
    std::iter::once(&record.image_id).chain(&record.volume_image_ids)
}

type Volumes = BTreeMap<String, crate::images::Unpacked>;
