//! ControllerRevisions: the templates a StatefulSet or DaemonSet has had, numbered, to go back to.

use crate::claiming::claim_all;
use crate::config::Setup;
use crate::pod_state;
use gantry_api::kind::Kind;
use gantry_api::meta::labels::Selector;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, Client, DeleteParams, PostParams};
use gantry_reconcile::owner::{controller_of, controller_reference};
use gantry_reconcile::{Error, Index, Informer};
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Label of pods with the revision they are of: its name (StatefulSets) or its hash (DaemonSets, on their revisions too).
pub const REVISION_HASH: &str = "controller-revision-hash";
/// Label of StatefulSets' revisions with the hash of their data.
pub const DATA_HASH: &str = "controller.kubernetes.io/hash";

/// The strategic merge patch that brings back the owner's present pod template: what a revision's data is.
#[must_use]
pub fn data_of<K: Kind>(owner: &K) -> Value {
    let mut template = owner.to_value().pointer("/spec/template").cloned().unwrap_or_default();
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

/// The hash of a revision's data, for its name: FNV-1 with 32 bits, the count of collisions mixed in, written in
/// letters that form no words.
#[must_use]
pub fn hash(data: &Value, collisions: Option<i32>) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut hash = 0x811c_9dc5_u32;
    let probe = collisions.map(|n| n.to_string()).unwrap_or_default();
    for b in data.to_string().bytes().chain(probe.bytes()) {
        hash = hash.wrapping_mul(0x0100_0193) ^ u32::from(b);
    }
    hash.to_string().bytes().map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()])).collect()
}

/// A revision of the owner's present template under this number. `hash_label` is the label the hash goes into.
#[must_use]
pub fn revision_of<K: Kind>(
    owner: &K,
    template: &PodTemplateSpec,
    number: i64,
    collisions: Option<i32>,
    hash_label: &str,
) -> ControllerRevision {
    let data = data_of(owner);
    let hash = hash(&data, collisions);
    let mut labels = template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
    labels.insert(hash_label.to_owned(), hash.clone());
    // A name has 253 characters at most, the hash up to 10 of them; the cut is upstream's.
    let prefix: String = owner.meta().name().chars().take(223).collect();
    ControllerRevision {
        metadata: gantry_api::ObjectMeta {
            name: Some(format!("{prefix}-{hash}")),
            namespace: owner.meta().namespace.clone(),
            labels: Some(labels),
            annotations: owner.meta().annotations.clone(),
            owner_references: Some(vec![controller_reference(owner)]),
            ..Default::default()
        },
        data: RawExtension(data),
        revision: Some(number),
    }
}

/// The template a revision keeps.
///
/// # Errors
/// Where its data has none.
pub fn template_of(revision: &ControllerRevision) -> Result<PodTemplateSpec, String> {
    let mut template = revision.data.0.pointer("/spec/template").cloned().unwrap_or_default();
    if let Some(fields) = template.as_object_mut() {
        fields.remove("$patch");
    }
    serde_json::from_value(template).map_err(|e| format!("revision {}: {e}", revision.metadata.name()))
}

/// The revision's number.
#[must_use]
pub fn number(revision: &ControllerRevision) -> i64 {
    revision.revision.unwrap_or(0)
}

/// Orders revisions from the oldest to the newest.
pub fn sort(revisions: &mut [Arc<ControllerRevision>]) {
    revisions.sort_by(|a, b| {
        let created = |r: &ControllerRevision| r.metadata.creation_timestamp.as_ref().map(|t| t.0);
        number(a)
            .cmp(&number(b))
            .then_with(|| created(a).cmp(&created(b)))
            .then_with(|| a.metadata.name().cmp(b.metadata.name()))
    });
}

/// The number after the last; `revisions` are sorted.
#[must_use]
pub fn next_number(revisions: &[Arc<ControllerRevision>]) -> i64 {
    revisions.last().map_or(0, |r| number(r)) + 1
}

/// Which of the sorted `revisions` to delete so that no more than `limit` remain besides the `live` ones (by name).
/// A negative limit keeps all.
#[must_use]
pub fn surplus(
    revisions: &[Arc<ControllerRevision>],
    live: &BTreeSet<&str>,
    limit: i32,
) -> Vec<Arc<ControllerRevision>> {
    let Ok(limit) = usize::try_from(limit) else { return Vec::new() };
    let past: Vec<_> = revisions.iter().filter(|r| !live.contains(r.metadata.name())).collect();
    past.iter().take(past.len().saturating_sub(limit)).map(|r| Arc::clone(r)).collect()
}

/// The revisions in the cluster, and how to change them.
pub struct History {
    revisions: Informer<ControllerRevision>,
    by_controller: Index<ControllerRevision>,
    client: Client,
}

impl History {
    /// Reads from the shared cache, writes as the controller of `setup`.
    #[must_use]
    pub fn new(setup: &Setup) -> Self {
        let revisions = setup.informers.get::<ControllerRevision>();
        let by_controller = revisions.index("controller or orphans", |r: &ControllerRevision| {
            vec![match controller_of(&r.metadata) {
                Some(owner) => owner.uid.clone(),
                None => pod_state::orphans_of(r.metadata.namespace()),
            }]
        });
        Self { revisions, by_controller, client: setup.client.clone() }
    }

    /// The cache it reads from.
    #[must_use]
    pub fn informer(&self) -> &Informer<ControllerRevision> {
        &self.revisions
    }

