//! The provisioner that is built in (`gantry.local/local-path`): a claim's volume is a directory on the node its first
//! pod was placed on. This part makes the PersistentVolume; the node's agent makes the directory, and removes it with the
//! volume once the claim is gone.

use super::binder::reference_to;
use crate::config::Setup;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::core::persistent_volume_claim::storage_class;
use gantry_api::kind::Kind;
use gantry_api::meta::object::Meta;
use gantry_api::storage::binding;
use gantry_client::{Api, Patch, PatchParams, PostParams};
use gantry_reconcile::store::key_of;
use gantry_reconcile::{Controller, Error, EventRecorder, Informer, Outcome, Queue, runner, wait_synced};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::{Value, json};
use std::sync::Arc;

/// What this controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&[""], &["persistentvolumes"], &["create", "get", "list", "watch"]),
    Rule::new(&[""], &["persistentvolumeclaims"], &["get", "list", "patch", "watch"]),
    Rule::new(&["storage.k8s.io"], &["storageclasses"], &["get", "list", "watch"]),
    Rule::new(&[""], &["nodes"], &["get", "list", "watch"]),
    EVENTS,
];

struct Provisioner {
    claims: Informer<PersistentVolumeClaim>,
    classes: Informer<StorageClass>,
    nodes: Informer<Node>,
    recorder: EventRecorder,
    setup: Setup,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let claims = setup.informers.get::<PersistentVolumeClaim>();
    let classes = setup.informers.get::<StorageClass>();
    let nodes = setup.informers.get::<Node>();
    let queue = Queue::new(setup.name);
    let keys = queue.clone();
    claims.on_change(move |change| {
        if wants_volume(change.object()) {
            keys.add(key_of(change.object().as_ref()));
        }
    });
    if !wait_synced(&[&claims, &classes, &nodes], &setup.cancel).await {
        return;
    }
    let (recorder, cancel) = (setup.recorder(binding::LOCAL_PATH), setup.cancel.clone());
    runner::run(Arc::new(Provisioner { claims, classes, nodes, recorder, setup }), queue, 2, cancel).await;
}

fn wants_volume(claim: &PersistentVolumeClaim) -> bool {
    claim.metadata.annotation(binding::STORAGE_PROVISIONER) == Some(binding::LOCAL_PATH)
        && binding::volume_name(claim).is_empty()
        && !claim.metadata.is_deleting()
}

/// The volume of a claim on a node.
///
/// # Errors
/// Why there can be none; the same for every try with this claim on this node.
pub fn volume_for(claim: &PersistentVolumeClaim, class: &StorageClass, node: &Node) -> Result<Value, String> {
    let spec = claim.spec.clone().unwrap_or_default();
    if spec.selector.is_some() {
        return Err("claim.Spec.Selector is not supported".into());
    }
    if let Some(mode) = spec.access_modes.iter().flatten().find(|m| !m.starts_with("ReadWriteOnce")) {
        return Err(format!("NodePath only supports ReadWriteOnce and ReadWriteOncePod access modes, not {mode}"));
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(format!("{} does not support block volume provisioning", binding::LOCAL_PATH));
    }
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        return Err("volumes can not be made from a data source".into());
    }
    let node_name = node.metadata.name();
    let Some(root) = node.metadata.annotation(binding::LOCAL_PATH_ROOT) else {
        return Err(format!("node {node_name} keeps no volumes: it has no annotation {}", binding::LOCAL_PATH_ROOT));
    };
    let name = format!("pvc-{}", claim.metadata.uid());
    let host = node.metadata.label("kubernetes.io/hostname").unwrap_or(node_name);
    Ok(json!({
        "metadata": {
            "name": name,
            "labels": {(binding::LOCAL_PATH_NODE): node_name},
            "annotations": {(binding::PROVISIONED_BY): binding::LOCAL_PATH},
            "finalizers": ["kubernetes.io/pv-protection"],
        },
        "spec": {
            "capacity": {"storage": spec.resources.as_ref().and_then(|r| r.requests.as_ref()?.get("storage"))},
            "accessModes": spec.access_modes,
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "storageClassName": class.metadata.name(),
            "volumeMode": "Filesystem",
            "claimRef": reference_to(claim),
            "local": {"path": format!("{}/{name}", root.trim_end_matches('/'))},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]}]}},
        },
    }))
}

