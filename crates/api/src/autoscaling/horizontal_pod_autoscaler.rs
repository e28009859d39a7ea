//! HorizontalPodAutoscaler (autoscaling/v2): scales a workload by what is measured of it.
//!
//! Both versions of the kind share one stored object. An object is stored in the form of the version it was last written
//! through; each version decodes both forms and encodes its own. See [`super::to_v2`].

use super::{to_v2, validate};
use crate::apps::workload;
use crate::kind::{Column, Context, Kind, ResourceInfo, STATUS};
use crate::meta::field::ErrorList;
use crate::meta::object::Meta;
use crate::meta::quantity::canonicalize;
use crate::meta::table;
use k8s_openapi::api::autoscaling::v1::HorizontalPodAutoscaler as V1;
use k8s_openapi::api::autoscaling::v2::{
    HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscaler, MetricSpec, MetricStatus, MetricTarget,
    MetricValueStatus, ResourceMetricSource,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::jiff::Timestamp;
use serde::de::Error;
use serde_json::Value;

/// Utilization aimed at, in percent of the requested CPU, where no metric is named.
pub(super) const DEFAULT_CPU_UTILIZATION: i32 = 80;
const V1_API: &str = "autoscaling/v1";

/// Columns, in both versions.
pub(super) const COLUMNS: &[Column] = &[
    workload::NAME,
    workload::column("Reference", "string", "What is scaled."),
    workload::column("Targets", "string", "Measured and wanted values."),
    workload::column("MinPods", "string", "Fewest pods."),
    workload::column("MaxPods", "string", "Most pods."),
    workload::column("Replicas", "integer", "How many pods there are."),
    workload::AGE,
];

/// Facts that the versions share.
pub(super) const fn info(version: &'static str) -> ResourceInfo {
    ResourceInfo {
        short_names: &["hpa"],
        categories: &["all"],
        subresources: &[STATUS],
        ..ResourceInfo::new(
            "autoscaling",
            version,
            "HorizontalPodAutoscaler",
            "horizontalpodautoscalers",
            "horizontalpodautoscaler",
            true,
        )
    }
}

impl Kind for HorizontalPodAutoscaler {
    const INFO: ResourceInfo = info("v2");
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
        let mut object = if value.get("apiVersion").and_then(Value::as_str) == Some(V1_API) {
            to_v2(&serde_json::from_value::<V1>(value)?)
        } else {
            serde_json::from_value(value)?
        };
        canonical(&mut object).map_err(serde_json::Error::custom)?;
        Ok(object)
    }
    fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("API types have string keys only")
    }
    fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("API types have string keys only")
    }

    fn set_defaults(&mut self) {
        self.spec.min_replicas.get_or_insert(1);
        default_metrics(&mut self.spec.metrics);
        if let Some(behavior) = &mut self.spec.behavior {
            let policy = |kind: &str, value| HPAScalingPolicy { type_: kind.to_owned(), value, period_seconds: 15 };
            let up = behavior.scale_up.get_or_insert_default();
            up.stabilization_window_seconds.get_or_insert(0);
            default_rules(up, vec![policy("Pods", 4), policy("Percent", 100)]);
            default_rules(behavior.scale_down.get_or_insert_default(), vec![policy("Percent", 100)]);
        }
    }

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.status = Some(Default::default());
    }

    fn validate(&self) -> ErrorList {
        validate::spec(&self.spec, 1)
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        self.status.clone_from(&old.status);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        // Scaling to none is a feature that is off, but what older servers took in may stay.
        validate::spec(&self.spec, if old.spec.min_replicas == Some(0) { 0 } else { 1 })
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context<'_>) {
        self.spec = old.spec.clone();
    }

    fn validate_status_update(&self, _: &Self) -> ErrorList {
        let s = self.status.clone().unwrap_or_default();
        validate::status(s.current_replicas.unwrap_or(0), s.desired_replicas)
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let s = self.status.clone().unwrap_or_default();
        let target = &self.spec.scale_target_ref;
        vec![
            self.metadata.name().into(),
            format!("{}/{}", target.kind, target.name).into(),
            targets(self.spec.metrics.as_deref().unwrap_or_default(), s.current_metrics.as_deref().unwrap_or_default())
                .into(),
            self.spec.min_replicas.map_or_else(|| "<unset>".to_owned(), |n| n.to_string()).into(),
            self.spec.max_replicas.into(),
            s.current_replicas.unwrap_or(0).into(),
            table::age(&self.metadata, now).into(),
        ]
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["spec"]])
    }
}

