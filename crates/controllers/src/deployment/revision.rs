//! ReplicaSets as revisions of a Deployment: which belongs to which template, and the annotations that number them.

use gantry_api::kind::Kind;
use gantry_api::meta::object::Meta;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use std::collections::BTreeMap;

/// Label that tells the pods of one template from those of another.
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";
/// Annotation with the revision's number.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Annotation with the numbers a revision had before.
pub(super) const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// Annotation with the Deployment's replicas when the ReplicaSet was last scaled.
pub(super) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// Annotation with the most replicas allowed then.
pub(super) const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";
/// The history annotation grows no longer than this.
const HISTORY_LENGTH: usize = 2000;
/// Annotations of a Deployment that its ReplicaSets do not take over.
const NOT_COPIED: &[&str] = &[
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAXIMUM,
    "deprecated.deployment.rollback.to",
];

/// The label value for a Deployment's template. Ours, not upstream's (which hashes Go's in-memory form), of the same length
/// and alphabet; equal templates are found by comparison, never by hash.
#[must_use]
pub fn template_hash(d: &Deployment) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let template = d.to_value().pointer("/spec/template").cloned().unwrap_or_default();
    let collisions = d.status.as_ref().and_then(|s| s.collision_count);
    let mut hash = 0x811c_9dc5_u32;
    let mut eat = |bytes: &[u8]| {
        for b in bytes {
            hash = (hash ^ u32::from(*b)).wrapping_mul(0x0100_0193);
        }
    };
    eat(template.to_string().as_bytes());
    if let Some(n) = collisions {
        eat(&n.to_le_bytes());
    }
    hash.to_string().bytes().map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()])).collect()
}

/// Whether the ReplicaSet is of this template.
pub(super) fn same_template(set: &ReplicaSet, template: &PodTemplateSpec) -> bool {
    let bare = |t: &PodTemplateSpec| {
        let mut t = t.clone();
        if let Some(labels) = t.metadata.as_mut().and_then(|m| m.labels.as_mut()) {
            labels.remove(POD_TEMPLATE_HASH);
        }
        t
    };
    set.spec.template.as_ref().is_some_and(|t| bare(t) == bare(template))
}

/// The number of a revision, 0 where it has none.
pub(super) fn number(set: &ReplicaSet) -> i64 {
    set.metadata.annotation(REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

fn set_annotation(annotations: &mut BTreeMap<String, String>, name: &str, value: &str) -> bool {
    if annotations.get(name).is_some_and(|v| v == value) {
        return false;
    }
    annotations.insert(name.to_owned(), value.to_owned());
    true
}

/// Brings the annotations of the ReplicaSet of the present template up to date; whether they changed.
pub(super) fn annotate_new(d: &Deployment, set: &mut ReplicaSet, revision: i64) -> bool {
    let annotations = set.metadata.annotations.get_or_insert_default();
    let mut changed = false;
    for (k, v) in d.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&k.as_str()) {
            changed |= set_annotation(annotations, k, v);
        }
    }
    let before = annotations.get(REVISION).cloned();
    let before_number: i64 = before.as_deref().and_then(|r| r.parse().ok()).unwrap_or(0);
    if before_number < revision {
        annotations.insert(REVISION.to_owned(), revision.to_string());
        changed = true;
        if let Some(before) = before {
            let mut history: Vec<String> =
                annotations.get(HISTORY).map(|h| h.split(',').map(str::to_owned).collect()).unwrap_or_default();
            history.retain(|h| !h.is_empty());
            history.push(before);
            while history.join(",").len() > HISTORY_LENGTH && history.len() > 1 {
                history.remove(0);
            }
            annotations.insert(HISTORY.to_owned(), history.join(","));
        }
    }
    changed
}

/// Notes on a ReplicaSet for how many replicas it was scaled; whether that is new.
pub(super) fn annotate_replicas(set: &mut ReplicaSet, desired: i32, maximum: i32) -> bool {
    let annotations = set.metadata.annotations.get_or_insert_default();
    let a = set_annotation(annotations, DESIRED, &desired.to_string());
    let b = set_annotation(annotations, MAXIMUM, &maximum.to_string());
    a || b
}

/// A number noted on a ReplicaSet.
pub(super) fn noted(set: &ReplicaSet, annotation: &str) -> Option<i32> {
    set.metadata.annotation(annotation)?.parse().ok()
}
