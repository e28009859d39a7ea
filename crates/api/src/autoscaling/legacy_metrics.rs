//! Metrics in the form in which version 1 of HorizontalPodAutoscalers carries them inside annotations, with the field
//! order of upstream's encoder.

use k8s_openapi::api::autoscaling::v2;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Reference {
    kind: String,
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    api_version: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct ObjectSource {
    target: Reference,
    metric_name: String,
    target_value: Quantity,
    #[serde(skip_serializing_if = "Option::is_none")]
    selector: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    average_value: Option<Quantity>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct PodsSource {
    metric_name: String,
    target_average_value: Quantity,
    #[serde(skip_serializing_if = "Option::is_none")]
    selector: Option<LabelSelector>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct ResourceSource {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_average_utilization: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_average_value: Option<Quantity>,
    /// Of a container's resource only.
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct ExternalSource {
    metric_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    metric_selector: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_value: Option<Quantity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_average_value: Option<Quantity>,
}

/// A metric to scale by.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Metric {
    r#type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<ObjectSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pods: Option<PodsSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<ResourceSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_resource: Option<ResourceSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    external: Option<ExternalSource>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct ObjectStatus {
    target: Reference,
    metric_name: String,
    current_value: Quantity,
    #[serde(skip_serializing_if = "Option::is_none")]
    selector: Option<LabelSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    average_value: Option<Quantity>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct PodsStatus {
    metric_name: String,
    current_average_value: Quantity,
    #[serde(skip_serializing_if = "Option::is_none")]
    selector: Option<LabelSelector>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct ResourceStatus {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    current_average_utilization: Option<i32>,
    current_average_value: Quantity,
    /// Of a container's resource only.
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct ExternalStatus {
    metric_name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    metric_selector: Option<LabelSelector>,
    current_value: Quantity,
    #[serde(skip_serializing_if = "Option::is_none")]
    current_average_value: Option<Quantity>,
}

/// What was measured.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Measured {
    r#type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<ObjectStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pods: Option<PodsStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<ResourceStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_resource: Option<ResourceStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    external: Option<ExternalStatus>,
}

fn zero() -> Quantity {
    Quantity("0".to_owned())
}

macro_rules! zero_default {
    ($($t:ident { $($zero:ident),* ; $($rest:ident),* })*) => {
        $(impl Default for $t {
            fn default() -> Self {
                Self { $($zero: zero(),)* $($rest: Default::default(),)* }
            }
        })*
    };
}
zero_default! {
    ObjectSource { target_value; target, metric_name, selector, average_value }
    PodsSource { target_average_value; metric_name, selector }
    ObjectStatus { current_value; target, metric_name, selector, average_value }
    PodsStatus { current_average_value; metric_name, selector }
    ResourceStatus { current_average_value; name, current_average_utilization, container }
    ExternalStatus { current_value; metric_name, metric_selector, current_average_value }
}

impl From<&v2::CrossVersionObjectReference> for Reference {
    fn from(r: &v2::CrossVersionObjectReference) -> Self {
        Self { kind: r.kind.clone(), name: r.name.clone(), api_version: r.api_version.clone().unwrap_or_default() }
    }
}

impl From<Reference> for v2::CrossVersionObjectReference {
    fn from(r: Reference) -> Self {
        let api_version = (!r.api_version.is_empty()).then_some(r.api_version);
        Self { api_version, kind: r.kind, name: r.name }
    }
}

fn resource_source(name: &str, t: &v2::MetricTarget, container: Option<&String>) -> ResourceSource {
    ResourceSource {
        name: name.to_owned(),
        target_average_utilization: t.average_utilization,
        target_average_value: t.average_value.clone(),
        container: container.cloned(),
    }
}

fn resource_target(s: &ResourceSource) -> v2::MetricTarget {
    let kind = if s.target_average_utilization.is_some() { "Utilization" } else { "AverageValue" };
    v2::MetricTarget {
        type_: kind.to_owned(),
        average_utilization: s.target_average_utilization,
        average_value: s.target_average_value.clone(),
        value: None,
    }
}

impl From<&v2::MetricSpec> for Metric {
    fn from(m: &v2::MetricSpec) -> Self {
        Self {
            r#type: m.type_.clone(),
            object: m.object.as_ref().map(|s| ObjectSource {
                target: (&s.described_object).into(),
                metric_name: s.metric.name.clone(),
                target_value: s.target.value.clone().unwrap_or_else(zero),
                selector: s.metric.selector.clone(),
                average_value: s.target.average_value.clone(),
            }),
            pods: m.pods.as_ref().map(|s| PodsSource {
                metric_name: s.metric.name.clone(),
                target_average_value: s.target.average_value.clone().unwrap_or_else(zero),
                selector: s.metric.selector.clone(),
            }),
            resource: m.resource.as_ref().map(|s| resource_source(&s.name, &s.target, None)),
            container_resource: m
                .container_resource
                .as_ref()
                .map(|s| resource_source(&s.name, &s.target, Some(&s.container))),
            external: m.external.as_ref().map(|s| ExternalSource {
                metric_name: s.metric.name.clone(),
                metric_selector: s.metric.selector.clone(),
                target_value: s.target.value.clone(),
                target_average_value: s.target.average_value.clone(),
            }),
        }
    }
}

fn target(kind: &str, value: Option<Quantity>, average_value: Option<Quantity>) -> v2::MetricTarget {
    v2::MetricTarget { type_: kind.to_owned(), value, average_value, average_utilization: None }
}

impl From<Metric> for v2::MetricSpec {
    fn from(m: Metric) -> Self {
        let id = |name, selector| v2::MetricIdentifier { name, selector };
        Self {
            type_: m.r#type,
            object: m.object.map(|s| {
                let kind = if s.average_value.is_some() { "AverageValue" } else { "Value" };
                v2::ObjectMetricSource {
                    described_object: s.target.into(),
                    metric: id(s.metric_name, s.selector),
                    target: target(kind, Some(s.target_value), s.average_value),
                }
            }),
            pods: m.pods.map(|s| v2::PodsMetricSource {
                metric: id(s.metric_name, s.selector),
                target: target("AverageValue", None, Some(s.target_average_value)),
            }),
            resource: m.resource.map(|s| v2::ResourceMetricSource { target: resource_target(&s), name: s.name }),
            container_resource: m.container_resource.map(|s| v2::ContainerResourceMetricSource {
                target: resource_target(&s),
                container: s.container.unwrap_or_default(),
                name: s.name,
            }),
            external: m.external.map(|s| {
                let kind = if s.target_value.is_some() { "Value" } else { "AverageValue" };
                v2::ExternalMetricSource {
                    metric: id(s.metric_name, s.metric_selector),
                    target: target(kind, s.target_value, s.target_average_value),
                }
            }),
        }
    }
}

fn resource_status(name: &str, v: &v2::MetricValueStatus, container: Option<&String>) -> ResourceStatus {
    ResourceStatus {
        name: name.to_owned(),
        current_average_utilization: v.average_utilization,
        current_average_value: v.average_value.clone().unwrap_or_else(zero),
        container: container.cloned(),
    }
}

impl From<&v2::MetricStatus> for Measured {
    fn from(m: &v2::MetricStatus) -> Self {
        Self {
            r#type: m.type_.clone(),
            object: m.object.as_ref().map(|s| ObjectStatus {
                target: (&s.described_object).into(),
                metric_name: s.metric.name.clone(),
                current_value: s.current.value.clone().unwrap_or_else(zero),
                selector: s.metric.selector.clone(),
                average_value: s.current.average_value.clone(),
            }),
            pods: m.pods.as_ref().map(|s| PodsStatus {
                metric_name: s.metric.name.clone(),
                current_average_value: s.current.average_value.clone().unwrap_or_else(zero),
                selector: s.metric.selector.clone(),
            }),
            resource: m.resource.as_ref().map(|s| resource_status(&s.name, &s.current, None)),
            container_resource: m
                .container_resource
                .as_ref()
                .map(|s| resource_status(&s.name, &s.current, Some(&s.container))),
            external: m.external.as_ref().map(|s| ExternalStatus {
                metric_name: s.metric.name.clone(),
                metric_selector: s.metric.selector.clone(),
                current_value: s.current.value.clone().unwrap_or_else(zero),
                current_average_value: s.current.average_value.clone(),
            }),
        }
    }
}

impl From<Measured> for v2::MetricStatus {
    fn from(m: Measured) -> Self {
        let id = |name, selector| v2::MetricIdentifier { name, selector };
        let current = |value, average_value, average_utilization| v2::MetricValueStatus {
            average_utilization,
            average_value,
            value,
        };
        Self {
            type_: m.r#type,
            object: m.object.map(|s| v2::ObjectMetricStatus {
                current: current(Some(s.current_value), s.average_value, None),
                described_object: s.target.into(),
                metric: id(s.metric_name, s.selector),
            }),
            pods: m.pods.map(|s| v2::PodsMetricStatus {
                current: current(None, Some(s.current_average_value), None),
                metric: id(s.metric_name, s.selector),
            }),
            resource: m.resource.map(|s| v2::ResourceMetricStatus {
                current: current(None, Some(s.current_average_value), s.current_average_utilization),
                name: s.name,
            }),
            container_resource: m.container_resource.map(|s| v2::ContainerResourceMetricStatus {
                current: current(None, Some(s.current_average_value), s.current_average_utilization),
                container: s.container.unwrap_or_default(),
                name: s.name,
            }),
            external: m.external.map(|s| v2::ExternalMetricStatus {
                current: current(Some(s.current_value), s.current_average_value, None),
                metric: id(s.metric_name, s.metric_selector),
            }),
        }
    }
}
