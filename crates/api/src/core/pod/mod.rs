//! Pod: containers that share a network, volumes and a fate.

use crate::kind::{Column, Context, Kind, ResourceInfo, STATUS, Subresource, Verb};
use crate::meta::field::{ErrorList, Path};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use serde::de::Error as _;
use serde_json::Value;

mod columns;
mod decode;
mod defaults;
mod disabled;
pub mod qos;
mod references;
pub mod resources;
mod shrink;
mod strategy;
mod subresources;
mod template;
mod update;
pub mod validate;
mod warnings;

pub use columns::display_status;
pub use decode::canonicalize_pod_spec;
pub use defaults::{default_pod, default_pod_spec, default_pod_template, default_pull_policy};
pub use disabled::drop_scheduling_group;
pub use references::{referenced_kind, references};
pub use strategy::GATED_MESSAGE;
pub(crate) use strategy::bump_generation;
pub use template::validate_pod_template_spec;
pub use warnings::{deprecated_node_label, pod_template_warnings, pod_warnings};

/// Annotation of a mirror pod, the API's image of a pod a node runs on its own.
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

const GET_CREATE: &[Verb] = &[Verb::Create, Verb::Get];
const GET_PATCH_UPDATE: &[Verb] = &[Verb::Get, Verb::Patch, Verb::Update];
const PROXY: &[Verb] = &[Verb::Create, Verb::Delete, Verb::Get, Verb::Patch, Verb::Update];

const fn sub(
    name: &'static str,
    gvk: Option<(&'static str, &'static str, &'static str)>,
    verbs: &'static [Verb],
) -> Subresource {
    Subresource { name, gvk, verbs }
}

impl Kind for Pod {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["po"],
        categories: &["all"],
        subresources: &[
            sub("attach", Some(("", "v1", "PodAttachOptions")), GET_CREATE),
            sub("binding", Some(("", "v1", "Binding")), &[Verb::Create]),
            sub("ephemeralcontainers", None, GET_PATCH_UPDATE),
            sub("eviction", Some(("policy", "v1", "Eviction")), &[Verb::Create]),
            sub("exec", Some(("", "v1", "PodExecOptions")), GET_CREATE),
            sub("log", None, &[Verb::Get]),
            sub("portforward", Some(("", "v1", "PodPortForwardOptions")), GET_CREATE),
            sub("proxy", Some(("", "v1", "PodProxyOptions")), PROXY),
            sub("resize", None, GET_PATCH_UPDATE),
            STATUS,
        ],
        ..ResourceInfo::new("", "v1", "Pod", "pods", "pod", true)
    };
    const COLUMNS: &'static [Column] = columns::COLUMNS;

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
    fn shrink(&mut self) {
        shrink::pod(self);
    }
    fn from_json(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        canonical(serde_json::from_slice(bytes)?)
    }
    fn from_value(value: Value) -> Result<Self, serde_json::Error> {
        canonical(serde_json::from_value(value)?)
    }
    fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("API types have string keys only")
    }
    fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("API types have string keys only")
    }

    fn set_defaults(&mut self) {
        default_pod(self);
        strategy::sync_pod_ips(self.status.get_or_insert_default());
    }
    fn prepare_for_create(&mut self, cx: &Context<'_>) {
        strategy::prepare_for_create(self, cx.now);
    }
    fn validate(&self) -> ErrorList {
        update::validate_create(self)
    }
    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        pod_warnings(self, old)
    }
    fn prepare_for_update(&mut self, old: &Self, _cx: &Context<'_>) {
        strategy::prepare_for_update(self, old);
    }
    fn validate_update(&self, old: &Self) -> ErrorList {
        update::validate_update(self, old)
    }
    fn prepare_for_status_update(&mut self, old: &Self, _cx: &Context<'_>) {
        strategy::prepare_for_status_update(self, old);
    }
    fn validate_status_update(&self, old: &Self) -> ErrorList {
        update::validate_status_update(self, old)
    }
    fn prepare_for_subresource_update(&mut self, subresource: &str, old: &Self, cx: &Context<'_>) {
        match subresource {
            "ephemeralcontainers" => subresources::prepare_ephemeral_containers(self, old),
            "resize" => subresources::prepare_resize(self, old),
            _ => self.prepare_for_status_update(old, cx),
        }
    }
    fn validate_subresource_update(&self, subresource: &str, old: &Self) -> ErrorList {
        match subresource {
            "ephemeralcontainers" => subresources::validate_ephemeral_containers(self, old),
            "resize" => subresources::validate_resize(self, old),
            _ => self.validate_status_update(old),
        }
    }
    fn selectable_fields(&self) -> Vec<(&'static str, String)> {
        strategy::selectable_fields(self)
    }
    fn cells(&self, now: Timestamp) -> Vec<Value> {
        columns::cells(self, now)
    }
    fn graceful_delete_seconds(&self, options: &DeleteOptions) -> Option<i64> {
        Some(strategy::graceful_delete_seconds(self, options))
    }
    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]])
    }
}

fn canonical(mut pod: Pod) -> Result<Pod, serde_json::Error> {
    if let Some(spec) = &mut pod.spec {
        canonicalize_pod_spec(spec).map_err(serde_json::Error::custom)?;
    }
    Ok(pod)
}

/// `spec`, where most errors are.
pub(crate) fn spec_path() -> Path {
    Path::new("spec")
}
