//! What pods use of what may run short.

use crate::agent::Agent;
use crate::logs;
use crate::pod::names;
use gantry_container::runtime::{ContainerFilter, SandboxState};
use k8s_openapi::api::core::v1::Pod;
use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Disk space and entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Disk {
    pub bytes: u64,
    pub inodes: u64,
}

impl std::ops::AddAssign for Disk {
    fn add_assign(&mut self, other: Disk) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
    }
}

/// What one container uses: its newest attempt's memory and disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ContainerUsage {
    pub name: String,
    pub memory: u64,
    /// Writable layer and logs.
    pub disk: Disk,
}

/// What a pod uses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PodUsage {
    pub memory: u64,
    pub processes: u64,
    /// Containers, earlier attempts included, and volumes on the node's disk.
    pub disk: Disk,
    /// By volume name.
    pub volumes: HashMap<String, u64>,
    pub containers: Vec<ContainerUsage>,
}

/// What is on disk below a directory; links are not followed, other file systems not entered, hard links count once.
pub(crate) fn of_directory(directory: &Path) -> Disk {
    let mut total = Disk::default();
    let Ok(top) = std::fs::symlink_metadata(directory) else { return total };
    let mut linked = HashSet::new();
    let mut pending = vec![directory.to_path_buf()];
    while let Some(at) = pending.pop() {
        // What vanishes while it is measured counts as nothing.
        let Ok(entries) = std::fs::read_dir(&at) else { continue };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.nlink() > 1 && !meta.is_dir() && !linked.insert(meta.ino()) {
                continue;
            }
            total += Disk { bytes: meta.blocks() * 512, inodes: 1 };
            if meta.is_dir() && meta.dev() == top.dev() {
                pending.push(entry.path());
            }
        }
    }
    total
}

/// The pod's volumes that lie on the node's disk.
fn local_volumes(pod: &Pod, directory: &Path) -> Vec<(String, PathBuf)> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let local = volumes.filter_map(|v| {
        let plugin = match (&v.empty_dir, &v.config_map) {
            // A file system in memory enforces its own size.
            (Some(e), _) if e.medium.as_deref() == Some("Memory") => return None,
            (Some(_), _) => "kubernetes.io~empty-dir",
            (_, Some(_)) => "kubernetes.io~configmap",
            _ => return None,
        };
        Some((v.name.clone(), directory.join("volumes").join(plugin).join(&v.name)))
    });
    local.collect()
}

/// Measures one pod; `None` where the runtime has nothing of it.
pub(crate) async fn of_pod(agent: &Arc<Agent>, pod: &Pod) -> Option<PodUsage> {
    let uid = names::uid(pod);
    let mut usage = PodUsage::default();
    let mut found = false;
    for sandbox in agent.runtime.list_sandboxes().await.ok()? {
        if sandbox.labels.get(names::POD_UID).is_none_or(|u| u != uid) {
            continue;
        }
        found = true;
        if sandbox.state == SandboxState::Ready
            && let Ok(stats) = agent.runtime.sandbox_stats(&sandbox.id).await
        {
            usage.memory += stats.memory_working_set;
            usage.processes += stats.pids;
        }
        let filter = ContainerFilter { sandbox_id: Some(sandbox.id.clone()), state: None };
        for c in agent.runtime.list_containers(filter).await.ok()? {
            let stats = agent.runtime.container_stats(&c.id).await.ok();
            let mut disk = stats.as_ref().map_or_else(Disk::default, |s| Disk {
                bytes: s.writable_layer_bytes,
                inodes: s.writable_layer_inodes,
            });
            for file in c.log_path.as_ref().and_then(|p| logs::files(p).ok()).unwrap_or_default() {
                if let Ok(meta) = std::fs::metadata(file) {
                    disk += Disk { bytes: meta.blocks() * 512, inodes: 1 };
                }
            }
            usage.disk += disk;
            let one = ContainerUsage { name: c.name.clone(), memory: stats.map_or(0, |s| s.memory_working_set), disk };
            // Oldest first: the newest attempt is the container.
            match usage.containers.iter_mut().find(|u| u.name == c.name) {
                Some(known) => *known = one,
                None => usage.containers.push(one),
            }
        }
    }
    if !found {
        return None;
    }
    let volumes = local_volumes(pod, &agent.pod_directory(uid));
    let measured = tokio::task::spawn_blocking(move || {
        volumes.into_iter().map(|(name, path)| (name, of_directory(&path))).collect::<Vec<_>>()
    });
    for (name, disk) in measured.await.ok()? {
        usage.disk += disk;
        usage.volumes.insert(name, disk.bytes);
    }
    Some(usage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::json;

    #[test]
    fn blocks_below_count_and_links_once() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(of_directory(&dir.path().join("none")), Disk::default());
        std::fs::create_dir(dir.path().join("d")).unwrap();
        let before = of_directory(dir.path());
        std::fs::write(dir.path().join("d/f"), vec![1u8; 100_000]).unwrap();
        let after = of_directory(dir.path());
        assert!(after.bytes >= before.bytes + 100_000 && after.inodes == before.inodes + 1);
        std::fs::hard_link(dir.path().join("d/f"), dir.path().join("d/g")).unwrap();
        assert_eq!(of_directory(dir.path()).inodes, after.inodes);
    }

    #[test]
    fn volumes_on_disk() {
        let pod = Pod::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [], "volumes": [
            {"name": "a", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "b", "configMap": {"name": "x"}},
            {"name": "c", "emptyDir": {"medium": "Memory"}}, {"name": "d", "secret": {"secretName": "s"}}]}}))
        .unwrap();
        let names: Vec<_> = local_volumes(&pod, Path::new("/p")).into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, ["a", "b"]);
    }
}
