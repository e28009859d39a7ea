//! VolumeBinding, VolumeZone, VolumeRestrictions and NodeVolumeLimits: whether a pod's claims can be had on a node.

use super::Rejection;
use crate::devices::Reserved;
use crate::pod::Occupant;
use crate::profile::{Filter, Profile};
use crate::snapshot::{Row, Snapshot};
use gantry_api::k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, TopologySelectorTerm};
use gantry_api::meta::object::Meta;
use gantry_api::storage::binding::{self, Seeker, find_match};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Labels of volumes that name where they are; several values are joined by `__`.
const ZONES: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];

/// A claim whose volume is chosen or made when its pod is placed.
#[derive(Clone, Debug)]
pub struct Delayed {
    /// The claim.
    pub claim: Arc<PersistentVolumeClaim>,
    /// Whether a volume can be made for it.
    pub provisioned: bool,
    /// Where its class allows volumes to be made; everywhere where empty.
    pub topologies: Vec<TopologySelectorTerm>,
}

/// The claims of a pod, looked up once per attempt.
#[derive(Clone, Debug, Default)]
pub struct PodVolumes {
    /// Volumes of bound claims; None where the volume is gone.
    pub bound: Vec<Option<Arc<PersistentVolume>>>,
    /// Claims that wait for their first consumer.
    pub delayed: Vec<Delayed>,
    /// Volumes that `delayed` may get: all but those other pods were promised.
    pub candidates: Vec<Arc<PersistentVolume>>,
    /// Keys of claims that one pod alone may use.
    pub exclusive: BTreeSet<String>,
    /// CSI volumes of the pod, by driver.
    pub attached: BTreeMap<String, BTreeSet<String>>,
    /// Claims of all pods to driver and volume, for what is attached to a node already.
    pub handles: Arc<BTreeMap<String, (String, String)>>,
    /// Greatest number of volumes of a driver on a node, by both.
    pub limits: Arc<BTreeMap<(String, String), usize>>,
}

/// How the claims of a pod, of volumes and of devices, are met on the node it was given.
#[derive(Clone, Debug, Default)]
pub struct Assignment {
    /// Volumes that exist, each with the claim that gets it.
    pub chosen: Vec<(Arc<PersistentVolume>, Arc<PersistentVolumeClaim>)>,
    /// Claims whose volume is to be made on the node.
    pub provisioned: Vec<Arc<PersistentVolumeClaim>>,
    /// Keys of all claims of volumes that must be bound before the pod is.
    pub awaited: Vec<String>,
    /// Its devices.
    pub devices: Option<Reserved>,
}

fn reachable(volume: &PersistentVolume, snapshot: &Snapshot, row: Row) -> bool {
    binding::reachable_from(volume, &snapshot.labels[row], &snapshot.names[row])
}

/// Finds a volume for each delayed claim, or that it can be made on the node.
#[must_use]
pub fn assign(snapshot: &Snapshot, row: Row, volumes: &PodVolumes) -> Option<Assignment> {
    let mut out = Assignment::default();
    let mut left = volumes.candidates.clone();
    for Delayed { claim, provisioned, topologies } in &volumes.delayed {
        out.awaited.push(claim.metadata.key());
        let selected = claim.metadata.annotation(binding::SELECTED_NODE);
        if selected.is_none() {
            let here = |v: &PersistentVolume| reachable(v, snapshot, row);
            let found = find_match(claim, &left, &Seeker::Scheduler(&here)).cloned();
            if let Some(volume) = found {
                left.retain(|v| v.metadata.name != volume.metadata.name);
                out.chosen.push((volume, claim.clone()));
                continue;
            }
        }
        let labels = &snapshot.labels[row];
        let allowed = topologies.is_empty()
            || topologies.iter().any(|term| {
                let mut all = term.match_label_expressions.iter().flatten();
                all.all(|r| labels.get(&r.key).is_some_and(|v| r.values.contains(v)))
            });
        if !provisioned || !allowed || selected.is_some_and(|n| n != snapshot.names[row]) {
            return None;
        }
        out.provisioned.push(claim.clone());
    }
    Some(out)
}

/// How many placed pods use claims that one pod alone may use.
#[must_use]
pub fn conflicts(snapshot: &Snapshot, pod: &Occupant, exclusive: &BTreeSet<String>) -> usize {
    if exclusive.is_empty() {
        return 0;
    }
    let others = snapshot.pods.iter().flatten().filter(|p| p.uid != pod.uid);
    others.filter(|p| uses(p, exclusive)).count()
}

/// Whether the pod uses any of the claims.
#[must_use]
pub fn uses(pod: &Occupant, claims: &BTreeSet<String>) -> bool {
    pod.claims.iter().any(|c| claims.contains(c))
}

/// Whether the pod's claims can be had on the node; `conflicts` counts the pods in the way of its exclusive ones.
pub(crate) fn filter(
    snapshot: &Snapshot,
    row: Row,
    volumes: &PodVolumes,
    conflicts: usize,
    profile: &Profile,
) -> Result<(), Rejection> {
    if conflicts > 0 && profile.filters(Filter::VolumeRestrictions) {
        let reason = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
        return Err(Rejection::one("VolumeRestrictions", reason, false));
    }
    if profile.filters(Filter::NodeVolumeLimits) {
        limits(snapshot, row, volumes)?;
    }
    if profile.filters(Filter::VolumeBinding) {
        bindable(snapshot, row, volumes)?;
    }
    if profile.filters(Filter::VolumeZone) {
        in_zone(snapshot, row, volumes)?;
    }
    Ok(())
}

fn bindable(snapshot: &Snapshot, row: Row, volumes: &PodVolumes) -> Result<(), Rejection> {
    let reject = |reason: &'static str| Err(Rejection::one("VolumeBinding", reason, true));
    if volumes.bound.iter().any(Option::is_none) {
        return reject("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)");
    }
    if volumes.bound.iter().flatten().any(|v| !reachable(v, snapshot, row)) {
        return reject("node(s) didn't match PersistentVolume's node affinity");
    }
    if assign(snapshot, row, volumes).is_none() {
        return reject("node(s) didn't find available persistent volumes to bind");
    }
    Ok(())
}

fn in_zone(snapshot: &Snapshot, row: Row, volumes: &PodVolumes) -> Result<(), Rejection> {
    let labels = &snapshot.labels[row];
    let there = |v: &PersistentVolume| {
        ZONES.iter().all(|zone| {
            v.metadata.label(zone).is_none_or(|at| labels.get(*zone).is_some_and(|l| at.split("__").any(|z| z == l)))
        })
    };
    if !volumes.bound.iter().flatten().all(|v| there(v)) {
        return Err(Rejection::one("VolumeZone", "node(s) had no available volume zone", true));
    }
    Ok(())
}

fn limits(snapshot: &Snapshot, row: Row, volumes: &PodVolumes) -> Result<(), Rejection> {
    for (driver, wanted) in &volumes.attached {
        let Some(limit) = volumes.limits.get(&(snapshot.names[row].clone(), driver.clone())) else { continue };
        let there = snapshot.pods[row].iter().flat_map(|p| &p.claims).filter_map(|c| volumes.handles.get(c));
        let mut all: BTreeSet<&String> = there.filter(|(d, _)| d == driver).map(|(_, handle)| handle).collect();
        let before = all.len();
        all.extend(wanted);
        if all.len() > before && all.len() > *limit {
            return Err(Rejection::one("NodeVolumeLimits", "node(s) exceed max volume count", false));
        }
    }
    Ok(())
}
