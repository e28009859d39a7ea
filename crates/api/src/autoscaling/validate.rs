//! Field errors of HorizontalPodAutoscalers. Both versions are checked in the form of version 2.

use crate::apps::workload::nonnegative;
use crate::core::pod::validate::resources::validate_container_resource_name;
use crate::meta::field::{ErrorList, Path};
use crate::meta::names;
use crate::meta::quantity::Amount;
use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, HPAScalingRules, HorizontalPodAutoscalerSpec, MetricIdentifier, MetricSpec,
    MetricTarget,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

const MAX_PERIOD_SECONDS: i32 = 1800;
const MAX_STABILIZATION_SECONDS: i32 = 3600;
const SOURCES: &[&str] = &["ContainerResource", "External", "Object", "Pods", "Resource"];
const SELECT_POLICIES: &[&str] = &["Disabled", "Max", "Min"];
const POLICIES: &[&str] = &["Percent", "Pods"];

/// Field errors of a spec that may ask for `fewest` replicas or more.
pub(super) fn spec(spec: &HorizontalPodAutoscalerSpec, fewest: i32) -> ErrorList {
    let mut e = ErrorList::default();
    let path = Path::new("spec");
    if let Some(n) = spec.min_replicas.filter(|n| *n < fewest) {
        e.invalid(&path.child("minReplicas"), n, &format!("must be greater than or equal to {fewest}"));
    }
    let at = path.child("maxReplicas");
    if spec.max_replicas < 1 {
        e.invalid(&at, spec.max_replicas, "must be greater than 0");
    }
    if spec.min_replicas.is_some_and(|min| spec.max_replicas < min) {
        e.invalid(&at, spec.max_replicas, "must be greater than or equal to `minReplicas`");
    }
    reference(&spec.scale_target_ref, &path.child("scaleTargetRef"), &mut e);
    let metrics = spec.metrics.as_deref().unwrap_or_default();
    let at = path.child("metrics");
    for (i, m) in metrics.iter().enumerate() {
        metric(m, &at.index(i), &mut e);
    }
    let idle = metrics.iter().any(|m| matches!(m.type_.as_str(), "Object" | "External"));
    if spec.min_replicas == Some(0) && !idle {
        e.forbidden(&at, "must specify at least one Object or External metric to support scaling to zero replicas");
    }
    if let Some(behavior) = &spec.behavior {
        let at = path.child("behavior");
        for (name, r) in [("scaleUp", &behavior.scale_up), ("scaleDown", &behavior.scale_down)] {
            if let Some(r) = r {
                rules(r, &at.child(name), &mut e);
            }
        }
    }
    e
}

/// Field errors of a status.
pub(super) fn status(current: i32, desired: i32) -> ErrorList {
    let mut e = ErrorList::default();
    let path = Path::new("status");
    nonnegative(&mut e, &path.child("currentReplicas"), i64::from(current));
    nonnegative(&mut e, &path.child("desiredReplicas"), i64::from(desired));
    e
}

fn segment(value: &str, missing: &str, path: &Path, e: &mut ErrorList) {
    if value.is_empty() {
        e.required(path, missing);
    } else {
        names::push_invalid(e, path, value, &names::path_segment(value, false));
    }
}

fn reference(r: &CrossVersionObjectReference, path: &Path, e: &mut ErrorList) {
    segment(&r.kind, "", &path.child("kind"), e);
    segment(&r.name, "", &path.child("name"), e);
}

fn rules(r: &HPAScalingRules, path: &Path, e: &mut ErrorList) {
    let at = path.child("stabilizationWindowSeconds");
    match r.stabilization_window_seconds {
        Some(n) if n < 0 => e.invalid(&at, n, "must be greater than or equal to zero"),
        Some(n) if n > MAX_STABILIZATION_SECONDS => {
            e.invalid(&at, n, &format!("must be less than or equal to {MAX_STABILIZATION_SECONDS}"));
        }
        _ => {}
    }
    if let Some(p) = r.select_policy.as_deref().filter(|p| !SELECT_POLICIES.contains(p)) {
        e.not_supported(&path.child("selectPolicy"), p, SELECT_POLICIES);
    }
    let at = path.child("policies");
    let policies = r.policies.as_deref().unwrap_or_default();
    if policies.is_empty() {
        e.required(&at, "must specify at least one Policy");
    }
    for (i, p) in policies.iter().enumerate() {
        let path = at.index(i);
        if !POLICIES.contains(&p.type_.as_str()) {
            e.not_supported(&path.child("type"), &p.type_, POLICIES);
        }
        if p.value <= 0 {
            e.invalid(&path.child("value"), p.value, "must be greater than zero");
        }
        let at = path.child("periodSeconds");
        if p.period_seconds <= 0 {
            e.invalid(&at, p.period_seconds, "must be greater than zero");
        }
        if p.period_seconds > MAX_PERIOD_SECONDS {
            e.invalid(&at, p.period_seconds, &format!("must be less than or equal to {MAX_PERIOD_SECONDS}"));
        }
    }
    if let Some(t) = &r.tolerance
        && Amount::parse(&t.0).is_ok_and(|a| a.sign() < 0)
    {
        e.invalid(&path.child("tolerance"), t.0.as_str(), "must be greater than or equal to 0");
    }
}

