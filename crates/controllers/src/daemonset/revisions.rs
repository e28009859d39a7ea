//! The revisions of a DaemonSet's template: the present one, and the earlier ones.

use super::{DaemonSets, observed_generation};
use crate::claiming::ensure_alive;
use crate::history::{self, REVISION_HASH};
use gantry_api::meta::labels::Selector;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, Patch, PatchParams, PostParams};
use gantry_reconcile::Error;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The revision of the present template, and the others from the oldest on.
pub(super) struct Revisions {
    pub current: Arc<ControllerRevision>,
    pub old: Vec<Arc<ControllerRevision>>,
}

impl Revisions {
    /// The value of the pods' label for the present template.
    pub(super) fn hash(&self) -> &str {
        self.current.metadata.label(REVISION_HASH).unwrap_or_default()
    }
}

impl DaemonSets {
    /// Finds, numbers or makes the revisions.
    pub(super) async fn revisions(
        &self,
        ds: &DaemonSet,
        selector: &Selector,
        pods: &[Arc<Pod>],
    ) -> Result<Revisions, Error> {
        let data = history::data_of(ds);
        let (mut same, mut old) = (Vec::new(), Vec::new());
        for revision in self.history.claim(ds, selector).await? {
            let revision = self.labelled(revision).await?;
            if revision.data.0 == data { same.push(revision) } else { old.push(revision) }
        }
        let number = history::next_number(&old);
        let Some(mut current) = same.pop() else {
            return Ok(Revisions { current: Arc::new(self.snapshot(ds, number).await?), old });
        };
        for double in &same {
            self.relabel(ds, pods, double, &current).await?;
        }
        self.history.delete(&same).await?;
        if history::number(&current) < number {
            let mut last = (*current).clone();
            last.revision = Some(number);
            current = Arc::new(self.history.update(&last).await?);
        }
        Ok(Revisions { current, old })
    }

    /// The revision with its hash among its labels. One made by somebody else may lack it: its name serves as well.
    async fn labelled(&self, revision: Arc<ControllerRevision>) -> Result<Arc<ControllerRevision>, Error> {
        if revision.metadata.label(REVISION_HASH).is_some() {
            return Ok(revision);
        }
        let mut labelled = (*revision).clone();
        let name = revision.metadata.name().to_owned();
        labelled.metadata.labels.get_or_insert_default().insert(REVISION_HASH.to_owned(), name);
        self.history.update(&labelled).await.map(Arc::new)
    }

    /// Pods of a revision that goes belong to its double from now on.
    async fn relabel(
        &self,
        ds: &DaemonSet,
        pods: &[Arc<Pod>],
        from: &ControllerRevision,
        to: &ControllerRevision,
    ) -> Result<(), Error> {
        let (from, to) = (from.metadata.label(REVISION_HASH), to.metadata.label(REVISION_HASH));
        let api = Api::<Pod>::namespaced(self.setup.client.clone(), ds.metadata.namespace());
        for pod in pods.iter().filter(|p| from != to && p.metadata.label(REVISION_HASH) == from) {
            let patch = json!({"metadata": {"uid": pod.metadata.uid, "labels": {REVISION_HASH: to}}});
            let patched = api.patch(pod.metadata.name(), &PatchParams::default(), &Patch::Strategic(patch)).await;
            patched.map_err(|e| Error::api(format!("relabel pod {}", pod.metadata.key()), e))?;
        }
        Ok(())
    }

    async fn snapshot(&self, ds: &DaemonSet, number: i64) -> Result<ControllerRevision, Error> {
        let collisions = ds.status.as_ref().and_then(|s| s.collision_count);
        if observed_generation(ds) == ds.metadata.generation.unwrap_or(0) {
            // There was one, which may have gone with its DaemonSet.
            ensure_alive(&self.setup.client, ds).await?;
        }
        let new = history::revision_of(ds, &ds.spec.template, number, collisions, REVISION_HASH);
        if let Some(created) = self.history.create(&new).await? {
            return Ok(created);
        }
        // Another revision has the name: count that, and take another the next time.
        let mut changed = ds.clone();
        *changed.status.get_or_insert_default().collision_count.get_or_insert(0) += 1;
        let api = Api::<DaemonSet>::namespaced(self.setup.client.clone(), ds.metadata.namespace());
        let written = api.update_status(&PostParams::default(), &changed).await;
        written.map_err(|e| Error::api(format!("update status of daemonset {}", ds.metadata.key()), e))?;
        Err(Error::Other(format!("revision {} exists with other data", new.metadata.key())))
    }

    /// Deletes the oldest revisions beyond the limit that no pod is of.
    pub(super) async fn clean_up(
        &self,
        ds: &DaemonSet,
        old: &[Arc<ControllerRevision>],
        pods: &[Arc<Pod>],
    ) -> Result<(), Error> {
        let limit = usize::try_from(ds.spec.revision_history_limit.unwrap_or(10));
        let too_many = limit.map_or(0, |l| old.len().saturating_sub(l));
        if too_many == 0 {
            return Ok(());
        }
        let live: BTreeSet<_> = pods.iter().filter_map(|p| p.metadata.label(REVISION_HASH)).collect();
        let unused = old.iter().filter(|r| r.metadata.label(REVISION_HASH).is_none_or(|h| !live.contains(h)));
        let gone: Vec<_> = unused.take(too_many).cloned().collect();
        self.history.delete(&gone).await
    }
}
