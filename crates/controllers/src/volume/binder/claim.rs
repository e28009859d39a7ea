//! One claim: find it a volume, or have one made.

use super::{Binder, SYNC_PERIOD, annotate};
use gantry_api::core::persistent_volume_claim::storage_class;
use gantry_api::meta::object::Meta;
use gantry_api::storage::binding::{self, Seeker, find_match};
use gantry_client::PostParams;
use gantry_reconcile::{Error, EventType, Outcome};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

impl Binder {
    pub(super) async fn sync_claim(&self, claim: PersistentVolumeClaim) -> Result<Outcome, Error> {
        if claim.metadata.annotation(binding::BIND_COMPLETED).is_some() {
            self.sync_bound(claim).await?;
            return Ok(Outcome::done());
        }
        if binding::volume_name(&claim).is_empty() { self.find(claim).await } else { self.sync_named(claim).await }
    }

    /// A claim without a volume.
    async fn find(&self, claim: PersistentVolumeClaim) -> Result<Outcome, Error> {
        let delayed = self.is_delayed(&claim);
        let found = find_match(&claim, &self.volumes.list(), &Seeker::Controller { delayed }).cloned();
        if let Some(found) = found {
            self.bind(found.as_ref().clone(), claim).await?;
            return Ok(Outcome::done());
        }
        // A default class that came later counts for claims that name none.
        if storage_class(&claim).is_none()
            && let Some(class) = self.default_class()
        {
            let mut claim = claim;
            claim.spec.get_or_insert_default().storage_class_name = class.metadata.name.clone();
            self.write_claim(&claim).await?;
            return Ok(Outcome::done());
        }
        let claim = self.set_claim_status(claim, "Pending", None).await?;
        if delayed && claim.metadata.annotation(binding::SELECTED_NODE).is_none() {
            let (reason, message) = self.why_delayed(&claim);
            self.recorder.normal(&claim, reason, &message);
        } else if storage_class(&claim).is_some_and(|c| !c.is_empty()) {
            self.ask_provisioner(claim).await?;
        } else {
            let message = "no persistent volumes available for this claim and no storage class is set";
            self.recorder.normal(&claim, "FailedBinding", message);
        }
        Ok(Outcome::after(SYNC_PERIOD))
    }

    fn why_delayed(&self, claim: &PersistentVolumeClaim) -> (&'static str, String) {
        let pods = self.pods_by_claim.get(&claim.metadata.key());
        let waiting: Vec<&str> = pods
            .iter()
            .filter(|p| crate::pod_state::node_name(p).is_empty() && crate::pod_state::is_active(p))
            .map(|p| p.metadata.name())
            .collect();
        match waiting.as_slice() {
            [] => ("WaitForFirstConsumer", "waiting for first consumer to be created before binding".to_owned()),
            [pod] => ("WaitForPodScheduled", format!("waiting for pod {pod} to be scheduled")),
            pods => ("WaitForPodScheduled", format!("waiting for pods {} to be scheduled", pods.join(","))),
        }
    }

