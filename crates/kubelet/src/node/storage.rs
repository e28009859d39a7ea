//! Limits on local storage: `emptyDir` size limits and containers' `ephemeral-storage`, measured by walking.

use crate::agent::Agent;
use crate::logs;
use crate::pod::manager::Manager;
use crate::pod::names;
use crate::pod::status::Verdict;
use gantry_api::meta::quantity::{Amount, amount_of};
use gantry_container::runtime::ContainerFilter;
use k8s_openapi::api::core::v1::Pod;
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Bytes on disk below a directory; links are not followed, other file systems not entered.
fn usage(directory: &Path) -> u64 {
    let Ok(top) = std::fs::symlink_metadata(directory) else { return 0 };
    let mut total = 0;
    let mut pending = vec![directory.to_path_buf()];
    while let Some(at) = pending.pop() {
        // What vanishes while it is measured counts as nothing.
        let Ok(entries) = std::fs::read_dir(&at) else { continue };
        for entry in entries.flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            total += meta.blocks() * 512;
            if meta.is_dir() && meta.dev() == top.dev() {
                pending.push(entry.path());
            }
        }
    }
    total
}

/// The pod's disk-backed `emptyDir` volumes that have a limit, with their directories.
fn limited(pod: &Pod, directory: &Path) -> Vec<(String, Amount, PathBuf)> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let limited = volumes.filter_map(|v| {
        let empty = v.empty_dir.as_ref()?;
        // A file system in memory enforces its own size.
        if empty.medium.as_deref() == Some("Memory") {
            return None;
        }
        let limit = Amount::parse(&empty.size_limit.as_ref()?.0).ok().filter(|l| l.value() > 0)?;
        Some((v.name.clone(), limit, directory.join("volumes/kubernetes.io~empty-dir").join(&v.name)))
    });
    limited.collect()
}

fn storage_limits(pod: &Pod) -> HashMap<&str, Amount> {
    let containers = pod.spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let limits = containers.filter_map(|c| {
        let limit = amount_of(c.resources.as_ref()?.limits.as_ref(), "ephemeral-storage");
        (!limit.is_zero()).then_some((c.name.as_str(), limit))
    });
    limits.collect()
}

async fn exceeded(agent: &Agent, pod: &Pod) -> Option<String> {
    for (name, limit, path) in limited(pod, &agent.pod_directory(names::uid(pod))) {
        let used = tokio::task::spawn_blocking(move || usage(&path)).await.ok()?;
        if i128::from(used) > i128::from(limit.value()) {
            return Some(format!("Usage of EmptyDir volume {name:?} exceeds the limit {:?}. ", limit.to_string()));
        }
    }
    let limits = storage_limits(pod);
    if limits.is_empty() {
        return None;
    }
    let all = agent.runtime.list_containers(ContainerFilter::default()).await.ok()?;
    let uid = names::uid(pod);
    for c in all.iter().filter(|c| c.labels.get(names::POD_UID).is_some_and(|u| u == uid)) {
        let Some(limit) = limits.get(c.name.as_str()) else { continue };
        let layer = agent.runtime.container_stats(&c.id).await.map_or(0, |s| s.writable_layer_bytes);
        let files = c.log_path.as_ref().and_then(|p| logs::files(p).ok()).unwrap_or_default();
        let log: u64 = files.iter().filter_map(|p| std::fs::metadata(p).ok()).map(|m| m.len()).sum();
        if i128::from(layer + log) > i128::from(limit.value()) {
            let limit = limit.to_string();
            return Some(format!("Container {} exceeded its local ephemeral storage limit {limit:?}. ", c.name));
        }
    }
    None
}

/// Evicts pods that use more local storage than they may.
pub(crate) async fn enforce(agent: &Arc<Agent>, manager: &Manager) {
    for pod in manager.list() {
        if let Some(message) = exceeded(agent, &pod).await {
            tracing::warn!(pod = %names::pod_description(&pod), message, "evicting a pod");
            agent.recorder.warning(&*pod, "Evicted", &message);
            let verdict = Verdict { reason: "Evicted".into(), message, disruption: true };
            manager.evict(names::uid(&pod), verdict, Duration::from_secs(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::json;

    #[test]
    fn usage_counts_blocks_below() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(usage(&dir.path().join("none")), 0);
        std::fs::create_dir(dir.path().join("d")).unwrap();
        let before = usage(dir.path());
        std::fs::write(dir.path().join("d/f"), vec![1u8; 100_000]).unwrap();
        assert!(usage(dir.path()) >= before + 100_000);
    }

    #[test]
    fn limits_of_disk_volumes_and_containers() {
        let pod = Pod::from_value(json!({"metadata": {"name": "p"}, "spec": {
            "volumes": [{"name": "a", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "b", "emptyDir": {}},
                        {"name": "c", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
            "containers": [{"name": "x", "resources": {"limits": {"ephemeral-storage": "2Mi"}}}, {"name": "y"}]}}))
        .unwrap();
        let found = limited(&pod, Path::new("/p"));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].0.as_str(), found[0].1.value()), ("a", 1 << 20));
        assert_eq!(storage_limits(&pod).keys().collect::<Vec<_>>(), [&"x"]);
    }
}
