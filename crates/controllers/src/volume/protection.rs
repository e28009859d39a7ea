//! Claims that pods use, volumes that are bound, and classes that either names do not go away: finalizers hold them until nobody
//! needs them.

use super::claims_of;
use crate::config::Setup;
use crate::pod_state;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::core::quota::attribute_classes;
use gantry_api::kind::Kind;
use gantry_api::meta::object::Meta;
use gantry_api::storage::binding::{check_ephemeral, claim_name};
use gantry_client::{Api, ListParams, PostParams};
use gantry_reconcile::store::key_of;
use gantry_reconcile::{Change, Controller, Error, Index, Informer, Outcome, Queue, runner, wait_synced};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use std::sync::Arc;

/// Holds a claim that pods use.
pub const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
/// Holds a volume that is bound.
pub const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";

/// What the controller of claims may do.
pub const CLAIM_RULES: &[Rule] = &[
    Rule::new(&[""], &["persistentvolumeclaims"], &["get", "list", "update", "watch"]),
    Rule::new(&[""], &["pods"], &["get", "list", "watch"]),
    EVENTS,
];
/// What the controller of volumes may do.
pub const VOLUME_RULES: &[Rule] =
    &[Rule::new(&[""], &["persistentvolumes"], &["get", "list", "update", "watch"]), EVENTS];

/// Holds a VolumeAttributesClass that claims or volumes name.
pub const CLASS_FINALIZER: &str = "kubernetes.io/vac-protection";
/// What the controller of classes may do.
pub const CLASS_RULES: &[Rule] = &[
    Rule::new(&[""], &["persistentvolumeclaims", "persistentvolumes"], &["get", "list", "watch"]),
    Rule::new(&["storage.k8s.io"], &["volumeattributesclasses"], &["get", "list", "update", "watch"]),
    EVENTS,
];

struct Classes {
    classes: Informer<VolumeAttributesClass>,
    claims: Index<PersistentVolumeClaim>,
    volumes: Index<PersistentVolume>,
    setup: Setup,
}

struct Claims {
    claims: Informer<PersistentVolumeClaim>,
    pods_by_claim: Index<Pod>,
    setup: Setup,
}

struct Volumes {
    volumes: Informer<PersistentVolume>,
    setup: Setup,
}

/// Whether the node is done with the pod, or was told to be.
fn is_shut_down(pod: &Pod) -> bool {
    pod.metadata.is_deleting() && pod.metadata.deletion_grace_period_seconds == Some(0)
}

/// Whether a pod keeps the claim: it is on a node and names it, though it may have ended. The claim of an ephemeral volume
/// may go before its pod does, once the node is done with that: deletion in the foreground waits for the claim.
fn uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let name = claim.metadata.name();
    let is_its = |v: &Volume| match &v.persistent_volume_claim {
        Some(named) => named.claim_name == name,
        None => {
            !is_shut_down(pod) && claim_name(pod, v).is_some_and(|n| n == name) && check_ephemeral(claim, pod).is_ok()
        }
    };
    !pod_state::node_name(pod).is_empty() && pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).any(is_its)
}

/// Runs the controller of claims.
pub async fn run_claims(setup: Setup) {
    let claims = setup.informers.get::<PersistentVolumeClaim>();
    let pods = setup.informers.get::<Pod>();
    let pods_by_claim = pods.index("claim", claims_of);
    let queue = Queue::new(setup.name);
    let keys = queue.clone();
    claims.on_change(move |change| keys.add(key_of(change.object().as_ref())));
    let keys = queue.clone();
    pods.on_change(move |change| {
        let pod = change.object();
        let gone = matches!(change, Change::Deleted(_));
        if gone || pod.metadata.is_deleting() || pod_state::is_finished(pod) || pod_state::node_name(pod).is_empty() {
            claims_of(pod).into_iter().for_each(|key| keys.add(key));
        }
    });
    if !wait_synced(&[&claims, &pods], &setup.cancel).await {
        return;
    }
    let cancel = setup.cancel.clone();
    runner::run(Arc::new(Claims { claims, pods_by_claim, setup }), queue, 1, cancel).await;
}

/// Runs the controller of volumes.
pub async fn run_volumes(setup: Setup) {
    let volumes = setup.informers.get::<PersistentVolume>();
    let queue = Queue::new(setup.name);
    let keys = queue.clone();
    volumes.on_change(move |change| keys.add(key_of(change.object().as_ref())));
    if !wait_synced(&[&volumes], &setup.cancel).await {
        return;
    }
    let cancel = setup.cancel.clone();
    runner::run(Arc::new(Volumes { volumes, setup }), queue, 1, cancel).await;
}

fn classes_of(claim: &PersistentVolumeClaim) -> Vec<String> {
    attribute_classes(claim).into_iter().map(str::to_owned).collect()
}

fn class_of(volume: &PersistentVolume) -> Vec<String> {
    let class = volume.spec.as_ref().and_then(|s| s.volume_attributes_class_name.clone());
    class.filter(|c| !c.is_empty()).into_iter().collect()
}

