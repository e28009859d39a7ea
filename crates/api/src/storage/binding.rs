//! What binds claims to volumes, for the controller that binds, the scheduler that chooses and the node that mounts.

use crate::core::persistent_volume_claim::{BETA_STORAGE_CLASS, storage_class};
use crate::core::placement;
use crate::meta::labels::Selector;
use crate::meta::object::Meta;
use crate::meta::quantity::amount_of;
use crate::meta::text;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// On a claim: both directions of its binding are written.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a claim or volume: the controller, not a person, chose the other side.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a volume: the provisioner that made it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a claim: the provisioner that shall make its volume.
pub const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// The same by its elder name, which provisioners still read.
pub const STORAGE_PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// On a claim: the node the scheduler chose, where its volume shall be made.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// The provisioner of classes whose volumes are made by hand.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// The provisioner that is built in: directories on the node the pod runs on.
pub const LOCAL_PATH: &str = "gantry.local/local-path";
/// Label of such a volume: the node whose agent makes and removes its directory.
pub const LOCAL_PATH_NODE: &str = "gantry.local/local-path-node";
/// Annotation of a Node: the directory its agent keeps such volumes in.
pub const LOCAL_PATH_ROOT: &str = "gantry.local/local-path-root";

/// The storage class of a volume: the elder annotation, else the field; empty for none.
#[must_use]
pub fn class_of_volume(volume: &PersistentVolume) -> &str {
    let field = || volume.spec.as_ref().map_or("", |s| text(&s.storage_class_name));
    volume.metadata.annotation(BETA_STORAGE_CLASS).unwrap_or_else(field)
}

/// The volume a claim names; empty for none.
#[must_use]
pub fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().map_or("", |s| text(&s.volume_name))
}

/// The claim a volume names, by name or by UID.
#[must_use]
pub fn claim_ref(volume: &PersistentVolume) -> Option<&ObjectReference> {
    volume.spec.as_ref()?.claim_ref.as_ref()
}

/// Whether both directions of the claim's binding are written.
#[must_use]
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    !volume_name(claim).is_empty() && claim.metadata.annotation(BIND_COMPLETED).is_some()
}

/// Whether the volume is kept for this claim: by UID, or by name where it names no UID yet.
#[must_use]
pub fn is_for_claim(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    claim_ref(volume).is_some_and(|r| {
        text(&r.name) == claim.metadata.name()
            && text(&r.namespace) == claim.metadata.namespace()
            && (text(&r.uid).is_empty() || text(&r.uid) == claim.metadata.uid())
    })
}

fn mode(mode: Option<&String>) -> &str {
    mode.map_or("Filesystem", String::as_str)
}

/// Whether the volume has every access mode the claim wants.
fn has_modes(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let have = volume.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default();
    claim.spec.iter().flat_map(|s| s.access_modes.iter().flatten()).all(|m| have.contains(m))
}

/// Whether one is a file system and the other a block device.
#[must_use]
pub fn modes_differ(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let of_volume = mode(volume.spec.as_ref().and_then(|s| s.volume_mode.as_ref()));
    of_volume != mode(claim.spec.as_ref().and_then(|s| s.volume_mode.as_ref()))
}

fn attributes_differ(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let of_volume = volume.spec.as_ref().map_or("", |s| text(&s.volume_attributes_class_name));
    of_volume != claim.spec.as_ref().map_or("", |s| text(&s.volume_attributes_class_name))
}

fn is_too_small(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let wanted = claim.spec.as_ref().and_then(|s| s.resources.as_ref()?.requests.as_ref());
    amount_of(volume.spec.as_ref().and_then(|s| s.capacity.as_ref()), "storage") < amount_of(wanted, "storage")
}

