//! HorizontalPodAutoscaler (autoscaling/v1): version 2 with one metric, the CPU, in its spec. What else version 2 says
//! travels in four annotations, so that nothing is lost on clients that know only this version.

use super::horizontal_pod_autoscaler::{COLUMNS, cpu_utilization, default_metrics, info};
use super::legacy_metrics::{Measured, Metric};
use crate::kind::{Column, Context, Kind, ResourceInfo};
use crate::meta::field::ErrorList;
use crate::meta::object::Meta;
use crate::meta::text;
use k8s_openapi::api::autoscaling::v1::{
    CrossVersionObjectReference, HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec, HorizontalPodAutoscalerStatus,
};
use k8s_openapi::api::autoscaling::v2;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const ANNOTATIONS: [&str; 4] = [METRICS, CURRENT_METRICS, CONDITIONS, BEHAVIOR];

/// How the behavior is written inside its annotation: with upstream's internal names. Reading takes any case.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Behavior {
    #[serde(alias = "scaleUp")]
    scale_up: Option<Rules>,
    #[serde(alias = "scaleDown")]
    scale_down: Option<Rules>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Rules {
    #[serde(alias = "stabilizationWindowSeconds")]
    stabilization_window_seconds: Option<i32>,
    #[serde(alias = "selectPolicy")]
    select_policy: Option<String>,
    #[serde(alias = "policies")]
    policies: Option<Vec<Policy>>,
    #[serde(alias = "tolerance")]
    tolerance: Option<Quantity>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct Policy {
    #[serde(alias = "type")]
    r#type: String,
    #[serde(alias = "value")]
    value: i32,
    #[serde(alias = "periodSeconds")]
    period_seconds: i32,
}

/// A condition with the field order of upstream's encoder.
#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    r#type: String,
    status: String,
    last_transition_time: Option<crate::Time>,
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    observed_generation: Option<i64>,
}

