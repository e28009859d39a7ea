//! The claims of the pods to be placed: looked up before the nodes are filtered, bound before the pod is.

use crate::filter::volumes::{Assignment, Delayed, PodVolumes};
use crate::pod::PodInfo;
use gantry_api::core::persistent_volume_claim::storage_class;
use gantry_api::k8s_openapi::api::core::v1::{
    ObjectReference, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec,
};
use gantry_api::k8s_openapi::api::storage::v1::{CSINode, StorageClass};
use gantry_api::meta::object::Meta;
use gantry_api::storage::binding;
use gantry_client::{Api, Client, PostParams};
use gantry_reconcile::{Informer, Informers};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// Why a pod can be placed nowhere: plugin and sentence.
pub type Refusal = (&'static str, String);

/// What the scheduler knows of storage.
pub struct Volumes {
    client: Client,
    /// Claims.
    pub claims: Informer<PersistentVolumeClaim>,
    /// Volumes.
    pub volumes: Informer<PersistentVolume>,
    /// Classes.
    pub classes: Informer<StorageClass>,
    /// What the storage drivers of the nodes can do.
    pub drivers: Informer<CSINode>,
    /// Volumes promised to claims (by UID) whose binding is under way.
    promised: Mutex<HashMap<String, String>>,
}

fn csi(spec: Option<&PersistentVolumeSpec>) -> Option<(String, String)> {
    spec?.csi.as_ref().map(|c| (c.driver.clone(), c.volume_handle.clone()))
}

impl Volumes {
    /// Takes the caches from `informers`.
    #[must_use]
    pub fn new(client: Client, informers: &Informers) -> Self {
        Self {
            client,
            claims: informers.get(),
            volumes: informers.get(),
            classes: informers.get(),
            drivers: informers.get(),
            promised: Mutex::default(),
        }
    }

    /// Looks the pod's claims up; None for a pod that has none.
    ///
    /// # Errors
    /// Where no node can take the pod as its claims are now.
    pub fn of_pod(&self, pod: &PodInfo) -> Result<Option<PodVolumes>, Refusal> {
        if pod.claims.is_empty() {
            return Ok(None);
        }
        let mut out = PodVolumes::default();
        let mut unbound = false;
        for volume in pod.spec().volumes.iter().flatten() {
            let Some(name) = binding::claim_name(&pod.pod, volume) else { continue };
            let Some(claim) = self.claims.get(pod.namespace(), &name) else {
                return Err(match &volume.ephemeral {
                    Some(_) => (
                        "VolumeBinding",
                        format!("waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"),
                    ),
                    None => ("VolumeBinding", format!("persistentvolumeclaim {name:?} not found")),
                });
            };
            if volume.ephemeral.is_some() {
                binding::check_ephemeral(&claim, &pod.pod).map_err(|e| ("VolumeBinding", e))?;
            }
            if claim.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Lost")) {
                let gone = binding::volume_name(&claim);
                let message = format!("persistentvolumeclaim {name:?} bound to non-existent persistentvolume {gone:?}");
                return Err(("VolumeBinding", message));
            }
            if claim.metadata.is_deleting() {
                return Err(("VolumeBinding", format!("persistentvolumeclaim {name:?} is being deleted")));
            }
            let modes = claim.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default();
            if modes.iter().any(|m| m == "ReadWriteOncePod") {
                out.exclusive.insert(claim.metadata.key());
            }
            if binding::is_bound(&claim) {
                let volume = self.volumes.get("", binding::volume_name(&claim));
                if let Some((driver, handle)) = csi(volume.as_ref().and_then(|v| v.spec.as_ref())) {
                    out.attached.entry(driver).or_default().insert(handle);
                }
                out.bound.push(volume);
                continue;
            }
            let class = storage_class(&claim).and_then(|c| self.classes.get("", c));
            let delayed = class.as_ref().filter(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
            match delayed {
                Some(class) if binding::volume_name(&claim).is_empty() => out.delayed.push(Delayed {
                    provisioned: !class.provisioner.is_empty() && class.provisioner != binding::NO_PROVISIONER,
                    topologies: class.allowed_topologies.clone().unwrap_or_default(),
                    claim,
                }),
                _ => unbound = true,
            }
        }
        if unbound {
            return Err(("VolumeBinding", "pod has unbound immediate PersistentVolumeClaims".to_owned()));
        }
        if !out.delayed.is_empty() {
            let promised = self.promised.lock();
            let free = |v: &Arc<PersistentVolume>| {
                let to = promised.get(v.metadata.name());
                to.is_none_or(|uid| out.delayed.iter().any(|d| d.claim.metadata.uid() == uid))
            };
            out.candidates = self.volumes.list().into_iter().filter(free).collect();
        }
        if !out.attached.is_empty() {
            self.add_limits(&mut out);
        }
        Ok(Some(out))
    }

    fn add_limits(&self, out: &mut PodVolumes) {
        let mut limits = BTreeMap::new();
        for node in self.drivers.list() {
            for driver in &node.spec.drivers {
                if let Some(count) = driver.allocatable.as_ref().and_then(|a| a.count) {
                    let key = (node.metadata.name().to_owned(), driver.name.clone());
                    limits.insert(key, usize::try_from(count).unwrap_or(0));
                }
            }
        }
        let handles = self.claims.list().into_iter().filter_map(|claim| {
            let volume = self.volumes.get("", binding::volume_name(&claim))?;
            Some((claim.metadata.key(), csi(volume.spec.as_ref())?))
        });
        out.handles = Arc::new(handles.collect());
        out.limits = Arc::new(limits);
    }

    /// Keeps the chosen volumes from other pods' claims.
    pub fn promise(&self, assignment: &Assignment) {
        let mut promised = self.promised.lock();
        for (volume, claim) in &assignment.chosen {
            promised.insert(volume.metadata.name().to_owned(), claim.metadata.uid().to_owned());
        }
    }

    /// The opposite of [`Volumes::promise`], once the volumes say themselves whom they are for, or never will.
    pub fn forget(&self, assignment: &Assignment) {
        let mut promised = self.promised.lock();
        for (volume, _) in &assignment.chosen {
            promised.remove(volume.metadata.name());
        }
    }

    /// Writes what was decided and waits until all claims are bound, for at most `timeout`.
    ///
    /// # Errors
    /// Why they are not, as events word it.
    pub async fn bind(&self, assignment: &Assignment, node: &str, timeout: Duration) -> Result<(), String> {
        for (volume, claim) in &assignment.chosen {
            let mut volume = volume.as_ref().clone();
            if binding::claim_ref(&volume).is_none() {
                let notes = volume.metadata.annotations.get_or_insert_default();
                notes.insert(binding::BOUND_BY_CONTROLLER.to_owned(), "yes".to_owned());
            }
            volume.spec.get_or_insert_default().claim_ref = Some(ObjectReference {
                kind: Some("PersistentVolumeClaim".into()),
                api_version: Some("v1".into()),
                namespace: claim.metadata.namespace.clone(),
                name: claim.metadata.name.clone(),
                uid: claim.metadata.uid.clone(),
                resource_version: claim.metadata.resource_version.clone(),
                field_path: None,
            });
            let api = Api::<PersistentVolume>::all(self.client.clone());
            api.update(&PostParams::default(), &volume).await.map_err(|e| e.to_string())?;
        }
        for claim in &assignment.provisioned {
            if claim.metadata.annotation(binding::SELECTED_NODE) == Some(node) {
                continue;
            }
            let mut claim = claim.as_ref().clone();
            let notes = claim.metadata.annotations.get_or_insert_default();
            notes.insert(binding::SELECTED_NODE.to_owned(), node.to_owned());
            let api = Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), claim.metadata.namespace());
            api.update(&PostParams::default(), &claim).await.map_err(|e| e.to_string())?;
        }
        let wait = self.wait(assignment, node);
        tokio::time::timeout(timeout, wait)
            .await
            .unwrap_or_else(|_| Err("binding volumes: context deadline exceeded".to_owned()))
    }

    async fn wait(&self, assignment: &Assignment, node: &str) -> Result<(), String> {
        let mut changes = self.claims.changes();
        // The node's name is written, but the cache may not show it yet: only what was seen can be taken back.
        let mut seen = vec![false; assignment.provisioned.len()];
        loop {
            changes.mark_unchanged();
            let find = |key: &str| self.claims.store().by_key(key);
            for key in &assignment.awaited {
                if find(key).is_none() {
                    return Err(format!("failed to check provisioning pvc: persistentvolumeclaim {key:?} not found"));
                }
            }
            if assignment.awaited.iter().all(|key| find(key).is_some_and(|c| binding::is_bound(&c))) {
                return Ok(());
            }
            for (claim, seen) in assignment.provisioned.iter().zip(&mut seen) {
                let now = find(&claim.metadata.key());
                let there = now.is_some_and(|c| c.metadata.annotation(binding::SELECTED_NODE) == Some(node));
                if *seen && !there {
                    return Err(format!("provisioning failed for PVC {:?}", claim.metadata.name()));
                }
                *seen |= there;
            }
            if changes.changed().await.is_err() {
                return Err("the cache of claims has ended".to_owned());
            }
        }
    }
}
