//! The arithmetic of a budget, pure.

use crate::pod_state;
use gantry_api::Time;
use gantry_api::meta::object::Meta;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::sync::Arc;
use std::time::Duration;

/// What stands behind the selected pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Managed {
    /// Sum of the scales of their controllers.
    pub scale: i32,
    /// Pods without a controller whose scale is known.
    pub unmanaged: Vec<String>,
}

/// How many pods there should be, and how many of them healthy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// Pods.
    pub count: i32,
    /// Healthy pods.
    pub healthy: i32,
}

/// The result of [`compute`].
#[derive(Clone, Debug, PartialEq)]
pub struct Computed {
    /// The new status.
    pub status: PodDisruptionBudgetStatus,
    /// Pods announced as disrupted long ago that are still there.
    pub overdue: Vec<String>,
    /// When the next announced disruption becomes overdue.
    pub recheck: Option<Duration>,
}

/// Whether the budget is measured against the scale of the pods' controllers.
#[must_use]
pub fn needs_scale(budget: &PodDisruptionBudget) -> bool {
    budget
        .spec
        .as_ref()
        .is_some_and(|s| s.max_unavailable.is_some() || matches!(s.min_available, Some(IntOrString::String(_))))
}

/// A number, or a share of `total` rounded up.
fn scaled(value: &IntOrString, total: i32) -> i32 {
    match value {
        IntOrString::Int(n) => *n,
        IntOrString::String(s) => {
            let percent: i64 = s.strip_suffix('%').and_then(|p| p.parse().ok()).unwrap_or(0);
            i32::try_from((i64::from(total) * percent + 99).div_euclid(100)).unwrap_or(i32::MAX)
        }
    }
}

/// How many pods there should be by the budget's own measure.
#[must_use]
pub fn expected(budget: &PodDisruptionBudget, pods: &[Arc<Pod>], managed: &Managed) -> Expected {
    let Some(spec) = &budget.spec else { return Expected::default() };
    if let Some(max) = &spec.max_unavailable {
        let count = managed.scale;
        return Expected { count, healthy: (count - scaled(max, count)).max(0) };
    }
    match &spec.min_available {
        Some(IntOrString::Int(n)) => Expected { count: i32::try_from(pods.len()).unwrap_or(i32::MAX), healthy: *n },
        Some(percent) => Expected { count: managed.scale, healthy: scaled(percent, managed.scale) },
        None => Expected::default(),
    }
}

/// The status of a budget of which it cannot be known what it allows: nothing.
#[must_use]
pub fn failed(status: PodDisruptionBudgetStatus, why: &str, now: Time) -> PodDisruptionBudgetStatus {
    let observed = status.observed_generation;
    let conditions =
        with_condition(status.conditions.clone().unwrap_or_default(), ("False", "SyncFailed", why), observed, now);
    PodDisruptionBudgetStatus { conditions: Some(conditions), disruptions_allowed: Some(0), ..status }
}

/// The conditions with that of allowed disruptions, as `(status, reason, message)`.
fn with_condition(
    mut conditions: Vec<Condition>,
    (status, reason, message): (&str, &str, &str),
    observed_generation: Option<i64>,
    now: Time,
) -> Vec<Condition> {
    let since = conditions
        .iter()
        .find(|c| c.type_ == "DisruptionAllowed" && c.status == status)
        .map_or(now, |c| c.last_transition_time.clone());
    conditions.retain(|c| c.type_ != "DisruptionAllowed");
    conditions.push(Condition {
        type_: "DisruptionAllowed".into(),
        status: status.into(),
        reason: reason.into(),
        observed_generation,
        last_transition_time: since,
        message: message.into(),
    });
    conditions
}