/// Whether a claim that names the volume itself may have it.
///
/// # Errors
/// Why not, as events word it.
pub fn satisfies(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Result<(), &'static str> {
    if is_too_small(volume, claim) {
        return Err("requested PV is too small");
    }
    if class_of_volume(volume) != storage_class(claim).unwrap_or_default() {
        return Err("storageClassName does not match");
    }
    if attributes_differ(volume, claim) {
        return Err("volumeAttributesClassName does not match");
    }
    if modes_differ(volume, claim) {
        return Err("incompatible volumeMode");
    }
    if !has_modes(volume, claim) {
        return Err("incompatible accessMode");
    }
    Ok(())
}

/// How a match is looked for.
pub enum Seeker<'a> {
    /// The controller. `delayed` claims get only volumes that were kept for them: the scheduler decides on the others.
    Controller {
        /// Whether the claim's class waits for the first consumer.
        delayed: bool,
    },
    /// The scheduler: whether the volume can be reached from the node in question.
    Scheduler(&'a dyn Fn(&PersistentVolume) -> bool),
}

/// The volume that suits a claim best: the one kept for it, else the smallest that is large enough.
#[must_use]
pub fn find_match<'v, V: AsRef<PersistentVolume>>(
    claim: &PersistentVolumeClaim,
    volumes: &'v [V],
    seeker: &Seeker<'_>,
) -> Option<&'v V> {
    let class = storage_class(claim).unwrap_or_default();
    let selector = claim.spec.as_ref().and_then(|s| s.selector.as_ref());
    // A selector that cannot be read selects nothing; validation lets none in.
    let selector = selector.map(|s| Selector::from_label_selector(Some(s)).unwrap_or_else(|_| Selector::nothing()));
    let mut best: Option<&V> = None;
    for candidate in volumes {
        let volume = candidate.as_ref();
        let kept = is_for_claim(volume, claim);
        if (claim_ref(volume).is_some() && !kept)
            || is_too_small(volume, claim)
            || modes_differ(volume, claim)
            || attributes_differ(volume, claim)
            || volume.metadata.is_deleting()
        {
            continue;
        }
        let reachable = match seeker {
            Seeker::Controller { .. } => true,
            Seeker::Scheduler(reachable) => reachable(volume),
        };
        if kept {
            return reachable.then_some(candidate);
        }
        let left_to_scheduler = matches!(seeker, Seeker::Controller { delayed: true });
        if left_to_scheduler
            || !reachable
            || volume.status.as_ref().map_or("", |s| text(&s.phase)) != "Available"
            || selector.as_ref().is_some_and(|s| !s.matches_optional(volume.metadata.labels.as_ref()))
            || class_of_volume(volume) != class
            || !has_modes(volume, claim)
        {
            continue;
        }
        // Of those that suit, the one that can do least, and of those the smallest.
        let rank = |v: &PersistentVolume| {
            let spec = v.spec.as_ref();
            let modes = spec.and_then(|s| s.access_modes.as_ref()).map_or(0, Vec::len);
            (modes, amount_of(spec.and_then(|s| s.capacity.as_ref()), "storage"))
        };
        if best.is_none_or(|b| rank(volume) < rank(b.as_ref())) {
            best = Some(candidate);
        }
    }
    best
}

/// Whether the volume can be reached from a node with these labels.
#[must_use]
pub fn reachable_from(volume: &PersistentVolume, labels: &BTreeMap<String, String>, node: &str) -> bool {
    let required = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref()).and_then(|a| a.required.as_ref());
    required.is_none_or(|required| placement::selects(required, labels, node))
}

/// The name of the claim behind a volume of a pod: the one it names, or the one made for it alone.
#[must_use]
pub fn claim_name<'a>(pod: &Pod, volume: &'a Volume) -> Option<Cow<'a, str>> {
    if let Some(claim) = &volume.persistent_volume_claim {
        return Some(Cow::Borrowed(claim.claim_name.as_str()));
    }
    volume.ephemeral.as_ref().map(|_| Cow::Owned(format!("{}-{}", pod.metadata.name(), volume.name)))
}