/// CPU utilization, where no metric is named.
pub(super) fn default_metrics(metrics: &mut Option<Vec<MetricSpec>>) {
    if metrics.as_ref().is_none_or(Vec::is_empty) {
        *metrics = Some(vec![cpu_utilization(DEFAULT_CPU_UTILIZATION)]);
    }
}

/// The metric that aims at a CPU utilization.
pub(super) fn cpu_utilization(percent: i32) -> MetricSpec {
    let target =
        MetricTarget { type_: "Utilization".to_owned(), average_utilization: Some(percent), ..Default::default() };
    MetricSpec {
        type_: "Resource".to_owned(),
        resource: Some(ResourceMetricSource { name: "cpu".to_owned(), target }),
        ..Default::default()
    }
}

fn default_rules(rules: &mut HPAScalingRules, policies: Vec<HPAScalingPolicy>) {
    rules.policies.get_or_insert(policies);
    rules.select_policy.get_or_insert_with(|| "Max".to_owned());
}

fn canonical(h: &mut HorizontalPodAutoscaler) -> Result<(), String> {
    let behavior = h.spec.behavior.iter_mut().flat_map(|b| [b.scale_up.as_mut(), b.scale_down.as_mut()]);
    for tolerance in behavior.flatten().filter_map(|r| r.tolerance.as_mut()) {
        canonicalize(tolerance)?;
    }
    for m in h.spec.metrics.iter_mut().flatten() {
        let targets = [
            m.container_resource.as_mut().map(|s| &mut s.target),
            m.external.as_mut().map(|s| &mut s.target),
            m.object.as_mut().map(|s| &mut s.target),
            m.pods.as_mut().map(|s| &mut s.target),
            m.resource.as_mut().map(|s| &mut s.target),
        ];
        for t in targets.into_iter().flatten() {
            [t.value.as_mut(), t.average_value.as_mut()].into_iter().flatten().try_for_each(canonicalize)?;
        }
    }
    for m in h.status.iter_mut().flat_map(|s| s.current_metrics.iter_mut().flatten()) {
        let values = [
            m.container_resource.as_mut().map(|s| &mut s.current),
            m.external.as_mut().map(|s| &mut s.current),
            m.object.as_mut().map(|s| &mut s.current),
            m.pods.as_mut().map(|s| &mut s.current),
            m.resource.as_mut().map(|s| &mut s.current),
        ];
        for v in values.into_iter().flatten() {
            [v.value.as_mut(), v.average_value.as_mut()].into_iter().flatten().try_for_each(canonicalize)?;
        }
    }
    Ok(())
}

const UNKNOWN: &str = "<unknown>";

fn amount(q: Option<&Quantity>) -> String {
    q.map_or_else(|| UNKNOWN.to_owned(), |q| q.0.clone())
}

/// `current/target` of a resource, as amounts or percentages.
fn resource_target(name: &str, target: &MetricTarget, current: Option<&MetricValueStatus>) -> String {
    let percent = |p: Option<i32>, none: &str| p.map_or_else(|| none.to_owned(), |p| format!("{p}%"));
    match &target.average_value {
        Some(q) => format!("{name}: {}/{}", amount(current.and_then(|c| c.average_value.as_ref())), q.0),
        None => format!(
            "{name}: {}/{}",
            percent(current.and_then(|c| c.average_utilization), UNKNOWN),
            percent(target.average_utilization, "<auto>")
        ),
    }
}