/// The status of the budget.
#[must_use]
pub fn compute(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    expected: Expected,
    now: Time,
    deletion_timeout: Duration,
) -> Computed {
    let old = budget.status.clone().unwrap_or_default();
    let timeout = i64::try_from(deletion_timeout.as_secs()).unwrap_or(i64::MAX);
    let mut disrupted = old.disrupted_pods.clone().unwrap_or_default();
    let mut overdue = Vec::new();
    let mut recheck: Option<Duration> = None;
    disrupted.retain(|name, since| {
        let Some(pod) = pods.iter().find(|p| p.metadata.name() == name) else { return false };
        if pod_state::is_terminating(pod) {
            return false;
        }
        let left = since.0.as_second() + timeout - now.0.as_second();
        if left <= 0 {
            overdue.push(name.clone());
            return false;
        }
        let left = Duration::from_secs(left.unsigned_abs());
        recheck = Some(recheck.map_or(left, |r| r.min(left)));
        true
    });
    let healthy = pods
        .iter()
        .filter(|p| {
            !pod_state::is_terminating(p) && !disrupted.contains_key(p.metadata.name()) && pod_state::is_ready(p)
        })
        .count();
    let healthy = i32::try_from(healthy).unwrap_or(i32::MAX);
    let allowed = if expected.count <= 0 { 0 } else { (healthy - expected.healthy).max(0) };

    let (status, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let conditions = old.conditions.unwrap_or_default();
    let conditions = with_condition(conditions, (status, reason, ""), budget.metadata.generation, now);
    Computed {
        status: PodDisruptionBudgetStatus {
            conditions: Some(conditions),
            current_healthy: Some(healthy),
            desired_healthy: Some(expected.healthy),
            expected_pods: Some(expected.count),
            disruptions_allowed: Some(allowed),
            disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
            observed_generation: budget.metadata.generation,
        },
        overdue,
        recheck,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodCondition, PodStatus};
    use k8s_openapi::api::policy::v1::PodDisruptionBudgetSpec;
    use k8s_openapi::jiff::Timestamp;

    fn at(s: i64) -> Time {
        Time(Timestamp::from_second(s).unwrap())
    }

    fn pods(ready: usize, unready: usize) -> Vec<Arc<Pod>> {
        (0..ready + unready)
            .map(|i| {
                let mut pod = Pod::default();
                pod.metadata.name = Some(format!("p{i}"));
                let status = if i < ready { "True" } else { "False" };
                pod.status = Some(PodStatus {
                    phase: Some("Running".into()),
                    conditions: Some(vec![PodCondition {
                        type_: "Ready".into(),
                        status: status.into(),
                        ..Default::default()
                    }]),
                    ..Default::default()
                });
                Arc::new(pod)
            })
            .collect()
    }

    fn budget(min: Option<IntOrString>, max: Option<IntOrString>) -> PodDisruptionBudget {
        PodDisruptionBudget {
            spec: Some(PodDisruptionBudgetSpec { min_available: min, max_unavailable: max, ..Default::default() }),
            ..Default::default()
        }
    }

    #[test]
    fn allowed_disruptions() {
        let (int, text) = (IntOrString::Int, |s: &str| IntOrString::String(s.into()));
        // (budget, ready, unready, scale) → (desired healthy, allowed)
        for (case, (budget, ready, unready, scale), (healthy, allowed)) in [
            (1, (budget(Some(int(2)), None), 3, 0, 3), (2, 1)),
            (2, (budget(Some(int(3)), None), 2, 1, 3), (3, 0)),
            (3, (budget(Some(text("50%")), None), 3, 0, 3), (2, 1)),
            (4, (budget(None, Some(int(1))), 3, 0, 3), (2, 1)),
            (5, (budget(None, Some(int(1))), 2, 1, 3), (2, 0)),
            (6, (budget(None, Some(text("34%"))), 3, 0, 3), (1, 2)),
            (7, (budget(None, Some(int(5))), 3, 0, 3), (0, 3)),
            (8, (budget(Some(int(0)), None), 0, 0, 0), (0, 0)),
        ] {
            let pods = pods(ready, unready);
            let e = expected(&budget, &pods, &Managed { scale, unmanaged: vec![] });
            let c = compute(&budget, &pods, e, at(100), Duration::from_secs(120));
            assert_eq!(
                (c.status.desired_healthy, c.status.disruptions_allowed),
                (Some(healthy), Some(allowed)),
                "case {case}"
            );
        }
    }

    #[test]
    fn announced_disruptions_count_until_overdue() {
        let mut b = budget(Some(IntOrString::Int(1)), None);
        b.status = Some(PodDisruptionBudgetStatus {
            disrupted_pods: Some([("p0".into(), at(50)), ("p1".into(), at(0)), ("gone".into(), at(99))].into()),
            ..Default::default()
        });
        let pods = pods(3, 0);
        let c = compute(&b, &pods, Expected { count: 3, healthy: 1 }, at(130), Duration::from_secs(120));
        assert_eq!(c.overdue, ["p1"]);
        assert_eq!(c.status.disrupted_pods.unwrap().into_keys().collect::<Vec<_>>(), ["p0"]);
        assert_eq!((c.status.current_healthy, c.status.disruptions_allowed), (Some(2), Some(1)));
        assert_eq!(c.recheck, Some(Duration::from_secs(40)));
    }
}
