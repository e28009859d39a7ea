//! What the scheduler knows of devices, between attempts.

use super::allocate::{Classes, shown};
use super::attempt::{Claimed, Extended, PLUGIN, PodDevices, Supply};
use super::extended::{self, Backed};
use super::pool::Inventory;
use super::selector::Selectors;
use super::taken::Ledger;
use crate::pod::PodInfo;
use crate::profile::DeviceLimits;
use crate::volumes::Refusal;
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_api::k8s_openapi::api::resource::v1::{
    AllocatedDeviceStatus, AllocationResult, DeviceClass, DeviceRequest, DeviceTaintRule, ResourceClaim, ResourceSlice,
};
use gantry_api::meta::object::Meta;
use gantry_api::resource::pod_claim::{self, Reference};
use gantry_client::Client;
use gantry_reconcile::{Change, EventRecorder, Informer, Informers};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// See the module.
pub(crate) struct Devices {
    pub(super) client: Client,
    pub(super) clock: Clock,
    pub(super) recorder: EventRecorder,
    pub(super) entropy: Entropy,
    pub(crate) claims: Informer<ResourceClaim>,
    pub(crate) classes: Informer<DeviceClass>,
    pub(crate) slices: Informer<ResourceSlice>,
    pub(crate) rules: Informer<DeviceTaintRule>,
    selectors: Arc<Selectors>,
    tracked: Mutex<Tracked>,
}

#[derive(Default)]
struct Tracked {
    ledger: Ledger,
    /// UIDs of claims whose allocation is decided and not yet written.
    in_flight: HashSet<String>,
    /// Claims as this scheduler wrote them, by key, until the informer shows them so or newer.
    written: HashMap<String, Arc<ResourceClaim>>,
    /// Made of slices and rules when it is asked for.
    inventory: Option<Arc<Inventory>>,
    backed: Arc<Backed>,
}

/// What a change of a claim means for pods that wait.
pub(crate) enum News {
    /// Nothing.
    None,
    /// Pods that use this claim, by key, may fit.
    Claim(String),
    /// Devices are free again: any pod may fit.
    Freed,
}

fn allocation(claim: &ResourceClaim) -> Option<&AllocationResult> {
    claim.status.as_ref()?.allocation.as_ref()
}

