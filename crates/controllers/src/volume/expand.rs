//! Claims that ask for more than their volume has. No volume is grown by the control plane itself: the drivers' own controllers
//! do it, and the event on the claim says that one is waited for.

use crate::config::Setup;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::meta::object::Meta;
use gantry_api::meta::quantity::amount_of;
use gantry_reconcile::store::key_of;
use gantry_reconcile::{Change, Controller, Error, EventRecorder, Informer, Outcome, Queue, runner, wait_synced};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use std::sync::Arc;

/// What the controller may do.
pub const RULES: &[Rule] =
    &[Rule::new(&[""], &["persistentvolumeclaims", "persistentvolumes"], &["get", "list", "watch"]), EVENTS];

/// Bytes that a claim asks for and has.
fn sizes(claim: &PersistentVolumeClaim) -> (i128, i128) {
    let requests = claim.spec.as_ref().and_then(|s| s.resources.as_ref()).and_then(|r| r.requests.as_ref());
    let capacity = claim.status.as_ref().and_then(|s| s.capacity.as_ref());
    (amount_of(requests, "storage").nano_value(), amount_of(capacity, "storage").nano_value())
}

/// Whether a bound claim asks for more than it has.
#[must_use]
pub fn wants_more(claim: &PersistentVolumeClaim) -> bool {
    let bound = claim.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Bound"));
    let (wanted, there) = sizes(claim);
    bound && wanted > there
}

struct Expand {
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    recorder: EventRecorder,
    setup: Setup,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let claims = setup.informers.get::<PersistentVolumeClaim>();
    let volumes = setup.informers.get::<PersistentVolume>();
    let queue = Queue::new(setup.name);
    let q = queue.clone();
    claims.on_change(move |change| {
        let claim = change.object();
        let news = match change {
            Change::Added(_) => true,
            Change::Modified { old, .. } => sizes(old) != sizes(claim),
            Change::Deleted(_) => false,
        };
        if news && wants_more(claim) {
            q.add(key_of(&**claim));
        }
    });
    if !wait_synced(&[&claims, &volumes], &setup.cancel).await {
        return;
    }
    let (recorder, cancel) = (setup.recorder("volume_expand"), setup.cancel.clone());
    runner::run(Arc::new(Expand { claims, volumes, recorder, setup }), queue, 1, cancel).await;
}

#[async_trait]
impl Controller for Expand {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(claim) = self.claims.store().by_key(key).filter(|c| wants_more(c)) else { return Ok(Outcome::done()) };
        let name = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
        let Some(volume) = self.volumes.get("", name) else {
            return Err(Error::Other(format!("failed to get PV {name:?}: not found")));
        };
        let of = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
        if of.is_none_or(|r| r.uid.as_deref() != Some(claim.metadata.uid())) {
            return Err(Error::Other(format!("persistent Volume is not bound to PVC being updated : {key}")));
        }
        self.recorder.normal(&*claim, "ExternalExpanding", "waiting for an external controller to expand this PVC");
        Ok(Outcome::done())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::json;

    #[test]
    fn only_bound_claims_that_ask_for_more_than_they_have() {
        let claim = |phase: &str, wanted: &str, there: &str| {
            let spec = json!({"resources": {"requests": {"storage": wanted}}});
            let status = json!({"phase": phase, "capacity": {"storage": there}});
            wants_more(&PersistentVolumeClaim::from_value(json!({"spec": spec, "status": status})).unwrap())
        };
        assert!(claim("Bound", "2Gi", "1Gi"));
        assert!(!claim("Bound", "1Gi", "1024Mi"));
        assert!(!claim("Bound", "1Gi", "2Gi"));
        assert!(!claim("Pending", "2Gi", "0"));
    }
}
