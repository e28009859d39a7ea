//! PersistentVolumes and their claims: binds the ones to the others, asks provisioners for what is missing, and says what
//! becomes of volumes whose claim is gone.
//!
//! One task works on all claims and volumes, so that no two decisions are made from one picture; every write carries the
//! version it was decided on.

mod claim;
mod volume;

use crate::config::Setup;
use crate::rules::{EVENTS, Rule};
use crate::volume::claims_of;
use async_trait::async_trait;
use gantry_api::core::persistent_volume_claim::storage_class;
use gantry_api::meta::object::Meta;
use gantry_api::storage::binding;
use gantry_api::storage::storage_class::is_default;
use gantry_client::{Api, PostParams};
use gantry_reconcile::store::key_of;
use gantry_reconcile::{Controller, Error, EventRecorder, Index, Informer, Outcome, Queue, runner, wait_synced};
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use std::sync::Arc;
use std::time::Duration;

/// Claims that wait are looked at this often, as upstream's are (`--pvclaimbinder-sync-period`).
const SYNC_PERIOD: Duration = Duration::from_secs(15);

/// What this controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&[""], &["persistentvolumes"], &["create", "delete", "get", "list", "update", "watch"]),
    Rule::new(&[""], &["persistentvolumes/status"], &["update"]),
    Rule::new(&[""], &["persistentvolumeclaims"], &["get", "list", "update", "watch"]),
    Rule::new(&[""], &["persistentvolumeclaims/status"], &["update"]),
    Rule::new(&["storage.k8s.io"], &["storageclasses"], &["get", "list", "watch"]),
    Rule::new(&[""], &["pods"], &["get", "list", "watch"]),
    EVENTS,
];

struct Binder {
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    pods_by_claim: Index<Pod>,
    queue: Queue,
    recorder: EventRecorder,
    setup: Setup,
}

fn claim_key(claim: &str) -> String {
    format!("claim {claim}")
}

fn volume_key(volume: &str) -> String {
    format!("volume {volume}")
}

/// `namespace/name` of the claim a volume names.
fn claim_of(reference: &ObjectReference) -> String {
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    gantry_reconcile::store::key(&text(&reference.namespace), &text(&reference.name))
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let informers = &setup.informers;
    let claims = informers.get::<PersistentVolumeClaim>();
    let volumes = informers.get::<PersistentVolume>();
    let classes = informers.get::<StorageClass>();
    let pods = informers.get::<Pod>();
    let pods_by_claim = pods.index("claim", claims_of);
    let queue = Queue::with_backoff(setup.name, Duration::from_millis(50), Duration::from_secs(30));
    let keys = queue.clone();
    claims.on_change(move |change| {
        let claim = change.object();
        keys.add(claim_key(&key_of(claim.as_ref())));
        if !binding::volume_name(claim).is_empty() {
            keys.add(volume_key(binding::volume_name(claim)));
        }
    });
    let (keys, all) = (queue.clone(), claims.clone());
    volumes.on_change(move |change| {
        let volume = change.object();
        keys.add(volume_key(volume.metadata.name()));
        match binding::claim_ref(volume) {
            Some(reference) => keys.add(claim_key(&claim_of(reference))),
            // It may be what a claim waits for.
            None => wake_unbound(&all, &keys),
        }
    });
    let (keys, all) = (queue.clone(), claims.clone());
    classes.on_change(move |_| wake_unbound(&all, &keys));
    if !wait_synced(&[&claims, &volumes, &classes, &pods], &setup.cancel).await {
        return;
    }
    let (recorder, cancel) = (setup.recorder("persistentvolume-controller"), setup.cancel.clone());
    let controller = Binder { claims, volumes, classes, pods_by_claim, queue: queue.clone(), recorder, setup };
    runner::run(Arc::new(controller), queue, 1, cancel).await;
}

fn wake_unbound(claims: &Informer<PersistentVolumeClaim>, queue: &Queue) {
    for claim in claims.list().iter().filter(|c| !binding::is_bound(c)) {
        queue.add(claim_key(&key_of(claim.as_ref())));
    }
}

