//! The node's part of the built-in provisioner: removes the directories of volumes whose claims are gone, then the
//! volumes themselves. Directories are made when they are first mounted.

use crate::agent::Agent;
use gantry_api::meta::object::Meta;
use gantry_api::storage::binding;
use gantry_client::{Api, DeleteParams};
use gantry_reconcile::{Change, Informer, Queue};
use k8s_openapi::api::core::v1::PersistentVolume;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The selector of the volumes whose directories are this node's.
pub(crate) fn selector(node: &str) -> String {
    format!("{}={node}", binding::LOCAL_PATH_NODE)
}

/// The directory to remove: that of a volume whose claim is gone and which is not to be kept. Only ever a directory that
/// this agent made itself.
fn to_remove(volume: &PersistentVolume, root: &Path) -> Option<PathBuf> {
    let spec = volume.spec.as_ref()?;
    let ours = volume.metadata.annotation(binding::PROVISIONED_BY) == Some(binding::LOCAL_PATH);
    let released = matches!(volume.status.as_ref()?.phase.as_deref(), Some("Released" | "Failed"));
    let deleted = spec.persistent_volume_reclaim_policy.as_deref() == Some("Delete");
    let path = root.join(volume.metadata.name());
    (ours && released && deleted && Path::new(&spec.local.as_ref()?.path) == path).then_some(path)
}

/// Runs until it is dropped.
pub(crate) async fn run(agent: Arc<Agent>, volumes: Informer<PersistentVolume>) {
    let queue = Queue::new("local-path");
    let root = agent.cfg.local_volumes_directory();
    // Directories of volumes that somebody else deleted, and were gone with their claims before they were looked at.
    let left: Arc<Mutex<BTreeMap<String, PathBuf>>> = Arc::default();
    let (keys, orphans, below) = (queue.clone(), left.clone(), root.clone());
    volumes.on_change(move |change| {
        let name = change.object().metadata.name().to_owned();
        if let Change::Deleted(volume) = change
            && let Some(path) = to_remove(volume, &below)
        {
            orphans.lock().insert(name.clone(), path);
        }
        keys.add(name);
    });
    let api = Api::<PersistentVolume>::all(agent.client.clone());
    while let Some(name) = queue.get().await {
        let volume = volumes.get("", &name);
        let path = match &volume {
            Some(volume) => to_remove(volume, &root),
            None => left.lock().get(&name).cloned(),
        };
        let outcome = match path {
            Some(path) => remove(&api, volume.as_deref(), path).await,
            None => Ok(()),
        };
        match outcome {
            Ok(()) => {
                left.lock().remove(&name);
                queue.forget(&name);
            }
            Err(error) => {
                tracing::warn!(volume = name, error, "cannot remove a volume");
                if let Some(volume) = &volume {
                    agent.recorder.warning(volume.as_ref(), "VolumeFailedDelete", &error);
                }
                queue.add_rate_limited(name.clone());
            }
        }
        queue.done(&name);
    }
}

/// Removes the directory, then the volume where it is still there and nobody has deleted it.
async fn remove(api: &Api<PersistentVolume>, volume: Option<&PersistentVolume>, path: PathBuf) -> Result<(), String> {
    let removed = tokio::task::spawn_blocking(move || match std::fs::remove_dir_all(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(format!("remove {}: {e}", path.display())),
        _ => Ok(()),
    });
    removed.await.map_err(|e| e.to_string())??;
    let Some(volume) = volume.filter(|v| !v.metadata.is_deleting()) else { return Ok(()) };
    let params = DeleteParams { precondition_uid: volume.metadata.uid.clone(), ..DeleteParams::default() };
    match api.delete(volume.metadata.name(), &params).await {
        Ok(_) => Ok(()),
        Err(e) if e.is("NotFound") || e.is("Conflict") => Ok(()),
        Err(e) => Err(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::json;

    #[test]
    fn only_released_volumes_of_this_agent_go() {
        let volume = |phase: &str, policy: &str, path: &str, by: &str| {
            let v = json!({"metadata": {"name": "v", "annotations": {(binding::PROVISIONED_BY): by}},
                "spec": {"persistentVolumeReclaimPolicy": policy, "local": {"path": path}},
                "status": {"phase": phase}});
            to_remove(&PersistentVolume::from_value(v).unwrap(), Path::new("/root"))
        };
        let ours = binding::LOCAL_PATH;
        assert_eq!(volume("Released", "Delete", "/root/v", ours), Some("/root/v".into()));
        assert_eq!(volume("Bound", "Delete", "/root/v", ours), None);
        assert_eq!(volume("Released", "Retain", "/root/v", ours), None);
        assert_eq!(volume("Released", "Delete", "/etc", ours), None);
        assert_eq!(volume("Released", "Delete", "/root/v", "other"), None);
    }
}
