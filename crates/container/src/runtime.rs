//! The interface of a container runtime: sandboxes, containers, streams and events, as plain data.
//!
//! `NativeRuntime` is the implementation in this crate. Nothing here knows about pods beyond "a sandbox
//! is a group of containers that share namespaces and a parent cgroup".

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::broadcast;

use crate::error::Result;

/// How to set up a sandbox.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct SandboxConfig {
    /// Unique id, chosen by the caller: `[A-Za-z0-9][A-Za-z0-9_.-]*`, at most 128 bytes.
    pub id: String,
    /// Hostname of the UTS namespace; unused with `host_network`, where the host's is kept.
    pub hostname: String,
    /// Directory for container logs; created (0755) when missing.
    pub log_dir: PathBuf,
    /// Free labels, returned in the status.
    pub labels: BTreeMap<String, String>,
    /// Free annotations, returned in the status.
    pub annotations: BTreeMap<String, String>,
    /// Text of `/etc/resolv.conf` in every container; `None` leaves the image's. `/etc/hosts` is an ordinary mount.
    pub resolv_conf: Option<String>,
    /// Which namespaces are shared with the host or among the containers.
    pub namespaces: Namespaces,
    /// Sysctls set in the sandbox's namespaces, by dotted name (`net.ipv4.ip_local_port_range`).
    pub sysctls: BTreeMap<String, String>,
    /// Parent cgroup of the sandbox below the hierarchy root (`/gantry/kubepods/burstable/pod123`); created when missing.
    /// Containers get a child cgroup named by their id.
    pub cgroup_parent: String,
    /// Limits on the parent cgroup (the whole sandbox).
    pub resources: Resources,
}

/// Namespace sharing of a sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// Use the host's network (and UTS) namespace; no netns is made.
    pub host_network: bool,
    /// Containers see the host's processes.
    pub host_pid: bool,
    /// Containers use the host's IPC namespace and `/dev/shm`.
    pub host_ipc: bool,
    /// All containers of the sandbox share one PID namespace, whose process 1 belongs to the sandbox.
    pub shared_pid: bool,
}

/// Resource limits of a cgroup. `None` leaves a value as it is (in an update) or unlimited (at creation).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Relative weight, 2–262144 (cgroup v1 scale; converted for v2).
    pub cpu_shares: Option<u64>,
    /// CPU time per period in microseconds; -1 = unlimited.
    pub cpu_quota: Option<i64>,
    /// Length of the period in microseconds (default 100000).
    pub cpu_period: Option<u64>,
    /// Memory limit in bytes; -1 = unlimited. Swap is limited to the same value.
    pub memory_limit: Option<i64>,
    /// Greatest number of processes and threads; -1 = unlimited.
    pub pids_limit: Option<i64>,
    /// Limits in bytes by page size as the kernel writes it (`2MB`, `1GB`).
    pub hugepages: BTreeMap<String, u64>,
    /// CPUs the cgroup may use, as a list (`0-1,3`).
    pub cpuset_cpus: Option<String>,
}

/// Ready or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxState {
    /// The shim lives and the namespaces exist.
    Ready,
    /// Stopped, or its shim died.
    NotReady,
}

/// A sandbox as it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxStatus {
    /// The caller's id.
    pub id: String,
    /// Ready or not.
    pub state: SandboxState,
    /// When it was made.
    pub created_at: SystemTime,
    /// File the network namespace is pinned on (`setns`-able); `None` with `host_network`. The caller attaches interfaces.
    pub netns_path: Option<PathBuf>,
    /// Process id of the shim on the host, 0 when not running.
    pub shim_pid: i32,
    /// Namespace sharing it was made with.
    pub namespaces: Namespaces,
    /// The parent cgroup.
    pub cgroup_parent: String,
    /// Labels as given.
    pub labels: BTreeMap<String, String>,
    /// Annotations as given.
    pub annotations: BTreeMap<String, String>,
}

/// Mount propagation between host and container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// Neither side sees later mounts of the other (`None`).
    #[default]
    Private,
    /// The container sees later mounts of the host (`HostToContainer`).
    HostToContainer,
    /// Both directions (`Bidirectional`); the source is bind-mounted on itself and made shared when needed.
    Bidirectional,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A file or directory of the host; must exist.
    Bind(PathBuf),
    /// A fresh tmpfs, with an optional size in bytes.
    Tmpfs {
        /// Greatest size; the kernel's default when absent.
        size: Option<u64>,
    },
    /// The root file system of an image, or a path in it; read-only, and nothing in it can be executed.
    Image {
        /// Image reference; must be in the store.
        reference: String,
        /// A directory or file in it instead of its root. Links in it lead nowhere outside the image.
        sub_path: Option<PathBuf>,
    },
}