#[async_trait]
impl Controller for Binder {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let (kind, name) = key.split_once(' ').unwrap_or_default();
        if kind == "volume" {
            if let Some(volume) = self.volumes.get("", name) {
                self.sync_volume(volume.as_ref().clone()).await?;
            }
            return Ok(Outcome::done());
        }
        match self.claims.store().by_key(name) {
            Some(claim) => self.sync_claim(claim.as_ref().clone()).await,
            // The volume learns of it through the claim's last change.
            None => Ok(Outcome::done()),
        }
    }
}

impl Binder {
    fn class(&self, claim: &PersistentVolumeClaim) -> Option<Arc<StorageClass>> {
        self.classes.get("", storage_class(claim).filter(|c| !c.is_empty())?)
    }

    /// Whether the claim waits until a pod that uses it is placed.
    fn is_delayed(&self, claim: &PersistentVolumeClaim) -> bool {
        let class = self.class(claim);
        class.is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"))
    }

    /// The class of claims that name none: of several that are marked the newest, then the first by name.
    fn default_class(&self) -> Option<Arc<StorageClass>> {
        let mut marked: Vec<_> = self.classes.list().into_iter().filter(|c| is_default(&c.metadata)).collect();
        marked.sort_by(|a, b| {
            let made = |c: &StorageClass| c.metadata.creation_timestamp.as_ref().map(|t| t.0);
            made(b).cmp(&made(a)).then_with(|| a.metadata.name().cmp(b.metadata.name()))
        });
        marked.into_iter().next()
    }

    fn claim_api(&self, claim: &PersistentVolumeClaim) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.setup.client.clone(), claim.metadata.namespace())
    }

    fn volume_api(&self) -> Api<PersistentVolume> {
        Api::all(self.setup.client.clone())
    }

    async fn write_claim(&self, claim: &PersistentVolumeClaim) -> Result<PersistentVolumeClaim, Error> {
        let what = || format!("update claim {}", claim.metadata.key());
        self.claim_api(claim).update(&PostParams::default(), claim).await.map_err(|e| Error::api(what(), e))
    }

    async fn write_volume(&self, volume: &PersistentVolume) -> Result<PersistentVolume, Error> {
        let what = || format!("update volume {}", volume.metadata.name());
        self.volume_api().update(&PostParams::default(), volume).await.map_err(|e| Error::api(what(), e))
    }

    /// Binds the two to each other, whatever of it is not written yet.
    async fn bind(&self, volume: PersistentVolume, claim: PersistentVolumeClaim) -> Result<(), Error> {
        let mut volume = volume;
        let (name, uid) = (volume.metadata.name().to_owned(), claim.metadata.uid().to_owned());
        let kept = binding::claim_ref(&volume).cloned();
        if kept.as_ref().and_then(|r| r.uid.as_deref()) != Some(uid.as_str()) {
            if kept.is_none() {
                annotate(&mut volume.metadata, binding::BOUND_BY_CONTROLLER, "yes");
            }
            volume.spec.get_or_insert_default().claim_ref = Some(reference_to(&claim));
            volume = self.write_volume(&volume).await?;
        }
        let volume = self.set_phase(volume, "Bound", "").await?;
        let mut claim = claim;
        let chosen = binding::volume_name(&claim) == name;
        if !chosen || claim.metadata.annotation(binding::BIND_COMPLETED).is_none() {
            if !chosen {
                claim.spec.get_or_insert_default().volume_name = Some(name);
                annotate(&mut claim.metadata, binding::BOUND_BY_CONTROLLER, "yes");
            }
            annotate(&mut claim.metadata, binding::BIND_COMPLETED, "yes");
            claim = self.write_claim(&claim).await?;
        }
        self.set_claim_status(claim, "Bound", Some(&volume)).await.map(drop)
    }
}

fn annotate(meta: &mut gantry_api::ObjectMeta, key: &str, value: &str) {
    meta.annotations.get_or_insert_default().insert(key.to_owned(), value.to_owned());
}

/// How a volume names its claim.
#[must_use]
pub fn reference_to(claim: &PersistentVolumeClaim) -> ObjectReference {
    ObjectReference {
        kind: Some("PersistentVolumeClaim".into()),
        api_version: Some("v1".into()),
        namespace: claim.metadata.namespace.clone(),
        name: claim.metadata.name.clone(),
        uid: claim.metadata.uid.clone(),
        resource_version: claim.metadata.resource_version.clone(),
        field_path: None,
    }
}