#[async_trait]
impl Controller for Provisioner {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(claim) = self.claims.store().by_key(key).filter(|c| wants_volume(c)) else {
            return Ok(Outcome::done());
        };
        let class_name = storage_class(&claim).unwrap_or_default();
        let failed = |message: &str| {
            let message = format!("failed to provision volume with StorageClass {class_name:?}: {message}");
            self.recorder.warning(claim.as_ref(), "ProvisioningFailed", &message);
            Error::Other(format!("claim {key}: {message}"))
        };
        let class = self.classes.get("", class_name).filter(|c| c.provisioner == binding::LOCAL_PATH);
        let Some(class) = class else { return Ok(Outcome::done()) };
        let Some(node) = claim.metadata.annotation(binding::SELECTED_NODE) else {
            return Err(failed("configuration error, no node was specified"));
        };
        let Some(node) = self.nodes.get("", node) else {
            return self.reschedule(&claim).await;
        };
        let message = format!("External provisioner is provisioning volume for claim {key:?}");
        self.recorder.normal(claim.as_ref(), "Provisioning", &message);
        let volume = volume_for(&claim, &class, &node).map_err(|e| failed(&e))?;
        let volume = PersistentVolume::from_value(volume).map_err(|e| failed(&e.to_string()))?;
        let name = volume.metadata.name().to_owned();
        let api = Api::<PersistentVolume>::all(self.setup.client.clone());
        match api.create(&PostParams::default(), &volume).await {
            Ok(_) => {
                let message = format!("Successfully provisioned volume {name}");
                self.recorder.normal(claim.as_ref(), "ProvisioningSucceeded", &message);
            }
            Err(e) if e.is("AlreadyExists") => {}
            Err(e) => return Err(Error::api(format!("create volume {name}"), e)),
        }
        Ok(Outcome::done())
    }
}

impl Provisioner {
    /// The chosen node is gone: the scheduler shall choose again.
    async fn reschedule(&self, claim: &PersistentVolumeClaim) -> Result<Outcome, Error> {
        let patch = json!({"metadata": {
            "resourceVersion": claim.metadata.resource_version(), "annotations": {(binding::SELECTED_NODE): null}}});
        let api = Api::<PersistentVolumeClaim>::namespaced(self.setup.client.clone(), claim.metadata.namespace());
        match api.patch(claim.metadata.name(), &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => Ok(Outcome::done()),
            Err(e) => Err(Error::api(format!("patch claim {}", claim.metadata.key()), e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(spec: Value, root: Option<&str>) -> (PersistentVolumeClaim, StorageClass, Node) {
        let claim = PersistentVolumeClaim::from_value(
            json!({"metadata": {"name": "c", "namespace": "n", "uid": "u"}, "spec": spec}),
        );
        let class = json!({"metadata": {"name": "fast"}, "provisioner": binding::LOCAL_PATH});
        let mut node = json!({"metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "h1"}}});
        if let Some(root) = root {
            node["metadata"]["annotations"] = json!({(binding::LOCAL_PATH_ROOT): root});
        }
        (claim.unwrap(), StorageClass::from_value(class).unwrap(), Node::from_value(node).unwrap())
    }

    #[test]
    fn the_volume_is_a_directory_of_the_node() {
        let spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
        let (claim, class, node) = parts(spec.clone(), Some("/data/volumes"));
        let made = volume_for(&claim, &class, &node).unwrap();
        assert_eq!(made["spec"]["local"]["path"], "/data/volumes/pvc-u");
        assert_eq!(made["spec"]["persistentVolumeReclaimPolicy"], "Delete");
        let volume = PersistentVolume::from_value(made).unwrap();
        assert!(volume.validate().0.is_empty() && binding::is_for_claim(&volume, &claim));
        let on = |host: &str| [("kubernetes.io/hostname".to_owned(), host.to_owned())].into();
        assert!(binding::reachable_from(&volume, &on("h1"), "n1"));
        assert!(!binding::reachable_from(&volume, &on("h2"), "n2"));
        let (claim, class, node) = parts(spec, None);
        assert!(volume_for(&claim, &class, &node).unwrap_err().contains("keeps no volumes"));
    }

    #[test]
    fn what_a_directory_cannot_be_is_refused() {
        for (spec, why) in [
            (json!({"accessModes": ["ReadWriteMany"]}), "only supports ReadWriteOnce"),
            (json!({"accessModes": ["ReadWriteOnce"], "volumeMode": "Block"}), "block volume"),
            (json!({"accessModes": ["ReadWriteOnce"], "selector": {}}), "Selector"),
        ] {
            let (claim, class, node) = parts(spec, Some("/v"));
            assert!(volume_for(&claim, &class, &node).unwrap_err().contains(why), "{why}");
        }
    }
}
