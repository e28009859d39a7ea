//! `pods/proxy`, `services/proxy` and `nodes/proxy`: HTTP through the server.

use super::backend::{Endpoint, KubeletClient, Security, kubelet_of};
use super::location::{after_proxy, may_proxy_to, split_scheme_name_port};
use super::tunnel::forwarded_request_headers;
use super::{admit_connect, html};
use crate::cluster::{Cluster, resource_of};
use crate::http::respond;
use crate::request::{HandlerResult, RequestContext, Response};
use crate::subresource::{Handler, Services};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use gantry_api::k8s_openapi::api::core::v1::{Node, Pod, Service};
use gantry_api::k8s_openapi::api::discovery::v1::EndpointSlice;
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, LOCATION, UPGRADE};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::upgrade::OnUpgrade;
use std::sync::Arc;

/// Label of an EndpointSlice that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Longest HTML page that is held to rewrite its links.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// What is proxied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProxyKind {
    /// `pods/[scheme:]NAME[:port]/proxy`.
    Pods,
    /// `services/[scheme:]NAME[:port]/proxy`.
    Services,
    /// `nodes/[scheme:]NAME[:port]/proxy`.
    Nodes,
}

pub(super) struct Proxy {
    pub(super) client: Arc<KubeletClient>,
    pub(super) kind: ProxyKind,
}

fn security(scheme: &str) -> Security {
    if scheme == "https" { Security::AnyCertificate } else { Security::Plain }
}

fn port_number(port: &str, id: &str, what: &str) -> Result<u16, ApiError> {
    port.parse().map_err(|_| ApiError::bad_request(format!("invalid {what} request {id:?}")))
}

async fn pod_endpoint(cluster: &Cluster, namespace: &str, id: &str) -> Result<Endpoint, ApiError> {
    let invalid = || ApiError::bad_request(format!("invalid pod request {id:?}"));
    let (scheme, name, port) = split_scheme_name_port(id).ok_or_else(invalid)?;
    let pod = cluster.get_latest::<Pod>(namespace, name).await?;
    let pod = pod.ok_or_else(|| ApiError::not_found("", "pods", name))?;
    let declared = || {
        let containers = pod.spec.iter().flat_map(|s| &s.containers);
        containers.filter_map(|c| c.ports.iter().flatten().next()).map(|p| p.container_port).next()
    };
    let port = match port {
        "" => match declared() {
            Some(p) => u16::try_from(p).map_err(|_| invalid())?,
            None if scheme == "https" => 443,
            None => 80,
        },
        text => port_number(text, id, "pod")?,
    };
    let host = pod.status.and_then(|s| s.pod_ip).unwrap_or_default();
    if !may_proxy_to(&host) {
        return Err(ApiError::bad_request("address not allowed"));
    }
    Ok(Endpoint { host, port, security: security(scheme) })
}

async fn service_endpoint(cluster: &Cluster, namespace: &str, id: &str) -> Result<Endpoint, ApiError> {
    let invalid = || ApiError::bad_request(format!("invalid service request {id:?}"));
    let (scheme, name, port) = split_scheme_name_port(id).ok_or_else(invalid)?;
    let service = cluster.get_latest::<Service>(namespace, name).await?;
    let service = service.ok_or_else(|| ApiError::not_found("", "services", name))?;
    let mut port_name = port.to_owned();
    if let Ok(number) = port.parse::<i32>() {
        let ports = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
        let found = ports
            .iter()
            .find(|p| p.port == number)
            .ok_or_else(|| ApiError::unavailable(format!("no service port {number} found for service {name:?}")))?;
        port_name = found.name.clone().unwrap_or_default();
    }
    let slices = cluster.list::<EndpointSlice>(namespace).await?;
    let mut candidates: Vec<(String, u16)> = Vec::new();
    for slice in slices.iter().filter(|s| s.metadata.label(SERVICE_NAME) == Some(name)) {
        let port = slice.ports.iter().flatten().find(|p| p.name.as_deref().unwrap_or_default() == port_name);
        let Some(port) = port.and_then(|p| p.port).and_then(|p| u16::try_from(p).ok()) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
            if let Some(address) = endpoint.addresses.first().filter(|_| ready) {
                candidates.push((address.clone(), port));
            }
        }
    }
    let pick = cluster.entropy.below(candidates.len() as u64);
    let Some((host, port)) = usize::try_from(pick).ok().and_then(|i| candidates.into_iter().nth(i)) else {
        return Err(ApiError::unavailable(format!("no endpoints available for service {id:?}")));
    };
    // The API server itself is behind a Service and may be on a loopback address; anything else there is refused.
    if !may_proxy_to(&host) {
        return Err(ApiError::bad_request("address not allowed"));
    }
    Ok(Endpoint { host, port, security: security(scheme) })
}

