//! Carries out what was planned for a StatefulSet.

use super::StatefulSets;
use super::claims::{claims_of, owners_to_be};
use super::identity::restore;
use super::plan::Step;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, DeleteParams, PostParams};
use gantry_reconcile::Error;
use gantry_reconcile::store::key_of;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use std::fmt::Display;
use std::mem::discriminant;
use std::sync::Arc;

/// An event's words for what was done to a pod.
#[derive(Clone, Copy)]
enum Verb {
    Create,
    Update,
    Delete,
}

impl Verb {
    /// Reason of success, reason of failure, the word in the message.
    fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Create => ("SuccessfulCreate", "FailedCreate", "create"),
            Self::Update => ("SuccessfulUpdate", "FailedUpdate", "update"),
            Self::Delete => ("SuccessfulDelete", "FailedDelete", "delete"),
        }
    }
}

impl StatefulSets {
    /// Takes the steps in order, those of one sort in batches of 1, 2, 4, … side by side. Ends with the first error.
    pub(super) async fn execute(&self, set: &Arc<StatefulSet>, key: &str, steps: &[Step]) -> Result<(), Error> {
        let creations = steps.iter().filter(|s| matches!(s, Step::Create(_))).count();
        let deletions = steps.iter().filter_map(|s| match s {
            Step::Delete(pod) | Step::Discard(pod) => Some(key_of(&**pod)),
            _ => None,
        });
        self.expectations.set(key, creations, deletions);
        for alike in steps.chunk_by(|a, b| discriminant(a) == discriminant(b)) {
            let (mut left, mut size) = (alike, 1);
            while !left.is_empty() {
                let (batch, rest) = left.split_at(size.min(left.len()));
                let results = futures::future::join_all(batch.iter().map(|s| self.take(set, key, s))).await;
                if let Some(error) = results.into_iter().find_map(Result::err) {
                    // What was not done will not be seen.
                    self.expectations.give_up(key);
                    return Err(error);
                }
                left = rest;
                size *= 2;
            }
        }
        Ok(())
    }

    async fn take(&self, set: &Arc<StatefulSet>, key: &str, step: &Step) -> Result<(), Error> {
        match step {
            Step::Create(pod) => self.create(set, pod).await,
            Step::Claim(pod) => self.make_claims(set, pod).await,
            Step::Own(pod) => self.own_claims(set, pod, Vec::new()).await,
            Step::Restore(pod) => self.restore(set, pod).await,
            Step::Delete(pod) => self.delete(set, key, pod, None).await,
            Step::Discard(pod) => self.delete(set, key, pod, pod.metadata.resource_version.clone()).await,
        }
    }

    fn pods_api(&self, set: &StatefulSet) -> Api<Pod> {
        Api::namespaced(self.setup.client.clone(), set.metadata.namespace())
    }