/// A mount in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path in the container; created when missing.
    pub destination: PathBuf,
    /// Where it comes from.
    pub source: MountSource,
    /// Mounted read-only.
    pub read_only: bool,
    /// With `read_only`: mounts below it are read-only too (`mount_setattr(AT_RECURSIVE)`).
    pub recursive_read_only: bool,
    /// Direction of propagation.
    pub propagation: Propagation,
}

impl Mount {
    /// A read-write private bind mount.
    pub fn bind(source: impl Into<PathBuf>, destination: impl Into<PathBuf>) -> Self {
        Mount {
            destination: destination.into(),
            source: MountSource::Bind(source.into()),
            read_only: false,
            recursive_read_only: false,
            propagation: Propagation::Private,
        }
    }

    /// The same, read-only.
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }
}

/// A host device made available in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Device node on the host.
    pub host_path: PathBuf,
    /// Path in the container.
    pub container_path: PathBuf,
    /// Subset of `rwm`.
    pub permissions: String,
    /// Permission bits of the node in the container; those of the host's when absent.
    #[serde(default)]
    pub mode: Option<u32>,
    /// Owner of the node in the container; that of the host's when absent.
    #[serde(default)]
    pub uid: Option<u32>,
    /// The same for its group.
    #[serde(default)]
    pub gid: Option<u32>,
}

/// Seccomp profile of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// No filter.
    #[default]
    Unconfined,
    /// The runtime's own default filter.
    RuntimeDefault,
    /// A profile file (OCI/Docker JSON) on the host.
    Localhost(PathBuf),
}

/// User, rights and confinement of a container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Security {
    /// User id; wins over `user_name` and the image's user.
    pub uid: Option<u32>,
    /// User as `name`, `uid`, `name:group` or `uid:gid`, resolved in the image; wins over the image's user.
    pub user_name: Option<String>,
    /// Primary group id; wins over the group that goes with the user.
    pub gid: Option<u32>,
    /// Further group ids.
    pub supplementary_groups: Vec<u32>,
    /// Do not add the groups the image's `/etc/group` lists for the user (policy `Strict`; `Merge` otherwise).
    pub strict_supplementary_groups: bool,
    /// Capabilities added to the default set, with or without `CAP_`; `ALL` for all.
    pub capabilities_add: Vec<String>,
    /// Capabilities removed; `ALL` for all. Removal comes first, so that `drop ALL, add X` leaves X.
    pub capabilities_drop: Vec<String>,
    /// All capabilities, all devices, no masks, no seccomp.
    pub privileged: bool,
    /// Root file system mounted read-only.
    pub read_only_root: bool,
    /// Sets `no_new_privs`.
    pub no_new_privileges: bool,
    /// Seccomp filter; ignored when privileged.
    pub seccomp: Seccomp,
    /// `procMount: Unmasked`: neither masked nor read-only paths.
    pub unmasked_proc: bool,
}

/// How to make a container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// Name within the sandbox.
    pub name: String,
    /// Attempt number; (name, attempt) is unique in the sandbox.
    pub attempt: u32,
    /// Image reference or image id; must be in the store.
    pub image: String,
    /// Replaces the image's entrypoint when not empty.
    pub command: Vec<String>,
    /// Replaces the image's arguments when not empty. With `command` set, the image's arguments are dropped too.
    pub args: Vec<String>,
    /// Environment; wins over the image's variables of the same name.
    pub env: Vec<(String, String)>,
    /// Working directory; the image's, or `/`, when absent. Created when missing.
    pub working_dir: Option<PathBuf>,
    /// Mounts in order.
    pub mounts: Vec<Mount>,
    /// Host devices.
    pub devices: Vec<Device>,
    /// User, capabilities, confinement.
    pub security: Security,
    /// Keep a stdin open for attach.
    pub stdin: bool,
    /// Close stdin when the first attached session ends.
    pub stdin_once: bool,
    /// Give it a terminal.
    pub tty: bool,
    /// Limits of its own cgroup.
    pub resources: Resources,
    /// `oom_score_adj`, clamped to what the runtime may set.
    pub oom_score_adj: i32,
    /// Absolute path of the log file (CRI format); directories are created. `None` discards output.
    pub log_path: Option<PathBuf>,
    /// Signal name or number for a graceful stop (`SIGUSR1`, `10`); the image's `StopSignal`, or SIGTERM, when absent.
    pub stop_signal: Option<String>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// Free annotations.
    pub annotations: BTreeMap<String, String>,
    /// Id of a running container of the sandbox whose PID namespace this one joins, where the sandbox does not share one.
    #[serde(default)]
    pub joins: Option<String>,
}

