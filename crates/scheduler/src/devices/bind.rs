//! What follows a decision: devices promised, claims written before the pod is bound, and both taken back.

use super::allocate::shown;
use super::attempt::{Claimed, Extended, MadeClaim, PodDevices, Reserved};
use super::known::{Devices, readiness};
use crate::pod::PodInfo;
use gantry_api::k8s_openapi::api::core::v1::Pod;
use gantry_api::k8s_openapi::api::resource::v1::{AllocationResult, ResourceClaim, ResourceClaimConsumerReference};
use gantry_api::meta::object::Meta;
use gantry_api::resource::pod_claim::{FINALIZER, is_reserved_for};
use gantry_client::{Api, DeleteParams, Error, Patch, PatchParams, PostParams};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tracing::warn;

/// Attempts to write a claim that others write, too.
const ATTEMPTS: u32 = 5;
/// Between them; upstream's `retry.DefaultRetry`.
const BETWEEN: Duration = Duration::from_millis(10);

/// Why a claim was not written.
enum Unwritten {
    /// Somebody else wrote it meanwhile.
    Conflict(String),
    /// Trying again is of no use.
    Failed(String),
}

impl Unwritten {
    fn of(action: &str, error: &Error) -> Self {
        let text = format!("{action}: {error}");
        if error.is("Conflict") { Self::Conflict(text) } else { Self::Failed(text) }
    }
}

/// Stands for the UID of a claim that is not made yet.
fn made_uid(pod: &PodInfo) -> String {
    format!("extended-resources:{}", pod.uid)
}

impl Devices {
    fn api(&self, claim: &ResourceClaim) -> Api<ResourceClaim> {
        Api::namespaced(self.client.clone(), claim.metadata.namespace())
    }

    /// Keeps what was decided from other pods.
    pub(crate) fn promise(&self, reserved: &Reserved) {
        for (index, allocation) in &reserved.allocation.claims {
            self.note_in_flight(reserved.devices.claims[*index].claim.metadata.uid(), allocation);
        }
        if let Some(made) = &reserved.allocation.extended {
            self.note_in_flight(&made_uid(&reserved.devices.pod), &made.allocation);
        }
    }

    /// The opposite of [`Devices::promise`], as far as nothing was written.
    pub(crate) fn forget(&self, reserved: &Reserved) {
        for (index, _) in &reserved.allocation.claims {
            let meta = &reserved.devices.claims[*index].claim.metadata;
            self.drop_in_flight(meta.namespace(), meta.name(), meta.uid());
        }
        if reserved.allocation.extended.is_some() {
            self.drop_in_flight("", "", &made_uid(&reserved.devices.pod));
        }
    }

    /// Writes what was decided, and waits until the devices are ready to be used.
    ///
    /// # Errors
    /// Why the pod cannot be bound, as events word it. What was written is to be taken back by [`Devices::release`].
    pub(crate) async fn bind(&self, reserved: &Reserved, node: &str) -> Result<(), String> {
        let PodDevices { pod, claims, limits, .. } = &*reserved.devices;
        let limit = limits.binding;
        let mut written: Vec<Arc<ResourceClaim>> = Vec::new();
        for (index, Claimed { claim, .. }) in claims.iter().enumerate() {
            if is_reserved_for(claim, &pod.pod) {
                written.push(claim.clone());
                continue;
            }
            let decided = reserved.allocation.claims.iter().find(|(i, _)| *i == index).map(|(_, a)| a);
            written.push(self.bind_claim(claim, decided, pod).await?);
        }
        if let Some(made) = &reserved.allocation.extended {
            written.push(self.make_claim(made, pod).await?);
        }
        if written.iter().all(|c| readiness(c) == Ok(true)) {
            return Ok(());
        }
        let message = format!("waiting for binding conditions for device on node {node}");
        self.recorder.normal(pod.pod.as_ref(), "BindingConditionsPending", &message);
        tokio::time::timeout(limit, self.wait(&written, limit))
            .await
            .unwrap_or_else(|_| Err("device binding timeout".to_owned()))
    }

