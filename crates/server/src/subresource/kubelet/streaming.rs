//! `pods/exec`, `pods/attach` and `pods/portforward`: found, admitted and handed to the kubelet.

use super::admit_connect;
use super::backend::{KubeletClient, kubelet_of};
use super::location::{container, query_string};
use super::tunnel::forwarded_request_headers;
use crate::cluster::resource_of;
use crate::request::{HandlerResult, RequestContext};
use crate::subresource::{Handler, Services};
use async_trait::async_trait;
use bytes::Bytes;
use gantry_api::k8s_openapi::api::core::v1::Pod;
use gantry_api::meta::status::ApiError;
use http::Request;
use http::header::UPGRADE;
use hyper::upgrade::OnUpgrade;
use std::sync::Arc;

/// What is done in the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamKind {
    /// Run a command.
    Exec,
    /// Join a running container's streams.
    Attach,
    /// Carry connections to ports.
    PortForward,
}

pub(super) struct Streaming {
    pub(super) client: Arc<KubeletClient>,
    pub(super) kind: StreamKind,
}

fn is_set(request: &RequestContext, name: &str) -> bool {
    request.param(name).is_some_and(|v| !matches!(v, "" | "0" | "f" | "F" | "false" | "False" | "FALSE"))
}

impl Streaming {
    /// Path and query at the kubelet.
    fn location(&self, request: &RequestContext, pod: &Pod) -> Result<String, ApiError> {
        let (namespace, name) = (&request.info.namespace, &request.info.name);
        let mut pairs: Vec<(&str, &str)> = Vec::new();
        if self.kind == StreamKind::PortForward {
            pairs.extend(request.query.iter().filter(|(k, _)| k == "ports").map(|(_, v)| ("port", v.as_str())));
            let query = query_string(pairs);
            let path = format!("/portForward/{namespace}/{name}");
            return Ok(if query.is_empty() { path } else { format!("{path}?{query}") });
        }
        let container = container(pod, request.param("container").unwrap_or_default())?;
        // The kubelet has its own names for the streams. Upstream's options default to stdout and stderr.
        let given = |n: &str| request.param(n).is_some();
        let on = |n: &str, default: bool| if given(n) { is_set(request, n) } else { default };
        let terminal = is_set(request, "tty");
        let streams = [
            ("input", on("stdin", false)),
            ("output", on("stdout", true)),
            // A terminal has no separate error stream.
            ("error", !terminal && on("stderr", true)),
            ("tty", terminal),
        ];
        if streams[..3].iter().all(|(_, on)| !on) {
            return Err(ApiError::bad_request("you must specify at least 1 of stdin, stdout, stderr"));
        }
        pairs.extend(streams.iter().filter(|(_, on)| *on).map(|(k, _)| (*k, "1")));
        let verb = match self.kind {
            StreamKind::Exec => {
                let commands =
                    request.query.iter().filter(|(k, _)| k == "command").map(|(_, v)| ("command", v.as_str()));
                let before = pairs.len();
                pairs.extend(commands);
                if pairs.len() == before {
                    return Err(ApiError::bad_request("you must specify at least one command for the container"));
                }
                "exec"
            }
            _ => "attach",
        };
        Ok(format!("/{verb}/{namespace}/{name}/{container}?{}", query_string(pairs)))
    }
}

#[async_trait]
impl Handler for Streaming {
    fn target(&self) -> (&'static str, &'static str, &'static str, &'static str) {
        let subresource = match self.kind {
            StreamKind::Exec => "exec",
            StreamKind::Attach => "attach",
            StreamKind::PortForward => "portforward",
        };
        ("", "v1", "pods", subresource)
    }

    async fn handle(&self, mut request: RequestContext, _body: Bytes, services: &Services) -> HandlerResult {
        if !matches!(request.info.verb.as_str(), "get" | "create") {
            return Err(ApiError::method_not_allowed());
        }
        let (namespace, name) = (&request.info.namespace, &request.info.name);
        let mut pod = services.cluster.get::<Pod>(namespace, name).await?;
        if pod.as_ref().is_none_or(|p| p.spec.as_ref().is_none_or(|s| s.node_name.is_none())) {
            pod = services.cluster.get_latest::<Pod>(namespace, name).await?;
        }
        let pod = pod.ok_or_else(|| ApiError::not_found("", "pods", name))?;
        admit_connect(&request, resource_of::<Pod>(), services).await?;
        let location = self.location(&request, &pod)?;
        let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default();
        if node.is_empty() {
            return Err(ApiError::bad_request(format!("pod {name} does not have a host assigned")));
        }
        if !request.parts.headers.contains_key(UPGRADE) {
            return Err(ApiError::bad_request("Upgrade request required"));
        }
        let kubelet = kubelet_of(&services.cluster, node).await?;
        let mut head = Request::builder().method(request.parts.method.clone()).uri(location);
        if let Some(headers) = head.headers_mut() {
            *headers = forwarded_request_headers(&request.parts.headers, true);
        }
        let head = head.body(()).map_err(ApiError::internal)?;
        let client = request.parts.extensions.remove::<OnUpgrade>();
        let passed = self.client.pass_on(&kubelet, head, Bytes::new(), client).await;
        passed.map_err(|e| ApiError::internal(format!("error dialing backend: {e}")))
    }
}