fn metric(m: &MetricSpec, path: &Path, e: &mut ErrorList) {
    if m.type_.is_empty() {
        e.required(&path.child("type"), "must specify a metric source type");
    }
    if !SOURCES.contains(&m.type_.as_str()) {
        e.not_supported(&path.child("type"), &m.type_, SOURCES);
    }
    let given = [
        ("Object", "object", m.object.is_some()),
        ("External", "external", m.external.is_some()),
        ("Pods", "pods", m.pods.is_some()),
        ("Resource", "resource", m.resource.is_some()),
        ("ContainerResource", "containerResource", m.container_resource.is_some()),
    ];
    // Only the first source is looked into.
    match given.iter().find(|g| g.2).map(|g| g.1) {
        Some("object") => object(m, &path.child("object"), e),
        Some("external") => external(m, &path.child("external"), e),
        Some("pods") => pods(m, &path.child("pods"), e),
        Some("resource") => resource(m, &path.child("resource"), e),
        Some(_) => container_resource(m, &path.child("containerResource"), e),
        None => {}
    }
    let expected = given.iter().find(|g| g.0 == m.type_);
    if let Some((_, field, false)) = expected {
        e.required(&path.child(field), "must populate information for the given metric source");
    }
    if given.iter().filter(|g| g.2).count() > 1 {
        for (_, field, _) in given.iter().filter(|g| g.2 && g.0 != m.type_) {
            e.forbidden(&path.child(field), "must populate the given metric source only");
        }
    }
}

fn object(m: &MetricSpec, path: &Path, e: &mut ErrorList) {
    let Some(s) = &m.object else { return };
    reference(&s.described_object, &path.child("describedObject"), e);
    identifier(&s.metric, &path.child("metric"), e);
    target(&s.target, &path.child("target"), e);
    if s.target.value.is_none() && s.target.average_value.is_none() {
        let at = path.child("target").child("averageValue");
        e.required(&at, "must set either a target value or averageValue");
    }
}

fn external(m: &MetricSpec, path: &Path, e: &mut ErrorList) {
    let Some(s) = &m.external else { return };
    identifier(&s.metric, &path.child("metric"), e);
    let at = path.child("target");
    target(&s.target, &at, e);
    match (&s.target.value, &s.target.average_value) {
        (None, None) => {
            let detail = "must set either a target value for metric or a per-pod target";
            e.required(&at.child("averageValue"), detail);
        }
        (Some(_), Some(_)) => {
            e.forbidden(&at.child("value"), "may not set both a target value for metric and a per-pod target");
        }
        _ => {}
    }
}

fn pods(m: &MetricSpec, path: &Path, e: &mut ErrorList) {
    let Some(s) = &m.pods else { return };
    identifier(&s.metric, &path.child("metric"), e);
    target(&s.target, &path.child("target"), e);
    if s.target.average_value.is_none() {
        e.required(&path.child("target").child("averageValue"), "must specify a positive target averageValue");
    }
}

fn resource(m: &MetricSpec, path: &Path, e: &mut ErrorList) {
    let Some(s) = &m.resource else { return };
    if s.name.is_empty() {
        e.required(&path.child("name"), "must specify a resource name");
    }
    resource_target(&s.target, &path.child("target"), e);
}

fn container_resource(m: &MetricSpec, path: &Path, e: &mut ErrorList) {
    let Some(s) = &m.container_resource else { return };
    let at = path.child("name");
    if s.name.is_empty() {
        e.required(&at, "must specify a resource name");
    } else {
        validate_container_resource_name(&s.name, &at, e);
    }
    let at = path.child("container");
    if s.container.is_empty() {
        e.required(&at, "must specify a container");
    } else {
        names::push_invalid(e, &at, &s.container, &names::dns1123_label(&s.container, false));
    }
    resource_target(&s.target, &path.child("target"), e);
}

fn resource_target(t: &MetricTarget, path: &Path, e: &mut ErrorList) {
    target(t, path, e);
    match (t.average_utilization, &t.average_value) {
        (None, None) => {
            let detail = "must set either a target raw value or a target utilization";
            e.required(&path.child("averageUtilization"), detail);
        }
        (Some(_), Some(_)) => {
            e.forbidden(&path.child("averageValue"), "may not set both a target raw value and a target utilization");
        }
        _ => {}
    }
}

fn target(t: &MetricTarget, path: &Path, e: &mut ErrorList) {
    let at = path.child("type");
    if t.type_.is_empty() {
        e.required(&at, "must specify a metric target type");
    }
    if !matches!(t.type_.as_str(), "Utilization" | "Value" | "AverageValue") {
        e.invalid(&at, t.type_.as_str(), "must be either Utilization, Value, or AverageValue");
    }
    let positive = |q: &Quantity| Amount::parse(&q.0).is_ok_and(|a| a.sign() > 0);
    for (name, q) in [("value", &t.value), ("averageValue", &t.average_value)] {
        if let Some(q) = q.as_ref().filter(|q| !positive(q)) {
            e.invalid(&path.child(name), q.0.as_str(), "must be positive");
        }
    }
    if let Some(n) = t.average_utilization.filter(|n| *n < 1) {
        e.invalid(&path.child("averageUtilization"), n, "must be greater than 0");
    }
}

fn identifier(id: &MetricIdentifier, path: &Path, e: &mut ErrorList) {
    segment(&id.name, "must specify a metric name", &path.child("name"), e);
}
