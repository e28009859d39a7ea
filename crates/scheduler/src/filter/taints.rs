//! NodeUnschedulable and TaintToleration.

use super::Rejection;
use crate::snapshot::{Row, Snapshot};
use gantry_api::core::placement::tolerates;
use gantry_api::k8s_openapi::api::core::v1::{PodSpec, Taint, Toleration};

fn tolerated_by(spec: &PodSpec, taint: &Taint) -> bool {
    spec.tolerations.iter().flatten().any(|t| tolerates(t, taint))
}

/// NodeUnschedulable: cordoned nodes take only pods that tolerate it.
pub(super) fn unschedulable(snapshot: &Snapshot, row: Row, spec: &PodSpec) -> Result<(), Rejection> {
    if !snapshot.unschedulable[row] {
        return Ok(());
    }
    let taint =
        Taint { key: "node.kubernetes.io/unschedulable".into(), effect: "NoSchedule".into(), ..Default::default() };
    if tolerated_by(spec, &taint) {
        return Ok(());
    }
    Err(Rejection::one("NodeUnschedulable", "node(s) were unschedulable", true))
}

/// TaintToleration: every NoSchedule and NoExecute taint must be tolerated.
pub(super) fn tolerated(snapshot: &Snapshot, row: Row, spec: &PodSpec) -> Result<(), Rejection> {
    let hard = |t: &&Taint| t.effect == "NoSchedule" || t.effect == "NoExecute";
    match snapshot.taints[row].iter().filter(hard).find(|t| !tolerated_by(spec, t)) {
        None => Ok(()),
        Some(_) => Err(Rejection::one("TaintToleration", "node(s) had untolerated taint(s)", true)),
    }
}

/// PreferNoSchedule taints the pod does not tolerate.
#[must_use]
pub fn soft_count(snapshot: &Snapshot, row: Row, spec: &PodSpec) -> i64 {
    let relevant = |t: &Toleration| t.effect.as_deref().is_none_or(|e| e.is_empty() || e == "PreferNoSchedule");
    let n = snapshot.taints[row]
        .iter()
        .filter(|t| t.effect == "PreferNoSchedule")
        .filter(|taint| !spec.tolerations.iter().flatten().filter(|t| relevant(t)).any(|t| tolerates(t, taint)))
        .count();
    i64::try_from(n).unwrap_or(i64::MAX)
}