    fn claims_api(&self, set: &StatefulSet) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.setup.client.clone(), set.metadata.namespace())
    }

    fn tell(&self, set: &StatefulSet, verb: Verb, pod: &Pod, error: Option<&dyn Display>) {
        let (well, ill, word) = verb.words();
        let what = format!("{word} Pod {} in StatefulSet {}", pod.metadata.name(), set.metadata.name());
        match error {
            None => self.recorder.normal(set, well, &format!("{what} successful")),
            Some(e) => self.recorder.warning(set, ill, &format!("{what} failed error: {e}")),
        }
    }

    async fn create(&self, set: &Arc<StatefulSet>, pod: &Pod) -> Result<(), Error> {
        let made = match self.create_claims(set, pod).await {
            Ok(made) => made,
            Err(e) => {
                self.tell(set, Verb::Create, pod, Some(&e));
                return Err(e);
            }
        };
        let created = match self.pods_api(set).create(&PostParams::default(), pod).await {
            Ok(created) => created,
            Err(e) => {
                // The pod is there and the cache has not shown it, or another has its name: no news for anybody.
                if !e.is("AlreadyExists") {
                    self.tell(set, Verb::Create, pod, Some(&e));
                }
                return Err(Error::api(format!("create pod {}", pod.metadata.key()), e));
            }
        };
        self.tell(set, Verb::Create, pod, None);
        let owned = self.own_claims(set, &created, made).await;
        if let Err(e) = &owned {
            self.tell(set, Verb::Update, pod, Some(e));
        }
        owned
    }

    /// Creates the claims the pod lacks, and returns them.
    async fn create_claims(&self, set: &Arc<StatefulSet>, pod: &Pod) -> Result<Vec<PersistentVolumeClaim>, Error> {
        let (mut made, mut problems) = (Vec::new(), Vec::new());
        for claim in claims_of(set, pod) {
            let name = claim.metadata.name();
            if let Some(there) = self.claims.get(set.metadata.namespace(), name) {
                if there.metadata.deletion_timestamp.is_some() {
                    problems.push(format!("pvc {name} is being deleted"));
                }
                continue;
            }
            let of = format!("Pod {} in StatefulSet {}", pod.metadata.name(), set.metadata.name());
            match self.claims_api(set).create(&PostParams::default(), &claim).await {
                Ok(created) => {
                    let message = format!("create Claim {name} {of} success");
                    self.recorder.normal(&**set, "SuccessfulCreate", &message);
                    made.push(created);
                }
                Err(e) => {
                    if !e.is("AlreadyExists") {
                        let message = format!("create Claim {name} for {of} failed error: {e}");
                        self.recorder.warning(&**set, "FailedCreate", &message);
                    }
                    problems.push(format!("failed to create PVC {name}: {e}"));
                }
            }
        }
        if problems.is_empty() {
            return Ok(made);
        }
        let message = if problems.len() == 1 { problems.remove(0) } else { format!("[{}]", problems.join(", ")) };
        Err(Error::Other(message))
    }

    async fn make_claims(&self, set: &Arc<StatefulSet>, pod: &Pod) -> Result<(), Error> {
        let made = self.create_claims(set, pod).await?;
        let owned = self.own_claims(set, pod, made).await;
        if let Err(e) = &owned {
            self.tell(set, Verb::Update, pod, Some(e));
        }
        owned
    }

    /// Sets the owners of the pod's claims: of those just `made`, which the cache may not show yet, and of the others.
    async fn own_claims(&self, set: &StatefulSet, pod: &Pod, made: Vec<PersistentVolumeClaim>) -> Result<(), Error> {
        for wanted in claims_of(set, pod) {
            let name = wanted.metadata.name();
            let fresh = made.iter().find(|c| c.metadata.name() == name).cloned();
            let cached = || self.claims.get(set.metadata.namespace(), name).map(|c| (*c).clone());
            // One that is missing is made when the pod is looked at the next time.
            let Some(mut claim) = fresh.or_else(cached) else { continue };
            let Some(owners) = owners_to_be(&claim, set, pod) else { continue };
            claim.metadata.owner_references = Some(owners);
            let updated = self.claims_api(set).update(&PostParams::default(), &claim).await;
            updated.map_err(|e| Error::api(format!("could not update claim {name} for delete policy ownerRefs"), e))?;
        }
        Ok(())
    }

    async fn restore(&self, set: &Arc<StatefulSet>, pod: &Pod) -> Result<(), Error> {
        let outcome = self.try_restore(set, pod).await;
        self.tell(set, Verb::Update, pod, outcome.as_ref().err().map(|e| e as &dyn Display));
        outcome
    }

    async fn try_restore(&self, set: &Arc<StatefulSet>, pod: &Pod) -> Result<(), Error> {
        let made = self.create_claims(set, pod).await?;
        self.own_claims(set, pod, made).await?;
        let mut changed = pod.clone();
        restore(set, &mut changed);
        if changed == *pod {
            return Ok(());
        }
        let updated = self.pods_api(set).update(&PostParams::default(), &changed).await;
        updated.map(drop).map_err(|e| Error::api(format!("update pod {}", pod.metadata.key()), e))
    }

    /// Deletes a pod; where `version` is given, only while it has that.
    async fn delete(&self, set: &Arc<StatefulSet>, key: &str, pod: &Pod, version: Option<String>) -> Result<(), Error> {
        let params = DeleteParams {
            precondition_uid: pod.metadata.uid.clone(),
            precondition_resource_version: version,
            ..Default::default()
        };
        match self.pods_api(set).delete(pod.metadata.name(), &params).await {
            Ok(_) => {
                self.tell(set, Verb::Delete, pod, None);
                Ok(())
            }
            Err(e) if e.is("NotFound") || e.is("Conflict") => {
                // Gone already, replaced by another pod of that name, or not any more as it was.
                self.expectations.deletion_observed(key, &key_of(pod));
                Ok(())
            }
            Err(e) => {
                self.tell(set, Verb::Delete, pod, Some(&e));
                Err(Error::api(format!("delete pod {}", pod.metadata.key()), e))
            }
        }
    }
}