/// Life of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Its process runs.
    Running,
    /// Its process ended (or could not be started).
    Exited,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, 128 + signal when killed by one.
    pub code: i32,
    /// The signal, 0 when it exited.
    pub signal: i32,
    /// The kernel's OOM killer killed a process of the container during its life and the container ended by SIGKILL.
    pub oom_killed: bool,
    /// `OOMKilled`, `Completed` (code 0), `Error`, `StartError` (the program could not be executed: code 128 and
    /// [`Exit::message`] says why) or `ContainerStatusUnknown` (its shim was lost: code 137).
    pub reason: String,
    /// More than the reason, or empty.
    pub message: String,
    /// When it ended.
    pub finished_at: SystemTime,
}

/// A container as it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// The runtime's id (64 hex digits).
    pub id: String,
    /// Its sandbox.
    pub sandbox_id: String,
    /// Name within the sandbox.
    pub name: String,
    /// Attempt number.
    pub attempt: u32,
    /// State.
    pub state: ContainerState,
    /// When it was created.
    pub created_at: SystemTime,
    /// When it was started.
    pub started_at: Option<SystemTime>,
    /// How it ended.
    pub exit: Option<Exit>,
    /// Host process id while created or running, else 0.
    pub pid: i32,
    /// The image as given in the configuration.
    pub image: String,
    /// `sha256:…` of the image configuration.
    pub image_id: String,
    /// The log file.
    pub log_path: Option<PathBuf>,
    /// Mounts as given.
    pub mounts: Vec<Mount>,
    /// Limits now in force.
    pub resources: Resources,
    /// User id the process runs with.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// All supplementary groups.
    pub supplementary_groups: Vec<u32>,
    /// Signal of a graceful stop.
    pub stop_signal: i32,
    /// Stdin is kept open.
    pub stdin: bool,
    /// Has a terminal.
    pub tty: bool,
    /// Labels as given.
    pub labels: BTreeMap<String, String>,
    /// Annotations as given.
    pub annotations: BTreeMap<String, String>,
}

/// What to run in an existing container.
#[derive(Debug, Clone, Default)]
pub struct ExecConfig {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Give it a terminal; stderr then goes to stdout.
    pub tty: bool,
    /// Connect stdin.
    pub stdin: bool,
    /// Connect stdout.
    pub stdout: bool,
    /// Connect stderr.
    pub stderr: bool,
}

/// Result of [`Runtime::exec_sync`]. Output beyond 16 MiB per stream is dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Exit code, 128 + signal when killed.
    pub exit_code: i32,
}

/// Streams of a running exec or attach. Dropping it detaches; an exec's process is killed then.
pub struct Session {
    /// Writes to the process' stdin; shutting it down closes that stdin.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// The process' stdout (and stderr, with a terminal) until its end.
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// The process' stderr until its end.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Resize and wait.
    pub control: Arc<dyn SessionControl>,
}

/// The session type of exec and attach.
pub type ExecSession = Session;

/// Out-of-band control of a [`Session`].
#[async_trait]
pub trait SessionControl: Send + Sync {
    /// Sets the terminal's size; nothing happens without a terminal.
    async fn resize(&self, columns: u16, rows: u16) -> Result<()>;
    /// Waits for the end: of the exec's process, or of the container for an attach. 128 + signal when killed.
    async fn wait(&self) -> Result<i32>;
}

/// Memory, CPU and processes of a cgroup at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// When it was read.
    pub at: SystemTime,
    /// CPU time used since creation, nanoseconds.
    pub cpu_ns: u64,
    /// Memory charged, bytes, page cache included.
    pub memory_usage: u64,
    /// Memory charged without inactive file pages, bytes.
    pub memory_working_set: u64,
    /// Anonymous memory, bytes.
    pub memory_rss: u64,
    /// Limit in bytes, `None` when unlimited.
    pub memory_limit: Option<u64>,
    /// Page faults.
    pub page_faults: u64,
    /// Major page faults.
    pub major_page_faults: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes in the writable layer (0 for a sandbox' own stats).
    pub writable_layer_bytes: u64,
    /// Inodes in the writable layer.
    pub writable_layer_inodes: u64,
}

