//! What makes a pod the n-th of its set: its name, labels, host name and volumes.

use crate::history::REVISION_HASH;
use gantry_api::meta::object::Meta;
use gantry_reconcile::owner::controller_reference;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume};

/// Label with the pod's name, for Services that mean one pod.
pub const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
/// Label with the pod's ordinal.
pub const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// Set and ordinal a pod's name tells of.
#[must_use]
pub fn parent_and_ordinal(pod: &str) -> Option<(&str, i32)> {
    let (parent, digits) = pod.rsplit_once('-')?;
    let numeric = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    Some((parent, digits.parse().ok().filter(|_| numeric)?))
}

/// The pod's ordinal in whatever set it is of.
#[must_use]
pub fn ordinal(pod: &Pod) -> Option<i32> {
    parent_and_ordinal(pod.metadata.name()).map(|(_, n)| n)
}

/// Whether the pod's name is one of the set's.
#[must_use]
pub fn is_member(set: &StatefulSet, pod: &Pod) -> bool {
    let name = pod.metadata.name().rsplit_once('-');
    name.is_some_and(|(parent, n)| {
        parent == set.metadata.name() && !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())
    })
}

/// The first ordinal.
#[must_use]
pub fn start(set: &StatefulSet) -> i32 {
    set.spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0)
}

/// How many pods are asked for.
#[must_use]
pub fn replicas(set: &StatefulSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

/// The position among the wanted pods of one with this ordinal; None for one beyond them.
#[must_use]
pub fn position(set: &StatefulSet, ordinal: i32) -> Option<usize> {
    let at = i64::from(ordinal) - i64::from(start(set));
    usize::try_from(at).ok().filter(|_| at < i64::from(replicas(set)))
}

/// The name of the claim for one template and ordinal.
#[must_use]
pub fn claim_name(template: &str, set: &str, ordinal: i32) -> String {
    format!("{template}-{set}-{ordinal}")
}

/// The revision a pod is of, empty where it has none.
#[must_use]
pub fn revision(pod: &Pod) -> &str {
    pod.metadata.label(REVISION_HASH).unwrap_or_default()
}

/// A new pod of this revision.
#[must_use]
pub fn new_pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let name = format!("{}-{ordinal}", set.metadata.name());
    let meta = template.metadata.clone().unwrap_or_default();
    let mut pod = Pod {
        metadata: gantry_api::ObjectMeta {
            name: Some(name.clone()),
            namespace: set.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_reference(set)]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    };
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name);
    spec.subdomain.clone_from(&set.spec.service_name);
    restore(set, &mut pod);
    pod.metadata.labels.get_or_insert_default().insert(REVISION_HASH.to_owned(), revision.to_owned());
    pod
}

/// Whether the pod's labels tell who it is.
#[must_use]
pub fn identity_matches(pod: &Pod) -> bool {
    pod.metadata.label(POD_NAME) == Some(pod.metadata.name())
}

/// Whether the pod's volumes are its claims.
#[must_use]
pub fn storage_matches(set: &StatefulSet, pod: &Pod) -> bool {
    let Some(ordinal) = ordinal(pod) else { return false };
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    set.spec.volume_claim_templates.iter().flatten().all(|t| {
        let claim = claim_name(t.metadata.name(), set.metadata.name(), ordinal);
        let volume = volumes.iter().find(|v| v.name == t.metadata.name());
        volume.and_then(|v| v.persistent_volume_claim.as_ref()).is_some_and(|v| v.claim_name == claim)
    })
}

/// Gives a pod of the set the labels and volumes of its ordinal.
pub fn restore(set: &StatefulSet, pod: &mut Pod) {
    let Some(ordinal) = ordinal(pod) else { return };
    let name = pod.metadata.name().to_owned();
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.to_owned(), name);
    labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
    let templates = set.spec.volume_claim_templates.as_deref().unwrap_or_default();
    if templates.is_empty() {
        return;
    }
    let volumes = pod.spec.get_or_insert_default().volumes.get_or_insert_default();
    volumes.retain(|v| templates.iter().all(|t| t.metadata.name() != v.name));
    let claimed = templates.iter().map(|t| Volume {
        name: t.metadata.name().to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim_name(t.metadata.name(), set.metadata.name(), ordinal),
            read_only: None,
        }),
        ..Default::default()
    });
    volumes.splice(0..0, claimed);
}
