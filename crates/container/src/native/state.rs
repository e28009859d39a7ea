//! What the runtime knows of its sandboxes and containers, in memory and on disk.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::SystemTime;

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

use crate::runtime::{
    ContainerConfig, ContainerState, ContainerStatus, Exit, Resources, RuntimeEvent, SandboxState, SandboxStatus,
};
use crate::shim::protocol::{ContainerProgress, SandboxRecord};

/// [`ContainerRecord`] in a container's directory.
pub(super) const RECORD_FILE: &str = "container.json";

/// A container as kept on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ContainerRecord {
    pub(super) version: u32,
    pub(super) id: String,
    pub(super) sandbox_id: String,
    pub(super) config: ContainerConfig,
    pub(super) image_id: String,
    /// Images mounted as volumes.
    pub(super) volume_image_ids: Vec<String>,
    pub(super) created_at: SystemTime,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) stop_signal: i32,
    pub(super) cgroup: String,
    /// Host paths bind-mounted on themselves for the sake of mount propagation.
    pub(super) shared_mounts: Vec<PathBuf>,
}

pub(super) struct Container {
    pub(super) record: ContainerRecord,
    pub(super) dir: PathBuf,
    pub(super) resources: Mutex<Resources>,
    pub(super) progress: watch::Sender<ContainerProgress>,
}

impl Container {
    pub(super) fn new(record: ContainerRecord, dir: PathBuf, progress: ContainerProgress) -> Arc<Container> {
        let resources = Mutex::new(record.config.resources.clone());
        Arc::new(Container { record, dir, resources, progress: watch::Sender::new(progress) })
    }

    pub(super) fn state(&self) -> ContainerState {
        let progress = self.progress.borrow();
        match (&progress.exit, progress.started_at) {
            (Some(_), _) => ContainerState::Exited,
            (None, Some(_)) => ContainerState::Running,
            (None, None) => ContainerState::Created,
        }
    }

    pub(super) fn status(&self) -> ContainerStatus {
        let r = &self.record;
        let state = self.state();
        let progress = self.progress.borrow().clone();
        ContainerStatus {
            id: r.id.clone(),
            sandbox_id: r.sandbox_id.clone(),
            name: r.config.name.clone(),
            attempt: r.config.attempt,
            state,
            created_at: r.created_at,
            started_at: progress.started_at,
            pid: if progress.exit.is_some() { 0 } else { progress.pid },
            exit: progress.exit,
            image: r.config.image.clone(),
            image_id: r.image_id.clone(),
            log_path: r.config.log_path.clone(),
            mounts: r.config.mounts.clone(),
            resources: self.resources.lock().clone(),
            uid: r.uid,
            gid: r.gid,
            supplementary_groups: r.groups.clone(),
            stop_signal: r.stop_signal,
            stdin: r.config.stdin,
            tty: r.config.tty,
            labels: r.config.labels.clone(),
            annotations: r.config.annotations.clone(),
        }
    }

    /// Waits for the end.
    pub(super) async fn ended(&self) {
        // The sender is ours, so this cannot fail while we live.
        let _ = self.progress.subscribe().wait_for(|p| p.exit.is_some()).await;
    }
}

pub(super) struct Sandbox {
    pub(super) record: Mutex<SandboxRecord>,
    pub(super) dir: PathBuf,
    pub(super) shim_pid: AtomicI32,
    pub(super) ready: AtomicBool,
    /// Follows the shim's events; ends with it.
    pub(super) monitor: Mutex<Option<JoinHandle<()>>>,
    /// Serializes what changes the sandbox as a whole.
    pub(super) turn: tokio::sync::Mutex<()>,
}

impl Sandbox {
    pub(super) fn status(&self) -> SandboxStatus {
        let record = self.record.lock();
        let ready = self.ready.load(Ordering::Acquire);
        SandboxStatus {
            id: record.config.id.clone(),
            state: if ready { SandboxState::Ready } else { SandboxState::NotReady },
            created_at: record.created_at,
            netns_path: record.netns_path.clone(),
            shim_pid: if ready { self.shim_pid.load(Ordering::Acquire) } else { 0 },
            namespaces: record.config.namespaces,
            cgroup_parent: record.config.cgroup_parent.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        }
    }

    pub(super) fn id(&self) -> String {
        self.record.lock().config.id.clone()
    }
}

/// All of it.
pub(super) struct State {
    pub(super) sandboxes: RwLock<BTreeMap<String, Arc<Sandbox>>>,
    pub(super) containers: RwLock<BTreeMap<String, Arc<Container>>>,
    pub(super) events: broadcast::Sender<RuntimeEvent>,
    /// Host paths bind-mounted on themselves to be shared, and how many containers need each.
    pub(super) shared_mounts: Mutex<BTreeMap<PathBuf, usize>>,
}

impl State {
    pub(super) fn new() -> State {
        // A receiver that falls this far behind lists anew.
        let (events, _) = broadcast::channel(1024);
        State { sandboxes: RwLock::default(), containers: RwLock::default(), events, shared_mounts: Mutex::default() }
    }

    pub(super) fn emit(&self, event: RuntimeEvent) {
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }

    /// Notes the end of a container, once.
    pub(super) fn ended(&self, container: &Container, exit: Exit) {
        let first = container.progress.send_if_modified(|p| {
            if p.exit.is_some() {
                return false;
            }
            p.exit = Some(exit.clone());
            true
        });
        if first {
            self.emit(RuntimeEvent::ContainerExited {
                sandbox_id: container.record.sandbox_id.clone(),
                container_id: container.record.id.clone(),
                exit,
            });
        }
    }

    pub(super) fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        self.containers.read().values().filter(|c| c.record.sandbox_id == sandbox).cloned().collect()
    }
}