/// What happened, for [`Runtime::events`].
#[derive(Debug, Clone)]
pub enum RuntimeEvent {
    /// A container's process ended; its status is on disk.
    ContainerExited {
        /// Sandbox id.
        sandbox_id: String,
        /// Container id.
        container_id: String,
        /// How it ended.
        exit: Exit,
    },
    /// The kernel killed a process in a container for want of memory; the container may live on.
    ContainerOom {
        /// Sandbox id.
        sandbox_id: String,
        /// Container id.
        container_id: String,
    },
    /// A sandbox' shim ended without having been asked to.
    SandboxExited {
        /// Sandbox id.
        sandbox_id: String,
    },
}

/// Restricts a list of containers.
#[derive(Debug, Clone, Default)]
pub struct ContainerFilter {
    /// Only of this sandbox.
    pub sandbox_id: Option<String>,
    /// Only in this state.
    pub state: Option<ContainerState>,
}

/// A container runtime. All calls may be made concurrently; calls on one container are taken in turn.
#[async_trait]
pub trait Runtime: Send + Sync {
    /// Makes a sandbox: cgroup, namespaces, shim. The caller attaches the network to `netns_path` afterwards.
    async fn run_sandbox(&self, config: SandboxConfig) -> Result<SandboxStatus>;
    /// Kills what still runs in it, ends the shim, unpins the namespaces. Idempotent; an unknown id is no error.
    async fn stop_sandbox(&self, id: &str) -> Result<()>;
    /// Stops it if needed, removes its containers, its state and the cgroups made for it. Idempotent.
    async fn remove_sandbox(&self, id: &str) -> Result<()>;
    /// All sandboxes.
    async fn list_sandboxes(&self) -> Result<Vec<SandboxStatus>>;
    /// One sandbox.
    async fn sandbox_status(&self, id: &str) -> Result<SandboxStatus>;
    /// Sets new limits on a sandbox' parent cgroup.
    async fn update_sandbox_resources(&self, id: &str, resources: Resources) -> Result<()>;

    /// Makes a container (root file system, cgroup, process waiting for its start) and returns its id.
    async fn create_container(&self, sandbox_id: &str, config: ContainerConfig) -> Result<String>;
    /// Executes its program. When that fails (no such file, not executable) the error is [`crate::Error::Start`] and the
    /// container is `Exited` with reason `StartError`.
    async fn start_container(&self, id: &str) -> Result<()>;
    /// Sends the stop signal, and SIGKILL to all its processes after `grace`; returns when it has ended. Idempotent.
    async fn stop_container(&self, id: &str, grace: Duration) -> Result<()>;
    /// Sends a signal to its first process.
    async fn kill_container(&self, id: &str, signal: i32) -> Result<()>;
    /// Kills it if it runs, removes its writable layer, cgroup and state (not its log). Idempotent.
    async fn remove_container(&self, id: &str) -> Result<()>;
    /// Containers, oldest first.
    async fn list_containers(&self, filter: ContainerFilter) -> Result<Vec<ContainerStatus>>;
    /// One container.
    async fn container_status(&self, id: &str) -> Result<ContainerStatus>;
    /// Sets new limits on a living container; the status shows them afterwards.
    async fn update_resources(&self, id: &str, resources: Resources) -> Result<()>;
    /// Makes the shim open the log file again after it was renamed.
    async fn reopen_log(&self, id: &str) -> Result<()>;

    /// Runs a command to its end. [`crate::Error::Timeout`] when it takes longer; its processes are killed then.
    async fn exec_sync(&self, id: &str, command: Vec<String>, timeout: Option<Duration>) -> Result<ExecOutput>;
    /// Runs a command with streams.
    async fn exec(&self, id: &str, config: ExecConfig) -> Result<Session>;
    /// Connects to the streams of the container's first process.
    async fn attach(&self, id: &str, stdin: bool, stdout: bool, stderr: bool) -> Result<Session>;

    /// Usage of a container.
    async fn container_stats(&self, id: &str) -> Result<Stats>;
    /// Usage of a whole sandbox (its parent cgroup).
    async fn sandbox_stats(&self, id: &str) -> Result<Stats>;

    /// Events from now on. A receiver that lags learns so and should list.
    fn events(&self) -> broadcast::Receiver<RuntimeEvent>;
}
