//! One volume: its phase, and what becomes of it when its claim is gone.

use super::{Binder, claim_key, claim_of};
use gantry_api::meta::object::Meta;
use gantry_api::storage::binding;
use gantry_client::{Api, PostParams};
use gantry_reconcile::Error;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

impl Binder {
    pub(super) async fn sync_volume(&self, volume: PersistentVolume) -> Result<(), Error> {
        let Some(reference) = binding::claim_ref(&volume).cloned() else {
            return self.set_phase(volume, "Available", "").await.map(drop);
        };
        let uid = reference.uid.clone().unwrap_or_default();
        if uid.is_empty() {
            // Kept for a claim that is still to come.
            return self.set_phase(volume, "Available", "").await.map(drop);
        }
        let key = claim_of(&reference);
        let mut claim = self.claims.store().by_key(&key).map(|c| c.as_ref().clone());
        if claim.as_ref().is_none_or(|c| c.metadata.uid() != uid) {
            // Data may be removed on this account: the server's word counts, not the cache's.
            let (namespace, name) = gantry_reconcile::store::split_key(&key);
            let api = Api::<PersistentVolumeClaim>::namespaced(self.setup.client.clone(), namespace);
            claim = api.get_opt(name).await.map_err(|e| Error::api(format!("get claim {key}"), e))?;
        }
        let Some(claim) = claim.filter(|c| c.metadata.uid() == uid) else {
            return self.release(volume).await;
        };
        let name = volume.metadata.name().to_owned();
        match binding::volume_name(&claim) {
            "" if binding::modes_differ(&volume, &claim) => {
                let to_claim = format!(
                    "Cannot bind PersistentVolume {name:?} to requested PersistentVolumeClaim due to incompatible \
                     volumeMode."
                );
                self.recorder.warning(&claim, "VolumeMismatch", &to_claim);
                let to_volume = format!(
                    "Cannot bind PersistentVolume to requested PersistentVolumeClaim {:?} due to incompatible \
                     volumeMode.",
                    claim.metadata.name()
                );
                self.recorder.warning(&volume, "VolumeMismatch", &to_volume);
                Ok(())
            }
            "" => {
                self.queue.add(claim_key(&key));
                Ok(())
            }
            bound if bound == name => self.set_phase(volume, "Bound", "").await.map(drop),
            _ => {
                let spec = volume.spec.as_ref();
                let deleted = spec.and_then(|s| s.persistent_volume_reclaim_policy.as_deref()) == Some("Delete");
                if deleted && volume.metadata.annotation(binding::PROVISIONED_BY).is_some() {
                    // Made for this claim, which has found another meanwhile.
                    self.release(volume).await
                } else {
                    self.unbind(volume).await
                }
            }
        }
    }

    /// Undoes what the controller wrote; what a person wrote stays, but for the UID.
    async fn unbind(&self, mut volume: PersistentVolume) -> Result<(), Error> {
        let by_controller =
            volume.metadata.annotations.as_mut().is_some_and(|a| a.remove(binding::BOUND_BY_CONTROLLER).is_some());
        let spec = volume.spec.get_or_insert_default();
        if by_controller {
            spec.claim_ref = None;
        } else if let Some(reference) = &mut spec.claim_ref {
            reference.uid = None;
        }
        let volume = self.write_volume(&volume).await?;
        self.set_phase(volume, "Available", "").await.map(drop)
    }

    /// The claim is gone.
    async fn release(&self, volume: PersistentVolume) -> Result<(), Error> {
        let phase = volume.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
        let volume = match phase {
            "Released" | "Failed" => volume,
            _ => self.set_phase(volume, "Released", "").await?,
        };
        let policy = volume.spec.as_ref().and_then(|s| s.persistent_volume_reclaim_policy.as_deref());
        match policy {
            Some("Recycle") => {
                self.fail(volume, "VolumeFailedRecycle", "No recycler plugin found for the volume!").await
            }
            Some("Delete") => {
                let provisioner = volume.metadata.annotation(binding::PROVISIONED_BY).unwrap_or_default();
                if !provisioner.is_empty() && !provisioner.starts_with("kubernetes.io/") {
                    // Whoever made it removes it.
                    return Ok(());
                }
                let message = format!(
                    "error getting deleter volume plugin for volume {:?}: no deletable volume plugin matched",
                    volume.metadata.name()
                );
                self.fail(volume, "VolumeFailedDelete", &message).await
            }
            _ => Ok(()),
        }
    }

    async fn fail(&self, volume: PersistentVolume, reason: &str, message: &str) -> Result<(), Error> {
        let known = volume.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Failed"));
        let volume = self.set_phase(volume, "Failed", message).await?;
        if !known {
            self.recorder.warning(&volume, reason, message);
        }
        Ok(())
    }

    /// Writes the volume's phase where it is another.
    pub(super) async fn set_phase(
        &self,
        mut volume: PersistentVolume,
        phase: &str,
        message: &str,
    ) -> Result<PersistentVolume, Error> {
        let status = volume.status.get_or_insert_default();
        if status.phase.as_deref() == Some(phase) {
            return Ok(volume);
        }
        status.phase = Some(phase.to_owned());
        status.message = (!message.is_empty()).then(|| message.to_owned());
        let what = || format!("update status of volume {}", volume.metadata.name());
        self.volume_api().update_status(&PostParams::default(), &volume).await.map_err(|e| Error::api(what(), e))
    }
}
