//! Passes a request on to the server that serves its version, as the user who asks, with the front proxy's certificate.

use super::{Remote, availability};
use crate::authn::UserInfo;
use crate::http::respond;
use crate::request::{RequestContext, Response};
use crate::server::Server;
use crate::subresource::kubelet::{forwarded_request_headers, pass_back};
use crate::webhook_client::{self, authority};
use bytes::Bytes;
use gantry_api::meta::status::ApiError;
use http::header::{ACCEPT_ENCODING, HOST, LOCATION, UPGRADE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::Full;
use hyper::upgrade::OnUpgrade;
use std::net::SocketAddr;
use std::time::Duration;

/// A discovery document is cheap: a server that does not give it quickly is broken.
const DISCOVERY_WITHIN: Duration = Duration::from_secs(5);

/// The address a request came from, among its extensions.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub SocketAddr);

/// A failure as upstream's aggregator tells it: plain text.
fn plain(code: u16, text: &str) -> Response {
    let mut response = respond::with_type(code, "text/plain; charset=utf-8", format!("{text}\n"));
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Where the remote is now.
///
/// # Errors
/// Why its Service leads nowhere.
pub(super) async fn resolve(server: &Server, remote: &Remote) -> Result<(String, u16), String> {
    let Remote { namespace, service, port, .. } = remote;
    if (namespace.as_str(), service.as_str(), *port) == ("default", "kubernetes", 443)
        && let Some(own) = server.config.listen.first()
    {
        let host = if own.ip().is_unspecified() { "127.0.0.1".to_owned() } else { own.ip().to_string() };
        return Ok((host, own.port()));
    }
    let cluster = &server.services.cluster;
    if !server.config.access.aggregator_routing {
        return webhook_client::resolve(cluster, namespace, service, *port).await;
    }
    let none = || format!("no endpoints available for service {service:?}");
    let found = cluster.get::<gantry_api::k8s_openapi::api::core::v1::Service>(namespace, service).await;
    let spec = found.map_err(|e| e.message)?.ok_or_else(|| format!("service {service:?} not found"))?.spec;
    let spec = spec.unwrap_or_default();
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    if !matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer") {
        return Err(format!("unsupported service type {kind:?}"));
    }
    let known = spec.ports.iter().flatten().find(|p| p.port == *port);
    let known = known.ok_or_else(|| format!("no service port {port} found for service {service:?}"))?;
    let name = known.name.as_deref().unwrap_or_default();
    let slices = availability::slices_of(cluster, namespace, service).await.map_err(|e| e.message)?;
    let mut candidates = Vec::new();
    for slice in &slices {
        let port = slice.ports.iter().flatten().find(|p| p.name.as_deref().unwrap_or_default() == name);
        let Some(port) = port.and_then(|p| u16::try_from(p.port?).ok()) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
            if let Some(address) = endpoint.addresses.first().filter(|_| ready) {
                candidates.push((address.clone(), port));
            }
        }
    }
    let pick = cluster.entropy.below(candidates.len().max(1) as u64);
    usize::try_from(pick).ok().and_then(|i| candidates.into_iter().nth(i)).ok_or_else(none)
}

/// A key of an extra attribute as part of a header's name.
fn escaped(key: &str) -> String {
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&b);
    let mut out = String::with_capacity(key.len());
    for b in key.bytes() {
        if is_token(b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

/// Says who asks, in the headers that the server behind believes because of the certificate.
pub(super) fn set_user(headers: &mut HeaderMap, user: &UserInfo) {
    let mut put = |name: &str, value: &str| {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value.as_bytes())) {
            headers.append(name, value);
        }
    };
    put("x-remote-user", &user.username);
    if !user.uid.is_empty() {
        put("x-remote-uid", &user.uid);
    }
    for group in &user.groups {
        put("x-remote-group", group);
    }
    for (key, values) in &user.extra {
        for value in values {
            put(&format!("x-remote-extra-{}", escaped(key)), value);
        }
    }
}

