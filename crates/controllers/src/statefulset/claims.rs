//! The claims of a set's pods: what they are made from, and who owns them so that they go when the set's retention
//! policy says so (KEP-1847).

use super::identity::{claim_name, ordinal, position};
use gantry_api::OwnerReference;
use gantry_api::kind::Kind;
use gantry_api::meta::object::Meta;
use gantry_reconcile::owner::controller_reference;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

/// The claims the pod needs, as they are created.
#[must_use]
pub fn claims_of(set: &StatefulSet, pod: &Pod) -> Vec<PersistentVolumeClaim> {
    let Some(ordinal) = ordinal(pod) else { return Vec::new() };
    let templates = set.spec.volume_claim_templates.iter().flatten();
    templates
        .map(|template| {
            let mut claim = template.clone();
            claim.metadata.name = Some(claim_name(template.metadata.name(), set.metadata.name(), ordinal));
            claim.metadata.namespace.clone_from(&set.metadata.namespace);
            let labels = claim.metadata.labels.get_or_insert_default();
            labels.extend(set.spec.selector.match_labels.clone().unwrap_or_default());
            claim.status = None;
            claim
        })
        .collect()
}

/// Whether the reference is to something of this kind and name; its UID may be another's.
fn names<K: Kind>(r: &OwnerReference, object: &K) -> bool {
    r.api_version == K::INFO.api_version() && r.kind == K::INFO.kind && r.name == object.meta().name()
}

fn is_stale<K: Kind>(refs: &[OwnerReference], object: &K) -> bool {
    refs.iter().find(|r| names(r, object)).is_some_and(|r| r.uid != object.meta().uid())
}

/// Whether the claim still belongs to an earlier pod of this name and is about to go with it.
#[must_use]
pub fn belongs_to_earlier_pod(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    is_stale(refs(claim), pod)
}

fn refs(claim: &PersistentVolumeClaim) -> &[OwnerReference] {
    claim.metadata.owner_references.as_deref().unwrap_or_default()
}

/// The owners the claim should have, where they differ from those it has.
#[must_use]
pub fn owners_to_be(claim: &PersistentVolumeClaim, set: &StatefulSet, pod: &Pod) -> Option<Vec<OwnerReference>> {
    let have = refs(claim);
    if is_stale(have, set) || is_stale(have, pod) {
        // An earlier set or pod of this name owns it; what comes of that is for the garbage collector.
        return None;
    }
    let mut want: Vec<_> = have.iter().filter(|r| !names(r, set) && !names(r, pod)).cloned().collect();
    let policy = set.spec.persistent_volume_claim_retention_policy.clone().unwrap_or_default();
    let when_deleted = policy.when_deleted.as_deref() == Some("Delete");
    let when_scaled = policy.when_scaled.as_deref() == Some("Delete");
    let scaled_down = ordinal(pod).is_none_or(|n| position(set, n).is_none());
    // Nothing is put beside another controller.
    if !want.iter().any(|r| r.controller == Some(true)) {
        if when_scaled && scaled_down {
            want.push(controller_reference(pod));
        } else if when_deleted && !(when_scaled && scaled_down) {
            want.push(controller_reference(set));
        }
    }
    let same = want.len() == have.len()
        && want.iter().all(|w| have.iter().any(|h| h.uid == w.uid && h.controller == w.controller));
    (!same).then_some(want)
}