fn rules_from(r: Rules) -> v2::HPAScalingRules {
    let policy = |p: Policy| v2::HPAScalingPolicy { type_: p.r#type, value: p.value, period_seconds: p.period_seconds };
    v2::HPAScalingRules {
        policies: r.policies.map(|p| p.into_iter().map(policy).collect()),
        select_policy: r.select_policy,
        stabilization_window_seconds: r.stabilization_window_seconds,
        tolerance: r.tolerance,
    }
}

fn rules_to(r: &v2::HPAScalingRules) -> Rules {
    let policy =
        |p: &v2::HPAScalingPolicy| Policy { r#type: p.type_.clone(), value: p.value, period_seconds: p.period_seconds };
    Rules {
        policies: r.policies.as_ref().map(|p| p.iter().map(policy).collect()),
        select_policy: r.select_policy.clone(),
        stabilization_window_seconds: r.stabilization_window_seconds,
        tolerance: r.tolerance.clone(),
    }
}

fn is_cpu(name: &str) -> bool {
    name == "cpu"
}

/// Whether version 1 has a field for the metric.
fn is_cpu_utilization(m: &v2::MetricSpec) -> bool {
    let of_cpu = m.resource.as_ref().filter(|r| is_cpu(&r.name));
    m.type_ == "Resource" && of_cpu.is_some_and(|r| r.target.average_utilization.is_some())
}

fn encoded<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("API types have string keys only")
}

/// The form of version 1 of what version 2 says.
#[must_use]
pub fn from_v2(h: &v2::HorizontalPodAutoscaler) -> HorizontalPodAutoscaler {
    let mut metadata = h.metadata.clone();
    let mut notes = metadata.annotations.take().unwrap_or_default();
    notes.retain(|k, _| !ANNOTATIONS.contains(&k.as_str()));
    let metrics = h.spec.metrics.as_deref().unwrap_or_default();
    let others: Vec<Metric> = metrics.iter().filter(|m| !is_cpu_utilization(m)).map(Metric::from).collect();
    if !others.is_empty() {
        notes.insert(METRICS.to_owned(), encoded(&others));
    }
    let status = h.status.clone().unwrap_or_default();
    // The measured CPU is written here too: its amount has no field of its own.
    let measured: Vec<Measured> = status.current_metrics.iter().flatten().map(Measured::from).collect();
    if !measured.is_empty() {
        notes.insert(CURRENT_METRICS.to_owned(), encoded(&measured));
    }
    let condition = |c: &v2::HorizontalPodAutoscalerCondition| Condition {
        r#type: c.type_.clone(),
        status: c.status.clone(),
        last_transition_time: c.last_transition_time.clone(),
        reason: text(&c.reason).to_owned(),
        message: text(&c.message).to_owned(),
        observed_generation: c.observed_generation,
    };
    let conditions: Vec<Condition> = status.conditions.iter().flatten().map(condition).collect();
    if !conditions.is_empty() {
        notes.insert(CONDITIONS.to_owned(), encoded(&conditions));
    }
    if let Some(b) = &h.spec.behavior {
        let behavior =
            Behavior { scale_up: b.scale_up.as_ref().map(rules_to), scale_down: b.scale_down.as_ref().map(rules_to) };
        notes.insert(BEHAVIOR.to_owned(), encoded(&behavior));
    }
    metadata.annotations = (!notes.is_empty()).then_some(notes);
    let first = metrics.iter().filter(|m| m.type_ == "Resource").filter_map(|m| m.resource.as_ref());
    let wanted = first.into_iter().find(|r| is_cpu(&r.name)).and_then(|r| r.target.average_utilization);
    let seen = status.current_metrics.iter().flatten().filter(|m| m.type_ == "Resource");
    let seen = seen.filter_map(|m| m.resource.as_ref()).filter(|r| is_cpu(&r.name));
    let target = &h.spec.scale_target_ref;
    HorizontalPodAutoscaler {
        metadata,
        spec: HorizontalPodAutoscalerSpec {
            max_replicas: h.spec.max_replicas,
            min_replicas: h.spec.min_replicas,
            scale_target_ref: CrossVersionObjectReference {
                api_version: target.api_version.clone(),
                kind: target.kind.clone(),
                name: target.name.clone(),
            },
            target_cpu_utilization_percentage: wanted,
        },
        status: h.status.as_ref().map(|s| HorizontalPodAutoscalerStatus {
            current_cpu_utilization_percentage: seen.filter_map(|r| r.current.average_utilization).next_back(),
            current_replicas: s.current_replicas.unwrap_or(0),
            desired_replicas: s.desired_replicas,
            last_scale_time: s.last_scale_time.clone(),
            observed_generation: s.observed_generation,
        }),
    }
}

/// The form of version 2 of what version 1 and its annotations say; what does not parse is passed over, as upstream does.
#[must_use]
pub fn to_v2(h: &HorizontalPodAutoscaler) -> v2::HorizontalPodAutoscaler {
    fn note<T: serde::de::DeserializeOwned>(h: &HorizontalPodAutoscaler, key: &str) -> Option<T> {
        serde_json::from_str(h.metadata.annotation(key)?).ok()
    }
    let cpu = h.spec.target_cpu_utilization_percentage.map(cpu_utilization);
    let others: Vec<Metric> = note(h, METRICS).unwrap_or_default();
    let mut metrics: Option<Vec<v2::MetricSpec>> =
        Some(cpu.into_iter().chain(others.into_iter().map(Into::into)).collect());
    default_metrics(&mut metrics);
    let behavior = note::<Behavior>(h, BEHAVIOR).map(|b| v2::HorizontalPodAutoscalerBehavior {
        scale_up: b.scale_up.map(rules_from),
        scale_down: b.scale_down.map(rules_from),
    });
    let mut metadata = h.metadata.clone();
    if let Some(notes) = &mut metadata.annotations {
        notes.retain(|k, _| !ANNOTATIONS.contains(&k.as_str()));
        if notes.is_empty() {
            metadata.annotations = None;
        }
    }
    let target = &h.spec.scale_target_ref;
    v2::HorizontalPodAutoscaler {
        metadata,
        spec: v2::HorizontalPodAutoscalerSpec {
            behavior,
            max_replicas: h.spec.max_replicas,
            metrics,
            min_replicas: h.spec.min_replicas,
            scale_target_ref: v2::CrossVersionObjectReference {
                api_version: target.api_version.clone(),
                kind: target.kind.clone(),
                name: target.name.clone(),
            },
        },
        status: h.status.as_ref().map(|s| status_to_v2(s, note(h, CURRENT_METRICS), note(h, CONDITIONS))),
    }
}

fn status_to_v2(
    s: &HorizontalPodAutoscalerStatus,
    measured: Option<Vec<Measured>>,
    conditions: Option<Vec<Condition>>,
) -> v2::HorizontalPodAutoscalerStatus {
    let cpu = |percent| v2::MetricStatus {
        type_: "Resource".to_owned(),
        resource: Some(v2::ResourceMetricStatus {
            name: "cpu".to_owned(),
            current: v2::MetricValueStatus { average_utilization: Some(percent), ..Default::default() },
        }),
        ..Default::default()
    };
    let filled = |text: String| (!text.is_empty()).then_some(text);
    let condition = |c: Condition| v2::HorizontalPodAutoscalerCondition {
        last_transition_time: c.last_transition_time,
        message: filled(c.message),
        observed_generation: c.observed_generation,
        reason: filled(c.reason),
        status: c.status,
        type_: c.r#type,
    };
    v2::HorizontalPodAutoscalerStatus {
        conditions: conditions.map(|c| c.into_iter().map(condition).collect()),
        current_metrics: match measured {
            Some(m) => Some(m.into_iter().map(Into::into).collect()),
            None => s.current_cpu_utilization_percentage.map(|p| vec![cpu(p)]),
        },
        current_replicas: Some(s.current_replicas),
        desired_replicas: s.desired_replicas,
        last_scale_time: s.last_scale_time.clone(),
        observed_generation: s.observed_generation,
    }
}

impl Kind for HorizontalPodAutoscaler {
    const INFO: ResourceInfo = info("v1");
    const COLUMNS: &'static [Column] = COLUMNS;

    fn meta(&self) -> &crate::ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut crate::ObjectMeta {
        &mut self.metadata
    }
    fn from_json(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        Self::from_value(serde_json::from_slice(bytes)?)
    }
    fn from_value(value: Value) -> Result<Self, serde_json::Error> {
        if value.get("apiVersion").and_then(Value::as_str) == Some("autoscaling/v2") {
            return Ok(from_v2(&<v2::HorizontalPodAutoscaler as Kind>::from_value(value)?));
        }
        serde_json::from_value(value)
    }
    fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("API types have string keys only")
    }
    fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("API types have string keys only")
    }

    fn set_defaults(&mut self) {
        self.spec.min_replicas.get_or_insert(1);
        // Through version 2 and back: where no metric is named it is the CPU, and the annotations become canonical.
        *self = from_v2(&to_v2(self));
    }

    fn prepare_for_create(&mut self, cx: &Context<'_>) {
        let mut h = to_v2(self);
        h.prepare_for_create(cx);
        *self = from_v2(&h);
    }

    fn validate(&self) -> ErrorList {
        to_v2(self).validate()
    }

    fn prepare_for_update(&mut self, old: &Self, cx: &Context<'_>) {
        let mut h = to_v2(self);
        h.prepare_for_update(&to_v2(old), cx);
        *self = from_v2(&h);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        to_v2(self).validate_update(&to_v2(old))
    }

    fn prepare_for_status_update(&mut self, old: &Self, cx: &Context<'_>) {
        let mut h = to_v2(self);
        h.prepare_for_status_update(&to_v2(old), cx);
        *self = from_v2(&h);
    }

    fn validate_status_update(&self, old: &Self) -> ErrorList {
        to_v2(self).validate_status_update(&to_v2(old))
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        to_v2(self).cells(now)
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["spec"]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nothing_of_version_2_is_lost() {
        let full: v2::HorizontalPodAutoscaler = serde_json::from_value(json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "h", "annotations": {"a": "b"}},
            "spec": {"maxReplicas": 3, "minReplicas": 1, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment",
                "name": "w"},
                "behavior": {"scaleDown": {"selectPolicy": "Max", "policies": [
                    {"type": "Percent", "value": 100, "periodSeconds": 15}]}},
                "metrics": [
                    {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization",
                        "averageUtilization": 50}}},
                    {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue",
                        "averageValue": "1Gi"}}},
                    {"type": "External", "external": {"metric": {"name": "q"}, "target": {"type": "Value", "value": "7"}}}]},
            "status": {"currentReplicas": 1, "desiredReplicas": 2, "currentMetrics": [
                {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 9,
                    "averageValue": "10m"}}}],
                "conditions": [{"type": "AbleToScale", "status": "True", "reason": "Ready", "message": "m",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
        }))
        .unwrap();
        let old = from_v2(&full);
        assert_eq!(old.spec.target_cpu_utilization_percentage, Some(50));
        assert_eq!(old.status.as_ref().unwrap().current_cpu_utilization_percentage, Some(9));
        let note = |key| old.metadata.annotation(key).unwrap();
        assert_eq!(
            note(METRICS),
            "[{\"type\":\"Resource\",\"resource\":{\"name\":\"memory\",\"targetAverageValue\":\"1Gi\"}},{\"type\":\"External\",\
             \"external\":{\"metricName\":\"q\",\"targetValue\":\"7\"}}]"
        );
        assert_eq!(
            note(BEHAVIOR),
            "{\"ScaleUp\":null,\"ScaleDown\":{\"StabilizationWindowSeconds\":null,\"SelectPolicy\":\"Max\",\"Policies\":[\
             {\"Type\":\"Percent\",\"Value\":100,\"PeriodSeconds\":15}],\"Tolerance\":null}}"
        );
        assert_eq!(
            note(CURRENT_METRICS),
            "[{\"type\":\"Resource\",\"resource\":{\"name\":\"cpu\",\"currentAverageUtilization\":9,\
             \"currentAverageValue\":\"10m\"}}]"
        );
        assert_eq!(note("a"), "b");
        assert_eq!(to_v2(&old), full);
    }

    #[test]
    fn without_metrics_the_cpu_counts() {
        let mut h = <HorizontalPodAutoscaler as Kind>::from_value(json!({
            "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "w"}},
        }))
        .unwrap();
        h.set_defaults();
        assert_eq!((h.spec.min_replicas, h.spec.target_cpu_utilization_percentage), (Some(1), Some(80)));
        assert!(h.metadata.annotations.is_none());
        assert!(h.validate().is_empty());
        h.spec.max_replicas = 0;
        let texts: Vec<String> = h.validate().0.iter().map(ToString::to_string).collect();
        assert_eq!(texts[0], "spec.maxReplicas: Invalid value: 0: must be greater than 0");
        assert_eq!(h.cells(Timestamp::UNIX_EPOCH)[2], "cpu: <unknown>/80%");
    }
}
