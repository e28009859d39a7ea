//! ExtendedResourceToleration: a pod that asks for a resource of a node's own tolerates the taint of that name, by which
//! such nodes are kept for such pods.

use super::{Attributes, MutatingPlugin, Operation};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::core::pod::validate::resources::is_extended;
use gantry_api::k8s_openapi::api::core::v1::{Pod, PodSpec, Toleration};
use gantry_api::meta::status::ApiError;
use std::collections::BTreeSet;

pub(super) struct ExtendedResourceToleration;

fn wanted(spec: &PodSpec) -> BTreeSet<String> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let requests = containers.filter_map(|c| c.resources.as_ref()?.requests.as_ref());
    requests.flat_map(|r| r.keys()).filter(|name| is_extended(name)).cloned().collect()
}

fn tolerate(spec: &mut PodSpec) {
    for key in wanted(spec) {
        let exists = |t: &Toleration| {
            let is = |have: &Option<String>, value: &str| have.as_deref().unwrap_or_default() == value;
            is(&t.key, &key) && is(&t.operator, "Exists") && is(&t.effect, "NoSchedule") && is(&t.value, "")
        };
        let toleration = Toleration {
            key: Some(key.clone()),
            operator: Some("Exists".into()),
            effect: Some("NoSchedule".into()),
            ..Default::default()
        };
        let list = spec.tolerations.get_or_insert_default();
        match list.iter_mut().find(|t| exists(t)) {
            Some(same) => *same = toleration,
            None => list.push(toleration),
        }
    }
}

#[async_trait]
impl MutatingPlugin for ExtendedResourceToleration {
    fn name(&self) -> &'static str {
        "ExtendedResourceToleration"
    }

    async fn admit(&self, a: &mut Attributes<'_>, _: &Cluster) -> Result<(), ApiError> {
        let writes = matches!(a.operation, Operation::Create | Operation::Update);
        if writes
            && a.is("", "pods", "")
            && let Some(spec) = a.object_as_mut::<Pod>().and_then(|p| p.spec.as_mut())
        {
            tolerate(spec);
        }
        Ok(())
    }
}
