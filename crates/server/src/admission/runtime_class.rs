//! RuntimeClass: a pod gets the overhead and the placement of the runtime class it names, and may not invent its own.

use super::{Attributes, MutatingPlugin, Operation, ValidatingPlugin, tolerations};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::core::pod::resources::amounts;
use gantry_api::k8s_openapi::api::core::v1::{Pod, PodSpec};
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
        spec.tolerations = Some(tolerations::merge(spec.tolerations.take().unwrap_or_default(), more));
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
