//! `pods/log`: the kubelet streams the log; the server checks the options and where the pod is.

use super::backend::{KubeletClient, kubelet_of};
use super::location::{container, query_string};
use super::tunnel;
use crate::http::respond;
use crate::request::{HandlerResult, RequestContext, Response};
use crate::subresource::{Handler, Services};
use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use gantry_api::k8s_openapi::api::core::v1::Pod;
use gantry_api::k8s_openapi::jiff::Timestamp;
use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::status::ApiError;
use gantry_stream::Rejection;
use gantry_stream::one_way::Upgrade;
use http::{HeaderValue, Request};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use std::sync::Arc;

/// Bytes of an error text that are read from a kubelet.
const ERROR_BYTES_MAX: usize = 2048;

pub(super) struct PodLog(pub(super) Arc<KubeletClient>);

fn flag(request: &RequestContext, name: &str) -> bool {
    request.param(name).is_some_and(|v| !matches!(v, "" | "0" | "f" | "F" | "false" | "False" | "FALSE"))
}

fn number(request: &RequestContext, name: &str) -> Result<Option<i64>, ApiError> {
    let Some(text) = request.param(name).filter(|v| !v.is_empty()) else { return Ok(None) };
    let parsed = text.parse();
    parsed.map(Some).map_err(|_| ApiError::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))
}

/// The kubelet's query for these options.
fn kubelet_query(request: &RequestContext) -> Result<String, ApiError> {
    let (tail, limit) = (number(request, "tailLines")?, number(request, "limitBytes")?);
    let since = number(request, "sinceSeconds")?;
    let since_time = request.param("sinceTime").filter(|t| !t.is_empty());
    let stream = request.param("stream").filter(|s| !s.is_empty());
    let mut e = ErrorList::default();
    if let Some(n) = tail.filter(|n| *n < 0) {
        e.invalid(&Path::new("tailLines"), n, "must be greater than or equal to 0");
    }
    if let Some(n) = limit.filter(|n| *n < 1) {
        e.invalid(&Path::new("limitBytes"), n, "must be greater than 0");
    }
    match (since, since_time) {
        (Some(_), Some(_)) => {
            e.forbidden(&Path::new("sinceSeconds"), "at most one of `sinceTime` or `sinceSeconds` may be specified");
        }
        (Some(n), None) if n < 1 => e.invalid(&Path::new("sinceSeconds"), n, "must be greater than 0"),
        _ => {}
    }
    if let Some(s) = stream {
        if !matches!(s, "All" | "Stdout" | "Stderr") {
            e.not_supported(&Path::new("stream"), s, &["All", "Stderr", "Stdout"]);
        } else if s != "All" && tail.is_some() {
            e.forbidden(&Path::new("[]"), "`tailLines` and specific `stream` are mutually exclusive for now");
        }
    }
    if let Some(t) = since_time
        && t.parse::<Timestamp>().is_err()
    {
        return Err(ApiError::bad_request(format!(
            "parsing time {t:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse"
        )));
    }
    if !e.is_empty() {
        return Err(ApiError::invalid("", "PodLogOptions", &request.info.name, &e));
    }
    let mut pairs: Vec<(&str, String)> = Vec::new();
    for name in ["follow", "previous", "timestamps"] {
        if flag(request, name) {
            pairs.push((name, "true".into()));
        }
    }
    for (name, value) in [("sinceSeconds", since), ("tailLines", tail), ("limitBytes", limit)] {
        if let Some(n) = value {
            pairs.push((name, n.to_string()));
        }
    }
    if let Some(t) = since_time {
        pairs.push(("sinceTime", t.to_owned()));
    }
    if let Some(s) = stream {
        pairs.push(("stream", s.to_owned()));
    }
    Ok(query_string(pairs.iter().map(|(k, v)| (*k, v.as_str()))))
}

/// A kubelet's failure as the client is to read it.
fn refused(code: u16, text: String, name: &str) -> ApiError {
    match code {
        500 => ApiError::internal(text),
        400 => ApiError::bad_request(text),
        404 => ApiError::new(
            404,
            "NotFound",
            format!("the server could not find the requested resource ( pods/log {name}): {text}"),
        ),
        403 => ApiError::forbidden("", "pods/log", name, &text),
        _ => ApiError::new(
            code,
            "",
            format!("an error on the server ({text:?}) has prevented the request from succeeding ( pods/log {name})"),
        ),
    }
}

/// The log as the messages of a WebSocket.
fn over_websocket(
    upgrade: Result<Upgrade, Rejection>,
    client: Option<OnUpgrade>,
    backend: http::Response<Incoming>,
) -> Response {
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => return rejection.response().map(|text| respond::full(Bytes::from(text))),
    };
    let answer = upgrade.response().map(|()| respond::full(Bytes::new()));
    if let Some(client) = client {
        let lines = backend.into_body().into_data_stream().map_err(std::io::Error::other);
        tokio::spawn(async move {
            let served = match client.await {
                Ok(io) => upgrade.serve(TokioIo::new(io), lines).await.map_err(|e| e.to_string()),
                Err(e) => Err(e.to_string()),
            };
            // A broken connection is how these streams usually end.
            if let Err(error) = served {
                tracing::debug!(error, "a log over WebSocket ended early");
            }
        });
    }
    answer
}

#[async_trait]
impl Handler for PodLog {
    fn target(&self) -> (&'static str, &'static str, &'static str, &'static str) {
        ("", "v1", "pods", "log")
    }

    async fn handle(&self, mut request: RequestContext, _body: Bytes, services: &Services) -> HandlerResult {
        if request.info.verb != "get" {
            return Err(ApiError::method_not_allowed());
        }
        let (namespace, name) = (&request.info.namespace, &request.info.name);
        let query = kubelet_query(&request)?;
        let mut pod = services.cluster.get::<Pod>(namespace, name).await?;
        if pod.as_ref().is_none_or(|p| p.spec.as_ref().is_none_or(|s| s.node_name.is_none())) {
            pod = services.cluster.get_latest::<Pod>(namespace, name).await?;
        }
        let pod = pod.ok_or_else(|| ApiError::not_found("", "pods", name))?;
        let container = container(&pod, request.param("container").unwrap_or_default())?;
        let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default();
        if node.is_empty() {
            // A pod without a node has logged nothing.
            return Ok(respond::with_type(200, "text/plain", Bytes::new()));
        }
        let kubelet = kubelet_of(&services.cluster, node).await?;
        let path = format!("/containerLogs/{namespace}/{name}/{container}");
        let uri = if query.is_empty() { path } else { format!("{path}?{query}") };
        let head = Request::get(&uri).body(()).map_err(ApiError::internal)?;
        let backend = self
            .0
            .send(&kubelet, head, Bytes::new())
            .await
            .map_err(|e| ApiError::internal(format!("Get \"https://{}{uri}\": {e}", kubelet.authority())))?;
        let status = backend.status().as_u16();
        if !(200..=206).contains(&status) {
            let text = match Limited::new(backend.into_body(), ERROR_BYTES_MAX).collect().await {
                Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
                Err(e) => format!("the kubelet's answer could not be read: {e}"),
            };
            return Err(refused(status, text, name));
        }
        if let Some(upgrade) = Upgrade::negotiate(&request.parts) {
            return Ok(over_websocket(upgrade, request.parts.extensions.remove::<OnUpgrade>(), backend));
        }
        let mut response = tunnel::answer(backend, None);
        response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
        Ok(response)
    }
}
