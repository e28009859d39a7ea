//! What each metric of an autoscaler asks for.

use super::metrics::Metrics;
use super::replicas::{self, Pods, Proposal};
use super::target::Targets;
use gantry_api::meta::labels::Selector;
use gantry_api::meta::quantity::Amount;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, HorizontalPodAutoscaler, MetricSpec, MetricStatus,
    MetricTarget, MetricValueStatus, ObjectMetricStatus, PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::fmt::Write;

/// What one metric came to.
pub struct Outcome {
    /// Replicas it asks for.
    pub replicas: i32,
    /// What it is called in messages.
    pub name: String,
    /// What was measured.
    pub status: MetricStatus,
}

/// Why a metric came to nothing: the reason of condition and event with their message, and the whole error.
pub struct Failure {
    /// Reason.
    pub reason: &'static str,
    /// Message.
    pub message: String,
    /// The error with what was being done.
    pub error: String,
}

/// Everything metrics are computed from.
pub struct Input<'a> {
    /// The autoscaler.
    pub hpa: &'a HorizontalPodAutoscaler,
    /// The target's pods and present size.
    pub pods: Pods<'a>,
    /// The target's selector as it was read.
    pub selector: &'a str,
    /// Replicas the target reports.
    pub reported: i32,
    /// The APIs.
    pub metrics: &'a Metrics,
    /// Resolves kinds.
    pub targets: &'a Targets,
}

fn quantity(value: i64) -> Option<Quantity> {
    Some(Amount::from_milli(value).to_quantity())
}

/// Memory is shown in binary units, as metrics servers show it.
fn of_resource(resource: &str, value: i64) -> Option<Quantity> {
    if resource == "memory" && value % 1000 == 0 {
        return Some(Amount::from_bytes(value / 1000).to_quantity());
    }
    quantity(value)
}

fn milli(q: &Quantity) -> i64 {
    Amount::parse(&q.0).map_or(0, |a| a.milli_value())
}

/// A selector of metrics as Go prints it.
fn shown(selector: Option<&LabelSelector>) -> String {
    let Some(s) = selector else { return "nil".to_owned() };
    let mut out = "&LabelSelector{MatchLabels:map[string]string{".to_owned();
    for (k, v) in s.match_labels.iter().flatten() {
        let _ = write!(out, "{k}: {v},");
    }
    out.push_str("},MatchExpressions:[]LabelSelectorRequirement{");
    for r in s.match_expressions.iter().flatten() {
        let values = r.values.clone().unwrap_or_default().join(" ");
        let (key, operator) = (&r.key, &r.operator);
        let _ = write!(out, "LabelSelectorRequirement{{Key:{key},Operator:{operator},Values:[{values}],}},");
    }
    out.push_str("},}");
    out
}

fn selector_text(selector: Option<&LabelSelector>) -> Result<String, String> {
    match selector {
        None => Ok(String::new()),
        some => Ok(Selector::from_label_selector(some)?.to_string()),
    }
}

