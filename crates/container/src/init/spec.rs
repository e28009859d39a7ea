//! What the helper inside a container is told: plain data, written to a file by the main process.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::runtime::Propagation;

/// File name of a container's [`InitSpec`] in its state directory.
pub const SPEC_FILE: &str = "spec.json";

/// Everything needed to set up a container's first process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InitSpec {
    /// Its cgroup's directories, joined before anything else.
    pub cgroup_dirs: Vec<PathBuf>,
    /// What to show under `/sys/fs/cgroup`.
    pub cgroup_view: CgroupView,
    /// Which PID namespace.
    pub pid_namespace: PidNamespace,
    /// The root file system.
    pub root: RootFs,
    /// Mount the root read-only at last.
    pub read_only_root: bool,
    /// Mounts besides the standard ones, in order.
    pub mounts: Vec<InitMount>,
    /// `/dev/shm` of the sandbox.
    pub shm: PathBuf,
    /// Device nodes besides the standard ones.
    pub devices: Vec<DeviceNode>,
    /// `/sys` writable.
    pub writable_sys: bool,
    /// Paths hidden from the container.
    pub masked_paths: Vec<PathBuf>,
    /// Paths made read-only.
    pub read_only_paths: Vec<PathBuf>,
    /// The process.
    pub process: ProcessSpec,
}

/// Overlay of image layers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RootFs {
    /// Directory that holds the layer directories; they are named relative to it to keep the mount options short.
    pub layers_dir: PathBuf,
    /// Layer directory names, topmost first.
    pub layers: Vec<String>,
    /// Writable layer.
    pub upper: PathBuf,
    /// Overlayfs' work directory.
    pub work: PathBuf,
    /// Empty directory to mount on (in the container's own mount namespace only).
    pub target: PathBuf,
}

/// `/sys/fs/cgroup` in the container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum CgroupView {
    /// Version 2: the container's own cgroup namespace.
    V2,
    /// Version 1: (controller, the container's directory).
    V1(Vec<(String, PathBuf)>),
}

/// PID namespace of a container.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum PidNamespace {
    /// A new one.
    Own,
    /// The host's.
    Host,
    /// That of the process with this id: the sandbox' first one, or another container's.
    Of(i32),
}

/// Source of an [`InitMount`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum InitMountSource {
    /// A host path.
    Bind(PathBuf),
    /// A tmpfs.
    Tmpfs {
        /// Bytes.
        size: Option<u64>,
    },
    /// Image layers, read-only and not executable.
    Layers {
        /// Directory that holds the layer directories.
        dir: PathBuf,
        /// Layer directory names, topmost first.
        layers: Vec<String>,
        /// What of the image is mounted; all of it when absent.
        sub_path: Option<PathBuf>,
    },
}

/// A mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InitMount {
    /// Where it comes from.
    pub source: InitMountSource,
    /// Absolute path in the container.
    pub destination: PathBuf,
    /// Read-only.
    pub read_only: bool,
    /// Read-only below it too.
    pub recursive_read_only: bool,
    /// Direction of propagation.
    pub propagation: Propagation,
}

/// A device node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Absolute path in the container.
    pub path: PathBuf,
    /// Mode with type bits.
    pub mode: u32,
    /// Device number.
    pub rdev: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A program to execute and with which rights.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Program and arguments.
    pub args: Vec<String>,
    /// `KEY=value`.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: PathBuf,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// All supplementary groups.
    pub groups: Vec<u32>,
    /// Bit mask of the bounding set (and, for root, of the permitted and effective sets).
    pub capabilities: u64,
    /// `no_new_privs`.
    pub no_new_privileges: bool,
    /// Compiled seccomp filters: each instruction is the eight bytes of a `sock_filter` as a little-endian number.
    pub seccomp: Vec<Vec<u64>>,
    /// OOM score adjustment wanted.
    pub oom_score_adj: i32,
    /// Give it a terminal, whose master is sent to the shim.
    pub tty: bool,
    /// Limit of open files (soft and hard), clamped to what may be set.
    pub open_files: u64,
}

/// What an exec is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecSpec {
    /// The container's cgroup directories.
    pub cgroup_dirs: Vec<PathBuf>,
    /// The process.
    pub process: ProcessSpec,
}

/// Messages between a helper (or the process it leaves behind) and the shim.
///
/// The helper sends `Pid`; the new process sends `Terminal` (with a descriptor) if it has one, then `Ready`, waits for
/// `Start` (not for an exec), and executes its program, which closes the socket. `Failed` may come at any point.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum InitMessage {
    /// Host process id of the new process.
    Pid(i32),
    /// The terminal's master is attached.
    Terminal,
    /// Set up.
    Ready,
    /// Go.
    Start,
    /// It did not work.
    Failed(String),
}
