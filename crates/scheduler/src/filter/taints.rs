//! NodeUnschedulable and TaintToleration.

use super::Rejection;
use crate::snapshot::{Row, Snapshot};
use gantry_api::k8s_openapi::api::core::v1::{PodSpec, Taint, Toleration};

/// Whether a toleration tolerates a taint (`v1.Toleration.ToleratesTaint`), numeric comparison operators included.
#[must_use]
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let set = |s: &Option<String>| s.as_deref().filter(|s| !s.is_empty()).map(str::to_owned);
    if set(&toleration.effect).is_some_and(|e| e != taint.effect) {
        return false;
    }
    if set(&toleration.key).is_some_and(|k| k != taint.key) {
        return false;
    }
    let (want, have) = (toleration.value.as_deref().unwrap_or(""), taint.value.as_deref().unwrap_or(""));
    let compare = |ok: fn(i64, i64) -> bool| match (have.parse(), want.parse()) {
        (Ok(have), Ok(want)) => ok(have, want),
        _ => false,
    };
    match toleration.operator.as_deref() {
        None | Some("" | "Equal") => want == have,
        Some("Exists") => true,
        Some("Gt") => compare(|have, want| have > want),
        Some("Lt") => compare(|have, want| have < want),
        Some(_) => false,
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toleration_table() {
        let taint = |k: &str, v: &str, e: &str| Taint {
            key: k.into(),
            value: Some(v.into()),
            effect: e.into(),
            ..Default::default()
        };
        let toleration = |k: &str, op: &str, v: &str, e: &str| Toleration {
            key: Some(k.into()),
            operator: Some(op.into()),
            value: Some(v.into()),
            effect: Some(e.into()),
            ..Default::default()
        };
        let t = taint("a", "1", "NoSchedule");
        for (toleration, expected) in [
            (toleration("a", "Equal", "1", "NoSchedule"), true),
            (toleration("a", "", "1", ""), true),
            (toleration("a", "Equal", "2", "NoSchedule"), false),
            (toleration("a", "Exists", "", "NoExecute"), false),
            (toleration("", "Exists", "", ""), true),
            (toleration("b", "Exists", "", ""), false),
            (toleration("a", "Lt", "5", ""), true),
            (toleration("a", "Gt", "5", ""), false),
        ] {
            assert_eq!(tolerates(&toleration, &t), expected, "{toleration:?}");
        }
    }
}