impl Input<'_> {
    fn namespace(&self) -> &str {
        self.hpa.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// Computes one metric.
    ///
    /// # Errors
    /// Why it came to nothing.
    pub async fn compute(&self, spec: &MetricSpec) -> Result<Outcome, Failure> {
        let (reason, doing, result) = match spec.type_.as_str() {
            "Resource" => {
                let name = spec.resource.as_ref().map(|r| r.name.clone()).unwrap_or_default();
                (
                    "FailedGetResourceMetric",
                    format!("failed to get {name} resource metric value"),
                    self.resource(spec).await,
                )
            }
            "ContainerResource" => {
                let name = spec.container_resource.as_ref().map(|r| r.container.clone()).unwrap_or_default();
                let doing = format!("failed to get {name} container metric value");
                ("FailedGetContainerResourceMetric", doing, self.container_resource(spec).await)
            }
            "Pods" => ("FailedGetPodsMetric", "failed to get pods metric value".to_owned(), self.of_pods(spec).await),
            "Object" => {
                ("FailedGetObjectMetric", "failed to get object metric value".to_owned(), self.of_object(spec).await)
            }
            "External" => {
                let name = spec.external.as_ref().map(|e| e.metric.name.clone()).unwrap_or_default();
                (
                    "FailedGetExternalMetric",
                    format!("failed to get {name} external metric value"),
                    self.external(spec).await,
                )
            }
            other => {
                let message = format!("unknown metric source type {other:?}");
                return Err(Failure { reason: "InvalidMetricSourceType", error: message.clone(), message });
            }
        };
        result.map_err(|message| Failure { reason, error: format!("{doing}: {message}"), message })
    }

    async fn usage(
        &self,
        resource: &str,
        container: &str,
        target: &MetricTarget,
    ) -> Result<(Proposal, MetricValueStatus), String> {
        let measured = self.metrics.of_resource(resource, self.namespace(), self.selector, container).await;
        let measured = measured.map_err(|e| format!("unable to get metrics for resource {resource}: {e}"));
        if let Some(value) = &target.average_value {
            let told = |e| format!("failed to get {resource} usage: {e}");
            let p = measured.and_then(|m| replicas::by_mean(&self.pods, m, milli(value), resource)).map_err(told)?;
            let status = MetricValueStatus { average_value: of_resource(resource, p.value), ..Default::default() };
            return Ok((p, status));
        }
        let Some(percent) = target.average_utilization else {
            return Err("invalid resource metric source: neither an average utilization target nor an average value \
                        (usage) target was set"
                .to_owned());
        };
        let told = |e| format!("failed to get {resource} utilization: {e}");
        let p = measured
            .and_then(|m| replicas::by_utilization(&self.pods, m, percent, resource, container))
            .map_err(told)?;
        let status = MetricValueStatus {
            average_utilization: p.utilization,
            average_value: of_resource(resource, p.value),
            ..Default::default()
        };
        Ok((p, status))
    }

    async fn resource(&self, spec: &MetricSpec) -> Result<Outcome, String> {
        let source = spec.resource.as_ref().ok_or("invalid resource metric source: none was set")?;
        let (p, current) = self.usage(&source.name, "", &source.target).await?;
        let name = if source.target.average_value.is_some() {
            format!("{} resource", source.name)
        } else {
            format!("{} resource utilization (percentage of request)", source.name)
        };
        let status = ResourceMetricStatus { name: source.name.clone(), current };
        let status = MetricStatus { type_: spec.type_.clone(), resource: Some(status), ..Default::default() };
        Ok(Outcome { replicas: p.replicas, name, status })
    }

    async fn container_resource(&self, spec: &MetricSpec) -> Result<Outcome, String> {
        let source =
            spec.container_resource.as_ref().ok_or("invalid container resource metric source: none was set")?;
        let (p, current) = self.usage(&source.name, &source.container, &source.target).await?;
        let name = if source.target.average_value.is_some() {
            format!("{} resource", source.name)
        } else {
            format!("{} container resource utilization (percentage of request)", source.name)
        };
        let (resource, container) = (source.name.clone(), source.container.clone());
        let status = ContainerResourceMetricStatus { name: resource, container, current };
        let status = MetricStatus { type_: spec.type_.clone(), container_resource: Some(status), ..Default::default() };
        Ok(Outcome { replicas: p.replicas, name, status })
    }

    async fn of_pods(&self, spec: &MetricSpec) -> Result<Outcome, String> {
        let source = spec.pods.as_ref().ok_or("invalid pods metric source: none was set")?;
        let (metric, labels) = (&source.metric.name, selector_text(source.metric.selector.as_ref())?);
        let target = source.target.average_value.as_ref().map_or(0, milli);
        let measured = self.metrics.of_pods(metric, self.namespace(), self.selector, &labels).await;
        let measured = measured.map_err(|e| format!("unable to get metric {metric}: {e}"))?;
        let p = replicas::by_mean(&self.pods, measured, target, "")?;
        let current = MetricValueStatus { average_value: quantity(p.value), ..Default::default() };
        let status = PodsMetricStatus { metric: source.metric.clone(), current };
        let status = MetricStatus { type_: spec.type_.clone(), pods: Some(status), ..Default::default() };
        Ok(Outcome { replicas: p.replicas, name: format!("pods metric {metric}"), status })
    }

    /// By a value, of the whole or for each pod, that is not the pods' own.
    fn weigh(&self, value: i64, target: &MetricTarget, per_pod: bool) -> Result<(Proposal, MetricValueStatus), String> {
        if per_pod {
            let goal = target.average_value.as_ref().map_or(0, milli);
            let p = replicas::by_share(self.reported, self.pods.tolerances, value, goal);
            return Ok((p, MetricValueStatus { average_value: quantity(p.value), ..Default::default() }));
        }
        let p = replicas::by_whole(&self.pods, value, target.value.as_ref().map_or(0, milli))?;
        Ok((p, MetricValueStatus { value: quantity(p.value), ..Default::default() }))
    }

    async fn of_object(&self, spec: &MetricSpec) -> Result<Outcome, String> {
        let source = spec.object.as_ref().ok_or("invalid object metric source: none was set")?;
        let (object, metric) = (&source.described_object, &source.metric.name);
        let labels = selector_text(source.metric.selector.as_ref())?;
        let per_pod = match source.target.type_.as_str() {
            "Value" if source.target.value.is_some() => false,
            "AverageValue" if source.target.average_value.is_some() => true,
            _ => {
                return Err("invalid object metric source: neither a value target nor an average value target was set"
                    .to_owned());
            }
        };
        let told = |e: String| {
            let (kind, name) = (&object.kind, &object.name);
            let told = format!("unable to get metric {metric} on {kind} {}/{name}: {e}", self.namespace());
            if per_pod { format!("failed to get {metric} object metric: {told}") } else { told }
        };
        let api_version = object.api_version.as_deref().unwrap_or_default();
        let resource = self.targets.resolve(api_version, &object.kind).await.map_err(told)?;
        let value =
            self.metrics.of_object(metric, self.namespace(), &resource, &object.name, &labels).await.map_err(told)?;
        let (p, current) = self.weigh(value, &source.target, per_pod)?;
        let name = if per_pod {
            format!("external metric {metric}({})", shown(source.metric.selector.as_ref()))
        } else {
            format!("{} metric {metric}", object.kind)
        };
        let status = ObjectMetricStatus { current, described_object: object.clone(), metric: source.metric.clone() };
        let status = MetricStatus { type_: spec.type_.clone(), object: Some(status), ..Default::default() };
        Ok(Outcome { replicas: p.replicas, name, status })
    }

    async fn external(&self, spec: &MetricSpec) -> Result<Outcome, String> {
        let source = spec.external.as_ref().ok_or("invalid external metric source: none was set")?;
        let (metric, selector) = (&source.metric.name, source.metric.selector.as_ref());
        let per_pod = source.target.average_value.is_some();
        if !per_pod && source.target.value.is_none() {
            return Err(
                "invalid external metric source: neither a value target nor an average value target was set".to_owned()
            );
        }
        let doing = if per_pod {
            format!("failed to get {metric} external metric")
        } else {
            format!("failed to get external metric {metric}")
        };
        let labels = selector_text(selector).map_err(|e| format!("{doing}: {e}"))?;
        let value = self.metrics.external(metric, self.namespace(), &labels).await.map_err(|e| {
            let namespace = self.namespace();
            format!("{doing}: unable to get external metric {namespace}/{metric}/{}: {e}", shown(selector))
        })?;
        let weighed = self.weigh(value, &source.target, per_pod);
        let (p, current) = weighed.map_err(|e| format!("{doing}: {e}"))?;
        let status = ExternalMetricStatus { current, metric: source.metric.clone() };
        let status = MetricStatus { type_: spec.type_.clone(), external: Some(status), ..Default::default() };
        Ok(Outcome { replicas: p.replicas, name: format!("external metric {metric}({})", shown(selector)), status })
    }
}