fn headers_of(cx: &RequestContext, upgrade: bool) -> HeaderMap {
    let given = &cx.parts.headers;
    let mut headers = forwarded_request_headers(given, upgrade);
    if let Some(encodings) = given.get(ACCEPT_ENCODING) {
        headers.insert(ACCEPT_ENCODING, encodings.clone());
    }
    set_user(&mut headers, &cx.user);
    let mut put = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    put("x-forwarded-uri", cx.parts.uri.path());
    put("x-forwarded-proto", "https");
    let host = given.get(HOST).and_then(|v| v.to_str().ok()).or_else(|| cx.parts.uri.authority().map(|a| a.as_str()));
    put("x-forwarded-host", host.unwrap_or_default());
    if let Some(PeerAddress(address)) = cx.parts.extensions.get::<PeerAddress>() {
        let before = given.get("x-forwarded-for").and_then(|v| v.to_str().ok());
        put("x-forwarded-for", &before.map_or(address.ip().to_string(), |b| format!("{b}, {}", address.ip())));
    }
    headers
}

/// Passes an authorized request on. The answer streams; an upgraded connection is tunnelled.
///
/// # Errors
/// Where the request cannot be put into words for the server behind. What that server fails to do is an answer.
pub async fn pass_on(
    server: &Server,
    remote: &Remote,
    mut cx: RequestContext,
    body: Bytes,
) -> Result<Response, ApiError> {
    if !remote.is_available() {
        return Ok(plain(503, "service unavailable"));
    }
    let outbound = match &remote.outbound {
        Ok(outbound) => outbound,
        Err(why) => return Ok(plain(500, why)),
    };
    let (host, port) = match resolve(server, remote).await {
        Ok(found) => found,
        Err(why) => {
            tracing::warn!(name = remote.name, why, "an aggregated API server cannot be found");
            return Ok(plain(503, "service unavailable"));
        }
    };
    let upgrade = cx.parts.headers.contains_key(UPGRADE);
    let target = cx.parts.uri.path_and_query().map_or("/", |p| p.as_str());
    let uri = format!("https://{}{target}", authority(&host, port));
    let mut request = Request::builder().method(cx.parts.method.clone()).uri(uri);
    if let Some(headers) = request.headers_mut() {
        *headers = headers_of(&cx, upgrade);
    }
    let request = request.body(Full::new(body)).map_err(ApiError::internal)?;
    let client = cx.parts.extensions.remove::<OnUpgrade>();
    let sent = async { if upgrade { outbound.send_alone(request).await } else { outbound.send(request).await } };
    let is_discovery = cx.info.path.trim_matches('/').split('/').count() == 3 && !cx.info.is_resource;
    let answer = if is_discovery {
        let late = || Err("context deadline exceeded".to_owned());
        tokio::time::timeout(DISCOVERY_WITHIN, sent).await.unwrap_or_else(|_| late())
    } else {
        sent.await
    };
    let answer = match answer {
        Ok(answer) => answer,
        Err(why) if upgrade => return Ok(plain(503, &why)),
        Err(why) => return Ok(plain(503, &format!("error trying to reach service: {why}"))),
    };
    if answer.status().is_redirection() && answer.headers().contains_key(LOCATION) {
        let text = "the backend attempted to redirect this request, which is not permitted";
        return Ok(respond::with_type(502, "text/plain; charset=utf-8", text));
    }
    if upgrade && answer.status() != 101 && answer.status().as_u16() < 400 {
        return Ok(plain(503, &format!("invalid upgrade response: status code {}", answer.status().as_u16())));
    }
    Ok(pass_back(answer, client))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_told_in_headers() {
        let user = UserInfo {
            username: "bob".into(),
            uid: "7".into(),
            groups: vec!["a".into(), "b".into()],
            extra: [("example.com/a b".to_owned(), vec!["1".to_owned(), "2".to_owned()])].into(),
        };
        let mut headers = HeaderMap::new();
        set_user(&mut headers, &user);
        let all = |name: &str| -> Vec<&str> { headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect() };
        assert_eq!((all("x-remote-user"), all("x-remote-uid")), (vec!["bob"], vec!["7"]));
        assert_eq!(all("x-remote-group"), ["a", "b"]);
        assert_eq!(all("x-remote-extra-example.com%2fa%20b"), ["1", "2"]);
    }
}