    async fn wait(&self, claims: &[Arc<ResourceClaim>], limit: Duration) -> Result<(), String> {
        let mut changes = self.claims.changes();
        loop {
            changes.mark_unchanged();
            let mut ready = true;
            for claim in claims {
                let (namespace, name) = (claim.metadata.namespace(), claim.metadata.name());
                let Some(now) = self.claim(namespace, name) else {
                    return Err(format!("could not find ResourceClaim \"{namespace}/{name}\""));
                };
                if !readiness(&now)? {
                    if self.is_late(&now, limit) {
                        return Err(format!("claim {name} binding timeout"));
                    }
                    ready = false;
                }
            }
            if ready {
                return Ok(());
            }
            if changes.changed().await.is_err() {
                return Err("the cache of claims has ended".to_owned());
            }
        }
    }

    /// Creates the claim for extended resources, and tells the pod of it.
    async fn make_claim(&self, made: &MadeClaim, pod: &PodInfo) -> Result<Arc<ResourceClaim>, String> {
        let created = self.api(&made.claim).create(&PostParams::default(), &made.claim).await;
        let created =
            created.map_err(|e| format!("create claim for extended resources {}: {e}", shown(&made.claim)))?;
        let created = Arc::new(created);
        self.note_written(&created);
        let written = self.bind_claim(&created, Some(&made.allocation), pod).await?;
        self.drop_in_flight("", "", &made_uid(pod));
        let status = json!({ "extendedResourceClaimStatus": {
            "resourceClaimName": written.metadata.name(), "requestMappings": made.mappings,
        }});
        let patch = Patch::Strategic(json!({ "metadata": { "uid": &*pod.uid }, "status": status }));
        let api = Api::<Pod>::namespaced(self.client.clone(), pod.namespace());
        api.patch_status(pod.name(), &PatchParams::default(), &patch)
            .await
            .map_err(|e| format!("update pod {} ExtendedResourceClaimStatus: {e}", pod.key))?;
        Ok(written)
    }

    /// Writes the allocation (where it was decided now) and that the pod uses the claim.
    async fn bind_claim(
        &self,
        claim: &Arc<ResourceClaim>,
        decided: Option<&AllocationResult>,
        pod: &PodInfo,
    ) -> Result<Arc<ResourceClaim>, String> {
        let api = self.api(claim);
        let mut latest = (**claim).clone();
        for attempt in 1.. {
            match self.write(&api, latest, decided, pod).await {
                Ok(written) => {
                    let written = Arc::new(written);
                    self.note_written(&written);
                    return Ok(written);
                }
                Err(Unwritten::Conflict(_)) if attempt < ATTEMPTS => tokio::time::sleep(BETWEEN).await,
                Err(Unwritten::Conflict(why) | Unwritten::Failed(why)) => return Err(why),
            }
            let found = api.get(claim.metadata.name()).await;
            latest = found.map_err(|e| format!("get updated claim {} after conflict: {e}", shown(claim)))?;
        }
        unreachable!("the last attempt returns")
    }