/// Runs the controller of VolumeAttributesClasses.
pub async fn run_classes(setup: Setup) {
    let classes = setup.informers.get::<VolumeAttributesClass>();
    let claims = setup.informers.get::<PersistentVolumeClaim>();
    let volumes = setup.informers.get::<PersistentVolume>();
    let claims_by_class = claims.index("attributes class", classes_of);
    let volumes_by_class = volumes.index("attributes class", class_of);
    let queue = Queue::new(setup.name);
    let keys = queue.clone();
    classes.on_change(move |change| keys.add(change.object().metadata.name().to_owned()));
    // What named a class before the change may have let go of it.
    let keys = queue.clone();
    claims.on_change(move |change| {
        let gone = matches!(change, Change::Deleted(_)).then(|| change.object());
        change.old().or(gone).into_iter().flat_map(|c| classes_of(c)).for_each(|k| keys.add(k));
    });
    let keys = queue.clone();
    volumes.on_change(move |change| {
        let gone = matches!(change, Change::Deleted(_)).then(|| change.object());
        change.old().or(gone).into_iter().flat_map(|v| class_of(v)).for_each(|k| keys.add(k));
    });
    if !wait_synced(&[&classes, &claims, &volumes], &setup.cancel).await {
        return;
    }
    let cancel = setup.cancel.clone();
    let controller = Classes { classes, claims: claims_by_class, volumes: volumes_by_class, setup };
    runner::run(Arc::new(controller), queue, 1, cancel).await;
}

/// Writes the object with or without the finalizer; that it is gone is as good.
pub(crate) async fn set<K: Kind + Clone>(api: &Api<K>, object: &K, finalizer: &str, wanted: bool) -> Result<(), Error> {
    let mut object = object.clone();
    let list = object.meta_mut().finalizers.get_or_insert_default();
    if wanted {
        list.push(finalizer.to_owned());
    } else {
        list.retain(|f| f != finalizer);
    }
    match api.update(&PostParams::default(), &object).await {
        Ok(_) => Ok(()),
        Err(e) if e.is("NotFound") => Ok(()),
        Err(e) => Err(Error::api(format!("update finalizers of {}", object.meta().key()), e)),
    }
}

/// Whether the object has the finalizer.
pub(crate) fn has(meta: &gantry_api::ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers_or_empty().iter().any(|f| f == finalizer)
}

#[async_trait]
impl Controller for Claims {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(claim) = self.claims.store().by_key(key) else { return Ok(Outcome::done()) };
        let (going, held) = (claim.metadata.is_deleting(), has(&claim.metadata, CLAIM_FINALIZER));
        let api = Api::<PersistentVolumeClaim>::namespaced(self.setup.client.clone(), claim.metadata.namespace());
        if going && held {
            if self.pods_by_claim.get(key).iter().any(|p| uses(p, &claim)) {
                return Ok(Outcome::done());
            }
            // The cache may not have heard of a pod yet: the server's word counts.
            let pods = Api::<Pod>::namespaced(self.setup.client.clone(), claim.metadata.namespace());
            let live = pods.list(&ListParams::default()).await;
            let live = live.map_err(|e| Error::api(format!("list pods of {}", claim.metadata.namespace()), e))?;
            if !live.items.iter().any(|p| uses(p, &claim)) {
                set(&api, claim.as_ref(), CLAIM_FINALIZER, false).await?;
            }
        } else if !going && !held {
            set(&api, claim.as_ref(), CLAIM_FINALIZER, true).await?;
        }
        Ok(Outcome::done())
    }
}

#[async_trait]
impl Controller for Classes {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(class) = self.classes.get("", key) else { return Ok(Outcome::done()) };
        let (going, held) = (class.metadata.is_deleting(), has(&class.metadata, CLASS_FINALIZER));
        let used = || self.claims.count(key) + self.volumes.count(key) > 0;
        let api = Api::<VolumeAttributesClass>::all(self.setup.client.clone());
        if going && held && !used() {
            set(&api, class.as_ref(), CLASS_FINALIZER, false).await?;
        } else if !going && !held {
            set(&api, class.as_ref(), CLASS_FINALIZER, true).await?;
        }
        Ok(Outcome::done())
    }
}

#[async_trait]
impl Controller for Volumes {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(volume) = self.volumes.get("", key) else { return Ok(Outcome::done()) };
        let (going, held) = (volume.metadata.is_deleting(), has(&volume.metadata, VOLUME_FINALIZER));
        let bound = volume.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Bound"));
        let api = Api::<PersistentVolume>::all(self.setup.client.clone());
        if going && held && !bound {
            set(&api, volume.as_ref(), VOLUME_FINALIZER, false).await?;
        } else if !going && !held {
            set(&api, volume.as_ref(), VOLUME_FINALIZER, true).await?;
        }
        Ok(Outcome::done())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn scheduled_pods_keep_their_claims_even_when_they_have_ended() {
        let claim = |owner: &str| {
            let owners = json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": owner, "controller": true}]);
            let meta = json!({"name": "p-data", "namespace": "n", "ownerReferences": owners});
            PersistentVolumeClaim::from_value(json!({"metadata": meta})).unwrap()
        };
        let pod = |volume: Value, node: &str, more: Value| {
            let mut meta = json!({"name": "p", "namespace": "n", "uid": "u"});
            meta.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let spec = json!({"nodeName": node, "containers": [], "volumes": [volume]});
            let status = json!({"phase": "Succeeded"});
            Pod::from_value(json!({"metadata": meta, "spec": spec, "status": status})).unwrap()
        };
        let named = json!({"name": "v", "persistentVolumeClaim": {"claimName": "p-data"}});
        let ephemeral = json!({"name": "data", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}});
        let over = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 0});
        assert!(uses(&pod(named.clone(), "node", json!({})), &claim("u")));
        assert!(!uses(&pod(named.clone(), "", json!({})), &claim("u")), "not on a node yet");
        assert!(uses(&pod(named, "node", over.clone()), &claim("u")));
        assert!(uses(&pod(ephemeral.clone(), "node", json!({})), &claim("u")));
        assert!(!uses(&pod(ephemeral.clone(), "node", json!({})), &claim("other")), "not made for this pod");
        assert!(!uses(&pod(ephemeral, "node", over), &claim("u")));
    }
}
