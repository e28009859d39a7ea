//! `pods/NAME/explain`: why a pod is on its node, or on none. Read-only, and not Kubernetes': it is in no discovery
//! document, and who asks needs the verb `get` on `pods/explain`.

use super::{Handler, Services, body};
use crate::cluster::resource_of;
use crate::request::{HandlerResult, RequestContext};
use async_trait::async_trait;
use bytes::Bytes;
use gantry_api::k8s_openapi::api::core::v1::{Event, Pod};
use gantry_api::kind::downcast;
use gantry_api::meta::status::ApiError;
use serde_json::{Value, json};
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
            return Err(ApiError::method_not_allowed());
        }
        let (namespace, name) = (request.info.namespace.as_str(), request.info.name.as_str());
        let pod = services.cluster.get::<Pod>(namespace, name).await?;
        let disrupted = disrupted(pod.as_ref(), namespace, name, services).await?;
        let mut found = match (&pod, &disrupted) {
            (None, None) => return Err(ApiError::not_found("", "pods", name)),
            (None, Some(_)) => json!({"metadata": {"namespace": namespace, "name": name}, "state": "Gone"}),
            (Some(_), _) => {
                let found = services.explain.get().and_then(|explain| explain(namespace, name));
                // A pod of this very moment, or a server whose scheduler has only just begun.
                found.ok_or_else(|| ApiError::unavailable("the scheduler does not know the pod yet"))?
            }
        };
        if let Some(disrupted) = disrupted {
            found["disrupted"] = disrupted;
        }
        body::json_answer(&request, 200, found.to_string().into(), &[])
    }
}

/// Reasons of the events that tell why a pod had to go.
const TELLING: &[&str] = &["Preempted", "Evicted", "TaintManagerEviction", "DeviceTaintManagerEviction"];

/// Why the pod has to go, or had to: its own condition, and what was told of it as long as the events are kept.
async fn disrupted(
    pod: Option<&Pod>,
    namespace: &str,
    name: &str,
    services: &Services,
) -> Result<Option<Value>, ApiError> {
    let status = pod.and_then(|p| p.status.as_ref());
    let mut conditions = status.into_iter().flat_map(|s| s.conditions.iter().flatten());
    let condition = conditions.find(|c| c.type_ == "DisruptionTarget" && c.status == "True");
    let failed = status.filter(|s| s.phase.as_deref() == Some("Failed") && s.reason.is_some());
    let mut out = match (condition, failed) {
        (Some(c), _) => json!({"reason": c.reason, "message": c.message, "since": c.last_transition_time}),
        (None, Some(s)) => json!({"reason": s.reason, "message": s.message}),
        (None, None) => json!({}),
    };
    let of_pod = |e: &Event| {
        let about = &e.involved_object;
        let same = pod.is_none_or(|p| about.uid == p.metadata.uid);
        same && about.kind.as_deref() == Some("Pod") && e.reason.as_deref().is_some_and(|r| TELLING.contains(&r))
    };
    let objects = &services.cluster.objects;
    let events = objects.list_by_field(resource_of::<Event>(), namespace, "involvedObject.name", name).await?;
    let told = events.iter().filter_map(|e| downcast::<Event>(e.as_ref())).filter(|e| of_pod(e));
    let told: Vec<Value> = told.map(|e| json!({"reason": e.reason, "message": e.message})).collect();
    if !told.is_empty() {
        out["events"] = json!(told);
    }
    Ok(Some(out).filter(|o| o.as_object().is_some_and(|o| !o.is_empty())))
}
