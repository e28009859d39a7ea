//! Priority: resolves a pod's priority class to a number, and keeps the default class unique.

use super::{Attributes, MutatingPlugin, Operation, ValidatingPlugin};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::k8s_openapi::api::core::v1::Pod;
use gantry_api::k8s_openapi::api::scheduling::v1::PriorityClass;
use gantry_api::k8s_openapi::api::scheduling::v1beta1::PodGroup;
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use std::sync::Arc;

const PREEMPT: &str = "PreemptLowerPriority";

pub(super) struct Priority;

/// The class of pods that name none: of several default classes the one of lowest value.
async fn default_class(cluster: &Cluster) -> Result<Option<Arc<PriorityClass>>, ApiError> {
    let classes = cluster.list_shared::<PriorityClass>("").await?;
    Ok(classes.into_iter().filter(|c| c.global_default == Some(true)).min_by_key(|c| c.value))
}

/// The class of this name, or the default one where none is named.
async fn class_of(
    a: &Attributes<'_>,
    named: Option<&str>,
    cluster: &Cluster,
) -> Result<Option<Arc<PriorityClass>>, ApiError> {
    let Some(name) = named else { return default_class(cluster).await };
    let found = cluster.shared::<PriorityClass>("", name).await?;
    found.map(Some).ok_or_else(|| a.forbidden(&format!("no PriorityClass with name {name} was found")))
}

/// A new group gets the priority of its class; that of one that is there does not change.
async fn resolve_group(a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
    let Some(spec) = a.object_as::<PodGroup>().map(|g| &g.spec) else { return Ok(()) };
    let named = spec.priority_class_name.clone().filter(|n| !n.is_empty());
    let given = spec.priority;
    let class = class_of(a, named.as_deref(), cluster).await?;
    let value = class.as_ref().and_then(|c| c.value).unwrap_or(0);
    if let Some(given) = given.filter(|g| *g != value) {
        return Err(a.forbidden(&format!(
            "the integer value of priority ({given}) must not be provided in pod group spec; priority admission \
             controller computed {value} from the given PriorityClass name"
        )));
    }
    if let Some(group) = a.object_as_mut::<PodGroup>() {
        if named.is_none() {
            group.spec.priority_class_name = class.map(|c| c.metadata.name().to_owned());
        }
        group.spec.priority = Some(value);
    }
    Ok(())
}

async fn resolve(a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
    let Some(spec) = a.object_as::<Pod>().and_then(|p| p.spec.as_ref()) else { return Ok(()) };
    if a.operation == Operation::Update {
        // An update that leaves them out keeps what admission computed at creation.
        let old = a.old_as::<Pod>().and_then(|p| p.spec.as_ref()).map(|s| (s.priority, s.preemption_policy.clone()));
        if let (Some((priority, policy)), Some(spec)) = (old, a.object_as_mut::<Pod>().and_then(|p| p.spec.as_mut())) {
            spec.priority = spec.priority.or(priority);
            spec.preemption_policy = spec.preemption_policy.take().or(policy);
        }
        return Ok(());
    }
    let named = spec.priority_class_name.clone().filter(|n| !n.is_empty());
    let class = class_of(a, named.as_deref(), cluster).await?;
    let value = class.as_ref().and_then(|c| c.value).unwrap_or(0);
    let policy = class.as_ref().and_then(|c| c.preemption_policy.clone()).unwrap_or_else(|| PREEMPT.into());
    if let Some(given) = spec.priority
        && given != value
    {
        return Err(a.forbidden(&format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
             computed {value} from the given PriorityClass name"
        )));
    }
    if let Some(given) = &spec.preemption_policy
        && *given != policy
    {
        return Err(a.forbidden(&format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
             controller computed {policy} from the given PriorityClass name"
        )));
    }
    if let Some(spec) = a.object_as_mut::<Pod>().and_then(|p| p.spec.as_mut()) {
        if named.is_none() {
            spec.priority_class_name = class.map(|c| c.metadata.name().to_owned());
        }
        spec.priority = Some(value);
        spec.preemption_policy = Some(policy);
    }
    Ok(())
}

#[async_trait]
impl MutatingPlugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    async fn admit(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        if matches!(a.operation, Operation::Create | Operation::Update) && a.is("", "pods", "") {
            resolve(a, cluster).await?;
        } else if a.operation == Operation::Create && a.is("scheduling.k8s.io", "podgroups", "") {
            resolve_group(a, cluster).await?;
        }
        Ok(())
    }
}

#[async_trait]
impl ValidatingPlugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    async fn validate(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        let writes = matches!(a.operation, Operation::Create | Operation::Update);
        if !writes || !a.is("scheduling.k8s.io", "priorityclasses", "") {
            return Ok(());
        }
        let Some(class) = a.object_as::<PriorityClass>().filter(|c| c.global_default == Some(true)) else {
            return Ok(());
        };
        let name = class.metadata.name();
        match default_class(cluster).await? {
            Some(other) if other.metadata.name() != name => {
                let other = other.metadata.name();
                Err(a.forbidden(&format!(
                    "PriorityClass {other} is already marked as default. Only one default can exist"
                )))
            }
            _ => Ok(()),
        }
    }
}