/// `current/target`, where the target may be one for each pod.
fn value_target(target: &MetricTarget, current: Option<&MetricValueStatus>) -> String {
    match &target.average_value {
        Some(q) => format!("{}/{} (avg)", amount(current.and_then(|c| c.average_value.as_ref())), q.0),
        None => {
            let wanted = target.value.as_ref().map_or("<nil>", |q| &q.0);
            format!("{}/{wanted}", amount(current.and_then(|c| c.value.as_ref())))
        }
    }
}

fn targets(specs: &[MetricSpec], statuses: &[MetricStatus]) -> String {
    if specs.is_empty() {
        return "<none>".to_owned();
    }
    let one = |(i, m): (usize, &MetricSpec)| {
        let status = statuses.get(i);
        match m.type_.as_str() {
            "External" => m
                .external
                .as_ref()
                .map(|s| value_target(&s.target, status.and_then(|s| s.external.as_ref()).map(|s| &s.current))),
            "Object" => m
                .object
                .as_ref()
                .map(|s| value_target(&s.target, status.and_then(|s| s.object.as_ref()).map(|s| &s.current))),
            "Pods" => m.pods.as_ref().map(|s| {
                let current = status.and_then(|s| s.pods.as_ref()).and_then(|s| s.current.average_value.as_ref());
                format!("{}/{}", amount(current), s.target.average_value.as_ref().map_or("<nil>", |q| &q.0))
            }),
            "Resource" => m.resource.as_ref().map(|s| {
                resource_target(&s.name, &s.target, status.and_then(|s| s.resource.as_ref()).map(|s| &s.current))
            }),
            "ContainerResource" => m.container_resource.as_ref().map(|s| {
                let current = status.and_then(|s| s.container_resource.as_ref()).map(|s| &s.current);
                resource_target(&s.name, &s.target, current)
            }),
            _ => None,
        }
        .unwrap_or_else(|| "<unknown type>".to_owned())
    };
    let shown: Vec<String> = specs.iter().enumerate().take(2).map(one).collect();
    let shown = shown.join(", ");
    if specs.len() > 2 { format!("{shown} + {} more...", specs.len() - 2) } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn hpa(spec: &Value) -> HorizontalPodAutoscaler {
        let mut full = json!({"scaleTargetRef": {"kind": "Deployment", "name": "web"}, "maxReplicas": 5});
        for (k, v) in spec.as_object().unwrap() {
            full[k] = v.clone();
        }
        let mut h =
            <HorizontalPodAutoscaler as Kind>::from_value(json!({"metadata": {"name": "web"}, "spec": full})).unwrap();
        h.set_defaults();
        h
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn defaults_are_upstreams() {
        let h = hpa(&json!({"behavior": {"scaleUp": {"selectPolicy": "Min"}}}));
        assert_eq!(h.spec.min_replicas, Some(1));
        assert_eq!(
            json!(h.spec.metrics),
            json!([{"type": "Resource", "resource": {"name": "cpu",
                "target": {"type": "Utilization", "averageUtilization": 80}}}])
        );
        assert_eq!(
            json!(h.spec.behavior),
            json!({
                "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Min", "policies": [
                    {"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]},
                "scaleDown": {"selectPolicy": "Max", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]},
            })
        );
        assert!(h.validate().is_empty(), "{:?}", h.validate());
    }

    #[test]
    fn faults_have_upstreams_words() {
        let metric = |m: Value| json!({"metrics": [m]});
        let cases: [(Value, &[&str]); 12] = [
            (
                json!({"minReplicas": 0}),
                &[
                    "spec.minReplicas: Invalid value: 0: must be greater than or equal to 1",
                    "spec.metrics: Forbidden: must specify at least one Object or External metric to support scaling to zero replicas",
                ],
            ),
            (
                json!({"maxReplicas": 0, "minReplicas": 1}),
                &[
                    "spec.maxReplicas: Invalid value: 0: must be greater than 0",
                    "spec.maxReplicas: Invalid value: 0: must be greater than or equal to `minReplicas`",
                ],
            ),
            (
                json!({"scaleTargetRef": {"kind": "", "name": "a/b"}}),
                &[
                    "spec.scaleTargetRef.kind: Required value",
                    "spec.scaleTargetRef.name: Invalid value: \"a/b\": may not contain '/'",
                ],
            ),
            (
                metric(json!({"type": "x"})),
                &[
                    "spec.metrics[0].type: Unsupported value: \"x\": supported values: \"ContainerResource\", \"External\", \
                 \"Object\", \"Pods\", \"Resource\"",
                ],
            ),
            (
                metric(json!({"type": "Pods"})),
                &["spec.metrics[0].pods: Required value: must populate information for the given metric source"],
            ),
            (
                metric(json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization"}}})),
                &[
                    "spec.metrics[0].resource.target.averageUtilization: Required value: must set either a target raw value or a \
                 target utilization",
                ],
            ),
            (
                metric(json!({"type": "Resource", "resource": {"name": "cpu",
                "target": {"type": "x", "averageUtilization": 0}}})),
                &[
                    "spec.metrics[0].resource.target.type: Invalid value: \"x\": must be either Utilization, Value, or AverageValue",
                    "spec.metrics[0].resource.target.averageUtilization: Invalid value: 0: must be greater than 0",
                ],
            ),
            (
                metric(
                    json!({"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "0"}}}),
                ),
                &["spec.metrics[0].pods.target.averageValue: Invalid value: \"0\": must be positive"],
            ),
            (
                metric(
                    json!({"type": "External", "external": {"metric": {"name": ""}, "target": {"type": "Value", "value": "1"}}}),
                ),
                &["spec.metrics[0].external.metric.name: Required value: must specify a metric name"],
            ),
            (
                metric(
                    json!({"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "1"}},
                "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 5}}}),
                ),
                &["spec.metrics[0].resource: Forbidden: must populate the given metric source only"],
            ),
            (
                json!({"behavior": {"scaleUp": {"stabilizationWindowSeconds": 3601, "policies": []}}}),
                &[
                    "spec.behavior.scaleUp.stabilizationWindowSeconds: Invalid value: 3601: must be less than or equal to 3600",
                    "spec.behavior.scaleUp.policies: Required value: must specify at least one Policy",
                ],
            ),
            (
                json!({"behavior": {"scaleDown": {"policies": [{"type": "x", "value": 0, "periodSeconds": 1801}]}}}),
                &[
                    "spec.behavior.scaleDown.policies[0].type: Unsupported value: \"x\": supported values: \"Percent\", \"Pods\"",
                    "spec.behavior.scaleDown.policies[0].value: Invalid value: 0: must be greater than zero",
                    "spec.behavior.scaleDown.policies[0].periodSeconds: Invalid value: 1801: must be less than or equal to 1800",
                ],
            ),
        ];
        for (spec, want) in cases {
            assert_eq!(texts(&hpa(&spec).validate()), want);
        }
    }

    #[test]
    fn table_row() {
        let mut h = hpa(&json!({"metrics": [
            {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}}},
            {"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "10"}}},
            {"type": "Object", "object": {"describedObject": {"kind": "K", "name": "n"}, "metric": {"name": "m"},
                "target": {"type": "Value", "value": "1"}}}]}));
        h.status = serde_json::from_value(json!({"currentReplicas": 2, "desiredReplicas": 2, "currentMetrics": [
            {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 7}}}]}))
        .unwrap();
        let cells = h.cells(Timestamp::UNIX_EPOCH);
        assert_eq!(
            &cells[1..6],
            &[json!("Deployment/web"), json!("cpu: 7%/60%, <unknown>/10 + 1 more..."), json!("1"), json!(5), json!(2)]
        );
        assert_eq!(cells.len(), COLUMNS.len());
    }

    #[test]
    fn both_versions_read_one_stored_object() {
        let h = hpa(&json!({}));
        let v1 = super::super::from_v2(&h);
        let read = <HorizontalPodAutoscaler as Kind>::from_json(&Kind::to_json(&v1)).unwrap();
        assert_eq!(read.spec, h.spec);
        let back = <V1 as Kind>::from_json(&Kind::to_json(&h)).unwrap();
        assert_eq!(back, v1);
        assert_eq!(back.spec.target_cpu_utilization_percentage, Some(80));
    }
}