/// Whether a claim that belongs to a pod's ephemeral volume was made for that pod.
///
/// # Errors
/// That it was not, as events word it.
pub fn check_ephemeral(claim: &PersistentVolumeClaim, pod: &Pod) -> Result<(), String> {
    let owner = claim.metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true));
    if owner.is_some_and(|o| o.uid == pod.metadata.uid()) {
        return Ok(());
    }
    Err(format!("PVC {} was not created for pod {} (pod is not owner)", claim.metadata.key(), pod.metadata.key()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn volume(name: &str, size: &str, more: Value) -> Arc<PersistentVolume> {
        let mut v = json!({"metadata": {"name": name}, "status": {"phase": "Available"},
            "spec": {"capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"]}});
        for (k, x) in more.as_object().unwrap() {
            v["spec"][k] = x.clone();
        }
        Arc::new(PersistentVolume::from_value(v).unwrap())
    }

    fn claim(more: Value) -> PersistentVolumeClaim {
        let mut v = json!({"metadata": {"name": "c", "namespace": "n", "uid": "u"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}}});
        for (k, x) in more.as_object().unwrap() {
            v["spec"][k] = x.clone();
        }
        PersistentVolumeClaim::from_value(v).unwrap()
    }

    fn found(claim: &PersistentVolumeClaim, volumes: &[Arc<PersistentVolume>], seeker: &Seeker<'_>) -> Option<String> {
        find_match(claim, volumes, seeker).map(|v| v.metadata.name().to_owned())
    }

    #[test]
    fn the_smallest_that_suits_wins_and_one_kept_for_the_claim_before_it() {
        let now = Seeker::Controller { delayed: false };
        let mut all = vec![
            volume("small", "1Gi", json!({})),
            volume("large", "9Gi", json!({})),
            volume("fits", "3Gi", json!({})),
            volume("classy", "2Gi", json!({"storageClassName": "fast"})),
            volume("raw", "2Gi", json!({"volumeMode": "Block"})),
            volume("taken", "2Gi", json!({"claimRef": {"namespace": "n", "name": "other"}})),
        ];
        assert_eq!(found(&claim(json!({})), &all, &now).as_deref(), Some("fits"));
        assert_eq!(found(&claim(json!({"storageClassName": "fast"})), &all, &now).as_deref(), Some("classy"));
        assert_eq!(found(&claim(json!({"accessModes": ["ReadWriteMany"]})), &all, &now), None);
        assert_eq!(found(&claim(json!({})), &all, &Seeker::Controller { delayed: true }), None);
        all.push(volume("kept", "8Gi", json!({"claimRef": {"namespace": "n", "name": "c"}})));
        assert_eq!(found(&claim(json!({})), &all, &now).as_deref(), Some("kept"));
        assert_eq!(found(&claim(json!({})), &all, &Seeker::Scheduler(&|_| false)), None);
    }

    #[test]
    fn a_volume_that_is_named_says_what_is_wrong_with_it() {
        let v = volume("v", "2Gi", json!({}));
        assert_eq!(satisfies(&v, &claim(json!({}))), Ok(()));
        let large = claim(json!({"resources": {"requests": {"storage": "3Gi"}}}));
        assert_eq!(satisfies(&v, &large), Err("requested PV is too small"));
        assert_eq!(satisfies(&v, &claim(json!({"storageClassName": "x"}))), Err("storageClassName does not match"));
        assert_eq!(satisfies(&v, &claim(json!({"volumeMode": "Block"}))), Err("incompatible volumeMode"));
        assert_eq!(satisfies(&v, &claim(json!({"accessModes": ["ReadOnlyMany"]}))), Err("incompatible accessMode"));
    }

    #[test]
    fn affinity_to_nodes() {
        let v = volume(
            "v",
            "1Gi",
            json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["a"]}]}]}}}),
        );
        let labels = |host: &str| BTreeMap::from([("kubernetes.io/hostname".to_owned(), host.to_owned())]);
        assert!(reachable_from(&v, &labels("a"), "a") && !reachable_from(&v, &labels("b"), "b"));
        assert!(reachable_from(&volume("w", "1Gi", json!({})), &labels("b"), "b"));
    }
}