async fn node_endpoint(cluster: &Cluster, id: &str) -> Result<Endpoint, ApiError> {
    let invalid = || ApiError::bad_request(format!("invalid node request {id:?}"));
    let (scheme, name, port) = split_scheme_name_port(id).ok_or_else(invalid)?;
    let kubelet = kubelet_of(cluster, name).await?;
    if port.is_empty() || port.parse() == Ok(kubelet.port) {
        return Ok(kubelet);
    }
    if !may_proxy_to(&kubelet.host) {
        return Err(ApiError::bad_request("address not allowed"));
    }
    Ok(Endpoint { port: port_number(port, id, "node")?, host: kubelet.host, security: security(scheme) })
}

/// A redirect of the backend to itself stays within the proxy.
fn keep_redirects_inside(response: &mut Response, base: &str, authority: &str) {
    let Some(location) = response.headers().get(LOCATION).and_then(|v| v.to_str().ok()) else { return };
    if let Some(value) = html::rewrite_url(location, base, authority).and_then(|l| HeaderValue::from_str(&l).ok()) {
        response.headers_mut().insert(LOCATION, value);
    }
}

/// Rewrites the links of an HTML page. Pages too long to hold go on as they are.
async fn keep_links_inside(response: Response, base: &str, authority: &str) -> Response {
    let is_page = |h: &http::HeaderMap| {
        let text = h.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        text.trim_start().to_ascii_lowercase().starts_with("text/html") && !h.contains_key(CONTENT_ENCODING)
    };
    if !is_page(response.headers()) || response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return response;
    }
    let (mut parts, mut body) = response.into_parts();
    let mut start = Vec::new();
    let mut ended = false;
    while start.len() <= PAGE_BYTES_MAX {
        match body.frame().await {
            Some(Ok(frame)) => start.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Some(Err(e)) => {
                // The client gets what came, and the same failure.
                let failed = futures::stream::iter([Ok(Frame::data(Bytes::from(start))), Err(e)]);
                return Response::from_parts(parts, BodyExt::boxed(StreamBody::new(failed)));
            }
            None => {
                ended = true;
                break;
            }
        }
    }
    let page = match String::from_utf8(start) {
        Ok(page) if ended => {
            parts.headers.remove(CONTENT_LENGTH);
            html::rewrite_page(&page, base, authority).into_bytes()
        }
        Ok(page) => page.into_bytes(),
        Err(e) => e.into_bytes(),
    };
    let first = futures::stream::iter([Ok(Frame::data(Bytes::from(page)))]);
    Response::from_parts(parts, BodyExt::boxed(StreamBody::new(first.chain(BodyStream::new(body)))))
}

#[async_trait]
impl Handler for Proxy {
    fn target(&self) -> (&'static str, &'static str, &'static str, &'static str) {
        let resource = match self.kind {
            ProxyKind::Pods => "pods",
            ProxyKind::Services => "services",
            ProxyKind::Nodes => "nodes",
        };
        ("", "v1", resource, "proxy")
    }

    async fn handle(&self, mut request: RequestContext, body: Bytes, services: &Services) -> HandlerResult {
        let cluster = &services.cluster;
        let (namespace, id) = (&request.info.namespace, &request.info.name);
        let (to, resource) = match self.kind {
            ProxyKind::Pods => (pod_endpoint(cluster, namespace, id).await?, resource_of::<Pod>()),
            ProxyKind::Services => (service_endpoint(cluster, namespace, id).await?, resource_of::<Service>()),
            ProxyKind::Nodes => (node_endpoint(cluster, id).await?, resource_of::<Node>()),
        };
        admit_connect(&request, resource, services).await?;
        let path = request.parts.uri.path().to_owned();
        let tail = after_proxy(&path, self.kind != ProxyKind::Nodes);
        let query = request.parts.uri.query().map(|q| format!("?{q}")).unwrap_or_default();
        let upgrade = request.parts.headers.contains_key(UPGRADE);
        if tail.is_empty() && !upgrade && matches!(request.parts.method, Method::GET | Method::HEAD) {
            // Relative links of the page behind must resolve within the proxy.
            let mut response = respond::with_type(301, "text/plain", Bytes::new());
            *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
            let location = HeaderValue::from_str(&format!("{path}/{query}")).map_err(ApiError::internal)?;
            response.headers_mut().insert(LOCATION, location);
            return Ok(response);
        }
        let base = path[..path.len() - tail.len()].to_owned();
        let rest = if tail.is_empty() { "/" } else { tail };
        let mut head = Request::builder().method(request.parts.method.clone()).uri(format!("{rest}{query}"));
        if let Some(headers) = head.headers_mut() {
            *headers = forwarded_request_headers(&request.parts.headers, upgrade);
            headers.insert("x-forwarded-uri", HeaderValue::from_str(&path).map_err(ApiError::internal)?);
        }
        let head = head.body(()).map_err(ApiError::internal)?;
        let client = request.parts.extensions.remove::<OnUpgrade>();
        let passed = self.client.pass_on(&to, head, body, client).await;
        let mut response = passed.map_err(|e| ApiError::unavailable(format!("error trying to reach service: {e}")))?;
        let authority = to.authority();
        keep_redirects_inside(&mut response, &base, &authority);
        Ok(keep_links_inside(response, &base, &authority).await)
    }
}
