//! Mirror pods, by which a node shows a static pod, may not draw on API objects.

use super::{Attributes, Operation, ValidatingPlugin};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::k8s_openapi::api::core::v1::Pod;
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;

/// Annotation of a mirror pod.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";

/// Whether the pod mirrors a static pod of a node.
pub(super) fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotation(MIRROR).is_some()
}

pub(super) struct MirrorPod;

#[async_trait]
impl ValidatingPlugin for MirrorPod {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    async fn validate(&self, a: &mut Attributes<'_>, _cluster: &Cluster) -> Result<(), ApiError> {
        if a.operation != Operation::Create || !a.is("", "pods", "") {
            return Ok(());
        }
        let Some(pod) = a.object_as::<Pod>().filter(|p| is_mirror(p)) else { return Ok(()) };
        let Some(spec) = &pod.spec else { return Ok(()) };
        let refuse = |why: &str| Err(a.forbidden(why));
        if spec.service_account_name.as_deref().is_some_and(|n| !n.is_empty()) {
            return refuse("a mirror pod may not reference service accounts");
        }
        let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let secret_env = containers().any(|c| {
            let single =
                c.env.iter().flatten().filter_map(|e| e.value_from.as_ref()).any(|v| v.secret_key_ref.is_some());
            single || c.env_from.iter().flatten().any(|f| f.secret_ref.is_some())
        });
        for volume in spec.volumes.iter().flatten() {
            let sources = || volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
            if volume.secret.is_some() || sources().any(|s| s.secret.is_some()) {
                return refuse("a mirror pod may not reference secrets");
            }
            if sources().any(|s| s.service_account_token.is_some()) {
                return refuse("a mirror pod may not use ServiceAccountToken volume projections");
            }
        }
        if secret_env || spec.image_pull_secrets.iter().flatten().next().is_some() {
            return refuse("a mirror pod may not reference secrets");
        }
        Ok(())
    }
}