    async fn write(
        &self,
        api: &Api<ResourceClaim>,
        mut claim: ResourceClaim,
        decided: Option<&AllocationResult>,
        pod: &PodInfo,
    ) -> Result<ResourceClaim, Unwritten> {
        let name = shown(&claim);
        if claim.metadata.is_deleting() {
            return Err(Unwritten::Failed(format!("claim {name} got deleted in the meantime")));
        }
        let allocated = claim.status.as_ref().is_some_and(|s| s.allocation.is_some());
        if let Some(decided) = decided {
            if allocated {
                return Err(Unwritten::Failed(format!("claim {name} got allocated elsewhere in the meantime")));
            }
            let finalizers = claim.metadata.finalizers.get_or_insert_default();
            if !finalizers.iter().any(|f| f == FINALIZER) {
                finalizers.push(FINALIZER.to_owned());
                let added = api.update(&PostParams::default(), &claim).await;
                claim = added.map_err(|e| Unwritten::of(&format!("add finalizer to claim {name}"), &e))?;
            }
            claim.status.get_or_insert_default().allocation = Some(decided.clone());
        }
        let status = claim.status.get_or_insert_default();
        if let Some(allocation) = &mut status.allocation {
            allocation.allocation_timestamp.get_or_insert_with(|| self.clock.time());
        }
        status.reserved_for.get_or_insert_default().push(ResourceClaimConsumerReference {
            api_group: None,
            resource: "pods".to_owned(),
            name: pod.name().to_owned(),
            uid: pod.uid.to_string(),
        });
        let what =
            if decided.is_some() { "add allocation and reservation to claim" } else { "add reservation to claim" };
        let updated = api.update_status(&PostParams::default(), &claim).await;
        updated.map_err(|e| Unwritten::of(&format!("{what} {name}"), &e))
    }

    /// Takes back what was promised and written for a pod that is not bound after all.
    pub(crate) async fn release(&self, reserved: &Reserved) {
        self.forget(reserved);
        let pod = &reserved.devices.pod;
        for Claimed { claim, .. } in &reserved.devices.claims {
            let (namespace, name) = (claim.metadata.namespace(), claim.metadata.name());
            let Some(now) = self.claim(namespace, name).filter(|c| is_reserved_for(c, &pod.pod)) else { continue };
            let user = json!({ "$patch": "delete", "uid": &*pod.uid });
            let patch = json!({ "metadata": { "uid": now.metadata.uid() }, "status": { "reservedFor": [user] } });
            match self.api(&now).patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(written) => self.note_written(&Arc::new(written)),
                Err(error) => warn!(pod = pod.key, claim = name, %error, "cannot take a reservation back"),
            }
        }
        if reserved.allocation.extended.is_some()
            && let Some(made) = self.made_for(pod)
            && let Err(error) = self.delete(&made).await
        {
            warn!(pod = pod.key, claim = made.metadata.name(), error, "cannot delete the claim of extended resources");
        }
    }

    /// Makes room for a pod that no node took: a claim that is allocated where the pod cannot be, and that nobody else
    /// uses, loses its devices. Returns what came of it, as events word it.
    pub(crate) async fn make_room(&self, devices: &PodDevices) -> String {
        if let Some(claim) = devices.idle() {
            let mut free = (*claim).clone();
            let status = free.status.get_or_insert_default();
            (status.reserved_for, status.allocation, status.devices) = (None, None, None);
            return match self.api(&claim).update_status(&PostParams::default(), &free).await {
                Ok(_) => "deallocation of ResourceClaim completed".to_owned(),
                Err(error) => error.to_string(),
            };
        }
        if let Some(Extended::Stale(claim)) = &devices.extended {
            return match self.delete(claim).await {
                Ok(()) => "deletion of ResourceClaim completed".to_owned(),
                Err(error) => error,
            };
        }
        "still not schedulable".to_owned()
    }

    /// Deletes a claim that was made for extended resources.
    async fn delete(&self, claim: &ResourceClaim) -> Result<(), String> {
        let api = self.api(claim);
        let mut latest = claim.clone();
        for attempt in 1.. {
            latest.metadata.finalizers.iter_mut().for_each(|f| f.retain(|f| f != FINALIZER));
            match api.update(&PostParams::default(), &latest).await {
                Ok(_) => break,
                Err(e) if e.is("Conflict") && attempt < ATTEMPTS => tokio::time::sleep(BETWEEN).await,
                Err(e) => return Err(format!("update resourceclaim {}: {e}", shown(claim))),
            }
            let found = api.get(claim.metadata.name()).await;
            latest = found.map_err(|e| format!("get resourceclaim {}: {e}", shown(claim)))?;
        }
        api.delete(claim.metadata.name(), &DeleteParams::default()).await.map_err(|e| e.to_string())?;
        self.note_deleted(claim);
        Ok(())
    }
}