    fn api(&self, namespace: &str) -> Api<ControllerRevision> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The owner's revisions, oldest first, after adopting and releasing by `selector`.
    ///
    /// # Errors
    /// Where the server refuses a change.
    pub async fn claim<K: Kind>(&self, owner: &K, selector: &Selector) -> Result<Vec<Arc<ControllerRevision>>, Error> {
        let mut candidates = self.by_controller.get(owner.meta().uid());
        candidates.extend(self.by_controller.get(&pod_state::orphans_of(owner.meta().namespace())));
        let matches = |r: &ControllerRevision| selector.matches_optional(r.metadata.labels.as_ref());
        let mut ours = claim_all(&self.client, owner, candidates, matches).await?;
        sort(&mut ours);
        Ok(ours)
    }

    /// Creates a revision. `Ok(None)` where another one has its name already; one with the same data and controller
    /// counts as created.
    ///
    /// # Errors
    /// Where the server refuses.
    pub async fn create(&self, revision: &ControllerRevision) -> Result<Option<ControllerRevision>, Error> {
        let api = self.api(revision.metadata.namespace());
        let action = || format!("create controllerrevision {}", revision.metadata.key());
        match api.create(&PostParams::default(), revision).await {
            Ok(created) => Ok(Some(created)),
            Err(e) if e.is("AlreadyExists") => {
                let there = api.get_opt(revision.metadata.name()).await.map_err(|e| Error::api(action(), e))?;
                let there = there.ok_or_else(|| Error::api(action(), e))?;
                Ok((there.data.0 == revision.data.0).then_some(there))
            }
            Err(e) => Err(Error::api(action(), e)),
        }
    }

    /// Writes a changed revision.
    ///
    /// # Errors
    /// Where the server refuses.
    pub async fn update(&self, changed: &ControllerRevision) -> Result<ControllerRevision, Error> {
        let written = self.api(changed.metadata.namespace()).update(&PostParams::default(), changed).await;
        written.map_err(|e| Error::api(format!("update controllerrevision {}", changed.metadata.key()), e))
    }

    /// Deletes revisions; those that are gone already count as deleted.
    ///
    /// # Errors
    /// Where the server refuses.
    pub async fn delete(&self, revisions: &[Arc<ControllerRevision>]) -> Result<(), Error> {
        for r in revisions {
            let params = DeleteParams { precondition_uid: r.metadata.uid.clone(), ..Default::default() };
            match self.api(r.metadata.namespace()).delete(r.metadata.name(), &params).await {
                Ok(_) => {}
                Err(e) if e.is("NotFound") => {}
                Err(e) => return Err(Error::api(format!("delete controllerrevision {}", r.metadata.key()), e)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::StatefulSet;

    fn set(image: &str) -> StatefulSet {
        StatefulSet::from_value(json!({
            "metadata": {"name": "web", "namespace": "n", "uid": "s", "annotations": {"note": "x"}},
            "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {
                "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": image}]}}},
        }))
        .unwrap()
    }

    fn revision(image: &str, number: i64) -> Arc<ControllerRevision> {
        let set = set(image);
        Arc::new(revision_of(&set, &set.spec.template, number, Some(0), DATA_HASH))
    }

    #[test]
    fn a_revision_keeps_the_template_and_is_named_after_it() {
        let r = revision("i1", 3);
        let hash = r.metadata.label(DATA_HASH).unwrap();
        assert_eq!(r.metadata.name(), format!("web-{hash}"));
        assert_eq!(r.metadata.label("a"), Some("b"));
        assert_eq!(r.metadata.annotation("note"), Some("x"));
        assert_eq!(r.data.0["spec"]["template"]["$patch"], "replace");
        assert_eq!(template_of(&r).unwrap(), set("i1").spec.template);
        assert_ne!(r.metadata.name, revision("i2", 3).metadata.name);
        assert_ne!(super::hash(&r.data.0, Some(0)), super::hash(&r.data.0, Some(1)));
        assert!(template_of(&ControllerRevision::default()).is_err());
    }

    /// Values of Go's hash/fnv New32 and SafeEncodeString, worked out by hand for short data.
    #[test]
    fn the_hash_is_fnv_1() {
        // FNV-1 of nothing is its offset basis 2166136261; of `""` and no probe it goes over two quotation marks.
        let quoted = {
            let mut h = 2_166_136_261_u64;
            for _ in 0..2 {
                h = (h * 16_777_619 % (1 << 32)) ^ 0x22;
            }
            h.to_string()
        };
        let letters = "bcdfghjklmnpqrstvwxz2456789".as_bytes();
        let want: String = quoted.bytes().map(|d| char::from(letters[usize::from(d) % 27])).collect();
        assert_eq!(super::hash(&json!(""), None), want);
    }

    #[test]
    fn numbers_go_on_and_surplus_is_the_oldest_that_nobody_uses() {
        let mut all = vec![revision("c", 3), revision("a", 1), revision("b", 2), revision("d", 4)];
        sort(&mut all);
        assert_eq!(all.iter().map(|r| number(r)).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(next_number(&all), 5);
        assert_eq!(next_number(&[]), 1);
        let live: BTreeSet<&str> = [all[0].metadata.name(), all[3].metadata.name()].into();
        let gone = surplus(&all, &live, 1);
        assert_eq!(gone.iter().map(|r| number(r)).collect::<Vec<_>>(), [2]);
        assert!(surplus(&all, &live, 2).is_empty() && surplus(&all, &live, -1).is_empty());
    }
}