    /// Leaves the claim to the provisioner of its class.
    async fn ask_provisioner(&self, mut claim: PersistentVolumeClaim) -> Result<(), Error> {
        let failed = |claim: &_, message: &str| self.recorder.warning(claim, "ProvisioningFailed", message);
        let Some(class) = self.class(&claim) else {
            let name = storage_class(&claim).unwrap_or_default();
            failed(&claim, &format!("storageclass.storage.k8s.io {name:?} not found"));
            return Ok(());
        };
        let provisioner = class.provisioner.as_str();
        if provisioner.starts_with("kubernetes.io/") {
            failed(&claim, &format!("no volume plugin matched name: {provisioner}"));
            return Ok(());
        }
        let names = [binding::STORAGE_PROVISIONER, binding::STORAGE_PROVISIONER_BETA];
        if names.iter().any(|n| claim.metadata.annotation(n) != Some(provisioner)) {
            for name in names {
                annotate(&mut claim.metadata, name, provisioner);
            }
            claim = self.write_claim(&claim).await?;
        }
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the \
             system administrator. If volume creation is delayed, please verify that the provisioner is running and \
             correctly registered."
        );
        self.recorder.normal(&claim, "ExternalProvisioning", &message);
        Ok(())
    }

    /// A claim that names a volume, but is not bound to it yet.
    async fn sync_named(&self, claim: PersistentVolumeClaim) -> Result<Outcome, Error> {
        let name = binding::volume_name(&claim).to_owned();
        let Some(volume) = self.volumes.get("", &name) else {
            self.set_claim_status(claim, "Pending", None).await?;
            return Ok(Outcome::after(SYNC_PERIOD));
        };
        if binding::claim_ref(&volume).is_none() {
            if let Err(why) = binding::satisfies(&volume, &claim) {
                let message = format!("Cannot bind to requested volume {name:?}: {why}");
                self.recorder.warning(&claim, "VolumeMismatch", &message);
                self.set_claim_status(claim, "Pending", None).await?;
                return Ok(Outcome::after(SYNC_PERIOD));
            }
        } else if !binding::is_for_claim(&volume, &claim) {
            if claim.metadata.annotation(binding::BOUND_BY_CONTROLLER).is_some() {
                let key = claim.metadata.key();
                let what = format!("invalid binding of claim {key:?} to volume {name:?}: volume already claimed");
                return Err(Error::Other(what));
            }
            let message = format!("volume {name:?} already bound to a different claim.");
            self.recorder.warning(&claim, "FailedBinding", &message);
            self.set_claim_status(claim, "Pending", None).await?;
            return Ok(Outcome::after(SYNC_PERIOD));
        }
        self.bind(volume.as_ref().clone(), claim).await?;
        Ok(Outcome::done())
    }

    /// A claim that has been bound.
    async fn sync_bound(&self, claim: PersistentVolumeClaim) -> Result<(), Error> {
        let name = binding::volume_name(&claim);
        if name.is_empty() {
            let message = "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
            return self.lose(claim, "ClaimLost", message).await;
        }
        let Some(volume) = self.volumes.get("", name) else {
            // The cache of volumes may lag behind that of claims.
            let found =
                self.volume_api().get_opt(name).await.map_err(|e| Error::api(format!("get volume {name}"), e))?;
            if found.is_some() {
                self.queue.add_after(super::claim_key(&claim.metadata.key()), std::time::Duration::from_millis(50));
                return Ok(());
            }
            let message = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
            return self.lose(claim, "ClaimLost", message).await;
        };
        let bound_to = binding::claim_ref(&volume).and_then(|r| r.uid.as_deref()).unwrap_or_default();
        if binding::claim_ref(&volume).is_none() || bound_to == claim.metadata.uid() {
            return self.bind(volume.as_ref().clone(), claim).await;
        }
        let message = "Two claims are bound to the same volume, this one is bound incorrectly";
        self.lose(claim, "ClaimMisbound", message).await
    }

    async fn lose(&self, claim: PersistentVolumeClaim, reason: &str, message: &str) -> Result<(), Error> {
        let before = claim.status.as_ref().and_then(|s| s.phase.clone());
        let claim = self.set_claim_status(claim, "Lost", None).await?;
        if before.as_deref() != Some("Lost") {
            self.recorder.event(&claim, EventType::Warning, reason, message);
        }
        Ok(())
    }

    /// Writes the claim's phase, and what its volume offers where it has one.
    pub(super) async fn set_claim_status(
        &self,
        mut claim: PersistentVolumeClaim,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> Result<PersistentVolumeClaim, Error> {
        let before = claim.status.clone().unwrap_or_default();
        let mut status = before.clone();
        let offered = volume.and_then(|v| v.spec.as_ref());
        status.phase = Some(phase.to_owned());
        status.access_modes = offered.and_then(|s| s.access_modes.clone());
        let capacity = offered.and_then(|s| s.capacity.clone()).unwrap_or_default();
        match capacity.get("storage") {
            None => status.capacity = None,
            // The capacity of a bound claim is the file system's, which grows after its volume.
            Some(size) if before.phase.as_deref() != Some("Bound") => {
                status.capacity.get_or_insert_default().insert("storage".into(), size.clone());
            }
            Some(_) => {}
        }
        status.current_volume_attributes_class_name = match offered {
            Some(spec) => spec.volume_attributes_class_name.clone(),
            None => None,
        };
        if status == before {
            return Ok(claim);
        }
        claim.status = Some(status);
        let what = || format!("update status of claim {}", claim.metadata.key());
        self.claim_api(&claim).update_status(&PostParams::default(), &claim).await.map_err(|e| Error::api(what(), e))
    }
}
