//! RuntimeClass: a pod gets the overhead and the placement of the runtime class it names, and may not invent its own.

use super::{Attributes, MutatingPlugin, Operation, ValidatingPlugin};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::core::pod::resources::amounts;
use gantry_api::k8s_openapi::api::core::v1::{Pod, PodSpec, Toleration};
use gantry_api::k8s_openapi::api::node::v1::RuntimeClass;
use gantry_api::meta::quantity::ResourceList;
use gantry_api::meta::status::ApiError;

const MISMATCH: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

pub(super) struct RuntimeClassPlugin;

fn is_new_pod(a: &Attributes<'_>) -> bool {
    a.operation == Operation::Create && a.is("", "pods", "")
}

async fn class_of(a: &Attributes<'_>, cluster: &Cluster) -> Result<Option<RuntimeClass>, ApiError> {
    let spec = a.object_as::<Pod>().and_then(|p| p.spec.as_ref());
    let Some(name) = spec.and_then(|s| s.runtime_class_name.as_deref()) else { return Ok(None) };
    let mut found = cluster.get::<RuntimeClass>("", name).await?;
    if found.is_none() {
        found = cluster.get_latest::<RuntimeClass>("", name).await?;
    }
    match found {
        Some(class) => Ok(Some(class)),
        None => Err(a.forbidden(&format!("pod rejected: RuntimeClass {name:?} not found"))),
    }
}

fn fixed(class: Option<&RuntimeClass>) -> Option<&ResourceList> {
    class.and_then(|c| c.overhead.as_ref()).and_then(|o| o.pod_fixed.as_ref())
}

fn overhead(spec: &PodSpec) -> Option<&ResourceList> {
    spec.overhead.as_ref().filter(|o| !o.is_empty())
}

/// Whether a pod that tolerates what `strong` says also tolerates what `weak` says.
fn includes(strong: &Toleration, weak: &Toleration) -> bool {
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    if text(&strong.key) == text(&weak.key)
        && text(&strong.operator) == text(&weak.operator)
        && text(&strong.value) == text(&weak.value)
        && text(&strong.effect) == text(&weak.effect)
        && strong.toleration_seconds == weak.toleration_seconds
    {
        return true;
    }
    if !text(&strong.key).is_empty() && text(&strong.key) != text(&weak.key) {
        return false;
    }
    if !text(&strong.effect).is_empty() && text(&strong.effect) != text(&weak.effect) {
        return false;
    }
    if text(&strong.effect) == "NoExecute"
        && let Some(seconds) = strong.toleration_seconds
        && weak.toleration_seconds.is_none_or(|w| seconds < w)
    {
        return false;
    }
    match text(&strong.operator).as_str() {
        "" | "Equal" => {
            matches!(text(&weak.operator).as_str(), "" | "Equal") && text(&strong.value) == text(&weak.value)
        }
        "Exists" => true,
        _ => false,
    }
}

/// Both lists without what another entry says already.
fn merge(own: Vec<Toleration>, more: Vec<Toleration>) -> Vec<Toleration> {
    let all: Vec<Toleration> = own.into_iter().chain(more).collect();
    let mut merged: Vec<Toleration> = Vec::new();
    for (i, t) in all.iter().enumerate() {
        let said = merged.iter().any(|m| includes(m, t));
        // Of two that say the same the later one is dropped, so that only a later, wider one displaces an earlier one.
        let said_later = all[i + 1..].iter().any(|later| includes(later, t) && !includes(t, later));
        if !said && !said_later {
            merged.push(t.clone());
        }
    }
    merged
}

/// Gives the pod the class's placement.
///
/// # Errors
/// The node selectors contradict each other.
fn place(spec: &mut PodSpec, class: &RuntimeClass) -> Result<(), String> {
    let Some(scheduling) = &class.scheduling else { return Ok(()) };
    for (key, value) in scheduling.node_selector.iter().flatten() {
        let selector = spec.node_selector.get_or_insert_default();
        if let Some(own) = selector.get(key).filter(|own| *own != value) {
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {own}"
            ));
        }
        selector.insert(key.clone(), value.clone());
    }
    if let Some(more) = scheduling.tolerations.clone().filter(|t| !t.is_empty()) {
        spec.tolerations = Some(merge(spec.tolerations.take().unwrap_or_default(), more));
    }
    Ok(())
}

#[async_trait]
impl MutatingPlugin for RuntimeClassPlugin {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    async fn admit(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        if !is_new_pod(a) {
            return Ok(());
        }
        let Some(class) = class_of(a, cluster).await? else { return Ok(()) };
        let Some(spec) = a.object_as_mut::<Pod>().and_then(|p| p.spec.as_mut()) else { return Ok(()) };
        if let Some(fixed) = fixed(Some(&class)) {
            if overhead(spec).is_some_and(|own| amounts(Some(own)) != amounts(Some(fixed))) {
                return Err(a.forbidden(MISMATCH));
            }
            spec.overhead = Some(fixed.clone());
        }
        match place(spec, &class) {
            Ok(()) => Ok(()),
            Err(why) => Err(a.forbidden(&why)),
        }
    }
}

#[async_trait]
impl ValidatingPlugin for RuntimeClassPlugin {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    async fn validate(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        if !is_new_pod(a) {
            return Ok(());
        }
        let class = class_of(a, cluster).await?;
        let Some(own) = a.object_as::<Pod>().and_then(|p| p.spec.as_ref()).and_then(overhead) else { return Ok(()) };
        match fixed(class.as_ref()) {
            Some(fixed) if amounts(Some(fixed)) == amounts(Some(own)) => Ok(()),
            Some(_) => Err(a.forbidden(MISMATCH)),
            None => {
                let why = "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";
                Err(a.forbidden(why))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_are_merged_without_repetition() {
        let t = |key: &str, operator: &str, value: &str| Toleration {
            key: Some(key.into()),
            operator: Some(operator.into()),
            value: Some(value.into()).filter(|v: &String| !v.is_empty()),
            ..Default::default()
        };
        let keys = |merged: &[Toleration]| -> Vec<String> {
            merged.iter().map(|t| format!("{}{}", t.key.clone().unwrap(), t.operator.clone().unwrap())).collect()
        };
        let merged =
            merge(vec![t("a", "Equal", "1"), t("b", "Exists", "")], vec![t("a", "Exists", ""), t("b", "Equal", "x")]);
        assert_eq!(keys(&merged), ["bExists", "aExists"]);
        assert_eq!(merge(vec![t("a", "Equal", "1")], vec![t("a", "Equal", "1")]).len(), 1);
        assert_eq!(merge(vec![t("a", "Equal", "1")], vec![t("a", "Equal", "2")]).len(), 2);
    }
}
