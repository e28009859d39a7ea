//! DenyServiceExternalIPs: no Service gets an external address it does not have already.

use super::{Attributes, Operation, ValidatingPlugin};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::k8s_openapi::api::core::v1::Service;
use gantry_api::meta::status::ApiError;

pub(super) struct DenyServiceExternalIps;

fn addresses(service: Option<&Service>) -> &[String] {
    service.and_then(|s| s.spec.as_ref()).and_then(|s| s.external_ips.as_deref()).unwrap_or_default()
}

#[async_trait]
impl ValidatingPlugin for DenyServiceExternalIps {
    fn name(&self) -> &'static str {
        "DenyServiceExternalIPs"
    }

    async fn validate(&self, a: &mut Attributes<'_>, _: &Cluster) -> Result<(), ApiError> {
        let writes = matches!(a.operation, Operation::Create | Operation::Update);
        if !writes || !a.is("", "services", "") {
            return Ok(());
        }
        let before = addresses(a.old_as());
        if addresses(a.object_as()).iter().all(|ip| before.contains(ip)) {
            return Ok(());
        }
        Err(a.forbidden("Use of external IPs is denied by admission control"))
    }
}
