//! `pods/NAME/explain`: why a pod is on its node, or on none. Read-only, and not Kubernetes': it is in no discovery
//! document, and who asks needs the verb `get` on `pods/explain`.

use super::{Handler, Services, body};
use crate::request::{HandlerResult, RequestContext};
use async_trait::async_trait;
use bytes::Bytes;
use gantry_api::k8s_openapi::api::core::v1::Pod;
use gantry_api::meta::status::ApiError;
use serde_json::Value;
use std::sync::{Arc, OnceLock};

/// Explains a pod by namespace and name; `None` where it is not known.
pub type Explain = Arc<dyn Fn(&str, &str) -> Option<Value> + Send + Sync>;

/// The scheduler's answer to the question, once there is a scheduler.
pub type ExplainSlot = Arc<OnceLock<Explain>>;

pub(super) struct PodExplain;

#[async_trait]
impl Handler for PodExplain {
    fn target(&self) -> (&'static str, &'static str, &'static str, &'static str) {
        ("", "v1", "pods", "explain")
    }

    async fn handle(&self, request: RequestContext, _: Bytes, services: &Services) -> HandlerResult {
        if request.info.verb != "get" {
            let message = "the server does not allow this method on the requested resource";
            return Err(ApiError::new(405, "MethodNotAllowed", message));
        }
        let (namespace, name) = (request.info.namespace.as_str(), request.info.name.as_str());
        if services.cluster.get::<Pod>(namespace, name).await?.is_none() {
            return Err(ApiError::not_found("", "pods", name));
        }
        let found = services.explain.get().and_then(|explain| explain(namespace, name));
        // A pod of this very moment, or a server whose scheduler has only just begun.
        let found = found.ok_or_else(|| ApiError::unavailable("the scheduler does not know the pod yet"))?;
        body::json_answer(&request, 200, found.to_string().into(), &[])
    }
}
