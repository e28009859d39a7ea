//! Passing a backend's answer on: hop-by-hop headers stay behind, upgraded connections become tunnels.

use crate::audit;
use crate::request::Response;
use http::header::{CONNECTION, HeaderMap, HeaderName, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

/// Headers that concern one connection only (RFC 9110, 7.6.1), and those that say who asked.
const NOT_FORWARDED: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The headers of a request as a backend gets them. Credentials and impersonation end here.
pub(crate) fn forwarded_request_headers(headers: &HeaderMap, upgrade: bool) -> HeaderMap {
    let mut out = HeaderMap::new();
    for (name, value) in headers {
        let text = name.as_str();
        let private = matches!(text, "authorization" | "host" | "content-length" | "expect" | "accept-encoding")
            || text.starts_with("impersonate-")
            || text.starts_with("x-remote-");
        if private || NOT_FORWARDED.contains(&text) || is_listed(headers, name) {
            continue;
        }
        if text == "sec-websocket-protocol" {
            if let Some(value) = without_token(value) {
                out.append(name.clone(), value);
            }
            continue;
        }
        out.append(name.clone(), value.clone());
    }
    if upgrade {
        out.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Some(protocol) = headers.get(UPGRADE) {
            out.insert(UPGRADE, protocol.clone());
        }
    }
    out
}

/// The sub-protocols without the one that carries a bearer token.
fn without_token(value: &HeaderValue) -> Option<HeaderValue> {
    let text = value.to_str().ok()?;
    let kept: Vec<&str> =
        text.split(',').map(str::trim).filter(|p| !p.starts_with("base64url.bearer.authorization.k8s.io.")).collect();
    if kept.is_empty() { None } else { HeaderValue::from_str(&kept.join(", ")).ok() }
}

/// Whether `Connection` names the header as one for this connection only.
fn is_listed(headers: &HeaderMap, name: &HeaderName) -> bool {
    let listed = headers.get_all(CONNECTION).iter().filter_map(|v| v.to_str().ok());
    listed.flat_map(|v| v.split(',')).any(|n| n.trim().eq_ignore_ascii_case(name.as_str()))
}

/// The answer for the client. A switch of protocols is tunnelled until either side ends.
pub(crate) fn answer(mut backend: http::Response<Incoming>, client: Option<OnUpgrade>) -> Response {
    if backend.status() == StatusCode::SWITCHING_PROTOCOLS {
        let to_backend = hyper::upgrade::on(&mut backend);
        let (parts, _) = backend.into_parts();
        if let Some(client) = client {
            // The audit log is told of the end when the tunnel ends.
            let held = audit::hold();
            tokio::spawn(async move {
                tunnel(client, to_backend).await;
                drop(held);
            });
        }
        let mut response = Response::new(crate::http::respond::full(bytes::Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = parts.headers;
        return response;
    }
    let (mut parts, body) = backend.into_parts();
    let hop_by_hop: Vec<HeaderName> = parts
        .headers
        .keys()
        .filter(|n| NOT_FORWARDED.contains(&n.as_str()) || is_listed(&parts.headers, n))
        .cloned()
        .collect();
    for name in hop_by_hop {
        parts.headers.remove(name);
    }
    parts.headers.remove(TRANSFER_ENCODING);
    parts.version = http::Version::HTTP_11;
    Response::from_parts(parts, body.map_err(std::io::Error::other).boxed())
}

async fn tunnel(client: OnUpgrade, backend: OnUpgrade) {
    let (client, backend) = match tokio::try_join!(client, backend) {
        Ok(both) => both,
        Err(e) => {
            tracing::debug!(error = %e, "an upgraded connection did not come about");
            return;
        }
    };
    // A broken connection is how these streams usually end.
    if let Err(e) = copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(backend)).await {
        tracing::debug!(error = %e, "tunnel ended");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_and_hops_stay_behind() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer x"),
            ("connection", "Upgrade, X-Hop"),
            ("upgrade", "SPDY/3.1"),
            ("x-hop", "1"),
            ("impersonate-user", "eve"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.YQ, v5.channel.k8s.io"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        let out = forwarded_request_headers(&headers, true);
        let get = |n: &str| out.get(n).map(|v| v.to_str().unwrap());
        assert_eq!((get("authorization"), get("impersonate-user"), get("x-hop")), (None, None, None));
        assert_eq!((get("connection"), get("upgrade")), (Some("Upgrade"), Some("SPDY/3.1")));
        assert_eq!(get("x-stream-protocol-version"), Some("v4.channel.k8s.io"));
        assert_eq!(get("sec-websocket-protocol"), Some("v5.channel.k8s.io"));
        assert!(forwarded_request_headers(&headers, false).get("upgrade").is_none());
    }
}