fn version(claim: &ResourceClaim) -> u64 {
    claim.metadata.resource_version.as_ref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

fn requests(claim: &ResourceClaim) -> impl Iterator<Item = &DeviceRequest> {
    let devices = claim.spec.as_ref().and_then(|s| s.devices.as_ref());
    devices.into_iter().flat_map(|d| d.requests.iter().flatten())
}

impl Devices {
    pub(crate) fn new(
        client: Client,
        informers: &Informers,
        clock: Clock,
        recorder: EventRecorder,
        entropy: Entropy,
    ) -> Self {
        Self {
            client,
            clock,
            recorder,
            entropy,
            claims: informers.get(),
            classes: informers.get(),
            slices: informers.get(),
            rules: informers.get(),
            selectors: Arc::default(),
            tracked: Mutex::default(),
        }
    }

    /// Takes note of a change.
    pub(crate) fn claim_changed(&self, change: &Change<ResourceClaim>) -> News {
        let claim = change.object();
        let (key, uid) = (claim.metadata.key(), claim.metadata.uid());
        let mut tracked = self.tracked.lock();
        if let Change::Deleted(_) = change {
            tracked.written.remove(&key);
            tracked.in_flight.remove(uid);
            tracked.ledger.set(uid, None);
            return if allocation(claim).is_some() { News::Freed } else { News::None };
        }
        if tracked.written.get(&key).is_some_and(|ours| version(ours) > version(claim)) {
            return News::None;
        }
        tracked.written.remove(&key);
        if !tracked.in_flight.contains(uid) {
            tracked.ledger.set(uid, allocation(claim));
        }
        match change.old() {
            Some(old) if allocation(old).is_some() && allocation(claim).is_none() => News::Freed,
            Some(old) if old.status == claim.status => News::None,
            _ => News::Claim(key),
        }
    }

    /// Slices or the rules that taint their devices changed.
    pub(crate) fn offers_changed(&self) {
        self.tracked.lock().inventory = None;
    }

    /// Classes changed; returns the extended resources that devices stand for now.
    pub(crate) fn classes_changed(&self) -> BTreeSet<String> {
        let backed = extended::backed(self.classes.list());
        let names = backed.keys().cloned().collect();
        self.tracked.lock().backed = Arc::new(backed);
        names
    }

    /// A claim as it was last seen or written.
    pub(super) fn claim(&self, namespace: &str, name: &str) -> Option<Arc<ResourceClaim>> {
        let key = format!("{namespace}/{name}");
        let ours = self.tracked.lock().written.get(&key).cloned();
        ours.or_else(|| self.claims.get(namespace, name))
    }

    /// The claims that the pod's spec names.
    ///
    /// # Errors
    /// Why they are not all there.
    fn listed(&self, pod: &PodInfo) -> Result<Vec<Arc<ResourceClaim>>, String> {
        let mut out = Vec::new();
        for entry in pod.spec().resource_claims.iter().flatten() {
            let reference = pod_claim::reference(&pod.pod, entry).map_err(|e| e.to_string())?;
            let Some(name) = reference.name() else { continue };
            let Some(claim) = self.claim(pod.namespace(), name) else {
                return Err(format!("could not find ResourceClaim \"{}/{name}\"", pod.namespace()));
            };
            if claim.metadata.is_deleting() {
                return Err(format!("resourceclaim {name:?} is being deleted"));
            }
            if matches!(reference, Reference::Generated(_)) {
                pod_claim::check_owner(&pod.pod, &claim)?;
            }
            out.push(claim);
        }
        Ok(out)
    }

    /// Why the pod is not even tried: its claims are not all there.
    pub(crate) fn hold(&self, pod: &PodInfo) -> Option<String> {
        self.listed(pod).err()
    }

    /// Looks the pod's claims up; `None` for a pod that has none.
    ///
    /// # Errors
    /// Where no node can take the pod as its claims are now.
    pub(crate) fn of_pod(&self, pod: &Arc<PodInfo>, limits: DeviceLimits) -> Result<Option<PodDevices>, Refusal> {
        let extended = self.extended(pod);
        if pod.spec().resource_claims.as_ref().is_none_or(Vec::is_empty) && extended.is_none() {
            return Ok(None);
        }
        let refuse = |why: String| (PLUGIN, why);
        let listed = self.listed(pod).map_err(refuse)?;
        if listed.is_empty() && extended.is_none() {
            return Ok(None);
        }
        let mut classes = Classes::new();
        let mut claims = Vec::new();
        for claim in listed {
            if allocation(&claim).is_none() {
                self.check(&claim, &mut classes).map_err(refuse)?;
            } else if !pod_claim::can_be_reserved(&claim) && !pod_claim::is_reserved_for(&claim, &pod.pod) {
                return Err(refuse("resourceclaim in use".to_owned()));
            }
            let failed = match readiness(&claim) {
                Ok(true) => false,
                Ok(false) => self.is_late(&claim, limits.binding),
                Err(_) => true,
            };
            claims.push(Claimed { claim, failed });
        }
        if let Some(Extended::Wanted(backed)) = &extended {
            classes.extend(backed.values().map(|c| (c.metadata.name().to_owned(), c.clone())));
        }
        let mut tracked = self.tracked.lock();
        let inventory = match &tracked.inventory {
            Some(known) => known.clone(),
            None => {
                let made = Arc::new(Inventory::new(self.slices.list(), &self.rules.list()));
                tracked.inventory = Some(made.clone());
                made
            }
        };
        let (taken, selectors) = (tracked.ledger.taken(), self.selectors.clone());
        let supply = Supply { inventory, taken, classes: Arc::new(classes), selectors };
        let search = (self.entropy.clone(), limits);
        Ok(Some(PodDevices::new(pod.clone(), claims, extended, supply, search)))
    }

    /// Extended resources of the pod that devices may stand for.
    fn extended(&self, pod: &PodInfo) -> Option<Extended> {
        if pod.requests.scalars.is_empty() {
            return None;
        }
        let backed = self.tracked.lock().backed.clone();
        let asked = |(name, n): (&String, &i64)| *n != 0 && extended::may_be_backed(name) && backed.contains_key(name);
        if !pod.requests.scalars.iter().any(asked) {
            return None;
        }
        Some(self.made_for(pod).map_or(Extended::Wanted(backed), Extended::Stale))
    }

    /// Whether a claim that has no devices yet may get them, as far as that is for no node to say.
    fn check(&self, claim: &ResourceClaim, classes: &mut Classes) -> Result<(), String> {
        if self.tracked.lock().in_flight.contains(claim.metadata.uid()) {
            return Err(format!("resource claim {} is in the process of being allocated", shown(claim)));
        }
        for request in requests(claim) {
            let name = &request.name;
            let mut named: Vec<(String, &str)> = Vec::new();
            named.extend(request.exactly.iter().map(|r| (name.clone(), r.device_class_name.as_str())));
            let subs = request.first_available.iter().flatten().filter(|_| request.exactly.is_none());
            named.extend(subs.map(|r| (format!("{name}/{}", r.name), r.device_class_name.as_str())));
            if named.is_empty() {
                return Err(format!("resource claim {}, request {name}: unknown request type", shown(claim)));
            }
            for (request, class) in named {
                match self.classes.get("", class) {
                    Some(found) => drop(classes.insert(class.to_owned(), found)),
                    None => return Err(format!("request {request}: device class {class} does not exist")),
                }
            }
        }
        Ok(())
    }

    /// Whether the time in which devices were to be made ready has passed.
    pub(super) fn is_late(&self, claim: &ResourceClaim, limit: Duration) -> bool {
        let Some(since) = allocation(claim).and_then(|a| a.allocation_timestamp.as_ref()) else { return false };
        let passed = self.clock.now().duration_since(since.0);
        has_conditions(claim) && Duration::try_from(passed).is_ok_and(|passed| passed > limit)
    }

    /// The claim that was made for the pod's extended resources, if any.
    pub(super) fn made_for(&self, pod: &PodInfo) -> Option<Arc<ResourceClaim>> {
        let mut known = self.claims.list();
        known.extend(self.tracked.lock().written.values().cloned());
        extended::find(&pod.pod, known.iter())
    }

    /// Keeps what was decided from other claims.
    pub(super) fn note_in_flight(&self, uid: &str, allocation: &AllocationResult) {
        let mut tracked = self.tracked.lock();
        tracked.in_flight.insert(uid.to_owned());
        tracked.ledger.set(uid, Some(allocation));
    }

    /// The opposite: what was decided will not be written. Does nothing where it was written already.
    pub(super) fn drop_in_flight(&self, namespace: &str, name: &str, uid: &str) {
        let known = self.claim(namespace, name).filter(|c| c.metadata.uid() == uid);
        let mut tracked = self.tracked.lock();
        if tracked.in_flight.remove(uid) {
            tracked.ledger.set(uid, known.as_deref().and_then(allocation));
        }
    }

    /// Takes note of a claim as it was written.
    pub(super) fn note_written(&self, claim: &Arc<ResourceClaim>) {
        let seen = self.claims.get(claim.metadata.namespace(), claim.metadata.name());
        let mut tracked = self.tracked.lock();
        tracked.in_flight.remove(claim.metadata.uid());
        if let Some(seen) = seen.filter(|seen| version(seen) >= version(claim)) {
            tracked.ledger.set(claim.metadata.uid(), allocation(&seen));
            return;
        }
        tracked.ledger.set(claim.metadata.uid(), allocation(claim));
        tracked.written.insert(claim.metadata.key(), claim.clone());
    }

    /// Forgets a claim that was deleted.
    pub(super) fn note_deleted(&self, claim: &ResourceClaim) {
        let mut tracked = self.tracked.lock();
        tracked.written.remove(&claim.metadata.key());
    }
}

fn has_conditions(claim: &ResourceClaim) -> bool {
    let results = allocation(claim).into_iter().flat_map(|a| a.devices.iter().flat_map(|d| d.results.iter().flatten()));
    results.into_iter().any(|r| r.binding_conditions.as_ref().is_some_and(|c| !c.is_empty()))
}

/// Whether all conditions are met that hold the binding of pods back until devices are ready.
///
/// # Errors
/// That a device will not be.
pub(super) fn readiness(claim: &ResourceClaim) -> Result<bool, String> {
    let results = allocation(claim).into_iter().flat_map(|a| a.devices.iter().flat_map(|d| d.results.iter().flatten()));
    let told = |d: &&AllocatedDeviceStatus, driver: &str, pool: &str, device: &str| {
        (d.driver.as_str(), d.pool.as_str(), d.device.as_str()) == (driver, pool, device)
    };
    for r in results {
        let wanted = r.binding_conditions.as_deref().unwrap_or_default();
        if wanted.is_empty() {
            continue;
        }
        let mut statuses = claim.status.iter().flat_map(|s| s.devices.iter().flatten());
        let Some(status) = statuses.find(|d| told(d, &r.driver, &r.pool, &r.device)) else { return Ok(false) };
        let holds =
            |name: &str| status.conditions.iter().flatten().find(|c| c.type_ == name).filter(|c| c.status == "True");
        for name in r.binding_failure_conditions.iter().flatten() {
            if let Some(c) = holds(name) {
                let claim = claim.metadata.name();
                return Err(format!("claim {claim} binding failed: reason={}, message={:?}", c.reason, c.message));
            }
        }
        if !wanted.iter().all(|name| holds(name).is_some()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the pod names the claim of this key.
pub(crate) fn uses(pod: &PodInfo, key: &str) -> bool {
    key.split_once('/').is_some_and(|(namespace, name)| {
        namespace == pod.namespace() && pod_claim::claim_names(&pod.pod).any(|n| n == name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn devices_are_waited_for_until_they_are_ready_or_failed() {
        let of = |devices: Value| -> Result<bool, String> {
            let results = json!([{"request": "r", "driver": "d", "pool": "p", "device": "x", "bindingConditions": ["Ready"],
                "bindingFailureConditions": ["Failed"]}, {"request": "r", "driver": "d", "pool": "p", "device": "y"}]);
            let claim = json!({"metadata": {"name": "c"}, "status": {"devices": devices,
                "allocation": {"devices": {"results": results}}}});
            readiness(&serde_json::from_value(claim).unwrap())
        };
        let told = |name: &str, status: &str| {
            let condition = json!({"type": name, "status": status, "reason": "R", "message": "m",
                "lastTransitionTime": "2026-01-01T00:00:00Z"});
            json!([{"driver": "d", "pool": "p", "device": "x", "conditions": [condition]}])
        };
        assert_eq!(of(json!(null)), Ok(false));
        assert_eq!(of(told("Ready", "False")), Ok(false));
        assert_eq!(of(told("Ready", "True")), Ok(true));
        assert_eq!(of(told("Failed", "False")), Ok(false));
        assert_eq!(of(told("Failed", "True")), Err("claim c binding failed: reason=R, message=\"m\"".to_owned()));
    }
}
