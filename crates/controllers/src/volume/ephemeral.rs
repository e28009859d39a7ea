//! Generic ephemeral volumes: the claim of each, owned by its pod and gone with it.

use crate::config::Setup;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::meta::object::Meta;
use gantry_api::storage::binding::{check_ephemeral, claim_name};
use gantry_client::{Api, PostParams};
use gantry_reconcile::owner::controller_reference;
use gantry_reconcile::store::key_of;
use gantry_reconcile::{Change, Controller, Error, EventRecorder, Informer, Outcome, Queue, runner, wait_synced};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use std::sync::Arc;

/// What this controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&[""], &["pods"], &["get", "list", "watch"]),
    Rule::new(&[""], &["pods/finalizers"], &["update"]),
    Rule::new(&[""], &["persistentvolumeclaims"], &["create", "get", "list", "watch"]),
    EVENTS,
];

struct Ephemeral {
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    recorder: EventRecorder,
    setup: Setup,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let pods = setup.informers.get::<Pod>();
    let claims = setup.informers.get::<PersistentVolumeClaim>();
    let queue = Queue::new(setup.name);
    let keys = queue.clone();
    pods.on_change(move |change| {
        let pod = change.object();
        let has_any = || pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()).any(|v| v.ephemeral.is_some());
        if !matches!(change, Change::Deleted(_)) && pod.metadata.deletion_timestamp.is_none() && has_any() {
            keys.add(key_of(pod.as_ref()));
        }
    });
    let keys = queue.clone();
    claims.on_change(move |change| {
        let owner = change.object().metadata.controller_of().filter(|o| o.kind == "Pod");
        if let (Change::Deleted(claim), Some(owner)) = (change, owner) {
            keys.add(gantry_reconcile::store::key(claim.metadata.namespace(), &owner.name));
        }
    });
    if !wait_synced(&[&pods, &claims], &setup.cancel).await {
        return;
    }
    let (recorder, cancel) = (setup.recorder("ephemeral_volume"), setup.cancel.clone());
    runner::run(Arc::new(Ephemeral { pods, claims, recorder, setup }), queue, 2, cancel).await;
}

#[async_trait]
impl Controller for Ephemeral {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(pod) = self.pods.store().by_key(key).filter(|p| !p.metadata.is_deleting()) else {
            return Ok(Outcome::done());
        };
        for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
            let Some(template) = volume.ephemeral.as_ref().and_then(|e| e.volume_claim_template.as_ref()) else {
                continue;
            };
            let Some(name) = claim_name(&pod, volume) else { continue };
            if let Some(claim) = self.claims.get(pod.metadata.namespace(), &name) {
                check_ephemeral(&claim, &pod).map_err(Error::Other)?;
                continue;
            }
            let mut claim = PersistentVolumeClaim { spec: Some(template.spec.clone()), ..Default::default() };
            if let Some(meta) = &template.metadata {
                claim.metadata.labels.clone_from(&meta.labels);
                claim.metadata.annotations.clone_from(&meta.annotations);
            }
            claim.metadata.name = Some(name.clone().into_owned());
            claim.metadata.namespace.clone_from(&pod.metadata.namespace);
            claim.metadata.owner_references = Some(vec![controller_reference(pod.as_ref())]);
            let api = Api::<PersistentVolumeClaim>::namespaced(self.setup.client.clone(), pod.metadata.namespace());
            if let Err(e) = api.create(&PostParams::default(), &claim).await {
                let message = format!("ephemeral volume {} claim: create PVC {name}: {e}", volume.name);
                self.recorder.warning(pod.as_ref(), "FailedBinding", &message);
                return Err(Error::api(format!("create claim {name} of pod {key}"), e));
            }
        }
        Ok(Outcome::done())
    }
}
