//! What the main process and a shim say to each other, and the files both know.
//!
//! One connection serves one request; `Subscribe`, `Exec` and `Attach` connections stay open and carry further replies.

use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::runtime::{Exit, SandboxConfig};

/// Socket of a shim in the sandbox' directory.
pub const SOCKET_FILE: &str = "shim.sock";
/// [`SandboxRecord`] in the sandbox' directory.
pub const SANDBOX_FILE: &str = "sandbox.json";
/// [`ShimContainer`] in a container's directory.
pub const CONTAINER_FILE: &str = "shim.json";
/// [`ContainerProgress`] in a container's directory, written by the shim.
pub const PROGRESS_FILE: &str = "status.json";

/// A sandbox as kept on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// Version of this record's layout.
    pub version: u32,
    /// What the caller asked for.
    pub config: SandboxConfig,
    /// When it was made.
    pub created_at: SystemTime,
    /// Where to pin the network namespace; `None` with the host's network.
    pub netns_path: Option<PathBuf>,
    /// Directory that holds the containers' directories.
    pub containers_dir: PathBuf,
    /// Directories of the cgroup the shim itself lives in.
    pub shim_cgroup_dirs: Vec<PathBuf>,
    /// It was stopped on purpose.
    pub stopped: bool,
}

/// What a shim needs to know of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ShimContainer {
    /// Keep a stdin.
    pub stdin: bool,
    /// Close it when the first attached session ends.
    pub stdin_once: bool,
    /// It has a terminal.
    pub tty: bool,
    /// Log file.
    pub log_path: Option<PathBuf>,
    /// Its cgroup below the hierarchy root.
    pub cgroup: String,
    /// Its processes can outlive the first one (no PID namespace of its own) and must be killed then.
    pub kill_rest: bool,
}

/// How far a container is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ContainerProgress {
    /// Host process id of the first process.
    pub pid: i32,
    /// When it was started.
    pub started_at: Option<SystemTime>,
    /// How it ended.
    pub exit: Option<Exit>,
}

/// To the shim.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// Answered by `Snapshot`, then by events for as long as the connection lasts.
    Subscribe,
    /// Set up a container whose directory has been filled. Answered by `Created`.
    Create {
        /// Container id.
        container: String,
    },
    /// Execute its program.
    Start {
        /// Container id.
        container: String,
    },
    /// Send a signal.
    Signal {
        /// Container id.
        container: String,
        /// The signal.
        signal: i32,
        /// To all its processes.
        all: bool,
    },
    /// Run a command. Descriptors: stdin, stdout, stderr (none with a terminal). Answered by `Started` (with the
    /// terminal's master), then `Exited`. Closing the connection kills it.
    Exec {
        /// Container id.
        container: String,
        /// File with the `ExecSpec`, to be kept until the answer.
        spec: PathBuf,
        /// With a terminal.
        tty: bool,
    },
    /// Copy the container's streams to and from the descriptors given, in this order. Answered by `Ok`, then `Exited`.
    Attach {
        /// Container id.
        container: String,
        /// A descriptor to read from.
        stdin: bool,
        /// A descriptor to write to.
        stdout: bool,
        /// A descriptor to write to.
        stderr: bool,
    },
    /// Size of the container's terminal.
    Resize {
        /// Container id.
        container: String,
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// Open the log file anew.
    ReopenLog {
        /// Container id.
        container: String,
    },
    /// Forget an ended container.
    Forget {
        /// Container id.
        container: String,
    },
    /// Kill everything and end.
    Shutdown,
}

/// From the shim.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Ok,
    /// It did not work.
    Error {
        /// Why.
        message: String,
        /// The container is unknown.
        not_found: bool,
        /// Failed inside the new process.
        start: bool,
    },
    /// The container waits for its start.
    Created {
        /// Host process id.
        pid: i32,
    },
    /// First answer to `Subscribe`.
    Snapshot {
        /// Process id of the shim.
        pid: i32,
        /// First process of the shared PID namespace, 0 when there is none.
        pause: i32,
        /// Ids of the containers it has.
        containers: Vec<String>,
    },
    /// An exec runs.
    Started,
    /// An exec or the attached container ended; 128 + signal when killed.
    Exited {
        /// Exit code.
        code: i32,
    },
    /// Event: a container ended.
    ContainerExited {
        /// Container id.
        container: String,
        /// How.
        exit: Exit,
    },
    /// Event: the kernel killed a process of a container for want of memory.
    ContainerOom {
        /// Container id.
        container: String,
    },
}
